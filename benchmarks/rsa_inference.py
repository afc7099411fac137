"""Does the inference of v1fast.rsa hold? Coverage of intervals, errors and power of tests, in data of known truth.

    python -m v1fast.benchmarks.rsa_inference docs/inference.md

replaces the tables between the markers of the page and draws ``rsa-inference.png`` beside it (about five minutes on
one core). rsatoolbox, if it is installed, judges some of the same data.

A population of subjects sees stimuli that are drawn from a population of stimuli. The representation of a subject is a
linear map of the stimuli's features: that of the population, plus the subject's own deviation. It is measured with
noise. Models are other deviations from the map of the population.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray

from v1fast import _files, functional, rsa
from v1fast.rsa import resampling
from v1fast.rsa._matrices import stimuli_of

Floats = NDArray[np.float64]

FEATURES, CHANNELS = 8, 40
START, END = "<!-- evidence -->", "<!-- end of evidence -->"
SIZES = ((5, 20), (20, 20), (5, 60), (20, 60))  # subjects, stimuli
SIZES_OF_OTHERS = ((5, 20),)  # they take longer
EACH = 20  # data sets with the same stimuli, or the same subjects
OVERS = ("subjects", "stimuli", "both")
DIFFERENCE = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])  # two models, and their difference


@dataclass(frozen=True)
class World:
    """What all data sets have in common.

    Attributes:
        subjects: standard deviation of a subject's map around that of the population, whose own is 1.
        noise: standard deviation of the noise of a measurement, in units of that of responses.
        models: standard deviations of the models' maps around that of the population.
        twins: features and channels come in two halves that do not mix and have the same map in the population. Models
            deviate in one half, in turn: two models with the same deviation are equally good.
    """

    subjects: float = 1.0
    noise: float = 1.0
    models: tuple[float, ...] = (1.0, 1.0)
    twins: bool = False

    def _population(self) -> Floats:
        return self._both_halves(np.random.default_rng(2024).normal(size=(FEATURES, CHANNELS)))

    def _both_halves(self, first: Floats, which: Sequence[int] = (0, 1)) -> Floats:
        """Return a map whose halves are a part of the given one, or the given one if there are no twins."""
        if not self.twins:
            return first
        found = np.zeros((2, FEATURES // 2, 2, CHANNELS // 2))
        for half in which:
            found[half, :, half] = first[: FEATURES // 2, : CHANNELS // 2]
        return found.reshape(FEATURES, CHANNELS)

    def stimuli(self, count: int, draw: np.random.Generator) -> Floats:
        """[S, features]."""
        return draw.normal(size=(count, FEATURES))

    def people(self, count: int, draw: np.random.Generator) -> Floats:
        """[M, features, channels]."""
        return self._population() + self.subjects * draw.normal(size=(count, FEATURES, CHANNELS))

    def measured(self, stimuli: Floats, people: Floats, draw: np.random.Generator) -> Floats:
        """[M, P], correlation distances of noisy responses."""
        responses = stimuli @ people
        noise = self.noise * np.sqrt(FEATURES) * draw.normal(size=responses.shape)
        return functional.rdm(responses + noise, condensed=True)

    def predicted(self, stimuli: Floats) -> Floats:
        """[K, P]."""
        draw = np.random.default_rng(7)
        deviations = [draw.normal(size=(FEATURES, CHANNELS)) for _ in self.models]
        if self.twins:
            deviations = [self._both_halves(deviations[0], [k % 2]) for k in range(len(deviations))]
        maps = [self._population() + spread * each for spread, each in zip(self.models, deviations, strict=True)]
        return functional.rdm(stimuli @ np.stack(maps), condensed=True)


WORLDS = {
    "typical": World(),
    "noisy": World(noise=4.0),
    "good models": World(subjects=0.5, noise=0.5, models=(0.3, 0.3)),
}
Drawn = tuple[Floats, Floats]  # measured [M, P], predicted [K, P]


def data_sets(
    world: World, over: str, size: tuple[int, int], groups: int, each: int, seed: int
) -> Iterator[list[Drawn]]:
    """Yield groups of data sets that have in common what is not drawn anew: the stimuli, or the subjects."""
    draw = np.random.default_rng(seed)
    for _ in range(groups):
        people, stimuli = world.people(size[0], draw), world.stimuli(size[1], draw)
        found = []
        for _ in range(each):
            people = people if over == "stimuli" else world.people(size[0], draw)
            stimuli = stimuli if over == "subjects" else world.stimuli(size[1], draw)
            found.append((world.measured(stimuli, people, draw), world.predicted(stimuli)))
        yield found


Judge = Callable[[Drawn, str], tuple[Floats, Floats, Floats]]  # values, standard errors, intervals [2, .]


def by_v1fast(data: Drawn, over: str) -> tuple[Floats, Floats, Floats]:
    """As ``compare_models`` does, without its tests."""
    measured, predicted = data
    groups = resampling.stimulus_groups(None, stimuli_of(measured.shape[1]))
    similarities = resampling.Similarities(measured, predicted, "pearson", np.arange(len(measured)))
    spread, _ = resampling.spread_over(over, similarities, groups, 0)
    values = DIFFERENCE @ similarities.whole().mean(0)
    errors, freedom = resampling.standard_errors(spread, DIFFERENCE, over)
    intervals = resampling.t_interval(values, errors, freedom, 0.95)
    if over != "subjects":
        intervals[:, :2] = resampling.fisher_interval(values[:2], errors[:2], freedom[:2], 0.95)
    return values, errors, intervals


def by_percentiles(data: Drawn, over: str) -> tuple[Floats, Floats, Floats]:
    """The simple bootstrap, without any correction."""
    found = rsa.bootstrap(*data, over=over, samples=400)
    samples = found.samples @ DIFFERENCE.T
    return DIFFERENCE @ found.similarity, samples.std(0), np.quantile(samples, [0.025, 0.975], axis=0)


def by_rsatoolbox(data: Drawn, over: str) -> tuple[Floats, Floats, Floats]:
    """What its result gives for error bars: t intervals."""
    result = _of_rsatoolbox(data, over)
    values = DIFFERENCE @ result.get_means()
    errors = np.sqrt(np.append(result.model_var, result.diff_var))
    half = errors * scipy.stats.t.ppf(0.975, result.dof)
    return values, errors, np.stack([values - half, values + half])


def _of_rsatoolbox(data: Drawn, over: str, samples: int = 100) -> Any:
    import rsatoolbox
    from rsatoolbox.inference import evaluate

    models = [rsatoolbox.model.ModelFixed(str(k), each) for k, each in enumerate(data[1])]
    call = {
        "subjects": evaluate.eval_bootstrap_rdm,
        "stimuli": evaluate.eval_bootstrap_pattern,
        "both": evaluate.eval_dual_bootstrap,
    }[over]
    evaluate.tqdm.trange = range  # it draws a bar for each data set
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(models, rsatoolbox.rdm.RDMs(data[0]), method="corr", N=samples)


@dataclass(frozen=True)
class Coverage:
    """How often 95 % intervals hold the expected value, of both models together and of their difference.

    ``ratio`` is the root mean square of the standard errors divided by the standard deviation of the estimates.
    """

    count: int
    models: float
    difference: float
    ratio: float

    def __str__(self) -> str:
        return f"{100 * self.models:.1f}, {100 * self.difference:.1f}"


def coverage(
    world: World,
    over: str,
    size: tuple[int, int],
    judge: Judge = by_v1fast,
    *,
    groups: int = 30,
    each: int = 40,
    seed: int = 1,
) -> Coverage:
    """Judge groups x each data sets. The expected value of a group is its mean: that of other subjects, or stimuli."""
    found = [[judge(data, over) for data in group] for group in data_sets(world, over, size, groups, each, seed)]
    values, errors, intervals = (np.array([[one[k] for one in group] for group in found]) for k in range(3))
    expected = values.mean((0, 1) if over == "both" else 1, keepdims=True)
    # A mean of few is nearer to each of them than the expected value is.
    shrinkage = 1.0 if over == "both" else np.sqrt(each / (each - 1))
    expected = values - (values - expected) * shrinkage
    held = ((intervals[:, :, 0] <= expected) & (expected <= intervals[:, :, 1])).mean((0, 1))
    ratio = np.sqrt((errors**2).mean((0, 1)) / ((values - expected) ** 2).mean((0, 1)))
    return Coverage(groups * each, float(held[:2].mean()), float(held[2]), float(ratio[:2].mean()))


def detected(
    world: World, over: str, size: tuple[int, int], count: int, seed: int = 1, peer: bool = True
) -> dict[str, float]:
    """How often the difference of two models has p < .05, of v1fast and of rsatoolbox. All data are drawn anew."""
    found: dict[str, list[bool]] = {"v1fast": [], "rsatoolbox": []}
    for (data,) in data_sets(world, "both", size, count, 1, seed):
        found["v1fast"].append(bool(rsa.compare_models(*data, over=over).different.p[0] < 0.05))
        if peer and has_rsatoolbox():
            found["rsatoolbox"].append(bool(_of_rsatoolbox(data, over).test_pairwise()[0, 1] < 0.05))
    return {name: float(np.mean(each)) for name, each in found.items() if each}


def familywise(models: int, count: int, stimuli: int = 20, seed: int = 1) -> dict[str, float]:
    """How often any of several unrelated systems has p < .05: plain, familywise, and by the false discovery rate."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        rdms = functional.rdm(draw.normal(size=(models + 1, stimuli, 30)), condensed=True)
        tests = rsa.permutation_tests(rdms[0], rdms[1:], permutations=399)
        found.append([(p < 0.05).any() for p in (tests.p, tests.familywise, tests.fdr)])
    return dict(zip(("plain", "familywise", "FDR"), np.mean(found, 0).tolist(), strict=True))


def whitened_by_size(sizes: Sequence[int], count: int = 40, seed: int = 1) -> dict[int, float]:
    """The mean whitened cosine of one model, for different numbers of stimuli."""
    draw, world = np.random.default_rng(seed), World()
    found = {}
    for size in sizes:
        each = []
        for _ in range(count):
            stimuli = world.stimuli(size, draw)
            measured = world.measured(stimuli, world.people(1, draw), draw)
            each.append(rsa.compare(measured, world.predicted(stimuli)[0], "whitened-cosine"))
        found[size] = float(np.mean(each))
    return found


def has_rsatoolbox() -> bool:
    """Whether it is installed."""
    from importlib.util import find_spec

    return find_spec("rsatoolbox") is not None


Row = tuple[str, str, str, tuple[int, int], Coverage]  # who, world, over, size


def covered(scale: float) -> Iterator[Row]:
    """Yield all coverages; ``scale`` is 1 for the page."""
    judges: list[tuple[str, Judge, Sequence[tuple[int, int]], int, Sequence[str]]] = [
        ("v1fast", by_v1fast, SIZES, 800, list(WORLDS)),
        ("percentiles", by_percentiles, SIZES, 200, ["typical"]),
    ]
    if has_rsatoolbox():
        judges.append(("rsatoolbox", by_rsatoolbox, SIZES_OF_OTHERS, 80, ["typical"]))
    for who, judge, sizes, count, worlds in judges:
        for world in worlds:
            for over in OVERS:
                for size in sizes:
                    groups = max(2, round(scale * count / EACH))
                    found = coverage(WORLDS[world], over, size, judge, groups=groups, each=EACH)
                    yield who, world, over, size, found
                    print(who, world, over, size, found, f"ratio {found.ratio:.2f}", flush=True)


def coverage_table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| | data | over | " + " | ".join(f"{m} x {s}" for m, s in SIZES) + " | error / true |"
    yield "|---" * (len(SIZES) + 4) + "|"
    for who, world, over in dict.fromkeys(row[:3] for row in rows):
        found = {row[3]: row[4] for row in rows if row[:3] == (who, world, over)}
        cells = [str(found[size]) if size in found else "" for size in SIZES]
        ratios = [each.ratio for each in found.values()]
        name = {"percentiles": "simple bootstrap, percentiles"}.get(who, who)
        yield f"| {name} | {world} | {over} | {' | '.join(cells)} | {min(ratios):.2f} to {max(ratios):.2f} |"


def power_table(scale: float) -> Iterator[str]:
    """Yield how often two models are told apart, equally good ones and others."""
    yield "| two models | over | subjects x stimuli | v1fast | rsatoolbox |"
    yield "|---|---|---|---|---|"
    for name, models in (("equally good", (2.0, 2.0)), ("different", (1.0, 2.5))):
        for over in ("stimuli", "both"):
            found = detected(World(models=models, twins=True), over, (5, 20), max(4, round(scale * 100)))
            cells = [f"{100 * found[who]:.0f}" if who in found else "" for who in ("v1fast", "rsatoolbox")]
            yield f"| {name} | {over} | 5 x 20 | {' | '.join(cells)} |"
            print(name, over, found, flush=True)


def familywise_table(scale: float) -> Iterator[str]:
    yield "| unrelated systems | plain | familywise | FDR |"
    yield "|---|---|---|---|"
    for models in (1, 8, 20):
        found = familywise(models, max(20, round(scale * 300)))
        yield f"| {models} | {' | '.join(f'{100 * value:.1f}' for value in found.values())} |"


def size_table(scale: float) -> Iterator[str]:
    found = whitened_by_size((10, 20, 60, 200, 400), max(5, round(scale * 100)))
    yield "| stimuli | " + " | ".join(map(str, found)) + " |"
    yield "|---" * (len(found) + 1) + "|"
    yield "| whitened cosine | " + " | ".join(f"{value:.3f}" for value in found.values()) + " |"


def picture(rows: Sequence[Row]) -> Any:
    """Draw the coverage of the similarities, for each method, data and size."""
    from v1fast._plot_style import BLUE, GREY, VERMILLION, new_figure, styled

    looks = {"v1fast": (BLUE, "o"), "rsatoolbox": (VERMILLION, "s"), "percentiles": (GREY, "^")}

    def draw() -> Any:
        figure, panels = new_figure(1, len(OVERS), (11, 4.6), sharey=True)
        places = {size: k for k, size in enumerate(SIZES)}
        for axes, over in zip(panels, OVERS, strict=True):
            axes.axhspan(93, 97, color="#DDDDDD", lw=0, zorder=0)
            axes.axhline(95, color="black", lw=0.8, zorder=1)
            for n, (who, (colour, marker)) in enumerate(looks.items()):
                found = [(places[row[3]], 100 * row[4].models) for row in rows if (row[0], row[2]) == (who, over)]
                if found:
                    x, y = np.array(found).T
                    label = "simple bootstrap" if who == "percentiles" else who
                    axes.plot(x + 0.2 * (n - 1), y, marker, color=colour, ms=7, alpha=0.8, label=label)
            axes.set_xticks(range(len(SIZES)), [f"{m} x {s}" for m, s in SIZES])
            axes.set(xlabel="subjects x stimuli", title=f"over {resampling.OVER[over]}", xlim=(-0.5, len(SIZES) - 0.5))
        panels[0].set_ylabel("95 % intervals that hold\nthe expected similarity (%)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return figure

    return styled(draw)()


def main(page: Path, scale: float = 1.0) -> None:
    """Write the tables into the page, and the picture beside it."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    rows = list(covered(scale))
    lines = [START, ""]
    lines += ["**Coverage** (%), of similarities and of the difference of two models.", "", *coverage_table(rows), ""]
    lines += ["**Two models told apart** (%): p < .05, two-sided, uncorrected.", "", *power_table(scale), ""]
    lines += ["**Any of several unrelated systems** with p < .05 (%).", "", *familywise_table(scale), ""]
    lines += ["**One model, other numbers of stimuli.**", "", *size_table(scale), ""]
    text = page.read_text()
    before, after = text[: text.index(START)], text[text.index(END) :]
    _files.replace(page, (before + "\n".join(lines) + "\n" + after).encode())
    picture(rows).savefig(page.with_name("rsa-inference.png"), dpi=110)
    print(f"{time.perf_counter() - start:.0f} s, {time.process_time():.0f} s of CPU")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(float(value) for value in sys.argv[2:]))
