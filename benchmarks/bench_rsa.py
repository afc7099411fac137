"""Comparison of dissimilarity matrices: cases and providers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v1fast import rsa
from v1fast.rsa._matrices import to_squares

from .contract import Absent, Case, Provider, Step

OP, TITLE, HEADLINE = "rsa", "Comparison of dissimilarity matrices", "rsa-spearman"
BASELINES = ("rsatoolbox", "loop", "numpy")
NAMES = COMPARED = (*BASELINES, "v1fast")
METHODS = {"rsa-pearson": "corr", "rsa-spearman": "spearman", "rsa-whitened": "cosine_cov"}
PERMUTATIONS = 1000

CASES = (
    *(Case(name, {"S": 4000}, error_bound=1e-5) for name in METHODS),
    *(Case(f"rsa-relabel-{size}", {"S": size, "P": PERMUTATIONS}, error_bound=1e-5) for size in (92, 360, 1000)),
)


def plan(case: Case, threads: int | None) -> tuple[str, ...]:
    """Choose the providers. Nobody uses more than one thread."""
    return NAMES if threads == 1 else ()


@lru_cache(maxsize=1)
def matrices(stimuli: int) -> NDArray[np.float32]:
    """Return two condensed matrices [2, S (S - 1) / 2] around 1, as of unrelated responses, with a common part."""
    draw = np.random.default_rng(1)
    noise = draw.normal(size=(3, stimuli * (stimuli - 1) // 2))
    return (1 + 0.05 * (noise[:2] + noise[2])).astype(np.float32)


class SimilarityCheck:
    """Exact similarity from the definition in float64."""

    def __init__(self, exact: Tensor) -> None:
        self.exact, self.upstream = exact, exact.new_empty(0)

    def errors(self, output: Tensor, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the largest difference. Similarities are of magnitude 1."""
        return {"output": (output.double() - self.exact).abs().max().item()}


@lru_cache(maxsize=1)
def check(case: Case) -> SimilarityCheck:
    """Return the exact results, computed once for all providers. The tests check permutations: here draws differ."""
    if case.name not in METHODS:
        return SimilarityCheck(torch.tensor(_pearson(*matrices(case.shape["S"]).astype(np.float64))))
    method = METHODS[case.name]
    a, b = matrices(case.shape["S"]).astype(np.float64)
    if method == "spearman":
        import scipy.stats

        a, b = (scipy.stats.rankdata(vector) for vector in (a, b))
    if method == "cosine_cov":
        a, b = (_centred(to_squares(vector[None])[0]).ravel() for vector in (a, b))
        return SimilarityCheck(torch.tensor(a @ b / np.sqrt((a @ a) * (b @ b))))
    return SimilarityCheck(torch.tensor(_pearson(a, b)))


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def _centred(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return matrix - matrix.mean(0) - matrix.mean(1)[:, None] + matrix.mean()


class RsaStep(Step):
    """A call of ``compute`` that returns a number. For permutations, that is the similarity without permuting."""

    upstream = None

    def __init__(self, case: Case, compute: Callable[[], Any]) -> None:
        self.case, self.compute = case, compute

    def forward(self, drawn: None) -> Tensor:
        return torch.tensor(float(np.squeeze(self.compute())), dtype=torch.float64)

    def backward(self, output: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        return {}

    def check(self) -> SimilarityCheck:
        return check(self.case)


def _ours(case: Case) -> RsaStep:
    a, b = matrices(case.shape["S"])
    if case.name in METHODS:
        return RsaStep(case, lambda: rsa.compare(a, b, METHODS[case.name]))
    return RsaStep(case, lambda: rsa.permutation_test(a, b, permutations=PERMUTATIONS).similarity)


def _rsatoolbox(case: Case) -> RsaStep:
    try:
        from rsatoolbox.rdm import RDMs, compare
    except ImportError as error:
        raise Absent("not installed: pip install rsatoolbox") from error
    if case.name not in METHODS:
        raise Absent("has no test by relabelling")
    a, b = (RDMs(vector[None]) for vector in matrices(case.shape["S"]))
    return RsaStep(case, lambda: compare(a, b, METHODS[case.name]))


def _loop(case: Case) -> RsaStep:
    """Permute, take the triangle, correlate: the usual code of scripts."""
    if case.name in METHODS:
        raise Absent("is for relabelling alone")
    a, b = matrices(case.shape["S"]).astype(np.float64)
    square, upper = to_squares(b[None])[0], np.triu_indices(case.shape["S"], 1)

    def compute() -> float:
        draw = np.random.default_rng(0)
        for _ in range(PERMUTATIONS):
            order = draw.permutation(len(square))
            np.corrcoef(a, square[np.ix_(order, order)][upper])
        return _pearson(a, b)

    return RsaStep(case, compute)


def _numpy(case: Case) -> RsaStep:
    """Return the fastest NumPy expressions that were found."""
    a, b = matrices(case.shape["S"])
    if case.name in METHODS:
        compute = {"corr": _array_pearson, "spearman": _array_spearman, "cosine_cov": _array_whitened}
        return RsaStep(case, partial(compute[METHODS[case.name]], a, b))
    return RsaStep(case, partial(_array_permutations, a, b))


def _array_pearson(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.asarray(np.corrcoef(a, b, dtype=np.float32))[0, 1])


def _array_spearman(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Compute ranks as if there were no ties: scipy.stats.rankdata takes three times as long."""
    ranks = np.empty((2, len(a)), np.float32)
    for row, vector in zip(ranks, (a, b), strict=True):
        row[np.argsort(vector)] = np.arange(len(vector), dtype=np.float32)
    return _array_pearson(*ranks)


def _array_whitened(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Compute from sums, without a centred matrix, for symmetric matrices with a diagonal of 0."""
    means = [to_squares(vector[None])[0].mean(0, dtype=np.float64) for vector in (a, b)]
    wide = [vector.astype(np.float64) for vector in (a, b)]  # large sums cancel
    size = len(means[0])

    def product(i: int, j: int) -> float:
        own = 2 * np.vdot(wide[i], wide[j])
        return own - 2 * size * means[i] @ means[j] + size**2 * means[i].mean() * means[j].mean()

    return product(0, 1) / np.sqrt(product(0, 0) * product(1, 1))


def _array_permutations(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Centre and scale once, then permute whole rows and columns and multiply both triangles."""
    first, second = (to_squares((v / np.linalg.norm(v))[None])[0] for v in (a - a.mean(), b - b.mean()))
    draw = np.random.default_rng(0)
    for _ in range(PERMUTATIONS):
        order = draw.permutation(len(second))
        np.vdot(first, second.take(order, 0).take(order, 1))
    return np.vdot(first, second) / 2


def providers(case: Case, device: str) -> Iterator[Provider]:
    """Yield all that can compute the case, by ``NAMES``."""
    for name, prepare in zip(NAMES, (_rsatoolbox, _loop, _numpy, _ours), strict=True):
        yield Provider(name, partial(_on_cpu, prepare, case, device), baseline=name in BASELINES)


def _on_cpu(prepare: Callable[[Case], RsaStep], case: Case, device: str) -> RsaStep:
    if device != "cpu":
        raise Absent("computes on the CPU only")
    return prepare(case)
