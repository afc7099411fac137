"""What ``v1fast decode`` and ``v1fast normative`` share: the population, and what is written at the end."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v1fast import _files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from v1fast.decoding import Population

Data = Annotated[
    Path | None,
    typer.Argument(
        help="Responses to gratings: Stringer's .npz (resp, stimuli), or a recording with orientations. "
        "None: a simulated population of the same size.",
    ),
]
Neurons = Annotated[int | None, typer.Option(min=2, help="So many random neurons.", show_default="all")]


def check_folder(out: Path) -> None:
    """Raise OSError where ``out`` cannot become a folder: before minutes of work, not after."""
    for place in (out, *out.parents):
        if place.exists():
            if not place.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
            if not os.access(place, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
            return


def population(
    data: Path | None, neurons: int | None, bin_degrees: float | None = None, period: float = 360.0
) -> Population:
    """The population at a path, or a simulated one.

    Raises:
        ValueError, FileNotFoundError: it cannot be read, or has no orientations.
    """
    from v1fast.data import read, simulate_gratings
    from v1fast.decoding import population_of

    if data is None:
        return population_of(simulate_gratings(), bin_degrees, neurons, period)
    return population_of(read(data), bin_degrees, neurons, period)


def write(
    out: Path,
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    draw: Callable[[], Mapping[str, Figure]],
    *,
    say: bool = True,
) -> None:
    """Write each table as CSV, and then draw each picture and write it as PNG.

    Args:
        out: folder, made if it is missing.
        tables: name -> rows.
        draw: makes the pictures: name -> figure.
        say: print where they are.
    """
    from v1fast._tables import write_csv

    out.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        write_csv(out / f"{name}.csv", rows)
    pictures = draw()
    for name, figure in pictures.items():
        content = io.BytesIO()
        figure.savefig(content, format="png")
        _files.replace(out / f"{name}.png", content.getvalue())
    if say:
        names = [*(f"{name}.csv" for name in tables), *(f"{name}.png" for name in pictures)]
        typer.echo(f"{', '.join(names)} are in {out}")


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table on stdout.

    Args:
        title: above it.
        rows: of the same columns.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(*[str(column) for column in rows[0]], box=None, title=title, title_justify="left")
    for row in rows:
        table.add_row(*[f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()])
    console = Console(markup=False, highlight=False)
    console.width = console.width if console.is_terminal else max(console.width, 140)
    console.print(table)
