"""The forms of the kernels that common calls compile, for a table of registers, shared memory and spills made ahead.

Ahead of time means without a GPU: ``triton.compile(ASTSource(s.kernel, s.signature, s.constants, s.attributes),
target=GPUTarget("cuda", 90, 32), options=s.options)``.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import torch

from . import (
    gaussian_readout,
    gaussian_readout_backward,
    gaussian_readout_features,
    gaussian_readout_sums,
    philox_normal,
)
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


def _arguments(features: str, compute: str, channels: int, drawn: bool, config: Config | None) -> dict[str, Any]:
    operands = {"features": f"*{features}", "weight": f"*{features}", "grad": f"*{features}"}
    operands |= dict.fromkeys(("bias", "mu", "shift"), f"*{compute}")
    noise = {"sigma": f"*{compute}", "seed": "*i64", "SIGMA": 4} if drawn else {"SIGMA": 0}
    constants = {"C": channels, "PIXEL": channels, "SHARED": False, "ALIGN_CORNERS": True, "WIDE": False}
    sizes = {} if config is None else {"BN": config.neurons, "BC": config.channels, "T": config.images}
    return operands | noise | constants | sizes


def _forward(features: str, compute: str, channels: int, drawn: bool) -> Specialisation:
    config = forward_configs(channels, DTYPES[compute])[0]
    arguments = _arguments(features, compute, channels, drawn, config) | {"out": f"*{features}"}
    name = f"forward {features} C={channels} {'drawn' if drawn else 'means'}"
    return _specialisation(name, gaussian_readout.forward_kernel, arguments, {"num_warps": config.warps})


def _backward(features: str, compute: str, channels: int, scatter: bool, shift: bool) -> Specialisation:
    config = backward_configs(channels, DTYPES[features], DTYPES[compute])[0]
    slab = f"*{compute}"
    arguments = _arguments(features, compute, channels, True, config)
    arguments |= {"d_weight": slab, "parts": slab, "D_PIXEL": channels if scatter else 0}
    arguments |= {"d_features": slab if scatter else None, "shift_parts": slab if shift else None}
    arguments |= {"MU": True, "COVARIANCE": True, "BIAS": True}
    wanted = f"{' d_features' if scatter else ''}{' d_shift' if shift else ''}"
    name = f"backward {features} C={channels}{wanted}"
    return _specialisation(name, gaussian_readout_backward.backward_kernel, arguments, {"num_warps": config.warps})


def _pixels(features: str, compute: str, channels: int) -> Specialisation:
    block = gaussian_readout_features.pixel_block(channels, compute == "fp64")
    arguments = _arguments(features, compute, channels, True, None) | block
    arguments |= {"d_features": f"*{features}", "order": "*i64", "starts": "*i32"}
    arguments |= {"stride_b": "i32", "stride_c": 1, "stride_h": "i32", "stride_w": "i32"}
    name = f"pixels {features} C={channels}"
    return _specialisation(name, gaussian_readout_features.pixels_kernel, arguments, {"num_warps": 1})


def _small() -> list[Specialisation]:
    warps = {"num_warps": 4}
    cells = _arguments("fp32", "fp32", 64, True, None) | {"cells": "*i32", "BN": 64, "T": 2}
    neurons = {"d_mu": "*fp32", "d_sigma": "*fp32", "d_bias": "*fp32", "parts": "*fp32", "SIGMA": 4}
    neurons |= {"ALIGN_CORNERS": True, "BN": 128}
    slabs = {"out": "*fp32", "slabs": "*fp32", "ALIGN_CORNERS": True}
    normals = {"out": "*fp32", "seed": "*i64", "BN": 64, "T": 4}
    sums = gaussian_readout_sums
    return [
        _specialisation("cells", gaussian_readout_features.cells_kernel, cells, warps),
        _specialisation("neurons", sums.neurons_kernel, neurons, warps),
        _specialisation("slabs few", sums.slabs_kernel, slabs | {"PIXELS": False, "BS": 1, "BM": 512}, warps),
        _specialisation("slabs many", sums.slabs_kernel, slabs | {"PIXELS": True, "BS": 64, "BM": 16}, warps),
        _specialisation("normals", philox_normal.normal_kernel, normals, warps),
    ]


def specialisations() -> list[Specialisation]:
    """The forms that ship: float32, bfloat16 and float64 features, few and many channels, what training asks for."""
    dtypes = (("fp32", "fp32"), ("bf16", "fp32"), ("fp64", "fp64"))
    forms = [_forward(*dtypes[0], c, drawn) for c, drawn in product((20, 64, 256), (True, False))]
    forms += [_forward(*d, 64, drawn=True) for d in dtypes[1:]]
    forms += [
        _backward(*dtypes[0], c, scatter, shift)
        for c, scatter, shift in product((64, 256), (False, True), (False, True))
    ]
    forms += [_backward(*dtypes[0], 20, scatter=True, shift=True)]
    forms += [_backward(*d, 64, scatter=True, shift=True) for d in dtypes[1:]]
    forms += [_backward(*dtypes[1], 64, scatter=False, shift=False)]
    forms += [_pixels(*dtypes[0], c) for c in (20, 64, 256)] + [_pixels(*d, 64) for d in dtypes[1:]]
    return forms + _small()
