"""Are trained models of the two libraries equivalent? Over seeds, see :mod:`.equivalence`.

For each seed three models are trained from the same initial values on the same batches: the published one, v1fast's,
and the published one again. Each draws random positions of its own, v1fast's from its own generator. The published one
and its repetition show how far such models part by their random positions alone.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from v1fast import _files, metrics
from v1fast._plot_style import BLUE, GREY, VERMILLION, new_figure, styled
from v1fast.data import SimulatedRecording, simulate_animals
from v1fast.losses import PoissonLoss
from v1fast.models import input_positions
from v1fast.rsa import rdm_correlation

from .equivalence_models import CORE, NEURONS, READOUT, encoder, normalized, seeded

Floats = NDArray[Any]

SEEDS = {"published": 60, "v1fast": 60, "published again": 20}  # trained from seeds 0, 1, ...
KINDS = tuple(SEEDS)
MARGIN = 0.005
IMAGE, MAP = (24, 36), (16, 16, 28)  # smaller than in the other parts: a model takes half a minute of one core
ANIMAL = {"train": 1000, "validation": 1, "test": 200, "repeats": (10, 10), "seed": 0}
TRAINING = {"steps": 1200, "batch": 16, "rate": 0.01}
EVERY = 10  # of the test images, the features are kept of each tenth
AVERAGED = 50  # steps of which the figure shows one mean
SETTINGS = json.dumps([CORE, MAP, READOUT, NEURONS, IMAGE, ANIMAL, TRAINING])


@dataclass(frozen=True)
class Trained:
    """What is kept of a trained model.

    Attributes:
        predictions: [I, N], to the test images.
        position: [N, 2], x first, in pixels of the image.
        features: [P, C], the core's output at all positions of some test images.
        losses: [steps], in training.
    """

    predictions: Floats
    position: Floats
    features: Floats
    losses: Floats


def tost(differences: Sequence[float] | Floats, margin: float) -> float:
    """Two one-sided t-tests: the p-value against the hypothesis that the mean is ``margin`` or more from 0."""
    above = stats.ttest_1samp(differences, -margin, alternative="greater")
    below = stats.ttest_1samp(differences, margin, alternative="less")
    return float(max(above.pvalue, below.pvalue))


def linear_cka(x: Floats, y: Floats) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019, ICML, eq. 3 and section 3): 1 if y is x in another
    orthogonal basis of its channels, up to a factor.

    Args:
        x, y: [P, C] and [P, D], features of the same P stimuli or places.
    """
    x, y = x - x.mean(0), y - y.mean(0)

    def product(a: Floats, b: Floats) -> float:
        return float(((a.T @ b) ** 2).sum())

    return product(x, y) / math.sqrt(product(x, x) * product(y, y))


def animal() -> SimulatedRecording:
    return simulate_animals(1, NEURONS, IMAGE, **ANIMAL)[0]  # type: ignore[arg-type]


def train(model: nn.Module, images: Tensor, responses: Tensor, seed: int, noise: int) -> Floats:
    """Adam, with the rate falling to 0. The trials depend on ``seed``, the sampled positions on ``noise``."""
    steps, batch = int(TRAINING["steps"]), int(TRAINING["batch"])
    optimizer = torch.optim.Adam(model.parameters(), lr=TRAINING["rate"])
    schedule = CosineAnnealingLR(optimizer, steps)
    order, loss_of = torch.Generator().manual_seed(seed), PoissonLoss(avg=False)
    torch.manual_seed(noise)
    model.train()
    losses = []
    for _ in range(steps):
        chosen = torch.randint(len(images), (batch,), generator=order)
        loss = loss_of(model(images[chosen]), responses[chosen]) * math.sqrt(len(images) / batch)
        loss = loss + model.regularizer()  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    return np.array(losses)


def made(kind: str, seed: int, recording: SimulatedRecording) -> Trained:
    """Train a model and look at it."""
    images, responses = normalized(recording.train.images), recording.train.responses
    model: Any = seeded(responses.mean(0), seed, MAP)
    if kind == "v1fast":
        theirs, model = model, encoder(responses.mean(0), "philox", MAP)
        model.load_state_dict(theirs.state_dict())
    losses = train(model, images, responses, seed, noise=1000 * (1 + KINDS.index(kind)) + seed)
    shown = normalized(recording.test.images)
    with torch.no_grad():
        maps = model.core(shown[::EVERY]).permute(0, 2, 3, 1).flatten(0, 2)
        place = input_positions(model.core, model.readout)
        position = torch.stack([place.x, place.y], 1).numpy()
        return Trained(model(shown).numpy(), position, maps.numpy(), losses)


def kept(folder: Path, kind: str, seed: int, make: Callable[[], Trained]) -> Trained:
    """From a file, or made and written to it.

    Raises:
        ValueError: the file is of other settings.
    """
    path = folder / f"{kind.replace(' ', '-')}-{seed}.npz"
    if not path.exists():
        content = io.BytesIO()
        np.savez(content, settings=SETTINGS, **vars(make()))
        folder.mkdir(parents=True, exist_ok=True)
        _files.replace(path, content.getvalue())
    with np.load(path) as arrays:
        if str(arrays["settings"]) != SETTINGS:
            raise ValueError(f"{path}: want a model of the settings in this script, got others; remove the file")
        return Trained(**{name: arrays[name] for name in Trained.__dataclass_fields__})


def all_trained(folder: Path, recording: SimulatedRecording) -> dict[str, list[Trained]]:
    """By kind, then by seed. Finished models are in the folder, so that an interrupted study goes on."""
    found: dict[str, list[Trained]] = {kind: [] for kind in KINDS}
    for seed, kind in itertools.product(range(max(SEEDS.values())), KINDS):
        if seed < SEEDS[kind]:
            one = kept(folder, kind, seed, functools.partial(made, kind, seed, recording))
            found[kind].append(one)
            print(f"seed {seed}, {kind}", flush=True)
    return found


def held_out(trained: Trained, recording: SimulatedRecording) -> dict[str, float]:
    """Correlations over the test images, averaged over neurons."""
    test = recording.test
    predictions = torch.from_numpy(trained.predictions)
    average = metrics.correlation_to_average(test.responses, predictions[test.image_ids], test.image_ids)
    true = metrics.single_trial_correlation(test.rates_at_rest, predictions)
    for name, found in (("average", average), ("true", true)):
        if found.undefined:
            raise ValueError(f"{name}: want a correlation of all neurons, got {found}")
    return {"to the mean of 10 repeats": average.mean, "to the true rates": true.mean}


def agreement(a: Trained, b: Trained) -> tuple[float, float, float]:
    """Of two models: correlation of their predictions' RDMs, median distance of positions in pixels, CKA."""
    distances = np.linalg.norm(a.position - b.position, axis=1)
    return (
        rdm_correlation(a.predictions, b.predictions),
        float(np.median(distances)),
        linear_cka(a.features, b.features),
    )


def paired(some: Sequence[float], first: Sequence[float]) -> Floats:
    """Differences from the first, of the seeds that both have."""
    return np.subtract(some, first[: len(some)])


def equivalences(scores: dict[str, dict[str, list[float]]]) -> Iterator[str]:
    """``scores``: measure -> kind -> by seed."""
    yield "| held-out correlation | pairs | mean difference | standard deviation | 90 % interval of the mean | p | |"
    yield "|---|---|---|---|---|---|---|"
    for measure, of_kind in scores.items():
        for kind in KINDS[1:]:
            differences = paired(of_kind[kind], of_kind[KINDS[0]])
            low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.9)
            p = tost(differences, MARGIN)
            mean, spread = differences.mean(), differences.std(ddof=1)
            yield (
                f"| {measure}, {kind} - {KINDS[0]} | {len(differences)} | {mean:+.4f} | {spread:.4f} | "
                f"{low:+.4f} to {high:+.4f} | {p:.2g} | {'equivalent' if p < 0.05 else 'inconclusive'} |"
            )


def agreements(found: dict[str, list[Trained]]) -> Iterator[str]:
    """Means over pairs, and ranges."""
    published, ours, again = (found[kind] for kind in KINDS)
    seeds = range(len(published))
    unequal = list(itertools.permutations(seeds, 2))
    pairs = {
        "v1fast, published; the same seed": list(zip(ours, published, strict=False)),
        "published again, published; the same seed": list(zip(again, published, strict=False)),
        "v1fast, published; two seeds": [(ours[i], published[j]) for i, j in unequal],
        "published, published; two seeds": [(published[i], published[j]) for i, j in unequal if i < j],
    }
    yield "| models | pairs | RDMs of predictions, correlation | positions, median distance in pixels | features, CKA |"
    yield "|---|---|---|---|---|"
    for name, of in pairs.items():
        columns = np.array([agreement(a, b) for a, b in of]).T
        cells = [f"{column.mean():.3f} ({column.min():.3f} to {column.max():.3f})" for column in columns]
        yield f"| {name} | {len(of)} | {' | '.join(cells)} |"


def to_truth(found: dict[str, list[Trained]], recording: SimulatedRecording) -> str:
    """How far positions are from the simulated receptive fields."""
    true = recording.neurons.position.numpy()
    medians = {
        kind: np.mean([np.median(np.linalg.norm(one.position - true, axis=1)) for one in found[kind]]) for kind in KINDS
    }
    parts = ", ".join(f"{kind} {median:.3f}" for kind, median in medians.items())
    return f"Median distance from the simulated receptive fields, in pixels, mean over seeds: {parts}."


@styled
def figure(scores: dict[str, list[float]], found: dict[str, list[Trained]]) -> Any:
    """Held-out correlations in pairs, and losses."""
    drawn, (left, right) = new_figure(1, 2, (9.5, 4))
    every = np.concatenate(list(scores.values()))
    ends = np.array([every.min() - 0.002, every.max() + 0.002])
    left.fill_between(ends, ends - MARGIN, ends + MARGIN, color=GREY, alpha=0.2, lw=0, label=f"± {MARGIN}")
    for kind, colour, marker in zip(KINDS[1:], (BLUE, VERMILLION), "os", strict=True):
        left.plot(scores[KINDS[0]][: len(scores[kind])], scores[kind], marker, color=colour, label=kind)
    left.set(xlabel=f"held-out correlation, {KINDS[0]}", ylabel="the same seed, trained by", xlim=ends, ylim=ends)
    left.legend(loc="upper left")
    for kind, colour, line in zip(KINDS[:2], (VERMILLION, BLUE), ("-", "--"), strict=True):
        losses = np.stack([one.losses for one in found[kind]])
        means = losses.reshape(len(losses), -1, AVERAGED).mean((0, 2))
        right.plot(np.arange(1, len(means) + 1) * AVERAGED, means, line, color=colour, label=kind)
    right.set(xlabel="step", ylabel=f"loss, mean of {len(losses)} seeds and {AVERAGED} steps")
    right.legend()
    return drawn


def tables(folder: Path, picture: Path | None) -> Iterator[str]:
    """Train what is not trained yet; the lines of the page, and its figure."""
    recording = animal()
    found = all_trained(folder, recording)
    each = {kind: [held_out(one, recording) for one in found[kind]] for kind in KINDS}
    measures = list(each[KINDS[0]][0])
    scores = {m: {kind: [one[m] for one in each[kind]] for kind in KINDS} for m in measures}
    test = recording.test
    bound = metrics.correlation_to_average(test.responses, test.rates_at_rest[test.image_ids], test.image_ids).mean
    yield f"Correlation {measures[0]}; the true rates at rest have {bound:.4f}."
    yield ""
    yield from equivalences(scores)
    yield ""
    yield from agreements(found)
    yield ""
    yield to_truth(found, recording)
    if picture is not None:
        content = io.BytesIO()
        figure(scores[measures[0]], found).savefig(content, format="png", dpi=150)
        _files.replace(picture, content.getvalue())
