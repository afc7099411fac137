"""Row sums of symmetric matrices with a zero diagonal, from their entries above the diagonal."""

from __future__ import annotations

import torch
from torch import Tensor


def condensed_row_sums(x: Tensor, stimuli: int) -> Tensor:  # [M, S (S - 1) / 2] -> [M, S] float64
    """The op ``v1fast::condensed_row_sums``."""
    if x.numel() == 0:
        return x.new_zeros((x.shape[0], stimuli), dtype=torch.float64)
    sums = torch.zeros((x.shape[0], stimuli), dtype=torch.float64, device=x.device)
    for i, row in enumerate(x.split(list(range(stimuli - 1, -1, -1)), 1)):
        wide = row.double()
        sums[:, i] += wide.sum(1)
        sums[:, i + 1 :] += wide
    return sums
