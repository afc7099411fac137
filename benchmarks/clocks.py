"""Clocks. A stamp is as cheap as possible; seconds are computed from two stamps afterwards."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """The interface through which the harness measures time."""

    name: str

    def stamp(self) -> Any:
        """Return the current time."""

    def seconds(self, start: Any, end: Any) -> float:
        """Return the seconds between two stamps."""


class CpuClock:
    """CPU time of all threads of the process. Time that other processes take does not count."""

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
