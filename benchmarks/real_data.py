"""Readouts on a trained core, fitted to a real recording: the Sensorium core, and 103 neurons of another mouse.

    V1FAST_REAL_DATA=folder python -m v1fast.benchmarks.real_data docs/real-data.md

replaces the table between the markers of the page (some minutes on one core). Every image is predicted by a model that
has not seen it. Penalty and number of epochs are chosen by a second cross-validation among the other images.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from torch import Tensor, nn

from v1fast import metrics
from v1fast.models import FiringRateEncoder
from v1fast.readouts import FullGaussian2d
from v1fast.rsa.recordings import MouseV1, antolik, on_sensorium_screen
from v1fast.training import EarlyStopping, fit

from .pages import fill

Floats = NDArray[np.float64]
Predict = Callable[[NDArray[np.int64], NDArray[np.int64]], Floats]

FOLDS, INNER_FOLDS = 10, 3
PENALTIES, EPOCHS = (0.3, 1.0, 3.0), 60
RATE, MU_RANGE, SIGMA = 0.009, 0.3, 0.1  # the Sensorium baseline's
ALPHAS = np.logspace(-2, 6, 17)
SESSION = "mouse"


@dataclass(frozen=True)
class Recording:
    """Real responses, and what the trained core makes of the images.

    Attributes:
        responses: [R, I, N], of all repeats.
        images: [I, H, W].
        maps: [I, C, H', W'], the core's, channels-last.
    """

    responses: Floats
    images: Floats
    maps: Tensor

    @property
    def averages(self) -> Floats:
        """[I, N], over repeats."""
        return self.responses.mean(0)

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """[R * I]."""
        repeats, images, _ = self.responses.shape
        return np.tile(np.arange(images), repeats)


def recording(folder: Path) -> Recording:
    responses, images = antolik(folder)
    model = MouseV1(folder).eval()
    with torch.no_grad():
        maps = torch.cat([model.core(part) for part in on_sensorium_screen(images).split(10)])
    return Recording(responses, images, maps.contiguous(memory_format=torch.channels_last))


class GaussianReadouts:
    """Predictions of Gaussian readouts of the frozen core's maps."""

    def __init__(self, data: Recording) -> None:
        self.data = data
        self.chosen: list[tuple[float, int]] = []

    def __call__(self, train: NDArray[np.int64], test: NDArray[np.int64]) -> Floats:
        penalty, epochs = self.choose(train)
        self.chosen.append((penalty, epochs))
        encoder = self.model(train, penalty)
        fit(encoder, self.trials(train), max_epochs=epochs, **self.options())  # type: ignore[arg-type]
        with torch.no_grad():
            rates: Tensor = encoder(self.data.maps[test])
        return rates.double().numpy()

    def choose(self, train: NDArray[np.int64]) -> tuple[float, int]:
        """The penalty and the number of epochs with the best correlation, averaged over the inner folds."""
        scores = np.array([self.curve(train, penalty) for penalty in PENALTIES])
        which, epoch = np.unravel_index(np.nanargmax(scores), scores.shape)
        return PENALTIES[which], int(epoch) + 1

    def curve(self, train: NDArray[np.int64], penalty: float) -> Floats:
        """[EPOCHS], correlation with the averages of images left out."""
        curves = []
        for kept, left_out in KFold(INNER_FOLDS, shuffle=True, random_state=1).split(train):
            fitted, judged = train[kept], train[left_out]
            encoder = self.model(fitted, penalty)
            history = fit(encoder, self.trials(fitted), self.trials(judged), max_epochs=EPOCHS, **self.options())  # type: ignore[arg-type]
            curves.append([epoch["val_correlation"] for epoch in history.epochs])
        return np.mean(curves, 0)

    def model(self, train: NDArray[np.int64], penalty: float) -> FiringRateEncoder:
        torch.manual_seed(0)
        shape = tuple(self.data.maps.shape[1:])
        mean = torch.from_numpy(self.data.averages[train].mean(0)).float().clamp(min=1e-3)
        # Rates are elu(bias) + 1 at first.
        bias = torch.where(mean < 1, mean.log(), mean - 1)
        readout = FullGaussian2d(
            shape,
            len(mean),
            bias=True,
            init_mu_range=MU_RANGE,
            init_sigma=SIGMA,
            mean_activity=bias,
            feature_reg_weight=penalty,
        )
        return FiringRateEncoder(nn.Identity(), readout)

    def trials(self, images: NDArray[np.int64]) -> dict[str, dict[str, Tensor]]:
        """Averages over repeats in place of single trials: the Poisson loss is the same, but for a constant."""
        averages = torch.from_numpy(self.data.averages[images]).float()
        return {SESSION: {"images": self.data.maps[images], "responses": averages}}

    @staticmethod
    def options() -> dict[str, object]:
        """Constant rate, to the last epoch."""
        return {
            "learning_rate": RATE,
            "schedule": EarlyStopping(patience=EPOCHS + 1),
            "show": False,
            "accelerator": "cpu",
        }


def ridge(data: Recording) -> Predict:
    """Linear in the pixels; each neuron's penalty by leave-one-out among the images that are fitted."""
    pixels = data.images.reshape(len(data.images), -1)

    def predict(train: NDArray[np.int64], test: NDArray[np.int64]) -> Floats:
        mean, std = pixels[train].mean(0), pixels[train].std()
        model = RidgeCV(ALPHAS, alpha_per_target=True).fit((pixels[train] - mean) / std, data.averages[train])
        predicted: Floats = model.predict((pixels[test] - mean) / std)
        return predicted

    return predict


def constant(data: Recording) -> Predict:
    """The mean of the images that are fitted: what knows nothing of the image."""
    return lambda train, test: np.tile(data.averages[train].mean(0), (len(test), 1))


def cross_validated(predict: Predict, images: int) -> Floats:
    """[I, N]: each image predicted from the others' folds."""
    folds = list(KFold(FOLDS, shuffle=True, random_state=0).split(np.arange(images)))
    parts = [predict(train, test) for train, test in folds]
    order = np.argsort(np.concatenate([test for _, test in folds]))
    return np.concatenate(parts)[order]


def row(name: str, predictions: Floats, data: Recording) -> str:
    trials, ids = data.responses.reshape(-1, data.responses.shape[2]), data.image_ids
    predicted, draw = predictions[ids], metrics.Bootstrap()
    single = metrics.single_trial_correlation(trials, predicted, ids, bootstrap=draw)
    average = metrics.correlation_to_average(trials, predicted, ids, bootstrap=draw)
    oracle = metrics.fraction_oracle(trials, predicted, ids, bootstrap=draw)
    explained = metrics.feve(trials, predicted, ids)  # the bootstrap fails where so little is explained
    cells = [cell(r.mean, r.interval, r.undefined) for r in (single, average)]
    cells.append(cell(oracle.value, oracle.interval, oracle.undefined))
    median = f"{explained.mean:.3f}, median {explained.median:.3f}"
    cells.append(median + notes(explained.undefined, explained.below_threshold))
    return f"| {name} | {' | '.join(cells)} |"


def cell(value: float, interval: metrics.Interval | None, undefined: int) -> str:
    ends = "" if interval is None else f" [{interval.low:.3f}, {interval.high:.3f}]"
    return f"{value:.3f}{ends}{notes(undefined)}"


def notes(undefined: int, below: int = 0) -> str:
    """How many neurons have no value, and why."""
    found = [f", {undefined} undefined"] if undefined else []
    return "".join(found + ([f", {below} below the threshold"] if below else []))


def table(data: Recording) -> Iterator[str]:
    yield "| prediction | single-trial correlation | correlation to average | fraction oracle | FEVE |"
    yield "|---|---|---|---|---|"
    readouts = GaussianReadouts(data)
    models: dict[str, Predict] = {
        "Gaussian readouts on the Sensorium core": readouts,
        "ridge regression on the pixels": ridge(data),
        "the mean of the other images": constant(data),
    }
    for name, predict in models.items():
        yield row(name, cross_validated(predict, len(data.images)), data)
    oracle = metrics.oracle_correlation(data.responses.reshape(-1, data.responses.shape[2]), data.image_ids)
    yield ""
    yield f"Jackknife oracle correlation of the responses: {oracle}. Penalty and epochs that the {FOLDS} folds chose:"
    yield ", ".join(f"{penalty:g} and {epochs}" for penalty, epochs in readouts.chosen) + "."


def main(page: str | None = None) -> None:
    """Print the table, and write it into the page."""
    torch.set_num_threads(1)
    lines = []
    for line in table(recording(Path(os.environ["V1FAST_REAL_DATA"]))):
        print(line, flush=True)
        lines.append(line)
    if page is not None:
        fill(Path(page), "real data", lines)


if __name__ == "__main__":
    main(*sys.argv[1:2])
