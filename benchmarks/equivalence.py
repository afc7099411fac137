"""Does a model train with v1fast as with neuralpredictors? The same model, by both libraries' classes, side by side.

    V1FAST_PEERS=.peers python -m v1fast.benchmarks.equivalence docs/equivalence.md [curves] [distributions] [trained]

replaces the tables between the markers of the page, or those of the named parts. The last part takes an hour on one
core; its models are kept in out/equivalence, so that it goes on where it was interrupted.

1. With the same random numbers, losses follow the same curve: in float64 over 200 steps, in float32 over 50. Afterwards
   rounding grows in any library, so the page also says how far the published model departs from itself: if its initial
   weights are changed by 1e-7, and if its images are channels-last, as in v1fast's encoder.
2. With v1fast's own random numbers, losses and gradients have the same distribution: 10^5 draws at the positions of one
   trained state.
3. Trained over seeds, held-out correlations are equivalent: see :mod:`.equivalence_trained`.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from v1fast import _choices
from v1fast.data import simulate_animals
from v1fast.losses import PoissonLoss
from v1fast.models import FiringRateEncoder

from . import equivalence_trained
from .equivalence_models import NEURONS, encoder, normalized, seeded
from .pages import fill

FOLDER = Path("out/equivalence")
IMAGES, IMAGE, BATCH = 512, (36, 64), 32
MAP = (16, 28, 56)
RATE, STEPS, STEPS32, PERTURBATION = 0.005, 200, 50, 1e-7
DRAWS, COPIES, PROJECTIONS = 100_000, 100, 100
LOSS = PoissonLoss(avg=False)


class ChannelsLast(nn.Module):
    """A model that makes its images channels-last, as v1fast's does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        rates: Tensor = self.model(images.clone(memory_format=torch.channels_last))
        return rates

    def regularizer(self) -> Any:
        return self.model.regularizer()  # type: ignore[operator]


class AsGiven(FiringRateEncoder):
    """v1fast's model with the images in the layout they come in."""

    def features(self, inputs: Tensor) -> Tensor:
        maps: Tensor = self.core(inputs)
        return maps


def twins(mean_activity: Tensor, dtype: torch.dtype, sampler: str = "torch") -> tuple[nn.Module, nn.Module]:
    """v1fast's model and the published one, with the same initial values."""
    theirs = seeded(mean_activity, 0, MAP).to(dtype)
    ours = encoder(mean_activity, sampler, MAP, AsGiven).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def curve(model: nn.Module, images: Tensor, responses: Tensor, steps: int) -> list[float]:
    """The loss of each step. Random numbers depend on the step alone."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        chosen = torch.randint(len(images), (BATCH,))
        x, y = images[chosen], responses[chosen]
        loss = LOSS(model(x), y) * math.sqrt(len(images) / BATCH) + model.regularizer()  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def departure(one: list[float], other: list[float]) -> float:
    """The largest relative difference of two curves."""
    return max(abs(a - b) / abs(a) for a, b in zip(one, other, strict=True))


def perturbed(model: nn.Module) -> nn.Module:
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in changed.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.mul_(1 + PERTURBATION * noise)
    return changed


def curves(images: Tensor, responses: Tensor) -> Iterator[str]:
    yield "| largest difference of the losses, the same random numbers | float64, 200 steps | float32, 50 steps |"
    yield "|---|---|---|"
    columns = []
    for dtype, steps in ((torch.float64, STEPS), (torch.float32, STEPS32)):
        x, y = images.to(dtype), responses.to(dtype)
        ours, theirs = twins(y.mean(0), dtype)
        models = (
            ours,
            ChannelsLast(copy.deepcopy(ours)),
            ChannelsLast(copy.deepcopy(theirs)),
            perturbed(theirs),
        )
        want = curve(theirs, x, y, steps)
        columns.append([departure(want, curve(model, x, y, steps)) for model in models])
    rows = (
        "v1fast from the published model, the same layout of images",
        "v1fast, channels-last, from the published model",
        "the published model, channels-last, from itself",
        "the published model, its weights changed by 1e-7, from itself",
    )
    for row, in64, in32 in zip(rows, *columns, strict=True):
        yield f"| {row} | {in64:.1e} | {in32:.1e} |"
    yield "| wanted in the first row | 1e-09 | 1e-05 |"


def drawn(model: nn.Module, image: Tensor, response: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each of DRAWS draws, and the projections of the gradient, averaged over COPIES draws at a time."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    readout = [p for name, p in model.named_parameters() if name.startswith("readout")]
    losses, projections = [], []
    with torch.no_grad():
        features = model.core(image).expand(COPIES, -1, -1, -1)  # type: ignore[operator]
    for seed in range(DRAWS // COPIES):
        torch.manual_seed(seed)
        rates = F.elu(model.readout(features)) + 1  # type: ignore[operator]
        each = F.poisson_nll_loss(rates, response.expand_as(rates), log_input=False, eps=1e-12, reduction="none").sum(1)
        gradients = torch.autograd.grad(each.mean(), readout)
        losses.append(each.detach().double())
        projections.append(directions @ torch.cat([g.flatten() for g in gradients]).double())
    return torch.cat(losses), torch.stack(projections)


def distributions(images: Tensor, responses: Tensor) -> Iterator[str]:
    ours, theirs = twins(responses.mean(0), torch.float32, sampler="philox")
    curve(theirs, images, responses, STEPS32)
    with torch.no_grad():  # training makes the Gaussians narrow; wide ones make the samples matter
        theirs.readout.sigma.mul_(2)  # type: ignore[union-attr, operator]
    ours.load_state_dict(theirs.state_dict())
    count = sum(p.numel() for name, p in ours.named_parameters() if name.startswith("readout"))
    directions = torch.randn(PROJECTIONS, count, generator=torch.Generator().manual_seed(2)).double()
    results = [drawn(model, images[:1], responses[:1], directions) for model in (ours, theirs)]
    (mine, my_projections), (own, own_projections) = results

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return (a.mean(0) - b.mean(0)) / ((a.var(0) / len(a)) + (b.var(0) / len(b))).sqrt()

    z = apart(my_projections, own_projections).abs()
    yield f"| {DRAWS:,} draws, v1fast's random numbers and torch's | found | wanted |"
    yield "|---|---|---|"
    yield f"| mean loss, in standard errors | {abs(float(apart(mine, own))):.2f} | <= 3 |"
    yield f"| variance of the loss, ratio | {float(mine.var() / own.var()):.3f} | .97 to 1.03 |"
    beyond = int((z > 3).sum())
    yield f"| mean gradient along {PROJECTIONS} fixed directions: beyond 3 standard errors | {beyond} | 0.3 by chance |"
    yield f"| the largest of them, in standard errors | {float(z.max()):.2f} | 2.6 by chance (median) |"


def trials() -> tuple[Tensor, Tensor]:
    """Images and responses of a simulated animal."""
    recording = simulate_animals(1, NEURONS, IMAGE, train=IMAGES, validation=1, test=1, seed=0)[0]
    return normalized(recording.train.images), recording.train.responses


PARTS: dict[str, Callable[[Path | None], Iterator[str]]] = {
    "curves": lambda page: curves(*trials()),
    "distributions": lambda page: distributions(*trials()),
    "trained": lambda page: equivalence_trained.tables(FOLDER, None if page is None else page.with_suffix(".png")),
}


def main(page: str | None = None, *parts: str) -> None:
    """Print the tables of these parts, by default of all, and write them into the page."""
    torch.set_num_threads(1)
    path = None if page is None else Path(page)
    for name in parts or PARTS:
        lines = list(_choices.pick("part", name, PARTS)(path))
        print("\n".join(lines), flush=True)
        if path is not None:
            fill(path, name, lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
