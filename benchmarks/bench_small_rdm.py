"""Small dissimilarity matrices, batches of them, and those between two small sets: what calls cost beside products.

The fallback's bench runs these cases (``make bench-fallback``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from v1fast import functional

from .bench_rdm import corrcoef, unit_rows
from .contract import Case, Provider, Step, relative_error

OP = "rdm"


def _counts(*shape: int) -> Tensor:
    return torch.poisson(torch.full(shape, 1.5))


def _tenths(*shape: int) -> Tensor:
    return torch.randint(0, 90, shape) / 10


KINDS: Mapping[str, Callable[..., Tensor]] = {
    "normal": torch.randn,
    "rectified": lambda *shape: torch.randn(*shape).relu(),
    "counts": _counts,
    "tenths": _tenths,
}


@dataclass(frozen=True, eq=False)
class SmallCase(Case):
    """Matrices of a kind. ``others``: rows of a second set, 0 for none. ``gradient``: of the responses, too."""

    kind: str = "normal"
    others: int = 0
    gradient: bool = False


def _case(name: str, *shape: int, **given: Any) -> SmallCase:
    return SmallCase(name, dict(zip("BSN"[-len(shape) :], shape, strict=True)), **given)


CASES = (
    _case("rdm-tiny", 20, 100),
    _case("rdm-tiny-counts", 20, 100, kind="counts"),
    _case("rdm-mid", 64, 256),
    _case("rdm-rectified", 100, 1000, kind="rectified"),
    _case("rdm-counts", 100, 1000, kind="counts"),
    _case("rdm-tenths", 100, 1000, kind="tenths"),
    _case("rdm-few-rows", 50, 4000),
    _case("rdm-step-small", 100, 1000, gradient=True),
    _case("rdm-tiny-step", 20, 100, gradient=True),
    _case("rdm-batch", 32, 20, 50),
    _case("rdm-batch-counts", 32, 20, 50, kind="counts"),
    _case("rdm-batch-large", 8, 200, 300),
    _case("rdm-batch-step", 32, 20, 50, gradient=True),
    _case("rdm-cross", 100, 1000, others=50),
    _case("rdm-cross-counts", 100, 1000, kind="counts", others=50),
)


def plan(case: SmallCase, threads: int | None) -> tuple[str, ...]:
    """Return the providers: all of them."""
    return ("corrcoef", "unit-rows", "v1fast")


def _between(x: Tensor, y: Tensor) -> Tensor:
    u, v = (t - t.mean(-1, keepdim=True) for t in (x, y))
    return 1 - (u / u.norm(dim=-1, keepdim=True)) @ (v / v.norm(dim=-1, keepdim=True)).mT


def _one_by_one(x: Tensor) -> Tensor:
    return corrcoef(x) if x.dim() == 2 else torch.stack([corrcoef(member) for member in x])


class SmallStep(Step):
    """A call of ``compute`` on the operands of a case, which is also its check."""

    def __init__(self, case: SmallCase, compute: Callable[..., Tensor]) -> None:
        torch.manual_seed(1)
        make, shape = KINDS[case.kind], [*case.shape.values()]
        operands = [make(*shape)]
        if case.others:
            operands.append(make(*shape[:-2], case.others, shape[-1]))
        self.operands = [t.requires_grad_(case.gradient) for t in operands]
        wide = [t.detach().double().requires_grad_(case.gradient) for t in operands]
        self.exact, self.compute = _between(*wide, *wide[: 2 - len(wide)]), compute
        self.upstream = torch.randn(self.exact.shape) if case.gradient else None
        if self.upstream is not None:
            upstream = self.upstream.double()
            self.exact_gradient = torch.autograd.grad(self.exact, wide[0], upstream)[0]

    def forward(self, drawn: None) -> Tensor:
        return self.compute(*self.operands)

    def backward(self, output: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        return {"responses": torch.autograd.grad(output, self.operands[0], upstream)[0]}

    def check(self) -> Any:
        return self

    def errors(self, output: Tensor, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the relative errors of the result and of the gradient."""
        found = {"output": relative_error(output, self.exact.detach())}
        if gradients:
            found["responses"] = relative_error(gradients["responses"], self.exact_gradient)
        return found


def providers(case: SmallCase, device: str) -> Iterator[Provider]:
    """Yield all that can compute the case."""
    if case.others:
        yield Provider("unit-rows", partial(SmallStep, case, _between), baseline=True)
        yield Provider("v1fast", partial(SmallStep, case, functional.cross_rdm))
        return
    yield Provider("corrcoef", partial(SmallStep, case, _one_by_one), baseline=True)
    rows = unit_rows if len(case.shape) == 2 else _unit_rows_of_each
    yield Provider("unit-rows", partial(SmallStep, case, rows), baseline=True)
    yield Provider("v1fast", partial(SmallStep, case, functional.rdm))


def _unit_rows_of_each(x: Tensor) -> Tensor:
    return _between(x, x)
