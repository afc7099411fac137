"""The forms of the kernels that common calls compile, for a table of registers, shared memory and spills made ahead.

Ahead of time means without a GPU: ``triton.compile(ASTSource(s.kernel, s.signature, s.constants, s.attributes),
target=GPUTarget("cuda", 90, 32), options=s.options)``.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import torch

from . import _backward, _features, _forward, _sums, philox_normal
from ._launch import OPTIONS, SCALARS, UNALIGNED, Config, backward_configs, forward_configs

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}


class Specialisation(NamedTuple):
    """What Triton needs to compile one form of a kernel."""

    name: str
    kernel: Any
    signature: dict[str, str]  # argument -> type
    constants: dict[tuple[int], Any]  # index of the argument -> value
    attributes: dict[tuple[int], list[list[Any]]]  # index of the argument -> what is known of it
    options: dict[str, Any]


def _specialisation(name: str, kernel: Any, arguments: dict[str, Any], options: dict[str, Any]) -> Specialisation:
    """A string among the arguments is a type, anything else a constant; integers need not be named."""
    values = {n: arguments.get(n, "i32" if n in SCALARS else None) for n in kernel.arg_names}
    signature = {n: v if isinstance(v, str) else "constexpr" for n, v in values.items()}
    constants = {(i,): v for i, v in enumerate(values.values()) if not isinstance(v, str)}
    aligned = [i for i, (n, t) in enumerate(signature.items()) if t.startswith("*") and n not in UNALIGNED]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    return Specialisation(name, kernel, signature, constants, attributes, {**options, **OPTIONS})


class Points(NamedTuple):
    """Where samples lie, and what is read there."""

    name: str
    drawn: bool = False
    given: bool = False  # positions that are not clamped, rather than those of a Gaussian
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
    slabs = {"out": "*fp32", "slabs": "*fp32", "DOUBLE": False}
    normals = {"out": "*fp32", "seed": "*i64", "BN": 64, "T": 4}
    cells |= _arguments("fp32", "fp32", 64, DRAWN, None)
    return [
        _specialisation("cells", _features.cells_kernel, cells, warps),
        _specialisation("slabs few", _sums.slabs_kernel, slabs | {"BS": 1, "BM": 512}, warps),
        _specialisation("slabs many", _sums.slabs_kernel, slabs | {"BS": 64, "BM": 16}, warps),
        _specialisation("normals", philox_normal.normal_kernel, normals, warps),
    ]


def _gaussian() -> list[Specialisation]:
    """float32, bfloat16 and float64 features, few and many channels, what training asks for."""
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
    """float32, and bfloat16, of which the levels after the first are float32."""
    single, half = ("fp32", "fp32"), ("bf16", "fp32")
    forms = [_forward_form(*single, 64, points) for points in (GIVEN, PER_IMAGE, GATHERED)]
    forms += [_forward_form(*single, 64, GIVEN, partial=True), _forward_form(*half, 64, GIVEN)]
    forms += [_backward_form(*single, 64, True, True, points) for points in (GIVEN, PER_IMAGE, GATHERED)]
    forms += [_backward_form(*single, 64, False, True, GIVEN), _backward_form(*half, 64, True, True, GIVEN)]
    return [*forms, _pixels_form(*single, 64, GATHERED)]


def specialisations() -> list[Specialisation]:
    """The forms that ship."""
    return [*_gaussian(), *_points(), *_small()]
