"""Random permutations from a counter, the same on every machine, by swaps (Fisher & Yates; Knuth's algorithm P)."""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast.reference.philox import MASK, philox4x32_10


def random_permutations(seed: Tensor, count: int, size: int) -> Tensor:  # [1] int64 -> [P, S] int32
    """The op ``v1fast::random_permutations``.

    Permutation k swaps position i = S - 1, ..., 1 with position (i + 1) w / 2^32, rounded down. Here w is word S - 1 -
    i of the Philox4x32-10 blocks with key = seed and counter = (block, k, 0, 1).
    """
    device = seed.device
    if count == 0 or size == 0:
        return torch.empty((count, size), dtype=torch.int32, device=device)
    block = torch.arange(max(0, size + 2) // 4, device=device)
    number = torch.arange(count, device=device)[:, None]
    zero = torch.zeros_like(number)
    key = (seed & MASK, (seed >> 32) & MASK)
    words = torch.stack(philox4x32_10((block, number, zero, zero + 1), key), -1).flatten(1)  # [P, 4 blocks]
    found = torch.arange(size, device=device).repeat(count, 1)
    row = number[:, 0]
    for step, i in enumerate(range(size - 1, 0, -1)):
        j = words[:, step] * (i + 1) >> 32
        last, chosen = found[:, i].clone(), found[row, j]
        found[row, j] = last
        found[:, i] = chosen
    return found.int()
