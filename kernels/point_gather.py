"""Launchers of the point gather: the readout's kernels without the sum over channels."""

from __future__ import annotations

from torch import Tensor

from v1fast.contracts import point_gather as contract
from v1fast.contracts._forms import Form, form_of
from v1fast.reference._common import compute_dtype

from ._backward import Wanted, gradients
from ._forward import read
from ._launch import operands_at_points, ready_at_points


def point_gather(
    features: Tensor,  # [B, C, H, W]
    grid: Tensor,  # [N, 2] or [B, N, 2]
    shift: Tensor | None,  # [B, 2]
    align_corners: bool,
    form: Form | None = None,  # of the other arguments
) -> Tensor:  # [B, N, C]
    """The op ``v1fast::point_gather``."""
    out = contract.new_output(features, grid)
    if out.numel() == 0:
        return out
    operands = operands_at_points(features, grid, None, None, shift)
    key = form_of((features, grid, shift, align_corners)) if form is None else form
    return read(
        key, operands, 0, out, lambda: ready_at_points(compute_dtype(features, grid, shift), operands, align_corners)
    )


def point_gather_backward(
    grad_output: Tensor,  # [B, N, C]
    features: Tensor,
    grid: Tensor,
    shift: Tensor | None,
    align_corners: bool,
    output_mask: list[bool],  # features, grid, shift
    form: Form | None = None,  # of the other arguments
) -> tuple[Tensor, ...]:
    """The op ``v1fast::point_gather_backward``. A gradient that is not requested is ``empty(0)``."""
    wanted = {"features": features, "mu": grid, "shift": shift}
    want = Wanted(**{k: v for (k, v), wanted in zip(wanted.items(), output_mask, strict=True) if wanted})
    # the derivative of a gather equals that of a readout whose weights are the gradient
    operands = operands_at_points(features, grid, grad_output, None, shift)
    out = gradients(
        form_of((grad_output, features, grid, shift, align_corners, output_mask)) if form is None else form,
        operands,
        0,
        None,
        want,
        grad_output.numel(),
        lambda: ready_at_points(compute_dtype(features, grid, shift), operands, align_corners),
    )
    unwanted = (features, grid, grid)
    return tuple([out[name] if name in out else like.new_empty(0) for name, like in zip(wanted, unwanted, strict=True)])
