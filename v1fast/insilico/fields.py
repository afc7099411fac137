"""Receptive fields of a model's neurons: gradients of their rates with respect to images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from v1fast._progress import progress
from v1fast.insilico._responses import Responses, standing_still


@dataclass(frozen=True, eq=False)
class ReceptiveFields:
    """Gradients of rates, summarised over images.

    Attributes:
        mean: [M, C, H, W], the mean gradient: the linear filter of a simple cell. A complex cell's gradients point both
            ways and nearly cancel.
        rms: [M, C, H, W], the root of the mean square: where a neuron reads, simple or complex.
        components: [M, K, C, H, W], the K orthonormal images that explain most of the gradients' squares: of a complex
            cell the first two span its quadrature pair. A neuron without gradient has NaN.
        shares: [M, K], the share of the gradients' squares that each of them explains; NaN likewise.
        neurons: [M], indices of the neurons.
    """

    mean: Tensor
    rms: Tensor
    components: Tensor
    shares: Tensor
    neurons: Tensor


def receptive_fields(
    model: nn.Module,
    images: Tensor,
    neurons: Any = None,
    *,
    components: int = 0,
    data_key: str | None = None,
    behavior: Tensor | None = None,
    pupil_center: Tensor | None = None,
    channels: Tensor | None = None,
    images_at_once: int = 64,
    show: bool = False,
) -> ReceptiveFields:
    """Receptive fields by the gradient of each neuron's rate, averaged over images.

    At a grey image alone the gradient of a complex cell is 0: its rate is lowest there whatever the contrast's sign.
    Averages over natural images, or over noise, show where such a cell reads. An encoder's core runs once for each
    group of images; from there each neuron's gradient goes back by itself.

    Args:
        model: an encoder; or any module that makes rates [B, N] of images [B, C, H, W].
        images: [B, C, H, W], normalised as the model wants them.
        neurons: indices or a mask; None takes all.
        components: K, how many principal directions of the gradients to find for each neuron. It keeps the gradients of
            all images in memory: M x B x C x H x W numbers.
        data_key: session, for encoders; may be None if there is only one.
        behavior, pupil_center: [K] and [2], the animal's state, for models with a modulator or a shifter.
        channels: [K], for models of images with further channels of one value each, such as behaviour: these values.
            They follow the image's own.
        images_at_once: bounds the memory.
        show: show progress.

    Returns:
        On the images' device.

    Raises:
        ValueError: images of another shape than [B, C, H, W], none of them, or a number of components out of range.
        IndexError: there is no such neuron.

    >>> import torch
    >>> linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> fields = receptive_fields(linear, torch.randn(10, 1, 8, 8))
    >>> torch.allclose(fields.mean.flatten(1), linear[1].weight)
    True
    """
    if images.dim() != 4 or len(images) == 0:
        raise ValueError(f"images: want [B, C, H, W] with B > 0, got {tuple(images.shape)}")
    if not 0 <= components <= len(images):
        raise ValueError(f"components: want 0 to the number of images ({len(images)}), got {components}")
    responses = Responses(model, data_key, behavior, pupil_center, channels)
    with standing_still(model):
        chosen = responses.neurons(neurons, images)
        shape = (len(chosen), *images.shape[1:])
        total, squares = images.new_zeros(shape), images.new_zeros(shape)
        kept = []
        with progress("receptive fields", len(images), show=show) as bar:
            for group in images.split(images_at_once):
                gradients = _gradients(responses, group, chosen)  # [M, b, C, H, W]
                total += gradients.sum(1)
                squares += gradients.square().sum(1)
                if components:
                    kept.append(gradients)
                bar.advance(len(group))
    directions, shares = _principal(torch.cat(kept, 1) if kept else total[:, None], components)
    return ReceptiveFields(total / len(images), (squares / len(images)).sqrt(), directions, shares, chosen)


def _gradients(responses: Responses, images: Tensor, neurons: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        features = responses.features(leaf)
        found = []
        for neuron in neurons.split(1):
            rates = responses.read(features, neuron)
            (gradient,) = torch.autograd.grad(rates.sum(), leaf, retain_graph=True)
            found.append(gradient)
    return torch.stack(found) if found else images.new_empty(0, *images.shape)


def _principal(gradients: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """[M, B, C, H, W] -> [M, K, C, H, W], orthonormal, and [M, K], shares of the sum of squares."""
    flat = gradients.flatten(2)
    if number == 0:
        return gradients[:, :0], flat.new_empty(len(flat), 0)
    _, values, directions = torch.linalg.svd(flat, full_matrices=False)
    energy = values.square()
    shares = energy[:, :number] / energy.sum(1, keepdim=True)  # 0 / 0 of a neuron without gradient is NaN
    images = directions[:, :number].reshape(len(flat), number, *gradients.shape[2:])
    return images.masked_fill(shares.isnan()[:, :, None, None, None], torch.nan), shares
