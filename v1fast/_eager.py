"""The readouts as chains of torch's own ops, written apart from v1fast's: the baseline of the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

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
) -> Tensor:
    """[B, N]; the operands of ``v1fast.functional.gaussian_readout``, features and positions of one dtype."""
    grid = positions(mu, sigma, shift, noise, features.shape[0])
    sampled = F.grid_sample(features, grid[:, :, None], align_corners=align_corners).squeeze(-1)
    out = (sampled * weight.t()).sum(1)
    return out if bias is None else out + bias


def gather_levels(
    levels: Sequence[Tensor], grid: Tensor, shift: Tensor | None = None, *, align_corners: bool = True
) -> Tensor:
    """[B, N, sum of C]; the operands of ``v1fast.functional.gather_levels``, all of one dtype."""
    p = grid.expand(levels[0].shape[0], -1, -1)
    p = p if shift is None else p + shift[:, None]
    sampled = [F.grid_sample(level, p[:, :, None], align_corners=align_corners) for level in levels]
    return torch.cat(sampled, dim=1).squeeze(-1).transpose(1, 2)


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
    out = (gather_levels(levels, grid, shift, align_corners=align_corners) * weight).sum(-1)
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
) -> Tensor:
    """[B, N]; the operands of ``v1fast.functional.pooled_readout``, all of one dtype."""
    levels = [features]
    for _ in range(pool_steps):
        levels.append(F.avg_pool2d(levels[-1], pool_kernel))
    return levels_readout(levels, grid, weight, bias, shift, align_corners=align_corners)
