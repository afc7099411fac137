"""The report as a picture: time, floor, prediction and rivals of each kernel."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v1fast import _files
from v1fast._plot_style import BLUE, GREEN, GREY, ORANGE, VERMILLION, new_figure, styled

from . import page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]


def save(parts: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Write the picture as PNG, unless there is nothing to be seen yet."""
    rows = [row for name in ("readouts", "rdms") for row in parts[name]]
    own = [row for row in rows if row["provider"] == "v1fast" and row.get("graph_us")]
    if not own:
        return
    image = io.BytesIO()
    _figure(own, [*rows, *parts["compiled"]]).savefig(image, format="png")
    _files.replace(path, image.getvalue())


@styled
def _figure(own: Sequence[Row], others: Sequence[Row]) -> Figure:
    figure, (times, host) = new_figure(1, 2, (13.5, 2 + 0.24 * len(own)), sharey=True, width_ratios=[2, 1])
    _draw_times(times, own, others)
    _draw_host(host, own)
    labels = [f"{row['case']}, {row['dtype']}, {row['what']}" for row in own]
    times.set_yticks(range(len(own)), labels, fontsize=8)
    times.set_ylim(len(own) - 0.4, -0.6)
    figure.legend(loc="outside lower center", ncols=7, fontsize=9)
    return figure


def _draw_times(axes: Axes, own: Sequence[Row], others: Sequence[Row]) -> None:
    at = range(len(own))
    axes.barh(at, [row["graph_us"] for row in own], 0.7, color=BLUE, label="v1fast")
    for line, row in enumerate(own):
        predicted = row.get("predicted_us")
        if predicted:
            axes.plot(
                predicted, [line, line], "|-", c=ORANGE, ms=9, mew=2, lw=2, label="predicted" if line == 0 else None
            )
    floors = [(row["floor_us"], line) for line, row in enumerate(own) if row.get("floor_us")]
    if floors:
        axes.plot(*zip(*floors, strict=True), "|", c="black", ms=9, mew=2, label="floor")
    for kind, marker, colour in (("eager", "o", GREY), ("compile", "^", GREEN)):
        found = [(page.rivals(row, others).get(kind), line) for line, row in enumerate(own)]
        there = [pair for pair in found if pair[0]]
        if there:
            axes.plot(*zip(*there, strict=True), marker, c=colour, mec="black", ms=5, label=kind)
    axes.set(xscale="log", xlabel="us on the GPU, by replay of a CUDA graph", title="Time of a call")


def _draw_host(axes: Axes, own: Sequence[Row]) -> None:
    shares = [(row.get("host_us") or 0) / row["graph_us"] for row in own]
    axes.plot(shares, range(len(own)), "o", c=VERMILLION, label="host")
    axes.axvline(1, color="black", lw=1)
    axes.set(xscale="log", xlabel="host time over GPU time", title="Beyond 1 Python sets the pace")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
