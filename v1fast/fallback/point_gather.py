"""The ops ``v1fast::point_gather`` and its backward: see ``v1fast.reference.point_gather``."""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast.fallback import points
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
    pyramid = points.Pyramid([(height, width)], channels, batch, p, align_corners)
    for images, neurons, values in points.values_of(pyramid, lambda images: [features[images]]):
        out[images, neurons] = values[0]
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
    pyramid = points.Pyramid([(height, width)], channels, batch, p, align_corners)
    d_features = torch.empty_like(features) if want_features else features.new_empty(0)
    found = points.Gradients(pyramid, want_grid or want_shift, False)
    points.backward(
        lambda images: [features[images]],
        lambda images, neurons: grad_output[images, neurons].to(dtype).unsqueeze(0),
        None,
        found,
        points.keep_in(d_features) if want_features else None,
    )
    d_grid, d_shift = points.position_gradients(found.position, grid, want_grid, want_shift)
    return d_features, cast_or_empty(d_grid, grid, grid), cast_or_empty(d_shift, shift, grid)
