"""Errors on a circle, chance levels, classes, and random splits of stimuli."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def circular_difference(first: ArrayLike, second: ArrayLike, period: float = 360.0) -> Floats:
    """``first - second`` on a circle, in -period / 2 up to period / 2.

    Args:
        first, second: of shapes that broadcast.
        period: > 0; 360 for directions, 180 for orientations.

    >>> circular_difference([359.0, 10.0], [1.0, 350.0]).tolist()
    [-2.0, 20.0]
    """
    if not period > 0:
        raise ValueError(f"period: want > 0, got {period}")
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    return np.asarray((difference + period / 2) % period - period / 2)


def mean_error(decoded: ArrayLike, true: ArrayLike, period: float | None = None) -> float:
    """Mean magnitude of the error: on a circle, or with None on a line.

    Args:
        decoded, true: [S].
        period: of the circle.

    >>> mean_error([358.0], [0.0]), mean_error([358.0], [0.0], 360)
    (358.0, 2.0)
    """
    return float(np.abs(_difference(*_pair(decoded, true), period)).mean())


def chance_error(decoded: ArrayLike, true: ArrayLike, period: float | None = None) -> float:
    """The mean error if decoded and true stimuli have nothing to do with each other.

    It is the mean over all permutations of the stimuli, computed from all pairs. On a circle it is period / 4 for
    stimuli that cover it evenly.

    Args:
        decoded, true: [S].
        period: of the circle.

    >>> chance_error(range(0, 360, 2), range(0, 360, 2), 360)
    90.0
    """
    one, other = _pair(decoded, true)
    return float(np.abs(_difference(one[:, None], other, period)).mean())


def _pair(decoded: ArrayLike, true: ArrayLike) -> tuple[Floats, Floats]:
    one, other = np.asarray(decoded, np.float64), np.asarray(true, np.float64)
    if one.shape != other.shape or one.ndim != 1 or not len(one):
        raise ValueError(f"decoded, true: want [S >= 1] both, got {one.shape} and {other.shape}")
    return one, other


def _difference(first: Floats, second: Floats, period: float | None) -> Floats:
    return first - second if period is None else circular_difference(first, second, period)


def classes_of(degrees: ArrayLike, count: int, period: float = 360.0) -> NDArray[np.int64]:
    """The class of each stimulus: ``count`` equal bins from 0 to ``period``, which itself belongs to the last.

    Args:
        degrees: [S], 0 to ``period``.
        count: K >= 1.
        period: of the axis.

    Raises:
        ValueError: a stimulus or the count is out of range.

    >>> classes_of([0, 17.9, 18, 360], 20).tolist()
    [0, 0, 1, 19]
    """
    if count < 1:
        raise ValueError(f"count: want >= 1, got {count}")
    places = np.asarray(degrees, np.float64)
    outside = ~((places >= 0) & (places <= period))
    if outside.any():
        raise ValueError(f"degrees: want 0 to {period:g}, got {places[outside][0]:g}")
    return np.minimum((places * count / period).astype(np.int64), count - 1)


def split_stimuli(count: int, share: float = 0.6, seed: int = 4) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training and test stimuli: the first ``share`` of ``torch.randperm`` with this seed, and the rest.

    Args:
        count: S >= 2.
        share: between 0 and 1.
        seed: of the permutation.

    Returns:
        Indices, at least one each.

    >>> [len(part) for part in split_stimuli(360)]
    [216, 144]
    """
    if count < 2:
        raise ValueError(f"count: want >= 2, got {count}")
    if not 0 < share < 1:
        raise ValueError(f"share: want between 0 and 1, got {share}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
    ends = min(max(1, int(share * count)), count - 1)
    return order[:ends], order[ends:]
