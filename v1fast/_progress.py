"""Progress of long work: a bar by rich, where it is installed, else a line on stderr now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def progress(what: str, total: int, done: int = 0, show: bool = True) -> Iterator[Callable[[], None]]:
    """Yields what to call after each step.

    Args:
        what: name of the work.
        total: number of steps.
        done: steps that an earlier run has made.
        show: False prints nothing.
    """
    if not show or done >= total:
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError:
        yield _lines(what, total, done)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    shown = console.is_terminal or console.is_jupyter  # elsewhere an empty line would be left of it
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda: bar.advance(task)


def _lines(what: str, total: int, done: int) -> Callable[[], None]:
    last = time.monotonic()

    def advance() -> None:
        nonlocal done, last
        done += 1
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES or done == total:
            last = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr)

    return advance
