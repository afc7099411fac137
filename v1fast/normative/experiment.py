"""``v1fast normative``: which task makes a network's representation most like that of V1?"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from v1fast import _choices, functional, rsa
from v1fast._progress import Bar, progress
from v1fast.data import gratings
from v1fast.data.stringer import binned
from v1fast.decoding import Population
from v1fast.normative.encoding import Encoded, encoding_images, fit_encoding
from v1fast.normative.networks import CNN, FC, ConvFC, ConvPoolFC, OrientationNet
from v1fast.normative.tasks import TASKS, fourier, make_task
from v1fast.normative.training import Trained, train, train_on_tilt

Floats = NDArray[np.float64]
NETWORKS = ("CNN", "FC", "ConvFC", "ConvPoolFC")
ENCODING_BIN = 6.0  # degrees
FEWEST = 8  # orientations
CEILING_SPLITS = 20


@dataclasses.dataclass(frozen=True)
class NormativeSettings:
    """What is trained and compared.

    Attributes:
        seed: of the network that is drawn; others follow it.
        seeds: networks of each task.
        tasks: names in ``TASKS``; tilt is always there.
        encoding: whether an encoding model is fitted to some of the neurons, ``encoding_neurons`` or half; all is then
            compared with the others.
        filters, size: of the convolution.
        image_shape: (H, W) of the networks' images.
        patch: whether gratings are patches.
        bin_degrees: width of the bins of orientations across whose stimuli matrices are cross-validated.
        epochs, images: of the training.
    """

    seed: int = 12
    seeds: int = 2
    tasks: tuple[str, ...] = ("tilt", "orientation", "rotation", "objects")
    encoding: bool = True
    encoding_neurons: int = 2000
    filters: int = 6
    size: int = 7
    image_shape: tuple[int, int] = (48, 64)
    patch: bool = False
    bin_degrees: float = 6.0
    epochs: int = 25
    images: int = 1000

    def __post_init__(self) -> None:
        for name in ("seeds", "epochs", "images", "encoding_neurons"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: want >= 1, got {getattr(self, name)}")
        for task in self.tasks:
            _choices.one_of("tasks", task, TASKS)
        if not self.bin_degrees > 0:
            raise ValueError(f"bin_degrees: want > 0, got {self.bin_degrees}")


@dataclasses.dataclass(frozen=True)
class V1:
    """The part of a population that the networks are compared with: directions up to 180, minus 90.

    Attributes:
        name: of the recording.
        degrees: [S], -90 to 90; negative is tilted to the left.
        responses: [S, N].
        rdm: [S, S], correlation distances.
        bins: [S], the bin of each stimulus, from 0.
        crossvalidated: condensed, of the bins, across the stimuli within each: noise does not enlarge it. None where
            bins hold one stimulus each.
        ceiling: the lowest and highest similarity of a true model with ``crossvalidated``, from halves; or None.
        undefined: pairs of bins that are NaN.
    """

    name: str
    degrees: Floats
    responses: NDArray[np.float32]
    rdm: Floats
    bins: NDArray[np.int64]
    crossvalidated: Floats | None
    ceiling: tuple[float, float] | None
    undefined: int


def v1_of(population: Population, bin_degrees: float = 6.0) -> V1:
    """What networks are compared with.

    Args:
        population: of ``v1fast.decoding.population_of``.
        bin_degrees: see :class:`V1`.

    Raises:
        ValueError: too few directions are up to 180.
    """
    chosen = np.flatnonzero(population.degrees <= 180)
    chosen = chosen[np.argsort(population.degrees[chosen], kind="stable")]
    if len(chosen) < FEWEST:
        raise ValueError(f"{population.name}: want at least {FEWEST} orientations up to 180, got {len(chosen)}")
    degrees, responses = population.degrees[chosen], population.responses[chosen]
    last = max(0, int(np.ceil(180 / bin_degrees)) - 1)  # it includes 180 itself, which would have a bin of its own
    bins = np.unique(np.minimum(degrees // bin_degrees, last).astype(int), return_inverse=True)[1]
    place = np.arange(len(bins)) - np.searchsorted(bins, bins)  # of a stimulus within its bin
    crossvalidated, ceiling, undefined = None, None, 0
    counts = np.bincount(bins)
    if np.median(counts) > 1 and len(counts) >= FEWEST:
        crossvalidated = np.asarray(
            rsa.rdm_of_repeats(responses, "correlation", stimuli=bins, folds=place), np.float64
        )  # fmt: skip
        undefined = int(np.isnan(crossvalidated).sum())
        times = int(np.bincount(counts).argmax())  # the commonest number of stimuli in a bin
        whole = np.flatnonzero(counts >= times)
        if times >= 4 and len(whole) >= FEWEST:
            first = np.searchsorted(bins, whole)
            repeats = np.stack([responses[first + number] for number in range(times)])
            options: dict[str, Any] = {"dissimilarity": "correlation", "crossvalidate": True}
            ceiling = rsa.reliability(repeats, "pearson", splits=CEILING_SPLITS, **options).ceiling
    rdm = np.asarray(functional.rdm(responses), np.float64)
    return V1(population.name, degrees - 90, responses, rdm, bins, crossvalidated, ceiling, undefined)


@dataclasses.dataclass(frozen=True)
class Representation:
    """Activations of one layer, or pixels, for the stimuli of V1.

    Attributes:
        system: task or model.
        layer: its layer.
        seed: of the network; None without one.
        values: [S, units].
        solved: how well the task is solved, in words.
    """

    system: str
    layer: str
    seed: int | None
    values: NDArray[Any]
    solved: str = ""


def similarity_row(found: Representation, v1: V1) -> dict[str, Any]:
    """How similar a representation's matrix is to V1's: Pearson correlation above the diagonal.

    "similarity" is that of the plain matrices of single stimuli; "crossvalidated" that with V1's cross-validated matrix
    of bins, and the representation's means in the bins.

    Args:
        found: for the stimuli of ``v1``.
        v1: see there.
    """
    values = np.asarray(found.values, np.float64)
    similarity = float(rsa.compare(functional.rdm(values), v1.rdm, "pearson"))
    crossvalidated = float("nan")
    if v1.crossvalidated is not None:
        means = np.stack([values[v1.bins == k].mean(0) for k in range(v1.bins.max() + 1)])
        one, other = functional.rdm(means, condensed=True), v1.crossvalidated
        crossvalidated = float(rsa.compare(one, other, "pearson")) if not v1.undefined else _defined(one, other)
    about = {"system": found.system, "layer": found.layer, "seed": "" if found.seed is None else found.seed}
    return {**about, "similarity": similarity, "crossvalidated": crossvalidated, "solved": found.solved}


def _defined(one: NDArray[Any], other: Floats) -> float:
    known = ~np.isnan(other)
    return float(np.corrcoef(one[known], other[known])[0, 1])


def layers_of(network: nn.Module, images: Tensor) -> dict[str, NDArray[np.float32]]:
    """Activations [S, units] of "pool", after max-pooling, and "fc", before its ReLU."""
    return {name: values.numpy() for name, values in rsa.activations(network, images, ["pool", "fc"]).items()}


def make_network(kind: str, settings: NormativeSettings, outputs: int = 1) -> OrientationNet:
    """A new network: "CNN", "FC", "ConvFC" or "ConvPoolFC", with torch's random numbers as they come.

    Args:
        kind: of the network.
        settings: number and size of its filters, and the image's shape.
        outputs: of the network.
    """
    _choices.one_of("network", kind, NETWORKS)
    if kind == "FC":
        return FC(settings.image_shape, outputs=outputs)
    make = {"CNN": CNN, "ConvFC": ConvFC, "ConvPoolFC": ConvPoolFC}[kind]
    network: OrientationNet = make(settings.image_shape, filters=settings.filters, size=settings.size, outputs=outputs)
    return network


@dataclasses.dataclass(frozen=True)
class Normative:
    """All that ``v1fast normative`` finds.

    Attributes:
        settings: see there.
        v1: what is compared with.
        images: [S, 1, H, W], V1's stimuli as the networks see them.
        trained: network -> what training on tilt made of it, with the first seed.
        representations: all layers of all systems and seeds.
        rows: their similarity with V1.
        encoded: the encoding model, or None.
    """

    settings: NormativeSettings
    v1: V1
    images: Tensor
    trained: dict[str, Trained]
    representations: list[Representation]
    rows: list[dict[str, Any]]
    encoded: Encoded | None

    def of(self, system: str, layer: str) -> NDArray[Any]:
        """The first seed's activations [S, units]."""
        return next(r.values for r in self.representations if (r.system, r.layer) == (system, layer))


def compare_with_v1(
    population: Population, settings: NormativeSettings | None = None, *, show: bool = True
) -> Normative:
    """Train networks on tasks, and compare what their layers represent with V1.

    Args:
        population: of ``v1fast.decoding.population_of``.
        settings: see there.
        show: whether to show progress.

    Raises:
        ValueError: a setting is out of range; the population has too few orientations.
        ModuleNotFoundError: photographs need scikit-image.
    """
    settings = settings or NormativeSettings()
    fitted, compared = _shared_out(population, settings)
    v1 = v1_of(compared, settings.bin_degrees)
    images = gratings(v1.degrees, settings.image_shape, patch=settings.patch)
    others = [name for name in dict.fromkeys(settings.tasks) if name != "tilt"]
    steps = len(NETWORKS) + settings.seeds - 1 + len(others) * settings.seeds + settings.encoding + 1
    found = [Representation("pixels", "pixels", None, images.flatten(1).numpy())]
    with progress("normative", steps, show=show) as bar:
        found += _without_learning(images, settings)
        trained: dict[str, Trained] = {}
        for kind in NETWORKS:
            bar.describe(f"{kind}: tilt")
            trained[kind] = _on_tilt(kind, settings, settings.seed)
            found += _layers(f"tilt: {kind}", trained[kind], images, settings.seed)
            bar.advance()
        for seed in range(settings.seed + 1, settings.seed + settings.seeds):
            bar.describe(f"CNN: tilt, seed {seed}")
            found += _layers("tilt: CNN", _on_tilt("CNN", settings, seed), images, seed)
            bar.advance()
        for task in others:
            found += _on_task(task, images, settings, bar)
        encoded = None
        if settings.encoding:
            bar.describe("encoding model")
            encoded, layers = _encode(fitted, v1, settings)
            found += layers
            bar.advance()
        bar.describe("matrices")
        rows = [similarity_row(one, v1) for one in found]
        bar.advance()
    return Normative(settings, v1, images, trained, found, rows, encoded)


def _on_tilt(kind: str, settings: NormativeSettings, seed: int) -> Trained:
    return train_on_tilt(
        lambda: make_network(kind, settings),
        seed=seed,
        image_shape=settings.image_shape,
        patch=settings.patch,
        images=settings.images,
        new=1000,
        epochs=settings.epochs,
    )


def _layers(system: str, trained: Trained, images: Tensor, seed: int) -> list[Representation]:
    solved = f"accuracy {trained.test_accuracy:.3f}, chance 0.5"
    layers = layers_of(trained.network, images)
    if system.endswith(": FC"):  # without a convolution, pixels are what "pool" passes on
        layers.pop("pool")
    return [Representation(system, layer, seed, values, solved) for layer, values in layers.items()]


def _without_learning(images: Tensor, settings: NormativeSettings) -> list[Representation]:
    _, energy = fourier(images)
    found = [Representation("Fourier transform", "energy", None, energy, "computed, not learned")]
    for seed in range(settings.seed, settings.seed + settings.seeds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = make_network("CNN", settings)
        for layer, values in layers_of(network, images).items():
            found.append(Representation("untrained CNN", layer, seed, values, "nothing learned"))
    return found


def _on_task(name: str, images: Tensor, settings: NormativeSettings, bar: Bar) -> list[Representation]:
    found = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        bar.describe(f"CNN: {name}, seed {seed}")
        task = make_task(
            name, seed=seed, images=settings.images, image_shape=settings.image_shape, patch=settings.patch
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = make_network("CNN", settings, task.outputs)
            train(network, task.images, task.targets, loss=task.loss, epochs=settings.epochs)
        with torch.no_grad():
            score = task.score(network(task.new_images), task.new_targets)
        what, chance = task.scored.split(", ")
        solved = f"{what} {score:.2f}, {chance}"
        found += [
            Representation(f"{task.name}: CNN", k, seed, v, solved) for k, v in layers_of(network, images).items()
        ]
        bar.advance()
    return found


def _shared_out(population: Population, settings: NormativeSettings) -> tuple[Population, Population]:
    """The neurons that the encoding model is fitted to, and the others, which all is compared with.

    The noise of single stimuli that a model has fitted must not make it similar to V1.
    """
    if not settings.encoding:
        return population, population
    order = np.random.default_rng(settings.seed).permutation(population.responses.shape[1])
    count = max(1, min(settings.encoding_neurons, len(order) // 2))
    parts = np.sort(order[:count]), np.sort(order[count:])
    fitted, compared = (
        dataclasses.replace(population, responses=population.responses[:, part], preferred=None) for part in parts
    )
    return fitted, compared


def _encode(population: Population, v1: V1, settings: NormativeSettings) -> tuple[Encoded, list[Representation]]:
    means, degrees = binned(population.responses, population.degrees, ENCODING_BIN)
    responses = means.astype(np.float32)
    # Every other bin tells how much a fit to the rest explains; the fit whose layers are compared has all of them.
    held_out = np.arange(len(degrees)) % 2 == 1
    options: dict[str, Any] = {"filters": settings.filters, "size": settings.size, "seed": settings.seed}
    explained = fit_encoding(responses, degrees, held_out=held_out, **options).explained
    encoded = dataclasses.replace(fit_encoding(responses, degrees, **options), explained=explained)
    images = encoding_images(v1.degrees + 90)
    layers = rsa.activations(encoded.model, images, ["conv", "out"])
    solved = f"{explained:.2f} of the variance of orientations between those fitted"
    names = {"conv": "conv", "out": "predicted neurons"}
    found = [Representation("encoding model", names[k], settings.seed, v.numpy(), solved) for k, v in layers.items()]
    return encoded, found
