"""Ranks from 1 on, averaged over ties."""

from __future__ import annotations

import torch
from torch import Tensor


def average_ranks(x: Tensor) -> Tensor:  # [M, L], without NaN -> [M, L] float64
    """The op ``v1fast::average_ranks``: the ranks in each row."""
    ranks = torch.empty(x.shape, dtype=torch.float64, device=x.device)
    if x.numel() == 0:
        return ranks
    for row, out in zip(x, ranks, strict=True):
        _, inverse, counts = row.unique(return_inverse=True, return_counts=True)
        last = counts.cumsum(0)
        out.copy_((last - (counts - 1).double() / 2)[inverse])
    return ranks


def rank_sums(a: Tensor, b: Tensor) -> Tensor:  # [L], [L], without NaN -> [3] float64
    """The op ``v1fast::rank_sums``: sums of the products and of both squares of the ranks minus their mean."""
    ranks = average_ranks(torch.stack([a, b])) - (a.shape[0] + 1) / 2
    return torch.stack([ranks[0] @ ranks[1], ranks[0] @ ranks[0], ranks[1] @ ranks[1]])
