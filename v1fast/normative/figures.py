"""Figures of the normative comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from v1fast import functional, rsa
from v1fast._plot_style import BLUE, COLOURS, GREY, VERMILLION, new_figure, styled
from v1fast._tables import summarise
from v1fast.data import gratings
from v1fast.normative.experiment import NETWORKS, Normative
from v1fast.normative.networks import initial_filters
from v1fast.normative.training import Trained
from v1fast.rsa import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = (-90.0, -45.0, 0.0, 45.0, 90.0)
ROWS = (-75.0, -25.0, 25.0, 75.0)  # degrees, of the rows of matrices that are drawn
TICKS = (-90, -45, 0, 45, 90)
AXIS = "orientation (degrees)"


@styled
def stimuli(image_shape: tuple[int, int] = (48, 64)) -> Figure:
    """Five gratings, and patches of the same orientations."""
    figure, grid = new_figure(2, len(EXAMPLES), (11.0, 4.0))
    for row, patch in zip(grid, (False, True), strict=True):
        shown = gratings(EXAMPLES, image_shape, patch=patch).numpy()
        for axes, image, degrees in zip(row, shown, EXAMPLES, strict=True):
            axes.imshow(image[0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            tilt = "right" if degrees > 0 else "left"
            axes.set_title(f"{degrees:g}°: {tilt}" if not patch else "", fontsize=11)
        row[0].set_ylabel("patches" if patch else "gratings")
    figure.suptitle("What the networks see, and the answer that they learn; 0 counts as left")
    return figure


@styled
def filters(trained: Trained, count: int, size: int) -> Figure:
    """The initial filters, and what training made of them."""
    first = initial_filters(count, size)[:, 0].numpy()
    network: Any = trained.network
    last = network.conv.weight.detach()[:, 0].numpy()
    figure, grid = new_figure(3, count, (1.6 * count + 1.4, 5.2))
    parts = (("initial", first, 1.0), ("trained", last, 1.0), ("difference", last - first, None))
    for row, (name, shown, limit) in zip(grid, parts, strict=True):
        top = limit or float(np.abs(shown).max()) or 1.0
        for axes, one in zip(row, shown, strict=True):
            image = axes.imshow(one, cmap="RdBu_r", vmin=-top, vmax=top)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
        figure.colorbar(image, ax=row, pad=0.01)
    for number, axes in enumerate(grid[0]):
        axes.set_title(("centre on", "centre off")[number] if number < 2 else f"{180 * (number - 2) / (count - 2):g}°")
    figure.suptitle("Filters of the CNN: the task changes them little")
    return figure


@styled
def losses(trained: Mapping[str, Trained]) -> Figure:
    """Loss of the last batch of each epoch, for each network."""
    figure, axes = new_figure(1, 1, (7.0, 4.4))
    for (name, one), colour in zip(trained.items(), COLOURS, strict=False):
        label = f"{name}: {one.test_accuracy:.1%} of new gratings right"
        axes.plot(np.arange(1, len(one.losses) + 1), np.maximum(one.losses, 1e-8), color=colour, lw=1.8, label=label)
    axes.set(yscale="log", xlabel="epoch", ylabel="cross-entropy of the last batch")
    axes.legend()
    axes.set_title("All networks learn to tell left from right")
    return figure


def _four(found: Normative) -> dict[str, NDArray[Any]]:
    """Pixels, the layers of the first CNN, and V1."""
    layers = {layer: found.of("tilt: CNN", layer) for layer in ("pool", "fc")}
    return {"pixels": found.of("pixels", "pixels"), **layers, "V1": found.v1.responses}


@styled
def rdms(found: Normative) -> Figure:
    """Dissimilarity matrices of pixels, the layers of the CNN, and V1, from 0 to 2."""
    figure, panels = new_figure(1, 4, (15.0, 4.3))
    low, high = found.v1.degrees[0], found.v1.degrees[-1]
    for axes, (name, values) in zip(panels, _four(found).items(), strict=True):
        matrix = np.array(functional.rdm(values))
        image = axes.imshow(matrix, vmin=0, vmax=2, cmap="viridis", extent=(low, high, high, low))
        axes.set(xticks=TICKS, yticks=TICKS, xlabel=AXIS)
        axes.set_title(name)
    panels[0].set_ylabel(AXIS)
    figure.colorbar(image, ax=panels, label="1 - correlation", shrink=0.85, pad=0.01)
    figure.suptitle("How differently two orientations are represented (CNN trained on tilt)")
    return figure


def rows(found: Normative) -> Figure:
    """Rows of the matrices: how far a few orientations are from all others."""
    matrices = {name: np.array(functional.rdm(values)) for name, values in _four(found).items()}
    nearest = {name: rsa.rows_nearest(matrix, found.v1.degrees, ROWS) for name, matrix in matrices.items()}
    return plots.rdm_rows(
        found.v1.degrees,
        {name: chosen for name, (_, chosen) in nearest.items()},
        nearest["V1"][0],
        axis=AXIS,
        title="Distance of four orientations to all others. At 0, where the answer changes, fc has a step.\n"
        "In V1 the nearest neighbours are far too: noise. An orientation's distance to itself alone is 0.",
    )


@styled
def tuning(found: Normative, count: int = 10) -> Figure:
    """Tuning curves of the hidden units, and of as many neurons of V1 with the largest range."""
    figure, (units, neurons) = new_figure(1, 2, (11.0, 4.3))
    degrees = found.v1.degrees
    fc = found.of("tilt: CNN", "fc")
    for number in range(min(count, fc.shape[1])):
        units.plot(degrees, fc[:, number], color=COLOURS[number % len(COLOURS)], lw=1.6)
    units.set_title(f"CNN trained on tilt: {fc.shape[1]} hidden units")
    units.axhline(0, color=GREY, lw=0.8)
    units.set_ylabel("input of the unit's ReLU")
    curves = rsa.tuning_curves(found.v1.responses, degrees, 30)
    span = curves.mean.max(0) - curves.mean.min(0)
    top = np.argsort(-span)[: 10 * count]
    chosen = top[np.argsort(curves.mean[:, top].argmax(0), kind="stable")][:: max(1, len(top) // count)][:count]
    for number, neuron in enumerate(chosen):
        neurons.plot(curves.centre, curves.mean[:, neuron], color=COLOURS[number % len(COLOURS)], lw=1.6)
    neurons.set_title(f"V1: {len(chosen)} of the {len(top)} most tuned neurons")
    neurons.set_ylabel("response (z-score), mean of 6 degrees")
    for axes in (units, neurons):
        axes.set(xlabel=AXIS, xticks=TICKS)
    figure.suptitle("Units that judge tilt change slowly over all orientations; neurons respond to a few")
    return figure


def maps(found: Normative) -> Figure:
    """Stimuli in two dimensions: t-SNE of up to 20 principal components."""
    count = len(found.v1.degrees)
    perplexity = min(30.0, (count - 1) / 3)
    places = {
        name: rsa.tsne(values, components=20, perplexity=perplexity) for name, values in _four(found).items()
    }  # fmt: skip
    return plots.low_dimensional_map(
        places,
        found.v1.degrees + 90,
        period=180,
        label="orientation + 90 (degrees)",
        title="t-SNE of 20 principal components: one point for each orientation",
    )


def layers(found: Normative) -> Figure:
    """Similarity with V1 of each layer of the networks trained on tilt, first seed."""
    values = {}
    for row in found.rows:
        if row["system"] == "pixels":
            values["pixels"] = row["similarity"]
        for kind in NETWORKS:
            if row["system"] == f"tilt: {kind}" and row["seed"] == found.settings.seed:
                values[f"{kind}: {row['layer']}"] = row["similarity"]
    return plots.similarity_bars(
        values,
        label="correlation of dissimilarity matrices",
        title=f"Networks trained on tilt: similarity to {found.v1.responses.shape[1]:,} neurons of V1",
    )


@styled
def tasks(rows: Sequence[Mapping[str, Any]], ceiling: tuple[float, float] | None = None) -> Figure:
    """Similarity with V1 of all tasks and models: dots are seeds, bars their means.

    Left: plain matrices of single stimuli. Right: with V1's matrix cross-validated over the stimuli of a bin.

    Args:
        rows: of ``similarity_row``.
        ceiling: of a true model, for the right panel.
    """
    names = list(dict.fromkeys((row["system"], row["layer"]) for row in rows))
    figure, panels = new_figure(1, 2, (12.5, 0.36 * len(names) + 1.6), sharey=True)
    colours = {"pool": BLUE, "fc": VERMILLION}
    places = np.arange(len(names))[::-1]
    for axes, key in zip(panels, ("similarity", "crossvalidated"), strict=True):
        table = {(row["system"], row["layer"]): row for row in summarise(rows, ("system", "layer"), key)}
        for place, name in zip(places, names, strict=True):
            colour = colours.get(name[1], GREY)
            axes.barh(place, table[name]["mean"], 0.65, color=colour, alpha=0.55)
            dots = [row[key] for row in rows if (row["system"], row["layer"]) == name]
            axes.plot(dots, [place] * len(dots), "o", ms=4, color=colour)
            if np.isnan(table[name]["mean"]):
                axes.annotate("undefined", (0.01, place), va="center", fontsize=9)
            else:
                right = max(0, *dots)
                axes.annotate(f"{table[name]['mean']:.2f}", (right, place), xytext=(5, 0),
                              textcoords="offset points", va="center", fontsize=9)  # fmt: skip
        axes.axvline(0, color="black", lw=0.8)
        axes.set(xlabel="correlation of dissimilarity matrices with V1's", xlim=(min(0, axes.get_xlim()[0]), 1.08))
    if ceiling is not None and np.isfinite(ceiling).all():
        label = "right: a true model, {:.3f} to {:.3f}".format(*ceiling)
        panels[1].axvspan(*ceiling, color="#CCCCCC", zorder=0, label=label)
    solved = {(row["system"], row["layer"]): row["solved"] for row in reversed(rows)}
    labels = [f"{system}, {layer}" if layer != system else system for system, layer in names]
    for number, pair in enumerate(names):
        if pair[1] == "fc" and "chance" in solved[pair]:
            labels[number] += f"\n({solved[pair]})"
    panels[0].set_yticks(places, labels, fontsize=9)
    for layer, colour in colours.items():
        panels[0].barh(np.nan, np.nan, color=colour, alpha=0.55, label=f"layer {layer}")
    figure.legend(loc="outside lower center", ncols=3)
    panels[0].set_title("single stimuli (noise included)")
    panels[1].set_title("cross-validated over neighbouring stimuli")
    figure.suptitle("Which task makes a representation most like V1? Dots: networks; bars: their means")
    return figure
