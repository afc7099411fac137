"""``v1fast decode``: which direction did the animal see? From recorded responses to an answer, and how good it is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v1fast import _choices
from v1fast._progress import progress
from v1fast.data import Recording
from v1fast.data.gratings import RECORDED_NEURONS
from v1fast.data.stringer import binned
from v1fast.decoding.baselines import from_circle, on_circle, reduced_rank, ridge
from v1fast.decoding.fitting import Descent, descend_safely, one_thread, span, within
from v1fast.decoding.networks import ACTIVATIONS, DeepNet, DeepNetSoftmax, written_gradients
from v1fast.decoding.scores import chance_error, classes_of, mean_error, split_stimuli

Floats = NDArray[np.float64]
FEWEST = 10  # stimuli: fewer cannot be split and scored
Z_SCORED = 0.05  # largest deviation of means and standard deviations of responses that count as z-scored


@dataclasses.dataclass(frozen=True)
class DecodingSettings:
    """What is decoded, and how.

    Attributes:
        width, depth, activation: of the network, see :class:`DeepNet`.
        iterations, rate: of gradient descent. Rates are meant for the recording's 23,589 neurons. For N neurons they
            are multiplied by 23,589 / N, since the gradients of the first layer grow with N; and they are halved as
            often as a descent diverges.
        batch, batch_rate: of stochastic gradient descent, which uses as many stimuli in all as gradient descent does.
        splits: random splits of the stimuli, each with a network of its own; the first is that of ``seed``.
        share: of training stimuli.
        seed: of the first split.
        network_seed: of the first network.
        classes: number of classes of directions.
        class_width, class_iterations, class_rate, l1, l2: of the network that decodes them.
        rank: of the reduced-rank regression.
        widths, depths: of networks that are compared, each with the best of ``tries`` initial weights (lowest training
            loss): few units may all be silent from the start.
    """

    width: int = 200
    depth: int = 1
    activation: str = "relu"
    iterations: int = 50
    rate: float = 1e-4
    batch: int = 20
    batch_rate: float = 1e-5
    splits: int = 5
    share: float = 0.6
    seed: int = 4
    network_seed: int = 1
    classes: int = 20
    class_width: int = 20
    class_iterations: int = 200
    class_rate: float = 0.1
    l1: float = 5e-4
    l2: float = 1e-2
    rank: int = 8
    widths: tuple[int, ...] = (2, 5, 20, 100, 200)
    depths: tuple[int, ...] = (1, 2, 3)
    tries: int = 2

    def __post_init__(self) -> None:
        if self.splits < 1:
            raise ValueError(f"splits: want >= 1, got {self.splits}")
        if self.classes < 2:
            raise ValueError(f"classes: want >= 2, got {self.classes}")
        _choices.one_of("activation", self.activation, ACTIVATIONS)


@dataclasses.dataclass(frozen=True)
class Population:
    """Responses to directions.

    Attributes:
        name: of the recording.
        responses: [S, N], float32, z-scored over stimuli.
        degrees: [S], 0 to ``period``.
        z_scored_here: whether the recording's own responses were not.
        preferred: [N], true preferred directions, of a simulation; None where they are unknown.
        period: of the circle in degrees: 360 for directions, 180 for orientations.
    """

    name: str
    responses: NDArray[np.float32]
    degrees: Floats
    z_scored_here: bool
    preferred: Floats | None = None
    period: float = 360.0

    @functools.cached_property
    def spanned(self) -> tuple[Tensor, Tensor]:
        """Scores [S, K] and basis [K, N] of the responses, see ``span``."""
        return span(torch.from_numpy(self.responses))


def population_of(
    recording: Recording, bin_degrees: float | None = None, neurons: int | None = None, period: float = 360.0
) -> Population:
    """The responses of a recording of gratings, as decoders take them.

    Args:
        recording: with ``trials["orientation"]`` in degrees.
        bin_degrees: mean over the stimuli in each bin of this width; None: as recorded.
        neurons: the first so many of a random order (seed 0); None: all.
        period: 360 where opposite directions are different stimuli, 180 where they are the same orientation.

    Raises:
        ValueError: there are no orientations, too few stimuli, or responses that are not finite.
    """
    if not period > 0:
        raise ValueError(f"period: want > 0, got {period}")
    if "orientation" not in recording.trials:
        raise ValueError(f"{recording.source or recording.name}: want orientations of the trials (stimuli), got none")
    degrees = np.array(recording.trials["orientation"], np.float64)  # a copy: what is mapped may be read-only
    responses = np.asarray(recording.responses[:])
    preferred = recording.neurons.get("preferred_direction")
    if neurons is not None and neurons < responses.shape[1]:
        if neurons < 1:
            raise ValueError(f"neurons: want >= 1, got {neurons}")
        chosen = np.sort(np.random.default_rng(0).permutation(responses.shape[1])[:neurons])
        responses = responses[:, chosen]
        preferred = None if preferred is None else preferred[chosen]
    if bin_degrees is not None:
        responses, degrees = binned(responses, degrees, bin_degrees)
    where = recording.source or recording.name
    if len(degrees) < FEWEST:
        raise ValueError(f"{where}: want responses to at least {FEWEST} stimuli, got {len(degrees)}")
    if not np.isfinite(responses).all():
        raise ValueError(f"{where}: want finite responses, got {int((~np.isfinite(responses)).sum())} others")
    if degrees.min() < 0 or degrees.max() > period:
        got = f"{degrees.min():g} to {degrees.max():g}"
        raise ValueError(f"{where}: want orientations of 0 to {period:g}, got {got}")
    mean, spread = responses.mean(0), responses.std(0)
    here = bool((np.abs(mean) > Z_SCORED).any() or (np.abs(spread - 1) > Z_SCORED).any())
    if here:
        responses = (responses - mean) / np.where(spread > 0, spread, 1)
    return Population(recording.name, responses.astype(np.float32), degrees, here, preferred, period)


@dataclasses.dataclass(frozen=True)
class Split:
    """Training and test stimuli of a population.

    Training responses have a mean of 0, as has the population: where responses are z-scored over all stimuli, the mean
    of the test responses is the training mean times -1.5 (for 60 % and 40 %). A network that reaches the mean stimulus
    through the responses' mean, as gradient descent from a bias of 0 does, misses it in the test by as much. So the
    training mean is taken off, and the output's bias begins at the mean of the training targets.

    Attributes:
        train, test: indices of trials; all trials of a stimulus are in one of them.
        responses: [S, N], minus the training mean.
        scores, basis: the same in few dimensions, see ``span``.
        degrees: [S].
        period: of the circle.
    """

    train: Any
    test: Any
    responses: Tensor
    scores: Tensor
    basis: Tensor
    degrees: Floats
    period: float = 360.0


def split_of(population: Population, settings: DecodingSettings, number: int) -> Split:
    """Split number ``number`` of the settings, from 0."""
    _, first, place = np.unique(population.degrees, return_index=True, return_inverse=True)
    order = np.argsort(first)  # stimuli as they come, each with all its trials
    parts = split_stimuli(len(order), settings.share, settings.seed + number)
    train, test = (np.concatenate([np.flatnonzero(place == order[k]) for k in part]) for part in parts)
    scores, basis = population.spanned
    responses = torch.from_numpy(population.responses - population.responses[train].mean(0))
    centred = scores - scores[train].mean(0)
    return Split(train, test, responses, centred, basis, population.degrees, population.period)


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What one decoder says of the test stimuli of one split.

    Attributes:
        decoder: its name.
        true, decoded: [T], degrees.
        descent: of a network.
        rate: at which it was fitted.
        period: of the circle.
    """

    decoder: str
    true: Floats
    decoded: Floats
    descent: Descent | None = None
    rate: float | None = None
    period: float = 360.0

    def row(self, split: int) -> dict[str, Any]:
        """Errors, and those expected by chance, for a table."""
        return {
            "decoder": self.decoder,
            "split": split,
            "rate": "" if self.rate is None else self.rate,
            "circular_error": mean_error(self.decoded, self.true, self.period),
            "circular_chance": chance_error(self.decoded, self.true, self.period),
            "plain_error": mean_error(self.decoded, self.true),
            "plain_chance": chance_error(self.decoded, self.true),
            "mean_squared_error": float(((self.decoded - self.true) ** 2).mean()),
        }


def decode_network(
    split: Split,
    *,
    width: int,
    depth: int,
    activation: str,
    iterations: int,
    rate: float,
    batch: int | None = None,
    seed: int = 1,
    name: str = "network",
) -> Decoded:
    """Fit a network to degrees, and decode the test stimuli.

    It is computed in the span of the responses, which changes nothing but the time (see ``span``).

    Args:
        split: of a population.
        width, depth, activation: of the network.
        iterations, rate, batch: of the descent, the rate as in :class:`DecodingSettings`.
        seed: of network and batches.
        name: of the decoder.
    """
    targets = torch.from_numpy(split.degrees).float()[:, None]

    def make() -> DeepNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = DeepNet(split.responses.shape[1], width, depth=depth, activation=activation)
        with torch.no_grad():
            last: Any = network.layers[-1]
            last.bias.copy_(targets[split.train].mean(0))
        return within(network, split.basis)

    network, descent, used = descend_safely(
        make,
        split.scores[split.train],
        targets[split.train],
        iterations=iterations,
        rate=rate * RECORDED_NEURONS / split.responses.shape[1],
        batch=batch,
        held_out=(split.scores[split.test], targets[split.test]),
        seed=seed,
    )
    with torch.no_grad():
        decoded = network(split.scores[split.test])[:, 0].double().numpy()
    return Decoded(name, split.degrees[split.test], decoded, descent, used, split.period)


def _ridge_degrees(split: Split, settings: DecodingSettings) -> Floats:
    scores = split.scores.double().numpy()
    return ridge(scores[split.train], split.degrees[split.train], scores[split.test])


def _ridge_circle(split: Split, settings: DecodingSettings) -> Floats:
    scores = split.scores.double().numpy()
    targets = on_circle(split.degrees[split.train], split.period)
    return from_circle(ridge(scores[split.train], targets, scores[split.test]), split.period)


def _reduced_rank(split: Split, settings: DecodingSettings) -> Floats:
    scores = split.scores.double().numpy()
    old, new, degrees = scores[split.train], scores[split.test], split.degrees[split.train]
    return reduced_rank(old, degrees, new, rank=settings.rank, period=split.period)


CLOSED: dict[str, Callable[[Split, DecodingSettings], Floats]] = {
    "ridge, degrees": _ridge_degrees,
    "ridge, cosine and sine": _ridge_circle,
    "reduced rank": _reduced_rank,
}
"""Linear decoders in closed form: name -> decoded degrees [T]."""

DESCENDED: dict[str, dict[str, Any]] = {
    "linear": {"depth": 0},
    "DeepNet": {"activation": "none"},
    "DeepNetReLU": {"activation": "relu"},
    "DeepNetReLU, SGD": {"activation": "relu", "sgd": True},
}
"""Networks that are fitted to degrees: name -> what differs from the settings."""


def decoders_of(settings: DecodingSettings) -> dict[str, dict[str, Any]]:
    """:data:`DESCENDED`, and the network of the settings where it is another activation."""
    others = {name: dict(changes) for name, changes in DESCENDED.items()}
    if settings.activation not in ("none", "relu"):
        others[f"DeepNet, {settings.activation}"] = {"activation": settings.activation}
    return others


def decode_split(split: Split, settings: DecodingSettings, number: int = 0) -> dict[str, Decoded]:
    """All decoders on one split, by name."""
    found = {}
    for name, changes in decoders_of(settings).items():
        sgd = changes.get("sgd", False)
        iterations, batch, rate = settings.iterations, None, settings.rate
        if sgd:
            batch, rate = settings.batch, settings.batch_rate
            iterations = -(-settings.iterations * len(split.train) // batch)
        found[name] = decode_network(
            split,
            width=settings.width,
            depth=changes.get("depth", settings.depth),
            activation=changes.get("activation", settings.activation),
            iterations=iterations,
            rate=rate,
            batch=batch,
            seed=settings.network_seed + number,
            name=name,
        )
    true = split.degrees[split.test]
    return found | {
        name: Decoded(name, true, decode(split, settings), period=split.period) for name, decode in CLOSED.items()
    }


@dataclasses.dataclass(frozen=True)
class Classified:
    """Classes of directions decoded by a softmax network.

    Attributes:
        true, decoded: [T], classes of the test stimuli.
        classes: K.
        weights: [M, N], of the hidden layer.
        output: [K, M].
        descent: of the fit.
        rate: at which it was fitted.
    """

    true: NDArray[np.int64]
    decoded: NDArray[np.int64]
    classes: int
    weights: Floats
    output: Floats
    descent: Descent
    rate: float

    def row(self, split: int) -> dict[str, Any]:
        """Accuracy, and that expected by chance, for a table."""
        away = np.abs(self.decoded - self.true)
        away = np.minimum(away, self.classes - away)
        expected = (self.decoded[:, None] == self.true).mean()
        return {
            "split": split,
            "accuracy": float((away == 0).mean()),
            "chance": float(expected),
            "at_most_one_class_off": float((away <= 1).mean()),
        }


def classify(split: Split, settings: DecodingSettings, number: int = 0) -> Classified:
    """Fit a softmax network to classes of directions, by gradient descent with L1 and L2 penalties.

    Args:
        split: of a population.
        settings: see there.
        number: of the split.
    """
    classes = torch.from_numpy(classes_of(split.degrees, settings.classes, split.period))

    def make() -> DeepNetSoftmax:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.network_seed + number)
            return DeepNetSoftmax(split.responses.shape[1], settings.class_width, outputs=settings.classes)

    network, descent, rate = descend_safely(
        make,
        split.responses[split.train],
        classes[split.train],
        loss="cross-entropy",
        iterations=settings.class_iterations,
        rate=settings.class_rate,
        l1=settings.l1,
        l2=settings.l2,
        held_out=(split.responses[split.test], classes[split.test]),
    )
    with torch.no_grad():
        decoded = network(split.responses[split.test]).argmax(1).numpy()
    layers: Any = network.layers
    hidden, output = (layer.weight.detach().double().numpy() for layer in (layers[0], layers[-1]))
    return Classified(classes[split.test].numpy(), decoded, settings.classes, hidden, output, descent, rate)


def width_and_depth(split: Split, settings: DecodingSettings) -> list[dict[str, Any]]:
    """Losses and errors of networks of several widths and depths, of rectified units.

    Args:
        split: of a population.
        settings: widths and depths, and how each is fitted.

    Returns:
        A row for each network: "width", "depth", "train_loss", "test_loss", "circular_error".
    """
    return [
        {"width": width, "depth": depth, **_best_of(split, settings, width, depth)}
        for depth in settings.depths
        for width in settings.widths
    ]


def _best_of(split: Split, settings: DecodingSettings, width: int, depth: int) -> dict[str, float]:
    """The network of the lowest training loss of several initial weights."""
    tried = []
    for number in range(settings.tries):
        found = decode_network(
            split,
            width=width,
            depth=depth,
            activation="relu",
            iterations=5 * settings.iterations,
            rate=settings.rate / 5,
            seed=settings.network_seed + number,
        )
        assert found.descent is not None
        train, test = float(found.descent.train[-1]), float(found.descent.test[-1])
        error = mean_error(found.decoded, found.true, split.period)
        tried.append({"train_loss": train, "test_loss": test, "circular_error": error})
    return min(tried, key=lambda one: one["train_loss"])


def gradient_check(split: Split, settings: DecodingSettings, stimuli: int = 20) -> float:
    """The largest difference between written gradients and autograd's, relative to the largest gradient, in float64.

    Args:
        split: of a population.
        settings: of the network.
        stimuli: how many.
    """
    rows = split.train[:stimuli]
    responses, targets = split.scores[rows].double(), torch.from_numpy(split.degrees[rows])[:, None]
    network = DeepNet(
        responses.shape[1], settings.width, depth=settings.depth, activation=settings.activation
    ).double()  # fmt: skip
    torch.nn.functional.mse_loss(network(responses), targets).backward()
    written = written_gradients(network, responses, targets)
    pairs = [(written[name], parameter.grad) for name, parameter in network.named_parameters()]
    largest = max(float(grad.abs().max()) for _, grad in pairs if grad is not None)
    return max(float((one - grad).abs().max()) for one, grad in pairs if grad is not None) / largest


@dataclasses.dataclass(frozen=True)
class Decoding:
    """All that ``v1fast decode`` finds.

    Attributes:
        population: that is decoded.
        settings: see there.
        rows: of decoders and splits.
        first: decoder -> what it says in the first split.
        classified: of the first split.
        class_rows: of all splits.
        sizes: of ``width_and_depth``.
        gradient_difference: of ``gradient_check``.
    """

    population: Population
    settings: DecodingSettings
    rows: list[dict[str, Any]]
    first: dict[str, Decoded]
    classified: Classified
    class_rows: list[dict[str, Any]]
    sizes: list[dict[str, Any]]
    gradient_difference: float


def decode(population: Population, settings: DecodingSettings | None = None, *, show: bool = True) -> Decoding:
    """Decode a population in all ways.

    Args:
        population: of ``population_of``.
        settings: see there.
        show: whether to show progress.

    Raises:
        ValueError: a setting is out of range; a descent's rate is too large.
    """
    settings = settings or DecodingSettings()
    rows, class_rows = [], []
    with one_thread(), progress("decoding", 2 * settings.splits + 1, show=show) as bar:
        for number in range(settings.splits):
            bar.describe(f"directions, split {number + 1} of {settings.splits}")
            split = split_of(population, settings, number)
            found = decode_split(split, settings, number)
            rows += [one.row(number) for one in found.values()]
            bar.advance()
            bar.describe(f"classes, split {number + 1} of {settings.splits}")
            classes = classify(split, settings, number)
            class_rows.append(classes.row(number))
            bar.advance()
            if number == 0:
                first, classified = found, classes
                bar.describe("networks of several widths and depths")
                sizes, difference = width_and_depth(split, settings), gradient_check(split, settings)
                bar.advance()
    return Decoding(population, settings, rows, first, classified, class_rows, sizes, difference)
