"""Clocks. A stamp is as cheap as possible; seconds are computed from two stamps afterwards."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .contract import Step, Times


class Clock(ABC):
    """The interface through which the harness measures time."""

    name: str
    times_first_call = True  # a call that was not observed: whether its stamps count as an observation

    @abstractmethod
    def stamp(self) -> Any:
        """Return the current time."""

    @abstractmethod
    def seconds(self, start: Any, end: Any) -> float:
        """Return the seconds between two stamps."""

    def observer(self, step: Step) -> Callable[[], Times]:
        """Return what measures a step once: here, a call between stamps."""
        return lambda: call(step, self, step.upstream)[0]


def call(step: Step, clock: Clock, upstream: Tensor | None) -> tuple[Times, Tensor, dict[str, Tensor]]:
    """Call once. Return the times, the output and the gradients."""
    with torch.set_grad_enabled(upstream is not None):
        begin = clock.stamp()
        drawn = step.draw()
        forward = clock.stamp()
        output = step.forward(drawn)
        backward = end = clock.stamp()
        gradients: dict[str, Tensor] = {}
        if upstream is not None:
            gradients = step.backward(output, upstream)
            end = clock.stamp()
    seconds = clock.seconds
    return Times(seconds(begin, forward), seconds(forward, backward), seconds(backward, end)), output, gradients


class CpuClock(Clock):
    """CPU time of all threads of the process. Time that other processes take does not count."""

    name = "cpu"

    def stamp(self) -> float:
        return time.process_time()

    def seconds(self, start: float, end: float) -> float:
        return end - start


class WallClock(Clock):
    """Elapsed time."""

    name = "wall"

    def stamp(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start


class CudaClock(Clock):
    """Events in the current CUDA stream."""

    name = "cuda"

    def stamp(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3
