"""Means over repeats, and searchlights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from v1fast import _arrays, functional
from v1fast.rsa._matrices import Condensed, condensed
from v1fast.rsa._sums import Floats
from v1fast.rsa.similarity import compare

AVERAGED = 1 << 20  # numbers that are averaged at a time


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
