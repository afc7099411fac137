"""Noise of repeated responses: dissimilarities that it does not bias, and its covariance over neurons and stimuli.

Noise makes responses differ. So the distance of two mean responses is too large by the noise of both stimuli: 0.5 for
each, if each neuron has variance 1 and there are two repeats. Where stimuli differ in noise, these offsets are a
structure of their own. Two systems with the same profile of noise over stimuli then have similar matrices, though their
responses have nothing in common. Cross-validation removes the offsets: it multiplies values from different repeats,
whose noise is independent (Walther et al., NeuroImage 137, 188-200, 2016).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from v1fast import _arrays, _choices, functional
from v1fast.rsa._sums import Floats
from v1fast.rsa.inference import average_repeats

CROSSVALIDATED = {  # the measures that repeats can be cross-validated for, and the name of what is computed then
    "euclidean": "crossnobis",
    "mahalanobis": "crossnobis",
    "crossnobis": "crossnobis",
    "correlation": "cross-validated correlation",
    "cosine": "cross-validated cosine",
}
DISTANCES = ("euclidean", "mahalanobis", "crossnobis")
SHRINKAGE = ("ledoit-wolf", "diagonal", "none")
SMALL = 1e7  # products: up to this, NumPy's take less time than a call of the kernel
PART = 1 << 23  # numbers that are processed together


class Trials(NamedTuple):
    """Responses [T, N] to single trials, with the stimulus [T] and the fold [T] of each, counted from 0.

    ``dropped`` trials that are NaN in every neuron are not among them.
    """

    values: NDArray[Any]
    stimulus: NDArray[np.int64]
    fold: NDArray[np.int64]
    stimuli: int
    dropped: int

    @property
    def counts(self) -> NDArray[np.int64]:
        """[F, S], trials of each stimulus in each fold."""
        folds = int(self.fold.max(initial=-1)) + 1
        cells = np.bincount(self.fold * self.stimuli + self.stimulus, minlength=folds * self.stimuli)
        return cells.reshape(folds, self.stimuli)


def trials_of(responses: ArrayLike | Tensor, stimuli: ArrayLike | None, folds: ArrayLike | None) -> Trials:
    """Return responses as single trials, without those that are NaN in every neuron; see ``rdm_of_repeats``."""
    values = _arrays.to_array("responses", responses)
    if stimuli is None:
        if values.ndim != 3 or 0 in values.shape:
            raise ValueError(f"responses: want [repeats, S, N], or [T, N] with stimuli, got {values.shape}")
        if folds is not None:
            raise ValueError("folds: want None beside responses [repeats, S, N], whose repeats are the folds")
        repeats, count = values.shape[:2]
        stimulus, fold = np.tile(np.arange(count), repeats), np.repeat(np.arange(repeats), count)
        values = values.reshape(repeats * count, -1)
    else:
        if values.ndim != 2 or 0 in values.shape:
            raise ValueError(f"responses: want [T, N] beside stimuli, got {values.shape}")
        labels, stimulus = _arrays.distinct("stimuli", stimuli)
        count = len(labels)
        fold = np.arange(len(stimulus)) if folds is None else _arrays.distinct("folds", folds)[1]
        if stimulus.shape != values.shape[:1] or fold.shape != stimulus.shape:
            got = f"{stimulus.shape}, {fold.shape} and {values.shape}"
            raise ValueError(f"stimuli, folds: want [T] and [T] for responses [T, N], got {got}")
    if count < 2:
        raise ValueError(f"responses: want at least 2 stimuli, got {count}")
    dropped = 0
    if values.dtype.kind == "f":
        there = _rows_with_values(values)
        dropped = int((~there).sum())
        if dropped:
            values, stimulus, fold = values[there], stimulus[there], fold[there]
    return Trials(values, stimulus.astype(np.int64), fold.astype(np.int64), count, dropped)


def _rows_with_values(values: NDArray[Any]) -> NDArray[np.bool_]:
    found = np.ones(len(values), dtype=bool)
    step = max(1, PART // values.shape[1])
    for begin in range(0, len(values), step):
        some = np.isnan(values[begin : begin + step, :1]).all(1)  # most are not empty: the first column is enough
        some[some] = np.isnan(values[begin : begin + step][some]).all(1)
        found[begin : begin + step] = ~some
    return found


def rdm_of_repeats(
    responses: ArrayLike | Tensor,
    method: str = "euclidean",
    *,
    stimuli: ArrayLike | None = None,
    folds: ArrayLike | None = None,
    noise: ArrayLike | None = None,
    crossvalidate: bool = True,
) -> NDArray[Any]:
    r"""The dissimilarity matrix of repeated responses, which noise does not bias.

    - "euclidean" (and "mahalanobis", "crossnobis", which are the same with ``noise``): the mean over pairs of trials
      a, b from different folds of (x_ia - x_ja)' P (x_ib - x_jb) / N, that is, crossnobis. It is unbiased: 0 on average
      for two stimuli without a difference, whatever their noise; single values may be negative.
    - "cosine": 1 - c_ij / sqrt(c_ii c_jj), where c_ij is the mean over pairs of trials from different folds of
      x_ia' x_jb / N; "correlation": the same after the mean over neurons is taken off each trial. The three are
      unbiased, the ratio is not: it is consistent. Its bias falls with neurons and repeats. Noise no longer makes
      correlations smaller, which averages do by the reliability of both responses (Spearman, American Journal of
      Psychology 15, 72-101, 1904; Walther et al. 2016). Values may be outside 0 .. 2. A stimulus whose variance c_ii is
      not positive has no measurable response. Its row is NaN.

    With equally many trials of each stimulus in each fold, this is rsatoolbox's ``calc_rdm`` ("crossnobis"). With
    unequal numbers, each pair of trials counts the same, as in rsatoolbox's ``calc_rdm_unbalanced`` with its
    ``weighting="number"``, of which this is the closed form. There the mean over trials is taken off first: it is in no
    difference of equal numbers, and only adds variance to others. ``functional.rdm`` and rsatoolbox's ``calc_rdm``
    weight folds equally instead, and need each stimulus in each fold.

    Args:
        responses: [R, S, N], R repeats of S stimuli, each repeat a fold; or [T, N], T trials. A trial that is NaN in
            all neurons is left out. If single neurons are NaN, each neuron's mean is taken over the trials that it
            has, and each pair of stimuli is compared over the neurons that have both. That is slower.
        method: one of the above.
        stimuli: [T], for trials: the stimulus of each. The matrix is in the order of the S sorted labels.
        folds: [T], for trials: the fold, such as the session or run. None: each trial is its own.
        noise: for "mahalanobis" and "crossnobis", the precision matrix P of the neurons [N, N], or its diagonal [N];
            see ``noise_precision``.
        crossvalidate: False: the dissimilarity of the mean responses, as by ``functional.rdm``. It is biased by noise.

    Returns:
        [S (S - 1) / 2], the entries above the diagonal, row by row. float64 if responses are, or integers; otherwise
        float32. NaN for a stimulus in fewer than two folds.

    Raises:
        ValueError: an operand does not fit, or no stimulus is in two folds.

    Example:
        >>> import numpy as np
        >>> from v1fast import rsa
        >>> noise_alone = np.random.default_rng(0).normal(size=(2, 40, 500))
        >>> averaged = rsa.rdm_of_repeats(noise_alone, crossvalidate=False).mean()
        >>> round(float(averaged), 1), round(float(rsa.rdm_of_repeats(noise_alone).mean()), 1)
        (1.0, 0.0)
    """
    _choices.one_of("method", method, tuple(CROSSVALIDATED))
    if noise is not None and method not in ("mahalanobis", "crossnobis"):
        raise ValueError(f"noise: want None beside method {method!r}, got an array")
    if not crossvalidate:
        means = average_repeats(responses, stimuli)[0]
        precision = None if noise is None else _precision(noise, means.shape[1])
        plain = "mahalanobis" if method == "crossnobis" else method
        return functional.rdm(means, method=plain, noise=precision, condensed=True)
    trials = trials_of(responses, stimuli, folds)
    counts = trials.counts
    if not ((counts > 0).sum(0) >= 2).any():
        if trials.dropped:  # repeats are there, but not their values
            return np.full(trials.stimuli * (trials.stimuli - 1) // 2, np.nan, _dtype(trials))
        raise ValueError("responses: want a stimulus with trials in 2 folds, or crossvalidate=False, got none")
    precision = None if noise is None else _precision(noise, trials.values.shape[1])
    gaps = _has_gaps(trials.values)
    if gaps and precision is not None and precision.ndim == 2:
        raise ValueError("noise: want None or [N] where single neurons are NaN in a trial, got [N, N]")
    large = float(trials.values.size) * trials.stimuli > SMALL
    if large and method in DISTANCES and not gaps and (counts == counts[0, 0]).all():
        found = _balanced(trials, precision)
    elif gaps:
        found = _by_neurons(trials, method, precision)
    else:
        found = _from_products(_products(trials, method, precision), method)
    return found.astype(_dtype(trials), copy=False)


def _dtype(trials: Trials) -> type[np.floating[Any]]:
    return np.float32 if trials.values.dtype in (np.float16, np.float32) else np.float64


def _precision(noise: ArrayLike, neurons: int) -> Floats:
    given = _arrays.floats("noise", noise).astype(np.float64)
    if given.shape not in ((neurons,), (neurons, neurons)):
        raise ValueError(f"noise: want [N] or [N, N] with N = {neurons}, got {given.shape}")
    return given


def _has_gaps(values: NDArray[Any]) -> bool:
    if values.dtype.kind != "f":
        return False
    step = max(1, PART // values.shape[1])
    return any(np.isnan(values[k : k + step]).any() for k in range(0, len(values), step))


def _blocks(trials: Trials) -> list[slice]:
    """Return blocks of neurons that fit into memory: values may be mapped from a file."""
    neurons = trials.values.shape[1]
    step = max(1, PART // len(trials.values))
    return [slice(k, min(k + step, neurons)) for k in range(0, neurons, step)]


def _balanced(trials: Trials, precision: Floats | None) -> NDArray[Any]:
    """Return crossnobis by the kernel, if all stimuli have the same number of trials in each fold."""
    labels: dict[str, Any] = {"folds": trials.fold, "stimuli": trials.stimulus}

    def of(values: NDArray[Any], noise: Floats | None) -> NDArray[Any]:
        return functional.rdm(
            _arrays.floats("responses", values),
            method="crossnobis",
            noise=noise,
            condensed=True,
            accuracy="high",
            **labels,
        )

    if precision is not None and precision.ndim == 2:
        return of(trials.values, precision)
    total: Any = 0.0
    for block in _blocks(trials):
        part = of(trials.values[:, block], None if precision is None else precision[block])
        total = total + part.astype(np.float64) * (block.stop - block.start)
    return np.asarray(total / trials.values.shape[1])


def _products(trials: Trials, method: str, precision: Floats | None) -> Floats:
    """Return the mean products [S, S] of trials from different folds, / N; NaN where there is no such pair."""
    counts, neurons = trials.counts.astype(np.float64), trials.values.shape[1]
    pairs = np.outer(counts.sum(0), counts.sum(0)) - counts.T @ counts
    whole = precision is not None and precision.ndim == 2
    offset = _row_means(trials.values) if method == "correlation" else 0.0
    products = np.zeros_like(pairs)
    for block in [slice(0, neurons)] if whole else _blocks(trials):
        values = _arrays.floats("responses", trials.values[:, block]).astype(np.float64) - offset
        if method in DISTANCES:
            values -= values.mean(0)
        sums = _fold_sums(values, trials)
        weights = precision[block] if precision is not None and not whole else precision
        for sign, each in ((1, sums.sum(0)), *((-1, own) for own in sums)):
            products += sign * (each @ _weighted(each, weights).T)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.where(pairs > 0, (products + products.T) / (2 * pairs * neurons), np.nan)
    return found


def _row_means(values: NDArray[Any]) -> Floats:
    """Return the mean [T, 1] over the neurons that are not NaN."""
    rows = [_arrays.floats("responses", row).astype(np.float64) for row in values]
    return np.array([[row[~np.isnan(row)].mean()] for row in rows])


def _fold_sums(values: Floats, trials: Trials) -> Floats:
    """Sum trials [T, N] by fold and stimulus: [F, S, N]."""
    shape = trials.counts.shape
    sums = np.zeros((shape[0] * shape[1], values.shape[1]))
    np.add.at(sums, trials.fold * shape[1] + trials.stimulus, values)
    return sums.reshape(*shape, -1)


def _weighted(values: Floats, precision: Floats | None) -> Floats:
    if precision is None:
        return values
    return values * precision if precision.ndim == 1 else values @ ((precision + precision.T) / 2)


def _from_products(products: Floats, method: str) -> Floats:
    """Return the dissimilarities [P] of products [S, S]."""
    i, j = np.triu_indices(len(products), 1)
    own = np.diagonal(products)
    if method in DISTANCES:
        return own[i] + own[j] - 2 * products[i, j]
    return _correlation_distance(products[i, j], own[i], own[j])


def _correlation_distance(product: Floats, first: Floats, second: Floats) -> Floats:
    """Return 1 - correlation; NaN where a variance is not positive: there is no response to be measured."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = 1 - product / np.sqrt(first * second)
    found[~((first > 0) & (second > 0))] = np.nan
    return found


def _by_neurons(trials: Trials, method: str, precision: Floats | None) -> Floats:
    """Return the dissimilarities [P] if single neurons are NaN: the mean over the neurons that both stimuli have."""
    values = _arrays.floats("responses", trials.values).astype(np.float64)
    if method == "correlation":
        values = values - _row_means(trials.values)
    there = ~np.isnan(values)
    if method in DISTANCES:
        values = values - np.where(there, values, 0).sum(0) / np.maximum(1, there.sum(0))
    sums, counts = (_fold_sums(x, trials) for x in (np.where(there, values, 0), there.astype(np.float64)))
    weights = np.ones(values.shape[1]) if precision is None else precision
    total, number = sums.sum(0), counts.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        own = weights * (total**2 - (sums**2).sum(0)) / (number**2 - (counts**2).sum(0))  # [S, N], NaN where no pair
    found = []
    for i in range(trials.stimuli - 1):
        pairs = number[i] * number[i + 1 :] - (counts[:, i, None] * counts[:, i + 1 :]).sum(0)
        product = weights * (total[i] * total[i + 1 :] - (sums[:, i, None] * sums[:, i + 1 :]).sum(0))
        both = (pairs > 0) & np.isfinite(own[i]) & np.isfinite(own[i + 1 :])
        with np.errstate(invalid="ignore", divide="ignore"):
            means = [
                np.where(both, each, 0).sum(1) / both.sum(1)
                for each in (product / pairs, np.broadcast_to(own[i], both.shape), own[i + 1 :])
            ]
        product, first, second = means
        distances = first + second - 2 * product
        found.append(distances if method in DISTANCES else _correlation_distance(product, first, second))
    return np.concatenate(found)


def noise_covariance(
    responses: ArrayLike | Tensor,
    stimuli: ArrayLike | None = None,
    *,
    shrinkage: str = "ledoit-wolf",
    residuals: bool = False,
    dof: float | None = None,
) -> Floats:
    """The covariance of the neurons' noise, from what differs between repeats of a stimulus, or from residuals.

    The repeats of each stimulus are rotated to R - 1 contrasts (Helmert's), which are independent and have the
    covariance of the noise and no signal. The sum of their squares is that of the deviations from the stimulus' mean,
    so the estimate is unbiased, with T - S degrees of freedom.

    The sample covariance of N neurons has no usable inverse for fewer than several N contrasts. "ledoit-wolf" takes a
    weighted mean with the identity, times the mean variance. Its weight minimises the expected squared error (Ledoit &
    Wolf, Journal of Multivariate Analysis 88, 365-411, 2004), by scikit-learn. This biases it: large eigenvalues
    towards the mean, and small ones too. rsatoolbox's "shrinkage_eye" has the same formula. But it takes deviations
    from the mean for independent, of which R have R - 1 degrees of freedom, and so shrinks less: by half for two
    repeats. Without shrinkage both are the same.

    Args:
        responses: [R, S, N], R repeats of S stimuli; or [T, N], T trials with ``stimuli``; or residuals [T, N] of a
            regression. Trials with a NaN are left out; for "diagonal", single NaN are.
        stimuli: [T], for trials: the stimulus of each.
        shrinkage: "ledoit-wolf"; "diagonal": the variances alone; "none".
        residuals: ``responses`` are residuals, whose expected value is 0.
        dof: degrees of freedom of residuals: T less the number of regressors. None: T.

    Returns:
        [N, N] float64; for "diagonal" the variances [N].

    Raises:
        ModuleNotFoundError: scikit-learn is absent ("ledoit-wolf").
        ValueError: an operand does not fit, or no stimulus has two trials.

    Example:
        >>> import numpy as np
        >>> from v1fast import rsa
        >>> repeats = np.random.default_rng(0).normal(size=(4, 2000, 3)) * [1.0, 2.0, 3.0]
        >>> np.sqrt(rsa.noise_covariance(repeats, shrinkage="diagonal")).round(1).tolist()
        [1.0, 2.0, 3.0]
    """
    _choices.one_of("shrinkage", shrinkage, SHRINKAGE)
    if residuals:
        rows = _residuals(responses, stimuli, shrinkage)
        if dof is not None and not (np.isfinite(dof) and dof > 0):
            raise ValueError(f"dof: want a positive number, got {dof}")
        factor = 1.0 if dof is None else len(rows) / dof
    else:
        if dof is not None:
            raise ValueError(f"dof: want None beside repeats, which have their own, got {dof}")
        rows, factor = _contrasts(trials_of(responses, stimuli, None), shrinkage), 1.0
    if shrinkage == "diagonal":
        there = ~np.isnan(rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            variances: Floats = factor * (np.where(there, rows, 0) ** 2).sum(0) / there.sum(0)
        return variances
    if shrinkage == "none":
        return factor * (rows.T @ rows) / len(rows)
    try:
        from sklearn.covariance import ledoit_wolf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('shrinkage needs scikit-learn: pip install "v1fast[rsa]"') from error
    found: Any = ledoit_wolf(rows, assume_centered=True)[0]
    return factor * np.asarray(found, dtype=np.float64)


def _residuals(given: ArrayLike | Tensor, stimuli: ArrayLike | None, shrinkage: str) -> Floats:
    rows = _arrays.floats("responses", given).astype(np.float64)
    if rows.ndim != 2 or 0 in rows.shape or stimuli is not None:
        raise ValueError(f"responses: want residuals [T, N], without stimuli, got {rows.shape}")
    rows = rows if shrinkage == "diagonal" else rows[~np.isnan(rows).any(1)]
    if not len(rows):
        raise ValueError("responses: want residuals without NaN in some trial, got NaN in each")
    return rows


def _contrasts(trials: Trials, shrinkage: str) -> Floats:
    """Return contrasts [T - S, N] of the trials of each stimulus: orthonormal, and orthogonal to their mean."""
    single, found = shrinkage == "diagonal", []
    for rows in _of_each_stimulus(trials):
        if not single or not np.isnan(rows).any():
            complete = rows[~np.isnan(rows).any(1)]
            found.append(_helmert(len(complete)) @ complete)
            continue
        columns = np.full((max(1, len(rows) - 1), rows.shape[1]), np.nan)
        for neuron, column in enumerate(rows.T):
            there = column[~np.isnan(column)]
            columns[: max(0, len(there) - 1), neuron] = _helmert(len(there)) @ there
        found.append(columns)
    together = np.concatenate(found)
    if not len(together):
        raise ValueError("responses: want a stimulus with 2 trials that have no NaN, got none")
    return together


def _of_each_stimulus(trials: Trials) -> Iterator[Floats]:
    """Yield the trials of each stimulus. No more is read at a time: values may be mapped from a file."""
    for k in range(trials.stimuli):
        rows = trials.values[np.flatnonzero(trials.stimulus == k)]
        yield _arrays.floats("responses", rows).astype(np.float64)


def _helmert(size: int) -> Floats:
    """[size - 1, size]: orthonormal rows of sum 0."""
    k = np.arange(1, max(1, size))[:, None]
    found = np.where(np.arange(size) < k, 1.0, np.where(np.arange(size) == k, -k, 0.0))
    return found / np.sqrt(k * (k + 1.0))


def noise_precision(
    responses: ArrayLike | Tensor,
    stimuli: ArrayLike | None = None,
    *,
    shrinkage: str = "ledoit-wolf",
    residuals: bool = False,
    dof: float | None = None,
) -> Floats:
    """The inverse of ``noise_covariance``, as ``noise`` of ``functional.rdm`` and ``rdm_of_repeats`` takes it.

    Returns:
        [N, N] float64; for "diagonal" [N]. A neuron without noise has infinite precision, which is an error.

    Raises:
        ModuleNotFoundError: as for ``noise_covariance``.
        ValueError: likewise; or the covariance has no inverse.

    Example:
        >>> import numpy as np
        >>> from v1fast import rsa
        >>> repeats = np.random.default_rng(0).normal(size=(4, 20, 30))
        >>> rsa.rdm_of_repeats(repeats, "crossnobis", noise=rsa.noise_precision(repeats)).shape
        (190,)
    """
    covariance = noise_covariance(responses, stimuli, shrinkage=shrinkage, residuals=residuals, dof=dof)
    if covariance.ndim == 1:
        silent = int((~(covariance > np.finfo(np.float64).eps * np.nanmax(covariance))).sum())  # up to rounding
        if silent:
            raise ValueError(f"responses: want noise in each neuron, got none, or no two trials, in {silent}")
        return 1 / covariance
    eigenvalues, vectors = np.linalg.eigh(covariance)
    if not eigenvalues[0] > len(covariance) * np.finfo(np.float64).eps * eigenvalues[-1]:
        raise ValueError(f"shrinkage: want a covariance that has an inverse, got a singular one from {shrinkage!r}")
    return (vectors / eigenvalues) @ vectors.T


def stimulus_noise(
    responses: ArrayLike | Tensor, stimuli: ArrayLike | None = None, *, noise: ArrayLike | None = None
) -> Floats:
    """The variance of the noise in the mean response to each stimulus: the diagonal of ``compare``'s ``sigma_k``.

    It is the mean over neurons of the variance over a stimulus' trials, over their number. It is unbiased. Its relative
    standard error is about sqrt(2 / (N (R - 1))) for N independent neurons and R trials.

    Args:
        responses: [R, S, N], R repeats of S stimuli; or [T, N], T trials with ``stimuli``. NaN is left out.
        stimuli: [T], for trials: the stimulus of each.
        noise: the precision of the neurons, [N, N] or [N], if the dissimilarities are computed with it.

    Returns:
        [S]; NaN for a stimulus with a single trial.

    Raises:
        ValueError: an operand does not fit.

    Example:
        >>> import numpy as np
        >>> from v1fast import rsa
        >>> deviation = np.array([1.0, 2.0, 3.0])[:, None]
        >>> repeats = deviation * np.random.default_rng(0).normal(size=(4, 3, 10_000))
        >>> rsa.stimulus_noise(repeats).round(1).tolist()  # variances 1, 4 and 9, over 4
        [0.2, 1.0, 2.3]
    """
    trials = trials_of(responses, stimuli, None)
    precision = None if noise is None else _precision(noise, trials.values.shape[1])
    found = np.full(trials.stimuli, np.nan)
    for k, rows in enumerate(_of_each_stimulus(trials)):
        if precision is not None and precision.ndim == 2:
            rows = rows[~np.isnan(rows).any(1)]
        number = (~np.isnan(rows)).sum(0)
        usable = number >= 2
        if not usable.any():
            continue
        deviations = rows - np.nansum(rows, 0) / np.maximum(1, number)
        squares = np.nansum(deviations * _weighted(deviations, precision), 0)[usable]
        found[k] = np.mean(squares / ((number[usable] - 1) * number[usable]))
    return found
