"""Low-dimensional maps of representations, and tuning along an axis of stimuli."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from v1fast import _arrays, functional
from v1fast.rsa._matrices import Condensed, squares

Floats = NDArray[np.float64]
LOOKED_AT = 1 << 22  # numbers that are processed together
WITHOUT_SCALE = 40  # powers of two: squares of magnitudes from 2^-40 to 2^40 are well within float32
NEGLIGIBLE = 1e-4  # of all variance: more than the negative eigenvalues that float32 rounding leaves
DENSE = 1000  # stimuli up to which all eigenvalues are computed; above, iterations for a few of them are faster


@dataclasses.dataclass(frozen=True)
class Map:
    """Stimuli in a few dimensions.

    Attributes:
        scores: [S, K], in descending order of variance; each column's largest entry is positive.
        explained: [K], the fraction of the variance in each dimension, in 0 .. 1, of all together at most 1: the
            eigenvalue over the sum of the positive eigenvalues (see ``mds``). NaN if all stimuli are the same.
    """

    scores: Floats
    explained: Floats


def pca(responses: ArrayLike | Tensor, components: int = 20) -> Map:
    """Principal components of the stimuli.

    The scores are those of a singular value decomposition of the responses minus their mean over stimuli. They are
    computed from distances between stimuli: one symmetric product by the kernel of the dissimilarity matrices, with
    float64 products, and the largest eigenvalues of an S x S matrix.

    Args:
        responses: [S, N].
        components: K, at most min(S, N).

    Returns:
        Scores and explained variance.

    Raises:
        ValueError: an operand does not fit, or a response is not finite.
    """
    values = _arrays.to_array("responses", responses)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"responses: want [S >= 2, N], got {values.shape}")
    if not 1 <= components <= min(values.shape):
        raise ValueError(f"components: want 1 .. {min(values.shape)}, got {components}")
    exponent = _exponent(_largest("responses", values))
    if abs(exponent) > WITHOUT_SCALE:  # squares of very large or small values would overflow or underflow
        values = np.ldexp(values.astype(np.float64), -exponent)
    distances = functional.rdm(values, method="euclidean", accuracy="high")
    found = _principal(distances.astype(np.float64) * values.shape[1], components, euclidean=True)
    return found if abs(exponent) <= WITHOUT_SCALE else Map(np.ldexp(found.scores, exponent), found.explained)


def mds(rdm: Condensed | ArrayLike, components: int = 2) -> Map:
    """Classical multidimensional scaling of one dissimilarity matrix (Torgerson, Psychometrika 17, 1952).

    Args:
        rdm: one matrix, as for ``compare``. Its entries are treated as squared distances, which those of
            ``functional.rdm`` are up to a factor (correlation, cosine and euclidean).
        components: K.

    Returns:
        Scores whose squared distances approximate the dissimilarities as well as K dimensions allow, and the fraction
        that each dimension explains: its eigenvalue over the sum of the positive eigenvalues of the doubly centred
        matrix. For Euclidean distances this is the fraction of variance, as in ``pca``. Other matrices, such as ranks,
        or cross-validated distances, have negative eigenvalues too, which no map shows. They are left out of the sum
        (Mardia, Kent & Bibby, Multivariate Analysis, 1979, section 14.4, has the sum of magnitudes instead, which is
        never smaller). A dimension of a negative eigenvalue has scores of 0 and explains 0.

    Raises:
        ValueError: an operand does not fit, or an entry is NaN.

    Example:
        >>> import numpy as np
        >>> from v1fast import functional, rsa
        >>> corners = np.array([[0.0, 0.0], [0.0, 3.0], [4.0, 0.0], [4.0, 3.0]])
        >>> rsa.mds(functional.rdm(corners, method="euclidean")).explained.round(2).tolist()
        [0.64, 0.36]
    """
    matrices, _ = squares("rdm", rdm)
    if len(matrices) != 1 or not np.isfinite(matrices).all():
        undefined = int((~np.isfinite(matrices)).any(0).any(0).sum())
        raise ValueError(
            f"rdm: want one matrix without NaN or infinity, got {len(matrices)}, with some for {undefined} stimuli"
        )
    if not 1 <= components < matrices.shape[1]:
        raise ValueError(f"components: want 1 .. {matrices.shape[1] - 1}, got {components}")
    exponent = 2 * (_exponent(float(np.abs(matrices).max())) // 2)  # even, because the scores have half the exponent
    found = _principal(np.ldexp(matrices[0].astype(np.float64), -exponent), components)
    return Map(np.ldexp(found.scores, exponent // 2), found.explained)


def _exponent(largest: float) -> int:
    """Return the exponent of the power of two that scales ``largest`` to 0.5 .. 1."""
    return math.frexp(largest)[1] if largest else 0


def _largest(name: str, values: NDArray[Any]) -> float:
    """Return the largest magnitude, searched a few rows at a time: the values may be mapped from a file.

    Raises:
        ValueError: a value is not finite.
    """
    largest, step = 0.0, max(1, LOOKED_AT // max(1, values.shape[1]))
    for begin in range(0, len(values), step):
        some = values[begin : begin + step]
        largest = max(largest, abs(float(some.min())), abs(float(some.max())))
        if not math.isfinite(largest) or (some.dtype.kind == "f" and np.isnan(some).any()):
            raise ValueError(f"{name}: want finite values, got NaN or infinity")
    return largest


def _principal(distances: Floats, components: int, euclidean: bool = False) -> Map:
    """Return the map of squared distances [S, S], from their doubly centred matrix.

    If they are known to be ``euclidean``, there are no negative eigenvalues.
    """
    means = distances.mean(0)
    gram = (means[:, None] + means - distances - means.mean()) / 2
    size = len(gram)
    if size <= DENSE or components > size // 4:
        eigenvalues, vectors = scipy.linalg.eigh(gram)
        total = np.clip(eigenvalues, 0, None).sum()
        eigenvalues, vectors = eigenvalues[::-1][:components], vectors[:, ::-1][:, :components]
    else:
        start = np.random.default_rng(0).normal(size=size)
        eigenvalues, vectors = scipy.sparse.linalg.eigsh(gram, components, which="LA", v0=start)
        order = np.argsort(eigenvalues)[::-1]
        eigenvalues, vectors = eigenvalues[order], vectors[:, order]
        total = float(np.trace(gram)) if euclidean else _positive_sum(gram)
        total = max(total, np.clip(eigenvalues, 0, None).sum())
    scores = vectors * np.sqrt(np.clip(eigenvalues, 0, None))
    scores *= np.where(scores[np.abs(scores).argmax(0), np.arange(components)] < 0, -1, 1)
    return Map(scores, np.clip(eigenvalues, 0, None) / total if total > 0 else np.full(components, np.nan))


def _positive_sum(gram: Floats) -> float:
    """Return the sum of the positive eigenvalues of a doubly centred matrix.

    It is the trace if no eigenvalue is negative. A Cholesky factor of the matrix plus a little of the identity shows
    that, in a small part of the time that all eigenvalues take.
    """
    trace, size = float(np.trace(gram)), len(gram)
    if trace > 0:
        shifted = gram + 0.0  # a copy
        shifted.flat[:: size + 1] += NEGLIGIBLE * trace / size
        try:
            scipy.linalg.cholesky(shifted, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError:
            pass
        else:
            return trace
    return float(np.clip(scipy.linalg.eigvalsh(gram), 0, None).sum())


def tsne(
    responses: ArrayLike | Tensor,
    *,
    dimensions: int = 2,
    components: int = 20,
    perplexity: float = 30.0,
    seed: int | None = None,
) -> Floats:
    """A map in which stimuli with similar responses are neighbours: t-SNE by scikit-learn on principal components.

    t-SNE descends to a local optimum, which depends on where it begins (Kobak & Berens, Nature Communications 10, 5416,
    2019, recommend the principal components). Maps of several seeds show what does not depend on it.

    Args:
        responses: [S, N].
        dimensions: of the map.
        components: number of principal components to use; at most min(S, N) are used.
        perplexity: the effective number of neighbours; less than S.
        seed: None: begin with the principal components, which leaves nothing to chance; the map is always the same. A
            number: begin with random positions, which are different for each seed.

    Returns:
        [S, dimensions]; NaN if the responses to all stimuli are the same.

    Raises:
        ModuleNotFoundError: scikit-learn is absent.
        ValueError: an operand does not fit.
    """
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('t-SNE needs scikit-learn: pip install "v1fast[rsa]"') from error
    values = _arrays.to_array("responses", responses)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"responses: want [S >= 2, N], got {values.shape}")
    if not 0 < perplexity < len(values):
        raise ValueError(f"perplexity: want more than 0 and less than S = {len(values)}, got {perplexity}")
    scores = pca(values, min(components, *values.shape)).scores
    largest = float(np.abs(scores).max())
    if not largest:
        return np.full((len(scores), dimensions), np.nan)
    if abs(_exponent(largest)) > WITHOUT_SCALE:  # t-SNE computes in float32, and neighbours do not depend on the unit
        scores = np.ldexp(scores, -_exponent(largest))
    begin = {"init": "pca", "random_state": 0} if seed is None else {"init": "random", "random_state": seed}
    found: Any = TSNE(dimensions, perplexity=perplexity, **begin).fit_transform(scores)
    return np.asarray(found, dtype=np.float64)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Mean responses along an axis.

    Attributes:
        centre: [K], mean of the stimuli in each bin.
        mean: [K, N], mean of the responses that are not NaN; NaN if there are none.
        error: [K, N], standard error of the mean; NaN for fewer than two responses.
        count: [K], stimuli in each bin.
        present: [K, N], those of them with a response that is not NaN.
    """

    centre: Floats
    mean: Floats
    error: Floats
    count: NDArray[np.int64]
    present: NDArray[np.int64]


def tuning_curves(
    responses: ArrayLike | Tensor,
    stimuli: ArrayLike | Tensor,
    bins: int | ArrayLike | None = None,
    *,
    period: float | None = None,
) -> Tuning:
    """Mean responses to stimuli in bins along an axis, such as orientation.

    Args:
        responses: [S, N], or [S] for one neuron. NaN is left out, as in ``average_repeats``: a neuron that was not
            recorded in a trial is averaged over the others.
        stimuli: [S], the position of each stimulus on the axis.
        bins: number of equal bins from the smallest to the largest stimulus, or from 0 to ``period``; or their edges in
            ascending order, where the last bin includes its upper edge; or None: one bin for each value that occurs.
        period: of a circular axis: positions are taken modulo it.

    Returns:
        The bins that hold a stimulus, in ascending order.

    Raises:
        ValueError: an operand does not fit.

    Example:
        >>> from v1fast import rsa
        >>> found = rsa.tuning_curves([1.0, 3.0, 8.0, float("nan")], [0, 180, 90, 90], period=180)
        >>> found.centre.tolist(), found.mean[:, 0].tolist(), found.present[:, 0].tolist()
        ([0.0, 90.0], [2.0, 8.0], [2, 1])
    """
    values, places = (
        _arrays.floats(name, given).astype(np.float64)
        for name, given in (("responses", responses), ("stimuli", stimuli))
    )
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or places.shape != values.shape[:1] or not np.isfinite(places).all():
        raise ValueError(f"stimuli: want finite [S] for responses [S, N], got {places.shape} and {values.shape}")
    if period is not None:
        places = places % _positive("period", period)
        places[places == period] = 0  # rounding, slightly below a multiple
    which = _bin_of(places, bins, period)
    kept = which >= 0
    labels, which = np.unique(which[kept], return_inverse=True)
    places, values = places[kept], values[kept]
    count = np.bincount(which, minlength=len(labels))
    there = ~np.isnan(values)
    present = _sums_of(there.astype(np.float64), which, len(labels))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = _sums_of(np.where(there, values, 0), which, len(labels)) / present
        variance = _sums_of(np.where(there, (values - mean[which]) ** 2, 0), which, len(labels))
        error = np.sqrt(variance / ((present - 1) * present))
    error[present < 2] = np.nan
    centre = np.bincount(which, places, len(labels)) / count
    return Tuning(centre, mean, error, count, present.astype(np.int64))


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: want a positive number, got {value}")
    return value


def _sums_of(values: Floats, which: NDArray[np.int64], bins: int) -> Floats:
    """Sum [S, N] into [bins, N]."""
    sums = np.zeros((bins, values.shape[1]))
    np.add.at(sums, which, values)
    return sums


def _bin_of(places: Floats, bins: int | ArrayLike | None, period: float | None) -> NDArray[np.int64]:
    """Return the bin of each position, -1 outside all bins."""
    if bins is None:
        return np.unique(places, return_inverse=True)[1].astype(np.int64)
    if isinstance(bins, int):
        if bins < 1:
            raise ValueError(f"bins: want at least 1, got {bins}")
        low, high = (0.0, period) if period is not None else (float(places.min()), float(places.max()))
        edges = np.linspace(low, high, bins + 1)
    else:
        edges = _arrays.floats("bins", bins).astype(np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"bins: want edges in ascending order, got {edges}")
    which = np.searchsorted(edges, places, side="right") - 1
    which[places == edges[-1]] = len(edges) - 2
    which[which >= len(edges) - 1] = -1
    return which


def rows_nearest(
    rdm: Condensed | ArrayLike, stimuli: ArrayLike, wanted: ArrayLike, *, period: float | None = None
) -> tuple[Floats, Floats]:
    """Rows of one dissimilarity matrix: how each of some stimuli differs from all others along their axis.

    Args:
        rdm: one matrix, as for ``compare``.
        stimuli: [S], the position of each stimulus on the axis.
        wanted: [K], positions.
        period: of a circular axis, such as 180 for orientations and 360 for directions in degrees: positions that
            differ by a multiple of it are the same. None: the axis is a line.

    Returns:
        The positions [K] of the stimuli nearest to those in ``wanted``, as given, and their rows [K, S].

    Raises:
        ValueError: an operand does not fit.

    Example:
        >>> from v1fast import rsa
        >>> rsa.rows_nearest([1.0, 2.0, 3.0], [0, 60, 120], [175], period=180)[0].tolist()
        [0.0]
    """
    matrices, _ = squares("rdm", rdm)
    places = _arrays.floats("stimuli", stimuli).astype(np.float64)
    targets = np.atleast_1d(_arrays.floats("wanted", wanted).astype(np.float64))
    if len(matrices) != 1 or places.shape != matrices.shape[1:2]:
        raise ValueError(f"stimuli: want [S] = {matrices.shape[1:2]} and one matrix, got {places.shape}")
    if targets.ndim != 1 or not (np.isfinite(places).all() and np.isfinite(targets).all()):
        raise ValueError("stimuli, wanted: want finite [S] and [K], got NaN, infinity or more axes")
    away = np.abs(places - targets[:, None])
    if period is not None:
        away = away % _positive("period", period)
        away = np.minimum(away, period - away)
    nearest = away.argmin(1)
    return places[nearest], matrices[0, nearest].astype(np.float64)
