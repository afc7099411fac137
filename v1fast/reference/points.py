"""What references share that read features at points: positions, weighted sums over channels, gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast.reference import bilinear


def locate(
    features: Tensor,  # [B, C, H, W]
    grid: Tensor,  # [N, 2] or [B, N, 2]
    shift: Tensor | None,  # [B, 2]
    align_corners: bool,
    dtype: torch.dtype,
) -> bilinear.Cells:
    """Return the cells of all positions, which are not clamped."""
    batch, _, height, width = features.shape
    position = grid.to(dtype).expand(batch, -1, -1)
    if shift is not None:
        position = position + shift.to(dtype).unsqueeze(1)
    return bilinear.locate(position, height, width, align_corners)


def position_gradients(
    d_position: Tensor,  # [B, N, 2]
    grid: Tensor,
    want_grid: bool,
    want_shift: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of grid (in its shape) and shift."""
    d_grid = (d_position.sum(0) if grid.dim() == 2 else d_position) if want_grid else None
    return d_grid, d_position.sum(1) if want_shift else None


def read(
    features: Tensor,  # [B, C, H, W]
    cells: bilinear.Cells,
    weight: Tensor,  # [N, C]
    bias: Tensor | None,  # [N]
    dtype: torch.dtype,
) -> Tensor:  # [B, N]
    """Return the weighted sum over channels at every point, computed in ``dtype``."""
    sampled = bilinear.interpolate(bilinear.gather(features, cells, dtype), cells)
    out = (sampled * weight.to(dtype)).sum(-1)
    if bias is not None:
        out = out + bias.to(dtype)
    return out.to(torch.promote_types(features.dtype, weight.dtype))


def read_backward(
    grad: Tensor,  # [B, N], in the dtype to compute in
    features: Tensor,
    cells: bilinear.Cells,
    weight: Tensor,
    *,
    want_features: bool,
    want_position: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of features (in their layout), of the positions [B, N, 2], of weight and of bias."""
    w = weight.to(grad.dtype)
    d_features = bilinear.scatter(grad.unsqueeze(-1) * w, cells, features) if want_features else None
    d_bias = grad.sum(0) if want_bias else None
    d_position, d_weight = None, None
    if want_weight or want_position:
        corners = bilinear.gather(features, cells, grad.dtype)
        if want_weight:
            d_weight = (grad.unsqueeze(-1) * bilinear.interpolate(corners, cells)).sum(0)
        if want_position:
            dots = [(corner * w).sum(-1) for corner in corners]
            d_position = bilinear.position_gradient(dots, cells) * grad.unsqueeze(-1)
    return d_features, d_position, d_weight, d_bias
