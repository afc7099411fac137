"""The multi-scale pooled readout: cases and providers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from v1fast import _eager, functional

from . import memory
from .contract import Absent, Case, Provider, Step, Work, relative_error
from .peers import published

OP, TITLE, HEADLINE = "pooled_readout", "Multi-scale pooled readout", "pooled"
PEER = "neuralpredictors"
BASELINES = tuple(
    f"{name}{layout}" for name in (*(f"eager-{order}" for order in _eager.ORDERS), PEER) for layout in ("", "-nchw")
)
COMPARED = (*BASELINES, "v1fast")
NAMES = (*BASELINES, "compile", "v1fast-nchw", "v1fast")
GRADIENTS = ("features", "grid", "weight", "bias")
CHECKED = {"images": 4, "neurons": 400}  # how many are compared with float64
BORDER = 1e-4  # pixels: closer to a cell border, two correct results may differ by a whole gradient


@dataclass(frozen=True, eq=False)
class PooledCase(Case):
    """A call of the pooled readout: the features and ``pool_steps`` average poolings of them."""

    pool_kernel: int = 2
    pool_steps: int = 2

    @property
    def pooling(self) -> dict[str, Any]:
        """Return the options of the call."""
        return {"pool_kernel": self.pool_kernel, "pool_steps": self.pool_steps}


def _case(name: str, sizes: tuple[int, int, int, int, int], **changes: Any) -> PooledCase:
    """Make a case. Work per image, neuron, channel and level: 10 and 16 operations (forward, backward).

    Cache traffic is not counted: neurons that read the same points of all images can share what they read.
    """
    images, channels, _, _, neurons = sizes
    case = PooledCase(name, dict(zip("BCHWN", sizes, strict=True)), **changes)
    products = images * neurons * channels * (case.pool_steps + 1)
    work = {"forward": Work(10 * products, 0), "backward": Work(16 * products, 0)}
    return PooledCase(name, case.shape, work=work, **changes)


CASES = (
    _case("pooled", (64, 64, 28, 56, 7776)),
    _case("macaque", (64, 32, 70, 70, 458), pool_kernel=3),
)


def plan(case: PooledCase, threads: int | None) -> tuple[str, ...]:
    """Choose the providers of a run of a few minutes."""
    return NAMES if threads is None else COMPARED


@dataclass(frozen=True)
class Operands:
    """Operands that the providers of one case share. No provider may write to them."""

    features: Tensor  # [B, C, H, W]
    grid: Tensor  # [N, 2]
    weight: Tensor  # [N, (pool_steps + 1) * C]
    bias: Tensor  # [N]
    upstream: Tensor  # [B, N]

    @cached_property
    def channels_last(self) -> Tensor:
        """The features in the layout of a channels-last core."""
        return self.features.contiguous(memory_format=torch.channels_last)

    @cached_property
    def channel_major(self) -> Tensor:
        """The weight as layers store it, channel after channel. Eager reads this layout fastest."""
        return self.weight.t().contiguous().t()


@lru_cache(maxsize=1)
def operands(case: PooledCase, device: str) -> Operands:
    """Make operands with positions all over the map, except where rounding decides the gradient."""
    images, channels, height, width, neurons = case.shape.values()
    draw = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device)

    grid = 1.8 * torch.rand(neurons, 2, generator=draw, device=device) - 0.9
    at_border = torch.zeros(neurons, dtype=torch.bool, device=device)
    for step in range(case.pool_steps + 1):
        size = (height // case.pool_kernel**step, width // case.pool_kernel**step)
        at_border |= (_eager.distance_to_cell_border(grid.double(), *size) < BORDER).any(-1)
    columns = (case.pool_steps + 1) * channels
    return Operands(
        features=normal(images, channels, height, width),
        grid=grid,
        weight=normal(neurons, columns) / columns**0.5,
        bias=normal(neurons),
        upstream=normal(images, neurons).masked_fill(at_border, 0),
    )


@lru_cache(maxsize=1)
def check(case: PooledCase, device: str) -> PooledCheck:
    """Return the exact results, computed once for all providers."""
    return PooledCheck(case, device)


class PooledCheck:
    """Eager torch in float64: output and feature gradient for some images, the other gradients for some neurons."""

    def __init__(self, case: PooledCase, device: str) -> None:
        given = operands(case, device)
        self.upstream = given.upstream
        self.images, self.neurons = slice(None, CHECKED["images"]), slice(None, CHECKED["neurons"])
        features = given.features[self.images].double().requires_grad_()
        others = [t.double() for t in (given.grid, given.weight, given.bias)]
        output = _eager.pooled_readout(features, *others, **case.pooling)
        self.exact = {"output": output.detach()}
        (self.exact["features"],) = torch.autograd.grad(output, features, self.upstream[self.images].double())
        leaves = [t[self.neurons].double().requires_grad_() for t in (given.grid, given.weight, given.bias)]
        output = _eager.pooled_readout(given.features.double(), *leaves, **case.pooling)
        gradients = torch.autograd.grad(output, leaves, self.upstream[:, self.neurons].double())
        self.exact |= dict(zip(GRADIENTS[1:], gradients, strict=True))

    def errors(self, output: Tensor, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the relative errors for those images and neurons."""
        chosen = {name: self.images if name in ("output", "features") else self.neurons for name in self.exact}
        got = {"output": output, **gradients}
        return {name: relative_error(value[chosen[name]], self.exact[name]) for name, value in got.items()}


class PooledStep(Step):
    """A call of ``compute`` whose leaves are the case's operands, or copies of them in another layout."""

    def __init__(
        self,
        case: PooledCase,
        device: str,
        compute: Callable[..., Tensor],
        channels_last: bool,
        channel_major: bool = False,
    ) -> None:
        given = operands(case, device)
        weight = given.channel_major if channel_major else given.weight
        leaves = (given.channels_last if channels_last else given.features, given.grid, weight, given.bias)
        self.case, self.device, self.compute = case, device, compute
        self.leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        self.upstream = given.upstream

    def forward(self, drawn: None) -> Tensor:
        return self.compute(*self.leaves, **self.case.pooling)

    def backward(self, output: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        return dict(zip(GRADIENTS, torch.autograd.grad(output, self.leaves, upstream), strict=True))

    def check(self) -> PooledCheck:
        return check(self.case, self.device)


class EagerStep(PooledStep):
    """torch's own ops, on memory that was touched before."""

    def __init__(self, case: PooledCase, device: str, order: str, channels_last: bool) -> None:
        compute = partial(_eager.pooled_readout, order=order)
        super().__init__(case, device, compute, channels_last, channel_major=True)

    def warm_up(self) -> None:
        if self.device == "cpu":
            images, channels, _, _, neurons = self.case.shape.values()
            memory.populate(3 * 4 * images * channels * neurons * (self.case.pool_steps + 1))


class CompiledStep(EagerStep):
    """The same with ``torch.compile``."""

    def warm_up(self) -> None:
        super().warm_up()
        torch.compiler.reset()
        self.compute = torch.compile(_eager.pooled_readout)
        try:
            self.backward(self.forward(None), operands(self.case, self.device).upstream)
        except RuntimeError as error:
            raise Absent(f"torch.compile: {str(error).strip().splitlines()[0]}") from error


class PeerStep(EagerStep):
    """neuralpredictors' layer."""

    def __init__(self, case: PooledCase, device: str, channels_last: bool) -> None:
        super().__init__(case, device, "chain", channels_last)
        kind = published("neuralpredictors.layers.readouts", "PointPooled2d")
        _, *in_shape, neurons = case.shape.values()
        options = {"pool_steps": case.pool_steps, "pool_kern": case.pool_kernel, "bias": True, "init_range": 0.1}
        self.layer: Any = kind(tuple(in_shape), neurons, mean_activity=torch.zeros(neurons), **options).to(device)
        features, grid, weight, bias = self.leaves
        with torch.no_grad():
            self.layer.grid.copy_(grid[None, :, None])
            self.layer.features.copy_(weight.t()[None, :, None])
            self.layer.bias.copy_(bias)
        self.leaves = [features, self.layer.grid, self.layer.features, self.layer.bias]

    def forward(self, drawn: None) -> Tensor:
        return self.layer(self.leaves[0])

    def backward(self, output: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        found = super().backward(output, upstream)
        return found | {"grid": found["grid"][0, :, 0], "weight": found["weight"][0, :, 0].t()}


def providers(case: PooledCase, device: str) -> Iterator[Provider]:
    """Yield all that can compute the case, by ``NAMES``."""
    for name in BASELINES:
        maker, channels_last = name.removesuffix("-nchw"), not name.endswith("-nchw")
        if maker == PEER:
            prepare: Callable[[], Step] = partial(PeerStep, case, device, channels_last)
        else:
            prepare = partial(EagerStep, case, device, maker.removeprefix("eager-"), channels_last)
        yield Provider(name, prepare, baseline=True)
    yield Provider("compile", partial(CompiledStep, case, device, "chain", channels_last=True))
    for name in ("v1fast-nchw", "v1fast"):
        yield Provider(name, partial(PooledStep, case, device, functional.pooled_readout, name == "v1fast"))
