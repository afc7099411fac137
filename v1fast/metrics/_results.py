"""Values of all neurons, their mean, and its bootstrap interval over images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v1fast import _choices
from v1fast._build import release
from v1fast.metrics._sums import Measure, Products, Trials, features_of, neuron_blocks, totals_of

KEPT_FEATURES = 2**25  # elements of all features of all neurons that are kept between resamples: 256 MiB
RESAMPLES_AT_ONCE = 2**22  # elements of the array of drawn images


@dataclass(frozen=True)
class Bootstrap:
    """How an interval over images is drawn.

    Attributes:
        confidence: in (0, 1).
        method: "BCa" (bias-corrected and accelerated, Efron 1987, J. Am. Stat. Assoc. 82, 171) or "percentile".
        resamples: number of samples; each draws as many images as there are, with replacement.
        seed: of the random draws.
    """

    confidence: float = 0.95
    method: Literal["BCa", "percentile"] = "BCa"
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence: want a number between 0 and 1, got {self.confidence}")
        _choices.one_of("method", self.method, ("BCa", "percentile"))
        if self.resamples < 2:
            raise ValueError(f"resamples: want at least 2, got {self.resamples}")


@dataclass(frozen=True)
class Interval:
    """Bootstrap interval of a mean over neurons.

    Attributes:
        low, high: NaN where the resamples give no interval (a single image; no neuron defined).
        confidence: as requested.
    """

    low: float
    high: float
    confidence: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Result:
    """A metric of each neuron.

    Attributes:
        per_neuron: [N], float64, NaN where undefined, on the device of the responses.
        images: number of images that were used; None if the metric does not depend on images.
        left_out: number of images left out because they have one trial.
        below_threshold: number of neurons that are NaN only because of a threshold.
        interval: of ``mean``, over images; None if not requested.
    """

    per_neuron: Tensor
    images: int | None = None
    left_out: int = 0
    below_threshold: int = 0
    interval: Interval | None = None

    @property
    def undefined(self) -> int:
        """Number of neurons that are NaN because the metric is not defined for them."""
        return int(self.per_neuron.isnan().sum()) - self.below_threshold

    @property
    def mean(self) -> float:
        """Mean over the neurons that have a value; NaN if none has."""
        return self.per_neuron.nanmean().item()

    @property
    def median(self) -> float:
        """Median over the neurons that have a value; NaN if none has."""
        return self.per_neuron.nanquantile(0.5).item() if len(self.per_neuron) else float("nan")

    def __str__(self) -> str:
        text = f"{self.mean:.4f}"
        if self.interval is not None:
            text += f" [{self.interval.low:.4f}, {self.interval.high:.4f}]"
        notes = [f"{self.undefined} of {len(self.per_neuron)} neurons undefined"] if self.undefined else []
        notes += [f"{self.below_threshold} below the threshold"] if self.below_threshold else []
        notes += [f"{self.left_out} images with one trial left out"] if self.left_out else []
        return text + (f" ({'; '.join(notes)})" if notes else "")


Pool = Callable[[Sequence[Tensor], Tensor], tuple[Tensor, Tensor]]
"""Of the metrics' values [..., n], one tensor for each measure, and the neurons that count [n]: two sums over these
neurons, [...] each, whose ratio is the number to report."""


def mean_over(values: Sequence[Tensor], counted: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum and number of the defined values."""
    there = counted & ~values[0].isnan()
    return torch.where(there, values[0], 0.0).sum(-1), there.sum(-1).double()


@dataclass
class Evaluation:
    """Measures of the same trials: values, and the distribution of a pooled number over images.

    Attributes:
        trials: the operands.
        measures: at least one.
    """

    trials: Trials
    measures: Sequence[Measure]

    def __post_init__(self) -> None:
        self._kept: list[tuple[slice, list[list[Tensor]]]] | None = None

    def values(self) -> list[Tensor]:
        """Return [N] for each measure, with each image used once. NaN where there is no image."""
        if len(self.trials.counts) == 0:
            return [self.trials.responses.new_full((self.trials.neurons,), torch.nan, dtype=torch.float64)] * len(
                self.measures
            )
        if any(isinstance(measure.features, Products) for measure in self.measures):
            return self._values_by_totals()
        found = [
            [
                measure.value([f.sum(0) for f in features])
                for measure, features in zip(self.measures, block, strict=True)
            ]
            for _, block in self._blocks()
        ]
        empty = [self.trials.responses.new_empty(0, dtype=torch.float64)] * len(self.measures)
        return [torch.cat(parts) for parts in zip(*found, strict=True)] if found else empty

    def _values_by_totals(self) -> list[Tensor]:
        by_products = [measure for measure in self.measures if isinstance(measure.features, Products)]
        others = [measure for measure in self.measures if not isinstance(measure.features, Products)]
        totals = iter(totals_of(self.trials, by_products))
        rest = iter(Evaluation(self.trials, others).values() if others else [])
        return [
            measure.value(next(totals)) if isinstance(measure.features, Products) else next(rest)
            for measure in self.measures
        ]

    def pooled(self, weights: Tensor, counted: Tensor, pool: Pool) -> Tensor:
        """Return the pooled number [B] for each row of ``weights`` [B, I]: how often each image is drawn."""
        above = below = weights.new_zeros(len(weights))
        for block, features in self._blocks():
            values = [
                measure.value([weights @ f for f in own]) for measure, own in zip(self.measures, features, strict=True)
            ]
            one, other = pool(values, counted[block])
            above, below = above + one, below + other
        return above / below

    def interval(self, bootstrap: Bootstrap, counted: Tensor, pool: Pool) -> Interval:
        """Return the interval from ``scipy.stats.bootstrap`` over images.

        Args:
            bootstrap: how it is drawn.
            counted: [N], whether a neuron counts; fixed while images are drawn.
            pool: reduces all neurons to one number.
        """
        import scipy
        from scipy import stats

        images, device = len(self.trials.counts), self.trials.responses.device
        none = Interval(float("nan"), float("nan"), bootstrap.confidence)
        if images < 2 or not bool(counted.any()):
            return none

        def statistic(drawn: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:
            rows = drawn.reshape(-1, drawn.shape[-1])
            times = np.stack([np.bincount(row, minlength=images) for row in rows])
            pooled = self.pooled(torch.from_numpy(times).to(device, torch.float64), counted, pool)
            return pooled.cpu().numpy().reshape(drawn.shape[:-1])

        generator = "rng" if release(scipy.__version__) >= (1, 15) else "random_state"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # if the distribution is one point, the interval is NaN
            found = stats.bootstrap(
                (np.arange(images),),
                statistic,
                n_resamples=bootstrap.resamples,
                batch=max(1, RESAMPLES_AT_ONCE // images),
                confidence_level=bootstrap.confidence,
                method=bootstrap.method,
                vectorized=True,
                **{generator: np.random.default_rng(bootstrap.seed)},
            ).confidence_interval
        return Interval(float(found.low), float(found.high), bootstrap.confidence)

    def _blocks(self) -> Iterator[tuple[slice, list[list[Tensor]]]]:
        """Yield blocks of neurons with the features of each measure. They are kept between calls if small enough."""
        if self._kept is not None:
            yield from self._kept
            return
        made, elements = [], 0
        for block in neuron_blocks(self.trials, self._features_a_neuron()):
            features = features_of(self.trials, self.measures, block)
            elements += sum(f.numel() for own in features for f in own)
            if elements <= KEPT_FEATURES:
                made.append((block, features))
            yield block, features
        if elements <= KEPT_FEATURES:
            self._kept = made

    def _features_a_neuron(self) -> int:
        """Return the approximate number of features per image."""
        depth = int(self.trials.counts.max()) if any(measure.keeps_trials for measure in self.measures) else 0
        return 8 + 2 * len(self.measures) + depth
