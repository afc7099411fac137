"""Layer beside layer: v1fast's and the published one that it stands in for, in training steps with their penalties.

``make bench-layers``, or ``python -m v1fast.benchmarks.bench_layers OUT`` with the peers where V1FAST_PEERS says.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from v1fast import doctor, readouts

from . import memory, report, rows
from .clocks import CpuClock
from .contract import Case, Provider, Step, relative_error
from .harness import Contest, Effort
from .peers import published

OP, TITLE = "layers", "Layers beside their peers"
CHECKED = 2  # images or clips whose output and feature gradient are compared with the peer in float64

NEURALPREDICTORS = "neuralpredictors.layers.readouts"
OPENRETINA = "openretina.modules.readout"


Call = Callable[..., Tensor]


def _as_it_is(layer: nn.Module) -> Call:
    return layer


def _frames_as_images(layer: nn.Module) -> Call:
    """Let a peer for images read videos."""
    return lambda x, **options: layer(x.transpose(1, 2).flatten(0, 1), **options).unflatten(0, (len(x), x.shape[2]))


class FourFactors(nn.Module):
    """The computation of minimodel's readout in one einsum, with the parameters of v1fast's layer."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()
        self.layer = readouts.SeparableReadout(*arguments, **options)

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        out = torch.einsum("nrc,nry,icyx,nrx->in", layer.Wc, layer.Wy, x, layer.Wx)
        return torch.nn.functional.elu(out if layer.bias is None else out + layer.bias)

    def regularizer(self) -> Tensor:
        return self.layer.regularizer()


@dataclass(frozen=True, eq=False)
class LayerCase(Case):
    """A layer of v1fast and its peer.

    Attributes:
        layer: name of the class, in v1fast and, without ``peer_name``, in the module ``peer``.
        peer: module, or "" for an expression of torch's own operations in this file.
        options: for both constructors, after ``in_shape`` and ``outdims``.
        at_the_means: arguments of forward that stop a peer in evaluation mode from drawing.
        prepare: applied to both layers before they run, such as freezing a parameter.
        call: how the peer is called.
        penalty: whether the peer's penalty works.
    """

    layer: str = ""
    peer: str = NEURALPREDICTORS
    peer_name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    at_the_means: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[nn.Module], None] = lambda layer: None
    call: Callable[[nn.Module], Call] = _as_it_is
    penalty: bool = True

    @property
    def in_shape(self) -> tuple[int, ...]:
        """(C, H, W), or (C, T, H, W) if the layers expect it."""
        return tuple(self.shape[axis] for axis in ("CTHW" if self.peer.startswith(OPENRETINA) else "CHW"))


def _case(name: str, axes: str, sizes: Sequence[int], layer: str, **changes: Any) -> LayerCase:
    return LayerCase(name, dict(zip(axes, sizes, strict=True)), layer=layer, **changes)


def _untrained_means(layer: nn.Module) -> None:
    layer.mu.requires_grad_(False)


_BIAS = {"bias": True}
_KLINDT = {
    "mask_l1_reg": 0.1,
    "weights_l1_reg": 0.1,
    "laplace_mask_reg": 0.1,
    "mask_size": (10, 12),
    "init_scales": [(0.0, 0.1), (0.0, 0.1)],
}
_POINTS = {"bias": True, "init_mu_range": 0.5, "init_sigma_range": 0.2, "num_filters": 3}
CASES = (
    _case("FullFactorized2d", "BCHWN", (32, 64, 28, 56, 4000), "FullFactorized2d", options=_BIAS),
    _case("FullFactorized2d, many images", "BCHWN", (2000, 16, 10, 12, 1000), "FullFactorized2d", options=_BIAS),
    _case("FullFactorized2d, many channels", "BCHWN", (64, 320, 8, 10, 3000), "FullFactorized2d", options=_BIAS),
    _case("SeparableReadout", "BCHWN", (16, 64, 28, 56, 500), "SeparableReadout", peer="", peer_name="FourFactors"),
    _case(
        "FactorizedReadout",
        "BCTHWN",
        (32, 16, 50, 10, 12, 150),
        "FactorizedReadout",
        peer=f"{OPENRETINA}.factorized",
        options=_KLINDT,
    ),
    _case(
        "GaussianMaskReadout",
        "BCTHWN",
        (32, 16, 50, 10, 12, 150),
        "GaussianMaskReadout",
        peer=f"{OPENRETINA}.factorized_gaussian",
    ),
    _case(
        "PointGaussianReadout",
        "BCTHWN",
        (32, 16, 50, 10, 12, 150),
        "PointGaussianReadout",
        peer=f"{OPENRETINA}.gaussian",
        options=_BIAS,
        call=_frames_as_images,
    ),
    _case(
        "FullGaussian2d, videos",
        "BCTHWN",
        (4, 64, 16, 28, 56, 4000),
        "FullGaussian2d",
        options=_BIAS,
        call=_frames_as_images,
    ),
    _case(
        "DeterministicGaussian2d",
        "BCHWN",
        (16, 64, 28, 56, 2000),
        "DeterministicGaussian2d",
        options=_BIAS,
        prepare=_untrained_means,
    ),
    _case("AttentionReadout", "BCHWN", (16, 64, 28, 56, 500), "AttentionReadout", options=_BIAS),
    _case(
        "UltraSparse",
        "BCHWN",
        (64, 64, 28, 56, 4000),
        "UltraSparse",
        options=_POINTS,
        at_the_means={"sample": False},
        penalty=False,
    ),
    _case("Gaussian3d", "BCHWN", (64, 64, 28, 56, 4000), "Gaussian3d", options=_BIAS, penalty=False),
)


def _peer_class(case: LayerCase) -> type[nn.Module]:
    name = case.peer_name or case.layer
    if not case.peer:
        return globals()[name]
    return published(case.peer, name)


def _make(case: LayerCase, kind: Callable[..., nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = kind(case.in_shape, case.shape["N"], **case.options)
    for module in layer.modules():
        if isinstance(module, nn.Conv2d) and not isinstance(module.padding, str):
            # neuralpredictors 0.3.0 pads by True and False, which torch no longer accepts.
            module.padding = (int(module.padding[0]), int(module.padding[1]))
    case.prepare(layer)
    return layer


@lru_cache(maxsize=1)
def _operands(case: LayerCase) -> tuple[Tensor, Tensor]:
    """Return features and the gradient of the output."""
    torch.manual_seed(1)
    features = torch.randn([case.shape[axis] for axis in "BCTHW" if axis in case.shape])
    return features, torch.randn([case.shape[axis] for axis in "BTN" if axis in case.shape])


class LayerCheck:
    """The peer's layer in float64, for a few images, in evaluation mode: in training the random draws differ."""

    def __init__(self, step: LayerStep) -> None:
        self.step = step
        self.upstream = _operands(step.case)[1]

    def errors(self, output: Tensor, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the relative errors of the output and of the gradient of the features."""
        layer, was_training = self.step.layer, self.step.layer.training
        got = _evaluated(self.step.case, layer.eval(), self.step.call, torch.float32)
        layer.train(was_training)
        exact = _exact(self.step.case)
        return {"output": relative_error(got[0], exact[0]), "features": relative_error(got[1], exact[1])}


def _evaluated(case: LayerCase, layer: nn.Module, call: Call, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    features, upstream = (t[:CHECKED].to(dtype) for t in _operands(case))
    features = features.clone().requires_grad_()
    out = call(features, **case.at_the_means)
    return out.detach(), torch.autograd.grad(out, features, upstream)[0]


@lru_cache(maxsize=1)
def _exact(case: LayerCase) -> tuple[Tensor, Tensor]:
    layer = copy.deepcopy(_make(case, _peer_class(case))).double().eval()
    return _evaluated(case, layer, case.call(layer), torch.float64)


class LayerStep(Step):
    """Forward (with the penalty if the peer's works), and backward to features and parameters."""

    upstream: Tensor

    def __init__(
        self, case: LayerCase, kind: Callable[..., nn.Module], call: Callable[[nn.Module], Call], last: bool
    ) -> None:
        self.case, self.layer = case, _make(case, kind)
        self.call = call(self.layer)
        x, self.upstream = _operands(case)
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        x = x.contiguous(memory_format=formats[x.dim()]) if last else x
        self.x = x.detach().requires_grad_()
        self.parameters = {name: p for name, p in self.layer.named_parameters() if p.requires_grad}

    def warm_up(self) -> None:
        memory.populate(2**29)

    def forward(self, drawn: None) -> Tensor:
        layer: Any = self.layer
        self.penalty = layer.regularizer() if self.case.penalty else None
        return self.call(self.x)

    def backward(self, output: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        outputs, grads = [output], [upstream]
        if self.penalty is not None:
            outputs.append(self.penalty)
            grads.append(torch.ones_like(self.penalty))
        leaves = [self.x, *self.parameters.values()]
        found = torch.autograd.grad(outputs, leaves, grads, allow_unused=True, materialize_grads=True)
        return dict(zip(("features", *self.parameters), found, strict=True))

    def check(self) -> LayerCheck:
        return LayerCheck(self)


def _peer_step(case: LayerCase, last: bool) -> LayerStep:
    return LayerStep(case, _peer_class(case), case.call, last)


def providers(case: LayerCase) -> Iterator[Provider]:
    """Yield the peer and v1fast, each with features in both layouts."""
    ours = getattr(readouts, case.layer)
    for layout, last in (("", False), (", channels-last", True)):
        yield Provider(f"peer{layout}", partial(_peer_step, case, last), baseline=True)
        yield Provider(f"v1fast{layout}", partial(LayerStep, case, ours, _as_it_is, last))


def main(out: Path, cases: Sequence[str], seconds: float) -> None:
    """Measure with one thread, in CPU time, print a table, and write ``rows.jsonl`` after every case."""
    from rich.console import Console

    console, run = Console(highlight=False, width=report.TABLE_WIDTH), asdict(doctor.examine(True))
    found: list[rows.Row] = []
    try:
        for case in CASES:
            if cases and case.name not in cases:
                continue
            effort = Effort(rounds=9, seconds=seconds)
            contest = Contest(OP, case, list(providers(case)), clock=CpuClock(), effort=effort)
            try:
                contest.run()
            finally:
                found += contest.rows(run)
                rows.write(out / "rows.jsonl", found)
            for row in (row for row in found if row.case == case.name):
                console.print(_line(row), markup=False, soft_wrap=True)
    finally:
        console.print(f"Rows: {out / 'rows.jsonl'}", markup=False)


def _line(row: rows.Row) -> str:
    """Format one provider's result."""
    if not row.measured:
        return f"{row.case}: {row.provider}: {row.status}"
    step, extra = row.milliseconds["step"], row.memory.extra / 2**20 if row.memory else float("nan")
    times = {phase: f"{row.speedup[phase].times:.2f}" for phase in ("forward", "step") if phase in row.speedup}
    return (
        f"{row.case} {report.shape(row)}: {row.provider}: forward {row.milliseconds['forward'].median:.3g} ms, "
        f"step {step.median:.3g} ms [{step.q1:.3g}, {step.q3:.3g}], {times}, extra {extra:.0f} MiB, "
        f"error {max(row.errors.values()):.1e}, {row.observations} observations"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--case", action="append", default=[], choices=[case.name for case in CASES])
    parser.add_argument("--seconds", type=float, default=12, help="of measuring each case")
    arguments = parser.parse_args()
    main(arguments.out, arguments.case, arguments.seconds)
