"""The Gaussian readout (Lurz et al., "Generalization in data-driven models of primary visual cortex", ICLR 2021).

p[b,n]   = clamp(mu[n] + A[n] @ eps[b,n], -1, 1) + shift[b]
out[b,n] = bias[n] + sum_c weight[n,c] * bilinear(features[b,c], p[b,n])

Arithmetic is float64 where any operand is float64, else float32; positions are never rounded to less.
"""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast.reference import bilinear
from v1fast.reference._common import cast_or_empty, clamped_to_map, compute_dtype, laid_out_or_empty
from v1fast.reference.philox import philox_normal
from v1fast.reference.points import read, read_backward

__all__ = ["compute_dtype", "gaussian_readout", "gaussian_readout_backward"]


def _noise(
    batch: int,
    neurons: int,
    noise: Tensor | None,
    seed: Tensor | None,
    neuron_index: Tensor | None,
    image_offset: int,
    share_noise: bool,
    dtype: torch.dtype,
) -> Tensor | None:
    """Return the noise [B, N, 2], or [1, N, 2] if the images share it; None for the mean positions."""
    if noise is not None:
        return noise.to(dtype)
    if seed is None:
        return None
    images, first = (1, 0) if share_noise else (batch, image_offset)
    return philox_normal(seed, images, neurons, neuron_index, first).to(dtype)


def _displace(mu: Tensor, sigma: Tensor | None, eps: Tensor | None) -> Tensor:
    """Return the positions before the clamp, [B or 1, N, 2]: mu + A eps. A is full, diagonal or isotropic."""
    if eps is None or sigma is None:
        return mu.unsqueeze(0)
    if sigma.dim() == 3:
        return mu + (sigma * eps.unsqueeze(-2)).sum(-1)
    return mu + sigma * eps


def _locate(
    features: Tensor, mu: Tensor, sigma: Tensor | None, shift: Tensor | None, eps: Tensor | None, align_corners: bool
) -> tuple[Tensor, bilinear.Cells]:
    """Return the positions before clamp and shift, and the cells of those after. mu has the compute dtype."""
    dtype, (batch, _, height, width) = mu.dtype, features.shape
    z = _displace(mu, None if sigma is None else sigma.to(dtype), eps).expand(batch, -1, -1)
    position = clamped_to_map(z)
    if shift is not None:
        position = position + shift.to(dtype).unsqueeze(1)
    return z, bilinear.locate(position, height, width, align_corners)


def gaussian_readout(
    features: Tensor,  # [B, C, H, W]
    mu: Tensor,  # [N, 2], (x, y)
    sigma: Tensor | None,  # [N, 2, 2], [N, 2] or [N, 1]
    weight: Tensor,  # [N, C]
    bias: Tensor | None,  # [N]
    shift: Tensor | None,  # [B, 2]
    noise: Tensor | None,  # [B, N, 2], or [1, N, 2] with share_noise
    seed: Tensor | None,  # [1] int64
    neuron_index: Tensor | None,  # [N] int64
    image_offset: int,
    share_noise: bool,
    align_corners: bool,
) -> Tensor:  # [B, N]
    """The op ``v1fast::gaussian_readout``."""
    batch, neurons = features.shape[0], mu.shape[0]
    dtype = compute_dtype(features, mu, sigma, weight, bias, shift, noise)
    eps = _noise(batch, neurons, noise, seed, neuron_index, image_offset, share_noise, dtype)
    _, cells = _locate(features, mu.to(dtype), sigma, shift, eps, align_corners)
    return read(features, cells, weight, bias, dtype)


def _sigma_gradient(sigma: Tensor, d_z: Tensor, eps: Tensor | None) -> Tensor:
    if eps is None:
        return torch.zeros_like(sigma, memory_format=torch.contiguous_format)
    if sigma.dim() == 3:
        return (d_z.unsqueeze(-1) * eps.unsqueeze(-2)).sum(0)
    d_sigma = (d_z * eps).sum(0)
    return d_sigma if sigma.shape[1] == 2 else d_sigma.sum(-1, keepdim=True)


def gaussian_readout_backward(
    grad_output: Tensor,  # [B, N]
    features: Tensor,
    mu: Tensor,
    sigma: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    neuron_index: Tensor | None,
    image_offset: int,
    share_noise: bool,
    align_corners: bool,
    output_mask: list[bool],  # features, mu, sigma, weight, bias, shift
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op ``v1fast::gaussian_readout_backward``. A gradient that is not requested is ``empty(0)``.

    d_features and d_weight have the layout of ``torch.empty_like`` of their operand. The others are contiguous.
    """
    batch, neurons = features.shape[0], mu.shape[0]
    dtype = compute_dtype(features, mu, sigma, weight, bias, shift, noise)
    eps = _noise(batch, neurons, noise, seed, neuron_index, image_offset, share_noise, dtype)
    z, cells = _locate(features, mu.to(dtype), sigma, shift, eps, align_corners)
    want_features, want_mu, want_sigma, want_weight, want_bias, want_shift = output_mask
    d_features, d_position, d_weight, d_bias = read_backward(
        grad_output.to(dtype),
        features,
        cells,
        weight,
        want_features=want_features,
        want_position=want_mu or want_sigma or want_shift,
        want_weight=want_weight,
        want_bias=want_bias,
    )
    d_mu, d_sigma, d_shift = None, None, None
    if d_position is not None:
        d_z = torch.where((z >= -1) & (z <= 1), d_position, 0)
        d_mu = d_z.sum(0) if want_mu else None
        d_sigma = _sigma_gradient(sigma, d_z, eps) if want_sigma and sigma is not None else None
        d_shift = d_position.sum(1) if want_shift else None
    return (
        laid_out_or_empty(d_features, features),
        cast_or_empty(d_mu, mu, mu),
        cast_or_empty(d_sigma, sigma, mu),
        laid_out_or_empty(d_weight, weight),
        cast_or_empty(d_bias, bias, mu),
        cast_or_empty(d_shift, shift, mu),
    )
