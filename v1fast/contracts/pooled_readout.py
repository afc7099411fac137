"""The contract of ``v1fast::pooled_readout`` and its backward: legal operands, and the tensors returned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from v1fast.contracts import _checks
from v1fast.contracts._gradients import empty_gradients
from v1fast.reference._common import compute_dtype


def _check_neurons(
    features: Tensor, channels: int, grid: Tensor, weight: Tensor, bias: Tensor | None, shift: Tensor | None
) -> None:
    _checks.points(grid, shift, features)
    neurons = grid.shape[-2]
    _checks.shape("weight", weight, "[N, C]", (neurons, channels))
    if bias is not None:
        _checks.shape("bias", bias, "[N]", (neurons,))
    _checks.floats({"weight": weight, "bias": bias}, features)


def pooled_size(features: Tensor, pool_kernel: int, pool_steps: int) -> int:
    """Return the number of elements of all poolings."""
    batch, channels, height, width = features.shape
    size = 0
    for _ in range(pool_steps):
        height, width = height // pool_kernel, width // pool_kernel
        size += batch * channels * height * width
    return size


def check_pooling(features: Tensor, pool_kernel: int, pool_steps: int, wide: bool) -> None:
    """Raise ValueError that names the operand unless the poolings of the features leave at least one pixel."""
    _checks.feature_map("features", features)
    _checks.floating("features", features)
    _checks.poolings(features, pool_kernel, pool_kernel, pool_steps)


def new_levels(features: Tensor, pool_kernel: int, pool_steps: int, wide: bool) -> Tensor:
    """Return the output of ``pooled_levels`` without values."""
    dtype = torch.float64 if wide else torch.float32
    return features.new_empty(pooled_size(features, pool_kernel, pool_steps), dtype=dtype)


def _check_pooled(
    pooled: Tensor | None, features: Tensor, dtype: torch.dtype, pool_kernel: int, pool_steps: int
) -> None:
    if pooled is None:
        return
    _checks.shape("pooled", pooled, "that of pooled_levels", (pooled_size(features, pool_kernel, pool_steps),))
    if pooled.dtype != dtype or not pooled.is_contiguous():
        layout = "contiguous" if pooled.is_contiguous() else "strided"
        raise ValueError(f"pooled: want contiguous {dtype}, got {layout} {pooled.dtype}")
    _checks.device("pooled", pooled, features)


def check(
    features: Tensor,
    grid: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    pooled: Tensor | None,
    align_corners: bool,
    pool_kernel: int,
    pool_steps: int,
) -> None:
    """Raise ValueError unless the operands fit each other. It names the operand, what was wanted and what came."""
    check_pooling(features, pool_kernel, pool_steps, False)
    _check_neurons(features, (pool_steps + 1) * features.shape[1], grid, weight, bias, shift)
    _check_pooled(pooled, features, compute_dtype(features, grid, weight, bias, shift), pool_kernel, pool_steps)


def check_levels(
    levels: Sequence[Tensor], grid: Tensor, weight: Tensor, bias: Tensor | None, shift: Tensor | None
) -> None:
    """Like ``check``, for several feature maps and the weights of all their channels side by side."""
    _checks.levels(levels)
    _check_neurons(levels[0], sum(level.shape[1] for level in levels), grid, weight, bias, shift)


def check_backward(grad_output: Tensor, features: Tensor, grid: Tensor, *rest: Any) -> None:
    """Like ``check``, for the arguments of the backward op."""
    *operands, output_mask = rest
    check(features, grid, *operands)
    _checks.grad_output(grad_output, "[B, N]", (features.shape[0], grid.shape[-2]), features)
    _checks.output_mask(output_mask, 5)


def new_output(features: Tensor, grid: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    """Return the output without values."""
    dtype = torch.promote_types(features.dtype, weight.dtype)
    return features.new_empty((features.shape[0], grid.shape[-2]), dtype=dtype)


def new_gradients(
    grad_output: Tensor, features: Tensor, grid: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    """Return the gradients without values: ``empty(0)`` where the mask is false."""
    shift, *_, output_mask = rest
    operands = (features, grid, weight, bias, shift)
    return empty_gradients(operands, (features, grid, weight, grid, grid), output_mask, laid_out=(0, 2))
