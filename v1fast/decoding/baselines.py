"""Linear decoders in closed form, by scikit-learn."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
PENALTIES = tuple(10.0**k for k in range(-2, 7))
BUMPS = 36  # targets of the reduced-rank regression
SHARPNESS = 4.0  # of each: a half width at half height of 34 degrees
CANDIDATES = 720


def _ridge(penalties: tuple[float, ...]) -> object:
    try:
        from sklearn.linear_model import RidgeCV
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('linear decoders need scikit-learn: pip install "v1fast[decode]"') from error
    return RidgeCV(penalties)


def on_circle(degrees: ArrayLike, period: float = 360.0) -> Floats:
    """Cosine and sine [S, 2] of stimuli [S] on a circle."""
    angle = 2 * np.pi * np.asarray(degrees, np.float64) / period
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def from_circle(points: ArrayLike, period: float = 360.0) -> Floats:
    """The inverse of ``on_circle``, for points [S, 2] at any distance from 0: in 0 to ``period``.

    >>> from_circle(on_circle([30.0, 350.0])).round(6).tolist()
    [30.0, 350.0]
    """
    x, y = np.asarray(points, np.float64).T
    found: Floats = np.arctan2(y, x) % (2 * np.pi) * period / (2 * np.pi)
    return found


def ridge(
    responses: ArrayLike,
    targets: ArrayLike,
    new_responses: ArrayLike,
    penalties: tuple[float, ...] = PENALTIES,
) -> Floats:
    """Predict targets by ridge regression, with the penalty chosen by leaving out one stimulus at a time.

    Args:
        responses: [S, N], of the training stimuli.
        targets: [S] or [S, K].
        new_responses: [T, N].
        penalties: to choose from, > 0.

    Returns:
        [T] or [T, K].

    Raises:
        ModuleNotFoundError: without scikit-learn.
    """
    model = _ridge(penalties)
    predicted: Floats = model.fit(np.asarray(responses), np.asarray(targets)).predict(np.asarray(new_responses))  # type: ignore[attr-defined]
    return predicted


def reduced_rank(
    responses: ArrayLike,
    degrees: ArrayLike,
    new_responses: ArrayLike,
    *,
    rank: int = 8,
    period: float = 360.0,
    penalties: tuple[float, ...] = PENALTIES,
) -> Floats:
    """Decode a direction by reduced-rank regression on 36 tuning curves.

    Ridge regression predicts von Mises curves whose centres cover the circle. The predictions are then restricted to
    the ``rank`` principal components of the fitted curves (Izenman, Journal of Multivariate Analysis 5, 248, 1975, with
    a ridge penalty). The decoded direction is the one, in steps of 1 / 720 of the circle, whose own curves are most
    correlated with the predicted ones.

    Args:
        responses: [S, N].
        degrees: [S].
        new_responses: [T, N].
        rank: 1 to 36.
        period: of the circle.
        penalties: as for ``ridge``.

    Returns:
        [T], in 0 to ``period``.

    Raises:
        ValueError: rank is out of range.
        ModuleNotFoundError: without scikit-learn.
    """
    if not 1 <= rank <= BUMPS:
        raise ValueError(f"rank: want 1 to {BUMPS}, got {rank}")
    model = _ridge(penalties)
    model.fit(np.asarray(responses), _bumps(degrees, period))  # type: ignore[attr-defined]
    fitted = model.predict(np.asarray(responses))  # type: ignore[attr-defined]
    from sklearn.decomposition import PCA

    components = PCA(min(rank, *fitted.shape)).fit(fitted)
    curves = components.inverse_transform(components.transform(model.predict(np.asarray(new_responses))))  # type: ignore[attr-defined]
    candidates = np.arange(CANDIDATES) * (period / CANDIDATES)
    own = _centred(_bumps(candidates, period))
    found: Floats = candidates[(_centred(curves) @ (own / np.linalg.norm(own, axis=1, keepdims=True)).T).argmax(1)]
    return found


def _bumps(degrees: ArrayLike, period: float) -> Floats:
    centres = np.arange(BUMPS) * (period / BUMPS)
    away = 2 * np.pi * (np.asarray(degrees, np.float64)[:, None] - centres) / period
    curves: Floats = np.exp(SHARPNESS * (np.cos(away) - 1))
    return curves


def _centred(curves: Floats) -> Floats:
    return curves - curves.mean(1, keepdims=True)
