"""The Gaussian readout: cases and providers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from v1fast import _eager, functional

from . import memory
from .contract import Absent, Provider, Step, Work
from .exact_gaussian_readout import Operands, ReadoutCase, ReadoutCheck, check, operands
from .peers import gaussian_readout as peers

OP, TITLE = "gaussian_readout", "Gaussian readout"
HEADLINE = "sensorium"  # quoted numbers come from this case, so it gets more rounds
ORDERS = ("chain", "einsum", "images")  # of v1fast._eager, each with channels-last and with NCHW features
BASELINES = tuple(
    f"{name}{layout}" for name in (*(f"eager-{order}" for order in ORDERS), *peers.NAMES) for layout in ("", "-nchw")
)
COMPARED = (*BASELINES, "v1fast")
NAMES = (*BASELINES, "compile", "v1fast-layer", "v1fast-nchw", "v1fast")


def _case(name: str, sizes: tuple[int, int, int, int, int], **changes: Any) -> ReadoutCase:
    """Make a case. Work per image, neuron and channel: 10 and 28 operations, 5 and 15 numbers (forward, backward)."""
    images, channels, _, _, neurons = sizes
    products, itemsize = images * neurons * channels, 2 if changes.get("dtype") == "bfloat16" else 4
    work = {"forward": Work(10 * products, 5 * itemsize * products)}
    if "gradients" not in changes:  # the counts include all gradients
        work["backward"] = Work(28 * products, 15 * itemsize * products)
    noise = (None,) if changes.get("gradients") == () else ("seed", "given")
    return ReadoutCase(name, dict(zip("BCHWN", sizes, strict=True)), noise=noise, work=work, **changes)


SENSORIUM = (128, 64, 28, 56, 7776)
CASES = (
    _case("tiny", (1, 8, 5, 5, 10)),
    _case("sensorium", SENSORIUM),
    _case("lurz", (64, 64, 22, 50, 5335)),
    _case("fullres", (32, 64, 136, 248, 7776)),
    _case("transfer", SENSORIUM, gradients=("mu", "sigma", "weight", "bias")),
    _case("eval", SENSORIUM, gradients=()),
    _case("bfloat16", SENSORIUM, dtype="bfloat16", error_bound=1e-2),
    _case("stress", (32, 256, 36, 64, 50000)),
)


def plan(case: ReadoutCase, threads: int | None) -> tuple[str, ...]:
    """Choose the providers of a run of a few minutes. A step of eager takes seconds, in the stress case a minute."""
    if threads is None:  # a GPU
        return NAMES
    if threads > 1:
        return COMPARED if case.name in ("tiny", "sensorium", "lurz", "eval") else ()
    if case.name == "stress":
        return ("eager-chain", "eager-images", "v1fast")
    return NAMES if case.name in ("tiny", "lurz") else COMPARED


class ReadoutStep(Step):
    """A call whose leaves are the case's operands, or copies of them in another layout."""

    def __init__(self, case: ReadoutCase, device: str, leaves: dict[str, Tensor]) -> None:
        self.case, self.device, self.noise = case, device, case.noise
        self.leaves = {name: leaf.detach().requires_grad_(name in case.gradients) for name, leaf in leaves.items()}
        self.upstream = operands(case, device).upstream.to(self.output_dtype) if case.gradients else None

    @property
    def output_dtype(self) -> torch.dtype:
        """The dtype that the provider returns."""
        return torch.float32

    def backward(self, output: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        wanted = [self.leaves[name] for name in self.case.gradients]
        return dict(zip(self.case.gradients, torch.autograd.grad(output, wanted, upstream), strict=True))

    def check(self) -> ReadoutCheck:
        found = copy.copy(check(self.case, self.device, self.noise_of_next_call()))
        found.upstream = found.upstream.to(self.output_dtype)
        return found

    def noise_of_next_call(self) -> Tensor | None:
        """[B, N, 2], from torch's generator."""
        return None if self.noise == (None,) else self.standard_normals()

    def standard_normals(self) -> Tensor:
        """[B, N, 2]"""
        return torch.randn(self.case.shape["B"], self.case.shape["N"], 2, device=self.device)


class EagerStep(ReadoutStep):
    """torch's own ops. 16-bit operands are widened as in autocast: a bfloat16 grid is off by a tenth of a pixel."""

    def __init__(self, case: ReadoutCase, device: str, order: str, channels_last: bool) -> None:
        given = operands(case, device)
        _require_memory(case, device)
        features = given.channels_last if channels_last else given.features
        super().__init__(case, device, _leaves(given, features, given.channel_major))
        self.compute: Callable[..., Tensor] = partial(_eager.gaussian_readout, order=order)

    def warm_up(self) -> None:
        _populate_memory(self.case, self.device)

    def draw(self) -> Tensor | None:
        return None if self.noise == (None,) else self.standard_normals()

    def forward(self, drawn: Tensor | None) -> Tensor:
        leaves = self.leaves
        features, weight = leaves["features"].float(), leaves["weight"].float()
        return self.compute(features, leaves["mu"], leaves["sigma"], weight, leaves["bias"], noise=drawn)


class CompiledStep(EagerStep):
    """The same with ``torch.compile``. The noise is drawn outside, so it is known and the error can be measured."""

    def __init__(self, case: ReadoutCase, device: str) -> None:
        super().__init__(case, device, "chain", channels_last=False)

    def warm_up(self) -> None:
        torch.compiler.reset()  # otherwise the shapes of an earlier case would turn into symbols
        self.compute = torch.compile(_eager.gaussian_readout)
        try:
            with torch.set_grad_enabled(self.upstream is not None):
                output = self.forward(self.draw())
                if self.upstream is not None:
                    self.backward(output, self.upstream)
        except RuntimeError as error:
            raise Absent(f"torch.compile: {str(error).strip().splitlines()[0]}") from error


class FunctionStep(ReadoutStep):
    """``v1fast.functional.gaussian_readout``."""

    def __init__(self, case: ReadoutCase, device: str, noise: str | None, channels_last: bool = True) -> None:
        given = operands(case, device)
        features = given.channels_last if channels_last else given.features
        super().__init__(case, device, _leaves(given, features, given.weight))
        self.noise = (noise,)

    @property
    def output_dtype(self) -> torch.dtype:
        return operands(self.case, self.device).features.dtype

    def draw(self) -> dict[str, Tensor]:
        if self.noise == ("given",):
            return {"noise": self.standard_normals()}
        return {"seed": _draw_seed(self.device)} if self.noise == ("seed",) else {}

    def forward(self, drawn: dict[str, Tensor]) -> Tensor:
        operands = [self.leaves[name] for name in ("features", "mu", "sigma", "weight", "bias")]
        return functional.gaussian_readout(*operands, noise=drawn.get("noise"), seed=drawn.get("seed"))

    def noise_of_next_call(self) -> Tensor | None:
        drawn = self.draw()
        if "seed" in drawn:
            return functional.philox_normal(drawn["seed"], self.case.shape["B"], self.case.shape["N"])
        return drawn.get("noise")


class LayerStep(ReadoutStep):
    """A layer that draws its own noise."""

    def __init__(self, case: ReadoutCase, device: str, features: Tensor, make: peers.MakeLayer) -> None:
        _, channels, height, width, neurons = case.sizes
        self.layer = make(channels, height, width, neurons).to(device).train(bool(case.gradients))
        parameters = peers.by_operand(self.layer)
        with torch.no_grad():
            for name, parameter in parameters.items():
                peers.as_operand(name, parameter).copy_(getattr(operands(case, device), name))
        super().__init__(case, device, {"features": features})
        self.leaves |= parameters
        self.noise = case.noise[:1]

    def forward(self, drawn: None) -> Tensor:
        return self.layer(self.leaves["features"])

    def backward(self, output: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        gradients = super().backward(output, upstream)
        return {name: peers.as_operand(name, gradient) for name, gradient in gradients.items()}


class PeerStep(LayerStep):
    """Another library's layer."""

    def __init__(self, case: ReadoutCase, device: str, name: str, channels_last: bool) -> None:
        if case.dtype != "float32":
            raise Absent("layers of other libraries take float32 only")
        _require_memory(case, device)
        given = operands(case, device)
        super().__init__(case, device, given.channels_last if channels_last else given.features, peers.load(name))

    def warm_up(self) -> None:
        _populate_memory(self.case, self.device)


class OwnLayerStep(LayerStep):
    """``v1fast.readouts.FullGaussian2d`` with channels-last features."""

    def __init__(self, case: ReadoutCase, device: str) -> None:
        super().__init__(case, device, operands(case, device).channels_last, peers.v1fast)

    def noise_of_next_call(self) -> Tensor | None:
        if self.noise == (None,):
            return None
        return functional.philox_normal(_draw_seed(self.device), self.case.shape["B"], self.case.shape["N"])


def providers(case: ReadoutCase, device: str) -> Iterator[Provider]:
    """Yield all that can compute the case, by ``NAMES``. v1fast appears once for each kind of noise."""
    for name in BASELINES:
        maker, channels_last = name.removesuffix("-nchw"), not name.endswith("-nchw")
        if maker in peers.NAMES:
            prepare: Callable[[], Step] = partial(PeerStep, case, device, maker, channels_last)
        else:
            prepare = partial(EagerStep, case, device, maker.removeprefix("eager-"), channels_last)
        yield Provider(name, prepare, baseline=True)
    yield Provider("compile", partial(CompiledStep, case, device))
    if case.dtype == "float32":
        yield Provider("v1fast-layer", partial(OwnLayerStep, case, device))
    yield Provider("v1fast-nchw", partial(FunctionStep, case, device, case.noise[0], channels_last=False))
    for noise in case.noise:
        yield Provider("v1fast", partial(FunctionStep, case, device, noise))


def _leaves(given: Operands, features: Tensor, weight: Tensor) -> dict[str, Tensor]:
    return {"features": features, "mu": given.mu, "sigma": given.sigma, "weight": weight, "bias": given.bias}


def _draw_seed(device: str) -> Tensor:
    """Draw a seed as the layers do."""
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)


def _require_memory(case: ReadoutCase, device: str) -> None:
    needed = _eager_bytes(case)
    free = memory.available() if device == "cpu" else torch.cuda.mem_get_info()[0]
    if free is not None and needed > 0.9 * free:
        raise Absent(f"left out: it takes about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free")


def _populate_memory(case: ReadoutCase, device: str) -> None:
    """Touch memory, so that the first call of a provider that needs much memory takes no longer than later ones."""
    if device == "cpu":
        memory.populate(_eager_bytes(case))


def _eager_bytes(case: ReadoutCase) -> int:
    """Return the peak memory of an eager step, as measured: three tensors [B, C, N]."""
    images, channels, _, _, neurons = case.sizes
    return 3 * 4 * images * channels * neurons
