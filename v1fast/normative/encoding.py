"""A convolutional encoding model that is fitted to the neurons directly: the alternative to a task."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from v1fast._progress import progress
from v1fast.data import gratings
from v1fast.data.gratings import RECORDED_NEURONS
from v1fast.decoding.fitting import one_thread
from v1fast.normative.networks import initial_filters


class EncodingModel(nn.Module):
    """Image -> convolution -> one linear map to each neuron, without any nonlinearity.

    Filters begin as ``initial_filters`` minus their mean, weights as normal numbers of standard deviation 0.01.

    Args:
        neurons: N >= 1.
        image_shape: (H, W).
        filters, size: of the convolution.
    """

    def __init__(
        self, neurons: int, image_shape: tuple[int, int] = (12, 16), *, filters: int = 6, size: int = 7
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, filters, size, padding=size // 2)
        self.out = nn.Linear(filters * image_shape[0] * image_shape[1], neurons)
        first = initial_filters(filters, size)
        with torch.no_grad():
            self.conv.weight.copy_(first - first.mean((1, 2, 3), keepdim=True))
            self.conv.bias.zero_()  # type: ignore[union-attr]
            nn.init.normal_(self.out.weight, std=0.01)
            self.out.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """[S, 1, H, W] -> [S, N]."""
        return self.out(self.conv(images).flatten(1))


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A fitted encoding model.

    Attributes:
        model: on 12 x 16 pixels.
        losses: [I], squared errors.
        explained: share of the variance of held-out stimuli that is explained, all neurons together.
    """

    model: EncodingModel
    losses: list[float]
    explained: float


def encoding_images(degrees: NDArray[np.float64], image_shape: tuple[int, int] = (12, 16)) -> Tensor:
    """Gratings as the encoding model sees them: [S, 1, H, W], minus 0.5."""
    return gratings(degrees, image_shape) - 0.5


def fit_encoding(
    responses: NDArray[np.float32],
    degrees: NDArray[np.float64],
    *,
    held_out: NDArray[np.bool_] | None = None,
    filters: int = 6,
    size: int = 7,
    iterations: int = 200,
    rate: float = 2.0,
    momentum: float = 0.9,
    l2: float = 5e-4,
    l1: float = 1e-6,
    seed: int = 12,
    show: bool = False,
) -> Encoded:
    """Fit the model by gradient descent with momentum on the mean squared error, with penalties of the output weights.

    ``rate``, ``l1`` and ``l2`` are meant for the 23,589 neurons of the recording. The mean over fewer neurons has
    larger gradients for each of them: their rate is smaller in proportion and the penalties larger, so that each neuron
    is fitted as it would be among all.

    Args:
        responses: [S, N].
        degrees: [S].
        held_out: [S], stimuli that are not fitted but used for the explained variance; None: none are.
        filters, size: of the convolution.
        iterations, rate, momentum, l2, l1: of the descent.
        seed: of the weights.
        show: whether to show progress.

    Raises:
        ValueError: the loss is no longer finite.
    """
    out = np.zeros(len(degrees), bool) if held_out is None else held_out
    images, targets = encoding_images(degrees), torch.from_numpy(np.ascontiguousarray(responses))
    share = responses.shape[1] / RECORDED_NEURONS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EncodingModel(responses.shape[1], filters=filters, size=size)
    groups = [
        {"params": model.conv.parameters(), "lr": rate},
        {"params": model.out.parameters(), "lr": rate * share},
    ]
    optimizer = torch.optim.SGD(groups, momentum=momentum)
    shown, wanted, losses = images[~out], targets[~out], []
    with one_thread(), progress("encoding model", iterations, show=show) as bar:
        for _ in range(iterations):
            error = nn.functional.mse_loss(model(shown), wanted)
            weights = model.out.weight
            total = error + (l2 * weights.square().sum() + l1 * weights.abs().sum()) / share
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses.append(error.item())
            if not np.isfinite(losses[-1]):
                raise ValueError(f"rate: want one at which the loss stays finite, got {rate}")
            bar.advance()
    explained = float("nan")
    if out.any():
        with torch.no_grad():
            rest = (model(images[out]) - targets[out]).square().sum()
        explained = 1 - float(rest / (targets[out] - targets[~out].mean(0)).square().sum())
    return Encoded(model, losses, explained)
