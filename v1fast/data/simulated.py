"""A simulated V1 population: Gabor cells on a retinotopic map, with Poisson responses to photographs.

A recording never tells where a neuron's receptive field truly is, nor its rate without noise; this does. It is the
ground truth for whatever claims to recover them. :func:`simulate` draws one population, kept simple;
:func:`simulate_animals` several animals, with more of what makes real recordings hard.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from v1fast.data.animals import CorePopulation, Neurons, SimulatedRecording, Trials, retinotopy, simulate_animals
from v1fast.data.photographs import PHOTOGRAPHS, _float, photograph_crops
from v1fast.data.photographs import _photograph as _photograph
from v1fast.data.recording import TIERS, Recording
from v1fast.data.repeats import Statistics, response_statistics, statistics

__all__ = [
    "PHOTOGRAPHS",
    "CorePopulation",
    "Neurons",
    "Population",
    "SimulatedRecording",
    "Simulation",
    "Statistics",
    "Tier",
    "Trials",
    "photograph_crops",
    "response_statistics",
    "simulate",
    "simulate_animals",
    "statistics",
]

MARGIN = 8.0  # pixels between the mapped field and the image's edge
SCATTER = 1.0  # pixels, standard deviation of a receptive field about the smooth map
CORTEX_UM = (900.0, 600.0)  # imaged window of cortex
FREQUENCIES = (0.12, 0.22)  # cycles per pixel
CYCLES_PER_SIGMA = 0.4  # a half-height bandwidth of 1.5 octaves
MEAN_COUNTS = (1.0, 2.0)  # expected spikes per image
NEURONS_AT_ONCE = 512  # bounds the filter bank in memory: 512 pairs of 36 x 64 filters are 9 MiB


@dataclasses.dataclass(frozen=True)
class Population:
    """Complex cells by the energy model (Adelson & Bergen 1985, J. Opt. Soc. Am. A 2, 284), and simple cells.

    A cell's energy is the summed square of a quadrature pair of Gabor filters, and its expected spike count is
    proportional to the square root of it: the response grows linearly with contrast and ignores phase. That of a simple
    cell is proportional to the response of its first filter alone, where that is positive.

    Attributes:
        image_shape: (H, W) of the images, in pixels.
        cortex: [N, 2], where the cells lie in cortex, in micrometres.
        position: [N, 2], receptive-field centres, x (width) first, in pixels; (0, 0) is the first pixel's centre.
        orientation: [N], direction of the filter's wave vector, in radians, [0, pi): the bars run across it.
        frequency: [N], in cycles per pixel.
        sigma: [N], standard deviation of the round Gaussian envelope, in pixels.
        gain: [N], expected spikes per image for a root energy, or a simple cell's response, of 1.
        phase: [N], of a simple cell's filter at the centre, in radians; None: 0.
        simple: [N], bool, which cells are simple; None: none is.
    """

    image_shape: tuple[int, int]
    cortex: Tensor
    position: Tensor
    orientation: Tensor
    frequency: Tensor
    sigma: Tensor
    gain: Tensor
    phase: Tensor | None = None
    simple: Tensor | None = None

    def __len__(self) -> int:
        return len(self.position)

    def filters(self, cells: slice = slice(None)) -> Tensor:
        """The quadrature pairs, each filter without a mean (blind to luminance) and of unit norm.

        Returns:
            [2, n, H, W]: the filter at ``phase`` of the ``n`` cells chosen by ``cells``, and the one a quarter of a
            cycle on.
        """
        height, width = self.image_shape
        x = torch.arange(width) - self.position[cells, 0, None]
        y = torch.arange(height) - self.position[cells, 1, None]
        # [n, H, W] from [n, 1, W] and [n, H, 1]
        x, y = x[:, None, :], y[:, :, None]
        sigma, frequency, orientation = (v[cells, None, None] for v in (self.sigma, self.frequency, self.orientation))
        envelope = torch.exp(-(x**2 + y**2) / (2 * sigma**2))
        phase = 2 * math.pi * frequency * (x * orientation.cos() + y * orientation.sin())
        if self.phase is not None:
            phase = phase + self.phase[cells, None, None]
        pair = torch.stack([phase.cos(), phase.sin()]) * envelope
        # Taken from under the envelope, so that a filter stays zero outside of it.
        # A field so far outside of the image that nothing of it is left has filters of zeros.
        tiny = torch.finfo(pair.dtype).tiny
        mass = envelope.sum((-2, -1), keepdim=True).clamp(min=tiny)
        pair = pair - envelope * (pair.sum((-2, -1), keepdim=True) / mass)
        return pair / pair.flatten(2).norm(dim=2).clamp(min=tiny)[..., None, None]

    def energy(self, images: Tensor) -> Tensor:
        """Summed square of both filters' responses.

        Args:
            images: [B, 1, H, W], H and W as in ``image_shape``.

        Returns:
            [B, N], >= 0.

        Raises:
            ValueError: for images of another shape.
        """
        return torch.cat([first.square() + second.square() for first, second in self._filtered(images)], dim=1)

    def _filtered(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Responses [B, n] of both filters, cells in groups."""
        if images.ndim != 4 or images.shape[1:] != (1, *self.image_shape):
            raise ValueError(f"images: want [B, 1, H, W] = (B, 1, {_shape(self.image_shape)}), got {_got(images)}")
        flat = images.flatten(1)
        for start in range(0, len(self), NEURONS_AT_ONCE):
            first, second = self.filters(slice(start, start + NEURONS_AT_ONCE)).flatten(2).to(flat)
            yield flat @ first.T, flat @ second.T

    def rates(self, images: Tensor) -> Tensor:
        """Expected spike counts, [B, N], for images [B, 1, H, W]."""
        if self.simple is None:
            return self.gain * self.energy(images).sqrt()
        first, second = (torch.cat(parts, dim=1) for parts in zip(*self._filtered(images), strict=True))
        return self.gain * torch.where(self.simple, first.relu(), torch.hypot(first, second))


@dataclasses.dataclass(frozen=True)
class Tier:
    """Images and the responses to them.

    Attributes:
        images: [T, 1, H, W], each of mean 0 and standard deviation 1.
        rates: [T, N], expected spike counts.
        responses: [R, T, N], Poisson counts, R repeats of every image.
    """

    images: Tensor
    rates: Tensor
    responses: Tensor


@dataclasses.dataclass(frozen=True)
class Simulation:
    """A population and its responses; no photograph occurs in two tiers."""

    population: Population
    train: Tier
    validation: Tier
    test: Tier

    def to_recording(self, name: str = "simulated") -> Recording:
        """What an experimenter would have of it, for writing and training.

        Each neuron's true ``position`` [N, 2] is kept beside it, in pixels of the image, and its ``orientation``.
        """
        tiers = {tier: getattr(self, tier) for tier in TIERS}
        first = dict(zip(tiers, np.cumsum([0, *(len(shown.images) for shown in tiers.values())]), strict=False))
        shape = {tier: tuple(shown.responses.shape[:2]) for tier, shown in tiers.items()}
        index = [first[tier] + np.tile(np.arange(count), repeats) for tier, (repeats, count) in shape.items()]
        truth = {field: getattr(self.population, field).numpy() for field in ("position", "orientation")}
        return Recording(
            images=torch.cat([shown.images for shown in tiers.values()]),  # type: ignore[arg-type]
            responses=torch.cat([shown.responses.flatten(0, 1) for shown in tiers.values()]),  # type: ignore[arg-type]
            image_index=np.concatenate(index),
            tiers=np.repeat(list(tiers), [len(part) for part in index]),
            cortex=self.population.cortex.numpy(),
            neurons=truth,
            name=name,
        )


def simulate(
    neurons: int = 800,
    image_shape: tuple[int, int] = (36, 64),
    *,
    train: int = 2000,
    validation: int = 200,
    test: int = 200,
    repeats: int = 10,
    simple: float = 0.0,
    seed: int = 0,
) -> Simulation:
    """Draw a population and its responses to crops of photographs.

    The same arguments give the same simulation.

    Args:
        neurons: N >= 1.
        image_shape: (H, W) of a crop, in pixels, both >= 20.
        train, validation: number of crops of either tier, each shown once.
        test: number of test crops, shown ``repeats`` times.
        repeats: R >= 1.
        simple: share of simple cells, 0 to 1; the others are complex.
        seed: of everything random here, >= 0.

    Raises:
        ValueError: for an argument out of range.
        ModuleNotFoundError: without scikit-image, which brings the photographs.

    >>> data = simulate(neurons=5, image_shape=(24, 32), train=20, validation=5, test=5, repeats=3)
    >>> data.test.responses.shape  # repeats, images, neurons
    torch.Size([3, 5, 5])
    >>> len(data.to_recording())  # trials of all tiers
    40
    """
    counts = {"neurons": neurons, "train": train, "validation": validation, "test": test, "repeats": repeats}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}: want >= 1, got {value}")
    if not 0 <= simple <= 1:
        raise ValueError(f"simple: want a share, 0 to 1, got {simple}")
    rng = np.random.default_rng(seed)
    population = _draw_population(neurons, image_shape, rng)
    if simple > 0:
        population = _with_simple_cells(population, simple, np.random.default_rng((seed, 1)))
    shown = {"train": train, "validation": validation, "test": test}
    images = {name: photograph_crops(PHOTOGRAPHS[name], count, image_shape, rng) for name, count in shown.items()}
    mean_amplitude = population.rates(images["train"]).mean(0)
    wanted = _float(rng.uniform(*MEAN_COUNTS, neurons))
    population = dataclasses.replace(population, gain=wanted / mean_amplitude)

    def respond(name: str, times: int = 1) -> Tier:
        rates = population.rates(images[name])
        return Tier(images[name], rates, _float(rng.poisson(rates.numpy(), (times, *rates.shape))))

    return Simulation(population, respond("train"), respond("validation"), respond("test", repeats))


def _draw_population(neurons: int, image_shape: tuple[int, int], rng: np.random.Generator) -> Population:
    height, width = image_shape
    if min(image_shape) < 20:
        raise ValueError(f"image_shape: want (H, W), both >= 20, got {image_shape}")
    place = rng.uniform(-1, 1, (neurons, 2))
    half_field = np.array([width, height]) / 2 - 0.5 - MARGIN
    centre = np.array([width, height]) / 2 - 0.5
    scatter = (SCATTER * rng.standard_normal((neurons, 2))).clip(-3 * SCATTER, 3 * SCATTER)
    frequency = np.exp(rng.uniform(math.log(FREQUENCIES[0]), math.log(FREQUENCIES[1]), neurons))
    return Population(
        image_shape=(height, width),
        cortex=_float((place + 1) / 2 * CORTEX_UM),
        position=_float(centre + half_field * retinotopy(place) + scatter),
        orientation=_float(rng.uniform(0, math.pi, neurons)),
        frequency=_float(frequency),
        sigma=_float(CYCLES_PER_SIGMA / frequency),
        gain=torch.ones(neurons),
    )


def _with_simple_cells(population: Population, share: float, rng: np.random.Generator) -> Population:
    count = len(population)
    simple = torch.zeros(count, dtype=torch.bool)
    simple[torch.from_numpy(rng.permutation(count)[: round(share * count)])] = True
    return dataclasses.replace(population, phase=_float(rng.uniform(0, 2 * math.pi, count)), simple=simple)


def _shape(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _got(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
