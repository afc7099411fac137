"""Sums of products of one matrix with another whose rows and columns are permuted."""

from __future__ import annotations

import torch
from torch import Tensor


def permuted_products(a: Tensor, b: Tensor, permutations: Tensor) -> Tensor:  # [S, S], [S, S], [P, S] -> [P] float64
    """The op ``v1fast::permuted_products``: the sums over i < j of a[i, j] b[p(i), p(j)], for each permutation p."""
    if permutations.numel() and not ((permutations >= 0) & (permutations < a.shape[0])).all():
        raise ValueError(f"permutations: want 0 .. S - 1 = {a.shape[0] - 1}, got others")
    upper = a.triu(1).double()
    if permutations.numel() == 0:
        return a.new_zeros(permutations.shape[:1], dtype=torch.float64)
    sums = [(upper * b[p][:, p]).sum() for p in permutations.long()]
    return torch.stack(sums)
