"""Figures of experiments: fraction oracle against the number of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from v1fast._plot_style import COLOURS, new_figure, styled
from v1fast._tables import Band, summarise
from v1fast.experiments import published

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X"
LABEL = "fraction oracle"


@styled
def curves_figure(
    rows: Sequence[Mapping[str, Any]],
    *,
    panels: str,
    curves: str,
    title: str = "",
    legend: str = "",
    method: Band = "t",
    with_published: bool = False,
) -> Figure:
    """Means over subsets with 95 % bands, against the number of images; panels side by side.

    Args:
        rows: results, each with "images", "fraction_oracle" and the two columns named next.
        panels: column whose values have a panel each.
        curves: column whose values have a curve each, of the same look in all panels.
        title: above all panels.
        legend: above the curves' names.
        method: of the bands, see :func:`v1fast.experiments.band`.
        with_published: draw the published values of transfer beside the curves of the same names, in panels of
            Gaussian readouts.
    """
    names = list(dict.fromkeys(row[panels] for row in rows))
    drawn = list(dict.fromkeys(row[curves] for row in rows))
    figure, axes = new_figure(1, len(names), (3.0 + 4.2 * len(names), max(4.6, 1 + 0.32 * len(drawn))), sharey=True)
    table = summarise(rows, (panels, curves, "images"), method=method)
    known = [row["mean"] for row in table if not math.isnan(row["mean"])]
    known += list(published.TRANSFER.values()) if with_published else []
    # A band of two subsets may be wider than all curves together: it is cut off, they are not.
    room = 0.1 * (max(known, default=1) - min(0, *known, 0)) + 0.02
    limits = min(0, *known, 0) - room, max(known, default=1) + room
    for panel, name in zip(np.atleast_1d(axes), names, strict=True):
        for number, curve in enumerate(drawn):
            points = sorted((r for r in table if (r[panels], r[curves]) == (name, curve)), key=lambda r: r["images"])
            if points:
                _curve(panel, points, curve, number)
                # The paper's transfer is of Gaussian readouts.
                if with_published and curve in published.TRANSFER and str(name).startswith("gaussian"):
                    at, value = published.TRANSFER_IMAGES, published.TRANSFER[curve]
                    panel.plot(at, value, MARKERS[number % 8], ms=9, mfc="none", mec=COLOURS[number % 8], mew=1.6)
        shown = {row["images"] for row in rows} | ({published.TRANSFER_IMAGES} if with_published else set())
        _axes(panel, sorted(shown))
        panel.set_title(name)
        panel.set_ylim(limits)
    first = np.atleast_1d(axes)[0]
    first.set_ylabel(LABEL)
    handles = {label: handle for panel in np.atleast_1d(axes) for handle, label in _legend(panel)}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", title=legend or None)
    subsets = max((row["subsets"] for row in table), default=0)
    notes = [f"mean and 95 % band of {subsets} subsets" if subsets > 1 else "one subset: no band"]
    notes += ["open: Lurz et al. 2021, other data"] if with_published else []
    figure.supxlabel("images (" + "; ".join(notes) + ")", fontsize=11)
    if title:
        figure.suptitle(title)
    return figure


def _curve(panel: Axes, points: Sequence[Mapping[str, Any]], label: str, number: int) -> None:
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    x, mean, low, high = (np.array([point[key] for point in points]) for key in ("images", "mean", "low", "high"))
    dashes = "-" if number < len(COLOURS) else "--"
    panel.plot(x, mean, dashes, color=colour, marker=marker, ms=5, lw=1.8, label=label)
    if not np.isnan(low).all():
        panel.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)


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
