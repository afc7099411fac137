"""Stochastic gradient descent with momentum, as in the story."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from v1fast import _choices
from v1fast._progress import progress
from v1fast.data import gratings
from v1fast.decoding.fitting import one_thread
from v1fast.normative.networks import CNN

Floats = NDArray[np.float64]
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "binary": nn.functional.binary_cross_entropy_with_logits,
    "classes": nn.functional.cross_entropy,
    "squared": nn.functional.mse_loss,
}
"""Name -> mean loss: log odds [S, 1] and 0 or 1; logits [S, K] and classes [S]; outputs and targets [S, K]."""


def train(
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    loss: str = "binary",
    epochs: int = 25,
    rate: float = 5e-4,
    momentum: float = 0.99,
    batch: int = 100,
    show: bool = False,
) -> list[float]:
    """Fit a network in place, on batches of a new permutation of the images in each epoch.

    Permutations are torch's random numbers as they come: seed them.

    Args:
        network: [S, 1, H, W] -> [S, K].
        images: [S, 1, H, W].
        targets: as :data:`LOSSES` say.
        loss: binary, classes or squared.
        epochs, batch: >= 1.
        rate: > 0.
        momentum: 0 to 1.
        show: whether to show progress.

    Returns:
        The loss of each epoch's last batch.

    Raises:
        ValueError: an argument out of range; the loss is no longer finite.
    """
    measure = _choices.pick("loss", loss, LOSSES)
    for name, value in (("epochs", epochs), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name}: want >= 1, got {value}")
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=momentum)
    found = []
    with one_thread(), progress("epochs", epochs, show=show) as bar:
        for _ in range(epochs):
            for chosen in torch.randperm(len(images)).split(batch):
                error = measure(network(images[chosen]), targets[chosen])
                optimizer.zero_grad()
                error.backward()
                optimizer.step()
            found.append(error.item())
            if not np.isfinite(found[-1]):
                raise ValueError(f"rate: want one at which the loss stays finite, got {rate}")
            bar.advance()
    return found


def tilts(degrees: Tensor | NDArray[np.float64]) -> Tensor:
    """[S, 1]: 1 where an orientation is tilted to the right, > 0; 0 where to the left, or not at all."""
    return torch.as_tensor(np.asarray(degrees) > 0).float()[:, None]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network that has learned a task.

    Attributes:
        network: on the task.
        losses: of each epoch's last batch.
        train_loss, train_accuracy: on all training images.
        test_accuracy: on new ones.
    """

    network: nn.Module
    losses: list[float]
    train_loss: float
    train_accuracy: float
    test_accuracy: float


def train_on_tilt(
    make: Callable[[], nn.Module] = CNN,
    *,
    seed: int = 12,
    image_shape: tuple[int, int] = (48, 64),
    patch: bool = False,
    images: int = 1000,
    new: int = 2000,
    show: bool = False,
    **options: float,
) -> Trained:
    """Train a network to tell whether gratings are tilted to the left or to the right.

    Orientations are uniform in -90 to 90 degrees, and are the only difference between images.

    Args:
        make: makes the network, after the orientations are drawn.
        seed: of NumPy's orientations and torch's weights and permutations.
        image_shape: (H, W).
        patch: draw patches.
        images: training images.
        new: images of the test.
        show: whether to show progress.
        options: of ``train``.

    Returns:
        The trained network.
    """
    draw = np.random.RandomState(seed)
    degrees = (draw.rand(images) - 0.5) * 180
    shown, targets = gratings(degrees, image_shape, patch=patch), tilts(degrees)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make()
        losses = train(network, shown, targets, show=show, **options)  # type: ignore[arg-type]
    others = (draw.rand(new) - 0.5) * 180
    with torch.no_grad():
        answers = network(shown)
        return Trained(
            network,
            losses,
            LOSSES["binary"](answers, targets).item(),
            accuracy(answers, targets),
            accuracy(network(gratings(others, image_shape, patch=patch)), tilts(others)),
        )


def accuracy(answers: Tensor, targets: Tensor) -> float:
    """Share of right answers: of log odds [S, 1] with 0 or 1, or of logits [S, K] with classes [S]."""
    if answers.shape == targets.shape:
        return ((answers > 0) == (targets > 0.5)).float().mean().item()
    return (answers.argmax(1) == targets).float().mean().item()
