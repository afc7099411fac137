"""The form of a call: what decides about the code that its kernels are compiled to, and nothing else.

It is made in every call, so it must take no more than a microsecond: dtypes, what is there at all, flags, and the few
sizes that change the code. A size costs more to ask for than several dtypes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Form = tuple[Any, ...]
"""Index of the device (-1 for the CPU), then the values of ``FIELDS``."""

MANY_ROWS = 192
"""Matrices of more rows are computed in larger tiles, where there are such; see ``rdm.tile_shape``."""


def _gaussian_readout(
    features: Tensor,
    mu: Tensor,
    sigma: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    neuron_index: Tensor | None,
    image_offset: int,
    share_noise: bool,
    align_corners: bool,
) -> Form:
    return (
        features.get_device(),
        features.shape[1],
        features.dtype,
        weight.dtype,
        mu.dtype,
        sigma if sigma is None else sigma.dtype,
        sigma if sigma is None else sigma.ndim,
        bias if bias is None else bias.dtype,
        shift if shift is None else shift.dtype,
        noise if noise is None else noise.dtype,
        seed is not None,
        neuron_index is not None,
        share_noise,
        align_corners,
    )


def _pooled_readout(
    features: Tensor,
    grid: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    pooled: Tensor | None,
    align_corners: bool,
    pool_kernel: int,
    pool_steps: int,
) -> Form:
    return (
        features.get_device(),
        features.shape[1],
        features.dtype,
        weight.dtype,
        grid.dtype,
        grid.dim() == 3,
        bias if bias is None else bias.dtype,
        shift if shift is None else shift.dtype,
        pooled is not None,
        align_corners,
        pool_steps,
    )


def _point_gather(features: Tensor, grid: Tensor, shift: Tensor | None, align_corners: bool) -> Form:
    return (
        features.get_device(),
        features.shape[1],
        features.dtype,
        grid.dtype,
        grid.dim() == 3,
        shift if shift is None else shift.dtype,
        align_corners,
    )


def _philox_normal(seed: Tensor, images: int, neurons: int, neuron_index: Tensor | None, image_offset: int) -> Form:
    return seed.get_device(), neuron_index is not None


def _rdm(x: Tensor, y: Tensor | None, method: str, condensed: bool, accuracy: str, out: Tensor | None = None) -> Form:
    dtype = None if y is None else y.dtype
    return x.get_device(), x.dtype, dtype, method, condensed, accuracy, x.shape[1] > MANY_ROWS


def _cross_rdm(x: Tensor, y: Tensor, method: str, accuracy: str) -> Form:
    many = x.shape[1] > MANY_ROWS or y.shape[1] > MANY_ROWS
    return x.get_device(), x.dtype, y.dtype, method, accuracy, many


def _rdm_backward(
    grad: Tensor,
    matrix: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    method: str,
    condensed: bool,
    accuracy: str,
    output_mask: list[bool],
) -> Form:
    return x.get_device(), x.dtype, None if y is None else y.dtype, method, condensed, accuracy, *output_mask


def _cross_rdm_backward(
    grad: Tensor, matrix: Tensor | None, x: Tensor, y: Tensor, method: str, accuracy: str, output_mask: list[bool]
) -> Form:
    return x.get_device(), x.dtype, y.dtype, method, accuracy, *output_mask


def _backward(forward: Callable[..., Form]) -> Callable[..., Form]:
    """Return the form of the backward pass of a readout: whether atomics are forbidden decides about it too."""

    def form(grad_output: Tensor, *rest: Any) -> Form:
        *operands, output_mask = rest
        deterministic = torch.are_deterministic_algorithms_enabled()
        return *forward(*operands), grad_output.dtype, deterministic, *output_mask

    return form


FORMS: dict[str, Callable[..., Form]] = {
    "gaussian_readout": _gaussian_readout,
    "gaussian_readout_backward": _backward(_gaussian_readout),
    "philox_normal": _philox_normal,
    "point_gather": _point_gather,
    "point_gather_backward": _backward(_point_gather),
    "pooled_readout": _pooled_readout,
    "pooled_readout_backward": _backward(_pooled_readout),
    "rdm": _rdm,
    "rdm_out": _rdm,
    "cross_rdm": _cross_rdm,
    "rdm_backward": _rdm_backward,
    "cross_rdm_backward": _cross_rdm_backward,
}
"""Op name -> function of that op's arguments that returns their form."""

_GAUSSIAN = "C features weight mu sigma sigma_axes bias shift noise seed neuron_index share_noise align_corners"
_POOLED = "C features weight grid per_image bias shift pooled align_corners pool_steps"
_GATHER = "C features grid per_image shift align_corners"
_RDM = "x y method condensed accuracy many_rows"
_GRADIENT = "grad_output deterministic d_"

FIELDS = {
    name: tuple(text.split())
    for name, text in {
        "gaussian_readout": _GAUSSIAN,
        "gaussian_readout_backward": f"{_GAUSSIAN} {_GRADIENT}features d_mu d_sigma d_weight d_bias d_shift",
        "philox_normal": "neuron_index",
        "point_gather": _GATHER,
        "point_gather_backward": f"{_GATHER} {_GRADIENT}features d_grid d_shift",
        "pooled_readout": _POOLED,
        "pooled_readout_backward": f"{_POOLED} {_GRADIENT}features d_grid d_weight d_bias d_shift",
        "rdm": _RDM,
        "rdm_out": _RDM,
        "cross_rdm": "x y method accuracy many_rows",
        "rdm_backward": "x y method condensed accuracy d_x d_y",
        "cross_rdm_backward": "x y method accuracy d_x d_y",
    }.items()
}
"""Op name -> what the values of its form are, without the device."""


def _value(field: str, value: Any) -> str:
    if value is True:
        return field
    return f"{field}={str(value).removeprefix('torch.')}"


def describe(name: str, form: Form) -> str:
    """Return the form in words, the same for every device of a model: ``C=64, features=float32, ...``."""
    values = zip(FIELDS[name], form[1:], strict=True)
    words = (_value(field, value) for field, value in values if value is not None and value is not False)
    return ", ".join(words) or "all calls"
