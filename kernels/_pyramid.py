"""The levels that a pooled readout reads, and the gradient of the features from those of the levels."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from ._launch import Operands, Rows


def _squares(features: Tensor, kernel: int) -> Tensor:
    """View [B, C, H, W] as [B, h, kernel, w, kernel, C], without the remainder at the right and lower border."""
    height, width = features.shape[2] // kernel, features.shape[3] // kernel
    whole = features[:, :, : height * kernel, : width * kernel].permute(0, 2, 3, 1)
    return whole.unflatten(2, (width, kernel)).unflatten(1, (height, kernel))


def only(features: Tensor, pooled: Tensor | None) -> list[Tensor]:
    """Return the one level of a readout that does not pool."""
    return [features]


def maps_of(features: Tensor, kernel: int, steps: int, pooled: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    """Return the features of each level, channels last: ``features`` themselves and their poolings.

    The averages are in the dtype of the arithmetic. They are not rounded to the dtype of the features. ``pooled`` has
    all of them, if they are given.
    """
    maps, at = [features], 0
    for _ in range(steps):
        if pooled is None:
            level = _squares(maps[-1], kernel).mean((2, 4), dtype=dtype)  # [B, h, w, C]
        else:
            batch, channels, height, width = maps[-1].shape
            shape = batch, height // kernel, width // kernel, channels
            size = math.prod(shape)
            level = pooled[at : at + size].view(shape)
            at += size
        maps.append(level.permute(0, 3, 1, 2))
    return maps


def levels_of(o: Operands, maps: list[Tensor]) -> list[Operands]:
    """Return the operands of each level. ``o`` holds the first one's, and the weights of all levels side by side."""
    channels, levels = o.sizes[1], [o._replace(levels=len(maps))]
    for data in maps[1:]:
        _, _, height, width = data.shape
        weight = None if o.weight is None else o.weight[:, len(levels) * channels :]
        rows = Rows(data, channels, width, height * width)
        levels.append(levels[0]._replace(rows=rows, weight=weight, bias=None))
    return levels


def spread_back(maps: list[Tensor], kernel: int) -> None:
    """Add to the gradient of each level that of the next coarser one, from the coarsest on."""
    for fine, coarse in reversed(list(pairwise(maps))):
        _squares(fine, kernel).add_(coarse.permute(0, 2, 3, 1)[:, :, None, :, None], alpha=kernel**-2)
