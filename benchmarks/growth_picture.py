"""Time and memory against sizes, as one picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from v1fast import _files
from v1fast._plot_style import BLUE, GREEN, VERMILLION, new_figure, styled

from .growth import COMPARED, FITTED_FROM, IN_MEMORY, RECORDED, TO_FILE, TRAINING, Point, fit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {
    TRAINING: (BLUE, "o", "training step"),
    IN_MEMORY: (BLUE, "o", "one matrix, in memory"),
    TO_FILE: (GREEN, "s", "one matrix, to a file"),
    COMPARED: (VERMILLION, "D", "two compared, neither stored"),
}
MIB = 2**20
ROOM = 20  # times the largest value: for the legend


def save(population: Sequence[Point], stimuli: Sequence[Point], path: Path) -> None:
    """Write the picture as PNG."""
    image = io.BytesIO()
    draw(population, stimuli).savefig(image, format="png")
    _files.replace(path, image.getvalue())


@styled
def draw(population: Sequence[Point], stimuli: Sequence[Point]) -> Figure:
    """Time above memory; populations on the left, sets of stimuli on the right."""
    figure, panels = new_figure(2, 2, (11, 8))
    columns = (
        (population, "neurons", "Training: a step of 16 images", "forward, backward and Adam, one thread"),
        (stimuli, "stimuli", f"Dissimilarity matrices of {RECORDED} neurons", "by correlation, one thread"),
    )
    for column, (points, size, title, what) in enumerate(columns):
        series = {name: [point for point in points if point.series == name] for name in LOOKS}
        series = {name: found for name, found in series.items() if found}
        for row, (quantity, label) in enumerate((("seconds", "CPU time, s"), ("peak", "memory in use, MiB"))):
            axes = panels[row, column]
            _draw(axes, series, quantity)
            axes.set(xscale="log", yscale="log", xlabel=size, ylabel=label)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(_plain)
                axis.set_minor_formatter("")
            axes.legend(fontsize=9, loc="upper left")
            axes.set_ylim(top=axes.get_ylim()[1] * ROOM)
        panels[0, column].set_title(f"{title}\n{what}")
    note = "Lines: fitted by least squares in logarithms; dotted: below the sizes that were fitted."
    figure.supxlabel(note, fontsize=9, color="#444444")
    return figure


def _plain(value: float, _: object) -> str:
    """1,000,000 rather than 10^6; 0.00001."""
    return f"{value:,.0f}" if value >= 1 else np.format_float_positional(value, precision=1, fractional=False)


def _draw(axes: Axes, series: Mapping[str, Sequence[Point]], quantity: str) -> None:
    unit = 1 if quantity == "seconds" else MIB
    for name, points in series.items():
        colour, marker, label = LOOKS[name]
        sizes = np.array([point.size for point in points])
        values = np.array([getattr(point, quantity) for point in points]) / unit
        found = fit_of(points, quantity)
        if found is not None:
            beside = " beside the features" if quantity == "peak" and points[0].fixed else ""
            label = f"{label}: exponent {found[0]:.2f}{beside}"
            _draw_fit(axes, points, found, unit, quantity, colour)
        axes.plot(sizes, values, marker, color=colour, label=label)
        if quantity == "peak" and points[0].needed:
            needed = np.array([point.needed for point in points]) / unit
            label = "what is needed" if name == TRAINING else "the matrix itself"
            axes.plot(sizes, needed, "_", color="black", ms=16, label=label)


def _draw_fit(
    axes: Axes, points: Sequence[Point], found: tuple[float, float], unit: int, quantity: str, colour: str
) -> None:
    """The fitted line over the sizes that were fitted; dotted below them."""
    exponent, factor = found
    fixed = points[0].fixed if quantity == "peak" else 0
    edge = float(FITTED_FROM[points[0].series])
    for begin, end, style in ((points[0].size, edge, ":"), (edge, points[-1].size, "-")):
        if begin < end:
            x = np.geomspace(begin, end, 50)
            axes.plot(x, (factor * x**exponent + fixed) / unit, style, color=colour, lw=1)
