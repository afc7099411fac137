"""The pictures of a run's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from v1fast._plot_style import BLUE, COLOURS, GREY, VERMILLION, new_figure, styled
from v1fast.runs.evaluation import Judgement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKED_APART = 8  # recordings, as many as there are colours


@styled
def learning_curves(epochs: Sequence[Mapping[str, float]], best_epoch: int) -> Figure:
    """Loss, validation correlation and learning rate, one value for each epoch.

    Args:
        epochs: see :class:`v1fast.training.History`.
        best_epoch: counted from 1, whose weights are kept.
    """
    judged = "val_correlation" in epochs[0]
    figure, panels = new_figure(1, 3 if judged else 2, (12.0 if judged else 8.0, 3.4))
    number = [epoch["epoch"] for epoch in epochs]
    style: dict[str, Any] = {"lw": 2, "marker": "o" if len(epochs) < 30 else None, "ms": 4}
    panels[0].plot(number, [epoch["train_loss"] for epoch in epochs], color=BLUE, **style)
    panels[0].set(ylabel="training loss of a step", title="Loss, with penalties")
    if judged:
        values = [epoch["val_correlation"] for epoch in epochs]
        panels[1].plot(number, values, color=VERMILLION, **style)
        panels[1].set(ylabel="correlation with single responses")
        panels[1].set_title(f"Validation reaches {np.nanmax(values):.3f}")
        panels[1].axvline(best_epoch, color=GREY, ls="--", lw=1, label=f"epoch {best_epoch}, which is kept")
        panels[1].legend(fontsize=9)
    panels[-1].plot(number, [epoch["learning_rate"] for epoch in epochs], color="black", **style)
    panels[-1].set(ylabel="learning rate", yscale="log", title="Learning rate")
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


@styled
def neurons(judgements: Mapping[str, Judgement]) -> Figure:
    """How well single neurons are predicted: distributions, and against the oracle where images were repeated."""
    repeated = {name: j for name, j in judgements.items() if "oracle_correlation" in j.table}
    figure, panels = new_figure(1, 2 if repeated else 1, (9.5 if repeated else 5.0, 4.2))
    panels = np.atleast_1d(panels)
    for (name, judgement), colour in _coloured(judgements):
        values = judgement.table["single_trial_correlation"]
        values = values[~np.isnan(values)]
        if len(values):
            panels[0].ecdf(values, color=colour, lw=2, label=name)
    panels[0].set(ylim=(0, 1), xlabel="correlation with single responses", ylabel="fraction of neurons")
    panels[0].set_title("Single neurons")
    _legend(panels[0], judgements)
    if repeated:
        _oracle(panels[1], repeated)
    return figure


def _oracle(axes: Axes, judgements: Mapping[str, Judgement]) -> None:
    top = 0.0
    for (name, judgement), colour in _coloured(judgements):
        oracle, value = (judgement.table[key] for key in ("oracle_correlation", "single_trial_correlation"))
        slope = judgement.fraction_oracle.value if judgement.fraction_oracle is not None else np.nan
        size = 4 if len(oracle) < 1000 else 2
        axes.plot(oracle, value, "o", ms=size, mew=0, alpha=0.5, color=colour, label=f"{name}: slope {slope:.2f}")
        top = max(top, float(np.nanmax(oracle, initial=0)), float(np.nanmax(value, initial=0)))
        axes.plot([0, 1], [0, slope], color=colour, lw=1.5)
    axes.plot([0, 1], [0, 1], color=GREY, ls="--", lw=1)
    axes.set(xlim=(min(0, axes.get_xlim()[0]), 1.05 * top), ylim=(min(0, axes.get_ylim()[0]), 1.05 * top))
    axes.set(xlabel="oracle: other repeats of the image", ylabel="model: correlation with single responses")
    axes.set_title("Fraction oracle: the slope")
    if len(judgements) <= MARKED_APART:
        keys: Any = axes.legend(fontsize=9).legend_handles
        for key in keys:  # the dots of many neurons are too small there
            key.set(markersize=6, alpha=1)


@styled
def positions(found: Mapping[str, Judgement], image_shapes: Mapping[str, Sequence[int]]) -> Figure:
    """Where the neurons look, in pixels of the images that the model is given.

    Args:
        found: by session, those whose readouts have positions.
        image_shapes: (C, H, W) by session.
    """
    columns = min(len(found), 3)
    rows = -(-len(found) // columns)
    _, height, width = next(iter(image_shapes.values()))
    figure, grid = new_figure(rows, columns, (4.4 * columns, (4.4 * height / width + 0.7) * rows))
    cells = np.atleast_1d(grid).ravel()
    points: Any = None
    for axes, (name, judgement) in zip(cells, found.items(), strict=False):
        table = judgement.table
        _, height, width = image_shapes[name]
        colour = table["single_trial_correlation"]
        known = ~np.isnan(colour)
        axes.plot(table["x"][~known], table["y"][~known], "x", ms=3, color=GREY)
        points = axes.scatter(
            table["x"][known], table["y"][known], c=colour[known], s=9, cmap="viridis", vmin=0, vmax=_top(found)
        )
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="equal", xlabel="x (px)", ylabel="y (px)")
        axes.set_title(f"{name}: {len(colour)} neurons", fontsize=11)
        for side in ("top", "right"):  # the frame is the edge of the image here
            axes.spines[side].set_visible(True)
    for axes in cells[len(found) :]:
        axes.set_axis_off()
    figure.colorbar(points, ax=list(cells[: len(found)]), label="single-trial correlation", shrink=0.8)
    return figure


def _top(judgements: Mapping[str, Judgement]) -> float:
    values = np.concatenate([judgement.table["single_trial_correlation"] for judgement in judgements.values()])
    return float(np.nanquantile(values, 0.99)) if not np.isnan(values).all() else 1.0


def _coloured(judgements: Mapping[str, Judgement]) -> list[tuple[tuple[str, Judgement], str]]:
    colours = COLOURS if len(judgements) <= MARKED_APART else (GREY,) * len(judgements)
    return list(zip(judgements.items(), colours, strict=False))


def _legend(axes: Axes, judgements: Mapping[str, Judgement]) -> None:
    if 1 < len(judgements) <= MARKED_APART:
        axes.legend(fontsize=9)
