"""The contract of ``v1fast::point_gather`` and its backward: legal operands, and the tensors returned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from v1fast.contracts import _checks
from v1fast.contracts._gradients import empty_gradients


def check(features: Tensor, grid: Tensor, shift: Tensor | None, align_corners: bool) -> None:
    """Raise ValueError unless the operands fit each other. It names the operand, what was wanted and what came."""
    _checks.feature_map("features", features)
    _checks.floating("features", features)
    _checks.points(grid, shift, features)


def check_levels(levels: Sequence[Tensor], grid: Tensor, shift: Tensor | None) -> None:
    """Like ``check``, for several feature maps."""
    _checks.levels(levels)
    _checks.points(grid, shift, levels[0])


def check_backward(
    grad_output: Tensor,
    features: Tensor,
    grid: Tensor,
    shift: Tensor | None,
    align_corners: bool,
    output_mask: Sequence[bool],
) -> None:
    """Like ``check``, for the arguments of the backward op."""
    check(features, grid, shift, align_corners)
    batch, channels = features.shape[:2]
    _checks.grad_output(grad_output, "[B, N, C]", (batch, grid.shape[-2], channels), features)
    _checks.output_mask(output_mask, 3)


def new_output(features: Tensor, grid: Tensor, *rest: Any) -> Tensor:
    """Return the output without values."""
    batch, channels = features.shape[:2]
    return features.new_empty((batch, grid.shape[-2], channels))


def new_gradients(
    grad_output: Tensor,
    features: Tensor,
    grid: Tensor,
    shift: Tensor | None,
    align_corners: bool,
    output_mask: list[bool],
) -> tuple[Tensor, ...]:
    """Return the gradients without values: ``empty(0)`` where the mask is false."""
    return empty_gradients((features, grid, shift), (features, grid, grid), output_mask, laid_out=(0,))
