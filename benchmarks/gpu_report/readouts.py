"""The kernels that read features at points: their times and errors, beside eager torch's, floors and predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from v1fast.kernels import _launch  # type: ignore[import-not-found]

from v1fast import functional

from .. import bench_gaussian_readout as bench
from .. import bench_pooled_readout as pooled
from ..contract import Check, Step, relative_error
from ..exact_gaussian_readout import ReadoutCase, operands
from ..gpu_costs import FLOAT32_FLOPS, GAUSSIAN, H100, POINTS, Cost, costs, gathered, pooled_costs
from .ceilings import Rates
from .record import Part
from .steps import line

SIZES = {  # B, C, H, W, N
    "sensorium": bench.SENSORIUM,
    "lurz": (64, 64, 22, 50, 5335),
    "small batch": (16, 64, 28, 56, 7776),
    "100,000 neurons": (64, 64, 36, 64, 100_000),
    "256 channels": (32, 256, 36, 64, 20_000),
}
DTYPES = ("float32", "bfloat16")
BOUNDS = {"float32": 1e-4, "bfloat16": 1e-2}
ALL = ("features", "mu", "sigma", "weight", "bias")


def sizes_of(quick: bool) -> dict[str, tuple[int, int, int, int, int]]:
    """Return the sizes of the cases, or of a small one."""
    return {"sensorium": (2, 8, 5, 6, 21)} if quick else dict(SIZES)


def case_of(name: str, sizes: Sequence[int], dtype: str, gradients: Sequence[str] = ALL) -> ReadoutCase:
    """Return a case of the benchmarks, with noise that the op draws from a seed."""
    shape = dict(zip("BCHWN", sizes, strict=True))
    return ReadoutCase(name, shape, dtype, ("seed",), BOUNDS[dtype], gradients=tuple(gradients))


class Way(NamedTuple):
    """What is computed."""

    name: str
    backward: bool
    gradients: tuple[str, ...] = ALL
    gather: bool | None = None  # how the gradient of the features is made

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Within it, the gradient of the features is made this way, whatever the heuristic says."""
        if self.gather is None:
            yield
            return
        # What was worked out for this form of a call holds for the other way.
        _launch.plans.clear()
        with mock.patch("v1fast.kernels._features.is_gathered", return_value=self.gather):
            yield
        _launch.plans.clear()


FORWARD = Way("forward", False)
WAYS = (
    FORWARD,
    Way("step, scattered", True, gather=False),
    Way("step, gathered", True, gather=True),
    Way("step, frozen core", True, ALL[1:]),
)


def stages(case: ReadoutCase, way: Way) -> list[Cost]:
    """Return the work of all passes."""
    of = costs(case, GAUSSIAN)
    if not way.backward:
        return [of["forward"]]
    if way.gather is None:
        return [of["forward"], of["backward, frozen core"]]
    if way.gather:
        return [of["forward"], of["backward, frozen core"], gathered(case, GAUSSIAN)]
    return [of["forward"], of["backward"]]


def figures(work: Sequence[Cost], rates: Rates) -> dict[str, Any]:
    """Return in us: the floor of bytes and operations, the prediction of docs/gpu.md, and that by measured rates."""
    assumed, measured = ([cost.seconds(device)[:2] for cost in work] for device in (H100, rates.device))
    floor = sum(max(cost.dram_bytes / rates.copy, cost.flops / FLOAT32_FLOPS) for cost in work)
    return {
        "floor_us": 1e6 * floor,
        "predicted_us": [1e6 * sum(bound[i] for bound in assumed) for i in (0, 1)],
        "by_measured_rates_us": [1e6 * sum(bound[i] for bound in measured) for i in (0, 1)],
    }


class GatherStep(Step):
    """``v1fast::point_gather`` at the means of a readout's neurons, and its backward pass."""

    def __init__(self, case: ReadoutCase) -> None:
        given = operands(case, "cuda")
        self.leaves = [given.channels_last.detach().requires_grad_(), given.mu.detach().requires_grad_()]
        images, channels, _, _, neurons = case.sizes
        self.upstream: Tensor = torch.randn(images, neurons, channels, device="cuda").to(given.features.dtype)

    def forward(self, drawn: None) -> Tensor:
        return torch.ops.v1fast.point_gather(*self.leaves, None, True)

    def backward(self, output: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        return dict(zip(("features", "grid"), torch.autograd.grad(output, self.leaves, upstream), strict=True))

    def check(self) -> Check:
        return self

    def errors(self, output: Tensor, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the relative error of the first image's values."""
        features, grid = (leaf.detach().double() for leaf in self.leaves)
        sampled = torch.nn.functional.grid_sample(features[:1], grid[None, :, None], align_corners=True)
        return {"output": relative_error(output[:1], sampled[..., 0].mT)}


def eager_steps(case: ReadoutCase) -> Iterator[tuple[str, Any]]:
    """Yield the faster orders of torch's own ops."""
    for order in ("chain", "einsum"):
        yield f"eager-{order}", partial(bench.EagerStep, case, "cuda", order, False)


def main(part: Part) -> None:
    """All shapes in float32, then in bfloat16; then the other kernels."""
    rates = Rates(part.out)
    for dtype in DTYPES:
        for name, sizes in sizes_of(part.quick).items():
            _gaussian(part, rates, name, sizes, dtype)
    _others(part, rates)


def _gaussian(part: Part, rates: Rates, name: str, sizes: Sequence[int], dtype: str) -> None:
    for way in WAYS:
        case = case_of(name, sizes, dtype, way.gradients)
        names: dict[str, Any] = {"case": name, "shape": case.shape, "dtype": dtype, "what": way.name}
        with way.chosen():
            prepare = partial(bench.FunctionStep, case, "cuda", "seed")
            known = {"provider": "v1fast", **figures(stages(case, way), rates)}
            line(part, prepare, way.backward, names | known)
    for way in (FORWARD, Way("step", True)):
        case = case_of(name, sizes, dtype)
        names = {"case": name, "shape": case.shape, "dtype": dtype, "what": way.name}
        for provider, prepare_eager in eager_steps(case):
            line(part, prepare_eager, way.backward, names | {"provider": provider})
    operands.cache_clear()
    torch.cuda.empty_cache()


def _others(part: Part, rates: Rates) -> None:
    name, sizes = next(iter(sizes_of(part.quick).items()))
    case = case_of(name, sizes, "float32")
    names: dict[str, Any] = {"case": f"gather, {name}", "shape": case.shape, "dtype": "float32", "provider": "v1fast"}
    for what, backward in (("forward", False), ("step", True)):
        line(part, partial(GatherStep, case), backward, names | {"what": what})
    operands.cache_clear()
    for each in pooled.CASES:
        small = {"B": 2, "C": 8, "H": 28, "W": 28, "N": 12} if part.quick else each.shape
        of = pooled.PooledCase(each.name, small, pool_kernel=each.pool_kernel, pool_steps=each.pool_steps)
        work = pooled_costs(of, POINTS)
        names = {"case": of.name, "shape": of.shape, "dtype": "float32"}
        own = partial(pooled.PooledStep, of, "cuda", functional.pooled_readout, True)
        eager = partial(pooled.EagerStep, of, "cuda", "chain", False)
        for what, passes in (("forward", work["forward"]), ("step", work["forward"] + work["backward"])):
            known = {"what": what, "provider": "v1fast", **figures(passes, rates)}
            line(part, own, what == "step", names | known)
            line(part, eager, what == "step", names | {"what": what, "provider": "eager-chain"})
        pooled.operands.cache_clear()
    images, _, _, _, neurons = sizes
    names = {
        "case": "normals",
        "shape": {"B": images, "N": neurons},
        "dtype": "float32",
        "what": "forward",
    }
    line(part, partial(NormalStep, images, neurons), False, names | {"provider": "v1fast"})


class NormalStep(Step):
    """``functional.philox_normal``."""

    upstream: Tensor

    def __init__(self, images: int, neurons: int) -> None:
        self.sizes = images, neurons
        self.x, self.upstream = torch.tensor([7], device="cuda"), torch.empty(0, device="cuda")

    def forward(self, drawn: None) -> Tensor:
        return functional.philox_normal(self.x, *self.sizes)

    def backward(self, output: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def check(self) -> Check:
        return self

    def errors(self, output: Tensor, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """Return how far the variance is from 1: the tests compare the bits."""
        return {"output": abs(output.var().item() - 1)}
