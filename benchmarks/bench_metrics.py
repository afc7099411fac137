"""Metrics of predicted responses: cases and providers."""

from __future__ import annotations

import collections
import collections.abc
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v1fast import metrics
from v1fast.metrics import _measures
from v1fast.metrics._results import Evaluation
from v1fast.metrics._sums import Trials

from .contract import Absent, Case, Provider, Step

OP, TITLE, HEADLINE = "metrics", "Metrics of predicted responses", "metrics-all"
BASELINES = ("numpy", "neuralpredictors")
NAMES = COMPARED = (*BASELINES, "v1fast")
REPEATS = 10
# NumPy's definitions need more than 3 GB for 10^4 trials of 10^4 neurons.
CASES = tuple(
    Case(name, {"T": 4000, "N": 10_000, "R": REPEATS}, dtype="float64", error_bound=1e-6)
    for name in ("metrics-all", "metrics-correlation", "metrics-oracle", "metrics-feve")
)
Floats = NDArray[np.float64]


def plan(case: Case, threads: int | None) -> tuple[str, ...]:
    """Choose the providers. NumPy uses only one thread."""
    return ("numpy", "v1fast") if threads == 1 else ()


@lru_cache(maxsize=1)
def session(trials: int, neurons: int) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return responses and predictions [T, N] and images [T], in the order of presentation."""
    draw = np.random.default_rng(1)
    ids = draw.permutation(np.repeat(np.arange(trials // REPEATS), REPEATS))
    rates = draw.gamma(2, 1, (trials // REPEATS, neurons))
    responses = draw.poisson(rates[ids]).astype(np.float64)
    return responses, 0.8 * rates[ids] + 0.3, ids


class NumPy:
    """The definitions of neuralpredictors, written out: passes over arrays of trials x neurons."""

    @staticmethod
    def corr(a: Floats, b: Floats, axis: int) -> Floats:
        a = (a - a.mean(axis, keepdims=True)) / (a.std(axis, keepdims=True) + 1e-8)
        b = (b - b.mean(axis, keepdims=True)) / (b.std(axis, keepdims=True) + 1e-8)
        return np.asarray((a * b).mean(axis))

    @staticmethod
    def oracle_corr_jackknife(images: list[Floats]) -> Floats:
        others = [(image.sum(0, keepdims=True) - image) / (len(image) - 1) for image in images]
        return NumPy.corr(np.vstack(images), np.vstack(others), 0)

    @staticmethod
    def oracle_corr_conservative(images: list[Floats]) -> Floats:
        noise = np.mean([image.var(0) for image in images], axis=0)
        signal = np.var([image.mean(0) for image in images], axis=0)
        return np.asarray(signal / np.sqrt(signal * (signal + noise)))

    @staticmethod
    def fev(images: list[Floats], predictions: list[Floats], return_exp_var: bool) -> list[Floats]:
        error = np.mean(np.vstack([(a - b) ** 2 for a, b in zip(images, predictions, strict=True)]), axis=0)
        noise = np.mean([image.var(0, ddof=1) for image in images], axis=0)
        total = np.var(np.vstack(images), axis=0, ddof=1)
        return [(total - noise) / total, 1 - (error - noise) / (total - noise)]


def by_definition(case: Case, functions: Any) -> Floats:
    """Compute all metrics, one after another. Trials are first grouped by image, as Sensorium does."""
    r, p, ids = session(case.shape["T"], case.shape["N"])
    if case.name == "metrics-correlation":
        return np.asarray(functions.corr(r, p, axis=0))
    images = [r[ids == i] for i in np.unique(ids)]
    if case.name == "metrics-oracle":
        return np.asarray(functions.oracle_corr_jackknife(images))
    predicted = [p[ids == i] for i in np.unique(ids)]
    fev = functions.fev(images, predicted, return_exp_var=True)
    if case.name == "metrics-feve":
        return np.asarray(fev[1])
    a, b = (np.stack([image.mean(0) for image in each]) for each in (images, predicted))
    return np.concatenate(
        [
            functions.corr(r, p, axis=0),
            functions.corr(a, b, axis=0),
            functions.oracle_corr_jackknife(images),
            functions.oracle_corr_conservative(images),
            *fev,
        ]
    )


ALL = (
    _measures.SINGLE_TRIAL,
    _measures.TO_AVERAGE,
    _measures.JACKKNIFE,
    _measures.CONSERVATIVE,
    _measures.FEV["image"],
    _measures.FEVE["image"],
)


def by_sums(case: Case) -> Tensor:
    """Compute the same with v1fast."""
    r, p, ids = session(case.shape["T"], case.shape["N"])
    if case.name == "metrics-correlation":
        return metrics.single_trial_correlation(r, p).per_neuron
    if case.name == "metrics-oracle":
        return metrics.oracle_correlation(r, ids).per_neuron
    if case.name == "metrics-feve":
        return metrics.feve(r, p, ids, threshold=None).per_neuron
    return torch.cat(Evaluation(Trials.of(r, p, ids, repeats=True), ALL).values())


class MetricsCheck:
    """Exact results from the definitions in float64."""

    def __init__(self, exact: Tensor) -> None:
        self.exact, self.upstream = exact, exact.new_empty(0)

    def errors(self, output: Tensor, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the largest difference. Values are of magnitude 1."""
        return {"output": (output - self.exact).abs().max().item()}


@lru_cache(maxsize=1)
def check(case: Case) -> MetricsCheck:
    """Return the exact results, computed once for all providers."""
    return MetricsCheck(torch.from_numpy(by_definition(case, NumPy)))


class MetricsStep(Step):
    """A call of ``compute``."""

    upstream = None

    def __init__(self, case: Case, compute: Callable[[], Tensor]) -> None:
        self.case, self.compute = case, compute

    def forward(self, drawn: None) -> Tensor:
        return self.compute()

    def backward(self, output: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        return {}

    def check(self) -> MetricsCheck:
        return check(self.case)


def _numpy(case: Case) -> MetricsStep:
    return MetricsStep(case, lambda: torch.from_numpy(by_definition(case, NumPy)))


def _neuralpredictors(case: Case) -> MetricsStep:
    """Load the package itself from the folder V1FAST_PEERS."""
    folder = os.environ.get("V1FAST_PEERS")
    if not folder:
        raise Absent("not installed: V1FAST_PEERS names the folder of make .peers/.installed")
    if os.path.abspath(folder) not in sys.path:
        sys.path.append(os.path.abspath(folder))
    collections.Iterable = collections.abc.Iterable  # type: ignore[attr-defined]  # as up to Python 3.9
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        sys.modules["torchvision"] = types.ModuleType("torchvision")  # only imported, not used by what is measured
    functions = importlib.import_module("neuralpredictors.measures.np_functions")
    return MetricsStep(case, lambda: torch.from_numpy(by_definition(case, functions)))


def _ours(case: Case) -> MetricsStep:
    return MetricsStep(case, lambda: by_sums(case))


def providers(case: Case, device: str) -> Iterator[Provider]:
    """Yield all that can compute the case, by ``NAMES``."""
    for name, prepare in zip(NAMES, (_numpy, _neuralpredictors, _ours), strict=True):
        yield Provider(name, partial(_on_cpu, prepare, case, device), baseline=name in BASELINES)


def _on_cpu(prepare: Callable[[Case], MetricsStep], case: Case, device: str) -> MetricsStep:
    if device != "cpu":
        raise Absent("measured on the CPU alone")
    return prepare(case)
