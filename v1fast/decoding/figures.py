"""Figures of decoding."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from v1fast import rsa
from v1fast._plot_style import BLUE, COLOURS, GREEN, GREY, ORANGE, VERMILLION, new_figure, styled
from v1fast._tables import summarise
from v1fast.decoding.baselines import from_circle, on_circle
from v1fast.decoding.depth import learn_board
from v1fast.decoding.experiment import Classified, Decoded, Population
from v1fast.decoding.macaque import Session
from v1fast.rsa._matrices import to_squares

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
MOST_ROWS = 800  # neurons in a picture of responses
WIDTH_OF_BINS = 15.0  # degrees, of preferred directions


def _ticks(period: float) -> list[float]:
    return [period * k / 4 for k in range(5)]


def preferred_directions(population: Population) -> Floats:
    """[N]: the direction of the sum of all stimuli, each weighted by the response to it where that is positive."""
    positive = np.clip(population.responses, 0, None)
    return from_circle(positive.T @ on_circle(population.degrees, population.period), population.period)


def most_tuned(population: Population, count: int, bins: int = 36) -> NDArray[np.int64]:
    """Indices of the neurons whose mean responses vary most over bins of directions, the most variable first."""
    tuning = rsa.tuning_curves(population.responses, population.degrees, bins, period=population.period)
    return np.argsort(-tuning.mean.std(0))[:count]


@styled
def data_matrix(population: Population) -> Figure:
    """Responses of neurons, sorted by their preferred direction, to all stimuli.

    Preferred directions come from every other stimulus and the picture shows the rest: else noise would be sorted onto
    a diagonal too.
    """
    order = np.argsort(population.degrees, kind="stable")
    halves = [
        dataclasses.replace(
            population,
            responses=population.responses[order[k::2]],
            degrees=population.degrees[order[k::2]],
            preferred=None,
        )
        for k in (0, 1)
    ]
    tuned = most_tuned(halves[0], MOST_ROWS)
    sorted_by = tuned[np.argsort(preferred_directions(halves[0])[tuned])]
    shown = halves[1].responses[:, sorted_by].T
    figure, axes = new_figure(1, 1, (7.2, 5.2))
    limit = 2.5
    degrees = halves[1].degrees
    image = axes.imshow(
        shown,
        aspect="auto",
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        extent=(degrees[0], degrees[-1], len(shown), 0),
        interpolation="nearest",
    )
    axes.set(xlabel="direction of the grating (degrees)", xticks=_ticks(population.period))
    axes.set_ylabel("neuron, sorted by its preferred direction\nfor the other half of the stimuli")
    axes.set_title(f"The {len(shown)} most tuned of {population.responses.shape[1]:,} neurons")
    figure.colorbar(image, ax=axes, label="response (z-score)", extend="both")
    return figure


@styled
def tuning(population: Population, count: int = 8) -> Figure:
    """Responses of single neurons to all stimuli, and their means in 36 bins."""
    tuned = most_tuned(population, 40 * count)
    chosen = tuned[np.linspace(0, len(tuned) - 1, count).astype(int)]
    shown, period = population.responses[:, chosen], population.period
    curves = rsa.tuning_curves(shown, population.degrees, 36, period=period)
    columns = min(4, count)
    figure, grid = new_figure(-(-count // columns), columns, (2.9 * columns + 0.4, 5.4), sharey=True)
    for number, axes in enumerate(np.ravel(grid)[:count]):
        axes.plot(population.degrees, population.responses[:, chosen[number]], ".", ms=3, color=GREY, alpha=0.5)
        axes.plot(curves.centre, curves.mean[:, number], color=BLUE, lw=2)
        axes.set_title(f"neuron {chosen[number]}")
        axes.set_xticks(_ticks(period))
        axes.tick_params(axis="x", labelsize=9)
    figure.supxlabel("direction of the grating (degrees)")
    figure.supylabel("response (z-score)")
    figure.suptitle(
        f"{count} of the {len(tuned)} most tuned neurons: single stimuli, and the mean of {period / 36:g} degrees\n"
        "One peak: the neuron tells opposite directions apart. Two equal peaks: it does not."
    )
    return figure


@styled
def losses(first: Mapping[str, Decoded]) -> Figure:
    """Train and test loss against the number of stimuli that the descent has used.

    Args:
        first: decoders by name; those without a descent are left out.
    """
    shown = [one for one in first.values() if one.descent is not None]
    figure, panels = new_figure(1, 2, (10.5, 4.4), sharey=True)
    for one, colour in zip(shown, COLOURS, strict=False):
        assert one.descent is not None
        panels[0].plot(one.descent.seen, _smoothed(one.descent.train), color=colour, lw=1.8, label=one.decoder)
        panels[1].plot(one.descent.seen, one.descent.test, color=colour, lw=1.8)
    for axes, name in zip(panels, ("training stimuli", "held-out stimuli"), strict=True):
        axes.set(yscale="log", xlabel="stimuli used so far, with repetitions")
        axes.set_title(name)
    panels[0].set_ylabel("squared error (degrees²)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle("Gradient descent uses all training stimuli in a step, SGD a few")
    return figure


def _smoothed(values: Floats, count: int = 400) -> Floats:
    """Losses of batches: the mean over as many neighbouring steps as leave ``count`` / 4 independent values."""
    if len(values) <= count:
        return values
    width = 4 * len(values) // count
    kernel = np.ones(width) / width
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    smooth: Floats = np.convolve(padded, kernel, "valid")
    return smooth


@styled
def decoded_against_true(first: Mapping[str, Decoded], rows: Sequence[Mapping[str, Any]], classes: int) -> Figure:
    """Decoded against true directions of held-out stimuli, with the identity line and the bins of classes.

    Args:
        first: decoders by name, on one split.
        rows: of all splits, whose mean errors are written above the panels.
        classes: number of bins.
    """
    table = {row["decoder"]: row["mean"] for row in summarise(rows, ("decoder",), "circular_error")}
    columns = min(4, len(first))
    count = -(-len(first) // columns)
    figure, grid = new_figure(count, columns, (3.05 * columns + 0.4, 3.4 * count + 0.7), sharey=True)
    period = next(iter(first.values())).period
    edges, ticks = np.linspace(0, period, classes + 1), _ticks(period)
    for axes, one in zip(np.ravel(grid), first.values(), strict=False):
        for low, high in itertools.pairwise(edges):
            axes.fill_between([low, high], low, high, color=GREY, alpha=0.25, lw=0)
        axes.plot([0, period], [0, period], color="black", lw=0.8)
        axes.plot(one.true, np.clip(one.decoded, -period / 6, 7 * period / 6), "o", ms=3, color=BLUE, alpha=0.7, mew=0)
        axes.set(xlim=(-0.03 * period, 1.03 * period), ylim=(-0.2 * period, 1.2 * period), xticks=ticks, yticks=ticks)
        axes.tick_params(axis="x", labelsize=9)
        axes.set_title(f"{one.decoder}\n{table[one.decoder]:.1f}° off", fontsize=11)
    for axes in np.ravel(grid)[len(first) :]:
        axes.set_axis_off()
    figure.supxlabel("true direction (degrees)")
    figure.supylabel("decoded direction (degrees)")
    figure.suptitle(
        f"Held-out stimuli of one split; line: right answers; grey: right one of {classes} classes\n"
        f"Above each: mean error on the circle, over all splits. A network on a line fails where {period:g} meets 0."
    )
    return figure


@styled
def errors(rows: Sequence[Mapping[str, Any]], classified: Sequence[Mapping[str, Any]]) -> Figure:
    """Errors of all decoders on the circle and on the line, mean and 95 % interval over splits, with chance.

    Args:
        rows: of decoders and splits.
        classified: of splits, of the classes.
    """
    names = list(dict.fromkeys(row["decoder"] for row in rows))
    figure, (circle, accuracy) = new_figure(1, 2, (11.5, 4.6), width_ratios=[3.2, 1])
    for shift, (kind, label, colour) in zip(
        (-0.2, 0.2),
        (("circular", "on the circle", BLUE), ("plain", "on the line: 359 is far from 0", ORANGE)),
        strict=True,
    ):
        table = summarise(rows, ("decoder",), f"{kind}_error")
        chance = float(np.mean([row[f"{kind}_chance"] for row in rows]))
        places = np.arange(len(names)) + shift
        circle.bar(places, [row["mean"] for row in table], 0.38, color=colour, label=label)
        for place, row in zip(places, table, strict=True):
            if not np.isnan(row["low"]):
                circle.plot([place, place], [max(row["low"], 0.05), row["high"]], color="black", lw=1.2)
            circle.annotate(f"{row['mean']:.1f}", (place, np.fmax(row["mean"], row["high"])), xytext=(0, 2),
                            textcoords="offset points", ha="center", fontsize=9)  # fmt: skip
        circle.axhline(chance, color=colour, ls="--", lw=1.2, label=f"chance, {label.partition(':')[0]}: {chance:.0f}°")
    circle.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names], fontsize=9)
    circle.set(yscale="log", ylabel="mean error (degrees)", ylim=(1, 300))
    circle.set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    circle.legend(fontsize=9, loc="upper center", ncols=2)
    circle.set_title("Directions of held-out stimuli\n")
    values = {key: [row[key] for row in classified] for key in ("accuracy", "at_most_one_class_off", "chance")}
    means = [float(np.mean(values[key])) for key in values]
    bars = accuracy.bar(["right", "or next\nto it", "chance"], means, 0.6, color=[GREEN, "#8fd1bd", GREY])
    accuracy.bar_label(bars, [f"{mean:.2f}" for mean in means], fontsize=9, padding=2)
    accuracy.set(ylabel="share of held-out stimuli", ylim=(0, 1.12))
    accuracy.set_title("Classes\n(softmax network)")
    splits = len({row["split"] for row in rows})
    figure.supxlabel(
        f"mean and 95 % interval of {splits} splits" if splits > 1 else "one split: no interval", fontsize=10
    )
    return figure


@styled
def class_weights(classified: Classified, population: Population) -> Figure:
    """Weights of the softmax network over neurons sorted by their preferred direction.

    Left: of hidden units; right: of classes, through the hidden layer. Weights are means over the neurons of each bin
    of 15 degrees.

    Args:
        classified: of a split.
        population: that was decoded.
    """
    preferred = population.preferred if population.preferred is not None else preferred_directions(population)
    period = population.period
    bins = int(period // WIDTH_OF_BINS)
    where = np.minimum(preferred // WIDTH_OF_BINS, bins - 1).astype(int)
    counts = np.maximum(1, np.bincount(where, minlength=bins))

    def binned(weights: Floats) -> Floats:
        return np.stack([np.bincount(where, row, bins) for row in weights]) / counts

    hidden = binned(classified.weights)
    through = binned(classified.output @ classified.weights)
    hidden = hidden[np.argsort(hidden.argmax(1))]
    figure, panels = new_figure(1, 2, (10.5, 4.3))
    texts = (
        ("hidden unit, sorted", "Hidden layer"),
        ("class of directions", "Classes, through the hidden layer"),
    )
    for axes, shown, (ylabel, title) in zip(panels, (hidden, through), texts, strict=True):
        limit = float(np.abs(shown).max()) or 1.0
        image = axes.imshow(
            shown, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(0, period, len(shown), 0)
        )
        axes.set(xlabel="preferred direction of the neurons (degrees)", ylabel=ylabel, xticks=_ticks(period))
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_title(title)
        figure.colorbar(image, ax=axes, label="mean weight")
    source = "true" if population.preferred is not None else "measured"
    figure.suptitle(f"Each class reads the neurons that prefer it ({source} preferred directions)")
    return figure


@styled
def sizes(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Train and test loss, and circular error, of networks of several widths and depths.

    Args:
        rows: of ``width_and_depth``.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure, panels = new_figure(1, 3, (12.5, 4.0))
    depths = sorted({row["depth"] for row in rows})
    texts = (
        ("train_loss", "training loss (degrees²)"),
        ("test_loss", "held-out loss (degrees²)"),
        ("circular_error", "held-out error on the circle (degrees)"),
    )
    for axes, (key, label) in zip(panels, texts, strict=True):
        for depth, colour in zip(depths, COLOURS, strict=False):
            chosen = [row for row in rows if row["depth"] == depth]
            name = f"{depth} hidden layer{'s' if depth > 1 else ''}"
            axes.plot([row["width"] for row in chosen], [row[key] for row in chosen], "o-", color=colour, label=name)
        axes.set(xscale="log", yscale="log", xlabel="units in each hidden layer", ylabel=label)
        ticks = sorted({row["width"] for row in rows})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    panels[0].legend()
    figure.suptitle("Rectified networks that decode direction, by width and depth, all after the same number of steps")
    return figure


@styled
def boards(widths: Sequence[int], depths: Sequence[int], table: Floats, *, steps: int = 800) -> Figure:
    """XOR: what networks without and with a nonlinearity answer; and a finer board, over width and depth.

    Args:
        widths, depths: of the networks of the table.
        table: [depths, widths], errors on the finer board, of ``board_losses``.
        steps: of the fits to XOR.
    """
    nets = (
        ("no hidden layer", 0, "none"),
        ("linear hidden layer", 1, "none"),
        ("rectified, 1 layer", 1, "relu"),
        ("rectified, 2 layers", 2, "relu"),
    )
    figure, panels = new_figure(1, 5, (14.0, 3.6), width_ratios=[1, 1, 1, 1, 1.6])
    side = torch.linspace(-1, 1, 120)
    y, x = torch.meshgrid(side, side, indexing="ij")
    for axes, (name, depth, activation) in zip(panels, nets, strict=False):
        loss, network = min(
            (learn_board(8, depth, activation=activation, seed=seed, steps=steps) for seed in range(4)), key=_loss
        )
        with torch.no_grad():
            answer = network(torch.stack([x.flatten(), y.flatten()], 1)).reshape(120, 120).numpy()
        axes.imshow(answer, cmap="RdBu_r", vmin=-1.3, vmax=1.3, extent=(-1, 1, -1, 1), origin="lower")
        axes.plot([-0.5, 0.5], [-0.5, 0.5], "o", mfc=BLUE, mec="white", ms=9)
        axes.plot([-0.5, 0.5], [0.5, -0.5], "s", mfc=VERMILLION, mec="white", ms=9)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{name}\nerror {loss:.2f}", fontsize=11)
    image = panels[4].imshow(table, cmap="viridis", vmin=0, vmax=1, aspect="auto", origin="lower")
    for (row, column), value in np.ndenumerate(table):
        panels[4].text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    panels[4].set_xticks(range(len(widths)), [str(width) for width in widths])
    panels[4].set_yticks(range(len(depths)), [str(depth) for depth in depths])
    panels[4].set(xlabel="units in each layer", ylabel="hidden layers")
    panels[4].set_title("board of 4 x 4 squares: error\n(1: nothing learned)", fontsize=11)
    figure.colorbar(image, ax=panels[4], label="squared error")
    figure.suptitle(
        "XOR: opposite corners of a square are of one colour. No linear network separates them, however deep\n"
        "(8 units a layer; colours: the network's answer). On a finer board, few units in several layers replace many "
        "in one."
    )
    return figure


def _loss(found: tuple[float, Any]) -> float:
    return found[0]


@styled
def macaque(sessions: Sequence[Session]) -> Figure:
    """Accuracy, orientation error and reliability of the matrices of all sessions."""
    figure, (accuracy, error, half) = new_figure(1, 3, (13.5, 4.2))
    x = np.array([one.number for one in sessions])
    markers = "osD"
    for (name, colour), marker in zip(
        zip(sessions[0].accuracy, (BLUE, VERMILLION, GREEN), strict=False), markers, strict=False
    ):
        accuracy.plot(x, [one.accuracy[name] for one in sessions], marker, color=colour, ms=5, label=name)
        error.plot(x, [one.error[name] for one in sessions], marker, color=colour, ms=5)
    accuracy.step(x, [1 / len(one.contrasts) for one in sessions], where="mid", color=GREY, ls="--", label="chance")
    accuracy.set(ylim=(0, 1), ylabel="share of trials decoded")
    accuracy.set_title("Condition: contrast and orientation")
    accuracy.legend(fontsize=9, loc="upper left")
    error.axhline(45, color=GREY, ls="--")
    error.set(ylim=(0, 50), ylabel="mean error (degrees)")
    error.set_title("Orientation, on the circle of 180 degrees")
    half.plot(x, [one.split_half for one in sessions], "o", color=BLUE)
    half.set(ylim=(0, 1.02), ylabel="correlation of two halves")
    half.set_title("Dissimilarity matrix: split-half")
    for axes in (accuracy, error, half):
        axes.set_xlabel("session")
    figure.suptitle(f"Macaque V1, {len(sessions)} sessions, spike counts in 500 ms, across repeats")
    return figure


@styled
def macaque_rdms(sessions: Sequence[Session], shown: Sequence[int] = (4, 7, 9, 12)) -> Figure:
    """Matrices of a few sessions, cross-validated across repeats.

    Args:
        sessions: of ``analyse_macaque``.
        shown: their numbers.
    """
    chosen = [one for one in sessions if one.number in shown] or list(sessions[:4])
    figure, panels = new_figure(1, len(chosen), (3.6 * len(chosen) + 1.0, 4.2))
    for axes, one in zip(np.atleast_1d(panels), chosen, strict=True):
        matrix = to_squares(one.crossvalidated[None])[0]
        np.fill_diagonal(matrix, np.nan)
        image = axes.imshow(matrix, cmap="viridis", vmin=0, vmax=1.2)
        _condition_labels(axes, one)
        axes.set_title(f"session {one.number}: {one.neurons} neurons")
    figure.colorbar(
        image, ax=np.atleast_1d(panels), label="correlation distance,\ncross-validated", shrink=0.8, extend="both"
    )
    figure.suptitle("Gratings of macaque V1: orientations (degrees) within two contrasts")
    return figure


def _condition_labels(axes: Axes, session: Session) -> None:
    edge = int((session.contrasts == session.contrasts[0]).sum())
    count = len(session.contrasts)
    for draw in (axes.axhline, axes.axvline):
        draw(edge - 0.5, color="white", lw=1)
    places = [k for k in range(count) if session.orientations[k] in (0, 45, 90, 135)]
    names = [f"{session.orientations[k]:g}" for k in places]
    axes.set_xticks(places, names, fontsize=8, rotation=90)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_xlabel(f"{session.contrasts[0]:g} %" + " " * 16 + f"{session.contrasts[-1]:g} % contrast")
