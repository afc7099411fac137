"""Pearson's correlation and the cosine of matrices whose stimuli have weights, from weighted sums over pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v1fast.rsa._defined import CONSTANT, scaled
from v1fast.rsa._sums import Floats, ratio

SUMMED = ("pearson", "cosine")  # the measures that sums over pairs give
DOUBTFUL = 1e-10  # times the sum of squares: up to this variance, the values are checked for being all equal


class PairFeatures:
    """What sums over pairs of stimuli give a similarity of each of M matrices with each of K others.

    A weighting of pairs gives sums [F, n] of F features: 1, a, b, a², b² and a b. ``similarity`` makes similarities of
    such sums. Pairs that are absent count for nothing.

    Args:
        a: [M, P], of which none is undefined on the pairs that are present.
        b: [K, P], likewise.
        present: [P], which pairs count.
        method: "pearson" or "cosine".
    """

    def __init__(self, a: NDArray[Any], b: NDArray[Any], present: NDArray[np.bool_], method: str) -> None:
        self.method, self.present = method, present.astype(np.float64)
        self.sizes = len(a), len(b)
        self.epsilons = [CONSTANT * np.finfo(vectors.dtype).eps for vectors in (a, b)]
        self.first, self.second = (self._in_range(vectors, present) for vectors in (a, b))

    def _in_range(self, vectors: NDArray[Any], present: NDArray[np.bool_]) -> Floats:
        """Scale, and for Pearson subtract the mean: otherwise squares would lose the deviations if means are large."""
        values = scaled(np.where(present, vectors, 0))
        if self.method == "pearson":
            with np.errstate(invalid="ignore"):
                values = values - values[:, present].mean(1, keepdims=True)
        return np.where(present, values, 0)

    def rows(self, pairs: NDArray[np.int64] | slice = slice(None)) -> Iterator[Floats]:
        """Yield the features of some pairs, [.., pairs] at a time."""
        first, second = self.first[:, pairs], self.second[:, pairs]
        yield self.present[pairs][None]
        yield first
        yield second
        yield first**2
        yield second**2
        for each in second:
            yield first * each

    def similarity(self, sums: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """[F, n] -> similarities [n, M, K], and for which of n they are doubtful: a variance may be rounding."""
        m, k = self.sizes
        total, sum_a, sum_b, square_a, square_b, product = np.split(sums.T, np.cumsum([1, m, k, m, k]), axis=1)
        product = product.reshape(len(product), k, m).swapaxes(1, 2)
        least_a, least_b = (
            np.maximum(DOUBTFUL * square, total * epsilon**2)
            for square, epsilon in zip((square_a, square_b), self.epsilons, strict=True)
        )
        if self.method == "pearson":
            with np.errstate(invalid="ignore", divide="ignore"):
                square_a, square_b = square_a - sum_a**2 / total, square_b - sum_b**2 / total
                product = product - sum_a[:, :, None] * sum_b[:, None] / total[:, :, None]
        doubtful = ~((square_a > least_a).all(1) & (square_b > least_b).all(1))
        return ratio(product, square_a[:, :, None], square_b[:, None]), doubtful
