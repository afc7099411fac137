"""Rows of responses by fold and stimulus, for dissimilarities that are cross-validated."""

from __future__ import annotations

import torch
from torch import Tensor


def equal_folds(x: Tensor, folds: Tensor | None) -> Tensor:
    """[..., F, S, N]: the k-th row of each fold is stimulus k."""
    labels, counts = torch.unique(_fold_of_rows(x, folds), return_counts=True)
    if len(labels) < 2 or (counts != counts[0]).any():
        wanted = "at least 2 with the same number of rows, or stimuli beside them"
        raise ValueError(f"folds: want {wanted}, got {counts.tolist()} rows")
    assert folds is not None
    return x[..., torch.argsort(folds, stable=True).to(x.device), :].unflatten(-2, (len(labels), -1))


def fold_means(x: Tensor, folds: Tensor | None, stimuli: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Mean rows of each fold and stimulus, and of all rows of the stimulus in other folds [..., F, S, N], float64.

    Third, whether each stimulus has as many rows in every fold, so that the second is a mean of the first.
    """
    labels, fold = torch.unique(_fold_of_rows(x, folds).to(x.device), return_inverse=True)
    if len(labels) < 2:
        raise ValueError(f"folds: want at least 2, got {len(labels)}")
    if stimuli.shape != (x.shape[-2],):
        got = tuple(stimuli.shape)
        raise ValueError(f"stimuli: want [R] = ({x.shape[-2]},), the stimulus of each row of responses, got {got}")
    names, stimulus = torch.unique(stimuli.to(x.device), return_inverse=True)
    cell, shape = fold * len(names) + stimulus, (len(labels), len(names))
    counts = torch.bincount(cell, minlength=shape[0] * shape[1]).view(shape)
    if (counts == 0).any():
        k, s = (int(where[0]) for where in torch.where(counts == 0))
        raise ValueError(f"stimuli: want each in every fold, got none of stimulus {s} in fold {k}, counted from 0")
    sums = _sums_of_rows(x.double(), cell, counts.flatten()).unflatten(-2, shape)
    weights = counts.double().unsqueeze(-1)
    others = (sums.sum(-3, keepdim=True) - sums) / (weights.sum(0, keepdim=True) - weights)
    return sums / weights, others, bool((counts == counts[0]).all())


def _fold_of_rows(x: Tensor, folds: Tensor | None) -> Tensor:
    if folds is None or tuple(folds.shape) != (x.shape[-2],):
        got = None if folds is None else tuple(folds.shape)
        raise ValueError(f"folds: want [R] = ({x.shape[-2]},), the fold of each row of responses, got {got}")
    return folds


def _sums_of_rows(x: Tensor, cell: Tensor, counts: Tensor) -> Tensor:
    """[..., cells, N]: of the rows of each cell, the first ones, then the second ones, ..: always in the same order."""
    order, starts = torch.argsort(cell, stable=True), counts.cumsum(0) - counts
    sums = x.new_zeros((*x.shape[:-2], len(counts), x.shape[-1]))
    for k in range(int(counts.max())):
        cells = (counts > k).nonzero().squeeze(1)
        sums = sums.index_add(-2, cells, x.index_select(-2, order[starts[cells] + k]))
    return sums
