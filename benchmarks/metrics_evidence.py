"""Evidence for the metrics on models of known quality: the bias, and whether the interval covers the known value.

    python -m v1fast.benchmarks.metrics_evidence docs/metrics.md

replaces the tables between the markers of that page (minutes). Drawn are images, with rates that neurons partly share,
and Poisson responses to repeats of them. The known values are the limits for infinitely many such images.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr

from v1fast import _files, metrics

Floats = NDArray[np.float64]

NEURONS, IMAGES, SHARED = 20, 200, 8
LOG_SPREAD = 0.7  # of lognormal rates
MEAN_COUNTS = (2.0, 6.0)
POPULATION = 200_000  # images that stand for infinitely many
MODELS: dict[str, str] = {
    "true rates": "the rates that the responses are drawn from",
    "shifted": "plus half the mean rate",
    "scaled": "times 0.6",
    "noisy": "times a factor between 0.4 and 1.6, drawn for each image",
}
START, END = "<!-- evidence -->", "<!-- end of evidence -->"


@dataclass(frozen=True, eq=False)  # compared by identity: known values are kept by setting
class Setting:
    """What all seeds have in common.

    Attributes:
        mixing: [SHARED, N], weights of the shared causes in each neuron's drive; norm 1.
        mean: [N], mean rates.
        repeats: smallest and largest number of repeats of an image.
        heavy: lognormal rates rather than uniform ones.
    """

    mixing: Floats
    mean: Floats
    repeats: tuple[int, int]
    heavy: bool

    def rates(self, images: int, draw: np.random.Generator) -> Floats:
        """[I, N]."""
        z = draw.normal(size=(images, SHARED)) @ self.mixing
        if self.heavy:
            return self.mean * np.exp(LOG_SPREAD * z - LOG_SPREAD**2 / 2)
        return self.mean * (0.1 + 1.8 * ndtr(z))

    def predictions(self, rates: Floats, model: str, draw: np.random.Generator) -> Floats:
        """[I, N]: see MODELS."""
        if model == "shifted":
            return rates + self.mean / 2
        if model == "scaled":
            return 0.6 * rates
        return rates * draw.uniform(0.4, 1.6, rates.shape) if model == "noisy" else rates


def setting(repeats: tuple[int, int], heavy: bool = False) -> Setting:
    """Return the setting, with the same neurons for every seed."""
    draw = np.random.default_rng(2024)
    mixing = draw.normal(size=(SHARED, NEURONS))
    mixing /= np.linalg.norm(mixing, axis=0)
    return Setting(mixing, draw.uniform(*MEAN_COUNTS, NEURONS), repeats, heavy)


def session(made: Setting, model: str, seed: int) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return responses and predictions [T, N] and the image of each trial [T]."""
    draw = np.random.default_rng(seed)
    rates = made.rates(IMAGES, draw)
    counts = draw.integers(made.repeats[0], made.repeats[1] + 1, IMAGES)
    ids = np.repeat(np.arange(IMAGES), counts)
    responses = draw.poisson(rates[ids]).astype(np.float64)
    return responses, made.predictions(rates, model, draw)[ids], ids


@lru_cache
def known(made: Setting, model: str) -> dict[str, float]:
    """Return the limit of each metric, averaged over neurons, for infinitely many images and these repeats."""
    draw = np.random.default_rng(7)
    rates = made.rates(POPULATION, draw)
    p = made.predictions(rates, model, draw)
    signal, noise, mean = rates.var(0), rates.mean(0), rates.mean(0)
    cov = ((rates - rates.mean(0)) * (p - p.mean(0))).mean(0)
    n = np.arange(made.repeats[0], made.repeats[1] + 1)
    inverse, others = (1 / n).mean(), (n / (n - 1)).mean() / n.mean()
    single = cov / np.sqrt((signal + noise) * p.var(0))
    jackknife = signal / np.sqrt((signal + noise) * (signal + noise * others))
    # For a Poisson count, E[r log p] = rate log p. The common part of D and its null is drawn.
    counts = draw.poisson(rates).astype(np.float64)
    saturated = (counts * np.log(np.maximum(counts, 1)) - counts).mean(0)
    model_likelihood, null = (rates * np.log(p) - p).mean(0), mean * np.log(mean) - mean
    values = {
        "single_trial_correlation": single,
        "correlation_to_average": cov / np.sqrt((signal + noise * inverse) * p.var(0)),
        "oracle_correlation": jackknife,
        "oracle_correlation_conservative": np.sqrt((signal + noise * inverse) / (signal + noise)),
        "explainable_variance": signal / (signal + noise),
        "feve": 1 - ((rates - p) ** 2).mean(0) / signal,
        "ccnorm": cov / np.sqrt(signal * p.var(0)),
        "poisson_deviance_explained": 1 - (saturated - model_likelihood) / (saturated - null),
        "information_gain": (model_likelihood - null) / (mean * math.log(2)),
    }
    found = {name: float(value.mean()) for name, value in values.items()}
    return found | {"fraction_oracle": float((single * jackknife).sum() / (jackknife**2).sum())}


def ideal_oracle(made: Setting) -> float:
    """Return the single-trial correlation of the true rates, which the oracles estimate."""
    return known(made, "true rates")["single_trial_correlation"]


Metric = Callable[..., Any]
OF_MODELS: Mapping[str, Metric] = {
    "single_trial_correlation": metrics.single_trial_correlation,
    "correlation_to_average": metrics.correlation_to_average,
    "feve": metrics.feve,
    "ccnorm": metrics.ccnorm,
    "fraction_oracle": metrics.fraction_oracle,
    "poisson_deviance_explained": metrics.poisson_deviance_explained,
    "information_gain": metrics.information_gain,
}
INVARIANT = ("single_trial_correlation", "correlation_to_average", "ccnorm", "fraction_oracle")
OF_RESPONSES: Mapping[str, Metric] = {
    "oracle_correlation": metrics.oracle_correlation,
    "oracle_correlation_conservative": lambda r, ids, **options: metrics.oracle_correlation(
        r, ids, method="conservative", **options
    ),
    "explainable_variance": metrics.explainable_variance,
}


def estimate(name: str, made: Setting, model: str, seed: int, resamples: int = 1000) -> tuple[float, metrics.Interval]:
    """Return the metric and its interval in one session."""
    responses, predictions, ids = session(made, model, seed)
    options = {"bootstrap": metrics.Bootstrap(resamples=resamples, seed=seed)}
    if name in OF_RESPONSES:
        result = OF_RESPONSES[name](responses, ids, **options)
    else:
        result = OF_MODELS[name](responses, predictions, ids, **options)
    value = result.value if isinstance(result, metrics.FractionOracleResult) else result.mean
    assert result.interval is not None
    return value, result.interval


def peer(name: str, made: Setting, model: str, seed: int) -> float | None:
    """Return neuralpredictors' value where its definition differs: with unequal repeats, and in torch."""
    responses, predictions, ids = session(made, model, seed)
    if name == "single_trial_correlation":  # its torch function divides by n - 1 in one expression and by n in another
        return metrics.single_trial_correlation(responses, predictions).mean * (len(ids) - 1) / len(ids)
    if name == "explainable_variance":
        return metrics.explainable_variance(responses, ids, weighting="neuralpredictors").mean
    if name == "feve":
        return metrics.feve(responses, predictions, ids, weighting="neuralpredictors").mean
    return None


@dataclass(frozen=True)
class Evidence:
    """One metric on one model, over seeds."""

    metric: str
    model: str
    known: float
    mean: float
    standard_error: float
    held: int
    peer: float | None


def judge(name: str, made: Setting, model: str, seeds: int) -> Evidence:
    """Measure bias and coverage."""
    truth = known(made, model)[name]
    found = [estimate(name, made, model, seed) for seed in range(seeds)]
    values = np.array([value for value, _ in found])
    peers = [peer(name, made, model, seed) for seed in range(seeds)]
    other = None if peers[0] is None else float(np.mean([value for value in peers if value is not None]))
    held = sum(truth in interval for _, interval in found)
    return Evidence(name, model, truth, values.mean(), values.std(ddof=1) / math.sqrt(seeds), held, other)


def cases(made: Setting) -> Iterator[tuple[str, str]]:
    """Yield metric and model. Heavy tails serve as a warning and have fewer cases."""
    models = ("true rates", "scaled") if made.heavy else tuple(MODELS)
    for name in OF_RESPONSES:
        yield name, "-"
    for name in OF_MODELS:
        for model in models:
            # A shift or a factor does not change a correlation.
            if model not in ("shifted", "scaled") or name not in INVARIANT:
                yield name, model


SETTINGS = {
    "10 repeats of each image": setting((10, 10)),
    "2 to 18 repeats": setting((2, 18)),
    "Heavy tails (lognormal rates), 10 repeats": setting((10, 10), heavy=True),
}


def table(made: Setting, seeds: int) -> Iterator[str]:
    """Yield the lines of one table."""
    yield "| metric | model | known | mean estimate | bias | held of 100 | neuralpredictors |"
    yield "|---|---|---|---|---|---|---|"
    for name, model in cases(made):
        row = judge(name, made, "true rates" if model == "-" else model, seeds)
        bias = f"{row.mean - row.known:+.4f} ± {row.standard_error:.4f}"
        other = "" if row.peer is None else f"{row.peer:.4f}"
        held = f"{100 * row.held / seeds:.0f}"
        yield f"| `{name}` | {model} | {row.known:.4f} | {row.mean:.4f} | {bias} | {held} | {other} |"
        print(row, flush=True)


def main(page: Path, seeds: int = 100) -> None:
    """Write the tables into the page."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    lines = [START, ""]
    for title, made in SETTINGS.items():
        lines += [f"**{title}.** The oracles estimate {ideal_oracle(made):.4f}.", "", *table(made, seeds), ""]
    text = page.read_text()
    before, after = text[: text.index(START)], text[text.index(END) :]
    _files.replace(page, (before + "\n".join(lines) + "\n" + after).encode())
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(value) for value in sys.argv[2:]))
