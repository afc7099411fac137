"""Standard normals from a counter. A kernel can compute them again instead of storing them.

Philox4x32-10 is the generator of Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def _multiply(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Return the high and low 32 bits of ``a * m`` for 32-bit values. In halves: int64 cannot hold the product."""
    low, high = m * (a & 0xFFFF), m * (a >> 16)
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & MASK


def philox4x32_10(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32 on 32-bit words in int64 tensors that broadcast. Return four words of one shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, MULTIPLIERS[0])
        high1, low1 = _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def philox_normal(
    seed: Tensor,  # [1] int64
    images: int,
    neurons: int,
    neuron_index: Tensor | None,  # [N] int64
    image_offset: int,
) -> Tensor:  # [B, N, 2] float32
    """The draws of ``neurons`` for ``images``: key = seed, counter = (neuron, image // 2, 0, 0), Box-Muller.

    One Philox block serves two images: words 0 and 1 the even one, 2 and 3 the odd one.
    """
    device = seed.device
    if images == 0 or neurons == 0:
        return torch.empty((images, neurons, 2), device=device)
    neuron = torch.arange(neurons, device=device) if neuron_index is None else neuron_index
    image = (image_offset + torch.arange(images, device=device))[:, None]
    zero = torch.zeros_like(image)
    key = (seed & MASK, (seed >> 32) & MASK)
    words = philox4x32_10((neuron & MASK, (image >> 1) & MASK, zero, zero), key)
    odd = (image & 1).bool()
    first, second = torch.where(odd, words[2], words[0]), torch.where(odd, words[3], words[1])
    u1, u2 = ((first >> 8) + 1).double() / 2**24, (second >> 8).double() / 2**24
    radius, angle = torch.sqrt(-2 * torch.log(u1)), 2 * math.pi * u2
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).float()
