"""The ops ``v1fast::gaussian_readout`` and its backward: see ``v1fast.reference.gaussian_readout``."""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast.fallback import direct, points
from v1fast.fallback.philox_normal import philox_normal
from v1fast.reference._common import cast_or_empty, compute_dtype, laid_out_or_empty

FEW = 2**7  # numbers, of which few operations are faster than fast ones


def drawn_noise(
    batch: int,
    neurons: int,
    noise: Tensor | None,
    seed: Tensor | None,
    neuron_index: Tensor | None,
    image_offset: int,
    share_noise: bool,
    dtype: torch.dtype,
) -> Tensor | None:
    """Return the noise, [B or 1, N, 2]; None for the mean positions."""
    if noise is not None:
        return noise.to(dtype)
    if seed is None:
        return None
    images, first = (1, 0) if share_noise else (batch, image_offset)
    return philox_normal(seed, images, neurons, neuron_index, first).to(dtype)


def displaced(mu: Tensor, sigma: Tensor | None, eps: Tensor | None) -> Tensor:
    """Return the positions before the clamp, [B or 1, N, 2]: mu + A eps. Not by a matrix product, which may round."""
    if eps is None or sigma is None:
        return mu.unsqueeze(0)
    if sigma.dim() < 3:
        return torch.addcmul(mu, sigma, eps)
    if eps.numel() < FEW:
        return (sigma * eps.unsqueeze(-2)).sum(-1).add_(mu)
    # torch is slow where the last axis is as short.
    first, second = sigma.unbind(-1)
    return torch.addcmul(mu, first, eps[..., :1]).addcmul_(second, eps[..., 1:])


def _positions(
    mu: Tensor, sigma: Tensor | None, shift: Tensor | None, eps: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:  # [B or 1, N, 2] each
    """Return the positions before the clamp, after it, and with the shift. mu has the compute dtype."""
    z = displaced(mu, None if sigma is None else sigma.to(mu.dtype), eps)
    clamped = z.clamp(-1, 1)
    p = clamped if shift is None else clamped + shift.to(mu.dtype).unsqueeze(1)
    return z, clamped, p.contiguous()


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
    eps = drawn_noise(batch, mu.shape[0], noise, seed, neuron_index, image_offset, share_noise, dtype)
    *_, p = _positions(mu.to(dtype), sigma, shift, eps)
    reader = direct.reader([(height, width)], channels, batch, p, align_corners)
    out = reader.read(points.one_level(features), weight, bias)
    return out.to(torch.promote_types(features.dtype, weight.dtype))


def sigma_gradient(sigma: Tensor, d_z: Tensor, eps: Tensor | None) -> Tensor:  # [B, N, 2], [B or 1, N, 2]
    """Return the gradient of sigma from that of the positions before the clamp."""
    if eps is None:
        return torch.zeros_like(sigma, memory_format=torch.contiguous_format)
    if sigma.dim() == 3:
        if eps.numel() < FEW:
            return (d_z.unsqueeze(-1) * eps.unsqueeze(-2)).sum(0)
        # With the neurons last, for the same reason.
        products = d_z.new_empty((2, 2, *d_z.shape[:2]))
        torch.mul(d_z.permute(2, 0, 1).unsqueeze(1), eps.permute(2, 0, 1), out=products)
        return products.sum(2).permute(2, 0, 1)
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
    """The op ``v1fast::gaussian_readout_backward``. A gradient that is not requested is ``empty(0)``."""
    batch, channels, height, width = features.shape
    dtype = compute_dtype(features, mu, sigma, weight, bias, shift, noise)
    want_features, want_mu, want_sigma, want_weight, want_bias, want_shift = output_mask
    eps = drawn_noise(batch, mu.shape[0], noise, seed, neuron_index, image_offset, share_noise, dtype)
    z, clamped, p = _positions(mu.to(dtype), sigma, shift, eps)
    reader = direct.reader([(height, width)], channels, batch, p, align_corners, True)
    grad = grad_output.to(dtype)
    keep = points.Kept(features) if want_features else None
    maps, want_position = points.one_level(features), want_mu or want_sigma or want_shift
    d_position, d_weight = reader.gradients_of_weighted(maps, weight, grad, keep, want_position, want_weight)
    d_mu, d_sigma, d_shift = None, None, None
    if d_position is not None:
        d_shift = d_position.sum(1) if want_shift else None
        d_z = d_position.masked_fill(z != clamped, 0)
        d_mu = d_z.sum(0) if want_mu else None
        d_sigma = sigma_gradient(sigma, d_z, eps) if want_sigma and sigma is not None else None
    return (
        features.new_empty(0) if keep is None else keep.gradient,
        cast_or_empty(d_mu, mu, mu),
        cast_or_empty(d_sigma, sigma, mu).contiguous(),
        laid_out_or_empty(d_weight, weight),
        cast_or_empty(grad.sum(0) if want_bias else None, bias, mu),
        cast_or_empty(d_shift, shift, mu).contiguous(),
    )
