"""The commands of ``v1fast``. Each imports what it needs when it runs: an absent extra stops only its own commands."""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ParamSpec

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from v1fast._source_tree import import_package
from v1fast._version import __version__

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Fast kernels for models of visual cortex.")

P = ParamSpec("P")


def _in_one_line(command: Callable[P, None]) -> Callable[P, None]:
    """What its user can mend ends a command with one line on stderr and a code other than 0, not with a traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **options: P.kwargs) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt as interrupt:
            _end("; ".join(["interrupted", *getattr(interrupt, "__notes__", ())]), 130)
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # so rich leaves
                _end(CLOSED, 1)
            raise
        except BrokenPipeError as error:
            _end(CLOSED if error.filename is None else _said(error), 1)
        except (ValueError, FileNotFoundError) as error:
            _end(_said(error), 2)
        except (OSError, MemoryError, ModuleNotFoundError) as error:
            _end(_said(error), 1)

    return wrapped


CLOSED = "standard output is closed: the rest was not printed"


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'standard output'}: {error.strerror}"
    return str(error) or type(error).__name__


def _end(message: str, code: int) -> None:
    line = " ".join(message.split()).encode(errors="backslashreplace").decode()
    with suppress(OSError):
        typer.echo(f"v1fast: {line}", err=True)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        # What is left for an output that is closed, or full, would be an error again when the interpreter ends.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(code)


Quick = Annotated[bool, typer.Option("--quick", help="Do less, so that it takes less time.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"v1fast {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command()
@_in_one_line
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


@app.command()
@_in_one_line
def demo(
    out: Annotated[Path, typer.Option(help="Folder for summary.json and the pictures.")] = Path("out/demo"),
    real_data: Annotated[
        Path | None,
        typer.Option(
            envvar="V1FAST_REAL_DATA", exists=True, file_okay=False, help="Folder of recordings and trained models."
        ),
    ] = None,
    quick: Quick = False,
) -> None:
    """Fit Gaussian readouts to simulated neurons and, where the data is there, run a trained model of mouse V1."""
    _need("demo", "matplotlib", "skimage")
    from v1fast.demo import main

    main(out=out, real_data=real_data, quick=quick)


@app.command()
@_in_one_line
def bench(
    case: Annotated[list[str] | None, typer.Option(help="Measure this case alone; may be repeated.")] = None,
    provider: Annotated[list[str] | None, typer.Option(help="Measure this provider alone; may be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for rows.jsonl and speed.png.")] = Path("out/bench"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    full: Annotated[bool, typer.Option("--full", help="Every provider in every case, and more rounds.")] = False,
    quick: Quick = False,
) -> None:
    """Measure error and speed of v1fast, eager torch, torch.compile and installed peers, in a few minutes."""
    _need("plot", "matplotlib")
    import_package("benchmarks")
    measure = importlib.import_module("v1fast.benchmarks.run").main
    measure(out, case or (), provider or (), device=device, quick=quick, full=full)


@app.command()
@_in_one_line
def rsa(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            # Not [repeats, ...]: words in brackets are markup.
            help="Responses [S, N], or [R, S, N] of R repeats, of systems to compare with the first: .npy, .npz, .mat, "
            "or FILE:NAME for one of several arrays. None: the recordings in --real-data."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for matrices, summary.json and the pictures.")] = Path("out/rsa"),
    dissimilarity: Annotated[str, typer.Option(help="correlation, cosine or euclidean.")] = "correlation",
    similarity: Annotated[str, typer.Option(help="pearson, spearman, rho-a, tau-a, cosine, whitened-cosine, ...")] = (
        "pearson"
    ),
    real_data: Annotated[
        Path | None,
        typer.Option(
            envvar="V1FAST_REAL_DATA", exists=True, file_okay=False, help="Folder of recordings and trained models."
        ),
    ] = None,
) -> None:
    """Compare the dissimilarity matrices of responses: in files, or of published recordings."""
    _need("rsa", "matplotlib")
    from v1fast.rsa.report import analyse_recordings, compare_files

    if files:
        compare_files(files, out, dissimilarity=dissimilarity, similarity=similarity)
    elif real_data is not None:
        analyse_recordings(real_data, out)
    else:
        raise ValueError("want files of responses, or V1FAST_REAL_DATA set to a folder of recordings")


def _need(extra: str, *modules: str) -> None:
    """Ends the command with exit code 1 where a module of an optional extra is absent."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        typer.echo(
            f'v1fast: this command needs the "{extra}" extra ({", ".join(missing)} not found): '
            f'pip install "v1fast[{extra}]"',
            err=True,
        )
        raise typer.Exit(1)
