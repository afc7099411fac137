"""What a part has found so far, in a file of its own, and the time that it has left."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from v1fast import _files

SPOILED = 3
"""Exit code of a part after an error that leaves the device unusable for its process: it goes on in another one."""


@dataclass
class Part:
    """A part as it runs: its record, the time left, and whether this is only a rehearsal.

    A part whose file is there goes on: what is in it, found or missing, is not begun again.

    Attributes:
        out: folder of the report.
        name: of the part.
        seconds: in which it has to end.
        quick: everything as small as can be, to see whether it runs.
        rows: what was found.
        missing: what was left out, and why.
        about: the device.
    """

    out: Path
    name: str
    seconds: float
    quick: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: list[dict[str, str]] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._start = self.now()
        before = read(self.out, self.name)
        self.rows, self.missing, self.about = before["rows"], before["missing"], before["about"]
        self._before = {row.get("key") for row in self.rows} | {each["what"] for each in self.missing}

    @property
    def left(self) -> float:
        """Seconds until the part has to end."""
        return self.seconds - (self.now() - self._start)

    def add(self, **row: Any) -> None:
        """Add a row, and write all."""
        self.rows.append({name: _plain(value) for name, value in row.items()})
        self.write()

    def leave_out(self, what: str, why: str) -> None:
        """Say what is missing, and write all."""
        self.missing.append({"what": what, "why": why})
        self.write()

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Within it, an error is written down, and the part goes on, in this process or in another."""
        try:
            yield
        except Exception as error:  # whatever one kernel does, the others are still measured
            self.leave_out(what, reason(error))
            if device_is_spoiled():
                sys.exit(SPOILED)

    def begin(self, what: str, least: float = 1.0) -> bool:
        """Whether it has not been done before, and there is time for it; if there is none, that is written down."""
        if what in self._before:
            return False
        if self.left >= least:
            return True
        self.leave_out(what, "no time left")
        return False

    def write(self) -> None:
        """Replace the part's file."""
        write(self.out, self.name, {"about": self.about, "rows": self.rows, "missing": self.missing})


def device_is_spoiled() -> bool:
    """Whether an error, such as an illegal access, has made the device refuse all that this process asks of it."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def reason(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _plain(value: Any) -> Any:
    """A value that JSON has: no NaN, no infinity, also inside."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def path_of(out: Path, name: str) -> Path:
    """Return the file of a part."""
    return out / "parts" / f"{name}.json"


def write(out: Path, name: str, found: dict[str, Any]) -> None:
    """Replace the file of a part."""
    path = path_of(out, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    _files.replace(path, json.dumps(found, indent=1).encode())


def read(out: Path, name: str) -> dict[str, Any]:
    """Return what a part has found, empty if it has written nothing."""
    try:
        found: dict[str, Any] = json.loads(path_of(out, name).read_text())
    except FileNotFoundError:
        return {"about": {}, "rows": [], "missing": []}
    return found
