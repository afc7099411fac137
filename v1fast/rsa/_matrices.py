"""The accepted forms of sets of dissimilarity matrices."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from v1fast import _arrays

ROUNDING = 1e-6  # times the mean entry: what float32 rounding leaves on a diagonal that should be zero
DOUBTFUL = 1e-2  # times the mean entry: an asymmetry between this and rounding is ambiguous
ROWS = 256  # that are processed together


class Condensed(Protocol):
    """The part of rsatoolbox's RDMs that is used."""

    def get_vectors(self) -> NDArray[Any]:
        """[M, P]."""


def stimuli_of(pairs: int) -> int:
    """Return S, for which there are S (S - 1) / 2 pairs.

    Raises:
        ValueError: there is no such number.
    """
    stimuli = (1 + math.isqrt(1 + 8 * pairs)) // 2
    if stimuli * (stimuli - 1) // 2 != pairs:
        raise ValueError(f"rdm: want the S (S - 1) / 2 pairs of S stimuli, got {pairs}")
    return stimuli


def condensed(name: str, given: Condensed | ArrayLike) -> tuple[NDArray[Any], bool]:
    """Return [M, P] floating, and whether the input was one matrix rather than a set; see ``compare`` for the forms."""
    matrices: Any = getattr(given, "rdm_obj", None)  # a model of rsatoolbox
    if matrices is not None:
        fixed: Any = getattr(given, "rdm", None)
        given = fixed if np.ndim(fixed) == 1 else matrices
    if hasattr(given, "get_vectors"):
        vectors = _arrays.floats(name, given.get_vectors())  # a set, even where it is square
        if vectors.ndim != 2 or stimuli_of(vectors.shape[1]) < 2:
            raise ValueError(f"{name}: want RDMs of at least two stimuli, got {vectors.shape}")
        return vectors, False
    array = _arrays.floats(name, given)
    if array.ndim == 3:
        if array.shape[1] != array.shape[2]:
            raise ValueError(f"{name}: want [M, S, S], got {array.shape}")
        for k, matrix in enumerate(array):
            _require_matrix(f"{name}[{k}]", matrix)
    if array.ndim == 3 or (array.ndim == 2 and _is_matrix(name, array)):
        i, j = np.triu_indices(array.shape[-1], 1)
        vectors = array[..., i, j]
    elif array.ndim in (1, 2):
        vectors = array
    else:
        raise ValueError(f"{name}: want [S, S], [P], [M, S, S] or [M, P], got {array.shape}")
    if stimuli_of(vectors.shape[-1]) < 2:
        raise ValueError(f"{name}: want at least two stimuli, got {array.shape}")
    return (vectors[None], True) if vectors.ndim == 1 else (vectors, False)


def one_matrix(name: str, given: Condensed | ArrayLike) -> NDArray[Any]:
    """Return one matrix as a vector [P].

    Raises:
        ValueError: the operand does not fit, or there are several.
    """
    vectors, _ = condensed(name, given)
    if len(vectors) != 1:
        raise ValueError(f"{name}: want one matrix, got {len(vectors)}")
    return vectors[0]


def squares(name: str, given: Condensed | ArrayLike) -> tuple[NDArray[Any], bool]:
    """Return [M, S, S] with 0 on the diagonal, and whether the input was one matrix."""
    vectors, one = condensed(name, given)
    return to_squares(vectors), one


def to_squares(vectors: NDArray[Any]) -> NDArray[Any]:
    """[M, P] -> [M, S, S]."""
    stimuli = stimuli_of(vectors.shape[1])
    matrices = np.zeros((len(vectors), stimuli, stimuli), vectors.dtype)
    begin = 0
    for i in range(stimuli - 1):  # slices: index arrays take four times as long
        row = vectors[:, begin : begin + stimuli - 1 - i]
        matrices[:, i, i + 1 :] = row
        matrices[:, i + 1 :, i] = row
        begin += row.shape[1]
    return matrices


def _require_matrix(name: str, matrix: NDArray[Any]) -> None:
    """Raise ValueError unless the square matrix is symmetric and zero on its diagonal, up to rounding."""
    asymmetry, diagonal = _deviations(matrix)
    if max(asymmetry, diagonal) > ROUNDING:
        raise ValueError(
            f"{name}: want a symmetric matrix with an empty diagonal, got entries that differ from their counterparts "
            f"by up to {asymmetry:.2g} of the mean entry, and {diagonal:.2g} of it on the diagonal"
        )


def _is_matrix(name: str, array: NDArray[Any]) -> bool:
    """Whether [A, B] is one matrix rather than A rows of pairs.

    It is one matrix if it is symmetric with a zero diagonal up to rounding. It is a set if it is far from symmetric.
    Anything in between is an error, not a guess.
    """
    size = array.shape[0]
    if size != array.shape[1] or size < 2:
        return False
    asymmetry, diagonal = _deviations(array)
    if max(asymmetry, diagonal) <= ROUNDING:
        return True
    if not _is_count_of_pairs(size):  # then it cannot be a set of rows of pairs
        _require_matrix(name, array)
    if asymmetry <= DOUBTFUL:
        raise ValueError(
            f"{name}: {array.shape} may be one matrix or {size} rows of {size} pairs: entries differ from their "
            f"counterparts by up to {asymmetry:.2g} of the mean entry, and there is {diagonal:.2g} of it on the "
            f"diagonal. To be plain, give one matrix as matrix[numpy.triu_indices({size}, 1)], a set as [M, S, S]"
        )
    return False


def _is_count_of_pairs(size: int) -> bool:
    try:
        return stimuli_of(size) >= 2
    except ValueError:
        return False


def _deviations(matrix: NDArray[Any]) -> tuple[float, float]:
    """Return the asymmetry of a square matrix and the size of its diagonal, in units of the mean magnitude.

    A NaN or infinite entry has deviation 0 if its counterpart is the same, and infinity otherwise. NaN on the diagonal
    counts as zero.
    """
    total, count, asymmetry = 0.0, 0, 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for begin in range(0, len(matrix), ROWS):  # in parts: a second copy of a large matrix would not fit into memory
            rows, others = matrix[begin : begin + ROWS], matrix[:, begin : begin + ROWS].T
            there = np.isfinite(rows)
            total += float(np.abs(rows, where=there, out=np.zeros_like(rows)).sum(dtype=np.float64))
            count += int(there.sum())
            same = (rows == others) | (np.isnan(rows) & np.isnan(others))
            if not same.all():
                difference = np.abs(rows - others, dtype=np.float64)[~same]
                asymmetry = max(asymmetry, float(np.where(np.isnan(difference), np.inf, difference).max()))
        diagonal = np.abs(np.diagonal(matrix).astype(np.float64))
        largest = float(np.where(np.isnan(diagonal), 0, diagonal).max(initial=0))
    mean = total / max(1, count)
    return tuple(0.0 if found == 0 else (found / mean if mean else np.inf) for found in (asymmetry, largest))  # type: ignore[return-value]
