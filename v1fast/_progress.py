"""Progress of long work: a bar by rich, where it is installed, else a line on stderr now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.console
    import rich.progress

SECONDS_BETWEEN_LINES = 5.0


class Bar:
    """What the work calls; this one shows nothing."""

    def advance(self, steps: int = 1) -> None:
        """So many more steps are done; fewer, if it is negative."""

    def expect(self, total: int | None) -> None:
        """The number of steps is known now, or is unknown after all."""

    def describe(self, what: str) -> None:
        """Name what is being done now."""


@contextmanager
def progress(
    what: str,
    total: int | None,
    done: int = 0,
    show: bool = True,
    console: rich.console.Console | None = None,
    size: bool = False,
) -> Iterator[Bar]:
    """A bar while the block runs. Lines printed on its console meanwhile come out above it.

    Args:
        what: name of the work.
        total: number of steps; None: not known yet.
        done: steps that an earlier run has made.
        show: False prints nothing.
        console: where the bar stands; by default on stderr.
        size: whether steps are bytes.
    """
    if not show or (total is not None and done >= total):
        yield Bar()
        return
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
    except ModuleNotFoundError:
        yield _Lines(what, total, done, size)
        return
    steps = (DownloadColumn(), TransferSpeedColumn()) if size else (MofNCompleteColumn(),)
    columns = TextColumn("{task.description}"), BarColumn(), *steps
    times = TimeElapsedColumn(), TimeRemainingColumn()
    console = console or Console(stderr=True)
    shown = console.is_terminal or console.is_jupyter  # elsewhere an empty line would be left of it
    with Progress(*columns, *times, console=console, transient=True, disable=not shown) as bar:
        yield _RichBar(bar, bar.add_task(what, total=total, completed=done))


class _RichBar(Bar):
    def __init__(self, bar: rich.progress.Progress, task: rich.progress.TaskID) -> None:
        self._bar, self._task = bar, task

    def advance(self, steps: int = 1) -> None:
        self._bar.advance(self._task, steps)

    def expect(self, total: int | None) -> None:
        self._bar.update(self._task, total=total)

    def describe(self, what: str) -> None:
        self._bar.update(self._task, description=what)


class _Lines(Bar):
    def __init__(self, what: str, total: int | None, done: int, size: bool) -> None:
        self._what, self._total, self._done, self._size = what, total, done, size
        self._last = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES or self._done == self._total:
            self._last = time.monotonic()
            print(f"{self._what}: {self._text(self._done)} of {self._text(self._total)}", file=sys.stderr)

    def expect(self, total: int | None) -> None:
        self._total = total

    def describe(self, what: str) -> None:
        self._what = what

    def _text(self, steps: int | None) -> str:
        if steps is None:
            return "an unknown number"
        return f"{steps / 1e6:.1f} MB" if self._size else str(steps)
