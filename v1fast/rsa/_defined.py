"""Which dissimilarity matrices have a similarity, and the unit in which they are computed; see ``v1fast.rsa``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from v1fast.rsa._sums import Floats

CONSTANT = 4  # units in the last place of the largest magnitude; values that should be equal may differ by this


def is_constant(vectors: NDArray[Any]) -> NDArray[np.bool_]:
    """[M, P] without NaN -> [M]: whether the values are equal up to rounding, or there are none.

    They are equal if their range is at most ``CONSTANT`` units in the last place of the largest magnitude, in the given
    dtype.
    """
    if not vectors.shape[1]:
        return np.ones(len(vectors), dtype=bool)
    return are_equal(vectors.min(1), vectors.max(1), vectors.dtype)


def are_equal(low: ArrayLike, high: ArrayLike, dtype: np.dtype[Any]) -> NDArray[np.bool_]:
    """The same, from the smallest and the largest value."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        largest = np.maximum(np.abs(low), np.abs(high))
        within = np.subtract(high, low) <= CONSTANT * np.finfo(dtype).eps * largest
    found: NDArray[np.bool_] = np.equal(low, high) | (within & np.isfinite(largest))
    return found


def is_empty(vectors: NDArray[Any]) -> NDArray[np.bool_]:
    """[M, P] -> [M]: whether all values are NaN."""
    found: NDArray[np.bool_] = np.isnan(vectors[:, :1]).all(1)  # most are not empty, so the first column is enough
    found[found] = np.isnan(vectors[found]).all(1)
    return found


def is_undefined(vectors: NDArray[Any], method: str) -> NDArray[np.bool_]:
    """[M, P] without NaN -> [M]: whether the measure is undefined for a matrix, whatever the other matrix is."""
    if method.endswith("cosine"):
        return ~np.asarray(vectors.any(axis=1))
    return is_constant(vectors)


def scaled(vectors: NDArray[Any]) -> Floats:
    """Return [M, P] in float64, each row times the power of two that scales its largest magnitude to 0.5 .. 1.

    Then squares and their sums neither overflow nor underflow, and no digit is lost.
    """
    wide = vectors.astype(np.float64)
    if not wide.size:
        return wide
    largest = np.abs(wide).max(1, where=np.isfinite(wide), initial=0)
    found: Floats = np.ldexp(wide, -np.frexp(largest)[1][:, None])
    return found


class Range:
    """The range of values that arrive in parts."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.dtype = np.dtype(np.float64)

    def add(self, low: float, high: float, dtype: np.dtype[Any]) -> None:
        """Add the smallest and largest of some values without NaN. For no values, these are infinity and -infinity."""
        self.low, self.high, self.dtype = min(self.low, float(low)), max(self.high, float(high)), dtype

    def is_undefined(self, method: str) -> bool:
        """Like the function of this name."""
        if self.low > self.high:
            return True
        if method.endswith("cosine"):
            return self.low == self.high == 0
        return bool(are_equal(self.low, self.high, self.dtype))
