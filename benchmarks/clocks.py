"""Clocks: a stamp costs as little as it can, and seconds are taken from two stamps afterwards."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """What the harness times with."""

    name: str

    def stamp(self) -> Any:
        """Now."""

    def seconds(self, start: Any, end: Any) -> float:
        """Between two stamps."""


class CpuClock:
    """CPU time of the process, all threads: what other work on the machine takes away does not count."""

    name = "cpu"

    def stamp(self) -> float:
        return time.process_time()

    def seconds(self, start: float, end: float) -> float:
        return end - start


class WallClock:
    """Elapsed time."""

    name = "wall"

    def stamp(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start


class CudaClock:
    """Events in the current CUDA stream."""

    name = "cuda"

    def stamp(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3
