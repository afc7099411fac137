"""Whether dissimilarity matrices are more similar than with permuted stimuli."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from v1fast import _choices, ops
from v1fast.rsa._corrections import false_discovery, maximum_of_standardized
from v1fast.rsa._defined import is_constant, is_undefined, scaled
from v1fast.rsa._matrices import Condensed, condensed, one_matrix, stimuli_of, to_squares
from v1fast.rsa._sums import Floats
from v1fast.rsa.similarity import RSATOOLBOX_NAMES, ranks

PERMUTED = ("pearson", "spearman", "rho-a", "cosine")
SINGLE = (
    1e-5  # how far a correlation in float32 may be from that in float64: closer to the observed one, it is repeated
)
TIE = 2e-6  # times 1 / sqrt(P), the spread of correlations between unrelated matrices: such correlations are equal
ROUNDED = 16  # units in the last place of the entries: what their rounding may do to a correlation, in its spread


@dataclasses.dataclass(frozen=True)
class PermutationTest:
    """Result of ``permutation_test``.

    Attributes:
        similarity: of the two matrices.
        null: [P], similarities of the first matrix with each permutation of the second.
        p: one-sided: the fraction of permutations, including the identity, that are at least as similar. All three are
            NaN where the similarity is undefined.
    """

    similarity: float
    null: Floats
    p: float


@dataclasses.dataclass(frozen=True)
class PermutationTests:
    """Result of ``permutation_tests``.

    Attributes:
        similarity: [K], of the matrix with each model.
        null: [P, K], similarities with each permutation, the same ones for all models.
        p: [K], as of ``PermutationTest``: one-sided, uncorrected.
        familywise: [K], one-sided p, corrected for all K models: the fraction of permutations, including the identity,
            in which the largest of K similarities is at least as large. For this each is in standard deviations of its
            own null distribution. If no model is related, one of K is below .05 with a probability of 5 %.
        fdr: [K], one-sided p, corrected as by Benjamini & Hochberg (1995): of the models below .05, at most 5 % are
            expected to be unrelated.
    """

    similarity: Floats
    null: Floats
    p: Floats
    familywise: Floats
    fdr: Floats


def permutation_test(
    rdm1: Condensed | ArrayLike,
    rdm2: Condensed | ArrayLike,
    method: str = "pearson",
    *,
    permutations: int = 1000,
    shifts: bool = False,
    seed: int = 0,
) -> PermutationTest:
    """Test whether two dissimilarity matrices are more similar than with randomly permuted stimulus labels.

    The rows and columns of the second matrix are permuted at random (Kriegeskorte, Mur & Bandettini, Frontiers in
    Systems Neuroscience 2, 2008). Each permutation takes one sum of products. Stimuli along a smooth axis, such as
    orientation, are not exchangeable: neighbours are similar in any system. Random permutations separate neighbours, so
    the chance level looks lower than it is. ``shifts`` rotates the stimuli around the axis instead, which keeps
    neighbours together. It tells nothing about a matrix that no shift changes, such as an ideal matrix of the axis.

    Permutations are ordered by the correlation of the matrices (of their ranks), which orders all four measures alike.
    So p depends neither on the scale of a matrix nor on a constant that is added to it, as far as its entries keep
    their digits. Cosine and Pearson have the same p. Correlations that differ by no more than rounding are equal.

    Args:
        rdm1: one matrix, as for ``compare``.
        rdm2: another, of the same S stimuli.
        method: "pearson", "spearman", "rho-a" or "cosine".
        permutations: number of random permutations.
        shifts: use all S - 1 circular shifts instead, for stimuli in order around a circular axis.
        seed: of the permutations.

    Returns:
        Similarity, null distribution and p. Stimuli whose row is NaN in either matrix are left out. All is NaN where
        the similarity is undefined (see ``v1fast.rsa``): a matrix is constant (cosine: zero), or no stimuli are left.
        For cosine, a constant matrix has the same similarity in each permutation, and p = 1.

    Raises:
        ValueError: an operand does not fit, or single pairs are NaN.

    >>> import numpy as np
    >>> from v1fast.functional import rdm
    >>> rng = np.random.default_rng(0)
    >>> stimuli = rng.normal(size=(20, 5))
    >>> permutation_test(rdm(stimuli), rdm(stimuli + 0.1 * rng.normal(size=(20, 5)))).p < 0.01
    True
    """
    method = RSATOOLBOX_NAMES.get(method, method)
    _choices.one_of("method", method, PERMUTED)
    if not 1 <= permutations < 2**32:
        raise ValueError(f"permutations: want 1 to 2**32 - 1, got {permutations}")
    a, b = _vectors_without_nan(one_matrix("rdm1", rdm1), one_matrix("rdm2", rdm2))
    stimuli = stimuli_of(len(a))
    count = stimuli - 1 if shifts else permutations
    if is_undefined(a[None], method)[0] or is_undefined(b[None], method)[0]:
        return _no_test(count)
    parts = [_parts(vector, method) for vector in (a, b)]
    if any(np.isnan(part.norm) for part in parts):  # an infinite entry
        return _no_test(count)
    if any(part.constant for part in parts):
        found = float(_similarity(0.0, parts, method))
        return PermutationTest(found, np.full(count, found), 1.0)
    if shifts:
        places = torch.arange(stimuli, dtype=torch.int32)
        orders = (places + places[1:, None]) % stimuli
    else:
        orders = ops.random_permutations.random_permutations(torch.tensor([seed]), permutations, stimuli)
    correlation = float(parts[0].deviations @ parts[1].deviations)
    null = _correlations(parts[0].deviations, parts[1].deviations, orders, correlation)
    tie = TIE / np.sqrt(len(a)) + ROUNDED * sum(part.rounding for part in parts)
    p = float((1 + np.count_nonzero(null >= correlation - tie)) / (1 + len(null)))
    return PermutationTest(float(_similarity(correlation, parts, method)), _similarity(null, parts, method), p)


def permutation_tests(
    rdm: Condensed | ArrayLike,
    models: Condensed | ArrayLike,
    method: str = "pearson",
    *,
    permutations: int = 1000,
    shifts: bool = False,
    seed: int = 0,
) -> PermutationTests:
    """Test each of K models as ``permutation_test`` does, with p that are corrected for their number.

    Args:
        rdm: one matrix, as for ``compare``.
        models: one or K of them, of the same stimuli.
        method: as for ``permutation_test``, as are the others.
        permutations: number of random permutations.
        shifts: use circular shifts instead.
        seed: of the permutations.

    Returns:
        Similarities, null distributions and p. A model whose similarity is undefined has NaN, and is not counted.

    Raises:
        ValueError: an operand does not fit, or single pairs are NaN.
    """
    vectors, _ = condensed("models", models)
    each = [
        permutation_test(rdm, vector, method, permutations=permutations, shifts=shifts, seed=seed) for vector in vectors
    ]
    similarity, p = (np.array([getattr(test, name) for test in each]) for name in ("similarity", "p"))
    # Stimuli that are NaN in one model are not shifted there: that model has fewer shifts.
    least = min(len(test.null) for test in each)
    null = np.stack([test.null[:least] for test in each], 1)
    return PermutationTests(similarity, null, p, maximum_of_standardized(similarity, null, p), false_discovery(p))


def _no_test(size: int) -> PermutationTest:
    """Return the result of an undefined similarity: NaN for the null distribution and p as well."""
    return PermutationTest(np.nan, np.full(max(0, size), np.nan), np.nan)


def _vectors_without_nan(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return both vectors without the stimuli whose row is NaN."""
    if a.shape != b.shape:
        raise ValueError(f"rdm2: want {stimuli_of(len(a))} stimuli, as rdm1 has, got {stimuli_of(len(b))}")
    absent = np.isnan(a) | np.isnan(b)
    if not absent.any():
        return a, b
    empty = to_squares(absent[None])[0]
    there = np.flatnonzero(empty.sum(0) < len(empty) - 1)
    if empty[np.ix_(there, there)].any():
        raise ValueError("rdm1, rdm2: want NaN in whole rows alone, got single pairs: a permutation would move them")
    i, j = (there[k] for k in np.triu_indices(len(there), 1))
    first, second = (to_squares(vector[None])[0][i, j] for vector in (a, b))
    return first, second


class _Parts(NamedTuple):
    """A vector [P]: its mean, and its deviations in units of their norm.

    ``rounding`` is what an error of one unit in the last place in each entry does to a correlation; ``whole`` is the
    norm of the vector itself.
    """

    mean: float
    norm: float
    deviations: Floats
    whole: float
    rounding: float
    constant: bool


def _parts(vector: NDArray[Any], method: str) -> _Parts:
    ranked = method in ("spearman", "rho-a")
    values = ranks(vector[None])[0] if ranked else scaled(vector[None])[0]
    with np.errstate(invalid="ignore"):
        mean = float(values.mean())
        deviations = values - mean
    norm, whole = float(np.linalg.norm(deviations)), float(np.linalg.norm(values))
    constant = bool(is_constant(vector[None])[0])
    epsilon = np.finfo(np.float64 if ranked else vector.dtype).eps
    with np.errstate(invalid="ignore", divide="ignore"):
        rounding = float(epsilon * np.divide(whole, norm)) / np.sqrt(len(values))
        return _Parts(mean, norm, deviations / norm, whole, rounding, constant)


def _similarity(correlation: Any, parts: list[_Parts], method: str) -> Any:
    """Return the measure for a correlation of the deviations: it grows with it."""
    first, second = parts
    count = float(len(first.deviations))
    if method == "rho-a":
        return correlation * (first.norm * second.norm * 12 / (count**3 - count))
    if method == "cosine":
        products = count * first.mean * second.mean + correlation * first.norm * second.norm
        return np.clip(products / (first.whole * second.whole), -1, 1)
    return correlation


def _correlations(first: Floats, second: Floats, orders: torch.Tensor, observed: float) -> Floats:
    """Return the sums of products [count] with the second vector's permutations.

    They are computed in float32. Those that could be equal to the observed one are computed again in float64.
    """
    squares = to_squares(np.stack([first, second]))
    narrow = torch.from_numpy(squares.astype(np.float32))
    null: Floats = ops.permuted_products.permuted_products(narrow[0], narrow[1], orders).numpy()
    i, j = np.triu_indices(len(squares[0]), 1)
    for k in np.flatnonzero(np.abs(null - observed) <= SINGLE):
        order = orders[k].numpy()
        null[k] = first @ squares[1][order[i], order[j]]
    return null
