"""p of several tests, corrected for their number. An undefined test is NaN and is not counted."""

from __future__ import annotations

import numpy as np
import scipy.stats

from v1fast.rsa._sums import Floats

EQUAL = 1e-9  # a statistic this close to the observed one counts as equal


def false_discovery(p: Floats) -> Floats:
    """[K] -> [K], as by Benjamini & Hochberg (Journal of the Royal Statistical Society B 57, 1995)."""
    found, there = np.full(len(p), np.nan), ~np.isnan(p)
    if there.any():
        found[there] = scipy.stats.false_discovery_control(p[there])
    return found


def holm(p: Floats) -> Floats:
    """[K] -> [K], familywise, whatever the tests have in common (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    found, there = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    order = there[np.argsort(p[there])]
    found[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return found


def maximum_of_standardized(observed: Floats, null: Floats, p: Floats) -> Floats:
    """Familywise p [K] by ``maximum``, of statistics in standard deviations of their own null distribution [B, K].

    None is below the uncorrected p [K]. A statistic that no permutation changes has p = 1.
    """
    spread = null.std(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        standard = [np.where(spread > 0, (x - null.mean(0)) / spread, np.nan) for x in (observed, null)]
    familywise = np.where(np.isnan(p), np.nan, np.where(spread > 0, maximum(*standard), 1))
    found: Floats = np.fmax(familywise, p)
    return found


def maximum(observed: Floats, null: Floats) -> Floats:
    """Familywise p [K] of statistics [K]: how often the largest of a null distribution [B, K] is at least as large.

    The identity counts as one of B + 1 (Nichols & Holmes, Human Brain Mapping 15, 2002).
    """
    if np.isnan(observed).all():
        return np.full(len(observed), np.nan)
    largest = np.fmax.reduce(null[:, ~np.isnan(observed)], axis=1)
    found: Floats = (1 + (largest[:, None] >= observed - EQUAL).sum(0)) / (1 + len(null))
    return np.where(np.isnan(observed), np.nan, found)
