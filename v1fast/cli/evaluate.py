"""``v1fast evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from v1fast.cli._common import Json, Quiet, in_one_line, need, open_run, print_json

EPILOG = """
Examples:

v1fast evaluate out/fit   on the recordings that the run was fitted to

v1fast evaluate out/fit later/animal1 --session animal1 --interval

v1fast evaluate out/fit --tier validation --table neurons.csv
"""
WIDTH = 140  # of a table that is not printed on a terminal


@in_one_line
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder that v1fast fit wrote.")],
    data: Annotated[list[Path] | None, typer.Argument(help="Recordings; none: those of the run.")] = None,
    tier: Annotated[str | None, typer.Option(help="Of the trials.", show_default="test")] = None,
    session: Annotated[str | None, typer.Option(help="Of the model, if a recording has another name.")] = None,
    interval: Annotated[bool, typer.Option("--interval", help="95 % intervals, by resampling images.")] = False,
    table: Annotated[Path | None, typer.Option(help="Write a row for each neuron: .csv or .parquet.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Judge a run's model: correlations with single trials and averages, FEVE, fraction oracle."""
    need("fit", "yaml", "jinja2", "lightning", "torchmetrics", "safetensors")
    from v1fast.metrics import Bootstrap, write_table
    from v1fast.runs import joined, judge_all, summary

    encoder, recordings, preparation = open_run(run, data or None, device)
    bootstrap = Bootstrap() if interval else None
    if session is not None and len(recordings) > 1:
        raise ValueError(f"--session: want it with one recording, got {len(recordings)}")
    judgements = judge_all(encoder, recordings, preparation, tier, session, bootstrap=bootstrap)
    metrics = summary(judgements)
    if table is not None:
        write_table(table, joined(judgements))
    if as_json:
        print_json(metrics)
    elif not quiet:
        print_metrics(metrics)


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """A table on stdout, a row for each recording."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from v1fast.runs.report import COLUMNS, metric_rows

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("recording", overflow="fold")
    table.add_column("tier", overflow="fold")
    for heading in ("trials", "images", "neurons", *COLUMNS.values()):
        table.add_column(heading, justify="right", overflow="fold", min_width=max(map(len, heading.split())))
    for row in metric_rows(metrics):
        table.add_row(*(cell.replace(" [", "\n[") or "-" for cell in row))
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(table, width=console.width if console.is_terminal else WIDTH)
