"""The parts of the report, in their order, and the seconds that each may take."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from . import ceilings, compiled, counters, large, rdms, readouts, testing, tuned
from .record import Part
from .schedule import Job


class Kind(NamedTuple):
    """A part."""

    title: str
    seconds: float
    main: Callable[[Part], None]
    environment: dict[str, str] = {}  # noqa: RUF012 - nobody writes to it


TUNED = {"V1FAST_AUTOTUNE": "1"}
KINDS = {
    "ceilings": Kind("Ceilings of the device", 35, ceilings.main),
    "tests": Kind("Tests", 205, testing.tests),
    "compiled tests": Kind("Tests with torch.compile", 120, testing.compiled_tests),
    "memcheck": Kind("compute-sanitizer memcheck", 180, partial(testing.sanitize, tool="memcheck")),
    "racecheck": Kind("compute-sanitizer racecheck", 180, partial(testing.sanitize, tool="racecheck")),
    "compile float32": Kind("Compilation beforehand, float32", 180, partial(tuned.compile_all, dtype="float32"), TUNED),
    "compile bfloat16": Kind(
        "Compilation beforehand, bfloat16", 180, partial(tuned.compile_all, dtype="bfloat16"), TUNED
    ),
    "readouts": Kind("Readouts", 110, readouts.main),
    "rdms": Kind("Dissimilarity matrices", 50, rdms.main),
    "large": Kind("More than 2^31 elements", 25, large.main),
    "tuned": Kind("With autotuning", 70, tuned.main, TUNED),
    "compiled": Kind("torch.compile of eager", 45, compiled.main),
    "counters": Kind("Counters of the hardware", 30, counters.main),
    "counted": Kind("", 60, counters.call_each),  # what ncu runs
}
STAGES = (  # what is timed runs alone
    ("ceilings",),
    ("tests", "compiled tests", "memcheck", "racecheck", "compile float32", "compile bfloat16"),
    ("readouts",),
    ("rdms",),
    ("large",),
    ("tuned",),
    ("compiled",),
    ("counters",),
)


def jobs(out: Path, quick: bool) -> list[list[Job]]:
    """Return the stages of the schedule."""

    def command(name: str, seconds: float) -> list[str]:
        own = [sys.executable, "-m", "v1fast.benchmarks.gpu_report", str(out)]
        return [*own, "--part", name, "--seconds", f"{seconds:.0f}", *(["--quick"] if quick else [])]

    def job(name: str) -> Job:
        return Job(name, KINDS[name].seconds, partial(command, name), KINDS[name].environment)

    return [[job(name) for name in stage] for stage in STAGES]
