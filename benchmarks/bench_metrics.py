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
SINGLE = ("correlation", "average", "oracle", "conservative", "fev", "feve")
GROUPED = "-grouped"  # trials already in the order of their images, so that NumPy can take views of them
NEURONS_AT_ONCE = 500  # of the exact results in float64
# NumPy's definitions need about 4 GB. In float32 their errors reach 1e-4.
CASES = tuple(
    Case(f"metrics-{name}", {"T": 10_000, "N": 10_000, "R": REPEATS}, error_bound=1e-4)
    for name in ("all", *SINGLE, *(name + GROUPED for name in SINGLE))
)
Floats = NDArray[Any]


def plan(case: Case, threads: int | None) -> tuple[str, ...]:
    """Choose the providers. NumPy uses only one thread."""
    return ("numpy", "v1fast") if threads == 1 else ()


@lru_cache(maxsize=1)
def session(trials: int, neurons: int, grouped: bool) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return responses and predictions [T, N] in float32 and images [T], in a random order unless grouped."""
    draw = np.random.default_rng(1)
    ids = np.repeat(np.arange(trials // REPEATS), REPEATS)
    ids = ids if grouped else draw.permutation(ids)
    rates = draw.gamma(2, 1, (trials // REPEATS, neurons)).astype(np.float32)
    responses = np.empty((trials, neurons), np.float32)
    for trial, image in enumerate(ids):
        responses[trial] = draw.poisson(rates[image])
    return responses, np.float32(0.8) * rates[ids] + np.float32(0.3), ids


def operands(case: Case) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return the case's session."""
    return session(case.shape["T"], case.shape["N"], case.name.endswith(GROUPED))


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

    @staticmethod
    def explainable_var(images: Floats) -> Floats:
        total = np.var(np.vstack(list(images)), axis=0, ddof=1)
        return np.asarray((total - np.var(images, axis=1, ddof=1).mean(0)) / (total + 1e-9))


def by_image(values: Floats, ids: NDArray[np.int64], grouped: bool) -> list[Floats]:
    """Return the trials of each image, as Sensorium groups them: copies, unless they are grouped already."""
    if grouped:
        return np.split(values, len(values) // REPEATS)
    return [values[ids == i] for i in np.unique(ids)]


def by_definition(case: Case, functions: Any, r: Floats, p: Floats, ids: NDArray[np.int64]) -> Floats:
    """Compute one metric, or all of them one after another. Trials are first grouped by image."""
    name = case.name.removeprefix("metrics-").removesuffix(GROUPED)
    grouped = case.name.endswith(GROUPED)
    if name == "correlation":
        return np.asarray(functions.corr(r, p, axis=0))
    images = by_image(r, ids, grouped)
    if name == "oracle":
        return np.asarray(functions.oracle_corr_jackknife(images))
    if name == "conservative":
        return np.asarray(functions.oracle_corr_conservative(images))
    if name == "fev":
        return np.asarray(
            functions.explainable_var(r.reshape(-1, REPEATS, r.shape[1]) if grouped else np.stack(images))
        )
    predicted = by_image(p, ids, grouped)
    if name == "feve":
        return np.asarray(functions.fev(images, predicted, return_exp_var=True)[1])
    a, b = (np.stack([image.mean(0) for image in each]) for each in (images, predicted))
    average = np.asarray(functions.corr(a, b, axis=0))
    if name == "average":
        return average
    return np.concatenate(
        [
            functions.corr(r, p, axis=0),
            average,
            functions.oracle_corr_jackknife(images),
            functions.oracle_corr_conservative(images),
            *functions.fev(images, predicted, return_exp_var=True),
        ]
    )


MEASURES = {
    "correlation": _measures.SINGLE_TRIAL,
    "average": _measures.TO_AVERAGE,
    "oracle": _measures.JACKKNIFE,
    "conservative": _measures.CONSERVATIVE,
    "fev": _measures.FEV["image"],
    "feve": _measures.FEVE["image"],
}
FUNCTIONS: Mapping[str, Callable[..., metrics.Result]] = {
    "correlation": lambda r, p, ids: metrics.single_trial_correlation(r, p),
    "average": metrics.correlation_to_average,
    "oracle": lambda r, p, ids: metrics.oracle_correlation(r, ids),
    "conservative": lambda r, p, ids: metrics.oracle_correlation(r, ids, method="conservative"),
    "fev": lambda r, p, ids: metrics.explainable_variance(r, ids),
    "feve": lambda r, p, ids: metrics.feve(r, p, ids, threshold=None),
}


def by_sums(case: Case) -> Tensor:
    """Compute the same with v1fast."""
    r, p, ids = operands(case)
    name = case.name.removeprefix("metrics-").removesuffix(GROUPED)
    if name in FUNCTIONS:
        return FUNCTIONS[name](r, p, ids).per_neuron
    return torch.cat(Evaluation(Trials.of(r, p, ids, repeats=True), tuple(MEASURES.values())).values())


def exact(case: Case) -> Tensor:
    """Compute the definitions in float64, some neurons at a time."""
    r, p, ids = operands(case)
    blocks = [slice(n, n + NEURONS_AT_ONCE) for n in range(0, r.shape[1], NEURONS_AT_ONCE)]
    parts = [
        by_definition(case, NumPy, r[:, block].astype(np.float64), p[:, block].astype(np.float64), ids)
        for block in blocks
    ]
    metrics_at_once = len(MEASURES) if case.name == "metrics-all" else 1
    return torch.from_numpy(np.concatenate([part.reshape(metrics_at_once, -1) for part in parts], axis=1).ravel())


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
    return MetricsCheck(exact(case))


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
    return MetricsStep(case, lambda: torch.from_numpy(by_definition(case, NumPy, *operands(case))))


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
    return MetricsStep(case, lambda: torch.from_numpy(by_definition(case, functions, *operands(case))))


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
