"""The rows of one run as one picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v1fast import _files
from v1fast._plot_style import BLUE, GREEN, GREY, ORANGE, VERMILLION, new_figure, styled

from .report import OURS, machine, shape, shown
from .rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LIGHT_BLUE = "#9ecae1"
MARKERS = {"compile": "^", "neuralpredictors": "s", "openretina": "D"}
UPPER, LOWER, THICK = -0.19, 0.19, 0.36  # the two bars of a case, in units of lines


def save(rows: Sequence[Row], path: Path) -> None:
    """Write the picture as PNG."""
    image = io.BytesIO()
    draw(rows).savefig(image, format="png")
    _files.replace(path, image.getvalue())


@styled
def draw(rows: Sequence[Row]) -> Figure:
    """Error, speed and fraction of the limit, by case: one thread or the GPU, noise drawn in each call."""
    first = [row for row in rows if row.measured and row.threads in (1, None) and row.noise != "given"]
    shapes = {row.case: shape(row) for row in first}
    lines = {case: line for line, case in enumerate(shapes)}
    size = 13.5, 2.2 + 0.55 * len(lines)
    figure, panels = new_figure(1, 3, size, sharey=True, width_ratios=[1, 1.7, 1])
    for axes, draw_panel in zip(panels, (_draw_errors, _draw_speed, _draw_limit), strict=True):
        draw_panel(axes, lines, first)
    panels[0].set_yticks(list(lines.values()), [f"{case}\n{sizes}" for case, sizes in shapes.items()], fontsize=9)
    panels[0].set_ylim(len(lines) - 0.4, -0.6)
    labelled = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=9, fontsize=9)
    figure.suptitle(machine(rows[0].run), fontsize=9, color="#444444")
    return figure


def _draw_errors(axes: Axes, lines: Mapping[str, int], rows: Sequence[Row]) -> None:
    better = [row for row in rows if row.baseline and shown(row, [other for other in rows if other.case == row.case])]
    ours = [row for row in rows if row.provider == OURS]

    def dots(chosen: Sequence[Row], values: Sequence[float], marker: str, **look: Any) -> None:
        axes.plot(values, [lines[row.case] for row in chosen], marker, **look)

    dots(better, [max(row.errors.values()) for row in better], "o", c=GREY, ms=9, label="fastest baseline")
    dots(ours, [max(row.errors.values()) for row in ours], "o", c=BLUE, ms=6, label=OURS)
    dots(ours, [row.error_bound for row in ours], "|", c=VERMILLION, ms=14, mew=2, label="no time beyond")
    axes.set(xscale="log", title="Error: largest, relative", xlabel="of output and gradients, against float64")


def _draw_speed(axes: Axes, lines: Mapping[str, int], rows: Sequence[Row]) -> None:
    compared = [row for row in rows if row.speedup]
    ours = {lines[row.case]: row.speedup for row in compared if row.provider == OURS}
    for phase, label, colour, side in (
        ("forward", "forward", LIGHT_BLUE, UPPER),
        ("step", "forward and backward", BLUE, LOWER),
    ):
        times = {line: speedup[phase].times for line, speedup in ours.items() if phase in speedup}
        _bars(axes, times, side, "{:.3g}", color=colour, label=label)
    for name, marker in MARKERS.items():
        at = [row for row in compared if row.provider == name and "step" in row.speedup]
        if at:
            values, heights = [row.speedup["step"].times for row in at], [lines[row.case] + LOWER for row in at]
            axes.plot(values, heights, marker, c=ORANGE, mec="black", ms=6, label=name)
    axes.axvline(1, color="black", lw=1)
    axes.set(
        xscale="log",
        title="Speed: times as fast as the fastest baseline",
        xlabel="baselines: published layers, torch, NumPy, in every order tried",
    )
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter("{x:g}")


def _draw_limit(axes: Axes, lines: Mapping[str, int], rows: Sequence[Row]) -> None:
    ours = {lines[row.case]: row.limit_fraction for row in rows if row.provider == OURS}
    for phase, colour, side in (("forward", LIGHT_BLUE, UPPER), ("backward", GREEN, LOWER)):
        percent = {line: 100 * found[phase] for line, found in ours.items() if phase in found}
        _bars(axes, percent, side, "{:.0f}", color=colour, label=phase)
    if not any(ours.values()):
        axes.text(0.5, 0.5, "not measured:\nno machine probe", transform=axes.transAxes, ha="center", color=GREY)
    axes.axvline(100, color="black", lw=1, ls="--")
    axes.set(title="Limit of this machine", xlabel="%, by arithmetic or reading from L2", xlim=(0, 118))


def _bars(axes: Axes, values: Mapping[int, float], side: float, form: str, **look: Any) -> None:
    if not values:
        return
    bars = axes.barh([line + side for line in values], list(values.values()), THICK, **look)
    axes.bar_label(bars, [form.format(value) for value in values.values()], padding=3, fontsize=9)
