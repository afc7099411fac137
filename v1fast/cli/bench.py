"""``v1fast bench``."""

from pathlib import Path
from typing import Annotated

import typer

from v1fast.cli._common import Quick, benchmark, in_one_line, need


@in_one_line
def bench(
    case: Annotated[list[str] | None, typer.Option(help="Measure this case alone; may be repeated.")] = None,
    provider: Annotated[list[str] | None, typer.Option(help="Measure this provider alone; may be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for rows.jsonl and speed.png.")] = Path("out/bench"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    full: Annotated[bool, typer.Option("--full", help="Every provider in every case, and more rounds.")] = False,
    quick: Quick = False,
) -> None:
    """Measure error and speed of v1fast, eager torch, torch.compile and the published layers, in a few minutes."""
    need("plot", "matplotlib")
    benchmark("run").main(out, case or (), provider or (), device=device, quick=quick, full=full)
