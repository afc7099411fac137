"""The contract of ``v1fast::pooled_readout`` and its backward: shapes, fake outputs, derivatives, schemas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from v1fast.ops import _checks
from v1fast.ops._define import define_with_backward, fake_gradients
from v1fast.reference import pooled_readout as reference


def _check_neurons(
    features: Tensor, channels: int, grid: Tensor, weight: Tensor, bias: Tensor | None, shift: Tensor | None
) -> None:
    _checks.points(grid, shift, features)
    neurons = grid.shape[-2]
    _checks.shape("weight", weight, "[N, C]", (neurons, channels))
    if bias is not None:
        _checks.shape("bias", bias, "[N]", (neurons,))
    _checks.floats({"weight": weight, "bias": bias}, features)


def check(
    features: Tensor,
    grid: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    align_corners: bool,
    pool_kernel: int,
    pool_steps: int,
) -> None:
    """Raise ValueError, naming the operand, what is wanted and what came, unless the operands fit each other."""
    _checks.feature_map("features", features)
    _checks.floating("features", features)
    _checks.poolings(features, pool_kernel, pool_kernel, pool_steps)
    _check_neurons(features, (pool_steps + 1) * features.shape[1], grid, weight, bias, shift)


def check_levels(
    levels: Sequence[Tensor], grid: Tensor, weight: Tensor, bias: Tensor | None, shift: Tensor | None
) -> None:
    """As ``check``, for several feature maps and the weights of all their channels side by side."""
    _checks.levels(levels)
    _check_neurons(levels[0], sum(level.shape[1] for level in levels), grid, weight, bias, shift)


def _fake(features: Tensor, grid: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    check(features, grid, weight, *rest)
    dtype = torch.promote_types(features.dtype, weight.dtype)
    return features.new_empty((features.shape[0], grid.shape[-2]), dtype=dtype)


def _fake_backward(
    grad_output: Tensor, features: Tensor, grid: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    *options, output_mask = rest
    check(features, grid, weight, bias, *options)
    _checks.shape("grad_output", grad_output, "[B, N]", (features.shape[0], grid.shape[-2]))
    return fake_gradients((features, grid, weight, bias, options[0]), (features, grid, weight, grid, grid), output_mask)


pooled_readout, pooled_readout_backward = define_with_backward(
    "pooled_readout(Tensor features, Tensor grid, Tensor weight, Tensor? bias, Tensor? shift, bool align_corners, "
    "int pool_kernel, int pool_steps) -> Tensor",
    gradients=5,
    reference=reference.pooled_readout,
    reference_backward=reference.pooled_readout_backward,
    fake=_fake,
    fake_backward=_fake_backward,
)
