"""The ops ``v1fast::gaussian_readout`` and its backward: see ``v1fast.reference.gaussian_readout``."""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast.fallback import points
from v1fast.fallback.philox_normal import normals
from v1fast.reference._common import cast_or_empty, compute_dtype, laid_out_or_empty


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
    """Return the noise with x and y apart, [2, B or 1, N]; None for the mean positions."""
    if noise is not None:
        return noise.to(dtype).movedim(-1, 0)
    if seed is None:
        return None
    images, first = (1, 0) if share_noise else (batch, image_offset)
    return normals(seed, images, neurons, neuron_index, first).to(dtype)


def _displaced(mu: Tensor, sigma: Tensor | None, eps: Tensor | None) -> Tensor:
    """Return the positions before the clamp, [2, B or 1, N]: mu + A eps."""
    centre = mu.t().unsqueeze(1)
    if eps is None or sigma is None:
        return centre.contiguous()
    if sigma.dim() == 3:
        a = sigma.movedim(0, -1).unsqueeze(2)  # [2, 2, 1, N]
        return (a[:, 0] * eps[0]).add_(a[:, 1] * eps[1]).add_(centre)
    return (sigma.t().unsqueeze(1) * eps).add_(centre)


def _positions(
    mu: Tensor, sigma: Tensor | None, shift: Tensor | None, eps: Tensor | None
) -> tuple[Tensor, Tensor]:  # [2, B or 1, N] each
    """Return the positions before clamp and shift, and after. mu has the compute dtype."""
    z = _displaced(mu, None if sigma is None else sigma.to(mu.dtype), eps)
    p = z.clamp(-1, 1)
    return z, p if shift is None else p + shift.to(mu.dtype).t().unsqueeze(-1)


def gaussian_readout(
    features: Tensor,  # [B, C, H, W]
    mu: Tensor,  # [N, 2]
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
    batch, channels, height, width = features.shape
    dtype = compute_dtype(features, mu, sigma, weight, bias, shift, noise)
    eps = _noise(batch, mu.shape[0], noise, seed, neuron_index, image_offset, share_noise, dtype)
    _, p = _positions(mu.to(dtype), sigma, shift, eps)
    pyramid = points.Pyramid([(height, width)], channels, batch, p, align_corners)
    out = points.read(pyramid, lambda images: [features[images]], weight, bias)
    return out.to(torch.promote_types(features.dtype, weight.dtype))


def _sigma_gradient(sigma: Tensor, d_z: Tensor, eps: Tensor | None) -> Tensor:  # d_z, eps: [2, B, N]
    if eps is None:
        return torch.zeros_like(sigma, memory_format=torch.contiguous_format)
    if sigma.dim() == 3:
        return torch.stack([torch.stack([(d * e).sum(0) for e in eps], -1) for d in d_z], -2)
    d_sigma = (d_z * eps).sum(1)
    return (d_sigma if sigma.shape[1] == 2 else d_sigma.sum(0, keepdim=True)).t()


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
    """The op ``v1fast::gaussian_readout_backward``. A gradient that is not requested is ``empty(0)``."""
    batch, channels, height, width = features.shape
    dtype = compute_dtype(features, mu, sigma, weight, bias, shift, noise)
    want_features, want_mu, want_sigma, want_weight, want_bias, want_shift = output_mask
    eps = _noise(batch, mu.shape[0], noise, seed, neuron_index, image_offset, share_noise, dtype)
    z, p = _positions(mu.to(dtype), sigma, shift, eps)
    pyramid = points.Pyramid([(height, width)], channels, batch, p, align_corners)
    grad = grad_output.to(dtype)
    d_features = torch.empty_like(features) if want_features else features.new_empty(0)
    found = points.Gradients(pyramid, want_mu or want_sigma or want_shift, want_weight)
    keep = points.keep_in(d_features) if want_features else None
    upstream = points.weighted(grad, pyramid.by_level(weight))
    points.backward(lambda images: [features[images]], upstream, grad, found, keep)
    d_mu, d_sigma, d_shift = None, None, None
    if found.position is not None:
        d_shift = found.position.sum(-1).t() if want_shift else None
        d_z = found.position.masked_fill_(~((z >= -1) & (z <= 1)), 0)
        d_mu = d_z.sum(1).t() if want_mu else None
        d_sigma = _sigma_gradient(sigma, d_z, eps) if want_sigma and sigma is not None else None
    return (
        d_features,
        cast_or_empty(d_mu, mu, mu).contiguous(),
        cast_or_empty(d_sigma, sigma, mu).contiguous(),
        laid_out_or_empty(found.weight, weight),
        cast_or_empty(grad.sum(0) if want_bias else None, bias, mu),
        cast_or_empty(d_shift, shift, mu).contiguous(),
    )
