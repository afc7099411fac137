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
    gpu: Annotated[
        bool,
        typer.Option(
            "--gpu",
            help="Compare every GPU kernel with the fallback on tiny operands, in minutes, and keep the outcome: "
            "one that fails is replaced by the fallback from then on. The exit code is 1 if one fails, or none was "
            "checked.",
        ),
    ] = False,
) -> None:
    """Print versions, devices, which kernels are loaded, and this machine's measured ceilings.

    No GPU kernel of v1fast has run on a GPU yet. Each is checked before its first use there; --gpu checks all of them.
    """
    from v1fast.doctor import examine, tables

    with Console(stderr=True).status("measuring this machine") as status:
        report = examine(quick, gpu=gpu, say=status.update)
    code = int(gpu and (report.gpu_check != "done" or report.gpu_failures > 0))
    if as_json:
        typer.echo(report.to_json())
        raise typer.Exit(code)
    console = Console(markup=False, emoji=False, highlight=False)  # paths and names are printed as they are
    for part in tables(report):
        table = Table(*part.columns, title=part.title, title_justify="left", box=SIMPLE, show_header=any(part.columns))
        for row in part.rows:
            table.add_row(*row)
        console.print(table)
    raise typer.Exit(code)
