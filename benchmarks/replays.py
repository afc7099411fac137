"""GPU time without Python: a call is captured as a CUDA graph, and the graph is replayed.

Events around an uncaptured call bracket a GPU that waits for Python. A replay is one launch. Before it the GPU is kept
busy for a while, so that the launch, and the events around it, are queued when their turn comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, TypeVar

import torch

from .clocks import CudaClock
from .contract import Absent, Step, Times

T = TypeVar("T")
WARM_UPS = 3  # calls before the capture: they compile, choose and allocate
BUSY = 400_000  # cycles, a fifth of a millisecond: longer than it takes to queue a few launches


def capture(call: Callable[[], T], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, T]:
    """Capture a call. Return the graph, and what the call returned: tensors that each replay writes anew."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = call()
    return graph, result


def warm_up(call: Callable[[], Any]) -> None:
    """Call a few times on a stream of its own, as a capture needs it.

    Raises:
        RuntimeError: the host waits for the device, as where it reads a value. A capture that fails for this leaves
            torch's random generator unusable, so it must not begin.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS - 1):
            call()
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            torch.cuda.current_stream().synchronize()
    torch.cuda.current_stream().wait_stream(stream)


def seconds_of(graphs: Sequence[torch.cuda.CUDAGraph | None]) -> list[float]:
    """Replay graphs one after the other. Return the seconds of each; None takes none."""
    clock = CudaClock()
    busy = getattr(torch.cuda, "_sleep", None)
    if busy is not None:
        busy(BUSY)
    stamps = [clock.stamp()]
    for graph in graphs:
        if graph is not None:
            graph.replay()
        stamps.append(clock.stamp())
    return [
        0.0 if graph is None else clock.seconds(*pair) for graph, pair in zip(graphs, pairwise(stamps), strict=True)
    ]


class GraphClock(CudaClock):
    """Replays of a step's phases. Its stamps time the first call alone, which is not captured."""

    name = "cuda graph"
    times_first_call = False  # it compiles

    def observer(self, step: Step) -> Callable[[], Times]:
        """Capture the phases of a step. Return what measures them once.

        Raises:
            Absent: it cannot be captured, as where the host reads a value.
        """
        upstream = step.upstream
        context = torch.no_grad() if upstream is None else nullcontext()

        def whole() -> None:
            output = step.forward(step.draw())
            if upstream is not None:
                step.backward(output, upstream)

        with context:
            try:
                warm_up(whole)
                return _phases(step)
            except RuntimeError as error:
                torch.cuda.synchronize()
                raise Absent(f"not captured as a CUDA graph: {str(error).strip().splitlines()[0]}") from error


def _phases(step: Step) -> Callable[[], Times]:
    upstream, pool = step.upstream, torch.cuda.graph_pool_handle()
    draw, drawn = (None, None) if step.draw() is None else capture(step.draw, pool)
    forward, output = capture(lambda: step.forward(drawn), pool)
    backward, gradients = None, None
    if upstream is not None:
        backward, gradients = capture(lambda: step.backward(output, upstream), pool)

    def observe(held: Any = (drawn, output, gradients)) -> Times:
        return Times(*seconds_of([draw, forward, backward]))

    return observe
