"""The features at one point of each neuron, all channels.

p[b,n]     = grid[n] + shift[b]
out[b,n,c] = bilinear(features[b,c], p[b,n])

Arithmetic is float64 where any operand is float64, else float32; positions are never rounded to less.
"""

from __future__ import annotations

from torch import Tensor

from v1fast.reference import bilinear
from v1fast.reference._common import cast_or_empty, compute_dtype
from v1fast.reference.points import locate, position_gradients


def point_gather(
    features: Tensor,  # [B, C, H, W]
    grid: Tensor,  # [N, 2] or [B, N, 2], (x, y)
    shift: Tensor | None,  # [B, 2]
    align_corners: bool,
) -> Tensor:  # [B, N, C]
    """The op ``v1fast::point_gather``. The result is contiguous, in the dtype of the features."""
    dtype = compute_dtype(features, grid, shift)
    cells = locate(features, grid, shift, align_corners, dtype)
    return bilinear.interpolate(bilinear.gather(features, cells, dtype), cells).to(features.dtype).contiguous()


def point_gather_backward(
    grad_output: Tensor,  # [B, N, C]
    features: Tensor,
    grid: Tensor,
    shift: Tensor | None,
    align_corners: bool,
    output_mask: list[bool],  # features, grid, shift
) -> tuple[Tensor, Tensor, Tensor]:
    """The op ``v1fast::point_gather_backward``. A gradient that is not requested is ``empty(0)``.

    d_features has the layout of ``torch.empty_like(features)``. The others are contiguous.
    """
    dtype = compute_dtype(features, grid, shift)
    want_features, want_grid, want_shift = output_mask
    cells = locate(features, grid, shift, align_corners, dtype)
    grad = grad_output.to(dtype)
    d_features = bilinear.scatter(grad, cells, features) if want_features else None
    d_grid, d_shift = None, None
    if want_grid or want_shift:
        dots = [(corner * grad).sum(-1) for corner in bilinear.gather(features, cells, dtype)]
        d_position = bilinear.position_gradient(dots, cells)
        d_grid, d_shift = position_gradients(d_position, grid, want_grid, want_shift)
    return (
        cast_or_empty(d_features, features, features),
        cast_or_empty(d_grid, grid, grid),
        cast_or_empty(d_shift, shift, grid),
    )
