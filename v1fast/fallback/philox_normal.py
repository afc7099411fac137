"""The draws of ``v1fast::philox_normal``: on the CPU by ``philox_cpu``, elsewhere by torch, without float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from v1fast.fallback import philox_cpu
from v1fast.reference.philox import MASK, MULTIPLIERS, WEYL

BLOCKS = 2**15  # of Philox that are computed at a time: their words stay in the cache


def _words(neuron: Tensor, block: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:  # [N], [P, 1], [1] -> [2, P, N]
    """Ten rounds of Philox4x32: words 0 and 2, then words 1 and 3, which have other bits above their 32.

    A product of two words fills the 64 bits of an int64, its sign included. The shift repeats the sign, which the mask
    takes off. Words 0 and 2 are multiplied together, and change places in each round instead of being moved.
    """
    device = seed.device
    factors, weyl = (torch.tensor(pair, device=device).view(2, 1, 1) for pair in (MULTIPLIERS, WEYL))
    rounds = torch.arange(10, device=device).view(10, 1, 1, 1)
    keys = (torch.stack([seed, seed >> 32]).unsqueeze(-1) + weyl * rounds).bitwise_and_(MASK)
    ways = ((factors, keys.flip(1)), (factors.flip(0), keys))
    words = neuron.new_zeros((2, block.shape[0], neuron.shape[0]))
    words[0] = neuron & MASK
    product = torch.stack([block, torch.zeros_like(block)])  # words 1 and 3
    for number in range(10):
        factor, key = ways[number % 2]
        others, product = product, words * factor
        words = product >> 32
        words[0].bitwise_xor_(others[1])
        words[1].bitwise_xor_(others[0])
        words.bitwise_xor_(key[number]).bitwise_and_(MASK)
    return words, product


def _normals(first: Tensor, second: Tensor, x: Tensor, y: Tensor) -> None:  # words; into x and y
    """Box-Muller. The angle is from -pi to pi, so it is rounded half as much as from 0 to 2 pi."""
    radius = (first >> 8).add_(1).float().mul_(2.0**-24).log_().mul_(-2).sqrt_()
    angle = (second << 32 >> 40).float().mul_(math.pi * 2.0**-23)
    torch.mul(angle.cos(), radius, out=x)
    torch.mul(angle.sin_(), radius, out=y)


def by_torch(
    seed: Tensor,  # [1] int64
    images: int,
    neurons: int,
    neuron_index: Tensor | None,  # [N] int64
    image_offset: int,
) -> Tensor:  # [B, N, 2] float32
    """Return the draws with x and y apart in memory. One Philox block serves two images."""
    device = seed.device
    first_block, last_block = image_offset >> 1, (image_offset + images + 1) >> 1
    out = torch.empty((2, last_block - first_block, 2, neurons), device=device)  # x and y, blocks, even and odd
    if images and neurons:
        neuron = torch.arange(neurons, device=device) if neuron_index is None else neuron_index
        blocks = torch.arange(first_block, last_block, device=device).unsqueeze(-1)
        rows = max(1, BLOCKS // neurons)
        for block, part in zip(blocks.split(rows), out.split(rows, 1), strict=True):
            x, y = part.transpose(1, 2).unbind(0)
            _normals(*_words(neuron, block, seed), x, y)
    return out.flatten(1, 2)[:, image_offset & 1 :][:, :images].movedim(0, -1)


def philox_normal(
    seed: Tensor,  # [1] int64
    images: int,
    neurons: int,
    neuron_index: Tensor | None,  # [N] int64
    image_offset: int,
) -> Tensor:  # [B, N, 2] float32
    """The op ``v1fast::philox_normal``."""
    draw = philox_cpu.normals if seed.is_cpu else by_torch
    return draw(seed, images, neurons, neuron_index, image_offset).contiguous()
