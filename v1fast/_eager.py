"""The readouts in torch's own ops, written apart from v1fast's: oracle of the tests, baseline of the benchmarks.

The same sum can be made in several orders. Which is fastest depends on the shape, by up to a factor of three, so the
benchmarks run all ``ORDERS`` and quote the fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def unclamped_positions(mu: Tensor, sigma: Tensor | None, noise: Tensor | None) -> Tensor:
    """mu + A noise, [B, N, 2], or mu itself; the operands are those of the readout."""
    if sigma is None or noise is None:
        return mu
    moved = torch.einsum("nij,bnj->bni", sigma, noise) if sigma.dim() == 3 else sigma * noise
    return moved + mu


def positions(mu: Tensor, sigma: Tensor | None, shift: Tensor | None, noise: Tensor | None, batch: int) -> Tensor:
    """[B, N, 2], x first; -1 and 1 are the borders."""
    p = unclamped_positions(mu, sigma, noise).clamp(-1, 1).expand(batch, -1, -1)
    return p if shift is None else p + shift[:, None]


def distance_to_cell_border(position: Tensor, height: int, width: int, align_corners: bool = True) -> Tensor:
    """Distance in pixels of each coordinate [..., 2] to the nearest centre of a pixel, where the gradient jumps."""
    size = torch.tensor([width, height], dtype=position.dtype, device=position.device)
    scale = (size - 1) / 2 if align_corners else size / 2
    pixel = (position + 1) * scale - (0 if align_corners else 0.5)
    return (pixel - pixel.round()).abs()


def _sampled(level: Tensor, grid: Tensor, align_corners: bool) -> Tensor:
    """[B, C, N]: the level [B, C, H, W] at the positions [B, N, 2]."""
    return F.grid_sample(level, grid[:, :, None], align_corners=align_corners).squeeze(-1)


def _chain(levels: Iterable[Tensor], grid: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    """Sample all, multiply, sum over channels, as neuralpredictors' layers do."""
    sampled = [_sampled(level, grid, align_corners) for level in levels]
    return ((sampled[0] if len(sampled) == 1 else torch.cat(sampled, dim=1)) * weight.t()).sum(1)


def _einsum(levels: Iterable[Tensor], grid: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    """Multiplication and sum in one call, which makes a batch of matrix products of it."""
    return torch.einsum("bcn,nc->bn", torch.cat([_sampled(x, grid, align_corners) for x in levels], dim=1), weight)


def _levels(levels: Iterable[Tensor], grid: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    """Level by level: no tensor holds what all of them gave."""
    out, first = weight.new_zeros(()), 0
    for level in levels:
        last = first + level.shape[1]
        out = out + (_sampled(level, grid, align_corners) * weight.t()[first:last]).sum(1)
        first = last
    return out


_WHOLE_BATCH = {"chain": _chain, "einsum": _einsum, "levels": _levels}
ORDERS = (*_WHOLE_BATCH, "images")
"""Those of ``_WHOLE_BATCH``; and a few images at a time, level by level: what one operation writes is in the cache when
the next one reads it. A weight [N, C] whose transpose is contiguous is read fastest."""


def _read(
    features: Tensor,  # [B, C, H, W]
    levels_of: Callable[[Tensor], Iterable[Tensor]],  # one by one: who pools before sampling waits in the backward pass
    grid: Tensor,  # [B, N, 2]
    weight: Tensor,  # [N, sum of C]
    align_corners: bool,
    order: str,
) -> Tensor:  # [B, N]
    if order == "images":
        groups = zip(features.split(8), grid.split(8), strict=True)
        return torch.cat([_levels(levels_of(images), points, weight, align_corners) for images, points in groups])
    return _WHOLE_BATCH[order](levels_of(features), grid, weight, align_corners)


def gaussian_readout(
    features: Tensor,
    mu: Tensor,
    sigma: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    noise: Tensor | None = None,
    align_corners: bool = True,
    order: str = "chain",
) -> Tensor:
    """[B, N]; the operands of ``v1fast.functional.gaussian_readout``, features and positions of one dtype."""
    grid = positions(mu, sigma, shift, noise, features.shape[0])
    out = _read(features, lambda x: [x], grid, weight, align_corners, order)
    return out if bias is None else out + bias


def _shifted(grid: Tensor, shift: Tensor | None, batch: int) -> Tensor:
    p = grid.expand(batch, -1, -1)
    return p if shift is None else p + shift[:, None]


def gather_levels(
    levels: Sequence[Tensor], grid: Tensor, shift: Tensor | None = None, *, align_corners: bool = True
) -> Tensor:
    """[B, N, sum of C]; the operands of ``v1fast.functional.gather_levels``, all of one dtype."""
    p = _shifted(grid, shift, levels[0].shape[0])
    return torch.cat([_sampled(level, p, align_corners) for level in levels], dim=1).transpose(1, 2)


def levels_readout(
    levels: Sequence[Tensor],
    grid: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    align_corners: bool = True,
) -> Tensor:
    """[B, N]; the operands of ``v1fast.functional.levels_readout``, all of one dtype."""
    out = _chain(levels, _shifted(grid, shift, levels[0].shape[0]), weight, align_corners)
    return out if bias is None else out + bias


def pooled_readout(
    features: Tensor,
    grid: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    pool_kernel: int,
    pool_steps: int,
    align_corners: bool = True,
    order: str = "chain",
) -> Tensor:
    """[B, N]; the operands of ``v1fast.functional.pooled_readout``, all of one dtype."""

    def levels_of(level: Tensor) -> Iterator[Tensor]:
        yield level
        for _ in range(pool_steps):
            level = F.avg_pool2d(level, pool_kernel)
            yield level

    out = _read(features, levels_of, _shifted(grid, shift, features.shape[0]), weight, align_corners, order)
    return out if bias is None else out + bias
