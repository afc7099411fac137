"""The contract of ``v1fast::point_readout`` and its backward: shapes, fake outputs, derivatives, schemas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from v1fast.ops import _checks
from v1fast.ops._define import define_with_backward, fake_gradients
from v1fast.reference import point_readout as reference


def check_neurons(
    features: Tensor, channels: int, grid: Tensor, weight: Tensor, bias: Tensor | None, shift: Tensor | None
) -> None:
    """As ``check``, of all operands but the features, for weights of so many channels."""
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
) -> None:
    """Raise ValueError, naming the operand, what is wanted and what came, unless the operands fit each other."""
    _checks.feature_map("features", features)
    _checks.floating("features", features)
    check_neurons(features, features.shape[1], grid, weight, bias, shift)


def check_levels(
    levels: Sequence[Tensor], grid: Tensor, weight: Tensor, bias: Tensor | None, shift: Tensor | None
) -> None:
    """As ``check``, for several feature maps and the weights of all their channels side by side."""
    _checks.levels(levels)
    check_neurons(levels[0], sum(level.shape[1] for level in levels), grid, weight, bias, shift)


def _fake(
    features: Tensor,
    grid: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    align_corners: bool,
) -> Tensor:
    check(features, grid, weight, bias, shift, align_corners)
    dtype = torch.promote_types(features.dtype, weight.dtype)
    return features.new_empty((features.shape[0], grid.shape[-2]), dtype=dtype)


def _fake_backward(
    grad_output: Tensor,
    features: Tensor,
    grid: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    align_corners: bool,
    output_mask: list[bool],
) -> tuple[Tensor, ...]:
    check(features, grid, weight, bias, shift, align_corners)
    _checks.shape("grad_output", grad_output, "[B, N]", (features.shape[0], grid.shape[-2]))
    return fake_gradients((features, grid, weight, bias, shift), (features, grid, weight, grid, grid), output_mask)


point_readout, point_readout_backward = define_with_backward(
    "point_readout(Tensor features, Tensor grid, Tensor weight, Tensor? bias, Tensor? shift, bool align_corners)"
    " -> Tensor",
    gradients=5,
    reference=reference.point_readout,
    reference_backward=reference.point_readout_backward,
    fake=_fake,
    fake_backward=_fake_backward,
)
