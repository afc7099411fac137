"""How similar two dissimilarity matrices are: from the matrices, or straight from the responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.stats
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from v1fast import _dissimilarities, ops
from v1fast._progress import progress as progress_bar
from v1fast.rsa import _tiles
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
    """The similarity of two dissimilarity matrices straight from the responses; neither matrix is stored.

    Both matrices are computed tile by tile, and five sums over their entries above the diagonal are kept, in float64:
    some 100 MiB beside the responses, for any number of stimuli. It is ``compare`` of the two matrices without the
    matrices.

    Args:
        x: [S, N] responses of one system to S stimuli.
        y: [S, M] responses of another to the same stimuli, in the same order.
        method: "pearson" or "cosine".
        dissimilarity: "correlation", "cosine" or "euclidean", as for ``functional.rdm``.
        accuracy: as for ``functional.rdm``.
        progress: show a bar on stderr.

    Returns:
        The similarity, between -1 and 1. Pairs whose dissimilarity is NaN in either matrix are left out; NaN where no
        pair is left, or one matrix is constant (cosine: zero).

    Raises:
        ValueError: an operand does not fit; the message names it.
    """
    _dissimilarities.choice("method", method, STREAMED)
    _tiles.check_options("dissimilarity", dissimilarity, accuracy)
    given = _tiles.responses("x", x), _tiles.responses("y", y)
    if given[0].shape[0] != given[1].shape[0]:
        raise ValueError(f"y: want [S, M] with S = {given[0].shape[0]}, that of x, got {tuple(given[1].shape)}")
    sums = PairSums(1, 1)
    every = list(_tiles.tiles(given[0].shape[0], SIDE))
    with progress_bar("comparing", len(every), show=progress) as advance:
        for tile in every:
            a, b = (_tiles.pairs(z, tile, dissimilarity, accuracy).cpu().numpy()[None] for z in given)
            present = ~(np.isnan(a) | np.isnan(b))[0]
            sums.add(*((a, b) if present.all() else (a[:, present], b[:, present])))
            advance()
    return float((sums.pearson() if method == "pearson" else sums.cosine())[0, 0])


def compare(rdm1: Condensed | ArrayLike, rdm2: Condensed | ArrayLike, method: str = "pearson") -> Any:
    """The similarity of dissimilarity matrices, over their entries above the diagonal.

    - "pearson": correlation; "cosine": the same without taking the mean off;
    - "spearman": correlation of ranks, ties averaged; "rho-a": its expected value where ties are broken at random
      (Schütt et al., eLife 12, e82566, 2023), the one to take where a model predicts ties;
    - "tau-a", "tau-b": Kendall's, without and with a correction for ties, by SciPy;
    - "whitened-pearson", "whitened-cosine": with the covariance that independent noise of equal size in all stimuli
      causes between dissimilarities taken out; the cosine is the linear centred kernel alignment (Diedrichsen et al.,
      Neurons, Behavior, Data Analysis, and Theory 5(3), 2021).

    rsatoolbox's names "corr", "kendall", "corr_cov" and "cosine_cov" mean the same.

    Args:
        rdm1: one matrix or a set: [S, S], [P] (its entries above the diagonal, row by row), [M, S, S], [M, P], or what
            rsatoolbox calls RDMs. A square [S, S] that is symmetric with an empty diagonal is taken as one matrix,
            anything else with two axes as a set of rows. Tensors and arrays; any order of magnitude.
        rdm2: likewise, of the same stimuli.
        method: one of the above.

    Returns:
        [M1, M2] float64, each matrix of the first with each of the second; without the axis of an operand that is one
        matrix, so that two matrices give a float. Positions that are NaN in any of the matrices are left out of all.
        NaN where a matrix is constant (cosine: zero).

    Raises:
        ValueError: an operand does not fit; the message names it.
    """
    method = RSATOOLBOX_NAMES.get(method, method)
    _dissimilarities.choice("method", method, METHODS)
    (a, one_a), (b, one_b) = condensed("rdm1", rdm1), condensed("rdm2", rdm2)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"rdm2: want {a.shape[1]} pairs of stimuli, as rdm1 has, got {b.shape[1]}")
    found = _COMPUTE[method](a, b)
    return found.reshape([size for size, one in ((len(a), one_a), (len(b), one_b)) if not one])[()]


def ranks(values: NDArray[Any]) -> Floats:
    """[M, P] without NaN -> ranks from 1 on in each row, those of ties averaged."""
    return ops.ranks.average_ranks(_tensor(values)).numpy()


def _tensor(values: NDArray[Any]) -> Tensor:
    wide = values if values.dtype == np.float32 else values.astype(np.float64, copy=False)
    return _dissimilarities.from_numpy(wide)


def _present(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """[P], the positions without NaN."""
    return ~(np.isnan(a).any(0) | np.isnan(b).any(0))


def _sums(a: NDArray[Any], b: NDArray[Any]) -> tuple[PairSums, NDArray[np.bool_] | None]:
    """Over the positions without NaN, and which these are; None: all."""
    sums = PairSums(len(a), len(b))
    sums.add(a, b)
    # Looked for afterwards, in the sums: to look at each value would take a third of the time.
    if not np.isnan(np.concatenate(sums.squares)).any():
        return sums, None
    present = _present(a, b)
    sums = PairSums(len(a), len(b))
    sums.add(a[:, present], b[:, present])
    return sums, present


def _of_ranks(a: NDArray[Any], b: NDArray[Any]) -> tuple[Floats, Floats, Floats, int]:
    """Sums of products and of squares of the ranks less their mean, and the number of ranks."""
    # NaN shows in the sum of squares, which takes less time than to look at each value.
    if np.isnan([row @ row for vectors in (a, b) for row in vectors]).any():
        present = _present(a, b)
        a, b = a[:, present], b[:, present]
    count = a.shape[1]
    if len(a) == len(b) == 1:
        first, second = (_tensor(v[0].astype(np.result_type(a, b), copy=False)) for v in (a, b))
        product, square_a, square_b = ops.ranks.rank_sums(first, second).numpy()
        return np.array([[product]]), np.array([square_a]), np.array([square_b]), count
    of_means = count * ((count + 1) / 2) ** 2
    ranks_a, ranks_b = ranks(a), ranks(b)
    squares_a, squares_b = (np.array([row @ row for row in rows]) - of_means for rows in (ranks_a, ranks_b))
    return ranks_a @ ranks_b.T - of_means, squares_a, squares_b, count


def _spearman(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    products, squares_a, squares_b, _ = _of_ranks(a, b)
    return ratio(products, np.outer(squares_a, squares_b))


def _rho_a(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    products, _, _, count = _of_ranks(a, b)
    with np.errstate(invalid="ignore"):
        return 12 * products / np.float64(float(count) ** 3 - count)


def _tau(kind: str) -> Callable[[NDArray[Any], NDArray[Any]], Floats]:
    def compute(a: NDArray[Any], b: NDArray[Any]) -> Floats:
        present = _present(a, b)
        a, b = a[:, present], b[:, present]
        untied = [[_untied(row) for row in rows] for rows in (a, b)]
        found = np.empty((len(a), len(b)))
        for i, j in np.ndindex(found.shape):
            found[i, j] = scipy.stats.kendalltau(a[i], b[j], method="asymptotic").statistic
            if kind == "tau-a":
                found[i, j] *= np.sqrt(untied[0][i] * untied[1][j])
        return found

    return compute


def _untied(values: NDArray[Any]) -> float:
    """The share of pairs of entries that differ; NaN where there is no pair."""
    _, counts = np.unique(values, return_counts=True)
    size = float(len(values))
    if size < 2:
        return np.nan
    return 1 - float((counts.astype(np.float64) * (counts - 1)).sum()) / (size * (size - 1))


def _row_sums(vectors: NDArray[Any], stimuli: int) -> Floats:
    """[M, P] -> [M, S]."""
    return ops.condensed_row_sums.condensed_row_sums(_tensor(vectors), stimuli).numpy()


def _whitened(centred: bool) -> Callable[[NDArray[Any], NDArray[Any]], Floats]:
    """Products of what is left of the matrices D when u_i + u_j is fitted to D_ij, the diagonal of zeros included.

    Where all pairs are there, that is double centring.
    """

    def compute(a: NDArray[Any], b: NDArray[Any]) -> Floats:
        stimuli = stimuli_of(a.shape[1])
        sums, present = _sums(a, b)
        products, squares_a, squares_b = sums.whole()
        if present is not None:
            a, b = np.where(present, a, 0), np.where(present, b, 0)
        rows = [_row_sums(vectors, stimuli) for vectors in (a, b)]
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
        return ratio(products, np.outer(*squares))

    return compute


def _fit(rows: Floats, pairs: Floats | None) -> Floats:
    """u [M, S] of the least squares fit, from the sums of the rows [M, S].

    ``pairs`` [S, S] has 1 for each pair that is there; None: all are.
    """
    stimuli = rows.shape[1]
    if pairs is None:  # the inverse is known
        return rows / stimuli - rows.sum(1, keepdims=True) / (2 * stimuli**2)
    normal = pairs + np.diag(pairs.sum(0) + 2)  # on the diagonal u_i occurs twice
    return scipy.linalg.solve(normal, rows.T, assume_a="pos").T


_COMPUTE: dict[str, Callable[[NDArray[Any], NDArray[Any]], Floats]] = {
    "pearson": lambda a, b: _sums(a, b)[0].pearson(),
    "cosine": lambda a, b: _sums(a, b)[0].cosine(),
    "spearman": _spearman,
    "rho-a": _rho_a,
    "tau-a": _tau("tau-a"),
    "tau-b": _tau("tau-b"),
    "whitened-pearson": _whitened(True),
    "whitened-cosine": _whitened(False),
}
