"""Dissimilarity matrices: cases and providers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v1fast import functional

from .contract import Absent, Case, Provider, Step, Work, relative_error

OP, TITLE, HEADLINE = "rdm", "Correlation dissimilarity matrix", "rdm"
EXPRESSIONS = ("corrcoef", "z-score", "unit-rows")  # of torch's own operations
BASELINES = (*EXPRESSIONS, "numpy", "numpy-unit-rows")
COMPARED = (*BASELINES, "v1fast")
NAMES = (*COMPARED, "scipy", "scikit-learn", "rsatoolbox")
CHECKED = 64  # rows of the result that are compared with float64


@dataclass(frozen=True, eq=False)
class RdmCase(Case):
    """A matrix. ``gradient``: the gradient of the responses is computed too."""

    gradient: bool = False


def _case(name: str, stimuli: int, neurons: int, gradient: bool = False) -> RdmCase:
    """Make a case. Work: one multiplication and addition per neuron and pair, and two more for the gradient."""
    product = float(stimuli**2 * neurons)
    work = {"forward": Work(product, 0)}
    if gradient:
        work["backward"] = Work(2 * product, 0)
    return RdmCase(name, {"S": stimuli, "N": neurons}, work=work, gradient=gradient)


CASES = (
    _case("rdm-small", 100, 1000),
    _case("rdm-wide", 360, 23589),
    _case("rdm", 1000, 8000),
    _case("rdm-gradient", 360, 23589, gradient=True),
)


def plan(case: RdmCase, threads: int | None) -> tuple[str, ...]:
    """Choose the providers of a run of a few minutes. Slow ones need a second where others need 50 ms."""
    if case.gradient:
        return (*EXPRESSIONS, "v1fast")
    return NAMES if case.name == "rdm-small" and threads == 1 else COMPARED


@lru_cache(maxsize=1)
def responses(case: RdmCase, device: str) -> Tensor:
    """Return normal responses [S, N], the same for equal cases. No provider may write to them."""
    draw = torch.Generator(device).manual_seed(1)
    return torch.randn(case.shape["S"], case.shape["N"], generator=draw, device=device).to(getattr(torch, case.dtype))


@lru_cache(maxsize=1)
def check(case: RdmCase, device: str) -> RdmCheck:
    """Return the exact results, computed once for all providers."""
    return RdmCheck(case, device)


class RdmCheck:
    """The first rows of the matrix, and the gradient, in float64."""

    def __init__(self, case: RdmCase, device: str) -> None:
        x = responses(case, device).double().requires_grad_(case.gradient)
        z = x - x.mean(-1, keepdim=True)
        z = z / z.norm(dim=-1, keepdim=True)
        self.upstream = x.new_empty(0)
        if case.gradient:
            size = case.shape["S"]
            self.upstream = torch.randn(size, size, device=device).to(getattr(torch, case.dtype))
            self.exact_gradient = torch.autograd.grad(1 - z @ z.T, x, self.upstream.double())[0]
        self.exact = (1 - z[:CHECKED] @ z.T).detach()

    def errors(self, output: Tensor, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the relative errors of the first rows and of the gradient."""
        found = {"output": relative_error(output[:CHECKED], self.exact)}
        if gradients:
            found["responses"] = relative_error(gradients["responses"], self.exact_gradient)
        return found


class RdmStep(Step):
    """A call of ``compute`` that maps a tensor [S, N] to [S, S]."""

    def __init__(self, case: RdmCase, device: str, compute: Callable[[Tensor], Tensor]) -> None:
        self.case, self.device, self.compute = case, device, compute
        self.x = responses(case, device).detach().requires_grad_(case.gradient)
        self.upstream = self.check().upstream if case.gradient else None

    def forward(self, drawn: None) -> Tensor:
        return self.compute(self.x)

    def backward(self, output: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        return {"responses": torch.autograd.grad(output, self.x, upstream)[0]}

    def check(self) -> RdmCheck:
        return check(self.case, self.device)


def corrcoef(x: Tensor) -> Tensor:
    """torch's own function."""
    return 1 - torch.corrcoef(x)


def z_score(x: Tensor) -> Tensor:
    """The formula, written literally."""
    z = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, correction=0)
    return 1 - z @ z.T / x.shape[1]


def unit_rows(x: Tensor) -> Tensor:
    """The product of unit rows, so the result need not be divided."""
    u = x - x.mean(1, keepdim=True)
    u = u / u.norm(dim=1, keepdim=True)
    return 1 - u @ u.T


def _array_corrcoef(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(1 - np.corrcoef(x, dtype=np.float32))


def _array_unit_rows(x: NDArray[np.float32]) -> NDArray[np.float32]:
    u = x - x.mean(1, keepdims=True)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    return 1 - u @ u.T


def _of_arrays(compute: Callable[[Any], Any], case: RdmCase, device: str) -> RdmStep:
    if case.gradient:
        raise Absent("has no gradient")
    if device != "cpu":
        raise Absent("computes on the CPU only")
    return RdmStep(case, device, lambda x: torch.from_numpy(compute(x.numpy())))


def _numpy(compute: Callable[[Any], Any], case: RdmCase, device: str) -> RdmStep:
    if torch.get_num_threads() == 1:
        _one_blas_thread()
    return _of_arrays(compute, case, device)


def _one_blas_thread() -> None:
    """Limit NumPy's BLAS to one thread. It ignores torch's setting."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return  # CPU time counts all threads, so a spinning BLAS looks slower than it is
    threadpool_limits(1, "blas")


def _scipy(case: RdmCase, device: str) -> RdmStep:
    from scipy.spatial.distance import pdist, squareform

    return _of_arrays(lambda x: squareform(pdist(x, "correlation")), case, device)


def _scikit_learn(case: RdmCase, device: str) -> RdmStep:
    try:
        from sklearn.metrics import pairwise_distances
    except ImportError as error:
        raise Absent("not installed: pip install scikit-learn") from error
    return _of_arrays(lambda x: pairwise_distances(x, metric="correlation"), case, device)


def _rsatoolbox(case: RdmCase, device: str) -> RdmStep:
    try:
        from rsatoolbox.data import Dataset
        from rsatoolbox.rdm import calc_rdm
    except ImportError as error:
        raise Absent("not installed: pip install rsatoolbox") from error
    return _of_arrays(lambda x: calc_rdm(Dataset(x), method="correlation").get_matrices()[0], case, device)


def providers(case: RdmCase, device: str) -> Iterator[Provider]:
    """Yield all that can compute the case, by ``NAMES``."""
    for name, compute in zip(EXPRESSIONS, (corrcoef, z_score, unit_rows), strict=True):
        yield Provider(name, partial(RdmStep, case, device, compute), baseline=True)
    yield Provider("numpy", partial(_numpy, _array_corrcoef, case, device), baseline=True)
    yield Provider("numpy-unit-rows", partial(_numpy, _array_unit_rows, case, device), baseline=True)
    yield Provider("v1fast", partial(RdmStep, case, device, functional.rdm))
    for name, prepare in (("scipy", _scipy), ("scikit-learn", _scikit_learn), ("rsatoolbox", _rsatoolbox)):
        yield Provider(name, partial(prepare, case, device))
