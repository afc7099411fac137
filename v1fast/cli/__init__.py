"""The commands of ``v1fast``. Each imports what it needs when it runs: an absent extra stops only its own commands."""

from typing import Annotated

import typer

from v1fast._version import __version__
from v1fast.cli import (
    accelerate,
    bench,
    data,
    decode,
    demo,
    doctor,
    evaluate,
    fit,
    mei,
    normative,
    predict,
    readouts,
    rsa,
    transfer,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Fast kernels for models of visual cortex.")
for module in (
    fit,
    evaluate,
    predict,
    mei,
    transfer,
    readouts,
    decode,
    normative,
    accelerate,
    rsa,
    demo,
    doctor,
    bench,
):
    name = module.__name__.rpartition(".")[2]
    app.command(epilog=getattr(module, "EPILOG", None))(getattr(module, name))
app.add_typer(data.app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"v1fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass
