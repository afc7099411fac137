"""Correlation RDM over the columns that both rows of a pair have: ``numpy.corrcoef`` of each pair without its gaps.

It is plain differentiable torch in float64. Five products of matrices give all sums over the columns that two rows
share. If a variance is small compared with what was subtracted from it, the pair is recomputed from its two rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast.reference.rdm import power_of_two, product

CANCELLATION = 1e-3  # share of a sum of squares below which a variance is recomputed
PAIR_ELEMENTS = 1 << 22  # elements of pairs that are recomputed at a time


def _shared_sums(x: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return covariance, both variances (times the count), and which pairs to recompute: [S, S] each."""
    mask = present.double()
    count = product(mask, mask.mT).clamp(min=1)
    total, squares = product(x, mask.mT), product(x.square(), mask.mT)  # of row i over the columns of row j
    covariance = product(x, x.mT) - total * total.mT / count
    variance = squares - total.square() / count
    doubtful = variance <= CANCELLATION * squares
    return covariance, variance, variance.mT, doubtful | doubtful.mT


def _pairs_again(x: Tensor, present: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Return the correlations of the pairs (i, j), in two passes over their rows."""
    both = present[i] & present[j]
    count = both.sum(-1, keepdim=True).clamp(min=1)
    rows = []
    for k in (i, j):
        values = torch.where(both, x[k], 0)
        centred = torch.where(both, values - values.sum(-1, keepdim=True) / count, 0)
        low = torch.where(both, x[k], torch.inf).amin(-1, keepdim=True)
        high = torch.where(both, x[k], -torch.inf).amax(-1, keepdim=True)
        # Subtract the mean again: at a large offset, the rounding of the sum makes the first mean inexact.
        centred = torch.where(both, centred - centred.sum(-1, keepdim=True) / count, 0)
        rows.append(torch.where(low < high, centred, torch.nan))
    a, b = rows
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()


def _one(x: Tensor, condensed: bool) -> Tensor:  # [S, K] -> [S, S] or [S (S - 1) / 2]
    present = ~x.isnan()
    x = torch.where(present, x, 0).double()
    x = x * power_of_two(x.abs().amax(-1, keepdim=True))
    count = present.sum(-1, keepdim=True).clamp(min=1)
    centred = torch.where(present, x - x.sum(-1, keepdim=True) / count, 0)
    covariance, variance, other, doubtful = _shared_sums(centred, present)
    i, j = torch.triu_indices(x.shape[0], x.shape[0], 1, device=x.device).unbind()
    safe = torch.where(doubtful, 1, variance).sqrt() * torch.where(doubtful, 1, other).sqrt()
    r = (covariance / safe)[i, j]
    again = doubtful[i, j].nonzero().squeeze(-1)
    for part in again.split(max(1, PAIR_ELEMENTS // x.shape[-1])):
        r = r.index_put((part,), _pairs_again(x, present, i[part], j[part]))
    d = (1 - r).clamp(0, 2)
    if condensed:
        return d
    low, high = torch.where(present, x, torch.inf).amin(-1), torch.where(present, x, -torch.inf).amax(-1)
    upper = d.new_zeros(covariance.shape).index_put((i, j), d)
    return upper + upper.mT + torch.where(low < high, 0.0, torch.nan).to(d.dtype).diag()


def pairwise_rdm(x: Tensor, condensed: bool) -> Tensor:  # [B, S, K] -> [B, S, S] or [B, S (S - 1) / 2], float64
    """1 - r of each pair over the columns where neither is NaN. NaN if a row has no two different values there."""
    if x.numel() == 0:
        rows = x.shape[1]
        return x.new_zeros(
            (x.shape[0], *((rows * (rows - 1) // 2,) if condensed else (rows, rows))), dtype=torch.float64
        )
    return torch.stack([_one(rows, condensed) for rows in x])
