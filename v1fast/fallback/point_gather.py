"""The ops ``v1fast::point_gather`` and its backward: see ``v1fast.reference.point_gather``."""

from __future__ import annotations

from torch import Tensor

from v1fast.fallback import direct, points
from v1fast.reference._common import cast_or_empty, compute_dtype


def point_gather(
    features: Tensor,  # [B, C, H, W]
    grid: Tensor,  # [N, 2] or [B, N, 2]
    shift: Tensor | None,  # [B, 2]
    align_corners: bool,
) -> Tensor:  # [B, N, C]
    """The op ``v1fast::point_gather``."""
    batch, channels, height, width = features.shape
    out = features.new_empty((batch, grid.shape[-2], channels))
    p = points.shifted(grid, shift, compute_dtype(features, grid, shift))
    reader = direct.reader([(height, width)], channels, batch, p, align_corners)
    reader.gather(points.one_level(features), out)
    return out


def point_gather_backward(
    grad_output: Tensor,  # [B, N, C]
    features: Tensor,
    grid: Tensor,
    shift: Tensor | None,
    align_corners: bool,
    output_mask: list[bool],  # features, grid, shift
) -> tuple[Tensor, Tensor, Tensor]:
    """The op ``v1fast::point_gather_backward``. A gradient that is not requested is ``empty(0)``."""
    batch, channels, height, width = features.shape
    dtype = compute_dtype(features, grid, shift)
    want_features, want_grid, want_shift = output_mask
    p = points.shifted(grid, shift, dtype)
    reader = direct.reader([(height, width)], channels, batch, p, align_corners, True)
    keep = points.Kept(features) if want_features else None
    maps, want_position = points.one_level(features), want_grid or want_shift
    d_position = reader.gradients_of_gathered(maps, grad_output, keep, want_position)
    d_features = features.new_empty(0) if keep is None else keep.gradient
    d_grid, d_shift = points.position_gradients(d_position, grid, want_grid, want_shift)
    return d_features, cast_or_empty(d_grid, grid, grid), cast_or_empty(d_shift, shift, grid)
