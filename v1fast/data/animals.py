"""Simulated animals: neurons of their own, which read a core population that all animals share.

A rate is not what a point readout computes: a neuron sums extended subfields with features of their own, then a
threshold and a power follow. Rates change from trial to trial with gaze, running and a gain that all neurons share.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft, ndimage, sparse
from torch import Tensor

from v1fast.data.photographs import PHOTOGRAPHS, _float, photograph_crops
from v1fast.data.recording import TIERS, Recording

Floats = NDArray[np.float32]
Noise = Literal["poisson", "gamma"]

# The core.
FREQUENCIES = (0.07, 0.22)  # cycles per pixel
CYCLES_PER_SIGMA = (0.3, 0.55)  # bandwidths of 2.2 to 1.0 octaves at half height
LENGTHS = (1.0, 1.8)  # of a filter along its bars, relative to its width across
RADIUS = 12  # pixels: filters are cut off there
SEMISATURATION = 0.3  # relative to the mean pool
POOL_SIGMA = 5.0  # pixels: extent of the normalisation pool
# Neurons.
MARGIN, SCATTER = 8.0, 1.0  # pixels: from the map to the image's edge; of a neuron about the map
CORTEX_UM = (900.0, 600.0)  # imaged window of cortex
SUBFIELDS = 3  # at most
SUBFIELD_DISTANCE = 4.0  # pixels, standard deviation
EXTENTS = (0.7, 2.2)  # pixels, standard deviation of a subfield's weights
FEATURES = 3  # channels that a subfield reads
MEAN_COUNT, MEAN_COUNT_SPREAD = 0.6, 0.5  # at rest, per image: median over neurons, and deviation of the logarithm
THRESHOLDS, EXPONENTS = (0.0, 0.8), (1.0, 1.3)
BASELINES = (0.1, 0.7)
# Trials.
MAX_GAZE = 4.0  # pixels
RUNNING_SPEED, HALF_SPEED = 12.0, 5.0  # cm/s: scale of speeds, and the speed of half the effect
BOUT = 25.0  # trials: how long an animal goes on running or resting
GAMMA_SHAPE, GAMMA_SCALE = 2.0, 0.6
CALIBRATION_IMAGES = 200
OWN_IDS = 10**6  # ids of images that one session alone was shown begin at a multiple of it
ELEMENTS_AT_ONCE = 2**21  # of images x channels x pixels: bounds the memory, to some 100 MB


@dataclass(frozen=True, eq=False)
class CorePopulation:
    """Simple and complex cells at every pixel, with divisive normalisation; all animals share them.

    A simple cell's drive d is the rectified response of one Gabor filter, a complex cell's the root of the energy of
    a quadrature pair (Adelson & Bergen 1985, J. Opt. Soc. Am. A 2, 284). The response is d^2 / (s^2 + pool), with the
    pool the mean of d^2 over channels, blurred over space (Heeger 1992, Vis. Neurosci. 9, 181; Carandini & Heeger
    2012, Nat. Rev. Neurosci. 13, 51).

    Attributes:
        image_shape: (H, W) in pixels.
        complex: [K], bool, whether a channel is of complex cells.
        orientation: [K], direction of the wave vector in radians, [0, pi): the bars run across it.
        frequency: [K], cycles per pixel.
        sigma: [K], standard deviation of the envelope along the wave vector, in pixels.
        length: [K], that along the bars, relative to ``sigma``.
        phase: [K], of a simple cell's filter, in radians; 0 for complex cells.
        semisaturation: s^2, 0.3 times the mean pool over photographs.
    """

    image_shape: tuple[int, int]
    complex: Tensor
    orientation: Tensor
    frequency: Tensor
    sigma: Tensor
    length: Tensor
    phase: Tensor
    semisaturation: float = 1.0

    def __len__(self) -> int:
        return len(self.orientation)

    def filters(self) -> Tensor:
        """[K, 2, 25, 25]: the filter at ``phase``, and the one a quarter of a cycle on, which complex cells use too.

        Without a mean, of unit norm; the middle is the cell's position, rows are y.
        """
        steps = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float32)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        cos, sin = (f(self.orientation)[:, None, None] for f in (torch.cos, torch.sin))
        along, across = x * cos + y * sin, y * cos - x * sin
        sigma = self.sigma[:, None, None]
        envelope = torch.exp(-(along**2 + (across / self.length[:, None, None]) ** 2) / (2 * sigma**2))
        angle = 2 * math.pi * self.frequency[:, None, None] * along + self.phase[:, None, None]
        pair = torch.stack([angle.cos(), angle.sin()], 1) * envelope[:, None]
        mass = envelope.sum((1, 2))[:, None, None, None]
        pair = pair - envelope[:, None] * (pair.sum((2, 3), keepdim=True) / mass)
        return pair / pair.flatten(2).norm(dim=2)[..., None, None]

    def responses(self, images: Tensor, gaze: Tensor | None = None) -> Tensor:
        """Responses of all channels at all pixels, [B, K, H, W], >= 0.

        Args:
            images: [B, 1, H, W]; beyond their edges is grey, 0.
            gaze: [B, 2], x first, in pixels: what a cell at p sees is the image at p + gaze. None: 0.

        Raises:
            ValueError: for images or gazes of another shape.
        """
        return torch.from_numpy(np.concatenate(list(self._chunks(images, gaze))))

    def _chunks(self, images: Tensor, gaze: Tensor | None) -> Iterator[Floats]:
        """:meth:`responses`, some images at a time."""
        if images.ndim != 4 or images.shape[1:] != (1, *self.image_shape):
            want = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images: want [B, 1, H, W] = (B, 1, {want}), got {tuple(images.shape)}")
        if gaze is not None and gaze.shape != (len(images), 2):
            raise ValueError(f"gaze: want [B, 2] = ({len(images)}, 2), got {tuple(gaze.shape)}")
        step = self._images_at_once
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            squares = self._squares(images[part, 0].numpy(), None if gaze is None else gaze[part].numpy())
            yield squares / (np.float32(self.semisaturation) + self._pool(squares)[:, None])

    def _squares(self, images: Floats, gaze: Floats | None) -> Floats:
        """d^2, [B, K, H, W]."""
        height, width = self.image_shape
        bank, padded = self._spectra
        spectrum = fft.rfft2(images, padded)
        if gaze is not None:
            spectrum = spectrum * _shift(gaze, padded)

        def filtered(filters: Any) -> Floats:
            maps = fft.irfft2(spectrum[:, None] * filters, padded, overwrite_x=True)
            return maps[..., :height, :width]

        first = filtered(bank[:, 0])
        complex_ = self.complex.numpy()
        squares: Floats = np.where(complex_[:, None, None], first, first.clip(min=0)) ** 2
        if complex_.any():
            squares[:, complex_] += filtered(bank[complex_, 1]) ** 2
        return squares

    @property
    def _images_at_once(self) -> int:
        return max(1, ELEMENTS_AT_ONCE // (len(self) * math.prod(self.image_shape)))

    @staticmethod
    def _pool(squares: Floats) -> Floats:
        """[B, H, W]."""
        pool: Floats = ndimage.gaussian_filter(squares.mean(1), (0, POOL_SIGMA, POOL_SIGMA), mode="nearest")
        return pool

    @functools.cached_property
    def _spectra(self) -> tuple[Any, tuple[int, int]]:
        """Conjugate spectra of the filters [K, 2, h, w] on a plane so large that edges do not meet; its shape."""
        room = RADIUS + math.ceil(MAX_GAZE)
        height, width = (fft.next_fast_len(side + room, real=True) for side in self.image_shape)
        planes = np.zeros((len(self), 2, height, width), np.float32)
        side = 2 * RADIUS + 1
        planes[..., :side, :side] = self.filters().numpy()
        return fft.rfft2(np.roll(planes, (-RADIUS, -RADIUS), (2, 3))).conj(), (height, width)


def _shift(gaze: Floats, padded: tuple[int, int]) -> Any:
    """Factors [B, h, w] of spectra that move images by -gaze; between pixels exact for what the filters pass."""
    y, x = fft.fftfreq(padded[0])[:, None], fft.rfftfreq(padded[1])
    cycles = gaze[:, 0, None, None] * x + gaze[:, 1, None, None] * y
    return np.exp(2j * math.pi * cycles).astype(np.complex64)


@dataclass(frozen=True, eq=False)
class Neurons:
    """What the neurons of one recording are.

    drive = sum_s strength_s sum_k features_sk sum_p w_s(p) core_k(p), with w_s Gaussian weights of sum 1 about the
    subfield's centre; rate at rest = scale (baseline + max(drive - threshold, 0)^exponent).

    Attributes:
        unit: [N], int64; the same unit in two sessions of an animal is the same neuron.
        cortex: [N, 2], where they lie in cortex, in micrometres.
        position: [N, 2], x (width) first, in pixels: centre of the receptive field at gaze 0, its subfields' mean.
        centres: [N, 3, 2], of the subfields.
        extents: [N, 3], standard deviations of their weights, in pixels.
        strengths: [N, 3], 0 for those that a neuron lacks; of the first photographs the mean drive is 1.
        features: [N, 3, K], weights of the core's channels, >= 0, sum 1.
        threshold, exponent, baseline: [N].
        scale: [N], expected counts.
        running: [N], relative change of the rate at full speed.
        shared: [N], standard deviation of the logarithm of the shared gain.
    """

    unit: Tensor
    cortex: Tensor
    position: Tensor
    centres: Tensor
    extents: Tensor
    strengths: Tensor
    features: Tensor
    threshold: Tensor
    exponent: Tensor
    baseline: Tensor
    scale: Tensor
    running: Tensor
    shared: Tensor

    def __len__(self) -> int:
        return len(self.unit)

    def __getitem__(self, chosen: Any) -> Neurons:
        """Some of them, by whatever indexes a tensor's first dimension."""
        return Neurons(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))

    def receptive_fields(self, image_shape: tuple[int, int]) -> Tensor:
        """[N, H, W]: weights of space, summed over subfields and channels, relative to their sum over the plane."""
        weights = _spatial(self, image_shape).toarray().reshape(len(self), SUBFIELDS, *image_shape)
        share = self.strengths / self.strengths.sum(1, keepdim=True)
        return torch.einsum("ns,nshw->nhw", share, torch.from_numpy(weights))

    def drive(self, core: CorePopulation, images: Tensor, gaze: Tensor | None = None) -> Tensor:
        """[B, N]; arguments as of :meth:`CorePopulation.responses`."""
        weights = _weights(self, core.image_shape)
        parts = [weights @ chunk.reshape(len(chunk), -1).T for chunk in core._chunks(images, gaze)]
        return torch.from_numpy(np.ascontiguousarray(np.concatenate(parts, 1).T))

    def rates(self, core: CorePopulation, images: Tensor, gaze: Tensor | None = None) -> Tensor:
        """Expected counts [B, N] of an animal at rest."""
        return self._rectified(self.drive(core, images, gaze))

    def _rectified(self, drive: Tensor) -> Tensor:
        power = (drive - self.threshold).clamp(min=0).numpy() ** self.exponent.numpy()
        return self.scale * (self.baseline + torch.from_numpy(power))


@dataclass(frozen=True, eq=False)
class Trials:
    """What was shown, and what came of it; trials are in the order of the session.

    Attributes:
        images: [I, 1, H, W], each of mean 0 and standard deviation 1.
        image_ids: [T], int64, which image a trial showed.
        responses: [T, N].
        rates: [T, N], their expectations given everything else here.
        rates_at_rest: [I, N], those at gaze 0, without running, of a shared gain of 1.
        gain: [T, N], of running and the shared gain together; a rate is this times the one at the trial's gaze.
        gaze: [T, 2], x first, in pixels: a receptive field lies at its position + gaze in the image.
        speed: [T], of running, in cm/s.
        variance: [T, N], of the responses about their rates.
    """

    images: Tensor
    image_ids: Tensor
    responses: Tensor
    rates: Tensor
    rates_at_rest: Tensor
    gain: Tensor
    gaze: Tensor
    speed: Tensor
    variance: Tensor


@dataclass(frozen=True, eq=False)
class SimulatedRecording:
    """One session of one animal; no photograph occurs in two tiers.

    Attributes:
        animal, session: numbers from 0.
        core: the same object in all recordings that were drawn together.
        neurons: those of this session.
        train, validation: images of its own, each shown once.
        test: images that all recordings have in common, repeated.
    """

    animal: int
    session: int
    core: CorePopulation
    neurons: Neurons
    train: Trials
    validation: Trials
    test: Trials

    def to_recording(self, name: str | None = None) -> Recording:
        """What an experimenter would have of it, for writing and training.

        ``behavior`` [T, 1] is the running speed in cm/s. ``pupil_center`` [T, 2] is the gaze as a camera sees it,
        turned, scaled and moved: two numbers in the camera's pixels, which say where the animal looks but not how that
        moves the image. The truth is kept beside it: ``trials["gaze"]`` [T, 2] and, for each neuron, ``position``
        [N, 2] of :class:`Neurons`, in pixels of the image.

        Args:
            name: default "animal<animal>", or "animal<animal>_<session>" of a further session.
        """
        tiers = {tier: getattr(self, tier) for tier in TIERS}
        counts = [len(trials.images) for trials in tiers.values()]
        first = dict(zip(tiers, np.cumsum([0, *counts]).tolist(), strict=False))
        index = np.concatenate([first[tier] + trials.image_ids.numpy() for tier, trials in tiers.items()])
        # Test images are the same in all recordings, and so are their ids.
        own = (1 + 1000 * self.animal + self.session) * OWN_IDS
        ids = np.where(index >= first["test"], index - first["test"], own + index)
        gaze = torch.cat([trials.gaze for trials in tiers.values()])
        units = len(self.neurons)
        who = {"animal_ids": self.animal, "sessions": self.session, "scan_idx": 0}
        return Recording(
            images=torch.cat([trials.images for trials in tiers.values()]),  # type: ignore[arg-type]
            responses=torch.cat([trials.responses for trials in tiers.values()]),  # type: ignore[arg-type]
            image_index=index,
            image_ids=ids,
            tiers=np.repeat(list(tiers), [len(trials.image_ids) for trials in tiers.values()]),
            pupil_center=_camera(self.animal, gaze),  # type: ignore[arg-type]
            behavior=torch.cat([trials.speed for trials in tiers.values()])[:, None],  # type: ignore[arg-type]
            cortex=self.neurons.cortex.numpy(),
            unit_ids=self.neurons.unit.numpy(),
            neurons={"position": self.neurons.position.numpy()}
            | {column: np.full(units, value) for column, value in who.items()},
            trials={"gaze": gaze.numpy()},
            name=name or f"animal{self.animal}" + (f"_{self.session}" if self.session else ""),
        )


def _camera(animal: int, gaze: Tensor) -> Tensor:
    """Pupil positions [T, 2] in pixels of an animal's camera."""
    rng = np.random.default_rng([animal, 4])
    angle, scale = rng.uniform(-1, 1) * math.pi / 8, rng.uniform(2, 3)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return _float(rng.uniform((100, 60), (120, 80))) + scale * (gaze[:, :1] * turn[0] + gaze[:, 1:] * turn[1])


@dataclass(frozen=True)
class _Settings:
    neurons: int
    image_shape: tuple[int, int]
    train: int
    validation: int
    test: int
    repeats: tuple[int, int]
    sessions: int
    matched: int
    noise: Noise
    gaze: float
    running: float
    shared_gain: float
    channels: int
    subfields: int

    def check(self, **others: int) -> None:
        """Raises ValueError for what is out of range."""
        least = {"count": 1, "neurons": 1, "train": 1, "validation": 1, "test": 1, "sessions": 1, "channels": FEATURES}
        least["subfields"] = 1
        least |= {"matched": 0, "gaze": 0, "running": 0, "shared_gain": 0, "seed": 0}
        given = vars(self) | others
        for name, bound in least.items():
            if not (given[name] >= bound and math.isfinite(given[name])):
                raise ValueError(f"{name}: want >= {bound}, got {given[name]}")
        if self.matched > self.neurons:
            raise ValueError(f"matched: want at most neurons = {self.neurons}, got {self.matched}")
        if self.subfields > SUBFIELDS:
            raise ValueError(f"subfields: want at most {SUBFIELDS}, got {self.subfields}")
        if min(self.image_shape) < 20:
            raise ValueError(f"image_shape: want (H, W), both >= 20, got {self.image_shape}")
        if len(self.repeats) != 2 or not 1 <= self.repeats[0] <= self.repeats[1]:
            raise ValueError(f"repeats: want (fewest, most), 1 <= fewest <= most, got {self.repeats}")
        if self.noise not in ("poisson", "gamma"):
            raise ValueError(f"noise: want 'poisson' or 'gamma', got {self.noise!r}")


def simulate_animals(
    count: int = 2,
    neurons: int = 200,
    image_shape: tuple[int, int] = (36, 64),
    *,
    train: int = 1000,
    validation: int = 100,
    test: int = 50,
    repeats: tuple[int, int] = (6, 10),
    sessions: int = 1,
    matched: int = 0,
    noise: Noise = "poisson",
    gaze: float = 0.7,
    running: float = 0.6,
    shared_gain: float = 0.35,
    channels: int = 32,
    subfields: int = SUBFIELDS,
    seed: int = 0,
) -> list[SimulatedRecording]:
    """Draw animals that share a core population, and what they respond to crops of photographs.

    The same arguments give the same recordings, with any number of threads. An animal's neurons lie on a smooth map of
    its own from cortex to the visual field, with scatter.

    Args:
        count: animals, >= 1.
        neurons: N >= 1, in each recording.
        image_shape: (H, W) of a crop, in pixels, both >= 20.
        train, validation: images of either tier, each shown once.
        test: images that are repeated.
        repeats: fewest and most repeats of a test image, drawn for each image and recording.
        sessions: recordings of each animal.
        matched: neurons that all sessions of an animal have in common; the first of every session.
        noise: "poisson" counts; or "gamma", of deconvolved calcium signals (Wei et al. 2019, doi:10.1101/637652):
            zero with a probability exp(-rate / 0.6), a gamma variable of shape 2 else.
        gaze: standard deviation in pixels; no gaze is farther than 4 from the middle in x or y.
        running: mean of the relative change of rates at full speed; most rates more than double by running in
            mouse V1 (Niell & Stryker 2010, Neuron 65, 472). 0: none.
        shared_gain: mean over neurons of the deviation of the logarithm of the gain that they share (Goris et al.
            2014, Nat. Neurosci. 17, 858; Ecker et al. 2014, doi:10.1016/j.neuron.2014.02.006).
        channels: K of the core, >= 3, half of them of complex cells.
        subfields: of a neuron, at most; 1 to 3. With 1, its position is where it reads, and a point readout can find
            it; the mean of several subfields is no place that a neuron reads.
        seed: of everything random here, >= 0.

    Returns:
        All sessions of the first animal, then those of the next.

    Raises:
        ValueError: for an argument out of range.
        ModuleNotFoundError: without scikit-image, which brings the photographs.
    """
    settings = _Settings(
        neurons, image_shape, train, validation, test, repeats, sessions, matched, noise, gaze, running, shared_gain,
        channels, subfields,
    )  # fmt: skip
    settings.check(count=count, seed=seed)
    rng = np.random.default_rng([seed, 0])
    known = photograph_crops(PHOTOGRAPHS["train"], CALIBRATION_IMAGES, image_shape, rng)
    core = _draw_core(channels, image_shape, known, rng)
    tested = photograph_crops(PHOTOGRAPHS["test"], test, image_shape, np.random.default_rng([seed, 1]))
    recordings = []
    for animal in range(count):
        pool = _draw_neurons(settings, core, known, np.random.default_rng([seed, 2, animal]))
        for session in range(sessions):
            own = neurons - matched
            first = matched + session * own
            chosen = torch.cat([torch.arange(matched), torch.arange(first, first + own)])
            draw = np.random.default_rng([seed, 3, animal, session])
            recordings.append(_record(settings, animal, session, core, pool[chosen], tested, draw))
    return recordings


def retinotopy(place: NDArray[Any]) -> NDArray[Any]:
    """Smooth map from the square of cortex to the square of the visual field, both [-1, 1]^2; [N, 2] to [N, 2].

    Bent, and mirror-reversed as V1's is, so that no readout gets it right by copying its input.
    """
    u, v = place.T
    return np.stack([0.9 * u + 0.1 * u * v, -0.85 * v + 0.15 * u**2], axis=1)


def _draw_core(channels: int, image_shape: tuple[int, int], known: Tensor, rng: np.random.Generator) -> CorePopulation:
    """Orientations are spread evenly, with jitter, in both kinds of cells."""
    is_complex = np.arange(channels) % 2 == 0
    pairs = (channels + 1) // 2
    orientation = (np.arange(channels) // 2 + rng.uniform(-0.4, 0.4, channels)) * math.pi / pairs
    frequency = _log_uniform(rng, FREQUENCIES, channels)
    core = CorePopulation(
        image_shape=image_shape,
        complex=torch.from_numpy(is_complex),
        orientation=_float(orientation % math.pi),
        frequency=_float(frequency),
        sigma=_float(rng.uniform(*CYCLES_PER_SIGMA, channels) / frequency),
        length=_float(rng.uniform(*LENGTHS, channels)),
        phase=_float(np.where(is_complex, 0, rng.uniform(0, 2 * math.pi, channels))),
    )
    pool = [core._pool(core._squares(part.numpy(), None)) for part in known[:, 0].split(core._images_at_once)]
    return dataclasses.replace(core, semisaturation=SEMISATURATION * float(np.concatenate(pool).mean()))


def _draw_neurons(settings: _Settings, core: CorePopulation, known: Tensor, rng: np.random.Generator) -> Neurons:
    """All neurons of one animal, each calibrated so that its mean rate over ``known`` is what was drawn for it."""
    number = settings.matched + settings.sessions * (settings.neurons - settings.matched)
    place = rng.uniform(-1, 1, (number, 2))
    position = _positions(place, settings.image_shape, rng)
    strengths, offsets = _subfields(number, settings.subfields, rng)
    weight = rng.gamma(4, settings.running / 4, number)
    drawn = Neurons(
        unit=torch.arange(number),
        cortex=_float((place + 1) / 2 * CORTEX_UM),
        position=_float(position),
        centres=_float(position[:, None] + offsets),
        extents=_float(rng.uniform(*EXTENTS, (number, SUBFIELDS))),
        strengths=_float(strengths),
        features=_float(_features(core, number, rng)),
        threshold=_float(rng.uniform(*THRESHOLDS, number)),
        exponent=_float(rng.uniform(*EXPONENTS, number)),
        baseline=_float(rng.uniform(*BASELINES, number)),
        scale=torch.ones(number),
        running=_float(weight.clip(max=3)),
        shared=_float(settings.shared_gain * rng.uniform(0.5, 1.5, number)),
    )
    drive = drawn.drive(core, known)
    mean = drive.mean(0)
    rates = drawn._rectified(drive / mean)
    wanted = MEAN_COUNT * np.exp(MEAN_COUNT_SPREAD * rng.standard_normal(number).clip(-2.5, 2.5))
    return dataclasses.replace(drawn, strengths=drawn.strengths / mean[:, None], scale=_float(wanted) / rates.mean(0))


def _positions(place: NDArray[Any], image_shape: tuple[int, int], rng: np.random.Generator) -> NDArray[Any]:
    """The animal's own map: the common one, turned by up to 10 degrees and moved by up to 1.5 pixels, and scatter."""
    size = np.array(image_shape[::-1])
    angle = rng.uniform(-1, 1) * math.pi / 18
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    scatter = (SCATTER * rng.standard_normal(place.shape)).clip(-3 * SCATTER, 3 * SCATTER)
    middle = size / 2 - 0.5 + rng.uniform(-1.5, 1.5, 2)
    turned = np.einsum("nd,de->ne", 0.9 * place, turn)  # not by BLAS, whose sums depend on its threads
    moved: NDArray[Any] = middle + (size / 2 - 0.5 - MARGIN) * retinotopy(turned) + scatter
    return moved


def _subfields(number: int, most: int, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """Strengths [N, 3] of sum 1, 1 to ``most`` of them > 0; offsets [N, 3, 2] in pixels of weighted mean 0."""
    strengths = rng.uniform(0.4, 1, (number, SUBFIELDS))
    strengths[np.arange(SUBFIELDS) >= rng.integers(1, most + 1, number)[:, None]] = 0
    strengths /= strengths.sum(1, keepdims=True)
    offsets = (SUBFIELD_DISTANCE * rng.standard_normal((number, SUBFIELDS, 2))).clip(-8, 8)
    return strengths, offsets - np.einsum("ns,nsd->nd", strengths, offsets)[:, None]


def _features(core: CorePopulation, number: int, rng: np.random.Generator) -> NDArray[Any]:
    """[N, 3, K]: the channels next to what a subfield prefers, about the same in all subfields of a neuron."""
    orientation = rng.uniform(0, math.pi, (number, 1)) + 0.25 * rng.standard_normal((number, SUBFIELDS))
    octaves = np.log(_log_uniform(rng, FREQUENCIES, (number, 1)) / core.frequency.numpy())[:, None]
    is_complex = rng.random((number, 1, 1)) < 0.6
    near = 2 * np.cos(2 * (orientation[..., None] - core.orientation.numpy())) - octaves**2 / 0.18
    near = near - 1.5 * (is_complex != core.complex.numpy()) + 0.3 * rng.standard_normal(near.shape)
    worst = np.sort(near, 2)[..., -FEATURES, None]
    weights = np.where(near >= worst, np.exp(near - near.max(2, keepdims=True)), 0)
    shares: NDArray[Any] = weights / weights.sum(2, keepdims=True)
    return shares


def _record(
    settings: _Settings,
    animal: int,
    session: int,
    core: CorePopulation,
    neurons: Neurons,
    tested: Tensor,
    rng: np.random.Generator,
) -> SimulatedRecording:
    def shown(tier: str, count: int) -> Trials:
        images = photograph_crops(PHOTOGRAPHS[tier], count, settings.image_shape, rng)
        return _trials(settings, core, neurons, images, np.arange(count), rng)

    train, validation = shown("train", settings.train), shown("validation", settings.validation)
    fewest, most = settings.repeats
    ids = np.repeat(np.arange(len(tested)), rng.integers(fewest, most + 1, len(tested)))
    test = _trials(settings, core, neurons, tested, rng.permutation(ids), rng)
    return SimulatedRecording(animal, session, core, neurons, train, validation, test)


def _trials(
    settings: _Settings,
    core: CorePopulation,
    neurons: Neurons,
    images: Tensor,
    ids: NDArray[np.int64],
    rng: np.random.Generator,
) -> Trials:
    image_ids = torch.from_numpy(ids)
    gaze = _float((settings.gaze * rng.standard_normal((len(ids), 2))).clip(-MAX_GAZE, MAX_GAZE))
    speed = RUNNING_SPEED * _slow(len(ids), rng).clip(min=0)
    effect = (speed / (speed + HALF_SPEED))[:, None]
    log_gain = rng.standard_normal((len(ids), 1)) * neurons.shared.numpy() - neurons.shared.numpy() ** 2 / 2
    gain = _float((1 + neurons.running.numpy() * effect) * np.exp(log_gain))
    at_rest = neurons.rates(core, images)
    seen = neurons.rates(core, images[image_ids], gaze) if settings.gaze else at_rest[image_ids]
    rates = gain * seen
    return Trials(
        images=images,
        image_ids=image_ids,
        responses=_respond(rates.numpy(), settings.noise, rng),
        rates=rates,
        rates_at_rest=at_rest,
        gain=gain,
        gaze=gaze,
        speed=_float(speed),
        variance=_variance(rates, settings.noise),
    )


def _respond(rates: Floats, noise: Noise, rng: np.random.Generator) -> Tensor:
    if noise == "poisson":
        return _float(rng.poisson(rates))
    active = -np.expm1(-rates / GAMMA_SCALE)
    amplitude = rng.gamma(GAMMA_SHAPE, rates / active / GAMMA_SHAPE)
    return _float(np.where(rng.random(rates.shape) < active, amplitude, 0))


def _variance(rates: Tensor, noise: Noise) -> Tensor:
    if noise == "poisson":
        return rates.clone()
    return rates**2 * ((1 + 1 / GAMMA_SHAPE) / -torch.expm1(-rates / GAMMA_SCALE) - 1)


def _slow(trials: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Stationary autoregressive noise [T] of variance 1 that forgets within BOUT trials."""
    keep = math.exp(-1 / BOUT)
    values = rng.standard_normal(trials)
    for t in range(1, trials):
        values[t] = keep * values[t - 1] + math.sqrt(1 - keep**2) * values[t]
    return values


def _spatial(neurons: Neurons, image_shape: tuple[int, int]) -> Any:
    """Sparse [N * 3, H * W]: a subfield's Gaussian weights, of sum 1 over the plane, cut off at 3 deviations."""
    height, width = image_shape
    reach = math.ceil(3 * EXTENTS[1])
    steps = np.arange(-reach, reach + 1)
    centres, extents = neurons.centres.numpy().reshape(-1, 2), neurons.extents.numpy().reshape(-1, 1)
    pixels = np.rint(centres)[:, :, None] + steps  # [N * 3, 2, steps]
    profile = np.exp(-((pixels - centres[..., None]) ** 2) / (2 * extents[..., None] ** 2))
    profile[np.abs(pixels - centres[..., None]) > 3 * extents[..., None]] = 0
    profile /= profile.sum(2, keepdims=True)
    inside = (pixels >= 0) & (pixels < np.array([[width], [height]]))
    x, y = np.where(inside, profile, 0).transpose(1, 0, 2)
    index = pixels.clip(0, [[width - 1], [height - 1]]).astype(np.int64)
    columns = index[:, 1, :, None] * width + index[:, 0, None, :]
    rows = np.broadcast_to(np.arange(len(centres))[:, None, None], columns.shape)
    weights = (y[:, :, None] * x[:, None, :]).astype(np.float32)
    used = weights > 0
    return sparse.csr_array((weights[used], (rows[used], columns[used])), (len(centres), height * width))


def _weights(neurons: Neurons, image_shape: tuple[int, int]) -> Any:
    """Sparse [N, K * H * W]: what a neuron sums."""
    space = _spatial(neurons, image_shape)
    pixels = math.prod(image_shape)
    channels = neurons.features.shape[2]
    read = (neurons.features * neurons.strengths[..., None]).numpy().reshape(-1, channels)
    subfield, channel = np.nonzero(read)
    chosen = space[subfield].tocoo()  # a subfield's weights once for each channel that it reads
    values = chosen.data * read[subfield, channel][chosen.row]
    rows, columns = subfield[chosen.row] // SUBFIELDS, channel[chosen.row] * pixels + chosen.col
    return sparse.csr_array((values, (rows, columns)), (len(neurons), channels * pixels))


def _log_uniform(rng: np.random.Generator, ends: tuple[float, float], shape: Any) -> NDArray[np.float64]:
    return np.exp(rng.uniform(math.log(ends[0]), math.log(ends[1]), shape))
