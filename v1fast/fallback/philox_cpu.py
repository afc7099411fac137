"""The draws of ``v1fast::philox_normal`` on the CPU, by NumPy and by Python's integers.

An operation of torch takes a microsecond, whatever it computes, and ten rounds of Philox have hundred. NumPy takes a
third of it. The words are those of every other kernel.

Words of Philox are in pairs side by side: words 0 and 2, and words 1 and 3, as [2 M] for M blocks. Words 2 and 3, of
the images with odd numbers, lie in the reverse order. So a pair reversed is a pair with its halves exchanged, which is
what a round of Philox needs, and a view of one axis, which NumPy reads fastest.
"""

from __future__ import annotations

import struct
import sys
from cmath import rect
from collections.abc import Iterable, Iterator
from functools import lru_cache
from math import log, pi, sqrt, tau
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v1fast.reference.philox import MASK, MULTIPLIERS, WEYL

FEW = 2**6  # draws that Python's integers compute fastest
SOME = 2**12  # blocks for which few operations of NumPy are faster than fast ones
PART = 2**14  # blocks that are computed at a time: their words stay in the cache

Words = NDArray[np.uint32]
LOW, HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)  # halves of 64 bits
_ROUND_KEYS = (np.arange(10)[:, None, None] * np.array(WEYL)[:, None]).astype(np.uint32)  # [10, 2, 1]


def _keys(seed: int) -> NDArray[np.uint32]:  # [10, 2, 1]
    return _ROUND_KEYS + np.array([[seed & MASK], [seed >> 32 & MASK]], np.uint32)


@lru_cache(maxsize=8)
def _factors(count: int) -> NDArray[np.uint64]:  # [2 M]
    return np.repeat(np.array(MULTIPLIERS, np.uint64), count)


def _words(neuron: Words, block: Words, seed: int) -> tuple[Words, Words]:  # [N], [P, 1] -> [2 P N] each
    """Ten rounds in three operations each."""
    blocks, neurons = len(block), len(neuron)
    count = blocks * neurons
    words = np.zeros(2 * count, np.uint64)
    words[:count].reshape(blocks, neurons)[:] = neuron
    other = np.zeros(2 * count, np.uint32)
    other[:count].reshape(blocks, neurons)[:] = block
    factors = _factors(count)
    keys = np.empty((10, 2, count), np.uint32)
    keys[:] = _keys(seed)
    low = words.view(np.uint32)[LOW::2]
    products = [np.empty_like(words) for _ in range(2)]
    lows, highs = ([p.view(np.uint32)[half::2][::-1] for p in products] for half in (LOW, HIGH))
    multiply, xor = np.multiply, np.bitwise_xor
    for number, key in enumerate(keys.reshape(10, -1)):
        way = number % 2
        multiply(words, factors, products[way])
        xor(highs[way], other, low)
        xor(low, key, low)
        other = lows[way]
    return low, other


def _many_words(neuron: Words, block: Words, seed: int) -> tuple[Words, Words]:  # [N], [P, 1] -> [2 P N] each
    """The same in six operations each, which NumPy vectorizes."""
    count = len(block) * len(neuron)
    words, product, others = (np.zeros((2, count), np.uint64) for _ in range(3))
    words[0].reshape(len(block), -1)[:] = neuron
    others[0].reshape(len(block), -1)[:] = block
    shift, mask = np.array([[32]], np.uint64), np.array([[MASK]], np.uint64)
    for key in _keys(seed).astype(np.uint64):
        for factor, part, into in zip(MULTIPLIERS, words, product[::-1], strict=True):
            np.multiply(part, np.uint64(factor), into)
        np.right_shift(product, shift, words)
        np.bitwise_xor(words, others, words)
        np.bitwise_xor(words, key, words)
        np.bitwise_and(words, mask, words)
        product, others = others, product
    pairs = (pair.view(np.uint32)[:, LOW::2] for pair in (words, others))
    first, second = (np.concatenate((even, odd[::-1])) for even, odd in pairs)
    return first, second


def _normals(first: Words, second: Words) -> tuple[NDArray[Any], NDArray[Any]]:
    """Box-Muller in float64: rounded to float32, a draw has the same bits whichever way. torch's cosine is faster."""
    radius: NDArray[Any] = (first >> 8) + 1.0
    radius *= 2.0**-24
    np.log(radius, radius)
    radius *= -2
    np.sqrt(radius, radius)
    y: NDArray[Any] = (second.view(np.int32) >> 8) * (pi * 2.0**-23)
    angle = torch.from_numpy(y)
    x: NDArray[Any] = angle.cos().numpy()
    angle.sin_()
    x *= radius
    y *= radius
    return x, y


def _parts(blocks: int, neurons: int) -> Iterator[tuple[slice, slice]]:
    """Yield blocks and neurons of which so many are computed at a time."""
    columns = min(neurons, PART)
    rows = max(1, PART // columns)
    for first in range(0, blocks, rows):
        for neuron in range(0, neurons, columns):
            yield slice(first, first + rows), slice(neuron, neuron + columns)


def _draw(
    seed: int, neuron: Words | None, neurons: int, images: int, image_offset: int
) -> NDArray[np.float32]:  # [B, N, 2]
    """Return the draws of these neurons, or of so many. Of a block that serves one image, half is left."""
    first_block, last_block = image_offset >> 1, (image_offset + images + 1) >> 1
    odd, served = image_offset & 1, min(images, 2)
    # By torch, and before all else: where memory does not suffice, the error is torch's.
    shape = (last_block - first_block, served, neurons, 2)
    out = torch.empty(shape, dtype=torch.float32, device="cpu").numpy()
    block = np.arange(first_block, last_block).astype(np.uint32)[:, None]
    for rows, columns in _parts(len(block), neurons):
        into = out[rows, :, columns]
        count = into.shape[0] * into.shape[2]
        sides = [slice(count), slice(None, ~count, -1)]
        words = _words if count <= SOME else _many_words
        some = np.arange(columns.start, columns.start + into.shape[2]) if neuron is None else neuron[columns]
        first, second = words(some.astype(np.uint32, copy=False), block[rows], seed)
        if served == 1:
            first, second, sides = first[sides[odd]], second[sides[odd]], [slice(None)]
        for axis, values in enumerate(_normals(first, second)):
            for image, side in enumerate(sides):
                into[:, image, :, axis] = values[side].reshape(len(into), -1)
    return out.reshape(-1, neurons, 2)[odd if served == 2 else 0 :][:images]


ONE = 0x3FF << 52  # the bits of 1.0 in float64: with 24 bits below them, a number from 1 to 2


class _Lanes(NamedTuple):
    """Numbers of 64 bits side by side in one integer: of all neurons for one block of Philox after another."""

    size: int  # bytes
    ones: int
    mask: int
    weyl: tuple[int, int]
    neurons: tuple[int, int]  # words 0 times their factor: above 32 bits, and all
    blocks: int  # words 1
    upper: int  # 24 of 32 bits
    one: int


def _side_by_side(values: Iterable[int]) -> int:
    return sum(value << 64 * i for i, value in enumerate(values))


@lru_cache(maxsize=64)
def _lanes(first: int, last: int, neurons: int) -> _Lanes:
    pairs = [(n * MULTIPLIERS[0], block & MASK) for block in range(first, last) for n in range(neurons)]
    products, blocks = zip(*pairs, strict=True)
    ones = _side_by_side([1] * len(pairs))
    weyl = ones * WEYL[0], ones * WEYL[1]
    factors = _side_by_side(p >> 32 for p in products), _side_by_side(products)
    upper = ones * (MASK ^ 0xFF)
    return _Lanes(8 * len(pairs), ones, ones * MASK, weyl, factors, _side_by_side(blocks), upper, ones * ONE)


def _few_words(seed: int, lanes: _Lanes) -> tuple[int, int, int, int]:
    """Return words 0, 2, 1 and 3, the latter two with other bits above their 32.

    A product of two words stays within the 64 bits of its lane, and so does the sum of all keys. So each step is one
    operation of integers. In the first round, words 2 and 3 are zero.
    """
    mask, (w0, w1), (m0, m1) = lanes.mask, lanes.weyl, MULTIPLIERS
    k0, k1 = lanes.ones * (seed & MASK), lanes.ones * (seed >> 32 & MASK)
    high, third = lanes.neurons
    even, odd, first = (lanes.blocks ^ k0) & mask, (high ^ k1) & mask, 0
    for _ in range(9):
        k0, k1 = k0 + w0, k1 + w1
        p, q = even * m0, odd * m1
        even, odd = (q >> 32 ^ first ^ k0) & mask, (p >> 32 ^ third ^ k1) & mask
        first, third = q, p
    return even, odd, first, third


def _draw_few(seed: int, images: int, neurons: int, image_offset: int) -> Tensor:  # [B, N, 2]
    """Return the draws of few neurons for few images, one after another."""
    first, last, odd = image_offset >> 1, (image_offset + images + 1) >> 1, image_offset & 1
    lanes = _lanes(first, last, neurons)
    size, upper, one, words = lanes.size, lanes.upper, lanes.one, _few_words(seed, lanes)
    served = words[odd::2] if images == 1 else words
    bits = b"".join([((word & upper) << 20 | one).to_bytes(size, "little") for word in served])
    numbers = struct.unpack(f"<{len(bits) // 8}d", bits)
    half = len(numbers) // 2
    pairs = zip(numbers[:half], numbers[half:], strict=True)
    found = [rect(sqrt(-2 * log(u - (1 - 2.0**-24))), tau * v) for u, v in pairs]
    draws = np.array(found, np.complex64).view(np.float32)
    if images == 1:
        return torch.from_numpy(draws.reshape(1, neurons, 2))
    by_block = draws.reshape(2, last - first, neurons, 2).swapaxes(0, 1)
    return torch.from_numpy(by_block.reshape(-1, neurons, 2)[odd : odd + images])


def normals(
    seed: Tensor,  # [1] int64
    images: int,
    neurons: int,
    neuron_index: Tensor | None,  # [N] int64
    image_offset: int,
) -> Tensor:  # [B, N, 2] float32
    """Return the draws, contiguous."""
    if images == 0 or neurons == 0:
        return torch.empty((images, neurons, 2))
    key: Any = seed.item()
    if neuron_index is None and images * neurons <= FEW:
        return _draw_few(key, images, neurons, image_offset)
    index = None if neuron_index is None else neuron_index.numpy().astype(np.uint32)
    return torch.from_numpy(_draw(key, index, neurons, images, image_offset))
