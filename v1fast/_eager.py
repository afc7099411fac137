"""The readouts as chains of torch's own ops, written apart from v1fast's: the baseline of the benchmarks."""

from __future__ import annotations

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
