"""The metrics as sums over images. :mod:`v1fast.metrics.functional` has their definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from v1fast.metrics._sums import Images, Measure, Product, Products

RESPONSES, PAIRS = ("x", "xx"), ("x", "y", "xx", "yy", "xy")


def correlation(n: Tensor, x: Tensor, y: Tensor, xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
    """Return the Pearson correlation from sums. NaN if either has no variance."""
    cov, var_x, var_y = xy - x * y / n, _variation(n, x, xx), _variation(n, y, yy)
    return torch.where((var_x > 0) & (var_y > 0), (cov / (var_x.sqrt() * var_y.sqrt())).clamp(-1, 1), torch.nan)


def _variation(n: Tensor, x: Tensor, xx: Tensor) -> Tensor:
    """Return the sum of squares about the mean, or 0 if it is only rounding.

    The sums are about the first trial, so those of a constant neuron are exactly zero. About any of T trials, the sum
    of squares is at most 2 T times that about the mean.
    """
    about_mean = xx - x.square() / n
    return torch.where(about_mean > 1e-14 * xx, about_mean, torch.where(about_mean.isnan(), about_mean, 0.0))


def _within(n: Tensor, x: Tensor, xx: Tensor) -> Tensor:
    """Return the variance over the repeats of an image, with divisor n - 1."""
    return _variation(n, x, xx) / (n - 1)


Feature = list[Product]


def _sum(weights: Tensor, *names: str) -> Feature:
    """Return a feature of one product: ``weights`` times one sum, two, or none."""
    return [(weights, *names, *("",) * (2 - len(names)))]  # type: ignore[list-item]


def _squares_about_average(n: Tensor, weights: Tensor) -> Feature:
    """Return weights (xx - x x / n): the sum of squares about an image's average."""
    return [(weights, "xx", ""), (-weights / n, "x", "x")]


def _pairs(n: Tensor) -> list[Feature]:
    one = torch.ones_like(n)
    return [_sum(n), *(_sum(one, name) for name in PAIRS)]


SINGLE_TRIAL = Measure(PAIRS, Products(_pairs), lambda s: correlation(*s))


def _averages(n: Tensor) -> list[Feature]:
    """Return moments of an image's average response a and average prediction b: 1, a, b, a a, b b, a b."""
    pairs = (("x", "x"), ("y", "y"), ("x", "y"))
    return [_sum(torch.ones_like(n)), _sum(1 / n, "x"), _sum(1 / n, "y"), *(_sum(1 / n**2, *pair) for pair in pairs)]


TO_AVERAGE = Measure(("x", "y"), Products(_averages), lambda s: correlation(*s))


def _jackknife(n: Tensor) -> list[Feature]:
    """Compare each trial with the mean of the image's others, o = (sum - r) / (n - 1): sums of o, o o and r o."""
    one, others = torch.ones_like(n), n - 1
    x, xx = _sum(one, "x"), _sum(one, "xx")
    oo: Feature = [((n - 2) / others**2, "x", "x"), (1 / others**2, "xx", "")]
    return [_sum(n), x, x, xx, oo, [(1 / others, "x", "x"), (-1 / others, "xx", "")]]


JACKKNIFE = Measure(RESPONSES, Products(_jackknife), lambda s: correlation(*s), repeats=True)


def _conservative(n: Tensor) -> list[Feature]:
    average, squared = _sum(1 / n, "x"), _sum(1 / n**2, "x", "x")
    return [_sum(torch.ones_like(n)), _squares_about_average(n, 1 / n), average, squared]


def _conservative_value(s: Sequence[Tensor]) -> Tensor:
    count, noise, a, aa = s
    signal = _variation(count, a, aa)
    return torch.where(signal > 0, (signal / (signal + noise)).sqrt(), torch.nan)


CONSERVATIVE = Measure(RESPONSES, Products(_conservative), _conservative_value, repeats=True)


def _by_image(n: Tensor) -> list[Feature]:
    """Weight each image equally, however often it was shown."""
    each = (_sum(1 / n, name) for name in RESPONSES)
    return [_sum(torch.ones_like(n)), _sum(1 / n), *each, _squares_about_average(n, 1 / (n - 1))]


def _image_variances(s: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return total and noise variance. The total is unbiased for trials of weight 1 / (I n)."""
    count, inverse, x, xx, within = s[:5]
    return _variation(count, x, xx) / count / (1 - inverse / count.square()), within / count


def _by_trial(n: Tensor) -> list[Feature]:
    """Average total and error over trials and noise over images, like neuralpredictors."""
    one = torch.ones_like(n)
    each = (_sum(one, name) for name in RESPONSES)
    return [_sum(one), _sum(n), *each, _squares_about_average(n, 1 / (n - 1))]


def _trial_variances(s: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    count, n, x, xx, within = s[:5]
    return _variation(n, x, xx) / (n - 1), within / count


def fev_value(total: Tensor, noise: Tensor) -> Tensor:
    """Return (total - noise) / total. NaN without variance."""
    return torch.where(total > 0, (total - noise) / total, torch.nan)


def _feve_value(total: Tensor, noise: Tensor, error: Tensor) -> Tensor:
    return torch.where(total > noise, 1 - (error - noise) / (total - noise), torch.nan)


FEV = {
    "image": Measure(RESPONSES, Products(_by_image), lambda s: fev_value(*_image_variances(s)), repeats=True),
    "neuralpredictors": Measure(
        RESPONSES, Products(_by_trial), lambda s: fev_value(*_trial_variances(s)), repeats=True
    ),
}
_ERRORS = (*RESPONSES, "error")
FEVE = {
    "image": Measure(
        _ERRORS,
        Products(lambda n: [*_by_image(n), _sum(1 / n, "error")]),
        lambda s: _feve_value(*_image_variances(s), s[5] / s[0]),
        repeats=True,
    ),
    "neuralpredictors": Measure(
        _ERRORS,
        Products(lambda n: [*_by_trial(n), _sum(torch.ones_like(n), "error")]),
        lambda s: _feve_value(*_trial_variances(s), s[5] / s[1]),
        repeats=True,
    ),
}


def _ccnorm(images: Images) -> Sequence[Tensor]:
    """Return sums of the averages, the noise of the average, and the part that repeats with the same number share.

    The paper subtracts the mean of each repeat. Here it is subtracted from the residual x - a, column by column, where
    a is the image's average.
    """
    n, x, xx = images.n, images.sums["x"], images.sums["xx"]
    image, column = images.numbers.T
    averages = Products(_averages)(images)
    depth = int(n.max())
    residuals = x.new_zeros(depth, *x.shape)
    residuals[column, image] = images.trials - averages[1][image]
    shown = x.new_zeros(depth, *n.shape)
    shown[column, image] = 1.0
    return (
        *averages,
        _within(n, x, xx) / n,
        _variation(n, x, xx),
        n - 1,
        *residuals,
        *shown,
        *(shown * (1 - 1 / n)),
    )


def signal_power(s: Sequence[Tensor]) -> Tensor:
    """Return the variance of the averages minus their noise. With equal repeats it is Schoppe et al.'s formula.

    There the noise is what images and repeats do not explain (two-way residual). ``shared`` is the part of the
    residuals' sum of squares that the means of the repeats explain. ``by_chance`` is its expectation for independent
    noise.
    """
    count, a, _, aa, _, _, noise, squares, degrees = s[:9]
    depth = (len(s) - 9) // 3
    residuals, shown, expected = s[9 : 9 + depth], s[9 + depth : 9 + 2 * depth], s[9 + 2 * depth :]
    shared, by_chance = torch.zeros_like(a), torch.zeros_like(count)
    for e, number, variance in zip(residuals, shown, expected, strict=True):
        number = number.clamp_min(1e-300)  # a bootstrap sample may have no image with that many repeats
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
    """Return y log(y / rate) - y + rate, half a Poisson deviance: 0 if equal, otherwise positive. NaN if negative."""
    value = torch.xlogy(y, y / rate) - y + rate
    value = torch.where((y == 0) & (rate == 0), 0.0, value)
    return torch.where((y < 0) | (rate < 0), torch.nan, value)


def deviance_terms(r: Tensor, p: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Return responses, divergence from the predictions, and divergence from the reference rate."""
    return {"r": r, "model": poisson_divergence(r, p), "null": poisson_divergence(r, reference[0])}


def reference_rate(r: Tensor) -> Tensor:
    """Return the mean response [2, n], or 1 where it is 0: a spike would be infinitely far from 0."""
    mean = r.mean(0, dtype=torch.float64)
    return torch.where(mean == 0, 1.0, mean).expand(2, -1)


def _deviance_features(images: Images) -> Sequence[Tensor]:
    """Return number, responses, divergences from predictions and reference, and the number times the reference."""
    return images.n, *(images.sums[name] for name in ("r", "model", "null")), images.n * images.reference[0]


def null_divergence(n: Tensor, y: Tensor, from_reference: Tensor, reference: Tensor) -> Tensor:
    """Return the divergence from the mean response: that from any other rate, minus that between the two."""
    return from_reference - n * poisson_divergence(y / n, reference)


def deviance_explained_value(s: Sequence[Tensor]) -> Tensor:
    """Return 1 - deviance / null deviance. NaN if all responses are equal."""
    n, y, divergence, from_reference, reference = s
    null = null_divergence(n, y, from_reference, reference / n)
    return torch.where(null > 1e-14 * y, 1 - divergence / null, torch.nan)


def information_gain_value(s: Sequence[Tensor]) -> Tensor:
    """Return (null deviance - deviance) / 2 per spike, in bits. NaN without spikes."""
    n, y, divergence, from_reference, reference = s
    gain = null_divergence(n, y, from_reference, reference / n) - divergence
    return torch.where(y > 0, gain / (y * math.log(2)), torch.nan)


_DEVIANCES: Any = {"terms": deviance_terms, "reference": reference_rate}
DEVIANCE_EXPLAINED = Measure((), _deviance_features, deviance_explained_value, **_DEVIANCES)
INFORMATION_GAIN = Measure((), _deviance_features, information_gain_value, **_DEVIANCES)
