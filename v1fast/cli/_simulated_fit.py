"""An encoder fitted to a simulated population, and judged by what is known of it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import Tensor

from v1fast.data import Simulation
from v1fast.losses import PoissonLoss
from v1fast.metrics import single_trial_correlation
from v1fast.models import FiringRateEncoder, Stacked2dCore, input_positions
from v1fast.readouts import FullGaussian2d
from v1fast.training import OneCycle, fit

if TYPE_CHECKING:
    from rich.console import Console

# Rates of exactly 0, with spikes to follow, cost 18 nats.
LOSS = PoissonLoss(bias=1e-8)


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
class Fit:
    """A fitted model: that of the epoch with the highest validation correlation.

    Attributes:
        model: in evaluation mode.
        epochs: see :class:`v1fast.training.History`; also "position_error", the median distance between learned and
            true receptive-field centres, pixels.
        best_epoch: the epoch kept, counted from 1.
        interrupted: whether Ctrl-C ended the training.
        seconds: wall-clock time.
    """

    model: FiringRateEncoder
    epochs: list[dict[str, float]]
    best_epoch: int
    interrupted: bool
    seconds: float


class _PositionErrors(lightning.Callback):
    """Notes how far learned positions are from the true ones, after each epoch."""

    def __init__(self, model: FiringRateEncoder, true: Tensor) -> None:
        self.model, self.true, self.errors = model, true, list[float]()

    def on_train_epoch_end(self, *args: Any) -> None:
        error = (centres(self.model) - self.true).norm(dim=1)
        self.errors.append(error.quantile(0.5).item())


def encoder(settings: Settings, mean_response: Tensor) -> FiringRateEncoder:
    """A core of two layers, a Gaussian readout and ELU + 1, for images [B, 1, H, W] and mean responses [N]."""
    core = Stacked2dCore(1, settings.channels, 9, 3, layers=2, stack=-1, pad_input=False)
    with torch.no_grad():
        map_shape = tuple(core(torch.zeros(2, 1, *settings.image_shape)).shape[1:])
    readout = FullGaussian2d(
        map_shape,
        len(mean_response),
        bias=True,
        init_mu_range=settings.init_mu_range,
        init_sigma=settings.init_sigma,
        feature_reg_weight=0.0,
        mean_activity=mean_response - 1,  # ELU adds the 1
    )
    return FiringRateEncoder(core, readout)


def centres(model: FiringRateEncoder) -> Tensor:
    """Learned receptive-field centres [N, 2], x then y, in pixels of the image."""
    found = input_positions(model.core, model.readout)
    return torch.stack([found.x, found.y], dim=1).float()


@torch.no_grad()
def predict(model: FiringRateEncoder, images: Tensor) -> Tensor:
    """Expected responses [T, N] in evaluation mode, for any number of images."""
    return torch.cat([model.eval()(chunk) for chunk in images.split(100)])


def fit_population(simulation: Simulation, settings: Settings, console: Console, out: Path | None = None) -> Fit:
    """Fit an encoder to ``simulation.train``, printing a line for each epoch.

    Raises:
        KeyboardInterrupt: Ctrl-C before the first epoch was done.
    """
    start = time.perf_counter()
    torch.manual_seed(settings.seed)
    model = encoder(settings, simulation.train.responses[0].mean(0))
    errors = _PositionErrors(model, simulation.population.position)
    tiers = {"train": simulation.train, "validation": simulation.validation}
    train, validation = (
        {"population": {"images": tier.images, "responses": tier.responses[0]}} for tier in tiers.values()
    )
    history = fit(
        model,
        train,
        validation,
        out=out,
        loss=LOSS,
        max_epochs=settings.epochs,
        batch_size=settings.batch,
        seed=settings.seed,
        accelerator="cpu",
        console=console,
        callbacks=[errors],
        learning_rate=settings.learning_rate,
        learning_rates={"_mu": settings.mu_learning_rate, "sigma": settings.sigma_learning_rate},
        schedule=OneCycle(),
        scale_loss=False,
    )
    pairs = zip(history.epochs, errors.errors, strict=False)
    epochs = [{**epoch, "position_error": error} for epoch, error in pairs]
    return Fit(model, epochs, history.best_epoch, history.interrupted, time.perf_counter() - start)


def evaluate(fitted: Fit, simulation: Simulation) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Judge the fit on the test images and by the true positions.

    Returns:
        A summary for JSON; and the tensors behind it: ``predicted``, ``observed`` [T, N], ``correlation`` [N] (NaN
        for a neuron that is constant), ``true`` and ``learned`` [N, 2], in pixels.
    """
    tier, model = simulation.test, fitted.model
    predicted, observed = predict(model, tier.images), tier.responses.mean(0)
    score, ceiling = (single_trial_correlation(observed, rates) for rates in (predicted, tier.rates))
    learned, true = centres(model), simulation.population.position
    error = (learned - true).norm(dim=1)
    summary = {
        "epochs": len(fitted.epochs),
        "best_epoch": fitted.best_epoch,
        "interrupted": fitted.interrupted,
        "seconds": round(fitted.seconds, 1),
        "correlation_median": score.median,
        "correlation_mean": score.mean,
        "correlation_undefined": score.undefined,
        "ceiling_median": ceiling.median,
        "ceiling_mean": ceiling.mean,
        "position_error_median_px": error.quantile(0.5).item(),
        "position_error_mean_px": error.mean().item(),
        "within_1_px": (error <= 1).float().mean().item(),
        "within_2_px": (error <= 2).float().mean().item(),
        "history": fitted.epochs,
    }
    tensors = {
        "predicted": predicted,
        "observed": observed,
        "correlation": score.per_neuron,
        "true": true,
        "learned": learned,
    }
    return summary, tensors
