"""The contract of ``v1fast::point_gather`` and its backward: shapes, fake outputs, derivatives, schemas."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from v1fast.ops import _checks
from v1fast.ops._define import define_with_backward, fake_gradients
from v1fast.reference import point_gather as reference


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


def _fake(features: Tensor, grid: Tensor, shift: Tensor | None, align_corners: bool) -> Tensor:
    batch, channels = features.shape[:2]
    return features.new_empty((batch, grid.shape[-2], channels))


def _fake_backward(
    grad_output: Tensor,
    features: Tensor,
    grid: Tensor,
    shift: Tensor | None,
    align_corners: bool,
    output_mask: list[bool],
) -> tuple[Tensor, ...]:
    return fake_gradients((features, grid, shift), (features, grid, grid), output_mask, laid_out=(0,))


point_gather, point_gather_backward = define_with_backward(
    "point_gather(Tensor features, Tensor grid, Tensor? shift, bool align_corners) -> Tensor",
    gradients=3,
    check=check,
    check_backward=check_backward,
    reference=reference.point_gather,
    reference_backward=reference.point_gather_backward,
    fake=_fake,
    fake_backward=_fake_backward,
)
