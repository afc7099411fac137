"""What the commands share: how an error ends them, and options."""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated, ParamSpec

import typer

P = ParamSpec("P")


def in_one_line(command: Callable[P, None]) -> Callable[P, None]:
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


def need(extra: str, *modules: str) -> None:
    """End the command with exit code 1 where a module of an optional extra is absent."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        typer.echo(
            f'v1fast: this command needs the "{extra}" extra ({", ".join(missing)} not found): '
            f'pip install "v1fast[{extra}]"',
            err=True,
        )
        raise typer.Exit(1)


def benchmark(name: str) -> ModuleType:
    """The module ``v1fast.benchmarks.<name>``."""
    return importlib.import_module(f"v1fast.benchmarks.{name}")


Quick = Annotated[bool, typer.Option("--quick", help="Do less, so that it takes less time.")]
RealData = Annotated[
    Path | None,
    typer.Option(
        envvar="V1FAST_REAL_DATA", exists=True, file_okay=False, help="Folder of recordings and trained models."
    ),
]
