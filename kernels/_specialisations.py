"""The forms of the kernels that common calls compile, for an ahead-of-time table of registers and memory.

Ahead of time means without a GPU: ``triton.compile(ASTSource(s.kernel, s.signature, s.constants, s.attributes),
target=GPUTarget("cuda", 90, 32), options=s.options)``.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple, TypeGuard

import torch

from . import _backward, _features, _forward, _sums, philox_normal, rdm, rdm_backward, rdm_rows, whole_numbers
from ._launch import OPTIONS, SCALARS, UNALIGNED, Config, backward_configs, forward_configs

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}


class Specialisation(NamedTuple):
    """What Triton needs to compile one form of a kernel."""

    name: str
    kernel: Any
    signature: dict[str, str]  # argument -> type
    constants: dict[tuple[int], Any]  # index of the argument -> value
    attributes: dict[tuple[int], list[list[Any]]]  # index of the argument -> known properties
    options: dict[str, Any]


class _Text(str):
    """A string that is a constant, not a type."""


def _is_type(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and not isinstance(value, _Text)


PADDED = {"columns"}
"""Integers that are multiples of 16 in every call."""


def _specialisation(name: str, kernel: Any, arguments: dict[str, Any], options: dict[str, Any]) -> Specialisation:
    """Build one specialisation. A string argument is a type, anything else is a constant. Integers may be left out."""
    values = {n: arguments.get(n, "i32" if n in SCALARS | PADDED else None) for n in kernel.arg_names}
    signature: dict[str, str] = {n: v if _is_type(v) else "constexpr" for n, v in values.items()}
    constants = {(i,): str(v) if isinstance(v, str) else v for i, v in enumerate(values.values()) if not _is_type(v)}
    aligned = [
        i for i, (n, t) in enumerate(signature.items()) if (t.startswith("*") and n not in UNALIGNED) or n in PADDED
    ]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    return Specialisation(name, kernel, signature, constants, attributes, {**OPTIONS, **options})


class Points(NamedTuple):
    """How samples are located and what is read there."""

    name: str
    drawn: bool = False
    given: bool = False  # positions are given and not clamped; otherwise they come from a Gaussian
    per_image: bool = False
    weighted: bool = True  # the channels are summed


DRAWN, MEANS = Points("drawn", drawn=True), Points("means")
GIVEN, PER_IMAGE = Points("points", given=True), Points("points per image", given=True, per_image=True)
GATHERED = Points("gathered points", given=True, weighted=False)


def _arguments(features: str, compute: str, channels: int, points: Points, config: Config | None) -> dict[str, Any]:
    operands = dict.fromkeys(("features", "weight", "grad"), f"*{features}")
    operands |= dict.fromkeys(("bias", "mu", "shift"), f"*{compute}")
    noise = {"sigma": f"*{compute}", "seed": "*i64", "SIGMA": 4} if points.drawn else {"SIGMA": 0}
    constants = {"C": channels, "PIXEL": channels, "SHARED": False, "ALIGN_CORNERS": True, "WIDE": False}
    constants |= {
        "LEVELS": 3 if points.given and points.weighted else 1,
        "PER_IMAGE": points.per_image,
        "CLAMP": not points.given,
    }
    sizes = {} if config is None else {"BN": config.neurons, "BC": config.channels, "T": config.images}
    return operands | noise | constants | sizes


def _forward_form(features: str, compute: str, channels: int, points: Points, partial: bool = False) -> Specialisation:
    config = forward_configs(channels, DTYPES[compute])[0]
    arguments = _arguments(features, compute, channels, points, config) | {"out": f"*{features}"}
    if partial:
        arguments |= {"partial": f"*{compute}", "bias": None}
    if not points.weighted:
        arguments |= {"weight": None, "bias": None}
    name = f"forward {features} C={channels} {points.name}{', a level more' if partial else ''}"
    return _specialisation(name, _forward.forward_kernel, arguments, {"num_warps": config.warps})


def _backward_form(
    features: str, compute: str, channels: int, scatter: bool, shift: bool, points: Points = DRAWN
) -> Specialisation:
    config = backward_configs(channels, DTYPES[features], DTYPES[compute], scatter and points.given)[0]
    slab = f"*{compute}"
    arguments = _arguments(features, compute, channels, points, config)
    arguments |= {"d_mu": slab, "d_sigma": slab if points.drawn else None, "d_weight": slab}
    arguments |= {"d_features": slab if scatter else None, "D_PIXEL": channels if scatter else 0}
    arguments |= {"d_shift": slab if shift else None}
    if not points.weighted:
        arguments |= {"grad": None, "d_weight": None}
    name = f"backward {features} C={channels} {points.name}"
    name += f"{' d_features' if scatter else ''}{' d_shift' if shift else ''}"
    return _specialisation(name, _backward.backward_kernel, arguments, {"num_warps": config.warps})


def _pixels_form(features: str, compute: str, channels: int, points: Points = DRAWN) -> Specialisation:
    block = _features.pixel_block(channels, compute == "fp64")
    arguments = _arguments(features, compute, channels, points, None) | block
    arguments |= {"d_features": f"*{features}", "order": "*i64", "starts": "*i32"}
    arguments |= {"stride_b": "i32", "stride_c": 1, "stride_h": "i32", "stride_w": "i32"}
    if not points.weighted:
        arguments |= {"grad": None}
    name = f"pixels {features} C={channels} {points.name}"
    return _specialisation(name, _features.pixels_kernel, arguments, {"num_warps": 1})


def _small() -> list[Specialisation]:
    warps = {"num_warps": 4}
    cells: dict[str, Any] = {"cells": "*i32", "BN": 64, "T": 2}
    sums: dict[str, Any] = {f"{name}_a": "*fp32" for name in ("out", "slabs")} | {"DOUBLE": False}
    more = {f"{name}_{letter}": "*fp32" for name in ("out", "slabs") for letter in "bcd"}
    many = {f"MANY_{letter}": False for letter in "abcde"}
    normals = {"out": "*fp32", "seed": "*i64", "BN": 64, "T": 4}
    cells |= _arguments("fp32", "fp32", 64, DRAWN, None)
    return [
        _specialisation("cells", _features.cells_kernel, cells, warps),
        _specialisation("sums few", _sums.sums_kernel, sums | many, warps),
        _specialisation("sums of four", _sums.sums_kernel, sums | more | many | {"MANY_d": True}, warps),
        _specialisation("normals", philox_normal.normal_kernel, normals, warps),
    ]


def _gaussian() -> list[Specialisation]:
    """Return the Gaussian readout for float32, bfloat16 and float64, few and many channels, as in training."""
    dtypes = (("fp32", "fp32"), ("bf16", "fp32"), ("fp64", "fp64"))
    forms = [_forward_form(*dtypes[0], c, points) for c, points in product((20, 64, 256), (DRAWN, MEANS))]
    forms += [_forward_form(*d, 64, DRAWN) for d in dtypes[1:]]
    forms += [
        _backward_form(*dtypes[0], c, scatter, shift)
        for c, scatter, shift in product((64, 256), (False, True), (False, True))
    ]
    forms += [_backward_form(*dtypes[0], 20, scatter=True, shift=True)]
    forms += [_backward_form(*d, 64, scatter=True, shift=True) for d in dtypes[1:]]
    forms += [_backward_form(*dtypes[1], 64, scatter=False, shift=False)]
    return forms + [_pixels_form(*dtypes[0], c) for c in (20, 64, 256)] + [_pixels_form(*d, 64) for d in dtypes[1:]]


def _points() -> list[Specialisation]:
    """Return the readouts of points for float32 and bfloat16. With bfloat16, levels after the first are float32."""
    single, half = ("fp32", "fp32"), ("bf16", "fp32")
    forms = [_forward_form(*single, 64, points) for points in (GIVEN, PER_IMAGE, GATHERED)]
    forms += [_forward_form(*single, 64, GIVEN, partial=True), _forward_form(*half, 64, GIVEN)]
    forms += [_backward_form(*single, 64, True, True, points) for points in (GIVEN, PER_IMAGE, GATHERED)]
    forms += [_backward_form(*single, 64, False, True, GIVEN), _backward_form(*half, 64, True, True, GIVEN)]
    return [*forms, _pixels_form(*single, 64, GATHERED)]


def points_specialisations() -> list[Specialisation]:
    """Return the specialisations of the readouts of points and of the noise."""
    return [*_gaussian(), *_points(), *_small()]


def _rows(x: str, planes: str | None, method: str, backward: bool = False) -> Specialisation:
    double = {"norms": "*fp64", "factors": "*fp64"}
    double |= {"centre": "*fp64"} if method == "euclidean" and planes else {}
    double |= {"inverses": "*fp64"} if backward and method != "euclidean" else {}
    arguments = {"planes": planes and f"*{planes}", "x": f"*{x}", "stride_column": 1, "lift": "fp32", "unlift": "fp32"}
    arguments |= {"steps": "*fp64"} if planes and not backward else {}
    arguments |= {"METHOD": _Text(method), "SCALED": planes is not None, "BLOCK": rdm_rows.BLOCK, **double}
    name = f"rdm rows {x} {'valid' if planes is None else f'{method} to {planes}'}"
    return _specialisation(name, rdm_rows.rows_kernel, arguments, {"num_warps": 4})


_ENDS = dict.fromkeys(("norms", "other_norms", "factors", "other_factors"), "*fp64")


def _tiles(
    planes: str, rows: int, form: str, warpgroups: bool, units: bool = False, split: bool = False
) -> Specialisation:
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}[planes]
    shape = rdm.tile_shape(rows, dtype, warpgroups)
    sums = "*fp64" if planes == "fp64" else "*fp32"
    arguments = {"planes": f"*{planes}", "others": f"*{planes}", "CLIP": True, "FORM": _Text(form)}
    arguments |= {"slabs": sums} if split else {"out": sums, **_ENDS, "units" if units else "steps": "*fp64"}
    options = shape.options()
    sizes = {key: options.pop(key) for key in ("SIDE", "BK", "PROMOTED")}
    what = "sums" if split else f"{form} {'distances' if units else 'angles'}"
    return _specialisation(f"rdm tiles {planes} S={rows} {what}", rdm.tiles_kernel, arguments | sizes, options)


def _slabs(side: int, form: str) -> Specialisation:
    arguments = {"out": "*fp32", "slabs": "*fp32", "CLIP": True, "FORM": _Text(form), "SIDE": side, "BR": 16, **_ENDS}
    arguments |= {"steps": "*fp64"}
    return _specialisation(f"rdm slabs {side} {form}", rdm.slabs_kernel, arguments, {"num_warps": 4})


def _mix(dtype: str, pairs: str, warpgroups: bool, distances: bool = False, condensed: bool = False) -> Specialisation:
    block, warps = rdm_backward.block_shape(DTYPES[dtype], warpgroups)
    arguments: dict[str, Any] = dict.fromkeys(("out", "grad", "others"), f"*{dtype}")
    arguments |= {"norms": "*fp64", "other_norms": "*fp64"}
    arguments |= {"own": f"*{dtype}"} if distances else {}
    arguments |= {"stride_column": 1, "PAIRS": _Text(pairs), "CONDENSED": condensed}
    arguments |= {"PRECISION": _Text(rdm_backward.product_precision()), "PROMOTED": rdm_backward.PROMOTED}
    arguments |= dict(zip(("BM", "BN", "BK"), block, strict=True))
    name = f"rdm mix {dtype} {pairs}{' condensed' if condensed else ''} {'distances' if distances else 'angles'}"
    return _specialisation(name, rdm_backward.mix_kernel, arguments, {"num_warps": warps})


def _small_of_rdm() -> list[Specialisation]:
    warps = {"num_warps": 4}
    centre = {"centre": "*fp64", "norms": "*fp64", "x": "*fp32", "stride_column": 1, "BS": 32, "BN": 32}
    pairs = {"norms": "*fp64", "other_norms": "*fp64", "planes": "*fp16", "others": "*fp16", "BLOCK": rdm_rows.BLOCK}
    near: dict[str, Any] = {"out": "*fp32", "planes": "*fp64", "others": "*fp64", "steps": "*fp64", "near": "fp32"}
    near |= {"FORM": _Text("square"), "SIDE": 8, "BK": 32}
    whole = {"out": "*fp32", **_ENDS, "steps": "*fp64", "CENTRED": True, "FORM": _Text("square"), "SIDE": 32}
    seen = {"x": "*fp32", "stride_column": 1, "BLOCK": whole_numbers.BLOCK}
    angles = {"d_x": "*fp32", "mixed": "*fp32", "units": "*fp32", "inverses": "*fp64", "BLOCK": rdm_rows.BLOCK}
    return [
        _specialisation("rdm centre", rdm_rows.centre_kernel, centre, warps),
        _specialisation("rdm pairs", rdm_rows.pairs_kernel, pairs, warps),
        _specialisation("rdm places", whole_numbers.places_kernel, {"found": "*fp64", "steps": "*fp64", **seen}, warps),
        _specialisation("rdm whole", rdm.whole_kernel, whole, warps),
        _specialisation("rdm near", rdm.near_kernel, near, warps),
        _specialisation("rdm angles", rdm_backward.angles_kernel, angles, warps),
    ]


def rdm_specialisations(warpgroups: bool) -> list[Specialisation]:
    """Return those of the dissimilarity matrices. They depend on the GPU's tensor cores: see ``tile_shape``."""
    few, many = 100, 1000
    forms = [_rows("fp32", planes, method) for planes, method in (("fp16", "correlation"), ("fp16", "euclidean"))]
    forms += [_rows("fp32", "bf16", "correlation"), _rows("fp32", None, "euclidean"), _rows("bf16", "fp16", "cosine")]
    forms += [_rows("fp64", "fp64", "correlation"), _rows("fp32", "fp32", "correlation", backward=True)]
    forms += [
        _tiles("fp16", many, form, warpgroups, units)
        for form, units in product(("square", "condensed", "cross"), (False, True))
    ]
    forms += [_tiles(planes, many, "square", warpgroups) for planes in ("bf16", "fp64")]
    forms += [
        _tiles(planes, rows, "square", warpgroups, split=True) for planes, rows in (("fp16", few), ("fp16", many))
    ]
    forms += [_tiles("fp16", few, "square", warpgroups), _tiles("fp64", few, "square", warpgroups, split=True)]
    forms += [_slabs(side, form) for side, form in product((64, 128), ("square", "condensed"))]
    forms += [_mix("fp32", "full", warpgroups, *flags) for flags in ((False, False), (True, False), (False, True))]
    forms += [_mix("fp32", pairs, warpgroups, True) for pairs in ("upper", "rows")]
    forms += [_mix("fp32", "rows", warpgroups), _mix("fp64", "full", warpgroups)]
    return forms + _small_of_rdm()


def specialisations(warpgroups: bool = False) -> list[Specialisation]:
    """Return all specialisations of the table."""
    return points_specialisations() + rdm_specialisations(warpgroups)
