"""Three times of one call: on the GPU alone, between events, and on the host."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..clocks import CudaClock
from ..replays import capture, seconds_of, warm_up
from .record import reason

Call = Callable[[], Any]
FEWEST_CALLS = 8  # in one graph, so that the launch of the graph does not count


def replayed(calls: Sequence[Call], seconds: float = 0.2, observations: int = 20) -> float:
    """GPU time of a call in us: all calls are captured in one graph, one after the other."""
    turns = -(-FEWEST_CALLS // len(calls))

    def each() -> None:
        for call in calls:
            call()

    def all_turns() -> None:
        for _ in range(turns):
            each()

    warm_up(each)
    graph, _ = capture(all_turns)
    stop = time.perf_counter() + seconds
    found: list[float] = []
    seconds_of([graph])
    while len(found) < observations and (len(found) < 3 or time.perf_counter() < stop):
        found += seconds_of([graph])
    return 1e6 * statistics.median(found) / (turns * len(calls))


def between_events(calls: Sequence[Call], seconds: float = 0.1, observations: int = 20) -> float:
    """Time between events around one call after another, in us. A GPU that waits for Python counts."""
    clock, stop = CudaClock(), time.perf_counter() + seconds
    found: list[float] = []
    for call in calls:
        call()
    while len(found) < observations and (len(found) < 3 or time.perf_counter() < stop):
        for call in calls:
            torch.cuda.synchronize()
            start = clock.stamp()
            call()
            found.append(clock.seconds(start, clock.stamp()))
    return 1e6 * statistics.median(found)


def on_host(calls: Sequence[Call], seconds: float = 0.1, most: int = 100) -> float:
    """Time in us until a call returns, on a GPU that has nothing to do: Python and launches."""
    stop = time.perf_counter() + seconds
    found: list[float] = []
    while len(found) < most and (len(found) < 5 or time.perf_counter() < stop):
        for call in calls:
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return 1e6 * statistics.median(found)


def times(calls: Sequence[Call], quick: bool = False) -> dict[str, Any]:
    """Return the three times in us, and ``why`` where one of them could not be measured."""
    found: dict[str, Any] = {}
    for name, measure in (("events_us", between_events), ("host_us", on_host), ("graph_us", replayed)):
        try:
            found[name] = measure(calls, 0.0) if quick else measure(calls)
        except Exception as error:  # out of memory, or a read by the host: the other times are still good
            found[name] = None
            found["why"] = f"{name}: {reason(error)}"
            torch.cuda.synchronize()
    return found
