"""How similarities vary with the stimuli and the subjects that were drawn: leave-one-out and leave-two-out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from v1fast import ops
from v1fast.rsa._pair_features import SUMMED, PairFeatures
from v1fast.rsa._sums import Floats
from v1fast.rsa.similarity import compare

LEAST_GROUPS = 5  # of stimuli: with two left out, three are left, which is the least that has a correlation
MOST_TWOS = 5000  # pairs of groups that are left out together, where sums give the similarities
MOST_COMPARED = 200  # likewise, where each takes a comparison


class Groups:
    """Stimuli that are drawn, or left out, together.

    Args:
        labels: [S], the group of each stimulus, 0 .. G - 1.
    """

    def __init__(self, labels: NDArray[np.int64]) -> None:
        self.labels, self.count = labels, int(labels.max()) + 1
        i, j = np.triu_indices(len(labels), 1)
        self.first, self.second = labels[i], labels[j]  # [P], the groups of each pair of stimuli

    def without(self, *groups: int) -> NDArray[np.bool_]:
        """Return which pairs of stimuli are left without some groups."""
        keep = np.ones(len(self.first), dtype=bool)
        for group in groups:
            keep &= (self.first != group) & (self.second != group)
        return keep

    def sums(self, rows: Floats, twos: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Sum rows [r, P] over the pairs of stimuli in which a group has a part: [r, G]; in which two have: [r, Q]."""
        if self.count == len(self.labels):
            i, j = twos.T
            place = i * (2 * self.count - i - 1) // 2 + j - i - 1
            condensed = torch.from_numpy(np.ascontiguousarray(rows))
            return ops.condensed_row_sums.condensed_row_sums(condensed, self.count).numpy(), rows[:, place]
        place = self.first * self.count + self.second
        each = np.stack([np.bincount(place, row, self.count**2) for row in rows]).astype(np.float64)
        square: Floats = each.reshape(-1, self.count, self.count)
        square = square + square.swapaxes(1, 2)  # on the diagonal: twice the pairs within
        within = square.diagonal(axis1=1, axis2=2) / 2
        return square.sum(2) - within, square[:, twos[:, 0], twos[:, 1]]


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Similarities of M matrices with K others, without some of the stimuli.

    Attributes:
        whole: [M, K], with all.
        one: [G, M, K], without each group.
        two: [Q, M, K], without two groups.
        twos: [Q, 2], which.
    """

    whole: Floats
    one: Floats
    two: Floats
    twos: NDArray[np.int64]


def leave_out(a: NDArray[Any], b: NDArray[Any], method: str, groups: Groups, seed: int) -> LeftOut:
    """Compute the similarities of [M, P] and [K, P] without each group, and without pairs of groups.

    No similarity of all stimuli is undefined. Pairs of groups are drawn at random if there are too many.
    """
    twos = np.stack(np.triu_indices(groups.count, 1), 1)
    most = MOST_TWOS if method in SUMMED else MOST_COMPARED
    if len(twos) > most:
        twos = twos[np.sort(np.random.default_rng(seed).choice(len(twos), most, replace=False))]
    if method not in SUMMED:
        one = np.stack([_without(a, b, method, groups, g) for g in range(groups.count)])
        two = np.stack([_without(a, b, method, groups, *pair) for pair in twos.tolist()])
        return LeftOut(np.asarray(compare(a, b, method)), one, two, twos)
    features = PairFeatures(a, b, ~(np.isnan(a).any(0) | np.isnan(b).any(0)), method)
    parts = [(rows.sum(1, keepdims=True), *groups.sums(rows, twos)) for rows in features.rows()]
    total, of_one, of_two = (np.concatenate(each) for each in zip(*parts, strict=True))
    one, doubtful = features.similarity(total - of_one)
    for g in np.flatnonzero(doubtful).tolist():
        one[g] = _without(a, b, method, groups, g)
    two, doubtful = features.similarity(total - of_one[:, twos[:, 0]] - of_one[:, twos[:, 1]] + of_two)
    for q in np.flatnonzero(doubtful).tolist():
        two[q] = _without(a, b, method, groups, *twos[q].tolist())
    return LeftOut(np.asarray(compare(a, b, method)), one, two, twos)


def _without(a: NDArray[Any], b: NDArray[Any], method: str, groups: Groups, *left_out: int) -> Floats:
    """Return the similarities [M, K] without some groups; NaN if fewer than two stimuli are left."""
    keep = groups.without(*left_out)
    if not keep.any():
        return np.full((len(a), len(b)), np.nan)
    return np.asarray(compare(a[:, keep], b[:, keep], method))


@dataclasses.dataclass(frozen=True)
class Covariances:
    """Covariances [K, K] of K similarities, each the mean over U subjects, by what they are due to.

    Attributes:
        subjects: due to the subjects that were drawn; NaN for a single one.
        alone: due to the stimuli that were drawn, each by itself, as the leave-one-out estimates it: this counts twice
            what pairs of stimuli contribute beyond their stimuli.
        pairs: what pairs of stimuli contribute beyond their stimuli.
        shared_alone, shared_pairs: the same for the part that subjects have in common; NaN for a single one.
        units: U.
        groups: G, of stimuli.
        undefined: [K], the number of pairs of groups without which a similarity is undefined; they are left out.
    """

    subjects: Floats
    alone: Floats
    pairs: Floats
    shared_alone: Floats
    shared_pairs: Floats
    units: int
    groups: int
    undefined: NDArray[np.int64]


def covariances(found: LeftOut) -> Covariances:
    """Return the covariances of the mean over subjects [U, K]; see ``bootstrap`` for their sources."""
    units, n = len(found.whole), len(found.one)
    deviations = found.one - found.one.mean(0)
    i, j = found.twos.T
    # Efron & Stein (1981), section 5: what is left of two stimuli after each by itself.
    second = n * found.whole - (n - 1) * (found.one[i] + found.one[j]) + (n - 2) * found.two
    alone = (n - 1) / n * _products(deviations)
    # Of n (n - 1) / 2 pairs, the means of rows take n: what is left has n (n - 3) / 2 degrees of freedom.
    pairs = (n - 3) / (2 * n) * _mean_products(second)
    shared_alone, shared_pairs = _shared(alone, units), _shared(pairs, units)
    undefined = np.isnan(second).any(axis=1).sum(axis=0)
    between = subject_covariance(found.whole)
    return Covariances(between, alone[0], pairs[0], shared_alone, shared_pairs, units, n, undefined)


def subject_covariance(values: Floats) -> Floats:
    """[U, K] -> [K, K], the covariance of the means over U subjects; NaN for a single one."""
    if len(values) < 2:
        return np.full((values.shape[1],) * 2, np.nan)
    deviations = values - values.mean(0)
    found: Floats = deviations.T @ deviations / (len(values) * (len(values) - 1))
    return found


def _products(values: Floats) -> Floats:
    """[n, U, K] -> [2, K, K]: sums of products, of the means over subjects, and of each subject's own."""
    means = values.mean(1)
    own = values.reshape(-1, values.shape[2])
    return np.stack([means.T @ means, own.T @ own])


def _mean_products(values: Floats) -> Floats:
    """The same, as means over those of n that are defined."""
    absent: NDArray[np.bool_] = np.isnan(values).any(axis=1)  # type: ignore[assignment]
    there = (~absent).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _products(np.where(absent[:, None], 0, values)) / (there.T @ there)


def _shared(products: Floats, units: int) -> Floats:
    """Return the mean over pairs of different subjects."""
    if units < 2:
        return np.full(products.shape[1:], np.nan)
    found: Floats = (units**2 * products[0] - products[1]) / (units * (units - 1))
    return found
