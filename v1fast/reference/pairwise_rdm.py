"""Correlation RDM over the columns that both rows of a pair have: ``numpy.corrcoef`` of each pair with its gaps masked.

Plain torch in float64, differentiable as it is. Five products of matrices give all sums over the columns that two rows
share. Where what is left of a variance is small beside what was subtracted from it, the pair is computed anew from its
two rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast.reference.rdm import power_of_two, product

CANCELLATION = 1e-3  # of a sum of squares that may be left as a variance without a second look
PAIR_ELEMENTS = 1 << 22  # that are looked at again at a time


def _shared_sums(x: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Covariance, the two variances (times the count), and which pairs need a second look: [S, S] each."""
    mask = present.double()
    count = product(mask, mask.mT).clamp(min=1)
    total, squares = product(x, mask.mT), product(x.square(), mask.mT)  # of row i over the columns of row j
    covariance = product(x, x.mT) - total * total.mT / count
    variance = squares - total.square() / count
    doubtful = variance <= CANCELLATION * squares
    return covariance, variance, variance.mT, doubtful | doubtful.mT


def _pairs_anew(x: Tensor, present: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Correlations of the pairs (i, j), in two passes over their rows."""
    both = present[i] & present[j]
    count = both.sum(-1, keepdim=True).clamp(min=1)
    rows = []
    for k in (i, j):
        values = torch.where(both, x[k], 0)
        centred = torch.where(both, values - values.sum(-1, keepdim=True) / count, 0)
        low = torch.where(both, x[k], torch.inf).amin(-1, keepdim=True)
        high = torch.where(both, x[k], -torch.inf).amax(-1, keepdim=True)
        # The mean again: at a large offset the first one is off by the rounding of the sum.
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
        r = r.index_put((part,), _pairs_anew(x, present, i[part], j[part]))
    d = (1 - r).clamp(0, 2)
    if condensed:
        return d
    low, high = torch.where(present, x, torch.inf).amin(-1), torch.where(present, x, -torch.inf).amax(-1)
    upper = d.new_zeros(covariance.shape).index_put((i, j), d)
    return upper + upper.mT + torch.where(low < high, 0.0, torch.nan).to(d.dtype).diag()


def pairwise_rdm(x: Tensor, condensed: bool) -> Tensor:  # [B, S, K] -> [B, S, S] or [B, S (S - 1) / 2], float64
    """1 - r of each pair over the columns where neither is NaN; NaN where a row has no two different values there."""
    if x.numel() == 0:
        rows = x.shape[1]
        return x.new_zeros(
            (x.shape[0], *((rows * (rows - 1) // 2,) if condensed else (rows, rows))), dtype=torch.float64
        )
    return torch.stack([_one(rows, condensed) for rows in x])
