"""A plugin of pytest: of all tests, one process runs its share, and writes each outcome as it comes.

V1FAST_SHARE is "2/10" for the third of ten processes, and V1FAST_OUTCOMES the file. A test that the file names already
is not run again: a process that took the place of one that crashed goes on after the crash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .record import SPOILED, device_is_spoiled

STARTED, CRASHED = "started", "crashed"


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the last that is known of each test; one that has started, and not ended, has crashed its process."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the process was killed as it wrote
            continue
        found[entry["test"]] = entry
    return found


def _write(**entry: Any) -> None:
    with Path(os.environ["V1FAST_OUTCOMES"]).open("a") as file:
        file.write(json.dumps(entry) + "\n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep this process's share."""
    number, of = map(int, os.environ["V1FAST_SHARE"].split("/"))
    known = read(Path(os.environ["V1FAST_OUTCOMES"]))
    items[:] = [item for place, item in enumerate(items) if place % of == number and item.nodeid not in known]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Say that a test begins: should it crash the process, nobody else could."""
    _write(test=item.nodeid, outcome=STARTED)
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write an outcome. After an error that spoils the device for this process, end it: another one goes on."""
    if report.when == "call" or report.outcome != "passed":
        message = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else _last_line(report)
        _write(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 3), message=message)
        if report.failed and device_is_spoiled():
            os._exit(SPOILED)


def _last_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join(str(crash.message).split())[:300] if crash else ""
