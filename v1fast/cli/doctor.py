"""``v1fast doctor``."""

from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from v1fast.cli._common import Quick, in_one_line


@in_one_line
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for a bug report.")] = False,
    quick: Quick = False,
) -> None:
    """Print versions, devices, which kernels are loaded, and this machine's measured ceilings."""
    from v1fast.doctor import examine, tables

    with Console(stderr=True).status("measuring this machine"):
        report = examine(quick)
    if as_json:
        typer.echo(report.to_json())
        return
    console = Console(markup=False, emoji=False, highlight=False)  # paths and names are printed as they are
    for part in tables(report):
        table = Table(*part.columns, title=part.title, title_justify="left", box=SIMPLE, show_header=any(part.columns))
        for row in part.rows:
            table.add_row(*row)
        console.print(table)
