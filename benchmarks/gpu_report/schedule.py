"""Runs parts as processes: some at the same time, each within its limit, all within the limit of the whole report."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .record import SPOILED

GRACE = 3.0  # seconds between asking a process to end and killing it
POLL = 0.2


@dataclass
class Job:
    """One part's process.

    Attributes:
        name: of the part.
        seconds: its limit.
        command: what runs it, given the seconds that it has.
        environment: variables beside those of the report.
        status: what has come of it.
    """

    name: str
    seconds: float
    command: Callable[[float], list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    status: str = "waiting"
    took: float | None = None
    process: Any = None
    began: float = 0.0


def run(
    stages: Sequence[Sequence[Job]], logs: Path, seconds: float, changed: Callable[[], None], late: float = 15.0
) -> None:
    """Run stages one after the other, and the jobs of a stage at the same time.

    Args:
        stages: the jobs; their ``status`` is set.
        logs: folder for what each job prints.
        seconds: for everything; a job that could not have a tenth of its limit is not begun.
        changed: called now and then, and whenever a job has ended.
        late: seconds by which a job may overrun the limit that it was told, to write what it has.
    """
    logs.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    try:
        for stage in stages:
            left = end - time.monotonic()
            running = [job for job in stage if left >= job.seconds / 10]
            for job in stage:
                job.status = "not begun: no time left"
            for job in running:
                _begin(job, min(job.seconds, left), logs)
            _wait(running, left, late, logs, changed)
    except KeyboardInterrupt:
        for job in (job for stage in stages for job in stage):
            if job.process is not None and job.took is None:
                _stop(job, "stopped: interrupted")
            elif job.process is None:
                job.status = "not begun: interrupted"
        raise
    finally:
        changed()


def _begin(job: Job, seconds: float, logs: Path) -> None:
    job.began, job.status = time.monotonic(), "running"
    (logs / f"{job.name}.log").unlink(missing_ok=True)
    _start(job, seconds, logs)


def _start(job: Job, seconds: float, logs: Path) -> None:
    with (logs / f"{job.name}.log").open("a") as log:
        job.process = subprocess.Popen(
            job.command(seconds),
            env={**os.environ, **job.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # so that it is stopped with all that it has started
        )


def _wait(jobs: Sequence[Job], seconds: float, late: float, logs: Path, changed: Callable[[], None]) -> None:
    told = time.monotonic()
    while any(job.took is None for job in jobs):
        time.sleep(POLL)
        for job in jobs:
            if job.took is not None:
                continue
            code, left = job.process.poll(), job.began + min(job.seconds, seconds) - time.monotonic()
            if code == SPOILED and left > job.seconds / 10:
                _start(job, left, logs)
            elif code is not None:
                _end(job, "done" if code == 0 else f"failed: exit code {code}")
                changed()
            elif left < -late:
                _stop(job, "stopped: its time was over")
                changed()
        if time.monotonic() - told > 5:
            told = time.monotonic()
            changed()


def _end(job: Job, status: str) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(job.process.pid, signal.SIGKILL)  # children that outlived it
    job.status, job.took = status, time.monotonic() - job.began


def _stop(job: Job, status: str) -> None:
    """End a job's process and its children; what they have written stays."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(job.process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            job.process.wait(patience)
            break
    _end(job, status)
