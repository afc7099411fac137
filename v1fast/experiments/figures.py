"""Figures of experiments: fraction oracle against the number of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from v1fast._plot_style import COLOURS, GREY, new_figure, styled
from v1fast._tables import Band, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X"
FILLED = 3  # curves in a panel: bands of more are bars, since filled ones hide each other
STEP = 0.07  # octaves between the bars of neighbouring curves
LABEL = "fraction oracle"


@styled
def curves_figure(
    rows: Sequence[Mapping[str, Any]],
    *,
    panels: str,
    curves: str,
    down: str | None = None,
    numbers: str | None = None,
    title: str = "",
    legend: str = "",
    method: Band = "t",
    beside: Sequence[Mapping[str, Any]] = (),
    crossing: float | None = None,
) -> Figure:
    """Means over subsets with 95 % bands, against the number of images; panels side by side.

    Of many curves in a panel, bands are bars, and the points of each number of images stand side by side.

    Args:
        rows: results, each with "images", "fraction_oracle" and the columns named next.
        panels: column whose values have a column of panels each.
        curves: column whose values have a curve each, of the same look in all panels.
        down: column whose values have a row of panels each; None: there is one row.
        numbers: column of a number that each panel shows for each of its curves.
        title: above all panels.
        legend: above the curves' names.
        method: of the bands, see :func:`v1fast.experiments.band`.
        beside: published values, rows of the same columns, see :mod:`v1fast.experiments.published`.
        crossing: number of images at which published curves cross; a line in the panels of published values.
    """
    across = list(dict.fromkeys(row[panels] for row in rows))
    below = [None] if down is None else list(dict.fromkeys(row[down] for row in rows))
    drawn = list(dict.fromkeys(row[curves] for row in rows))
    height = max(4.6, 1 + 0.32 * len(drawn)) if len(below) == 1 else 1 + 3.3 * len(below)
    size = 3.0 + (4.2 if len(across) < 4 else 3.3) * len(across), height
    figure, axes = new_figure(len(below), len(across), size, sharey=True)
    axes = np.reshape(axes, (len(below), len(across)))
    by = [column for column in (panels, down, curves) if column is not None]
    table = summarise(rows, (*by, "images"), method=method)
    limits = _limits([row["mean"] for row in table] + [row["fraction_oracle"] for row in beside])
    shown = sorted({row["images"] for row in (*rows, *beside)})
    for line, where in zip(axes, below, strict=True):
        for panel, name in zip(line, across, strict=True):
            here = {panels: name} if down is None else {panels: name, down: where}
            theirs, ours = _of(beside, here), _of(table, here)
            panel.set_visible(bool(ours))
            filled = len({row[curves] for row in ours}) <= FILLED
            for number, curve in enumerate(drawn):
                points = sorted(_of(ours, {curves: curve}), key=lambda row: row["images"])
                if points:
                    aside = 0 if filled else number - (len(drawn) - 1) / 2
                    _curve(panel, points, curve, number, filled, aside)
                for point in _of(theirs, {curves: curve}):
                    colour = COLOURS[number % len(COLOURS)]
                    look = {"ms": 9, "mfc": "none", "mec": colour, "mew": 1.6}
                    panel.plot(point["images"], point["fraction_oracle"], MARKERS[number % len(MARKERS)], **look)
            if theirs and crossing is not None:
                panel.axvline(crossing, color=GREY, lw=1, ls=":")
            if numbers is not None:
                _show_numbers(panel, _of(rows, here), curves, numbers)
            _axes(panel, shown)
            panel.set_title(name.replace(", ", ",\n") if where is None else f"{name}\n{where}")
            # Room for the numbers above the curves.
            panel.set_ylim(limits[0], limits[1] + (0.35 * (limits[1] - limits[0]) if numbers else 0))
        next(panel for panel in line if panel.get_visible()).set_ylabel(LABEL)
    handles = {label: handle for panel in axes.flat for handle, label in _legend(panel)}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", title=legend or None)
    figure.supxlabel(_note(table, beside, crossing), fontsize=11)
    if title:
        figure.suptitle(title)
    return figure


def _of(rows: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row[column] == value for column, value in wanted.items())]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """A band of two subsets may be wider than all curves together: it is cut off, they are not."""
    known = [value for value in values if not math.isnan(value)]
    room = 0.1 * (max(known, default=1) - min(0, *known, 0)) + 0.02
    return min(0, *known, 0) - room, max(known, default=1) + room


def _note(table: Sequence[Mapping[str, Any]], beside: Sequence[Any], crossing: float | None) -> str:
    subsets = max((row["subsets"] for row in table), default=0)
    notes = [f"mean and 95 % band of {subsets} subsets" if subsets > 1 else "one subset: no band"]
    if beside:
        dotted = "" if crossing is None else "; dotted: where their 1 scan falls below direct"
        notes.append(f"open: Lurz et al. 2021, other data{dotted}")
    return f"images ({'; '.join(notes)})"


def _show_numbers(panel: Axes, rows: Sequence[Mapping[str, Any]], curves: str, numbers: str) -> None:
    """The number of each curve, in a legend of the panel's own."""
    values = {row[curves]: row[numbers] for row in rows}
    handles = [(handle, f"{values[label]:,.4g}") for handle, label in _legend(panel)]
    if handles:
        title = numbers.replace("_", " ")
        panel.legend(*zip(*handles, strict=True), title=title, fontsize=8, title_fontsize=8, ncols=2, loc="upper left")


def _curve(
    panel: Axes, points: Sequence[Mapping[str, Any]], label: str, number: int, filled: bool, aside: float
) -> None:
    """A curve and its band, filled or as bars; ``aside`` moves it by so many steps, so that bars do not overlap."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    x, mean, low, high = (
        np.array([point[key] for point in points], float) for key in ("images", "mean", "low", "high")
    )
    x = x * 2 ** (STEP * aside)
    dashes = "-" if number < len(COLOURS) else "--"
    panel.plot(x, mean, dashes, color=colour, marker=marker, ms=5, lw=1.8, label=label)
    if filled and not np.isnan(low).all():
        panel.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    elif not filled:
        panel.vlines(x, low, high, color=colour, lw=1.2, alpha=0.7)


def _axes(panel: Axes, images: Sequence[int]) -> None:
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

    panel.set_xscale("log", base=2)
    few = images[:: max(1, math.ceil(len(images) / 7))]
    panel.xaxis.set_major_locator(FixedLocator(list(few)))
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.axhline(0, color="#cccccc", lw=0.8, zorder=0)


def _legend(panel: Axes) -> list[tuple[Any, Any]]:
    handles, labels = panel.get_legend_handles_labels()
    return list(zip(handles, labels, strict=True))


@styled
def bars_figure(rows: Sequence[Mapping[str, Any]], *, groups: str, title: str = "", method: Band = "t") -> Figure:
    """A bar for each group, at the largest number of images: mean over subsets with its 95 % band.

    Args:
        rows: results with "images", "fraction_oracle" and the column ``groups``.
        groups: name of that column.
        title: of the figure.
        method: of the bands.
    """
    most = max(row["images"] for row in rows)
    table = summarise([row for row in rows if row["images"] == most], (groups,), method=method)
    figure, axes = new_figure(1, 1, (2.5 + 1.6 * len(table), 4.2))
    means = np.array([row["mean"] for row in table])
    error = np.array([[row["mean"] - row["low"], row["high"] - row["mean"]] for row in table]).T
    labels = [row[groups].replace(", ", ",\n") for row in table]
    axes.bar(labels, means, color=COLOURS[0], width=0.55, yerr=None if np.isnan(error).all() else error, capsize=4)
    axes.set(ylabel=LABEL)
    axes.set_title(title or f"{most} images")
    return figure
