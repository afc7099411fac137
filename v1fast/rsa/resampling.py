"""The uncertainty of similarities, over the stimuli and the subjects that were drawn."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from v1fast import _arrays, _choices
from v1fast.rsa._defined import is_empty
from v1fast.rsa._leave_out import (
    LEAST_GROUPS,
    Covariances,
    Groups,
    LeftOut,
    covariances,
    leave_out,
    subject_covariance,
)
from v1fast.rsa._matrices import Condensed, condensed, stimuli_of, to_squares
from v1fast.rsa._pair_features import SUMMED, PairFeatures
from v1fast.rsa._sums import Floats
from v1fast.rsa.ceiling import by_subject, mean_of_defined, say_left_out, subject_labels
from v1fast.rsa.similarity import METHODS, RSATOOLBOX_NAMES, compare

RESAMPLED = ("stimuli", "subjects", "both")
OVER = {"stimuli": "stimuli", "subjects": "subjects", "both": "subjects and stimuli"}  # in words
LEAST_SUBJECTS = 2
WEIGHTS = 1 << 23  # weights of pairs that are held at a time


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Result of ``bootstrap``.

    Attributes:
        similarity: [K], for each model, the mean over the subjects for which it is defined.
        samples: [B, K], the same for each resampling; NaN where it is undefined, for example if a resampling has only
            one category left.
        left_out: [K], the number of matrices for which it is undefined, although it is defined for others.
        error: [K], standard errors. They are not the standard deviations of ``samples``; see ``bootstrap``.
        freedom: [K], degrees of freedom of the standard errors.
        over: "stimuli", "subjects" or "both".
        reason: why standard errors are NaN; empty if none is.
        undefined_pairs: [K], the number of pairs of stimuli (or categories) without which the similarity is undefined.
            Standard errors leave them out.
    """

    similarity: Floats
    samples: Floats
    left_out: NDArray[np.int64]
    error: Floats
    freedom: Floats
    over: str
    reason: str
    undefined_pairs: NDArray[np.int64]

    @property
    def undefined(self) -> NDArray[np.int64]:
        """[K], the number of resamplings that are NaN. Percentiles leave them out."""
        return np.isnan(self.samples).sum(0)

    def confidence(self, level: float = 0.95) -> Floats:
        """Return the lower and upper end [2, K] of the interval for the expected similarity.

        It is a t interval. Over stimuli, or both, it is computed on Fisher's z, so that it stays within -1 .. 1. NaN
        where the similarity or its standard error is undefined; ``reason`` says why.
        """
        _check_level(level)
        if self.over == "subjects":
            return t_interval(self.similarity, self.error, self.freedom, level)
        return fisher_interval(self.similarity, self.error, self.freedom, level)

    def percentiles(self, level: float = 0.95) -> Floats:
        """Return the lower and upper end [2, K] of the interval between percentiles of the defined resamplings.

        This is the simple bootstrap. Over stimuli or both it is too wide, over few subjects too narrow; see
        ``bootstrap``. NaN if there are none, or if the similarity itself is undefined.
        """
        _check_level(level)
        tail = (1 - level) / 2
        found: Floats = np.full((2, self.samples.shape[1]), np.nan)
        there = ~np.isnan(self.similarity) & ~np.isnan(self.samples).all(0)
        found[:, there] = np.nanquantile(self.samples[:, there], [tail, 1 - tail], axis=0)
        return found


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: want more than 0 and less than 1, got {level}")


def t_interval(values: Floats, error: Floats, freedom: Floats, level: float) -> Floats:
    """Return the ends [2, K] of t intervals around values [K]."""
    half = error * scipy.stats.t.ppf((1 + level) / 2, freedom)
    return np.stack([values - half, values + half])


def fisher_interval(values: Floats, error: Floats, freedom: Floats, level: float) -> Floats:
    """Return the ends [2, K] of t intervals around the inverse hyperbolic tangent of values [K], on their own scale."""
    within = np.clip(values, -1, 1)
    slope = 1 - within**2
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.tanh(t_interval(np.arctanh(within), error / slope, freedom, level))
    # At 1 or -1 the scale ends.
    return np.where(slope > 0, ends, np.clip(t_interval(values, error, freedom, level), -1, 1))


def bootstrap(
    rdms: Condensed | ArrayLike,
    models: Condensed | ArrayLike,
    method: str = "pearson",
    *,
    over: str = "stimuli",
    subjects: ArrayLike | None = None,
    categories: ArrayLike | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Bootstrap:
    """The uncertainty of similarities, over stimuli, subjects, or both.

    ``samples`` are similarities of data that are drawn with replacement. Pairs of a stimulus with a copy of itself are
    left out: their dissimilarity of 0 carries no information (Nili et al. 2014; Schütt et al., eLife 12, e82566, 2023).

    The standard deviation of these samples is not the standard error. What a pair of stimuli contributes beyond its two
    stimuli, such as noise, varies 3 times as much in the samples as it should, since both stimuli are drawn; 7 times,
    if subjects are drawn too. Schütt et al. correct the 7, but not the 3. The standard error of ``confidence`` has
    neither. It is the root of a variance that is estimated without resampling:

    - over subjects: that of a mean, s² / M;
    - over stimuli: that of the jackknife, minus what pairs of stimuli contribute to it twice, which leaving out two
      stimuli at a time measures (Efron & Stein, Annals of Statistics 9, 1981, section 5);
    - over both: the sum of s² / M and of the part over stimuli that subjects share, the mean covariance of two
      subjects. The variance of subjects already has the rest.

    Each part is at least 0. Degrees of freedom are M - 1 for subjects, (S - 1) V / J for stimuli, where V is the
    variance and J that of the jackknife, and Satterthwaite's for both. In simulations 95 % intervals cover 93 to 97 %
    for 5 to 20 subjects and 20 to 60 stimuli: docs/inference.md. The value that they cover is the expected similarity
    for as many stimuli as there are. Some measures depend on this number: whitened cosines are higher with few stimuli.

    Args:
        rdms: one matrix, or one for each of M subjects, as for ``compare``.
        models: one or K of them, to which the similarities are computed.
        method: as for ``compare``. Pearson and cosine come from weighted sums over pairs, all resamplings in one
            product. The others are computed one resampling after another.
        over: "stimuli" (other stimuli, these subjects), "subjects" (other subjects, these stimuli) or "both".
        subjects: [M], the subject of each matrix, if some have several sessions: a subject's similarity is the mean of
            its sessions', and its sessions are drawn together. By default, each matrix is a subject.
        categories: [S], the category of each stimulus, if other categories could have been used: all stimuli of a
            category are drawn together. By default, each stimulus is drawn by itself.
        samples: B, the number of resamplings.
        seed: of the random draws.

    Returns:
        Similarities, those of each resampling, and standard errors. Matrices without a similarity (all NaN, or
        constant; see ``v1fast.rsa``) are left out of the means, with a RuntimeWarning, and counted. Standard errors are
        NaN, with a RuntimeWarning, for fewer than 2 subjects or 5 stimuli (or categories), as far as these are drawn,
        or if the similarity is undefined without one of the stimuli; for fewer than 2 subjects the samples as well.

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
    labels, groups = subject_labels(subjects, len(a)), stimulus_groups(categories, stimuli_of(a.shape[1]))
    similarity = np.asarray(compare(a, b, method)).reshape(len(a), len(b))
    absent = np.isnan(similarity) & ~np.isnan(similarity).all(0)  # while other subjects have one
    say_left_out(int(absent.any(1).sum()), len(a))
    a, b, rows, columns = defined(a, b, similarity)
    similarities = Similarities(a, b, method, labels[rows])
    spread, reason = spread_over(over, similarities, groups, seed)
    error, freedom = np.full((2, similarity.shape[1]), np.nan)
    error[columns], freedom[columns] = standard_errors(spread, np.eye(len(columns)), over)
    if not reason and np.isnan(error[columns]).any():
        reason = f"over {OVER[over]}: a similarity is undefined without one of the stimuli"
    if reason:
        warnings.warn(f"no interval {reason}", RuntimeWarning, stacklevel=2)
    drawn = np.full((samples, similarity.shape[1]), np.nan)
    if len(rows) and (over == "stimuli" or similarities.units >= LEAST_SUBJECTS):
        drawn[:, columns] = _resample(similarities, over, groups, samples, np.random.default_rng(seed))
    whole = mean_of_defined(by_subject(similarity, labels), 0)
    pairs = np.zeros(len(error), dtype=np.int64)
    pairs[columns] = 0 if spread is None else spread.undefined
    return Bootstrap(whole, drawn, absent.sum(0), error, freedom, over, reason, pairs)


def stimulus_groups(categories: ArrayLike | None, stimuli: int) -> Groups:
    """Return the stimuli that are drawn together.

    Raises:
        ValueError: there is not one label for each stimulus.
    """
    if categories is None:
        return Groups(np.arange(stimuli))
    _, places = _arrays.distinct("categories", categories)
    if places.shape != (stimuli,):
        raise ValueError(f"categories: want [S] = ({stimuli},), one for each stimulus, got {places.shape}")
    return Groups(np.asarray(places, dtype=np.int64))


def defined(
    a: NDArray[Any], b: NDArray[Any], similarity: Floats
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """Return the matrices that have similarities, and which of [M] and of [K] these are.

    A similarity [M, K] is undefined because of one of its two matrices. Positions that are NaN in any matrix that is
    not empty are NaN in all.
    """
    rows, columns = (np.flatnonzero(~np.isnan(similarity).all(axis)) for axis in (1, 0))
    empty = is_empty(a), is_empty(b)
    present = ~(np.isnan(a[~empty[0]]).any(0) | np.isnan(b[~empty[1]]).any(0))
    if present.all():
        return a[rows], b[columns], rows, columns
    return np.where(present, a[rows], np.nan), np.where(present, b[columns], np.nan), rows, columns


@dataclasses.dataclass(frozen=True)
class Similarities:
    """The similarities of subjects with models, all of them defined.

    Attributes:
        a: [M, P], the subjects' matrices.
        b: [K, P], the models.
        method: as for ``compare``.
        labels: [M], the subject of each matrix.
        others: [M, P], for each matrix the mean of the other subjects', if wanted: its similarity, whose mean is the
            lower bound of the noise ceiling, is the last of K + 1.
    """

    a: NDArray[Any]
    b: NDArray[Any]
    method: str
    labels: NDArray[np.int64]
    others: Floats | None = None

    @property
    def units(self) -> int:
        """U, the number of subjects."""
        return len(np.unique(self.labels))

    def whole(self) -> Floats:
        """Return the similarities [U, K], or [U, K + 1]."""
        return self._by_subject(np.asarray(compare(self.a, self._models(), self.method)))

    def without(self, groups: Groups, seed: int) -> LeftOut:
        """Return them without some of the stimuli."""
        found = leave_out(self.a, self._models(), self.method, groups, seed)
        whole, one, two = (self._by_subject(values) for values in (found.whole, found.one, found.two))
        return LeftOut(whole, one, two, found.twos)

    def _models(self) -> NDArray[Any]:
        return self.b if self.others is None else np.concatenate([self.b, self.others.astype(self.b.dtype)])

    def _by_subject(self, values: Floats) -> Floats:
        if self.others is not None:
            own = values[..., len(self.b) :].diagonal(axis1=-2, axis2=-1)[..., None]
            values = np.concatenate([values[..., : len(self.b)], own], -1)
        return by_subject(values, self.labels)


def spread_over(over: str, similarities: Similarities, groups: Groups, seed: int) -> tuple[Covariances | None, str]:
    """Return the covariances of mean similarities, or why there are none."""
    units = similarities.units
    if not units or not len(similarities.b):
        return None, ""
    if over != "stimuli" and units < LEAST_SUBJECTS:
        return None, f"over {OVER[over]}: want at least {LEAST_SUBJECTS} subjects, got {units}"
    if over != "subjects" and groups.count < LEAST_GROUPS:
        return None, f"over {OVER[over]}: want at least {LEAST_GROUPS} stimuli or categories, got {groups.count}"
    if over != "subjects":
        return covariances(similarities.without(groups, seed)), ""
    between = subject_covariance(similarities.whole())
    none = np.full_like(between, np.nan)
    undefined = np.zeros(len(between), dtype=np.int64)
    return Covariances(between, none, none, none, none, units, groups.count, undefined), ""


def standard_errors(spread: Covariances | None, contrasts: Floats, over: str) -> tuple[Floats, Floats]:
    """Return standard errors and degrees of freedom [C] of sums of similarities with weights [C, K]."""
    if spread is None:
        return np.full(len(contrasts), np.nan), np.full(len(contrasts), np.nan)
    n, units = spread.groups, spread.units

    def variance(covariance: Floats) -> Floats:
        # One by one: a NaN of a model without a standard error belongs to the contrasts in which it occurs.
        return np.array([each[used] @ covariance[np.ix_(used, used)] @ each[used] for each, used in weighted])

    weighted = [(each, np.flatnonzero(each)) for each in contrasts]
    between = variance(spread.subjects)
    if over == "subjects":
        return np.sqrt(between), np.full(len(contrasts), units - 1.0)
    alone, pairs = (
        (variance(spread.alone), variance(spread.pairs))
        if over == "stimuli"
        else (variance(spread.shared_alone), variance(spread.shared_pairs))
    )
    # The jackknife counts pairs twice, and a little more.
    stimuli = np.maximum(alone - 2 * (n - 1) / (n - 2) * pairs, 0) + np.maximum(pairs, 0)
    total = stimuli if over == "stimuli" else stimuli + between
    with np.errstate(invalid="ignore", divide="ignore"):
        of_stimuli = (n - 1) * np.where(stimuli > 0, stimuli / np.maximum(alone, stimuli), 1)
        freedom = of_stimuli if over == "stimuli" else total**2 / (between**2 / (units - 1) + stimuli**2 / of_stimuli)
    exact = total == 0  # as between a matrix and itself
    return np.sqrt(total), np.where(exact, n - 1, freedom)


def _resample(similarities: Similarities, over: str, groups: Groups, samples: int, draw: np.random.Generator) -> Floats:
    """Return the mean similarities [B, K] of resamplings."""
    if over == "subjects":
        whole = similarities.whole()
        each = np.broadcast_to(whole, (samples, *whole.shape))
    else:
        a, b, method = similarities.a, similarities.b, similarities.method
        drawn = draw.integers(groups.count, size=(samples, groups.count))
        counts = np.stack([np.bincount(order, minlength=groups.count) for order in drawn])[:, groups.labels]
        each = (resample_by_weights if method in SUMMED else resample_one_by_one)(a, b, method, counts)
        each = by_subject(each, similarities.labels)
    if over != "stimuli":
        chosen = draw.integers(similarities.units, size=(samples, similarities.units))
        each = np.take_along_axis(each, chosen[:, :, None], 1)
    return mean_of_defined(each, 1)


def resample_one_by_one(a: NDArray[Any], b: NDArray[Any], method: str, counts: NDArray[np.int64]) -> Floats:
    """Return the similarities [B, M, K], one resampling after another, for how often each stimulus occurs [B, S]."""
    matrices = [to_squares(vectors) for vectors in (a, b)]
    found = np.empty((len(counts), len(a), len(b)))
    for sample, count in enumerate(counts):
        order = np.repeat(np.arange(len(count)), count)
        i, j = np.triu_indices(len(order), 1)
        first, second = order[i], order[j]
        a, b = (np.where(first == second, np.nan, matrix[:, first, second]) for matrix in matrices)
        found[sample] = compare(a, b, method)
    return found


def resample_by_weights(a: NDArray[Any], b: NDArray[Any], method: str, counts: NDArray[np.int64]) -> Floats:
    """Return the same from weighted sums. A pair of stimuli that occur m and n times has weight m n."""
    i, j = np.triu_indices(counts.shape[1], 1)
    present = ~(np.isnan(a).any(0) | np.isnan(b).any(0))
    features = PairFeatures(a, b, present, method)
    rows = np.concatenate([each[:, present] for each in features.rows()])
    i, j, weights = i[present], j[present], counts.astype(np.float64)
    step = max(1, WEIGHTS // max(1, len(i)))
    sums = np.concatenate(
        [(weights[k : k + step, i] * weights[k : k + step, j]) @ rows.T for k in range(0, len(weights), step)]
    )
    found, doubtful = features.similarity(sums.T)
    for sample in np.flatnonzero(doubtful):  # a remainder of rounding is no variance, and a small variance is imprecise
        found[sample] = resample_one_by_one(a, b, method, counts[sample : sample + 1])[0]
    return found
