"""Most exciting inputs: the images to which a model's neurons respond most."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from v1fast._progress import progress
from v1fast.insilico._responses import Responses, standing_still

FIRST_STEP, LAST_STEP = 0.3, 0.005  # of the norm


@dataclass(frozen=True, eq=False)
class ExcitingInputs:
    """The image to which each neuron responds most, among those that the constraints allow.

    Attributes:
        images: [M, C, H, W]; NaN for a neuron whose rate does not depend on the image at any of the noise images tried.
        rates: [M], the model's rates there; NaN likewise.
        background_rates: [M], at the background alone.
        neurons: [M], indices of the neurons.
        history: [steps + 1, M], the rates at the start and after each step.
        norm, value_range, background: the constraints.
    """

    images: Tensor
    rates: Tensor
    background_rates: Tensor
    neurons: Tensor
    history: Tensor
    norm: float | None
    value_range: tuple[float, float] | None
    background: float

    @property
    def undefined(self) -> int:
        """How many neurons have no such image."""
        return int(self.rates.isnan().sum())

    def __repr__(self) -> str:
        """Sizes and constraints, in one line."""
        size = " x ".join(map(str, self.images.shape[1:]))
        undefined = f", {self.undefined} undefined" if self.undefined else ""
        limits = f"norm {self.norm}, range {self.value_range}"
        return f"ExcitingInputs of {len(self.rates)} neurons: {size}, {limits}{undefined}"


def most_exciting_inputs(
    model: nn.Module,
    image_shape: tuple[int, int] | tuple[int, int, int],
    neurons: Any = None,
    *,
    norm: float | None = None,
    value_range: tuple[float, float] | None = None,
    background: float = 0.0,
    steps: int = 300,
    restarts: int = 1,
    blur: float = 0.0,
    data_key: str | None = None,
    behavior: Tensor | None = None,
    pupil_center: Tensor | None = None,
    channels: Tensor | None = None,
    seed: int = 0,
    images_at_once: int = 128,
    show: bool = False,
) -> ExcitingInputs:
    """Find the most exciting input of each neuron by gradient ascent (Walker et al. 2019, Nat. Neurosci. 22, 2060).

    An image starts as noise; where the neuron has no gradient, as other noise. Each step moves it along its gradient by
    a fraction of ``norm`` that falls from 0.3 to 0.005 over the steps, scales what differs from the background to
    ``norm``, and clips the pixels to ``value_range``. Neurons are worked on side by side, an image for each. The model
    stands in evaluation mode; its parameters, their ``requires_grad`` and its mode are left as they were.

    Args:
        model: an encoder; or any module that makes rates [B, N] of images [B, C, H, W].
        image_shape: (H, W) of grey images, or (C, H, W).
        neurons: indices or a mask; None takes all.
        norm: of the image minus the background (the root of the sum of squares over pixels and channels), > 0, in the
            units that the model takes. After clipping it may be smaller.
        value_range: (lowest, highest) pixel, with the background between them. One of the two constraints is needed.
        background: pixel value of grey; 0 for images normalised to mean 0.
        steps: of the ascent, >= 1.
        restarts: how many noise images each neuron starts from; the best is kept.
        blur: standard deviation in pixels of a Gaussian that smooths the gradient; 0 leaves it as it is.
        data_key: session, for encoders; may be None if there is only one.
        behavior, pupil_center: [K] and [2], the animal's state, for models with a modulator or a shifter.
        channels: [K], for models of images with further channels of one value each, such as behaviour: these values.
            They follow the image's own.
        seed: of the noise. A neuron's noise does not depend on which others are asked for.
        images_at_once: bounds the memory.
        show: show progress.

    Returns:
        On the model's device.

    Raises:
        ValueError: an argument out of range, or no constraint.
        IndexError: there is no such neuron.

    >>> import torch
    >>> linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3, bias=False))
    >>> found = most_exciting_inputs(linear, (8, 8), norm=1.0, steps=100)
    >>> wanted = linear[1].weight / linear[1].weight.norm(dim=1, keepdim=True)
    >>> bool(((found.images.flatten(1) * wanted).sum(1) > 0.999).all())
    True
    """
    shape = (1, *image_shape) if len(image_shape) == 2 else tuple(image_shape)
    _check(norm, value_range, background, steps=steps, restarts=restarts, images_at_once=images_at_once)
    if not math.isfinite(blur) or blur < 0:
        raise ValueError(f"blur: want pixels >= 0, got {blur}")
    device = _device(model)
    grey = torch.full((1, *shape), background, device=device)
    responses = Responses(model, data_key, behavior, pupil_center, channels)
    ascent = _Ascent(responses, norm, value_range, background, steps, blur)
    with standing_still(model):
        chosen = responses.neurons(neurons, grey)
        with torch.no_grad():
            at_rest = responses.read(responses.features(grey), chosen)[0]
        images, history = [], []
        with progress("most exciting inputs", len(chosen), show=show) as bar:
            for group in chosen.split(images_at_once):
                found, rates = ascent.best(group, shape, restarts, seed)
                images.append(found)
                history.append(rates)
                bar.advance(len(group))
    rates = torch.cat(history, 1) if history else grey.new_empty(steps + 1, 0)
    made = torch.cat(images) if images else grey[:0]
    return ExcitingInputs(made, rates[-1], at_rest, chosen, rates, norm, value_range, background)


@dataclass
class _Ascent:
    responses: Responses
    norm: float | None
    value_range: tuple[float, float] | None
    background: float
    steps: int
    blur: float

    def best(self, neurons: Tensor, shape: tuple[int, ...], restarts: int, seed: int) -> tuple[Tensor, Tensor]:
        """The best of the restarts: images [M, C, H, W] and their rates [steps + 1, M]."""
        found = [self._climb(neurons, shape, (seed, start)) for start in range(restarts)]
        images, rates = (torch.stack(parts) for parts in zip(*found, strict=True))
        last = rates[:, -1].nan_to_num(nan=-torch.inf)  # [restarts, M]
        best, columns = last.argmax(0), torch.arange(len(neurons), device=neurons.device)
        return images[best, columns], rates[best, :, columns].T

    def _climb(self, neurons: Tensor, shape: tuple[int, ...], seed: tuple[int, int]) -> tuple[Tensor, Tensor]:
        images = self._noise(neurons, shape, seed, 0)
        rates, moved = [], torch.zeros(len(neurons), dtype=torch.bool, device=images.device)
        for step in range(self.steps):
            size = FIRST_STEP * (LAST_STEP / FIRST_STEP) ** (step / max(self.steps - 1, 1))
            rate, gradient = self._gradient(neurons, images)
            rates.append(rate)
            length = _norms(gradient)
            moved |= (length > 0).flatten()
            unit = gradient / length.clamp(min=torch.finfo(length.dtype).tiny)
            images = self._allowed(images + size * self._radius(images) * unit)
            if not moved.all():  # a rectified neuron is silent, and without a gradient, at a half of all noise images
                images[~moved] = self._noise(neurons[~moved], shape, seed, step + 1)
        with torch.no_grad():
            rates.append(self._diagonal(neurons, images))
        history = torch.stack(rates)
        return images.masked_fill(~moved[:, None, None, None], torch.nan), history.masked_fill(~moved, torch.nan)

    def _gradient(self, neurons: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            rates = self._diagonal(neurons, leaf)
            (gradient,) = torch.autograd.grad(rates.sum(), leaf)
        return rates.detach(), _blurred(gradient, self.blur)

    def _diagonal(self, neurons: Tensor, images: Tensor) -> Tensor:
        """Each image's rate of its own neuron, [M]."""
        return self.responses.read(self.responses.features(images), neurons).diagonal()

    def _noise(self, neurons: Tensor, shape: tuple[int, ...], seed: tuple[int, int], step: int) -> Tensor:
        generator = torch.Generator()
        noise = []
        for neuron in neurons.tolist():
            state = np.random.SeedSequence((*seed, step, neuron)).generate_state(1)
            noise.append(torch.randn(shape, generator=generator.manual_seed(int(state[0]))))
        made = torch.stack(noise).to(neurons.device)
        scale = 1.0 if self.norm is not None else 0.1
        return self._allowed(self.background + scale * self._radius(made) * made / _norms(made))

    def _allowed(self, images: Tensor) -> Tensor:
        if self.norm is not None:
            contrast = images - self.background
            images = self.background + contrast * (self.norm / _norms(contrast).clamp(min=1e-30))
        return images if self.value_range is None else images.clamp(*self.value_range)

    def _radius(self, images: Tensor) -> float:
        """The unit of steps: the norm; or, where none is given, that of an image which uses a half of the range."""
        if self.norm is not None:
            return self.norm
        assert self.value_range is not None
        low, high = self.value_range
        return (high - low) / 2 * math.sqrt(images[0].numel())


def _norms(images: Tensor) -> Tensor:
    return images.flatten(1).norm(dim=1)[:, None, None, None]


def _blurred(images: Tensor, sigma: float) -> Tensor:
    if sigma == 0:
        return images
    reach = math.ceil(3 * sigma)
    steps = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-(steps**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    channels = images.shape[1]
    for kernel, padding in ((weights[:, None], (reach, 0)), (weights[None, :], (0, reach))):
        images = nn.functional.conv2d(images, kernel.expand(channels, 1, -1, -1), padding=padding, groups=channels)
    return images


def _device(model: nn.Module) -> torch.device:
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def _check(norm: float | None, value_range: tuple[float, float] | None, background: float, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}: want >= 1, got {value}")
    if norm is None and value_range is None:
        raise ValueError("norm, value_range: want at least one of them, or images grow without end")
    if norm is not None and not 0 < norm < math.inf:
        raise ValueError(f"norm: want > 0, got {norm}")
    if value_range is not None and not value_range[0] <= background <= value_range[1]:
        raise ValueError(f"value_range: want lowest <= background ({background}) <= highest, got {value_range}")
