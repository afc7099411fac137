"""The levels that a pooled readout reads, and the gradient of the features from those of the levels."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from v1fast.reference._common import laid_out_like

from ._launch import Operands, Rows


def _squares(features: Tensor, kernel: int) -> Tensor:
    """View [B, C, H, W] as [B, h, kernel, w, kernel, C], without the remainder at the right and lower border."""
    height, width = features.shape[2] // kernel, features.shape[3] // kernel
    whole = features[:, :, : height * kernel, : width * kernel].permute(0, 2, 3, 1)
    return whole.unflatten(2, (width, kernel)).unflatten(1, (height, kernel))


def _pool(rows: Rows, kernel: int, dtype: torch.dtype) -> Rows:
    """Return the averages in the dtype of the arithmetic. They are not rounded to the dtype of the features."""
    pooled = _squares(rows.data, kernel).mean((2, 4), dtype=dtype)  # [B, h, w, C]
    _, height, width, channels = pooled.shape
    return Rows(pooled.permute(0, 3, 1, 2), channels, width, height * width)


def _given(pooled: Tensor, finer: Tensor, kernel: int) -> tuple[Rows, Tensor]:
    """Split off the pooling of the map ``finer``, the first in ``pooled``. Return it and the rest."""
    batch, channels, height, width = finer.shape[0], finer.shape[1], finer.shape[2] // kernel, finer.shape[3] // kernel
    first, rest = pooled.tensor_split([batch * channels * height * width])
    data = first.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return Rows(data, channels, width, height * width), rest


def pyramid(o: Operands, kernel: int, steps: int, pooled: Tensor | None) -> list[Operands]:
    """Return the operands of each level. ``o`` holds the features, and the weights of all levels side by side."""
    channels, levels = o.sizes[1], [o._replace(levels=steps + 1)]
    for step in range(steps):
        weight = None if o.weight is None else o.weight[:, (step + 1) * channels :]
        if pooled is None:
            rows = _pool(levels[-1].rows, kernel, o.dtype)
        else:
            rows, pooled = _given(pooled, levels[-1].rows.data, kernel)
        levels.append(levels[-1]._replace(rows=rows, weight=weight, bias=None))
    return levels


def spread_back(maps: list[Tensor], features: Tensor, kernel: int) -> Tensor:
    """Return the gradient of the features, in their layout. ``maps``, the gradients of the levels, are overwritten."""
    for fine, coarse in reversed(list(pairwise(maps))):
        _squares(fine, kernel).add_(coarse.permute(0, 2, 3, 1)[:, :, None, :, None], alpha=kernel**-2)
    return laid_out_like(maps[0], features)
