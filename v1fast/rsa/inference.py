"""Whether similarities of dissimilarity matrices are above chance, and how high they could be."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from v1fast import _arrays, _choices, functional, ops
from v1fast.rsa._defined import CONSTANT, is_empty, is_undefined, scaled
from v1fast.rsa._matrices import Condensed, condensed, stimuli_of, to_squares
from v1fast.rsa._sums import Floats, ratio
from v1fast.rsa.similarity import METHODS, RSATOOLBOX_NAMES, compare, ranks

PERMUTED = ("pearson", "spearman", "rho-a", "cosine")
RESAMPLED = ("stimuli", "subjects", "both")
TIE = 1e-6  # a permuted similarity this close to the observed one counts as equal: products are float32
AVERAGED = 1 << 20  # numbers that are averaged at a time
DOUBTFUL = 1e-10  # times a resampling's squares: up to this variance, the values are checked for being all equal
WEIGHTS = 1 << 23  # weights of pairs that are held at a time


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

    Raises:
        ValueError: an operand does not fit, or single pairs are NaN.
    """
    method = RSATOOLBOX_NAMES.get(method, method)
    _choices.one_of("method", method, PERMUTED)
    if not 1 <= permutations < 2**32:
        raise ValueError(f"permutations: want 1 to 2**32 - 1, got {permutations}")
    a, b = _vectors_without_nan(_one_vector("rdm1", rdm1), _one_vector("rdm2", rdm2))
    stimuli = stimuli_of(len(a))
    if is_undefined(a[None], method)[0] or is_undefined(b[None], method)[0]:
        return _no_test(stimuli - 1 if shifts else permutations)
    factors = [_factor(vector, method) for vector in (a, b)]
    found = float(factors[0] @ factors[1])
    if np.isnan(found):  # an infinite entry
        return _no_test(stimuli - 1 if shifts else permutations)
    first, second = torch.from_numpy(to_squares(np.stack(factors, dtype=np.float32, casting="same_kind")))
    if shifts:
        places = torch.arange(stimuli, dtype=torch.int32)
        orders = (places + places[1:, None]) % stimuli
    else:
        orders = ops.random_permutations.random_permutations(torch.tensor([seed]), permutations, stimuli)
    null = ops.permuted_products.permuted_products(first, second, orders).numpy()
    p = (1 + np.count_nonzero(null >= found - TIE)) / (1 + len(null))
    return PermutationTest(found, null, p)


def _no_test(size: int) -> PermutationTest:
    """Return the result of an undefined similarity: NaN for the null distribution and p as well."""
    return PermutationTest(np.nan, np.full(max(0, size), np.nan), np.nan)


def _one_vector(name: str, given: Condensed | ArrayLike) -> NDArray[Any]:
    """Return one matrix as a vector [P]."""
    vectors, _ = condensed(name, given)
    if len(vectors) != 1:
        raise ValueError(f"{name}: want one matrix, got {len(vectors)}")
    return vectors[0]


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
        raise ValueError("rdm1, rdm2: want NaN in whole rows alone, got single pairs: relabelling would move them")
    i, j = (there[k] for k in np.triu_indices(len(there), 1))
    first, second = (to_squares(vector[None])[0][i, j] for vector in (a, b))
    return first, second


def _factor(vector: NDArray[Any], method: str) -> Floats:
    """Return a vector [P] whose sum of products with another one is the similarity, where that is defined."""
    values = ranks(vector[None])[0] if method in ("spearman", "rho-a") else scaled(vector[None])[0]
    if method != "cosine":
        with np.errstate(invalid="ignore"):
            values = values - values.mean()
    count = float(len(values))
    scale = np.sqrt((count**3 - count) / 12) if method == "rho-a" else np.linalg.norm(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return values / scale


def average_repeats(
    responses: ArrayLike | Tensor, stimuli: ArrayLike | None = None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean responses to each stimulus.

    Args:
        responses: [R, S, N], R repeats of S stimuli, or [T, N], T trials. NaN is left out: a neuron that was not
            recorded in a trial is averaged over the others.
        stimuli: [T], for trials: the stimulus of each trial.

    Returns:
        [S, N], and the S labels: 0 .. S - 1 or, for trials, those that occur, in ascending order.

    Raises:
        ValueError: an operand does not fit.
    """
    values = _arrays.to_array("responses", responses)
    if stimuli is None:
        if values.ndim != 3:
            raise ValueError(f"responses: want [repeats, S, N], or [T, N] with stimuli, got {values.shape}")
        return _nanmean(values), np.arange(values.shape[1])
    labels, places = _arrays.distinct("stimuli", stimuli)
    if values.ndim != 2 or places.shape != values.shape[:1]:
        raise ValueError(f"stimuli: want [T] for responses [T, N], got {places.shape} and {values.shape}")
    return np.stack([_nanmean(values, np.flatnonzero(places == k)) for k in range(len(labels))]), labels


def _nanmean(values: NDArray[Any], chosen: ArrayLike | None = None) -> NDArray[Any]:
    """Return the mean over the chosen entries of the first axis, by default all. NaN where there is no value.

    A few are processed at a time. For a recording mapped from a file, this needs only a few arrays of one repeat's
    size.
    """
    every = np.arange(len(values)) if chosen is None else np.asarray(chosen)
    total, count = np.zeros(values.shape[1:]), np.zeros(values.shape[1:], dtype=np.int64)
    step = max(1, AVERAGED // max(1, total.size))
    for begin in range(0, len(every), step):
        some = _arrays.floats("responses", values[every[begin : begin + step]])
        present = ~np.isnan(some)
        total += np.where(present, some, 0).sum(0, dtype=np.float64)
        count += present.sum(0)
    with np.errstate(invalid="ignore"):
        mean = total / count
    return mean.astype(np.float32 if values.dtype in (np.float16, np.float32) else np.float64)


def noise_ceiling(rdms: Condensed | ArrayLike, method: str = "pearson") -> tuple[float, float]:
    """How similar the true model would be to the subjects' matrices (Nili et al., PLoS Computational Biology 10, 2014).

    Args:
        rdms: a set of matrices, one for each of M >= 2 subjects, sessions or repeats.
        method: as for ``compare``. Before averaging, the matrices are ranked (spearman, rho-a, tau), z-scored
            (pearson) or divided by their norm (cosine), as in rsatoolbox.

    Returns:
        The lower bound is the mean similarity with the mean of the others, the upper bound that with the mean of all.
        Matrices without a similarity (all NaN, or constant; see ``v1fast.rsa``) are left out, with a RuntimeWarning.
        NaN if fewer than two are left. Positions that are NaN in any other matrix are left out of all.

    Raises:
        ValueError: an operand does not fit.
    """
    method = RSATOOLBOX_NAMES.get(method, method)
    _choices.one_of("method", method, METHODS)
    vectors, one = condensed("rdms", rdms)
    if one or len(vectors) < 2:
        raise ValueError(f"rdms: want a set of at least 2 matrices, got {len(vectors)}")
    given = len(vectors)
    vectors = vectors[~is_empty(vectors)]
    present = ~np.isnan(vectors).any(0)
    vectors = vectors[~is_undefined(vectors[:, present], method)]
    if not len(vectors):
        return np.nan, np.nan
    _say_left_out(given - len(vectors), given)
    if len(vectors) < 2:
        return np.nan, np.nan
    units = np.full(vectors.shape, np.nan)
    units[:, present] = _in_its_unit(vectors[:, present], method)
    total = units.sum(0)
    upper = [compare(vector, total, method) for vector in vectors]
    lower = [compare(vector, total - own, method) for vector, own in zip(vectors, units, strict=True)]
    return float(np.mean(lower)), float(np.mean(upper))


def _say_left_out(absent: int, given: int) -> None:
    """Warn about left-out matrices, at the line that calls the public function."""
    if absent:
        message = f"rdms: {absent} of {given} have no similarity (all NaN, or constant) and are left out of the mean"
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def _mean_of_defined(values: Floats, axis: int) -> Floats:
    """Return the mean of the defined values; NaN if there is none."""
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        found: Floats = np.where(present, values, 0).sum(axis) / present.sum(axis)
    return found


def _in_its_unit(vectors: NDArray[Any], method: str) -> Floats:
    """Return the vectors as the method sees them."""
    if method in ("spearman", "rho-a", "tau-a", "tau-b"):
        return ranks(vectors)
    values = scaled(vectors)
    if method in ("pearson", "whitened-pearson"):
        values -= values.mean(1, keepdims=True)
    return values / np.sqrt((values**2).mean(1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Result of ``bootstrap``.

    Attributes:
        similarity: [K], for each model, the mean over the subjects for which it is defined.
        samples: [B, K], the same for each resampling; NaN where it is undefined, for example if a resampling has only
            one category left.
        left_out: [K], the number of subjects for which it is undefined, although it is defined for others.
    """

    similarity: Floats
    samples: Floats
    left_out: NDArray[np.int64]

    @property
    def undefined(self) -> NDArray[np.int64]:
        """[K], the number of resamplings that are NaN. Intervals leave them out."""
        return np.isnan(self.samples).sum(0)

    def confidence(self, level: float = 0.95) -> Floats:
        """Return the lower and upper end [2, K] of the interval between percentiles of the defined resamplings.

        NaN if there are none, or if the similarity itself is undefined.
        """
        if not 0 < level < 1:
            raise ValueError(f"level: want more than 0 and less than 1, got {level}")
        tail = (1 - level) / 2
        found: Floats = np.full((2, self.samples.shape[1]), np.nan)
        there = ~np.isnan(self.similarity) & ~np.isnan(self.samples).all(0)
        found[:, there] = np.nanquantile(self.samples[:, there], [tail, 1 - tail], axis=0)
        return found


def bootstrap(
    rdms: Condensed | ArrayLike,
    models: Condensed | ArrayLike,
    method: str = "pearson",
    *,
    over: str = "stimuli",
    samples: int = 1000,
    seed: int = 0,
) -> Bootstrap:
    """The uncertainty of similarities, by resampling stimuli, subjects, or both, with replacement.

    Pairs of a stimulus with a copy of itself are left out: their dissimilarity of 0 carries no information (Nili et al.
    2014; Schütt et al., eLife 12, e82566, 2023).

    Args:
        rdms: one matrix, or one for each of M subjects, as for ``compare``.
        models: one or K of them, to which the similarities are computed.
        method: as for ``compare``. Pearson and cosine weight each pair by how often it was drawn, all resamplings in
            one product. The others are computed one resampling after another.
        over: "stimuli", "subjects" or "both".
        samples: B, the number of resamplings.
        seed: of the random draws.

    Returns:
        Similarities, and those of each resampling. Subjects without a similarity (all NaN, or constant; see
        ``v1fast.rsa``) are left out of the means, with a RuntimeWarning, and counted.

    Raises:
        ValueError: an operand does not fit.
    """
    method = RSATOOLBOX_NAMES.get(method, method)
    _choices.one_of("method", method, METHODS)
    _choices.one_of("over", over, RESAMPLED)
    (a, _), (b, _) = condensed("rdms", rdms), condensed("models", models)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"models: want {a.shape[1]} pairs of stimuli, as rdms have, got {b.shape[1]}")
    if samples < 1:
        raise ValueError(f"samples: want at least 1, got {samples}")
    draw, stimuli = np.random.default_rng(seed), stimuli_of(a.shape[1])
    similarity = compare(a, b, method)
    absent = np.isnan(similarity) & ~np.isnan(similarity).all(0)  # while other subjects have one
    _say_left_out(int(absent.any(1).sum()), len(a))
    if over == "subjects":
        each = np.broadcast_to(similarity, (samples, *similarity.shape))
    else:
        drawn = draw.integers(stimuli, size=(samples, stimuli))
        resample = _resample_by_weights if method in ("pearson", "cosine") else _resample_one_by_one
        each = resample(a, b, method, drawn)
    if over != "stimuli":
        chosen = draw.integers(len(a), size=(samples, len(a)))
        each = np.take_along_axis(each, chosen[:, :, None], 1)
    return Bootstrap(_mean_of_defined(similarity, 0), _mean_of_defined(each, 1), absent.sum(0))


def _resample_one_by_one(a: NDArray[Any], b: NDArray[Any], method: str, drawn: NDArray[np.int64]) -> Floats:
    """Return the similarities [B, M, K], one resampling after another."""
    matrices = [to_squares(vectors) for vectors in (a, b)]
    i, j = np.triu_indices(drawn.shape[1], 1)
    found = np.empty((len(drawn), len(a), len(b)))
    for sample, order in enumerate(drawn):
        first, second = order[i], order[j]
        a, b = (np.where(first == second, np.nan, matrix[:, first, second]) for matrix in matrices)
        found[sample] = compare(a, b, method)
    return found


def _resample_by_weights(a: NDArray[Any], b: NDArray[Any], method: str, drawn: NDArray[np.int64]) -> Floats:
    """Return the similarities [B, M, K]. A pair of stimuli that were drawn m and n times has weight m n."""
    i, j = np.triu_indices(drawn.shape[1], 1)
    empty = is_empty(a), is_empty(b)
    present = ~(np.isnan(a[~empty[0]]).any(0) | np.isnan(b[~empty[1]]).any(0))
    defined = [
        np.flatnonzero(~none & ~is_undefined(vectors[:, present], method))
        for none, vectors in zip(empty, (a, b), strict=True)
    ]
    if len(defined[0]) < len(a) or len(defined[1]) < len(b):
        found = np.full((len(drawn), len(a), len(b)), np.nan)
        if len(defined[0]) and len(defined[1]):
            keep = np.where(present, a[defined[0]], np.nan), np.where(present, b[defined[1]], np.nan)
            found[:, defined[0][:, None], defined[1]] = _resample_by_weights(*keep, method, drawn)
        return found
    i, j = i[present], j[present]
    given = a[:, present], b[:, present]
    first, second = (scaled(vectors) for vectors in given)
    if method == "pearson":  # otherwise squares would lose the deviations if means are large
        with np.errstate(invalid="ignore"):
            first, second = (vectors - vectors.mean(1, keepdims=True) for vectors in (first, second))
    counts = np.stack([np.bincount(order, minlength=drawn.shape[1]) for order in drawn]).astype(np.float64)
    products = (first[:, None] * second).reshape(-1, len(i))
    features = np.concatenate([np.ones((1, len(i))), first, second, first**2, second**2, products])
    step = max(1, WEIGHTS // max(1, len(i)))
    sums = np.concatenate(
        [(counts[k : k + step, i] * counts[k : k + step, j]) @ features.T for k in range(0, len(drawn), step)]
    )
    total, sum_a, sum_b, square_a, square_b, product = np.split(
        sums, np.cumsum([1, len(a), len(b), len(a), len(b)]), axis=1
    )
    product = product.reshape(len(drawn), len(a), len(b))
    least_a, least_b = (
        np.maximum(DOUBTFUL * square, total * (CONSTANT * np.finfo(vectors.dtype).eps) ** 2)
        for square, vectors in zip((square_a, square_b), given, strict=True)
    )
    if method == "pearson":
        with np.errstate(invalid="ignore"):
            square_a, square_b = square_a - sum_a**2 / total, square_b - sum_b**2 / total
            product = product - sum_a[:, :, None] * sum_b[:, None] / total[:, :, None]
    found = ratio(product, square_a[:, :, None], square_b[:, None])
    doubtful = (square_a <= least_a).any(1) | (square_b <= least_b).any(1)
    for sample in np.flatnonzero(doubtful):  # a remainder of rounding is no variance, and a small variance is imprecise
        found[sample] = _resample_one_by_one(a, b, method, drawn[sample : sample + 1])[0]
    return found


def neighbourhoods(
    positions: ArrayLike, *, radius: float | None = None, count: int | None = None
) -> list[NDArray[np.int64]]:
    """For each neuron or voxel, the indices of those around it, including itself.

    Args:
        positions: [N, D], such as cortical coordinates.
        radius: all within this distance; or
        count: this many nearest ones.

    Raises:
        ValueError: not exactly one of the two, or a count larger than N.
    """
    from scipy.spatial import cKDTree

    points = _arrays.floats("positions", positions).astype(np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ValueError(f"positions: want finite [N, D], got {points.shape}")
    if (radius is None) == (count is None):
        raise ValueError("radius, count: want one of the two")
    tree = cKDTree(points)
    if radius is not None:
        return [np.sort(np.array(found, dtype=np.int64)) for found in tree.query_ball_point(points, radius)]
    if not 1 <= (count or 0) <= len(points):
        raise ValueError(f"count: want 1 .. {len(points)}, got {count}")
    _, nearest = tree.query(points, k=np.arange(1, (count or 0) + 1))
    return list(np.sort(nearest.astype(np.int64), axis=1))


def searchlight_rdms(
    responses: ArrayLike | Tensor,
    neighbours: list[NDArray[np.int64]],
    *,
    method: str = "correlation",
    noise: ArrayLike | Sequence[ArrayLike] | None = None,
    folds: ArrayLike | None = None,
    stimuli: ArrayLike | None = None,
    batch: int = 1 << 24,
) -> NDArray[Any]:
    """The dissimilarity matrix of each neighbourhood of neurons; see ``neighbourhoods``.

    Neighbourhoods of the same size are computed together, many matrices in one call. With a noise that is not diagonal,
    they are computed one by one.

    Args:
        responses: [S, N]; for crossnobis [R, N].
        neighbours: for each of C centres, the indices of its neurons.
        method: as for ``functional.rdm``.
        noise: for mahalanobis and crossnobis. An array is the precision of all neurons: [N], [N, N] or, for crossnobis,
            that of each fold [F, N, N]. A neighbourhood's precision is the inverse of its part of their covariance,
            which is not its part of the precision. A list has the precision of each of C neighbourhoods, as
            ``functional.rdm`` takes it for its neurons.
        folds: [R], for crossnobis, as for ``functional.rdm``.
        stimuli: [R], the same.
        batch: numbers that are gathered at a time.

    Returns:
        [C, S (S - 1) / 2]; float64 if responses are, otherwise float32. NaN for a neighbourhood without neurons.

    Raises:
        ValueError: an operand does not fit.
    """
    values = _searchlight_responses(responses)
    options = _SearchlightOptions(method, folds, stimuli, batch)
    dtype = np.float64 if values.dtype == np.float64 else np.float32
    found = np.full((len(neighbours), _searchlight_pairs(len(values), options)), np.nan, dtype)
    for chosen, rdms in _searchlight(values, neighbours, noise, options):
        found[chosen] = rdms
    return found


def searchlight(
    responses: ArrayLike | Tensor,
    neighbours: list[NDArray[np.int64]],
    models: Condensed | ArrayLike,
    method: str = "pearson",
    *,
    dissimilarity: str = "correlation",
    noise: ArrayLike | Sequence[ArrayLike] | None = None,
    folds: ArrayLike | None = None,
    stimuli: ArrayLike | None = None,
    batch: int = 1 << 24,
) -> Floats:
    """How similar the dissimilarity matrix of each neighbourhood is to those of models.

    Args:
        responses: [S, N]; for crossnobis [R, N].
        neighbours: for each of C centres, the indices of its neurons.
        models: one matrix or K of them, as for ``compare``.
        method: as for ``compare``.
        dissimilarity: as the method of ``searchlight_rdms``.
        noise: as for ``searchlight_rdms``.
        folds: [R], the same.
        stimuli: [R], the same.
        batch: numbers that are gathered at a time. Only the matrices of one call are held in memory.

    Returns:
        [C, K]. NaN for a neighbourhood without neurons.

    Raises:
        ValueError: an operand does not fit.
    """
    values = _searchlight_responses(responses)
    options = _SearchlightOptions(dissimilarity, folds, stimuli, batch)
    pairs = _searchlight_pairs(len(values), options)
    vectors, _ = condensed("models", models)
    if vectors.shape[1] != pairs:
        raise ValueError(f"models: want {pairs} pairs of stimuli, as responses have, got {vectors.shape[1]}")
    found = np.full((len(neighbours), len(vectors)), np.nan)
    for chosen, rdms in _searchlight(values, neighbours, noise, options):
        # A NaN in one matrix is left out of that matrix only.
        together = [slice(None)] if not np.isnan(rdms).any() else [slice(k, k + 1) for k in range(len(rdms))]
        for part in together:
            found[chosen[part]] = compare(rdms[part], vectors, method)
    return found


class _SearchlightOptions(NamedTuple):
    method: str
    folds: ArrayLike | None
    stimuli: ArrayLike | None
    batch: int


def _searchlight_responses(responses: ArrayLike | Tensor) -> NDArray[Any]:
    values = _arrays.to_array("responses", responses)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"responses: want [S >= 2, N], got {values.shape}")
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _searchlight_pairs(rows: int, options: _SearchlightOptions) -> int:
    """Return the number of pairs of stimuli. A stimulus may have several rows."""
    stimuli = rows
    if options.stimuli is not None:
        stimuli = len(_arrays.distinct("stimuli", options.stimuli)[0])
    elif options.folds is not None:
        stimuli = rows // max(1, len(_arrays.distinct("folds", options.folds)[0]))
    return stimuli * (stimuli - 1) // 2


def _indices(neighbours: list[NDArray[np.int64]], neurons: int) -> list[NDArray[np.int64]]:
    """Return the indices of each centre, within 0 .. N - 1."""
    found = []
    for centre, given in enumerate(neighbours):
        each = _arrays.to_array(f"neighbours[{centre}]", given)
        if each.ndim != 1 or (each.size and (each.dtype.kind not in "iu" or each.min() < 0 or each.max() >= neurons)):
            raise ValueError(f"neighbours[{centre}]: want indices of neurons, 0 .. {neurons - 1}, got {each}")
        found.append(each.astype(np.int64))
    return found


def _searchlight(
    values: NDArray[Any],
    neighbours: list[NDArray[np.int64]],
    precision: ArrayLike | Sequence[ArrayLike] | None,
    options: _SearchlightOptions,
) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
    """Yield centres and their matrices."""
    method, folds, stimuli, batch = options
    labels: dict[str, Any] = {"folds": folds, "stimuli": stimuli}
    neighbours = _indices(neighbours, values.shape[1])
    given: Any = precision
    diagonal = precision is not None and not isinstance(precision, (list, tuple)) and np.ndim(given) == 1
    if precision is not None and not diagonal:
        around = _precisions_around(precision, neighbours, values.shape[1])
        for c, (near, its_own) in enumerate(zip(neighbours, around, strict=True)):
            if len(near):
                of_one = functional.rdm(values[:, near], method=method, noise=its_own, condensed=True, **labels)
                yield np.array([c]), of_one[None]
        return
    if diagonal:
        values = values * _square_roots(_arrays.floats("noise", precision), method, values)
    sizes = np.array([len(each) for each in neighbours], dtype=np.int64)
    for size in np.unique(sizes[sizes > 0]):
        centres = np.flatnonzero(sizes == size)
        step = max(1, batch // int(size * len(values)))
        for begin in range(0, len(centres), step):
            chosen = centres[begin : begin + step]
            gathered = np.take(values, np.stack([neighbours[c] for c in chosen]), axis=1)  # [S, centres, size]
            yield chosen, functional.rdm(gathered.swapaxes(0, 1), method=method, condensed=True, **labels)


def _square_roots(precision: NDArray[Any], method: str, values: NDArray[Any]) -> NDArray[Any]:
    """Return the factors [N] that include a diagonal precision in the responses."""
    if method not in ("mahalanobis", "crossnobis"):
        raise ValueError(f"noise: want None beside method {method!r}, got an array")
    if precision.shape != (values.shape[1],) or (precision < 0).any():
        raise ValueError(f"noise: want [N] = ({values.shape[1]},), none negative, got {precision.shape}")
    return np.sqrt(precision.astype(np.float64)).astype(values.dtype)


def _precisions_around(
    precision: ArrayLike | Sequence[ArrayLike], neighbours: list[NDArray[np.int64]], neurons: int
) -> Iterator[NDArray[Any]]:
    """Return the precision of each neighbourhood: the given one, or the inverse of its part of the whole covariance."""
    if isinstance(precision, (list, tuple)):
        if len(precision) != len(neighbours):
            raise ValueError(f"noise: want {len(neighbours)}, one for each neighbourhood, got {len(precision)}")
        yield from (_arrays.floats(f"noise[{c}]", each).astype(np.float64) for c, each in enumerate(precision))
        return
    array = _arrays.floats("noise", precision).astype(np.float64)
    if array.ndim not in (2, 3) or array.shape[-2:] != (neurons, neurons):
        raise ValueError(f"noise: want [N], [N, N] or [F, N, N] with N = {neurons}, got {array.shape}")
    try:
        covariance = np.linalg.inv(array)
        yield from (np.linalg.inv(covariance[..., np.reshape(near, (-1, 1)), near]) for near in neighbours)
    except np.linalg.LinAlgError:
        raise ValueError("noise: want a precision matrix that has an inverse, got a singular one") from None
