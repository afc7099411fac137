"""Metrics of predicted responses, neuron by neuron.

Every function takes responses and, if it needs them, predictions: [T, N] for T trials of N neurons, as tensors on one
device or as NumPy arrays. Metrics that depend on images also take ``image_ids`` [T], in any order, which say what was
shown (integers, strings, anything sortable). Trials of one image are its repeats. Images may have unequal numbers of
repeats.

Every function returns a :class:`Result`: one float64 value per neuron, their mean, and how many are undefined. A value
is undefined if a neuron's responses or predictions do not vary, or if one is not a number. It is then NaN and counted,
and the mean leaves it out. If no image has two trials, a metric of repeats is undefined for all neurons. Sums are in
float64, neuron block by neuron block: no tensor of trials x neurons is allocated.

With ``bootstrap=Bootstrap()`` the result has an interval of the mean over neurons. Images are drawn with replacement,
each with all its trials. The neurons stay the same.

Below, r_it is a neuron's response to trial t of image i, and p_it the prediction. n_i is the number of trials of image
i, and I the number of images. a_i and b_i are the averages over the trials of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from v1fast import _choices
from v1fast.metrics import _measures
from v1fast.metrics._results import Bootstrap, Evaluation, Interval, Result, mean_over
from v1fast.metrics._sums import Array, Measure, Trials

__all__ = [
    "Bootstrap",
    "FractionOracleResult",
    "Interval",
    "Result",
    "ccnorm",
    "correlation_to_average",
    "evaluate",
    "explainable_variance",
    "fev",
    "feve",
    "fraction_oracle",
    "information_gain",
    "oracle_correlation",
    "poisson_deviance_explained",
    "single_trial_correlation",
]

Weighting = Literal["image", "neuralpredictors"]
FEV_THRESHOLD = 0.15


def single_trial_correlation(
    responses: Array, predictions: Array, image_ids: Any = None, *, bootstrap: Bootstrap | None = None
) -> Result:
    """Pearson correlation of responses and predictions over all trials.

    Args:
        responses, predictions: [T, N].
        image_ids: [T]; only for the bootstrap. Without it, each trial counts as its own image.
        bootstrap: how to draw an interval of the mean.

    Raises:
        ValueError: the operands do not fit together.

    Example:
        >>> import numpy as np
        >>> responses = np.array([[0.0, 3], [2, 3], [4, 3]])
        >>> print(single_trial_correlation(responses, responses + 1))
        1.0000 (1 of 2 neurons undefined)
    """
    return _overall(_measures.SINGLE_TRIAL, responses, predictions, image_ids, bootstrap)


def correlation_to_average(
    responses: Array, predictions: Array, image_ids: Any, *, bootstrap: Bootstrap | None = None
) -> Result:
    """Pearson correlation of the average response to an image with the average prediction, over images.

    corr_i(a_i, b_i); all images have equal weight. Predictions that differ between the trials of an image (by behaviour
    or gaze) are averaged first (Willeke et al., "The Sensorium competition on predicting large-scale mouse primary
    visual cortex activity", arXiv:2206.08666).

    Args:
        responses, predictions: [T, N].
        image_ids: [T].
        bootstrap: how to draw an interval of the mean.

    Raises:
        ValueError: the operands do not fit together.
    """
    return _by_image(_measures.TO_AVERAGE, responses, predictions, image_ids, bootstrap)


def oracle_correlation(
    responses: Array,
    image_ids: Any,
    *,
    method: Literal["jackknife", "conservative"] = "jackknife",
    bootstrap: Bootstrap | None = None,
) -> Result:
    """How well the responses to other repeats of an image predict a trial: a bound for single-trial correlation.

    Both methods estimate sqrt(S / (S + V)), the single-trial correlation of the true rates. S is the variance of the
    mean response over images, and V the variance over repeats.

    - "jackknife": corr_it(r_it, mean of the image's other trials). It is biased low, because that mean is noisy
      (Lurz et al., "Generalization in data-driven models of primary visual cortex", ICLR 2021).
    - "conservative": sqrt(S / (S + V)) from the variance of the averages a_i and the mean over images of the variance
      over repeats, both without correction for the number of repeats. It is biased high (oracle_corr_conservative of
      neuralpredictors).

    Images with one trial are left out and counted.

    Args:
        responses: [T, N].
        image_ids: [T].
        method: "jackknife" or "conservative".
        bootstrap: how to draw an interval of the mean.

    Raises:
        ValueError: the operands do not fit together; an unknown method.
    """
    measures = {"jackknife": _measures.JACKKNIFE, "conservative": _measures.CONSERVATIVE}
    return _by_image(_choices.pick("method", method, measures), responses, None, image_ids, bootstrap)


@dataclass(frozen=True)
class FractionOracleResult:
    """A population's fraction oracle.

    Attributes:
        value: the slope; NaN if no neuron has both correlations.
        neurons: N.
        undefined: number of neurons with either correlation NaN.
        left_out: number of images left out because they have one trial.
        interval: of ``value``, over images; None if not requested.
    """

    value: float
    neurons: int
    undefined: int
    left_out: int
    interval: Interval | None = None


def fraction_oracle(
    responses: Array,
    predictions: Array,
    image_ids: Any,
    *,
    nan: Literal["omit", "zero"] = "omit",
    bootstrap: Bootstrap | None = None,
) -> FractionOracleResult:
    """Slope of the single-trial correlation c against the jackknife oracle o, over neurons, through the origin.

    sum_n c_n o_n / sum_n o_n^2 (Lurz et al., ICLR 2021). Images with one trial are left out of both and counted.

    Args:
        responses, predictions: [T, N].
        image_ids: [T].
        nan: "omit" leaves out neurons for which either is undefined; "zero" counts a NaN as 0, as the paper's code
            does.
        bootstrap: how to draw an interval.

    Raises:
        ValueError: the operands do not fit together; an unknown ``nan``.
    """
    _choices.one_of("nan", nan, ("omit", "zero"))
    trials = Trials.of(responses, predictions, image_ids, repeats=True)
    evaluation = Evaluation(trials, (_measures.SINGLE_TRIAL, _measures.JACKKNIFE))
    values = evaluation.values()
    defined = ~(values[0].isnan() | values[1].isnan())
    counted = defined if nan == "omit" else torch.ones_like(defined)
    above, below = _slope(values, counted)
    interval = None if bootstrap is None else evaluation.interval(bootstrap, counted, _slope)
    value = (above / below).item()
    return FractionOracleResult(value, trials.neurons, int((~defined).sum()), trials.left_out, interval)


def _slope(values: Sequence[Tensor], counted: Tensor) -> tuple[Tensor, Tensor]:
    c, o = (torch.where(counted & ~v.isnan(), v, 0.0) for v in values)
    return (c * o).sum(-1), (o * o).sum(-1)


def explainable_variance(
    responses: Array,
    image_ids: Any,
    *,
    weighting: Weighting = "image",
    bootstrap: Bootstrap | None = None,
) -> Result:
    """Fraction of the variance of single trials that the image explains: (total - noise) / total; also called FEV.

    noise = mean_i sum_t (r_it - a_i)^2 / (n_i - 1); total = sum_it w_it (r_it - m)^2 / (1 - sum_it w_it^2), where m is
    the weighted mean of the trials (Cadena et al. 2019, PLoS Comput. Biol. 15, e1006897).

    - weighting "image": w_it = 1 / (I n_i). Images have equal weight in every term. With equal repeats both weightings
      are the same.
    - weighting "neuralpredictors": w_it = 1 / T, as in that package. With unequal repeats, noise and total then weight
      the data differently.

    Images with one trial are left out of every term and counted. The value is below zero where the noise estimate is
    larger than the variance.

    Args:
        responses: [T, N].
        image_ids: [T].
        weighting: "image" or "neuralpredictors".
        bootstrap: how to draw an interval of the mean.

    Raises:
        ValueError: the operands do not fit together; an unknown weighting.
    """
    return _by_image(_choices.pick("weighting", weighting, _measures.FEV), responses, None, image_ids, bootstrap)


fev = explainable_variance
"""Another name of :func:`explainable_variance`: the fraction of explainable variance."""


def feve(
    responses: Array,
    predictions: Array,
    image_ids: Any,
    *,
    threshold: float | None = FEV_THRESHOLD,
    weighting: Weighting = "image",
    bootstrap: Bootstrap | None = None,
) -> Result:
    """Fraction of explainable variance explained: 1 - (error - noise) / (total - noise).

    error = mean_i mean_t (r_it - p_it)^2 (weighting "image"), or mean_it (r_it - p_it)^2 (weighting
    "neuralpredictors"). noise and total are as in :func:`explainable_variance` (Cadena et al. 2019, PLoS Comput. Biol.
    15, e1006897). With weighting "image", the true rates have an expected value of 1, whatever the numbers of repeats,
    because error and noise weight images alike. Neuralpredictors' weighting pools errors over trials but noise over
    images. So with unequal repeats, a perfect model does not get 1.

    Args:
        responses, predictions: [T, N].
        image_ids: [T].
        threshold: neurons with a lower explainable variance are NaN and counted separately, as in the Sensorium
            competition; None: only those whose explainable variance is not positive are NaN.
        weighting: "image" or "neuralpredictors".
        bootstrap: how to draw an interval of the mean.

    Raises:
        ValueError: the operands do not fit together; an unknown weighting.
    """
    measure = _choices.pick("weighting", weighting, _measures.FEVE)
    trials = Trials.of(responses, predictions, image_ids, repeats=True)
    evaluation = Evaluation(trials, (measure, _measures.FEV[weighting]))
    values, fraction = evaluation.values()
    return _thresholded(Evaluation(trials, (measure,)), values, fraction, threshold, bootstrap)


def ccnorm(responses: Array, predictions: Array, image_ids: Any, *, bootstrap: Bootstrap | None = None) -> Result:
    """Correlation to the average response, normalised by what the noise of the average allows.

    CCnorm = cov(a, b) / sqrt(SP var(b)), where the signal power SP is the variance of the mean response over images
    (Schoppe et al. 2016, Front. Comput. Neurosci. 10:10, after Sahani & Linden 2003). With the same number n of repeats
    for all images, SP = (var_i(sum_t r_it) - sum_t var_i(r_it)) / (n (n - 1)), as in the paper. cov and var have
    divisor I - 1.

    With unequal numbers, SP is the variance of the averages minus their noise. The noise is mean_i s_i^2 / n_i, where
    s_i^2 is the variance over repeats. As in the paper's formula, the part of this noise that the means of the repeats
    explain (the first trials of all images, the second ...) is subtracted from it. So the value changes slightly with
    the order of an image's trials.

    The value is not bounded by 1, because SP is an estimate. It is NaN where SP is not positive. Images with one trial
    are left out and counted.

    Args:
        responses, predictions: [T, N].
        image_ids: [T].
        bootstrap: how to draw an interval of the mean.

    Raises:
        ValueError: the operands do not fit together.
    """
    return _by_image(_measures.CCNORM, responses, predictions, image_ids, bootstrap)


def poisson_deviance_explained(
    responses: Array, predictions: Array, image_ids: Any = None, *, bootstrap: Bootstrap | None = None
) -> Result:
    """1 - D / D_null, with D = 2 sum (r log(r / p) - r + p), and D_null the same with the mean of these responses as p.

    This is McFadden's R^2 of a Poisson model against the saturated one (Cameron & Windmeijer 1996, J. Bus. Econ. Stat.
    14, 209), and scikit-learn's ``d2_tweedie_score(power=1)`` of each neuron. It is -inf if a prediction is 0 and the
    response is not. It is NaN if either is negative, or if the responses do not vary.

    Args:
        responses, predictions: [T, N], both >= 0.
        image_ids: [T]; only for the bootstrap. Without it, each trial counts as its own image.
        bootstrap: how to draw an interval of the mean.

    Raises:
        ValueError: the operands do not fit together.
    """
    return _overall(_measures.DEVIANCE_EXPLAINED, responses, predictions, image_ids, bootstrap)


def information_gain(
    responses: Array, predictions: Array, image_ids: Any = None, *, bootstrap: Bootstrap | None = None
) -> Result:
    """Poisson log-likelihood minus that of the mean response, per spike, in bits.

    It is sum (r log2(p / m) - (p - m) / ln 2) / sum r, with m the mean of these responses (single-spike information,
    Brenner et al. 2000, Neural Comput. 12, 1531; as a score of models, Pillow et al. 2008, Nature 454, 995). It is -inf
    if a prediction is 0 and the response is not. It is NaN if either is negative, or if there is no spike.

    Args:
        responses, predictions: [T, N], both >= 0.
        image_ids: [T]; only for the bootstrap. Without it, each trial counts as its own image.
        bootstrap: how to draw an interval of the mean.

    Raises:
        ValueError: the operands do not fit together.
    """
    return _overall(_measures.INFORMATION_GAIN, responses, predictions, image_ids, bootstrap)


def evaluate(
    responses: Array,
    predictions: Array,
    image_ids: Any,
    *,
    threshold: float | None = FEV_THRESHOLD,
    bootstrap: Bootstrap | None = None,
) -> dict[str, Result]:
    """Compute all metrics of single neurons at once, by the names of their functions, in one pass over the trials.

    ``oracle_correlation`` is the jackknife, ``oracle_correlation_conservative`` the other method. Metrics of repeats
    leave out images with one trial; the others do not.

    Args:
        responses, predictions: [T, N].
        image_ids: [T].
        threshold: of :func:`feve`.
        bootstrap: how to draw intervals of the means.

    Raises:
        ValueError: the operands do not fit together.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> rates = rng.uniform(1, 9, (50, 20)).repeat(4, axis=0)  # 50 images, 4 repeats, 20 neurons
    >>> found = evaluate(rng.poisson(rates), rates, np.arange(50).repeat(4))
    >>> 0.6 < found["single_trial_correlation"].mean < found["correlation_to_average"].mean < 1
    True
    """
    results: dict[str, Result] = {}
    for repeats in (False, True):
        named = {name: measure for name, measure in _EVALUATED.items() if measure.repeats == repeats}
        trials = Trials.of(responses, predictions, image_ids, repeats)
        values = dict(zip(named, Evaluation(trials, list(named.values())).values(), strict=True))
        for name, measure in named.items():
            limit = threshold if name == "feve" else None
            results[name] = _thresholded(
                Evaluation(trials, (measure,)), values[name], values.get("explainable_variance"), limit, bootstrap
            )
    return {name: results[name] for name in _EVALUATED}


_EVALUATED = {
    "single_trial_correlation": _measures.SINGLE_TRIAL,
    "correlation_to_average": _measures.TO_AVERAGE,
    "oracle_correlation": _measures.JACKKNIFE,
    "oracle_correlation_conservative": _measures.CONSERVATIVE,
    "explainable_variance": _measures.FEV["image"],
    "feve": _measures.FEVE["image"],
    "ccnorm": _measures.CCNORM,
    "poisson_deviance_explained": _measures.DEVIANCE_EXPLAINED,
    "information_gain": _measures.INFORMATION_GAIN,
}


def _thresholded(
    evaluation: Evaluation,
    values: Tensor,
    fraction: Tensor | None,
    threshold: float | None,
    bootstrap: Bootstrap | None,
) -> Result:
    """Set neurons to NaN whose explainable variance is below the threshold, if there is one."""
    if threshold is None or fraction is None:
        return _result(evaluation, values, bootstrap)
    below = fraction < threshold
    return _result(evaluation, torch.where(below, torch.nan, values), bootstrap, int(below.sum()))


def _overall(
    measure: Measure, responses: Array, predictions: Array, image_ids: Any, bootstrap: Bootstrap | None
) -> Result:
    """Compute a metric that needs images only for the bootstrap."""
    if bootstrap is None:
        if image_ids is not None:
            Trials.of(responses, predictions, image_ids, repeats=False)  # raises for operands that do not fit
        evaluation = Evaluation(Trials.of(responses, predictions, None, repeats=False), (measure,))
        return Result(evaluation.values()[0])
    ids = torch.arange(len(responses)) if image_ids is None else image_ids
    return _by_image(measure, responses, predictions, ids, bootstrap)


def _by_image(
    measure: Measure, responses: Array, predictions: Array | None, image_ids: Any, bootstrap: Bootstrap | None
) -> Result:
    if image_ids is None:
        raise ValueError("image_ids: want [T], got None")
    evaluation = Evaluation(Trials.of(responses, predictions, image_ids, measure.repeats), (measure,))
    return _result(evaluation, evaluation.values()[0], bootstrap)


def _result(evaluation: Evaluation, values: Tensor, bootstrap: Bootstrap | None, below_threshold: int = 0) -> Result:
    interval = None if bootstrap is None else evaluation.interval(bootstrap, ~values.isnan(), mean_over)
    trials = evaluation.trials
    return Result(values, len(trials.counts), trials.left_out, below_threshold, interval)
