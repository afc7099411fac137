"""What a relabelled matrix has in common with another."""

from __future__ import annotations

import torch
from torch import Tensor


def permuted_products(a: Tensor, b: Tensor, permutations: Tensor) -> Tensor:  # [S, S], [S, S], [P, S] -> [P] float64
    """The op ``v1fast::permuted_products``: the sums over i < j of a[i, j] b[p(i), p(j)], for each permutation p."""
    upper = a.triu(1).double()
    sums = [(upper * b[p][:, p]).sum() for p in permutations.long()]
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.float64, device=a.device)
