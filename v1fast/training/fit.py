"""An encoder, fitted to a simulated population."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from v1fast._progress import Bar, progress
from v1fast.data import Simulation, Tier
from v1fast.losses import PoissonLoss
from v1fast.metrics import single_trial_correlation
from v1fast.models.encoder import Encoder

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of the simulation, and how the model is fitted to it."""

    neurons: int = 800
    image_shape: tuple[int, int] = (36, 64)
    train: int = 2000
    validation: int = 200
    test: int = 200
    repeats: int = 10
    channels: int = 16
    epochs: int = 24
    batch: int = 64
    learning_rate: float = 0.02
    # The means have up to 25 pixels to go, and sigma must stay wide until they are there.
    mu_learning_rate: float = 0.06
    sigma_learning_rate: float = 0.015
    init_mu_range: float = 0.1
    init_sigma: float = 0.2
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What one pass over the training images came to; the medians are over neurons.

    Attributes:
        train_loss, validation_loss: Poisson loss in nats for each response, without the terms of the response alone.
        correlation: median correlation with the single responses to the validation images.
        position_error: median distance between learned and true receptive-field centres, pixels.
        seconds: wall-clock time.
    """

    train_loss: float
    validation_loss: float
    correlation: float
    position_error: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted model: that of the epoch with the lowest validation loss.

    Attributes:
        model: in evaluation mode.
        history: the epochs done.
        interrupted: whether Ctrl-C ended the training.
    """

    model: Encoder
    history: list[Epoch]
    interrupted: bool

    @property
    def best_epoch(self) -> int:
        """The epoch kept, counted from 1."""
        return 1 + min(range(len(self.history)), key=lambda i: self.history[i].validation_loss)


# Rates of exactly 0, with spikes to follow, cost 18 nats.
LOSS = PoissonLoss(bias=1e-8)


def fit(simulation: Simulation, settings: Settings, console: Console) -> Fit:
    """Train on ``simulation.train``, printing a line for each epoch; Ctrl-C keeps the best epoch done so far.

    Raises:
        KeyboardInterrupt: Ctrl-C before the first epoch was done.
    """
    tier = simulation.train
    LOSS.check_responses(tier.responses, "train")
    torch.manual_seed(settings.seed)
    model = Encoder(
        settings.image_shape,
        tier.responses[0].mean(0),
        channels=settings.channels,
        init_mu_range=settings.init_mu_range,
        init_sigma=settings.init_sigma,
    )
    steps = settings.epochs * -(-len(tier.images) // settings.batch)
    optimizer, schedule = _optimizer(model, settings, steps)
    history: list[Epoch] = []
    best: dict[str, Any] = {}
    interrupted = False
    try:
        with progress("fitting", steps, console=console) as bar:
            for number in range(1, settings.epochs + 1):
                start = time.perf_counter()
                losses = list(_epoch(model, tier, settings.batch, optimizer, schedule, bar))
                epoch = _assess(model, simulation, sum(losses) / len(losses), start)
                if all(epoch.validation_loss < earlier.validation_loss for earlier in history):
                    best = copy.deepcopy(model.state_dict())
                history.append(epoch)
                console.print(_line(number, settings.epochs, epoch))
    except KeyboardInterrupt:
        if not history:
            raise
        interrupted = True
        console.print(f"Interrupted: going on with the best of {len(history)} epochs.")
    model.load_state_dict(best)
    return Fit(model.eval(), history, interrupted)


def evaluate(fitted: Fit, simulation: Simulation) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Judge the fit on the test images and by the true positions.

    Returns:
        A summary for JSON; and the tensors behind it: ``predicted``, ``observed`` [T, N], ``correlation`` [N] (NaN
        for a neuron that is constant), ``true`` and ``learned`` [N, 2], in pixels.
    """
    tier, model = simulation.test, fitted.model
    predicted, observed = model.predict(tier.images), tier.responses.mean(0)
    score, ceiling = (single_trial_correlation(observed, rates) for rates in (predicted, tier.rates))
    learned, true = model.centres(), simulation.population.position
    error = (learned - true).norm(dim=1)
    summary = {
        "epochs": len(fitted.history),
        "best_epoch": fitted.best_epoch,
        "interrupted": fitted.interrupted,
        "seconds": round(sum(epoch.seconds for epoch in fitted.history), 1),
        "correlation_median": score.median,
        "correlation_mean": score.mean,
        "correlation_undefined": score.undefined,
        "ceiling_median": ceiling.median,
        "ceiling_mean": ceiling.mean,
        "position_error_median_px": error.quantile(0.5).item(),
        "position_error_mean_px": error.mean().item(),
        "within_1_px": (error <= 1).float().mean().item(),
        "within_2_px": (error <= 2).float().mean().item(),
        "history": [dataclasses.asdict(epoch) for epoch in fitted.history],
    }
    tensors = {
        "predicted": predicted,
        "observed": observed,
        "correlation": score.per_neuron,
        "true": true,
        "learned": learned,
    }
    return summary, tensors


def _optimizer(
    model: Encoder, settings: Settings, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    readout = model.readout
    groups = [
        (
            settings.learning_rate,
            [*model.core.parameters(), *(readout.get_parameter(name) for name in ("_features", "bias"))],
        ),
        (settings.mu_learning_rate, [readout.get_parameter("_mu")]),
        (settings.sigma_learning_rate, [readout.sigma]),
    ]
    optimizer = torch.optim.Adam([{"params": parameters, "lr": rate} for rate, parameters in groups])
    rates = [rate for rate, _ in groups]
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.15)


def _epoch(
    model: Encoder,
    tier: Tier,
    batch: int,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    bar: Bar,
) -> Iterator[float]:
    """The loss of each step."""
    model.train()
    images = tier.images.contiguous(memory_format=torch.channels_last)
    for chosen in torch.randperm(len(images)).split(batch):
        loss = LOSS(model(images[chosen]), tier.responses[0, chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.advance()
        yield loss.item()


def _assess(model: Encoder, simulation: Simulation, train_loss: float, start: float) -> Epoch:
    tier = simulation.validation
    predicted = model.predict(tier.images)
    return Epoch(
        train_loss=train_loss,
        validation_loss=LOSS(predicted, tier.responses[0]).item(),
        correlation=single_trial_correlation(tier.responses[0], predicted).median,
        position_error=(model.centres() - simulation.population.position).norm(dim=1).quantile(0.5).item(),
        seconds=time.perf_counter() - start,
    )


def _line(number: int, epochs: int, epoch: Epoch) -> str:
    return (
        f"epoch {number:2}/{epochs}  loss {epoch.train_loss:.3f}  validation: loss {epoch.validation_loss:.3f}, "
        f"correlation {epoch.correlation:.3f}, position error {epoch.position_error:5.2f} px  {epoch.seconds:.1f} s"
    )
