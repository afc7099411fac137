"""Launchers of the point gather: the readout's kernels without the sum over channels."""

from __future__ import annotations

from torch import Tensor

from v1fast.contracts import point_gather as contract
from v1fast.reference._common import compute_dtype

from ._backward import Wanted, gradients
from ._forward import read
from ._launch import prepare_points


def point_gather(
    features: Tensor,  # [B, C, H, W]
    grid: Tensor,  # [N, 2] or [B, N, 2]
    shift: Tensor | None,  # [B, 2]
    align_corners: bool,
) -> Tensor:  # [B, N, C]
    """The op ``v1fast::point_gather``."""
    out = contract.new_output(features, grid)
    if out.numel() == 0:
        return out
    dtype = compute_dtype(features, grid, shift)
    return read([prepare_points(dtype, features, grid, None, None, shift, align_corners)], out)


def point_gather_backward(
    grad_output: Tensor,  # [B, N, C]
    features: Tensor,
    grid: Tensor,
    shift: Tensor | None,
    align_corners: bool,
    output_mask: list[bool],  # features, grid, shift
) -> tuple[Tensor, ...]:
    """The op ``v1fast::point_gather_backward``. A gradient that is not requested is ``empty(0)``."""
    operands = {"features": features, "mu": grid, "shift": shift}
    want = Wanted(**{k: v for (k, v), wanted in zip(operands.items(), output_mask, strict=True) if wanted})
    dtype = compute_dtype(features, grid, shift)
    out = gradients(
        # the derivative of a gather equals that of a readout whose weights are the gradient
        lambda: [prepare_points(dtype, features, grid, grad_output, None, shift, align_corners)],
        None,
        want,
        grad_output.numel(),
    )
    unwanted = (features, grid, grid)
    return tuple(out.get(name, like.new_empty(0)) for name, like in zip(operands, unwanted, strict=True))
