"""What the commands share: how an error ends them, and options."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

if TYPE_CHECKING:
    from v1fast.data import Preparation, Recording
    from v1fast.models import FiringRateEncoder

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
            *others, last = getattr(error, "problems", None) or [_said(error)]  # a configuration may have several
            for problem in others:
                _print_line(problem)
            _end(last, 2)
        except (OSError, MemoryError, ModuleNotFoundError) as error:
            _end(_said(error), 1)

    return wrapped


speaker = ""
"""What precedes the lines of this process, where others print on the same terminal."""

CLOSED = "standard output is closed: the rest was not printed"


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'standard output'}: {error.strerror}"
    return str(error) or type(error).__name__


def _print_line(message: str) -> None:
    line = " ".join(f"{speaker}{message}".split()).encode(errors="backslashreplace").decode()
    with suppress(OSError):
        typer.echo(f"v1fast: {line}", err=True)


def _end(message: str, code: int) -> None:
    _print_line(message)
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


def print_json(content: Any) -> None:
    """On stdout; what is undefined is null."""
    from v1fast.runs.folder import as_json

    typer.echo(as_json(content))


def read_recordings(paths: Sequence[Path], format: str | None = None) -> dict[str, Recording]:
    """Recordings by name; ValueError or FileNotFoundError in one line for what is none."""
    from v1fast.data import read_all

    return read_all(*paths, format=format)


def open_run(
    path: Path, data: Sequence[Path] | None, device: str = "cpu"
) -> tuple[FiringRateEncoder, dict[str, Recording], Preparation]:
    """A run's encoder; the recordings at ``data``, or for None those that it was fitted to; how they are prepared.

    Raises:
        FileNotFoundError: no run, or no model yet; a recording of the run has moved.
    """
    from v1fast.runs import RunFolder
    from v1fast.runs.building import device_of

    folder = RunFolder(path)
    run, configuration = folder.read(), folder.configuration()
    encoder = folder.encoder(device_of(device))
    if data is None:
        data = list(dict.fromkeys(Path(session["source"]) for session in run["sessions"].values()))
    recordings = read_recordings(data, configuration.data.format) if data else {}
    return encoder, recordings, folder.preparation()


def benchmark(name: str) -> ModuleType:
    """The module ``v1fast.benchmarks.<name>``."""
    return importlib.import_module(f"v1fast.benchmarks.{name}")


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Quick = Annotated[bool, typer.Option("--quick", help="Do less, so that it takes less time.")]
RealData = Annotated[
    Path | None,
    typer.Option(
        envvar="V1FAST_REAL_DATA", exists=True, file_okay=False, help="Folder of recordings and trained models."
    ),
]
