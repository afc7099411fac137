"""The row format of all benchmarks: one line of JSON per provider, case and number of threads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from v1fast import _files

MEASURED = "measured"


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of one phase's observations, in milliseconds per call."""

    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Quartiles:
        """Compute the quartiles of observations in seconds."""
        return cls(*(1e3 * float(value) for value in np.quantile(list(seconds), (0.25, 0.5, 0.75))))


@dataclass(frozen=True)
class Speedup:
    """Speed relative to the better baseline; below 1 if slower."""

    times: float
    against: str


@dataclass(frozen=True)
class Memory:
    """Memory of one call in bytes: its results (output and gradients), and the peak of temporary memory."""

    results: int
    extra: int


@dataclass(frozen=True)
class Row:
    """One provider's result on one case.

    Attributes:
        op: the computation.
        case: name of the case; ``shape`` and ``dtype`` say what it is.
        noise: "seed" (drawn in each call), "given" (drawn beforehand), None (no noise).
        provider: who computes; ``baseline`` whether speed is quoted against it.
        device: "cpu" or "cuda".
        threads: torch's threads on the CPU, None on a GPU.
        clock: "cpu" (CPU time of the process), "wall" or "cuda graph" (replays).
        status: "measured", or the sentence that says why there are no times.
        errors: relative error (root mean square over that of the exact values) of the output and of each gradient,
            against eager float64.
        error_bound: the error beyond which a provider gets no times.
        milliseconds: by phase: "forward" (with the noise, for "seed"), "backward", "step" (both).
        observations: number of times behind each median.
        rounds: number of rounds that the providers took turns in.
        speedup: by phase, against the better of the baselines in the same run, by medians.
        limit_fraction: by phase, the time that the machine's arithmetic or its second-level cache needs at least, over
            the median.
        memory: None where it cannot be measured.
        run: machine, versions, loaded kernels and ceilings: what ``v1fast doctor --json`` prints.
    """

    op: str
    case: str
    shape: dict[str, int]
    dtype: str
    noise: str | None
    provider: str
    baseline: bool
    device: str
    threads: int | None
    clock: str
    status: str
    errors: dict[str, float]
    error_bound: float
    milliseconds: dict[str, Quartiles]
    observations: int
    rounds: int
    speedup: dict[str, Speedup]
    limit_fraction: dict[str, float]
    memory: Memory | None
    run: dict[str, Any]

    @property
    def measured(self) -> bool:
        """Whether there are times."""
        return self.status == MEASURED

    def to_json(self) -> str:
        """Return the row as one line."""
        return json.dumps(asdict(self), allow_nan=False)


def write(path: Path, rows: Iterable[Row]) -> None:
    """Replace ``path`` atomically by these rows, one per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _files.replace(path, "".join(row.to_json() + "\n" for row in rows).encode())
