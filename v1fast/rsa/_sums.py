"""Sums over the entries of dissimilarity matrices, in float64, from pieces that arrive one after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PIECE = 1 << 17  # numbers that are converted to float64 at a time: they stay in the cache


class PairSums:
    """The sums for Pearson's correlation and the cosine of two sets of vectors.

    If a vector's deviations are small compared with its mean, an approximate mean is subtracted first. Otherwise its
    squares would lose the digits that determine the correlation.
    """

    def __init__(self, first: int, second: int) -> None:
        self.count = 0
        self.shifts: tuple[Floats, Floats] | None = None
        self.sums = np.zeros(first), np.zeros(second)
        self.squares = np.zeros(first), np.zeros(second)
        self.products = np.zeros((first, second))

    def add(self, a: NDArray[Any], b: NDArray[Any]) -> None:
        """Add entries [first, K] and the same entries [second, K]."""
        if not a.shape[1]:
            return
        if self.shifts is None:
            self.shifts = _shifts(a[:, :PIECE]), _shifts(b[:, :PIECE])
        step = max(1, PIECE // max(len(a), len(b), 1))
        room = np.empty((len(a), step)), np.empty((len(b), step))
        for begin in range(0, a.shape[1], step):
            pieces = []
            for which, vectors in enumerate((a, b)):
                given = vectors[:, begin : begin + step]
                piece = room[which][:, : given.shape[1]]
                piece[...] = given
                if self.shifts[which].any():
                    piece -= self.shifts[which][:, None]
                self.sums[which][:] += piece.sum(1)
                self.squares[which][:] += np.einsum("ij,ij->i", piece, piece)
                pieces.append(torch.from_numpy(piece))
            # NumPy's products would wake as many threads as there are cores, for microseconds of work.
            self.products += (pieces[0] @ pieces[1].T).numpy()
        self.count += a.shape[1]

    def merge(self, other: PairSums) -> None:
        """Add the sums of other entries of the same vectors, whatever was subtracted from either."""
        if other.shifts is None:  # nothing was added to it
            return
        if self.shifts is None:
            self.shifts = other.shifts
        # The other's sums, as if what was subtracted there were what is subtracted here (Chan, Golub & LeVeque, 1983).
        moves = [theirs - own for theirs, own in zip(other.shifts, self.shifts, strict=True)]
        n, (move_a, move_b), (sum_a, sum_b) = other.count, moves, other.sums
        self.products += other.products + np.outer(sum_a, move_b) + np.outer(move_a, sum_b) + n * np.outer(*moves)
        for which, move in enumerate(moves):
            self.squares[which][:] += other.squares[which] + 2 * move * other.sums[which] + n * move**2
            self.sums[which][:] += other.sums[which] + n * move
        self.count += n

    def variances(self) -> tuple[Floats, Floats]:
        """Return the sums of squared deviations from the means, of the first and of the second vectors."""
        first, second = (
            np.clip(square - sum_**2 / max(1, self.count), 0, None)
            for square, sum_ in zip(self.squares, self.sums, strict=True)
        )
        return first, second

    def pearson(self) -> Floats:
        """Return [first, second]; NaN where a variance is 0. For a constant vector, the variance may be rounding."""
        if not self.count:
            return np.full_like(self.products, np.nan)
        products = self.products - np.outer(*self.sums) / self.count
        first, second = self.variances()
        return ratio(products, first[:, None], second)

    def cosine(self) -> Floats:
        """Return [first, second]; NaN where a vector is zero."""
        products, squares_a, squares_b = self.whole()
        return ratio(products, squares_a[:, None], squares_b)

    def whole(self) -> tuple[Floats, Floats, Floats]:
        """Return products and squares of the original vectors."""
        if self.shifts is None:
            return self.products, self.squares[0], self.squares[1]
        (shift_a, shift_b), (sum_a, sum_b), n = self.shifts, self.sums, self.count
        products = self.products + np.outer(sum_a, shift_b) + np.outer(shift_a, sum_b) + n * np.outer(shift_a, shift_b)
        squares = [q + 2 * s * c + n * c**2 for q, s, c in zip(self.squares, self.sums, self.shifts, strict=True)]
        return products, squares[0], squares[1]

    def totals(self) -> tuple[Floats, Floats]:
        """Return the sums of the original vectors."""
        shifts = self.shifts or (0 * self.sums[0], 0 * self.sums[1])
        return self.sums[0] + self.count * shifts[0], self.sums[1] + self.count * shifts[1]


def _shifts(piece: NDArray[Any]) -> Floats:
    """Return the shift of each vector: its mean in the first piece, if that is at least a thousand deviations."""
    mean, deviation = piece.mean(1, dtype=np.float64), piece.std(1, dtype=np.float64)
    return np.where(np.abs(mean) >= 1000 * deviation, mean, 0)


def ratio(products: Floats, first: Floats, second: Floats) -> Floats:
    """Return products / sqrt(first * second), within -1 .. 1. NaN where one of the two is not positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = products / (np.sqrt(first) * np.sqrt(second))
    found[~((first > 0) & (second > 0))] = np.nan
    return np.clip(found, -1, 1)
