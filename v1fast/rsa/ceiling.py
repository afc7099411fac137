"""How similar the best possible model would be to the dissimilarity matrices of subjects."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from v1fast import _arrays, _choices
from v1fast.rsa._defined import is_empty, is_undefined, scaled
from v1fast.rsa._matrices import Condensed, condensed
from v1fast.rsa._sums import Floats
from v1fast.rsa.similarity import METHODS, RSATOOLBOX_NAMES, compare, ranks


def noise_ceiling(
    rdms: Condensed | ArrayLike, method: str = "pearson", *, subjects: ArrayLike | None = None
) -> tuple[float, float]:
    """How similar the true model would be to the subjects' matrices (Nili et al., PLoS Computational Biology 10, 2014).

    Args:
        rdms: a set of matrices, one for each of M >= 2 subjects, sessions or repeats.
        method: as for ``compare``. Before averaging, the matrices are ranked (spearman, rho-a, tau), z-scored
            (pearson) or divided by their norm (cosine), as in rsatoolbox.
        subjects: [M], the subject of each matrix, if some have several sessions. All sessions of a subject are left out
            together, and subjects count equally. Without it, a session would be compared with another one of the same
            subject, and the lower bound would be too high for a new subject. By default, each matrix is a subject.

    Returns:
        The lower bound is the mean similarity with the mean of the others, the upper bound that with the mean of all.
        Matrices without a similarity (all NaN, or constant; see ``v1fast.rsa``) are left out, with a RuntimeWarning.
        NaN if fewer than two subjects are left. Positions that are NaN in any other matrix are left out of all.

    Raises:
        ValueError: an operand does not fit.
    """
    method = RSATOOLBOX_NAMES.get(method, method)
    _choices.one_of("method", method, METHODS)
    vectors, one = condensed("rdms", rdms)
    if one or len(vectors) < 2:
        raise ValueError(f"rdms: want a set of at least 2 matrices, got {len(vectors)}")
    labels, given = subject_labels(subjects, len(vectors)), len(vectors)
    there = np.flatnonzero(~is_empty(vectors))
    present = ~np.isnan(vectors[there]).any(0)
    there = there[~is_undefined(vectors[there][:, present], method)]
    vectors, labels = vectors[there], labels[there]
    if not len(vectors):
        return np.nan, np.nan
    say_left_out(given - len(vectors), given)
    if len(np.unique(labels)) < 2:
        return np.nan, np.nan
    others, total = means_of_others(vectors, labels, method)
    upper = np.array([[compare(vector, total, method)] for vector in vectors])
    lower = np.array([[compare(*pair, method)] for pair in zip(vectors, others, strict=True)])
    return float(by_subject(lower, labels).mean()), float(by_subject(upper, labels).mean())


def subject_labels(subjects: ArrayLike | None, matrices: int) -> NDArray[np.int64]:
    """Return the subject of each matrix, as 0 .. U - 1.

    Raises:
        ValueError: there is not one label for each matrix.
    """
    if subjects is None:
        return np.arange(matrices)
    _, places = _arrays.distinct("subjects", subjects)
    if places.shape != (matrices,):
        raise ValueError(f"subjects: want [M] = ({matrices},), one for each matrix, got {places.shape}")
    return np.asarray(places, dtype=np.int64)


def means_of_others(vectors: NDArray[Any], labels: NDArray[np.int64], method: str) -> tuple[Floats, Floats]:
    """Return for each matrix the sum of all other subjects', [M, P], and the sum of all, [P], as the method sees them.

    Positions that are NaN in any matrix are NaN.
    """
    present = ~np.isnan(vectors).any(0)
    units = np.full(vectors.shape, np.nan)
    units[:, present] = in_its_unit(vectors[:, present], method)
    total = units.sum(0)
    own = np.stack([units[labels == label].sum(0) for label in labels])
    return total - own, total


def by_subject(values: Floats, labels: NDArray[np.int64]) -> Floats:
    """[.., M, K] -> [.., U, K]: the mean over the sessions of each subject for which it is defined."""
    each = np.unique(labels)
    if len(each) == len(labels):
        return values
    return np.stack([mean_of_defined(values[..., labels == label, :], -2) for label in each], -2)


def say_left_out(absent: int, given: int) -> None:
    """Warn about left-out matrices, at the line that calls the public function."""
    if absent:
        message = f"rdms: {absent} of {given} have no similarity (all NaN, or constant) and are left out of the mean"
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def mean_of_defined(values: Floats, axis: int) -> Floats:
    """Return the mean of the defined values; NaN if there is none."""
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        found: Floats = np.where(present, values, 0).sum(axis) / present.sum(axis)
    return found


def in_its_unit(vectors: NDArray[Any], method: str) -> Floats:
    """Return the vectors as the method sees them."""
    if method in ("spearman", "rho-a", "tau-a", "tau-b"):
        return ranks(vectors)
    values = scaled(vectors)
    if method in ("pearson", "whitened-pearson"):
        values -= values.mean(1, keepdims=True)
    return values / np.sqrt((values**2).mean(1, keepdims=True))
