"""How similar two dissimilarity matrices are: from the matrices, or directly from the responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import scipy.stats
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from v1fast import _arrays, _choices, ops
from v1fast._progress import progress as progress_bar
from v1fast.rsa import _tiles
from v1fast.rsa._defined import Range, is_constant, is_empty, is_undefined, scaled
from v1fast.rsa._matrices import Condensed, condensed, stimuli_of, to_squares
from v1fast.rsa._sums import Floats, PairSums, ratio

METHODS = (
    "pearson",
    "spearman",
    "rho-a",
    "tau-a",
    "tau-b",
    "cosine",
    "whitened-pearson",
    "whitened-cosine",
)
RSATOOLBOX_NAMES = {
    "corr": "pearson",
    "kendall": "tau-b",
    "corr_cov": "whitened-pearson",
    "cosine_cov": "whitened-cosine",
}
STREAMED = ("pearson", "cosine")
NARROW = 1e-10  # times a sum of squares: up to this variance, the values are checked for being all equal
CENTRED = 1e-5  # likewise: up to this, whitening starts from deviations from the mean
LEAST_SQUARE, MOST_SQUARE = 1e-100, 1e100  # sums of squares within this range can be multiplied without loss
SIDE = 1728  # rows of a tile: those that the kernel sums at a time; two tiles of float32 are 23 MiB


def rdm_correlation(
    x: Tensor | NDArray[Any],
    y: Tensor | NDArray[Any],
    method: str = "pearson",
    *,
    dissimilarity: str = "correlation",
    accuracy: str = "float32",
    progress: bool = False,
) -> float:
    """The similarity of two dissimilarity matrices directly from the responses. Neither matrix is stored.

    Both matrices are computed tile by tile, and five sums over their entries above the diagonal are kept, in float64.
    This takes about 100 MiB in addition to the responses, for any number of stimuli. The result is that of ``compare``
    for the two matrices.

    Args:
        x: [S, N] responses of one system to S stimuli, as for ``functional.rdm``. Data that is mapped from a file is
            read in place. Data that must be converted, such as integers, is converted tile by tile.
        y: [S, M] responses of another system to the same stimuli, in the same order.
        method: "pearson" or "cosine".
        dissimilarity: "correlation", "cosine" or "euclidean", as for ``functional.rdm``.
        accuracy: as for ``functional.rdm``.
        progress: show a bar on stderr.

    Returns:
        The similarity, between -1 and 1. Pairs whose dissimilarity is NaN in either matrix are left out. NaN if it is
        undefined: no pair is left, or one matrix is constant (cosine: zero).

    Raises:
        ValueError: an operand does not fit; the message names it.
    """
    _choices.one_of("method", method, STREAMED)
    _tiles.check_options("dissimilarity", dissimilarity, accuracy)
    given = _tiles.Responses("x", x), _tiles.Responses("y", y)
    if given[0].shape[0] != given[1].shape[0]:
        raise ValueError(f"y: want [S, M] with S = {given[0].shape[0]}, that of x, got {given[1].shape}")
    if dissimilarity == "euclidean":  # squares of very large or small values would overflow or underflow
        given = given[0].scaled(), given[1].scaled()
    sums, ranges = PairSums(1, 1), (Range(), Range())
    every = list(_tiles.tiles(given[0].shape[0], SIDE))
    with progress_bar("comparing", len(every), show=progress) as bar:
        for tile in every:
            add_entries(sums, ranges, *(_tiles.pairs(z, tile, dissimilarity, accuracy) for z in given))
            bar.advance()
    if any(found.is_undefined(method) for found in ranges):
        return float("nan")
    return float((sums.pearson() if method == "pearson" else sums.cosine())[0, 0])


def add_entries(sums: PairSums, ranges: tuple[Range, Range], x: Tensor, y: Tensor) -> None:
    """Add the same entries [K] of two matrices, those that are NaN in neither, to sums and ranges."""
    a, b = (entries.cpu().numpy()[None] for entries in (x, y))
    ends = [_ends(vector) for vector in (a, b)]
    if np.isnan(ends).any():
        present = ~(np.isnan(a) | np.isnan(b))[0]
        a, b = a[:, present], b[:, present]
        ends = [_ends(vector) for vector in (a, b)]
    sums.add(a, b)
    for found, (low, high), vector in zip(ranges, ends, (a, b), strict=True):
        found.add(low, high, vector.dtype)


def _ends(vector: NDArray[Any]) -> tuple[float, float]:
    """Return the smallest and the largest value; NaN if there is a NaN."""
    return vector.min(initial=np.inf), vector.max(initial=-np.inf)


def compare(
    rdm1: Condensed | ArrayLike,
    rdm2: Condensed | ArrayLike,
    method: str = "pearson",
    *,
    sigma_k: ArrayLike | None = None,
) -> Any:
    """The similarity of dissimilarity matrices, over their entries above the diagonal.

    - "pearson": correlation; "cosine": the same without subtracting the mean;
    - "spearman": correlation of ranks, ties averaged; "rho-a": its expected value if ties are broken at random
      (Schütt et al., eLife 12, e82566, 2023), recommended if a model predicts ties;
    - "tau-a", "tau-b": Kendall's, without and with a correction for ties, by SciPy;
    - "whitened-pearson", "whitened-cosine": corrected for the covariance between dissimilarities that noise in the
      responses causes: d V^-1 e / sqrt(d V^-1 d . e V^-1 e), where V is the matrix of squares of the entries of
      C sigma_k C', and each row of C is the difference of two stimuli (Diedrichsen et al., Neurons, Behavior, Data
      Analysis, and Theory 5(3), 2021, equation 13). Without ``sigma_k``, noise is independent and of equal size in all
      stimuli; the cosine is then the linear centred kernel alignment.

    rsatoolbox's names "corr", "kendall", "corr_cov" and "cosine_cov" mean the same.

    Args:
        rdm1: one matrix or a set: [S, S], [P] (its entries above the diagonal, row by row), [M, S, S], [M, P], or
            rsatoolbox's RDMs or models. A square [S, S] that is symmetric with an empty diagonal, up to rounding, is
            one matrix; its upper triangle is read. Anything else with two axes is a set of rows. An ambiguous input,
            such as a matrix of similarities, is an error. Tensors, arrays, lists, data frames; any order of magnitude.
        rdm2: likewise, of the same stimuli.
        method: one of the above.
        sigma_k: for the whitened measures: the covariance of the noise of the stimuli's mean responses, [S, S], or its
            diagonal [S] if noise is independent; any positive factor cancels. ``stimulus_noise`` estimates it from
            repeats.

    Returns:
        [M1, M2] float64, each matrix of the first with each of the second. The axis of an operand that is one matrix is
        dropped, so two matrices give a float. Positions that are NaN in any of the matrices are left out of all. A
        matrix that is entirely NaN does not count for this. The result is NaN where the similarity is undefined (see
        ``v1fast.rsa``): no position is left, a matrix is constant (cosine: zero), or a matrix is infinite and the
        measure does not use ranks.

    Raises:
        ValueError: an operand does not fit; the message names it.

    Example:
        >>> from v1fast import rsa
        >>> noisy = [1.0, 1.0, 4.0]  # the third stimulus
        >>> float(rsa.compare([1.0, 2.0, 3.0], [2.0, 2.0, 3.0], "whitened-cosine", sigma_k=noisy).round(3))
        0.932
    """
    method = RSATOOLBOX_NAMES.get(method, method)
    _choices.one_of("method", method, METHODS)
    (a, one_a), (b, one_b) = condensed("rdm1", rdm1), condensed("rdm2", rdm2)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"rdm2: want {a.shape[1]} pairs of stimuli, as rdm1 has, got {b.shape[1]}")
    compute = _COMPUTE[method]
    if sigma_k is not None:
        compute = _whitened_by(covariance_of(sigma_k, method, stimuli_of(a.shape[1])), method)
    found = np.full((len(a), len(b)), np.nan)
    there = ~is_empty(a), ~is_empty(b)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite entries
        found[np.ix_(*there)] = compute(_chosen(a, there[0]), _chosen(b, there[1]))
    return found.reshape([size for size, one in ((len(a), one_a), (len(b), one_b)) if not one])[()]


def _chosen(vectors: NDArray[Any], chosen: NDArray[np.bool_]) -> NDArray[Any]:
    """Return some of the rows, without a copy if these are all rows."""
    return vectors if chosen.all() else vectors[chosen]


def ranks(values: NDArray[Any]) -> Floats:
    """[M, P] without NaN -> ranks from 1 on in each row, averaged over ties."""
    return ops.ranks.average_ranks(_tensor(values)).numpy()


def _tensor(values: NDArray[Any]) -> Tensor:
    wide = values if values.dtype == np.float32 else values.astype(np.float64, copy=False)
    return _arrays.to_tensor("rdm", wide)


def _present(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which positions [P] have no NaN."""
    return ~(np.isnan(a).any(0) | np.isnan(b).any(0))


def _sums(a: NDArray[Any], b: NDArray[Any]) -> tuple[PairSums, NDArray[Any], NDArray[Any], NDArray[np.bool_] | None]:
    """Sum over the positions without NaN. Return sums, scaled matrices, and these positions (None: all)."""
    # NaN and squares out of range are detected afterwards, in the sums. Checking each value would take a third of the
    # time.
    sums = _sums_of(a, b)
    squares, present = np.concatenate(sums.squares), None
    if np.isnan(squares).any():
        present = _present(a, b)
        sums = _sums_of(a[:, present], b[:, present])
        squares = np.concatenate(sums.squares)
    if ((squares < LEAST_SQUARE) | (squares > MOST_SQUARE)).any():
        a, b = scaled(a), scaled(b)
        sums = _sums_of(a, b) if present is None else _sums_of(a[:, present], b[:, present])
    return sums, a, b, present


def _sums_of(a: NDArray[Any], b: NDArray[Any]) -> PairSums:
    sums = PairSums(len(a), len(b))
    sums.add(a, b)
    return sums


def _narrow(sums: PairSums, share: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which of the first and of the second vectors have deviations that are small compared with their values."""
    first, second = (
        variances <= share * squares for variances, squares in zip(sums.variances(), sums.whole()[1:], strict=True)
    )
    return first, second


def _constant(
    sums: PairSums, a: NDArray[Any], b: NDArray[Any], present: NDArray[np.bool_] | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which vectors are constant. Values are only checked if the sums do not decide."""
    found = _narrow(sums, NARROW)
    for narrow, vectors in zip(found, (a, b), strict=True):
        rows = vectors[narrow]
        narrow[narrow] = is_constant(rows if present is None else rows[:, present])
    return found


def _undefined_to_nan(found: Floats, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Floats:
    found[first] = np.nan
    found[:, second] = np.nan
    return found


def _pearson(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    sums, *_, present = _sums(a, b)
    return _undefined_to_nan(sums.pearson(), *_constant(sums, a, b, present))


def _of_ranks(
    compute: Callable[[NDArray[Any], NDArray[Any]], Floats],
) -> Callable[[NDArray[Any], NDArray[Any]], Floats]:
    """Compute a measure of ranks, for matrices without NaN that are not constant."""

    def of_all(a: NDArray[Any], b: NDArray[Any]) -> Floats:
        # NaN shows in the sum of squares, which is faster than checking each value.
        if np.isnan([row @ row for vectors in (a, b) for row in vectors]).any():
            present = _present(a, b)
            a, b = a[:, present], b[:, present]
        found = np.full((len(a), len(b)), np.nan)
        chosen = ~is_constant(a), ~is_constant(b)
        if chosen[0].any() and chosen[1].any():
            found[np.ix_(*chosen)] = compute(_chosen(a, chosen[0]), _chosen(b, chosen[1]))
        return found

    return of_all


def _rank_sums(a: NDArray[Any], b: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Return sums of products and of squares of the ranks minus their mean."""
    if len(a) == len(b) == 1:
        first, second = (_tensor(v[0].astype(np.result_type(a, b), copy=False)) for v in (a, b))
        product, square_a, square_b = ops.ranks.rank_sums(first, second).numpy()
        return np.array([[product]]), np.array([square_a]), np.array([square_b])
    count = a.shape[1]
    of_means = count * ((count + 1) / 2) ** 2
    ranks_a, ranks_b = ranks(a), ranks(b)
    squares_a, squares_b = (np.array([row @ row for row in rows]) - of_means for rows in (ranks_a, ranks_b))
    return ranks_a @ ranks_b.T - of_means, squares_a, squares_b


def _spearman(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    products, squares_a, squares_b = _rank_sums(a, b)
    return ratio(products, squares_a[:, None], squares_b)


def _rho_a(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    products, _, _ = _rank_sums(a, b)
    return 12 * products / np.float64(float(a.shape[1]) ** 3 - a.shape[1])


def _tau(kind: str) -> Callable[[NDArray[Any], NDArray[Any]], Floats]:
    def compute(a: NDArray[Any], b: NDArray[Any]) -> Floats:
        untied = [[_untied(row) for row in rows] for rows in (a, b)]
        found = np.empty((len(a), len(b)))
        for i, j in np.ndindex(found.shape):
            found[i, j] = scipy.stats.kendalltau(a[i], b[j], method="asymptotic").statistic
            if kind == "tau-a":
                found[i, j] *= np.sqrt(untied[0][i] * untied[1][j])
        return found

    return compute


def _untied(values: NDArray[Any]) -> float:
    """Return the fraction of pairs of entries that differ; NaN if there is no pair."""
    _, counts = np.unique(values, return_counts=True)
    size = float(len(values))
    if size < 2:
        return np.nan
    return 1 - float((counts.astype(np.float64) * (counts - 1)).sum()) / (size * (size - 1))


def _row_sums(vectors: NDArray[Any], stimuli: int) -> Floats:
    """Sum the rows: [M, P] -> [M, S]."""
    return ops.condensed_row_sums.condensed_row_sums(_tensor(vectors), stimuli).numpy()


def _whitened(centred: bool) -> Callable[[NDArray[Any], NDArray[Any]], Floats]:
    """Return products of the residuals of the matrices D after fitting u_i + u_j to D_ij, with the zero diagonal.

    If all pairs are present, this is double centring.
    """

    def compute(a: NDArray[Any], b: NDArray[Any]) -> Floats:
        stimuli = stimuli_of(a.shape[1])
        sums, first, second, present = _sums(a, b)
        undefined = _constant(sums, a, b, present) if centred else tuple(v == 0 for v in sums.whole()[1:])
        if centred and sums.count and any(narrow.any() for narrow in _narrow(sums, CENTRED)):
            # If the mean is large, the sums would lose the residuals.
            first, second = (_centred(vectors, present) for vectors in (first, second))
            sums = _sums_of(*(v if present is None else v[:, present] for v in (first, second)))
        products, squares_a, squares_b = sums.whole()
        if present is not None:
            first, second = np.where(present, first, 0), np.where(present, second, 0)
        rows = [_row_sums(vectors, stimuli) for vectors in (first, second)]
        pairs = None if present is None else to_squares(present[None])[0].astype(np.float64)
        if centred:
            totals = sums.totals()
            means = [total / max(1, sums.count) for total in totals]
            products = products - np.outer(totals[0], means[1])
            squares_a, squares_b = squares_a - totals[0] * means[0], squares_b - totals[1] * means[1]
            degree = np.full(stimuli, stimuli - 1.0) if pairs is None else pairs.sum(0)
            rows = [r - np.outer(mean, degree) for r, mean in zip(rows, means, strict=True)]
        fits = [_fit(r, pairs) for r in rows]
        products = products - fits[0] @ rows[1].T
        squares = [s - (f * r).sum(1) for s, f, r in zip((squares_a, squares_b), fits, rows, strict=True)]
        return _undefined_to_nan(ratio(products, squares[0][:, None], squares[1]), *undefined)

    return compute


def _centred(vectors: NDArray[Any], present: NDArray[np.bool_] | None) -> Floats:
    """Subtract the mean of what is present."""
    wide = vectors.astype(np.float64)
    means: Floats = (wide if present is None else wide[:, present]).mean(1, keepdims=True)
    return wide - means


def _fit(rows: Floats, pairs: Floats | None) -> Floats:
    """Return u [M, S] of the least squares fit, from the sums of the rows [M, S].

    ``pairs`` [S, S] has 1 for each pair that is present; None: all are.
    """
    stimuli = rows.shape[1]
    if pairs is None:  # the inverse is known in closed form
        return rows / stimuli - rows.sum(1, keepdims=True) / (2 * stimuli**2)
    normal = pairs + np.diag(pairs.sum(0) + 2)  # on the diagonal u_i occurs twice
    return scipy.linalg.solve(normal, rows.T, assume_a="pos").T


def covariance_of(sigma_k: ArrayLike, method: str, stimuli: int) -> Floats:
    """Return the covariance [S, S]; see ``compare``."""
    given = _arrays.floats("sigma_k", sigma_k).astype(np.float64)
    if not method.startswith("whitened"):
        raise ValueError(f"sigma_k: want None beside method {method!r}, got an array")
    if given.shape not in ((stimuli,), (stimuli, stimuli)):
        raise ValueError(f"sigma_k: want [S] or [S, S] with S = {stimuli}, got {given.shape}")
    if given.ndim == 1:
        given = np.diag(given)
    try:
        if not (np.isfinite(given).all() and np.allclose(given, given.T, rtol=1e-6, atol=0)):
            raise np.linalg.LinAlgError
        np.linalg.cholesky(given)  # Cholesky reads one triangle alone
    except np.linalg.LinAlgError:
        raise ValueError("sigma_k: want a symmetric, positive definite covariance, got another matrix") from None
    return (given + given.T) / (2 * np.diagonal(given).mean())


def _whitened_by(sigma: Floats, method: str) -> Callable[[NDArray[Any], NDArray[Any]], Floats]:
    def compute(a: NDArray[Any], b: NDArray[Any]) -> Floats:
        present = _present(a, b)
        undefined = [is_undefined(vectors[:, present], method) for vectors in (a, b)]
        if not present.any():
            return np.full((len(a), len(b)), np.nan)
        both = np.concatenate([scaled(a), scaled(b)])
        products = whitened_products(both, sigma, present, method == "whitened-pearson")
        squares, k = np.diagonal(products), len(a)
        return _undefined_to_nan(ratio(products[:k, k:], squares[:k, None], squares[k:]), *undefined)

    return compute


def whitened_products(vectors: Floats, sigma: Floats, present: NDArray[np.bool_], centred: bool) -> Floats:
    """d V^-1 e of all pairs of vectors [M, P], with V of the present positions alone.

    Distances are linear in the matrix of products of responses, X, whose noise has the covariance of sigma in its rows
    and in its columns. So d V^-1 d is the smallest trace of (sigma^-1 X)^2 over all X with these distances: over
    X = -D / 2 + u 1' + 1 u'. The smallest one has X sigma^-1 1 = 0.
    """
    vectors = vectors - vectors[:, present].mean(1, keepdims=True) if centred else vectors
    if not present.all():
        stimuli = np.flatnonzero(to_squares(present[None])[0].any(0))
        i, j = (stimuli[k] for k in np.triu_indices(len(stimuli), 1))
        where = np.zeros((len(sigma), len(sigma)), np.int64)
        where[np.triu_indices(len(sigma), 1)] = np.arange(len(present))
        kept = where[i, j]  # the pairs of stimuli that have any
        vectors, sigma, present = vectors[:, kept], sigma[np.ix_(stimuli, stimuli)], present[kept]
    if not present.all():
        return _products_by_iteration(vectors[:, present], sigma, present)
    root = np.linalg.cholesky(sigma)
    weights = scipy.linalg.cho_solve((root, True), np.ones(len(sigma)))
    centre = np.eye(len(sigma)) - weights / weights.sum()  # of X from the left; 1 w' / (1' w) taken off
    rows = np.empty((len(vectors), sigma.size))
    for row, vector in zip(rows, vectors, strict=True):
        gram = -0.5 * centre @ to_squares(vector[None])[0] @ centre.T
        half = scipy.linalg.solve_triangular(root, gram, lower=True)
        row[:] = scipy.linalg.solve_triangular(root, half.T, lower=True).ravel()
    return rows @ rows.T


def _products_by_iteration(vectors: Floats, sigma: Floats, present: NDArray[np.bool_]) -> Floats:
    """The same if single pairs are absent: V is solved by conjugate gradients, from its products alone."""
    stimuli = len(sigma)
    i, j = (k[present] for k in np.triu_indices(stimuli, 1))

    def times_v(vector: Floats) -> Floats:
        weights = np.zeros((stimuli, stimuli))
        weights[i, j] = weights[j, i] = vector.ravel()
        spread = sigma @ (np.diag(weights.sum(0)) - weights) @ sigma
        own = np.diagonal(spread)
        return own[i] + own[j] - 2 * spread[i, j]

    operator = scipy.sparse.linalg.LinearOperator((len(i), len(i)), times_v, dtype=np.float64)
    solved = np.empty_like(vectors)
    for row, vector in zip(solved, vectors, strict=True):
        row[:], failed = scipy.sparse.linalg.cg(operator, vector, rtol=1e-13, maxiter=100 * stimuli)
        if failed:
            raise ValueError("sigma_k: want a covariance that is not nearly singular, beside single pairs that are NaN")
    products: Floats = vectors @ solved.T
    return (products + products.T) / 2


_COMPUTE: dict[str, Callable[[NDArray[Any], NDArray[Any]], Floats]] = {
    "pearson": _pearson,
    "cosine": lambda a, b: _sums(a, b)[0].cosine(),
    "spearman": _of_ranks(_spearman),
    "rho-a": _of_ranks(_rho_a),
    "tau-a": _of_ranks(_tau("tau-a")),
    "tau-b": _of_ranks(_tau("tau-b")),
    "whitened-pearson": _whitened(True),
    "whitened-cosine": _whitened(False),
}
