"""A training step of readouts on a frozen core: the core run in every step, as the peer does, or its features kept.

``make bench-frozen-core``, or ``python -m v1fast.benchmarks.bench_frozen_core OUT`` with the peer where V1FAST_PEERS
says. A step is a batch drawn from all trials, the rates, the loss with its penalty, the gradients and Adam.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from v1fast import doctor
from v1fast.experiments import cache_features, without_core
from v1fast.losses import PoissonLoss
from v1fast.models import FiringRateEncoder, Stacked2dCore
from v1fast.readouts import FullGaussian2d

from . import report, rows
from .clocks import CpuClock
from .contract import Case, Provider, Step, relative_error
from .harness import Contest, Effort
from .peers import published

OP, TITLE = "frozen_core", "Readouts on a frozen core"
CHECKED = 4  # images whose rates are compared with the peer's in float64, without noise


@dataclass(frozen=True, eq=False)
class FrozenCase(Case):
    """A core and a Gaussian readout.

    Attributes:
        core: arguments of the core.
        images: distinct images, which are all kept.
    """

    core: Mapping[str, Any] = field(default_factory=dict)
    images: int = 512


_CORE = {"input_channels": 1, "hidden_channels": 64, "layers": 4, "depth_separable": True, "pad_input": False}
_LURZ = {**_CORE, "input_kern": 15, "hidden_kern": 13}
_SENSORIUM = {**_CORE, "input_kern": 9, "hidden_kern": 7}


def _case(name: str, batch: int, maps: tuple[int, int], neurons: int, core: Mapping[str, Any]) -> FrozenCase:
    height, width = maps
    shape = {"B": batch, "C": 64, "H": height, "W": width, "N": neurons}
    # Features in bfloat16 are rounded at 2^-9.
    return FrozenCase(name, shape, error_bound=1e-2, core=core)


CASES = (
    _case("Lurz et al., 100 neurons", 64, (22, 50), 100, _LURZ),
    _case("Lurz et al., 1000 neurons", 64, (22, 50), 1000, _LURZ),
    _case("Sensorium, 7776 neurons", 128, (28, 56), 7776, _SENSORIUM),
)


@lru_cache(maxsize=1)
def _data(case: FrozenCase) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"images": torch.randn(case.images, 1, 36, 64), "responses": torch.rand(case.images, case.shape["N"])}


@lru_cache(maxsize=1)
def _ours(case: FrozenCase) -> FiringRateEncoder:
    torch.manual_seed(0)
    core = Stacked2dCore(**case.core, stack=-1, bias=True, conv_bias=False)
    with torch.no_grad():  # as a trained core's, its batch norms have seen images
        for _ in range(3):
            core(_data(case)["images"][:64])
    shape = tuple(case.shape[axis] for axis in "CHW")
    readout = FullGaussian2d(shape, case.shape["N"], bias=True, init_mu_range=0.55, init_sigma=0.4)
    with torch.no_grad():  # so that rates depend on features as those of a trained model do
        readout._features.normal_(0, 0.1)
    return FiringRateEncoder(core, readout).freeze_core()


class _Peer(nn.Module):
    """neuralpredictors' core and readout, joined as its encoder joins them, with the weights of ours."""

    def __init__(self, case: FrozenCase) -> None:
        super().__init__()
        ours = _ours(case)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            core = published("neuralpredictors.layers.cores", "Stacked2dCore")(**case.core, stack=-1, bias=False)
            shape = tuple(case.shape[axis] for axis in "CHW")
            readout = published("neuralpredictors.layers.readouts", "FullGaussian2d")(
                shape, case.shape["N"], bias=True, init_mu_range=0.55, init_sigma=0.4
            )
        _load(core, ours.core.state_dict())
        _load(readout, ours.readout.state_dict())
        self.core, self.readout = core.requires_grad_(False), readout

    def train(self, mode: bool = True) -> _Peer:
        super().train(mode)
        self.core.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.elu(self.readout(self.core(images))) + 1

    def regularizer(self) -> Any:
        return self.core.regularizer() + self.readout.regularizer()


def _load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """By shape, in order: releases of the peer name biases of batch norms in different ways."""
    own = module.state_dict()
    if list(own) == list(state):
        module.load_state_dict(state)
        return
    unmatched = [name for name in own if name not in state]
    rest = [name for name in state if name not in own]
    if len(unmatched) != len(rest):
        raise ValueError(f"want the peer's {', '.join(unmatched)}, got {', '.join(rest)}")
    renamed = {
        **{name: state[name] for name in own if name in state},
        **dict(zip(unmatched, map(state.get, rest), strict=True)),
    }
    module.load_state_dict(renamed)


class FrozenCheck:
    """Rates of a few images at the means, by the core and the readout in float64."""

    @torch.no_grad()
    def __init__(self, step: FrozenStep) -> None:
        # Now: the step that is checked also changes the readout.
        self.upstream = torch.empty(0)
        got = step.model.eval()(step.fields["images"][torch.arange(CHECKED)])
        step.model.train()
        self.error = relative_error(got, step.exact)

    def errors(self, output: Tensor, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the relative error of the rates."""
        return {"rates": self.error}


class FrozenStep(Step):
    """A step of training the readout."""

    upstream: Tensor | None = torch.empty(0)

    def __init__(self, case: FrozenCase, make: Callable[[FrozenCase], tuple[nn.Module, Mapping[str, Any]]]) -> None:
        self.case = case
        self.exact = _exact(case)
        self.model, self.fields = make(case)
        self.model = self.model.train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.trained, lr=1e-4)
        self.loss = PoissonLoss(avg=False)
        self.generator = torch.Generator().manual_seed(0)

    def draw(self) -> dict[str, Tensor]:
        chosen = torch.randperm(self.case.images, generator=self.generator)[: self.case.shape["B"]]
        return {name: values[chosen] for name, values in self.fields.items()}

    def forward(self, drawn: dict[str, Tensor]) -> Tensor:
        self.optimizer.zero_grad()
        loss: Tensor = self.loss(self.model(drawn["images"]), drawn["responses"])
        return loss + self.model.regularizer()  # type: ignore[operator]

    def backward(self, output: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        output.backward()
        self.optimizer.step()
        return {}

    def check(self) -> FrozenCheck:
        return FrozenCheck(self)


@lru_cache(maxsize=1)
@torch.no_grad()
def _exact(case: FrozenCase) -> Tensor:
    model = copy.deepcopy(_ours(case)).double().eval()
    rates: Tensor = model(_data(case)["images"][:CHECKED].double())
    return rates


def _every_step(case: FrozenCase) -> tuple[nn.Module, Mapping[str, Any]]:
    return copy.deepcopy(_ours(case)), _data(case)


def _cached(case: FrozenCase, **options: Any) -> tuple[nn.Module, Mapping[str, Any]]:
    model = copy.deepcopy(_ours(case))
    return without_core(model), cache_features(model, _data(case), **options)


def _peer(case: FrozenCase) -> tuple[nn.Module, Mapping[str, Any]]:
    return _Peer(case), _data(case)


def providers(case: FrozenCase) -> Iterator[Provider]:
    """Yield the peer, v1fast with its core in every step, and v1fast with features kept in several ways."""
    yield Provider("peer, core in every step", partial(FrozenStep, case, _peer), baseline=True)
    ways: dict[str, Callable[[FrozenCase], tuple[nn.Module, Mapping[str, Any]]]] = {
        "v1fast, core in every step": _every_step,
        "v1fast, features kept": _cached,
        "v1fast, features kept in a file": partial(_cached, memory=0),
        "v1fast, features kept in bfloat16": partial(_cached, dtype=torch.bfloat16),
    }
    for name, make in ways.items():
        yield Provider(name, partial(FrozenStep, case, make))


def main(out: Path, cases: Sequence[str], seconds: float) -> None:
    """Measure with one thread, in CPU time, print a table, and write ``rows.jsonl`` after every case."""
    from rich.console import Console

    console, run = Console(highlight=False, width=report.TABLE_WIDTH), asdict(doctor.examine(True))
    found: list[rows.Row] = []
    for case in CASES:
        if cases and case.name not in cases:
            continue
        contest = Contest(OP, case, list(providers(case)), clock=CpuClock(), effort=Effort(rounds=9, seconds=seconds))
        try:
            contest.run()
        finally:
            found += contest.rows(run)
            rows.write(out / "rows.jsonl", found)
        for row in (row for row in found if row.case == case.name):
            console.print(_line(row, found), markup=False, soft_wrap=True)
    console.print(f"Rows: {out / 'rows.jsonl'}", markup=False)


def _line(row: rows.Row, found: Sequence[rows.Row]) -> str:
    if not row.measured:
        return f"{row.case}: {row.provider}: {row.status}"
    step = row.milliseconds["step"]
    own = [other for other in found if other.case == row.case and other.provider == "v1fast, core in every step"]
    beside = statistics.median([other.milliseconds["step"].median for other in own if other.measured]) / step.median
    peer = f"{row.speedup['step'].times:.1f} times the peer's speed, " if "step" in row.speedup else ""
    return (
        f"{row.case}: {row.provider}: step {step.median:.4g} ms [{step.q1:.4g}, {step.q3:.4g}], {peer}"
        f"{beside:.1f} times that of v1fast's core in every step, error {max(row.errors.values()):.1e}, "
        f"{row.observations} observations"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--case", action="append", default=[], choices=[case.name for case in CASES])
    parser.add_argument("--seconds", type=float, default=60, help="of measuring each case")
    arguments = parser.parse_args()
    main(arguments.out, arguments.case, arguments.seconds)
