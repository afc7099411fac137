"""What all figures have in common: colours, fonts, layout.

Colours are those of Okabe & Ito, which colour-blind readers tell apart.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")

BLUE, ORANGE, GREEN, VERMILLION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#888888"
COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, "#CC79A7", "#56B4E9", "black", GREY)
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.dpi": 130,
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in ``STYLE``; ModuleNotFoundError, with what to install, where matplotlib is absent."""

    @functools.wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        try:
            import matplotlib
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError('figures need matplotlib: pip install "v1fast[plot]"') from error
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return in_style


def new_figure(
    rows: int, columns: int, size: tuple[float, float], *, sharey: bool = False, **grid: Any
) -> tuple[Figure, Any]:
    """A figure of this size in inches, and its panels; ``grid`` are arguments of ``GridSpec``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, sharey=sharey, gridspec_kw=grid or None)
