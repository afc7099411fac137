"""Decoding the gratings of 17 sessions of macaque V1, and their dissimilarity matrices, across repeats.

Ecker et al., Science 327, 584, 2010; Berens et al., J. Neurosci. 32, 10618, 2012.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from v1fast import rsa
from v1fast._progress import progress
from v1fast.decoding.fitting import descend, one_thread
from v1fast.decoding.networks import DeepNetSoftmax
from v1fast.decoding.scores import mean_error
from v1fast.rsa.recordings import ECKER_SESSIONS, ecker_conditions

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]
Decoder = Callable[[Floats, Classes, Floats], Classes]
ORIENTATION_PERIOD = 180.0


def nearest_centroid(responses: Floats, classes: Classes, new_responses: Floats) -> Classes:
    """The class whose mean response is nearest.

    Args:
        responses: [T, N].
        classes: [T], 0 .. K - 1, each at least once.
        new_responses: [U, N].

    Returns:
        [U].
    """
    centroids = np.stack([responses[classes == k].mean(0) for k in range(classes.max() + 1)])
    found: Classes = ((new_responses[:, None] - centroids) ** 2).sum(2).argmin(1)
    return found


def logistic_regression(responses: Floats, classes: Classes, new_responses: Floats) -> Classes:
    """Multinomial logistic regression with an L2 penalty, by scikit-learn; responses are z-scored.

    Arguments and result are those of ``nearest_centroid``.

    Raises:
        ModuleNotFoundError: without scikit-learn.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('logistic regression needs scikit-learn: pip install "v1fast[decode]"') from error
    old, new = _standardized(responses, new_responses)
    found: Classes = LogisticRegression(max_iter=500).fit(old, classes).predict(new)
    return found


def relu_network(responses: Floats, classes: Classes, new_responses: Floats) -> Classes:
    """A network with 50 rectified units and softmax outputs, by gradient descent with an L2 penalty.

    Arguments and result are those of ``nearest_centroid``; responses are z-scored.
    """
    old, new = (torch.from_numpy(part).float() for part in _standardized(responses, new_responses))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DeepNetSoftmax(old.shape[1], 50, outputs=int(classes.max()) + 1, activation="relu")
    descend(
        network, old, torch.from_numpy(classes), loss="cross-entropy", iterations=200, rate=0.3, l2=3e-3
    )  # fmt: skip
    with torch.no_grad():
        found: Classes = network(new).argmax(1).numpy()
    return found


def _standardized(responses: Floats, new_responses: Floats) -> tuple[Floats, Floats]:
    mean, spread = responses.mean(0), responses.std(0)
    spread = np.where(spread > 0, spread, 1)
    return (responses - mean) / spread, (new_responses - mean) / spread


DECODERS: dict[str, tuple[Decoder, int | None]] = {
    "nearest centroid": (nearest_centroid, None),
    "logistic regression": (logistic_regression, 5),
    "DeepNetReLU": (relu_network, 5),
}
"""Name -> decoder, and the folds of repeats; None: as many as there are repeats."""


def across_repeats(counts: Floats, decode: Decoder, folds: int | None = None) -> Classes:
    """Decode the condition of each trial from the repeats of other folds.

    Args:
        counts: [R, C, N], spike counts, R >= 2 repeats of C conditions; their square roots are decoded, whose variance
            depends little on the mean.
        decode: such as ``nearest_centroid``.
        folds: 2 to R; None: R, which leaves out one repeat at a time.

    Returns:
        [R, C], decoded conditions.

    Raises:
        ValueError: an operand does not fit.
    """
    if counts.ndim != 3 or len(counts) < 2:
        raise ValueError(f"counts: want [R >= 2, C, N], got {counts.shape}")
    repeats, conditions, neurons = counts.shape
    count = repeats if folds is None else min(folds, repeats)
    if count < 2:
        raise ValueError(f"folds: want >= 2, got {folds}")
    roots, fold = np.sqrt(counts), np.arange(repeats) % count
    found = np.empty((repeats, conditions), np.int64)
    for number in range(count):
        left_out = fold == number
        others = roots[~left_out].reshape(-1, neurons)
        classes = np.tile(np.arange(conditions), int((~left_out).sum()))
        found[left_out] = decode(others, classes, roots[left_out].reshape(-1, neurons)).reshape(-1, conditions)
    return found


@dataclasses.dataclass(frozen=True)
class Session:
    """What is found in one session.

    Attributes:
        number: 0 .. 16.
        neurons, repeats: of the recording.
        contrasts, orientations: [C], of the conditions: percent, degrees.
        accuracy: decoder -> share of trials whose condition, contrast and orientation, is decoded; chance is 1 / C.
        error: decoder -> mean error of the orientation, degrees, on the circle of 180; chance is near 45.
        rdm: [P], correlation distances of mean counts of the C conditions, condensed.
        crossvalidated: [P], the same across repeats, which noise does not enlarge; NaN where a condition has no
            response that repeats.
        split_half: mean similarity (Pearson) of the matrices of random halves of the repeats.
    """

    number: int
    neurons: int
    repeats: int
    contrasts: Floats
    orientations: Floats
    accuracy: dict[str, float]
    error: dict[str, float]
    rdm: Floats
    crossvalidated: Floats
    split_half: float

    def row(self) -> dict[str, Any]:
        """For a table."""
        about = {"session": self.number, "neurons": self.neurons, "repeats": self.repeats}
        about["conditions"] = len(self.contrasts)
        named = {f"{name}: {what}": v for what in ("accuracy", "error") for name, v in getattr(self, what).items()}
        means = {"rdm mean": float(np.nanmean(self.rdm)), "rdm mean, cross-validated": _mean(self.crossvalidated)}
        missing = int(np.isnan(self.crossvalidated).sum())
        return {**about, **named, "split-half": self.split_half, **means, "undefined pairs": missing}


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def analyse_session(folder: Path, number: int, decoders: tuple[str, ...] = tuple(DECODERS)) -> Session:
    """Decode one session, and compute its matrices.

    Args:
        folder: contains ``ecker_macaque_v1``.
        number: 0 .. 16.
        decoders: names in :data:`DECODERS`.
    """
    counts, contrasts, orientations = ecker_conditions(folder, number)
    order = np.lexsort((orientations, contrasts))
    counts, contrasts, orientations = counts[:, order], contrasts[order], orientations[order]
    accuracy, error = {}, {}
    for name in decoders:
        decoded = across_repeats(counts, *DECODERS[name])
        accuracy[name] = float((decoded == np.arange(len(order))).mean())
        true = np.broadcast_to(orientations, decoded.shape).ravel()
        error[name] = mean_error(orientations[decoded].ravel(), true, ORIENTATION_PERIOD)
    return Session(
        number,
        counts.shape[2],
        len(counts),
        contrasts,
        orientations,
        accuracy,
        error,
        np.asarray(rsa.rdm_of_repeats(counts, "correlation", crossvalidate=False), np.float64),
        np.asarray(rsa.rdm_of_repeats(counts, "correlation"), np.float64),
        rsa.reliability(counts, "pearson", splits=30).of_half,
    )


def analyse_macaque(folder: Path, *, show: bool = True, sessions: int = ECKER_SESSIONS) -> list[Session]:
    """Analyse all sessions.

    Args:
        folder: contains ``ecker_macaque_v1``.
        show: whether to show progress.
        sessions: the first so many.

    Raises:
        FileNotFoundError, ValueError: the file is missing, or cannot be read.
    """
    found = []
    with one_thread(), progress("macaque sessions", sessions, show=show) as bar:
        for number in range(sessions):
            found.append(analyse_session(folder, number))
            bar.advance()
    return found
