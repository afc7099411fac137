"""Sums over the trials of each image, and of their products over images: what metrics of predictions are made of."""

from __future__ import annotations

import torch
from torch import Tensor

BITS = {"x": 1, "y": 2, "xx": 4, "yy": 8, "xy": 16, "error": 32}
"""Names of the sums, as bits of ``which``."""
BLOCK = 2**18  # elements of float64 that are computed at a time


def trial_sums(
    x: Tensor,  # [T, N], responses
    y: Tensor,  # [T, N], predictions
    center: Tensor,  # [2, N] float64, for each neuron a constant near x and one near y
    order: Tensor,  # [K] int64, trials, grouped by image
    counts: Tensor,  # [I] int64, number of trials of each image, K in total
    which: int,
) -> Tensor:  # [S, I, N] float64
    """The op ``v1fast::trial_sums``. With a = x - center[0] and b = y - center[1], it sums a a, b b, a b and (x - y)^2,
    in this order, if their bits are set. Without a center, squares of large numbers would lose small differences.
    """
    if counts.sum() != len(order) or (counts < 0).any():
        raise ValueError(f"counts: want at least 0 each, {len(order)} in all as order has, got {counts.tolist()}")
    if len(order) and not (order.min() >= 0 and order.max() < len(x)):
        raise ValueError(f"order: want trials from 0 to {len(x) - 1}, got {order.min()} to {order.max()}")
    image = torch.repeat_interleave(torch.arange(len(counts), device=x.device), counts.to(x.device))
    sums = x.new_zeros(which.bit_count(), len(counts), x.shape[1], dtype=torch.float64)
    rows = max(1, BLOCK // max(1, x.shape[1]))
    for trials, images in zip(order.to(x.device).split(rows), image.split(rows), strict=True):
        r, p = x[trials].double(), y[trials].double()
        for total, term in zip(sums, _terms(r, p, center, which), strict=True):
            total.index_add_(0, images, term)
    return sums


def trial_products(
    x: Tensor,  # [T, N]
    y: Tensor,  # [T, N]
    center: Tensor,  # [2, N] float64
    order: Tensor,  # [J] int64
    counts: Tensor,  # [I] int64
    factors: Tensor,  # [K, 2] int64, two of the sums each: 1 for the first row of trial_sums, ...; 0 stands for ones
    weights: Tensor,  # [K, I] float64
    which: int,
) -> Tensor:  # [K, N] float64
    """The op ``v1fast::trial_products``: sum_i weights[k, i] s_l[i] s_r[i] with l, r = factors[k], where s are the sums
    of the op ``trial_sums`` with the same operands.
    """
    sums = trial_sums(x, y, center, order, counts, which)
    if factors.numel() and not (factors.min() >= 0 and factors.max() <= len(sums)):
        raise ValueError(f"factors: want 0 to {len(sums)}, got {factors.min()} to {factors.max()}")
    ones = sums.new_ones(1, 1).expand(sums.shape[1:])
    found = sums.new_empty(len(factors), x.shape[1])
    for k, pair in enumerate(factors.tolist()):
        left, right = (sums[f - 1] if f else ones for f in pair)
        found[k] = (weights[k].to(x.device)[:, None] * left * right).sum(0)
    return found


def _terms(r: Tensor, p: Tensor, center: Tensor, which: int) -> list[Tensor]:
    a, b = r - center[0], p - center[1]
    makers = {
        "x": lambda: a,
        "y": lambda: b,
        "xx": lambda: a * a,
        "yy": lambda: b * b,
        "xy": lambda: a * b,
        "error": lambda: (r - p).square(),
    }
    return [makers[name]() for name, bit in BITS.items() if which & bit]
