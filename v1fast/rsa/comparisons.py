"""Many models beside each other: against zero, against the noise ceiling, and each against each."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from v1fast import _choices, _files
from v1fast.rsa._corrections import EQUAL, false_discovery, holm, maximum
from v1fast.rsa._leave_out import Covariances
from v1fast.rsa._matrices import Condensed, condensed, stimuli_of
from v1fast.rsa._sums import Floats
from v1fast.rsa.ceiling import mean_of_defined, means_of_others, noise_ceiling, say_left_out, subject_labels
from v1fast.rsa.resampling import (
    LEAST_SUBJECTS,
    OVER,
    RESAMPLED,
    Similarities,
    defined,
    fisher_interval,
    spread_over,
    standard_errors,
    stimulus_groups,
    t_interval,
)
from v1fast.rsa.similarity import METHODS, RSATOOLBOX_NAMES, compare

TESTS = ("t", "sign-flip")


@dataclasses.dataclass(frozen=True)
class Tests:
    """p of several tests of one kind.

    Attributes:
        p: [T], uncorrected.
        familywise: [T], corrected so that one of them is below .05 with a probability of 5 %, if there is nothing.
        fdr: [T], corrected so that of those below .05 at most 5 % are expected to be false (Benjamini & Hochberg 1995).
        sides: 1 or 2: one-sided or two-sided.
        correction: how ``familywise`` was obtained: "Holm", or "maximum" over sign flips.
    """

    p: Floats
    familywise: Floats
    fdr: Floats
    sides: int
    correction: str


@dataclasses.dataclass(frozen=True)
class ModelComparison:
    """Result of ``compare_models``: K models, and the T = K (K - 1) / 2 pairs of them.

    Attributes:
        names: of the models.
        similarity: [K], means over subjects.
        interval: [2, K], lower and upper ends.
        ceiling: lower and upper bound of the noise ceiling; NaN for a single subject.
        above_zero: [K] one-sided tests.
        below_ceiling: [K] one-sided tests: is a model below the lower bound?
        pairs: [T, 2], which models.
        difference: [T], the first one's similarity minus the second one's.
        difference_interval: [2, T], lower and upper ends.
        different: [T] two-sided tests.
        over: "stimuli", "subjects" or "both".
        level: of the intervals.
        notes: what limits the result, in words; such as why intervals are NaN.
    """

    names: list[str]
    similarity: Floats
    interval: Floats
    ceiling: tuple[float, float]
    above_zero: Tests
    below_ceiling: Tests
    pairs: NDArray[np.int64]
    difference: Floats
    difference_interval: Floats
    different: Tests
    over: str
    level: float
    notes: list[str]

    def models(self) -> list[dict[str, Any]]:
        """Return a row for each model, with the same keys in all: a table."""
        return [
            {"model": name, "similarity": float(self.similarity[k])}
            | _ends(self.interval[:, k], self.level, self.over)
            | _row(self.above_zero, k, "above 0")
            | _row(self.below_ceiling, k, "below ceiling")
            for k, name in enumerate(self.names)
        ]

    def differences(self) -> list[dict[str, Any]]:
        """Return a row for each pair of models."""
        return [
            {"model": self.names[i], "other": self.names[j], "difference": float(self.difference[k])}
            | _ends(self.difference_interval[:, k], self.level, self.over)
            | _row(self.different, k, "difference")
            for k, (i, j) in enumerate(self.pairs)
        ]


def _ends(interval: Floats, level: float, over: str) -> dict[str, float]:
    words = f"{100 * level:g} % over {OVER[over]}"
    return {f"low, {words}": float(interval[0]), f"high, {words}": float(interval[1])}


def _row(tests: Tests, k: int, what: str) -> dict[str, float]:
    sides = "one-sided" if tests.sides == 1 else "two-sided"
    return {
        f"p {what}, {sides}": float(tests.p[k]),
        f"familywise p {what} ({tests.correction})": float(tests.familywise[k]),
        f"FDR p {what}": float(tests.fdr[k]),
    }


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as a table: ``.csv`` or ``.json``. What is undefined is NaN.

    Raises:
        ValueError: another suffix.
        OSError: the file cannot be written.
    """
    _choices.one_of("suffix", path.suffix, (".csv", ".json"))
    if path.suffix == ".json":
        _files.replace(path, (json.dumps(list(rows), indent=2) + "\n").encode())
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _files.replace(path, text.getvalue().encode())


def compare_models(
    rdms: Condensed | ArrayLike,
    models: Mapping[str, Condensed | ArrayLike] | Condensed | ArrayLike,
    method: str = "pearson",
    *,
    over: str = "both",
    tests: str = "t",
    names: Sequence[str] | None = None,
    subjects: ArrayLike | None = None,
    categories: ArrayLike | None = None,
    level: float = 0.95,
    flips: int = 10_000,
    seed: int = 0,
) -> ModelComparison:
    """Compare models with the matrices of subjects, and with each other; p are corrected for their number.

    Each model is tested against zero (one-sided: more), against the lower bound of the noise ceiling (one-sided: less)
    and against each other model (two-sided). Tests of one kind are corrected together. All tests are paired: they are
    of similarities in the same subjects, to the same stimuli.

    Args:
        rdms: one matrix, or one for each of M subjects, as for ``compare``.
        models: K of them, by name or in a row.
        method: as for ``compare``.
        over: what the result is meant to hold for: other "subjects" (and these stimuli), other "stimuli" (and these
            subjects), or "both".
        tests: "t", with the standard errors of ``bootstrap``; familywise p are Holm's. Or "sign-flip", over subjects
            alone: the signs of the subjects' values are drawn at random (all of them for few subjects); familywise p
            are those of the largest of all K or T statistics.
        names: [K], of the models, if they are in a row; by default "model 1" and so on.
        subjects: [M], the subject of each matrix, as for ``bootstrap``.
        categories: [S], the category of each stimulus, as for ``bootstrap``.
        level: of the intervals.
        flips: number of random sign flips; all 2^M are used if these are fewer.
        seed: of sign flips, and of the pairs of stimuli that are left out where these are many.

    Returns:
        Similarities, intervals, tests and the noise ceiling. Matrices without a similarity are left out, with a
        RuntimeWarning. What is undefined is NaN, is not counted in a correction, and ``notes`` say why; so does a
        RuntimeWarning if there are no intervals.

    Raises:
        ValueError: an operand does not fit.

    >>> import numpy as np
    >>> from v1fast.functional import rdm
    >>> rng = np.random.default_rng(0)
    >>> stimuli = rng.normal(size=(20, 5))  # what the subjects see of 20 stimuli, and one of the models
    >>> subjects = [rdm(np.hstack([stimuli, 0.5 * rng.normal(size=(20, 5))])) for _ in range(6)]
    >>> models = {"right": rdm(stimuli), "wrong": rdm(rng.normal(size=(20, 5)))}
    >>> found = compare_models(np.stack(subjects), models)
    >>> found.names, bool(found.similarity[0] > found.similarity[1])
    (['right', 'wrong'], True)
    """
    method = RSATOOLBOX_NAMES.get(method, method)
    for name, value, options in (("method", method, METHODS), ("over", over, RESAMPLED), ("tests", tests, TESTS)):
        _choices.one_of(name, value, options)
    if tests == "sign-flip" and over != "subjects":
        raise ValueError(f"tests: want 't' over {over!r}, got 'sign-flip', which is over 'subjects'")
    if not 0 < level < 1:
        raise ValueError(f"level: want more than 0 and less than 1, got {level}")
    if flips < 1:
        raise ValueError(f"flips: want at least 1, got {flips}")
    (a, _), (names, b) = condensed("rdms", rdms), _named(models, names)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"models: want {a.shape[1]} pairs of stimuli, as rdms have, got {b.shape[1]}")
    labels, groups = subject_labels(subjects, len(a)), stimulus_groups(categories, stimuli_of(a.shape[1]))
    similarity = np.asarray(compare(a, b, method)).reshape(len(a), len(b))
    absent = np.isnan(similarity) & ~np.isnan(similarity).all(0)
    say_left_out(int(absent.any(1).sum()), len(a))
    a, b, rows, columns = defined(a, b, similarity)
    notes = [f"{name}: its similarity is undefined" for k, name in enumerate(names) if k not in columns]
    if absent.any():
        notes.append(f"{int(absent.any(1).sum())} of {len(absent)} matrices have no similarity and are left out")
    labels = labels[rows]
    several = len(np.unique(labels)) >= LEAST_SUBJECTS
    similarities = Similarities(a, b, method, labels, means_of_others(a, labels, method)[0] if several else None)
    used = np.array([*columns, *([len(names)] if several else [])], dtype=np.int64)
    values = np.full((similarities.units, len(names) + 1), np.nan)  # the last one is the ceiling
    if len(rows):
        values[:, used] = similarities.whole()
    spread, reason = spread_over(over, similarities, groups, seed)
    estimates = _Estimates(values, used, spread, over, level, tests == "sign-flip", flips, seed)
    if not reason and np.isnan(estimates.of(np.eye(len(names), len(names) + 1))[1][columns]).any():
        reason = f"over {OVER[over]}: a similarity is undefined without one of the stimuli"
    if reason:
        notes.append(f"no interval {reason}")
        warnings.warn(notes[-1], RuntimeWarning, stacklevel=2)
    if spread is not None:
        notes += [
            f"{names[k]}: undefined without each of {count} pairs of stimuli; its standard error leaves these out"
            for k, count in zip(columns, spread.undefined, strict=False)
            if count
        ]
    if tests == "sign-flip":
        least = max(0.5 ** len(values), 1 / (1 + flips))
        notes.append(f"sign flips of {len(values)} subjects: no p is below {least:.2g}, one-sided and uncorrected")
    bounds = noise_ceiling(a, method, subjects=labels) if several else (np.nan, np.nan)
    return _result(names, estimates, bounds, notes)


def _named(
    models: Mapping[str, Condensed | ArrayLike] | Condensed | ArrayLike, names: Sequence[str] | None
) -> tuple[list[str], NDArray[Any]]:
    """Return the names, and the models [K, P]."""
    if isinstance(models, Mapping):
        if names is not None:
            raise ValueError("names: want None beside models that have names")
        rows = [condensed(f"models[{name!r}]", each)[0] for name, each in models.items()]
        if not rows or any(row.shape != (1, rows[0].shape[1]) for row in rows):
            raise ValueError(
                f"models: want one matrix for each name, of the same stimuli, got {[r.shape for r in rows]}"
            )
        return list(models), np.concatenate(rows)
    vectors, _ = condensed("models", models)
    named = [f"model {k + 1}" for k in range(len(vectors))] if names is None else list(names)
    if len(named) != len(vectors):
        raise ValueError(f"names: want {len(vectors)}, one for each model, got {len(named)}")
    return named, vectors


@dataclasses.dataclass(frozen=True)
class _Estimates:
    """Sums of similarities and their tests.

    Attributes:
        values: [U, K + 1], similarities of the subjects; the last is with the mean of the others. NaN if undefined.
        used: which of them are defined.
        spread: covariances of the means of these.
    """

    values: Floats
    used: NDArray[np.int64]
    spread: Covariances | None
    over: str
    level: float
    flipped: bool
    flips: int
    seed: int

    def each(self, contrasts: Floats) -> Floats:
        """Return the sums with weights [T, K + 1] in each subject, [U, T]."""
        undefined = np.isnan(self.values).any(0)
        found = np.where(undefined, 0, self.values) @ contrasts.T
        return np.where((contrasts[:, undefined] != 0).any(1), np.nan, found)

    def of(self, contrasts: Floats) -> tuple[Floats, Floats, Floats]:
        """Return their means, standard errors and degrees of freedom, [T] each."""
        means = mean_of_defined(self.each(contrasts), 0)
        error, freedom = np.full((2, len(contrasts)), np.nan)
        there = ~np.isnan(means)
        error[there], freedom[there] = standard_errors(self.spread, contrasts[there][:, self.used], self.over)
        return means, error, freedom

    def tests(self, contrasts: Floats, sides: int) -> Tests:
        """Test whether sums are more than 0, or for two sides whether they are not 0."""
        if self.flipped:
            observed, null = _sign_flips(self.each(contrasts), self.flips, self.seed)
            if sides == 2:
                observed, null = np.abs(observed), np.abs(null)
            p = np.where(np.isnan(observed), np.nan, (1 + (null >= observed - EQUAL).sum(0)) / (1 + len(null)))
            return Tests(p, maximum(observed, null), false_discovery(p), sides, "maximum")
        means, error, freedom = self.of(contrasts)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(means == 0, 0 * error, means / error)
        p = scipy.stats.t.sf(ratio, freedom) if sides == 1 else 2 * scipy.stats.t.sf(np.abs(ratio), freedom)
        return Tests(p, holm(p), false_discovery(p), sides, "Holm")


def _sign_flips(values: Floats, flips: int, seed: int) -> tuple[Floats, Floats]:
    """Return the statistics [T] of values [U, T], and those [B, T] after sign flips other than none.

    The statistic is the sum divided by the root of the sum of squares, which flips leave as it is: it orders flips as
    the t statistic does.
    """
    units = len(values)
    if units < LEAST_SUBJECTS:
        return np.full(values.shape[1], np.nan), np.full((0, values.shape[1]), np.nan)
    if units < 60 and 2**units - 1 <= flips:
        signs = 1.0 - 2 * (np.arange(1, 2**units)[:, None] >> np.arange(units) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(flips, units))
    norm = np.sqrt((values**2).sum(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        unit: Floats = np.where(norm == 0, 0, values / norm)
    unit[:, np.isnan(norm)] = np.nan
    observed: Floats = unit.sum(0)
    return observed, signs @ unit


def _result(names: list[str], estimates: _Estimates, ceiling: tuple[float, float], notes: list[str]) -> ModelComparison:
    count = len(names)
    itself = np.eye(count, count + 1)
    to_ceiling = np.eye(count + 1)[-1] - itself
    pairs = np.stack(np.triu_indices(count, 1), 1)
    to_others = itself[pairs[:, 0]] - itself[pairs[:, 1]]
    of_models, of_pairs = estimates.of(itself), estimates.of(to_others)
    interval = t_interval if estimates.over == "subjects" else fisher_interval
    return ModelComparison(
        names,
        of_models[0],
        interval(*of_models, estimates.level),
        ceiling,
        estimates.tests(itself, 1),
        estimates.tests(to_ceiling, 1),
        pairs,
        of_pairs[0],
        t_interval(*of_pairs, estimates.level),
        estimates.tests(to_others, 2),
        estimates.over,
        estimates.level,
        notes,
    )
