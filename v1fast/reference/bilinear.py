"""Bilinear interpolation of feature maps at points, with zeros outside, and its gradient as explicit formulas.

The conventions are those of ``torch.nn.functional.grid_sample(mode="bilinear", padding_mode="zeros")`` on the CPU. A
point belongs to the cell floor(x), floor(y). This also holds exactly on the last row or column, where the far corner is
outside and counts as zero. A corner outside is never read. A NaN or infinite coordinate gives NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from v1fast.reference._common import laid_out_like


class Cells(NamedTuple):
    """The cells of B x N points in the map. Corners are ordered (y0 x0), (y0 x1), (y1 x0), (y1 x1)."""

    row: tuple[Tensor, ...]  # 4 x [B, N] int64: index of the corner in the [H * W, C] image, 0 if outside
    inside: tuple[Tensor, ...]  # 4 x [B, N] bool
    weight: tuple[Tensor, ...]  # 4 x [B, N]
    fraction: Tensor  # [B, N, 2]
    scale: Tensor  # [2]: pixels per unit of the normalised coordinate, (x, y)


def locate(
    position: Tensor,  # [B, N, 2], (x, y) in [-1, 1] inside the map
    height: int,
    width: int,
    align_corners: bool,
) -> Cells:
    """Return cells, fractions and corner weights of normalised positions."""
    # Not torch.tensor: exporters cannot follow it.
    size = torch.cat([position.new_full((1,), width), position.new_full((1,), height)])
    scale = (size - 1) / 2 if align_corners else size / 2
    pixel = (position + 1) * scale if align_corners else (position + 1) * scale - 0.5
    lower = pixel.floor()
    fraction = pixel - lower
    ax, ay = fraction.unbind(-1)
    rows, inside = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = lower[..., 0] + dx, lower[..., 1] + dy
            here = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            row = torch.where(here, y, 0).to(torch.int64) * width + torch.where(here, x, 0).to(torch.int64)
            rows.append(row)
            inside.append(here)
    weight = ((1 - ay) * (1 - ax), (1 - ay) * ax, ay * (1 - ax), ay * ax)
    return Cells(tuple(rows), tuple(inside), weight, fraction, scale)


def _rows(row: Tensor, channels: int) -> Tensor:
    return row.unsqueeze(-1).expand(-1, -1, channels)


def gather(features: Tensor, cells: Cells, dtype: torch.dtype) -> list[Tensor]:
    """Return the four corners of every point, 4 x [B, N, C] in ``dtype``, zero for a corner outside the map."""
    channels = features.shape[1]
    images = features.permute(0, 2, 3, 1).flatten(1, 2)
    corners = []
    for row, inside in zip(cells.row, cells.inside, strict=True):
        values = images.gather(1, _rows(row, channels)).to(dtype)
        corners.append(torch.where(inside.unsqueeze(-1), values, 0))
    return corners


def interpolate(corners: list[Tensor], cells: Cells) -> Tensor:
    """Return the weighted sum of the corners, [B, N, C]."""
    w = [weight.unsqueeze(-1) for weight in cells.weight]
    return w[0] * corners[0] + w[1] * corners[1] + w[2] * corners[2] + w[3] * corners[3]


def scatter(d_values: Tensor, cells: Cells, like: Tensor) -> Tensor:
    """The adjoint of gather and interpolate: [B, N, C] -> gradient in the shape, dtype and layout of ``like``."""
    batch, channels, height, width = like.shape
    total = d_values.new_zeros(batch, height * width, channels)
    for row, inside, weight in zip(cells.row, cells.inside, cells.weight, strict=True):
        part = torch.where(inside.unsqueeze(-1), weight.unsqueeze(-1) * d_values, 0)
        total = total.scatter_add(1, _rows(row, channels), part)
    images = total.unflatten(1, (height, width)).permute(0, 3, 1, 2)
    return laid_out_like(images, like)


def position_gradient(dots: list[Tensor], cells: Cells) -> Tensor:
    """Return the gradient [B, N, 2] of the normalised position, for a linear function of the value read there.

    dots[k] [B, N] is that function at corner k. For a sum over channels, it is <corner k, weight>.
    """
    ax, ay = cells.fraction.unbind(-1)
    d0, d1, d2, d3 = dots
    dx = (d1 - d0) * (1 - ay) + (d3 - d2) * ay
    dy = (d2 - d0) * (1 - ax) + (d3 - d1) * ax
    return torch.stack((dx, dy), dim=-1) * cells.scale
