"""Models with parameters: non-negative weights of several matrices, the best of them, a place between two of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
from numpy.typing import ArrayLike, NDArray

from v1fast import _arrays, _choices
from v1fast.rsa._defined import is_empty, is_undefined, scaled
from v1fast.rsa._matrices import Condensed, condensed, stimuli_of, to_squares
from v1fast.rsa._sums import Floats
from v1fast.rsa.similarity import METHODS, RSATOOLBOX_NAMES, compare, covariance_of, ranks, whitened_products

RANKED = ("spearman", "rho-a", "tau-a", "tau-b")
FITS = ("weighted", "select", "interpolate")
FEWEST_STIMULI = 3  # in a fold: with fewer there is one pair, and no similarity
STEPS = ((12, 2), (24, 3), (40, 4))  # up to so many stimuli, not included, so many folds; then 5
SUBJECT_STEPS = ((6, 2), (12, 3), (20, 4))


def fit_weights(
    rdms: Condensed | ArrayLike,
    models: Condensed | ArrayLike,
    method: str = "pearson",
    *,
    fit: str = "weighted",
    sigma_k: ArrayLike | None = None,
) -> Floats:
    r"""The weights of K models whose sum is most similar to the subjects' matrices, on average.

    - "weighted": weights that are not negative. A mixture of populations of neurons, each with one model's
      dissimilarities, has such a matrix (squared distances of independent populations add up). For a measure that is
      a cosine in some space, the mean similarity to subjects d_m is the product of the direction of the prediction X w
      with the mean of d_m / \|d_m\|. Its maximum is the projection on the cone of X: non-negative least squares
      (Lawson & Hanson, Solving Least Squares Problems, 1974, chapter 23, by ``scipy.optimize.nnls``; for matrices
      Khaligh-Razavi & Kriegeskorte, PLoS Computational Biology 10, e1003915, 2014). If no weighted sum is similar at
      all, it is the single model that is the least dissimilar.
    - "select": a single model, the most similar one.
    - "interpolate": (1 - a) of one model and a of the next one, in the given order, 0 <= a <= 1.

    Measures of ranks have no such space. For spearman, rho-a and tau, weights are those of the model's values that are
    most correlated with the mean ranks of the subjects, which is near the optimum, but not it. "select" is exact for
    all measures.

    Args:
        rdms: one matrix or one for each of M subjects, as for ``compare``.
        models: K of them, of the same stimuli.
        method: as for ``compare``.
        fit: one of the above.
        sigma_k: for the whitened measures, as for ``compare``.

    Returns:
        [K] weights, at least 0, of sum 1, in the unit of the given models. Positions that are NaN in any matrix are
        left out; subjects without a similarity too. NaN if nothing is left, or no model has a similarity.

    Raises:
        ValueError: an operand does not fit.

    Example:
        >>> import numpy as np
        >>> from v1fast import rsa
        >>> models = np.random.default_rng(0).random((3, 190))
        >>> rsa.fit_weights(models[0] + 3 * models[2], models).round(2).tolist()
        [0.25, 0.0, 0.75]
    """
    method = RSATOOLBOX_NAMES.get(method, method)
    _choices.one_of("method", method, METHODS)
    _choices.one_of("fit", fit, FITS)
    data, candidates = _both(rdms, models)
    sigma = None if sigma_k is None else covariance_of(sigma_k, method, stimuli_of(data.shape[1]))
    return _fit(data, candidates, method, fit, sigma)


def _both(rdms: Condensed | ArrayLike, models: Condensed | ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    (data, _), (candidates, _) = condensed("rdms", rdms), condensed("models", models)
    if data.shape[1] != candidates.shape[1]:
        raise ValueError(f"models: want {data.shape[1]} pairs of stimuli, as rdms have, got {candidates.shape[1]}")
    return data, candidates


def _fit(data: NDArray[Any], models: NDArray[Any], method: str, fit: str, sigma: Floats | None) -> Floats:
    """Return the weights [K]; see ``fit_weights``."""
    count = len(models)
    data = data[~is_empty(data)]
    present = ~(np.isnan(data).any(0) | np.isnan(models).any(0))
    if not len(data) or not present.any():
        return np.full(count, np.nan)
    data = data[~is_undefined(data[:, present], method)]
    usable = ~is_undefined(models[:, present], method)
    if not len(data) or not usable.any():
        return np.full(count, np.nan)
    if fit == "select":
        shared = np.where(present, data, np.nan)
        found = np.zeros(int(usable.sum()))
        found[np.argmax([_mean(_each(model, shared, method, sigma)) for model in models[usable]])] = 1
    else:
        gram, target = _normal_equations(data, models[usable], method, sigma, present)
        units = np.sqrt(np.diagonal(gram))  # each model in its own unit, so that units do not decide what is small
        gram, target = gram / np.outer(units, units), target / units
        found = (_nonnegative if fit == "weighted" else _between)(gram, target) / units
    weights = np.zeros(count)
    weights[usable] = found / found.sum()
    return weights


def _normal_equations(
    data: NDArray[Any], models: NDArray[Any], method: str, sigma: Floats | None, present: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Return products of the models with each other [K, K], and with the mean direction of the data [K]."""
    scales = np.abs(models[:, present]).max(1)
    values = np.where(present, data, 0)
    if method in RANKED:
        values[:, present] = ranks(data[:, present])
    together = np.concatenate([models / scales[:, None], scaled(values)]).astype(np.float64)
    products, count = _products(together, method, sigma, present), len(models)
    norms = np.sqrt(np.diagonal(products)[count:])
    gram: Floats = products[:count, :count] * np.outer(scales, scales)
    return gram, (products[:count, count:] / norms).mean(1) * scales


def _products(vectors: Floats, method: str, sigma: Floats | None, present: NDArray[np.bool_]) -> Floats:
    """Return the products [M, M] of vectors whose normalised products are the measure, for ranks: of ranks."""
    if method.startswith("whitened"):
        covariance = np.eye(stimuli_of(vectors.shape[1])) if sigma is None else sigma
        return whitened_products(vectors, covariance, present, method == "whitened-pearson")
    kept = vectors[:, present]
    if method != "cosine":
        kept = kept - kept.mean(1, keepdims=True)
    return kept @ kept.T


def _nonnegative(gram: Floats, target: Floats) -> Floats:
    """Return w >= 0 that minimises w' G w - 2 w' t; if that is 0, the best single model."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > len(gram) * np.finfo(np.float64).eps * values[-1]  # models may be sums of each other
    root = np.sqrt(values[kept])
    found, _ = scipy.optimize.nnls(root[:, None] * vectors[:, kept].T, (vectors[:, kept].T @ target) / root)
    if not found.any():
        found = np.zeros(len(gram))
        found[np.argmax(target / np.sqrt(np.diagonal(gram)))] = 1
    return np.asarray(found, dtype=np.float64)


def _between(gram: Floats, target: Floats) -> Floats:
    """Return the best weights of two neighbours: the optimum along the line from one to the next is in closed form."""
    count = len(gram)
    best: Any = -np.inf
    found = np.zeros(count)
    for k in range(max(1, count - 1)):
        pair = [k, k + 1] if count > 1 else [0]
        for weights in _candidates(gram[np.ix_(pair, pair)], target[pair]):
            similarity = weights @ target[pair] / np.sqrt(weights @ gram[np.ix_(pair, pair)] @ weights)
            if similarity > best:
                best, found = similarity, np.zeros(count)
                found[pair] = weights
    return found


def _candidates(gram: Floats, target: Floats) -> Iterator[Floats]:
    yield from np.eye(len(target))
    if len(target) == 2:
        weights = np.array(
            [gram[1, 1] * target[0] - gram[0, 1] * target[1], gram[0, 0] * target[1] - gram[0, 1] * target[0]]
        )
        if (weights > 0).all():
            yield weights


@dataclasses.dataclass(frozen=True)
class CrossValidated:
    """Result of ``crossvalidate``.

    Attributes:
        similarity: mean over folds of stimuli and over subjects, of data that the weights were not fitted to.
        subjects: [M], the same for each subject; NaN where undefined.
        each: [F, M], of each fold of stimuli.
        weights: [K], fitted to all data.
        fold_weights: [F, G, K], of each fold of stimuli and of subjects.
        fitted: the similarity of the model with ``weights`` to the data that they were fitted to: too high.
        ceiling: lower and upper bound of the similarity on the same parts of the data: of the mean of the training
            subjects, and of the mean of all; NaN for one subject.
        undefined: the number of NaN among ``each``, which the means leave out.
    """

    similarity: float
    subjects: Floats
    each: Floats
    weights: Floats
    fold_weights: Floats
    fitted: float
    ceiling: tuple[float, float]
    undefined: int


def crossvalidate(
    rdms: Condensed | ArrayLike,
    models: Condensed | ArrayLike,
    method: str = "pearson",
    *,
    fit: str = "weighted",
    stimulus_folds: int | ArrayLike | None = None,
    subject_folds: int | ArrayLike | None = None,
    sigma_k: ArrayLike | None = None,
    seed: int = 0,
) -> CrossValidated:
    """Test models with parameters on stimuli and subjects that they were not fitted to.

    For each fold of stimuli and each fold of subjects, weights are fitted to the other subjects' dissimilarities
    between the other stimuli, and tested on these subjects' dissimilarities between these stimuli. Pairs with one
    stimulus in each are in neither (Schütt et al., eLife 12, e82566, 2023; rsatoolbox's ``crossval``). A model without
    parameters, one matrix, is evaluated on the same parts: with the same folds or seed, subjects' similarities can be
    compared in pairs.

    Weights from fewer stimuli are less precise than those from all. So the result is on average a little below the
    similarity of the model as fitted to all data to new data. Without a relation it is 0 on average, where that to the
    data of the fit is positive: .09 in the simulation of the tests (8 models, 20 stimuli, 6 subjects, pearson).

    Args:
        rdms: one matrix, or one for each of M subjects, as for ``compare``.
        models: K of them, of the same S stimuli.
        method: as for ``compare``.
        fit: as for ``fit_weights``.
        stimulus_folds: the number of folds, into which stimuli are drawn at random; or [S] labels, so that groups of
            stimuli, such as categories, stay together. Each fold has at least 3 stimuli. None: 2 to 5, for less than
            12, 24, 40 and more stimuli, as in rsatoolbox. 1: weights are fitted to all stimuli.
        subject_folds: the number, or [M] labels, so that the sessions of a subject stay together. None: 2 to 5, for
            less than 6, 12, 20 and more subjects, as in rsatoolbox. 1, and where there is one subject: weights are
            fitted to all subjects.
        sigma_k: for the whitened measures, as for ``compare``.
        seed: of the folds.

    Returns:
        See ``CrossValidated``.

    Raises:
        ValueError: an operand does not fit; or both numbers of folds are 1, so that nothing is left to test.

    Example:
        >>> import numpy as np
        >>> from v1fast import rsa
        >>> draw = np.random.default_rng(0)
        >>> models = draw.random((3, 190))
        >>> subjects = models[0] + 2 * models[1] + 0.5 * draw.normal(size=(6, 190))
        >>> found = rsa.crossvalidate(subjects, models)
        >>> found.weights.round(1).tolist(), found.ceiling[0] < found.similarity
        ([0.3, 0.6, 0.0], True)
    """
    method = RSATOOLBOX_NAMES.get(method, method)
    _choices.one_of("method", method, METHODS)
    _choices.one_of("fit", fit, FITS)
    data, candidates = _both(rdms, models)
    stimuli = stimuli_of(data.shape[1])
    sigma = None if sigma_k is None else covariance_of(sigma_k, method, stimuli)
    draw = np.random.default_rng(seed)
    of_stimuli = _fold_labels("stimulus_folds", stimulus_folds, stimuli, STEPS, FEWEST_STIMULI, draw)
    of_subjects = _fold_labels("subject_folds", subject_folds, len(data), SUBJECT_STEPS, 1, draw)
    if of_stimuli.max() == of_subjects.max() == 0:
        raise ValueError("stimulus_folds, subject_folds: want at least 2 folds of one of them, got 1 and 1")
    shape = int(of_stimuli.max()) + 1, int(of_subjects.max()) + 1
    each, lower, upper = (np.full((shape[0], len(data)), np.nan) for _ in range(3))
    weights = np.full((*shape, len(candidates)), np.nan)
    for f, g in np.ndindex(shape):
        part = _Part(of_stimuli == f, of_subjects == g, *shape)
        train, test = part.pairs(True), part.pairs(False)
        fitted = _fit(data[part.train_subjects][:, train], candidates[:, train], method, fit, part.sigma(sigma, True))
        weights[f, g] = fitted
        own = data[part.subjects][:, test]
        if np.isfinite(fitted).all():
            predicted = _combined(fitted, candidates[:, test])
            each[f, part.subjects] = _each(predicted, own, method, part.sigma(sigma, False))
        if shape[1] > 1:
            for bound, chosen in ((lower, part.train_subjects), (upper, np.ones(len(data), bool))):
                mean = _mean_direction(data[chosen][:, test], method, part.sigma(sigma, False))
                bound[f, part.subjects] = _each(mean, own, method, part.sigma(sigma, False))
    whole = _fit(data, candidates, method, fit, sigma)
    fitted_to = _each(_combined(whole, candidates), data, method, sigma)
    ceiling = (_mean(lower), _mean(upper))
    subjects = np.array([_mean(column) for column in each.T])
    undefined = int(np.isnan(each).sum())
    return CrossValidated(_mean(each), subjects, each, whole, weights, _mean(fitted_to), ceiling, undefined)


class _Part(NamedTuple):
    """The stimuli and subjects of a fold, as masks. Where there is one fold, training has all."""

    stimuli: NDArray[np.bool_]
    subjects: NDArray[np.bool_]
    stimulus_folds: int
    subject_folds: int

    def chosen(self, train: bool) -> NDArray[np.int64]:
        if self.stimulus_folds == 1:
            return np.arange(len(self.stimuli))
        return np.flatnonzero(self.stimuli != train)

    def pairs(self, train: bool) -> NDArray[np.int64]:
        """Return the positions in a condensed matrix of the pairs within these stimuli."""
        stimuli = self.chosen(train)
        places = to_squares(np.arange(len(self.stimuli) * (len(self.stimuli) - 1) // 2)[None])[0]
        found: NDArray[np.int64] = places[np.ix_(stimuli, stimuli)][np.triu_indices(len(stimuli), 1)]
        return found

    def sigma(self, sigma: Floats | None, train: bool) -> Floats | None:
        chosen = self.chosen(train)
        return None if sigma is None else sigma[np.ix_(chosen, chosen)]

    @property
    def train_subjects(self) -> NDArray[np.bool_]:
        return self.subjects if self.subject_folds == 1 else ~self.subjects


def _fold_labels(
    name: str,
    given: int | ArrayLike | None,
    size: int,
    steps: tuple[tuple[int, int], ...],
    fewest: int,
    draw: np.random.Generator,
) -> NDArray[np.int64]:
    """Return the fold of each stimulus or subject, from 0 on."""
    if given is None:
        given = 1 if size < 2 * fewest else next((folds for below, folds in steps if size < below), 5)
    if isinstance(given, (int, np.integer)):
        if not 1 <= given <= size // fewest:
            raise ValueError(f"{name}: want 1 to {size // fewest} folds of {size}, got {given}")
        labels = np.arange(size) % given
        draw.shuffle(labels)
        return labels
    labels = _arrays.distinct(name, given)[1]
    if labels.shape != (size,):
        raise ValueError(f"{name}: want a number, or [{size}] labels, got {labels.shape}")
    if len(labels) and (np.bincount(labels) < fewest).any():
        raise ValueError(f"{name}: want at least {fewest} in each fold, got {np.bincount(labels).min()}")
    return labels


def _combined(weights: Floats, models: NDArray[Any]) -> Floats:
    """Return the weighted sum. A model of weight 0 does not make it NaN."""
    used = weights != 0
    found: Floats = weights[used] @ models[used].astype(np.float64)
    return found


def _each(prediction: Floats, data: NDArray[Any], method: str, sigma: Floats | None) -> Floats:
    """Return the similarity of a prediction to each matrix. A NaN in one matrix is left out of that matrix alone."""
    if np.isnan(data).any() or len(data) == data.shape[1]:  # a square may be taken for one matrix
        return np.array([compare(prediction, vector, method, sigma_k=sigma) for vector in data], dtype=np.float64)
    return np.asarray(compare(prediction, data, method, sigma_k=sigma), dtype=np.float64)


def _mean_direction(data: NDArray[Any], method: str, sigma: Floats | None) -> Floats:
    """Return the matrix that is most similar to all: the mean of ranks, or of matrices in units of their norm."""
    data = data[~is_empty(data)]
    found = np.full(data.shape[1], np.nan)
    present = ~np.isnan(data).any(0)
    data = data[~is_undefined(data[:, present], method)]
    if not len(data) or not present.any():
        return found
    if method in RANKED:
        found[present] = ranks(data[:, present]).mean(0)
        return found
    values = scaled(np.where(present, data, 0))
    if not method.endswith("cosine"):
        values -= values[:, present].mean(1, keepdims=True)
    norms = np.sqrt([_products(vector[None], method, sigma, present)[0, 0] for vector in values])
    found[present] = (values[:, present] / norms[:, None]).mean(0)
    return found


def _mean(values: Floats) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else float("nan")
