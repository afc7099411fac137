"""The draws of ``v1fast::philox_normal`` without float64, which some devices lack."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

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
    """Box-Muller. Half of the angle is from -pi/2 to pi/2, so it is rounded four times less than the angle itself."""
    radius = (first >> 8).add_(1).float().mul_(2.0**-24).log_().mul_(-2).sqrt_()
    half = (second >> 8).bitwise_and_(2**24 - 1).float().sub_(2.0**23).mul_(math.pi * 2.0**-24)
    sine, cosine = half.sin(), half.cos_()
    torch.mul(cosine.mul_(sine), radius, out=y).mul_(-2)
    torch.mul(sine.square_().mul_(2).sub_(1), radius, out=x)


def normals(
    seed: Tensor,  # [1] int64
    images: int,
    neurons: int,
    neuron_index: Tensor | None,  # [N] int64
    image_offset: int,
) -> Tensor:  # [2, B, N] float32
    """Return the draws with x and y apart. One Philox block serves two images."""
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
    return out.flatten(1, 2)[:, image_offset & 1 :][:, :images]


class _Lanes(NamedTuple):
    """Numbers of 64 bits side by side in one integer: of all neurons for one block of Philox after another."""

    ones: int
    mask: int
    neurons: int  # words 0
    blocks: int  # words 1


@lru_cache(maxsize=32)
def _lanes(first: int, last: int, neurons: int) -> _Lanes:
    pairs = [(n, block & MASK) for block in range(first, last) for n in range(neurons)]
    ones = sum(1 << (64 * i) for i in range(len(pairs)))
    words = (sum(pair[k] << (64 * i) for i, pair in enumerate(pairs)) for k in range(2))
    return _Lanes(ones, ones * MASK, *words)


def _few_words(seed: int, lanes: _Lanes, size: int) -> bytes:
    """Return words 0, 2, 1 and 3 of ten rounds, with other bits above their 32.

    A product of two words stays within the 64 bits of its lane. So each step is one operation of integers.
    """
    ones, mask = lanes.ones, lanes.mask
    even, odd, first, third = lanes.neurons, 0, lanes.blocks, 0
    k0, k1 = seed & MASK, seed >> 32 & MASK
    for _ in range(10):
        p, q = even * MULTIPLIERS[0], odd * MULTIPLIERS[1]
        even, odd = (q >> 32 ^ first ^ ones * k0) & mask, (p >> 32 ^ third ^ ones * k1) & mask
        first, third = q, p
        k0, k1 = k0 + WEYL[0] & MASK, k1 + WEYL[1] & MASK
    return b"".join([word.to_bytes(size, "little") for word in (even, odd, first, third)])


@lru_cache(maxsize=16)
def few_normals(seed: int, images: int, neurons: int, image_offset: int, dtype: torch.dtype) -> Tensor:  # [B, N, 2]
    """Return the same draws, on the CPU, for a few neurons and images, and remember them: nobody may write to them.

    An operation of torch takes a microsecond, whatever it computes, and ``normals`` has hundred. Python's integers and
    NumPy take less.
    """
    first, last = image_offset >> 1, (image_offset + images + 1) >> 1
    words = _few_words(seed, _lanes(first, last, neurons), 8 * (last - first) * neurons)
    bits = np.frombuffer(words, "<u4")[::2].reshape(2, 2, last - first, neurons) >> 8
    radius = np.sqrt(-2 * np.log((bits[0] + 1.0) * 2.0**-24))
    angle = bits[1] * (math.pi * 2.0**-23)
    found = np.empty((last - first, 2, neurons, 2), np.float32)  # blocks, even and odd, neurons, x and y
    into = found.transpose(3, 1, 0, 2)
    np.multiply(radius, np.cos(angle), out=into[0], casting="same_kind")
    np.multiply(radius, np.sin(angle), out=into[1], casting="same_kind")
    odd = image_offset & 1
    return torch.from_numpy(found.reshape(-1, neurons, 2)[odd : odd + images]).to(dtype)


def philox_normal(
    seed: Tensor,  # [1] int64
    images: int,
    neurons: int,
    neuron_index: Tensor | None,  # [N] int64
    image_offset: int,
) -> Tensor:  # [B, N, 2] float32
    """The op ``v1fast::philox_normal``."""
    return normals(seed, images, neurons, neuron_index, image_offset).movedim(0, -1).contiguous()
