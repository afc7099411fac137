"""The metrics as sums over images; see :mod:`v1fast.metrics.functional` for what they mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from v1fast.metrics._sums import Images, Measure

RESPONSES, PAIRS = ("x", "xx"), ("x", "y", "xx", "yy", "xy")


def correlation(n: Tensor, x: Tensor, y: Tensor, xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
    """Pearson correlation from sums; NaN where either has no variance."""
    cov, var_x, var_y = xy - x * y / n, _variation(n, x, xx), _variation(n, y, yy)
    return torch.where((var_x > 0) & (var_y > 0), (cov / (var_x.sqrt() * var_y.sqrt())).clamp(-1, 1), torch.nan)


def _variation(n: Tensor, x: Tensor, xx: Tensor) -> Tensor:
    """Sum of squares about the mean; 0 where it is no more than rounding.

    The sums are about the first trial, so that a constant neuron's are exactly zero, and about any trial of T the sum
    of squares is at most 2 T times that about the mean.
    """
    about_mean = xx - x.square() / n
    return torch.where(about_mean > 1e-14 * xx, about_mean, torch.where(about_mean.isnan(), about_mean, 0.0))


def _within(n: Tensor, x: Tensor, xx: Tensor) -> Tensor:
    """Variance over the repeats of an image, by n - 1."""
    return _variation(n, x, xx) / (n - 1)


def _pairs(images: Images) -> Sequence[Tensor]:
    return images.n, *(images.sums[name] for name in PAIRS)


SINGLE_TRIAL = Measure(PAIRS, _pairs, lambda s: correlation(*s))


def _averages(images: Images) -> Sequence[Tensor]:
    a, b = images.sums["x"] / images.n, images.sums["y"] / images.n
    return torch.ones_like(images.n), a, b, a * a, b * b, a * b


TO_AVERAGE = Measure(("x", "y"), _averages, lambda s: correlation(*s))


def _jackknife(images: Images) -> Sequence[Tensor]:
    """Trial against mean of the image's others, o = (sum - r) / (n - 1): sums of o, o o and r o in closed form."""
    n, x, xx = images.n, images.sums["x"], images.sums["xx"]
    oo = ((n - 2) * x * x + xx) / (n - 1).square()
    return n, x, x, xx, oo, (x * x - xx) / (n - 1)


JACKKNIFE = Measure(RESPONSES, _jackknife, lambda s: correlation(*s), repeats=True)


def _conservative(images: Images) -> Sequence[Tensor]:
    n, x, xx = images.n, images.sums["x"], images.sums["xx"]
    a = x / n
    return torch.ones_like(n), _variation(n, x, xx) / n, a, a * a


def _conservative_value(s: Sequence[Tensor]) -> Tensor:
    count, noise, a, aa = s
    signal = _variation(count, a, aa)
    return torch.where(signal > 0, (signal / (signal + noise)).sqrt(), torch.nan)


CONSERVATIVE = Measure(RESPONSES, _conservative, _conservative_value, repeats=True)


def _errors(images: Images, per: Tensor | float) -> Sequence[Tensor]:
    """The squared error, if it is there."""
    return [images.sums["error"] / per] if "error" in images.sums else []


def _by_image(images: Images) -> Sequence[Tensor]:
    """Each image counts as one, however often it was shown."""
    n, x, xx = images.n, images.sums["x"], images.sums["xx"]
    return torch.ones_like(n), 1 / n, x / n, xx / n, _within(n, x, xx), *_errors(images, n)


def _image_variances(s: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Total and noise variance; the total is unbiased for trials of weight 1 / (I n)."""
    count, inverse, x, xx, within = s[:5]
    return _variation(count, x, xx) / count / (1 - inverse / count.square()), within / count


def _by_trial(images: Images) -> Sequence[Tensor]:
    """Total and error over trials, noise over images, as neuralpredictors does."""
    n, x, xx = images.n, images.sums["x"], images.sums["xx"]
    return torch.ones_like(n), n, x, xx, _within(n, x, xx), *_errors(images, 1.0)


def _trial_variances(s: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    count, n, x, xx, within = s[:5]
    return _variation(n, x, xx) / (n - 1), within / count


def fev_value(total: Tensor, noise: Tensor) -> Tensor:
    """(total - noise) / total; NaN without variance."""
    return torch.where(total > 0, (total - noise) / total, torch.nan)


def _feve_value(total: Tensor, noise: Tensor, error: Tensor) -> Tensor:
    return torch.where(total > noise, 1 - (error - noise) / (total - noise), torch.nan)


FEV = {
    "image": Measure(RESPONSES, _by_image, lambda s: fev_value(*_image_variances(s)), repeats=True),
    "neuralpredictors": Measure(RESPONSES, _by_trial, lambda s: fev_value(*_trial_variances(s)), repeats=True),
}
FEVE = {
    "image": Measure(
        (*RESPONSES, "error"), _by_image, lambda s: _feve_value(*_image_variances(s), s[5] / s[0]), repeats=True
    ),
    "neuralpredictors": Measure(
        (*RESPONSES, "error"), _by_trial, lambda s: _feve_value(*_trial_variances(s), s[5] / s[1]), repeats=True
    ),
}


def _ccnorm(images: Images) -> Sequence[Tensor]:
    """Sums of the averages; noise of the average; and what the numbers of the repeats have in common.

    The paper takes the mean of each repeat off: in a residual x - a, with a the image's average, column by column.
    """
    n, x, xx = images.n, images.sums["x"], images.sums["xx"]
    image, column = images.numbers.T
    _, a, b, aa, bb, ab = _averages(images)
    depth = int(n.max())
    residuals = x.new_zeros(depth, *x.shape)
    residuals[column, image] = images.trials - a[image]
    shown = x.new_zeros(depth, *n.shape)
    shown[column, image] = 1.0
    return (
        *(torch.ones_like(n), a, b, aa, bb, ab),
        _within(n, x, xx) / n,
        _variation(n, x, xx),
        n - 1,
        *residuals,
        *shown,
        *(shown * (1 - 1 / n)),
    )


def signal_power(s: Sequence[Tensor]) -> Tensor:
    """Variance of the averages less the noise in them; of Schoppe et al.'s formula where all repeats are equally many.

    There the noise is what images and repeats do not explain (two-way residual): of the residuals' sum of squares,
    ``shared`` belongs to the means of the repeats. ``by_chance`` is its expectation for independent noise.
    """
    count, a, _, aa, _, _, noise, squares, degrees = s[:9]
    depth = (len(s) - 9) // 3
    residuals, shown, expected = s[9 : 9 + depth], s[9 + depth : 9 + 2 * depth], s[9 + 2 * depth :]
    shared, by_chance = torch.zeros_like(a), torch.zeros_like(count)
    for e, number, variance in zip(residuals, shown, expected, strict=True):
        number = number.clamp_min(1e-300)  # a bootstrap may draw no image that has so many repeats
        shared, by_chance = shared + e.square() / number, by_chance + variance / number
    left = (1 - shared / squares) / (1 - by_chance / degrees)
    return _variation(count, a, aa) / (count - 1) - torch.where(squares > 0, noise / count * left, squares)


def _ccnorm_value(s: Sequence[Tensor]) -> Tensor:
    count, a, b, _, bb, ab = s[:6]
    power, var = signal_power(s), _variation(count, b, bb) / (count - 1)
    cov = (ab - a * b / count) / (count - 1)
    return torch.where((power > 0) & (var > 0), cov / (power * var).sqrt(), torch.nan)


CCNORM = Measure(("x", "y", "xx"), _ccnorm, _ccnorm_value, repeats=True, keeps_trials=True)


def poisson_divergence(y: Tensor, rate: Tensor) -> Tensor:
    """y log(y / rate) - y + rate, half a Poisson deviance: 0 where equal, else positive; NaN for anything negative."""
    value = torch.xlogy(y, y / rate) - y + rate
    value = torch.where((y == 0) & (rate == 0), 0.0, value)
    return torch.where((y < 0) | (rate < 0), torch.nan, value)


def deviance_terms(r: Tensor, p: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Responses, divergence from the predictions, divergence from the reference rate."""
    return {"r": r, "model": poisson_divergence(r, p), "null": poisson_divergence(r, reference[0])}


def reference_rate(r: Tensor) -> Tensor:
    """[2, n]: the mean response, or 1 where that is 0, from which a spike would be infinitely far."""
    mean = r.mean(0, dtype=torch.float64)
    return torch.where(mean == 0, 1.0, mean).expand(2, -1)


def _deviance_features(images: Images) -> Sequence[Tensor]:
    """Number, responses, divergences from predictions and reference, and the reference, times the number."""
    return images.n, *(images.sums[name] for name in ("r", "model", "null")), images.n * images.reference[0]


def null_divergence(n: Tensor, y: Tensor, from_reference: Tensor, reference: Tensor) -> Tensor:
    """Sum of the divergences from the mean response: that from any other rate, less what lies between the two."""
    return from_reference - n * poisson_divergence(y / n, reference)


def deviance_explained_value(s: Sequence[Tensor]) -> Tensor:
    """1 - deviance / null deviance; NaN where all responses are equal."""
    n, y, divergence, from_reference, reference = s
    null = null_divergence(n, y, from_reference, reference / n)
    return torch.where(null > 1e-14 * y, 1 - divergence / null, torch.nan)


def information_gain_value(s: Sequence[Tensor]) -> Tensor:
    """(null deviance - deviance) / 2 for each spike, in bits; NaN without spikes."""
    n, y, divergence, from_reference, reference = s
    gain = null_divergence(n, y, from_reference, reference / n) - divergence
    return torch.where(y > 0, gain / (y * math.log(2)), torch.nan)


_DEVIANCES: Any = {"terms": deviance_terms, "reference": reference_rate}
DEVIANCE_EXPLAINED = Measure((), _deviance_features, deviance_explained_value, **_DEVIANCES)
INFORMATION_GAIN = Measure((), _deviance_features, information_gain_value, **_DEVIANCES)
