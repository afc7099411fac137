"""Launchers of the point gather: the readout's kernels without the sum over channels."""

from __future__ import annotations

from torch import Tensor

from v1fast.contracts import point_gather as contract
from v1fast.contracts._forms import Seen, form_of
from v1fast.reference._common import compute_dtype

from . import _backward, _forward
from ._launch import at_points, operands_at_points


def point_gather(
    features: Tensor,  # [B, C, H, W]
    grid: Tensor,  # [N, 2] or [B, N, 2]
    shift: Tensor | None,  # [B, 2]
    align_corners: bool,
    seen: Seen | None = None,
) -> Tensor:  # [B, N, C]
    """The op ``v1fast::point_gather``."""
    operands = operands_at_points(features, grid, None, None, shift)

    def describe() -> _forward.Described:
        out = contract.new_output(features, grid)
        dtype = compute_dtype(features, grid, shift)
        return _forward.Described((form_of(operands), align_corners), out, dtype, at_points(align_corners))

    return _forward.read(seen, operands, 0, describe)


def point_gather_backward(
    grad_output: Tensor,  # [B, N, C]
    features: Tensor,
    grid: Tensor,
    shift: Tensor | None,
    align_corners: bool,
    output_mask: list[bool],  # features, grid, shift
    seen: Seen | None = None,
) -> tuple[Tensor, ...]:
    """The op ``v1fast::point_gather_backward``. A gradient that is not requested is ``empty(0)``."""
    # the derivative of a gather equals that of a readout whose weights are the gradient
    operands = operands_at_points(features, grid, grad_output, None, shift)

    def describe() -> _backward.Described:
        return _backward.Described(
            (form_of(operands), align_corners, *output_mask),
            {"features": features, "mu": grid, "shift": shift},
            output_mask,
            grad_output.numel(),
            compute_dtype(features, grid, shift),
            at_points(align_corners),
        )

    return _backward.gradients(seen, operands, 0, None, describe)
