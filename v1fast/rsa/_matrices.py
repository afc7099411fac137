"""The forms that sets of dissimilarity matrices come in."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


class Condensed(Protocol):
    """What rsatoolbox's RDMs have."""

    def get_vectors(self) -> NDArray[Any]:
        """[M, P]."""


def stimuli_of(pairs: int) -> int:
    """S, of which there are S (S - 1) / 2 pairs.

    Raises:
        ValueError: there is no such number.
    """
    stimuli = (1 + math.isqrt(1 + 8 * pairs)) // 2
    if stimuli * (stimuli - 1) // 2 != pairs:
        raise ValueError(f"rdm: want the S (S - 1) / 2 pairs of S stimuli, got {pairs}")
    return stimuli


def condensed(name: str, given: Condensed | ArrayLike) -> tuple[NDArray[Any], bool]:
    """[M, P] floating, and whether it was one matrix rather than a set; see ``compare`` for what may be given."""
    array = _array(name, given)
    if array.ndim == 3 or (array.ndim == 2 and _is_matrix(array)):
        if array.shape[-1] != array.shape[-2]:
            raise ValueError(f"{name}: want [M, S, S], got {array.shape}")
        i, j = np.triu_indices(array.shape[-1], 1)
        vectors = array[..., i, j]
    elif array.ndim in (1, 2):
        vectors = array
    else:
        raise ValueError(f"{name}: want [S, S], [P], [M, S, S] or [M, P], got {array.shape}")
    if stimuli_of(vectors.shape[-1]) < 2:
        raise ValueError(f"{name}: want at least two stimuli, got {array.shape}")
    return (vectors[None], True) if vectors.ndim == 1 else (vectors, False)


def squares(name: str, given: Condensed | ArrayLike) -> tuple[NDArray[Any], bool]:
    """[M, S, S] with 0 on the diagonal, and whether it was one matrix."""
    vectors, one = condensed(name, given)
    return to_squares(vectors), one


def to_squares(vectors: NDArray[Any]) -> NDArray[Any]:
    """[M, P] -> [M, S, S]."""
    stimuli = stimuli_of(vectors.shape[1])
    matrices = np.zeros((len(vectors), stimuli, stimuli), vectors.dtype)
    begin = 0
    for i in range(stimuli - 1):  # slices: arrays of indices take four times as long
        row = vectors[:, begin : begin + stimuli - 1 - i]
        matrices[:, i, i + 1 :] = row
        matrices[:, i + 1 :, i] = row
        begin += row.shape[1]
    return matrices


def _array(name: str, given: Any) -> NDArray[Any]:
    if hasattr(given, "get_vectors"):
        given = given.get_vectors()
    elif isinstance(given, Tensor):
        given = given.detach().cpu().numpy()
    array = np.asarray(given)
    if array.dtype.kind in "iub":
        return array.astype(np.float64)
    if array.dtype.kind != "f":
        raise ValueError(f"{name}: want numbers, got {array.dtype}")
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _is_matrix(array: NDArray[Any]) -> bool:
    """Rows of pairs are never symmetric with an empty diagonal, unless they are all empty."""
    if array.shape[0] != array.shape[1]:
        return False
    diagonal = np.diagonal(array)
    return bool(((diagonal == 0) | np.isnan(diagonal)).all()) and np.array_equal(array, array.T, equal_nan=True)
