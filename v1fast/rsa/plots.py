"""Figures of dissimilarity matrices and derived results, as ``matplotlib.figure.Figure``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from v1fast._plot_style import BLUE, COLOURS, new_figure, styled
from v1fast.rsa._matrices import Condensed, condensed, to_squares
from v1fast.rsa.embedding import Tuning
from v1fast.rsa.resampling import OVER
from v1fast.rsa.similarity import ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from v1fast.rsa.comparisons import ModelComparison

MOST_DRAWN = 1000  # stimuli in a heat map: more have no pixel of their own
FEW_POINTS = 20  # up to which each bears its value
MOST_BRACKETS = 10  # between bars; more are only counted
ABOVE, BELOW = "*", "\N{WHITE DOWN-POINTING TRIANGLE}"  # what stands behind the names of models
MANY_NAMES = 4  # bars beside each other, from which on their names stand aslant


@styled
def rdm_heatmaps(
    rdms: Mapping[str, Condensed | ArrayLike],
    *,
    groups: Sequence[str] | None = None,
    percentiles: bool = False,
    limits: tuple[float, float] | None = None,
    axis: str = "stimulus",
    title: str = "",
) -> Figure:
    """Draw dissimilarity matrices side by side, with one colour scale.

    Args:
        rdms: name -> one matrix, as for ``compare``, all of the same S stimuli.
        groups: [S], the group of each stimulus. Neighbours of one group form a block, which is outlined and named.
        percentiles: draw the rank of each entry within its matrix, from 0 to 100, for matrices with different units.
        limits: of the colours; by default from 0, or the smallest entry, to the largest. NaN entries are white, and
            counted above the matrix.
        axis: what rows and columns are, if there are no groups.
        title: of the whole figure.
    """
    matrices = {name: _drawn(name, rdm, percentiles) for name, rdm in rdms.items()}
    stimuli = {len(matrix) for matrix in matrices.values()}
    if len(stimuli) != 1 or (groups is not None and len(groups) != stimuli.copy().pop()):
        raise ValueError(f"rdms, groups: want the same stimuli in all, got {sorted(stimuli)} and {len(groups or ())}")
    columns = len(matrices) if len(matrices) <= 3 else math.ceil(math.sqrt(len(matrices)))
    rows = math.ceil(len(matrices) / columns)
    colours = _viridis_on_white()
    figure, grid = new_figure(rows, columns, (3.3 * columns + 1.8, 3.5 * rows + 0.8))
    every = np.concatenate([matrix[np.isfinite(matrix)] for matrix in matrices.values()])
    low, high = (0, 100) if percentiles else limits or (min(0, every.min(initial=0)), every.max(initial=0) or 1)
    panels = list(np.ravel(grid))
    for number, (axes, (name, matrix)) in enumerate(zip(panels, matrices.items(), strict=False)):
        step = -(-len(matrix) // MOST_DRAWN)
        image = axes.imshow(
            matrix[::step, ::step], cmap=colours, vmin=low, vmax=high, extent=(0, len(matrix), len(matrix), 0)
        )
        axes.set_title(_name_and_undefined(name, matrix))
        names, last = number % columns == 0, number + columns >= len(matrices)
        if groups is None:
            axes.set(xlabel=axis if last else "", ylabel=axis if names else "")
        else:
            _name_groups(axes, groups, names)
    for axes in panels[len(matrices) :]:
        axes.set_axis_off()
    label = "dissimilarity (percentile)" if percentiles else "dissimilarity"
    figure.colorbar(image, ax=panels, label=label, shrink=0.75 if rows == 1 else 0.5, pad=0.02)
    if title:
        figure.suptitle(title)
    return figure


def _name_and_undefined(name: str, matrix: NDArray[Any]) -> str:
    """Return the name and, if some pairs are NaN, their number. They are white, like the diagonal."""
    undefined = int(np.isnan(matrix).sum() - len(matrix)) // 2
    return f"{name}\n({undefined} pairs undefined)" if undefined else name


def _viridis_on_white() -> Colormap:
    from matplotlib import colormaps

    return colormaps["viridis"].with_extremes(bad="white")


def _drawn(name: str, rdm: Condensed | ArrayLike, percentiles: bool) -> NDArray[Any]:
    """Return the drawn values [S, S] with an empty diagonal."""
    vectors, _ = condensed(name, rdm)
    if len(vectors) != 1:
        raise ValueError(f"rdms: want one matrix for each name, got {len(vectors)} for {name!r}")
    vector = vectors[0].astype(np.float64)
    if percentiles:
        present = ~np.isnan(vector)
        order = ranks(vector[present][None])[0]
        vector[present] = 100 * (order - 1) / max(1, len(order) - 1)
    matrix: NDArray[Any] = to_squares(vector[None])[0]
    np.fill_diagonal(matrix, np.nan)
    return matrix


def _name_groups(axes: Axes, groups: Sequence[str], names: bool) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    labels = np.asarray(groups)
    starts = [0, *(np.flatnonzero(labels[1:] != labels[:-1]) + 1), len(labels)]
    for start in starts[1:-1]:
        axes.axhline(start, color="white", lw=1)
        axes.axvline(start, color="white", lw=1)
    middles = [(a + b) / 2 for a, b in itertools.pairwise(starts)]
    axes.set_xticks(middles, [labels[a] for a in starts[:-1]], rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(middles, [labels[a] for a in starts[:-1]] if names else [""] * len(middles))
    axes.tick_params(length=0)


@styled
def similarity_bars(
    similarity: Mapping[str, float],
    *,
    intervals: ArrayLike | None = None,
    ceiling: tuple[float, float] | None = None,
    label: str = "RDM correlation",
    title: str = "",
    ceiling_name: str = "noise ceiling",
    marks: Sequence[str] | None = None,
    brackets: Sequence[tuple[int, int]] = (),
    explanation: str = "",
) -> Figure:
    """Draw the similarity of models' dissimilarity matrices to the data's, with the noise ceiling as a band.

    Args:
        similarity: name -> value; a NaN has no bar and is marked as undefined.
        intervals: [2, K], lower and upper ends, in the order of the names.
        ceiling: lower and upper bound, as from ``noise_ceiling``.
        label: of the values.
        title: of the figure.
        ceiling_name: name of the band.
        marks: [K], symbols that follow the names below the bars.
        brackets: pairs of bars that a bracket joins.
        explanation: of marks and brackets, below the figure.
    """
    names, values = list(similarity), np.array(list(similarity.values()), dtype=np.float64)
    levels = _levels(brackets)
    tallest = max(levels, default=-1) + 1
    lines = explanation.count("\n") + 1 if explanation else 0
    figure, axes = new_figure(1, 1, (max(4.5, 0.85 * len(names) + 2.2), 4.4 + 0.2 * tallest + 0.2 * lines))
    if ceiling is not None and not np.isfinite(ceiling).all():
        ceiling, title = None, f"{title}\n({ceiling_name.rstrip(':')} undefined)".strip()
    if ceiling is not None:
        axes.axhspan(
            *ceiling, color="#CCCCCC", lw=0, zorder=0, label=f"{ceiling_name} {ceiling[0]:.2f} to {ceiling[1]:.2f}"
        )
    bars = axes.bar(np.arange(len(names)), values, width=0.65, color=BLUE, zorder=2)
    ends = lowest = values
    if intervals is not None:
        low, high = np.asarray(intervals, dtype=np.float64)
        ends, lowest = np.where(values < 0, np.fmin(low, values), np.fmax(high, values)), np.fmin(low, values)
        axes.vlines(np.arange(len(names)), low, high, color="black", lw=1.4, zorder=3)
    axes.axhline(0, color="black", lw=0.8)
    for bar, value, end in zip(bars, values, ends, strict=True):
        place = bar.get_x() + bar.get_width() / 2
        axes.annotate(
            "undefined" if np.isnan(value) else f"{value:.2f}",
            (place, 0 if np.isnan(value) else end),
            xytext=(0, -4 if value < 0 else 4),
            textcoords="offset points",
            ha="center",
            va="top" if value < 0 else "bottom",
        )
    aslant = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if len(names) > MANY_NAMES else {}
    marked = [f"{name} {mark}".strip() for name, mark in zip(names, marks or [""] * len(names), strict=True)]
    axes.set_xticks(np.arange(len(names)), marked, **aslant)
    top = max(0.01, np.fmax.reduce(ends, initial=0), *(ceiling or ()))
    low_end = np.fmin.reduce(lowest, initial=0)
    margin = 0.12 * (top - low_end)  # for the numbers
    step = 0.055 * (top - low_end)
    for (first, last), level in zip(brackets, levels, strict=True):
        height = top + margin + step * (level + 1)
        foot = height - 0.35 * step
        axes.plot([first, first, last, last], [foot, height, height, foot], color="black", lw=1.1, clip_on=False)
    room = margin + step * (tallest + 1 if tallest else 0)
    axes.set(ylabel=label, ylim=(low_end - margin if low_end < 0 else 0, top + room))
    if ceiling is not None or explanation:
        handles, labels = axes.get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside lower center", title=explanation or None)
        legend.get_title().set_multialignment("center")
    if title:
        axes.set_title(title)
    return figure


def _levels(brackets: Sequence[tuple[int, int]]) -> list[int]:
    """Return a height for each bracket, 0 .., so that none crosses or touches another one of its height."""
    found = [0] * len(brackets)
    ends: list[list[tuple[int, int]]] = []
    for k in sorted(range(len(brackets)), key=lambda k: abs(brackets[k][1] - brackets[k][0])):
        low, high = sorted(brackets[k])
        free = [level for level, taken in enumerate(ends) if all(high < a or low > b for a, b in taken)]
        found[k] = free[0] if free else len(ends)
        ends += [] if free else [[]]
        ends[found[k]].append((low, high))
    return found


@styled
def comparison_bars(
    comparison: ModelComparison, *, alpha: float = 0.05, label: str = "RDM correlation", title: str = ""
) -> Figure:
    """Draw the similarities of models, their intervals, the noise ceiling, and which tests are below ``alpha``.

    All p are corrected familywise. If many pairs of models differ, their number is given instead of brackets.

    Args:
        comparison: as from ``compare_models``.
        alpha: between 0 and 1.
        label: of the values.
        title: of the figure.
    """
    above, below, apart = (
        np.nan_to_num(tests.familywise, nan=1) < alpha
        for tests in (comparison.above_zero, comparison.below_ceiling, comparison.different)
    )
    pairs = [(int(i), int(j)) for i, j in comparison.pairs[apart]]
    said = [f"{ABOVE} above 0"] * bool(above.any()) + [f"{BELOW} below the noise ceiling"] * bool(below.any())
    said = [f"{' and '.join(said)} (one-sided)"] * bool(said)
    if pairs:
        few = len(pairs) <= MOST_BRACKETS
        said.append(f"{'bracket: the two' if few else f'{len(pairs)} of {len(apart)} pairs'} differ (two-sided)")
    tested = f"\np < {alpha:g}, familywise: " + ",\n".join(said) if said else ""
    lines = f"lines: {100 * comparison.level:g} % over {OVER[comparison.over]}"
    return similarity_bars(
        dict(zip(comparison.names, comparison.similarity.tolist(), strict=True)),
        intervals=comparison.interval,
        ceiling=None if np.isnan(comparison.ceiling).all() else comparison.ceiling,
        label=label,
        title=title,
        marks=[ABOVE * bool(a) + BELOW * bool(b) for a, b in zip(above, below, strict=True)],
        brackets=pairs if len(pairs) <= MOST_BRACKETS else (),
        explanation=lines + tested,
    )


@styled
def rdm_rows(
    stimuli: ArrayLike,
    rows: Mapping[str, ArrayLike],
    places: ArrayLike,
    *,
    axis: str = "stimulus",
    title: str = "",
) -> Figure:
    """Draw rows of dissimilarity matrices along an axis: how far each of a few stimuli is from all others.

    Args:
        stimuli: [S], positions on the axis.
        rows: name -> [K, S], as from ``rows_nearest``; one panel each.
        places: [K], positions of the stimuli whose rows are drawn.
        axis: name of the axis, with its unit.
        title: of the figure.
    """
    at, where = np.asarray(stimuli, dtype=np.float64), np.asarray(places, dtype=np.float64)
    order = np.argsort(at)
    figure, panels = new_figure(1, len(rows), (4.2 * len(rows) + 1.2, 3.9))
    top = max(np.fmax.reduce(np.asarray(found, dtype=np.float64), axis=None, initial=0) for found in rows.values())
    for axes, (name, found) in zip(np.atleast_1d(panels), rows.items(), strict=True):
        for row, place, colour in zip(np.asarray(found, dtype=np.float64), where, COLOURS, strict=False):
            axes.plot(at[order], row[order], "o-", ms=3, color=colour, lw=1.6, label=f"from {place:g}")
            axes.axvline(place, color=colour, lw=0.8, ls=":")
        axes.set(xlabel=axis, ylim=(0, 1.05 * (top or 1)))
        axes.set_title(name)
    first = np.atleast_1d(panels)[0]
    first.set_ylabel("dissimilarity")
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(where), 6))
    if title:
        figure.suptitle(title)
    return figure


@styled
def tuning_curves(
    tuning: Tuning,
    neurons: Sequence[int] | None = None,
    *,
    axis: str = "stimulus",
    label: str = "response",
    title: str = "",
) -> Figure:
    """Draw mean responses of neurons along an axis of stimuli, with their standard errors.

    Args:
        tuning: as from ``tuning_curves``.
        neurons: those to draw; by default the eight with the largest range of mean responses.
        axis: name of the axis, with its unit.
        label: of the responses, with their unit.
        title: of the figure.
    """
    span = np.fmax.reduce(tuning.mean, 0) - np.fmin.reduce(tuning.mean, 0)
    span = np.where(np.isnan(span), -1, span)
    chosen = list(np.argsort(span)[::-1][:8]) if neurons is None else list(neurons)
    columns = min(4, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure, grid = new_figure(rows, columns, (2.9 * columns + 0.6, 2.6 * rows + 0.4))
    for axes, neuron in zip(np.ravel(grid), chosen, strict=False):
        mean, error = tuning.mean[:, neuron], np.nan_to_num(tuning.error[:, neuron])
        axes.fill_between(tuning.centre, mean - error, mean + error, color=BLUE, alpha=0.25, lw=0)
        axes.plot(tuning.centre, mean, "o-", ms=4, color=BLUE, lw=1.8)
        axes.set_title(f"neuron {neuron}")
        axes.set_ylim(np.fmin.reduce(mean - error, initial=0), None)
    for axes in np.ravel(grid)[len(chosen) :]:
        axes.set_axis_off()
    figure.supxlabel(axis)
    figure.supylabel(f"{label}\n(mean, standard error)")
    if title:
        figure.suptitle(title)
    return figure


@styled
def low_dimensional_map(
    points: Mapping[str, ArrayLike],
    values: ArrayLike,
    *,
    period: float | None = None,
    label: str = "stimulus",
    title: str = "",
) -> Figure:
    """Draw stimuli as points in two dimensions, one panel for each representation.

    Args:
        points: name -> [S, 2 or more], such as from ``pca``, ``mds`` or ``tsne``; the first two columns are drawn.
        values: [S], numbers or names of groups, which set the colours.
        period: of circular values; the colours are then circular too.
        label: of the values.
        title: of the figure.
    """
    given = np.asarray(values)
    numeric = given.dtype.kind in "fiu"
    figure, panels = new_figure(1, len(points), (4.1 * len(points) + 1.3, 4.3))
    for axes, (name, where) in zip(np.atleast_1d(panels), points.items(), strict=True):
        x, y = np.asarray(where, dtype=np.float64).T[:2]
        if numeric:
            circle = {"cmap": "twilight", "vmin": 0, "vmax": period} if period is not None else {"cmap": "viridis"}
            colours = given % period if period is not None else given
            drawn = axes.scatter(x, y, c=colours, s=36, edgecolors="black", linewidths=0.4, **circle)
            if len(given) <= FEW_POINTS:
                for value, place in zip(given, zip(x, y, strict=True), strict=True):
                    axes.annotate(f"{value:g}", place, xytext=(5, 4), textcoords="offset points", fontsize=10)
        else:
            for group, colour in zip(dict.fromkeys(given.tolist()), COLOURS * 4, strict=False):
                axes.scatter(*np.stack([x, y])[:, given == group], s=26, color=colour, label=group, alpha=0.85, lw=0)
        axes.set(xticks=[], yticks=[], xlabel="dimension 1", ylabel="dimension 2", aspect="equal", adjustable="datalim")
        axes.set_title(name)
    if numeric:
        figure.colorbar(drawn, ax=np.atleast_1d(panels), label=label, shrink=0.85, pad=0.02)
    else:
        handles = np.atleast_1d(panels)[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=min(6, len(handles[1])), title=label)
    if title:
        figure.suptitle(title)
    return figure
