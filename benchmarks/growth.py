"""Time and memory against the number of neurons, and against the number of stimuli, on this machine; one thread.

Memory is measured in two ways. ``resident`` is what the process holds at its peak with the C library's usual settings:
glibc keeps freed blocks of less than 32 MiB, to give them out again. ``peak`` is what is in use: the same with freed
memory returned to the system at once, which takes more time. Times are those of the usual settings.
"""

from __future__ import annotations

import csv
import functools
import io
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional as F

from v1fast import _files, functional
from v1fast.distributed import shard_neurons
from v1fast.losses import PoissonLoss
from v1fast.readouts import FullGaussian2d
from v1fast.rsa import rdm_correlation, rdm_to_file

from . import memory

IMAGES, MAP = 16, (64, 28, 56)
NEURONS = (1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 4_000_000)
STIMULI = (100, 300, 1000, 3000, 10_000, 30_000, 50_000, 100_000)
RECORDED = 256  # neurons of the responses that are compared

TRAINING, HALF = "training", "training with bfloat16 weights"
WAYS = IN_MEMORY, TO_FILE, COMPARED = "in memory", "to a file", "two systems, neither stored"
SERIES = (TRAINING, HALF, *WAYS)
MOST = {IN_MEMORY: 30_000, TO_FILE: 50_000}  # stimuli: matrices of 1.7 and 4.7 GiB
FITTED_FROM = {TRAINING: 10_000, HALF: 10_000, IN_MEMORY: 1000, TO_FILE: 3000, COMPARED: 1000}
"""Sizes below which what a call costs by itself counts."""

FEWEST, MOST_STEPS = 4, 100  # steps that are timed, the first of which is not counted
SHORT = 1.0  # seconds: as many steps as take so long
LONG = 60.0  # seconds by the clock: a step that takes so long is not repeated


class Training:
    """A readout and what a step of it needs; features stand for a core's.

    Args:
        neurons: N.
        mesh: that the neurons are split over; None: one process.
    """

    def __init__(self, neurons: int, mesh: DeviceMesh | None = None) -> None:
        torch.manual_seed(0)
        if mesh is None:
            self.readout = FullGaussian2d(MAP, neurons, bias=True)
        else:
            with torch.device("meta"):
                readout = FullGaussian2d(MAP, neurons, bias=True)
            self.readout = shard_neurons(readout, mesh)
        features = torch.randn(IMAGES, *MAP, generator=torch.Generator().manual_seed(1))
        self.features = features.contiguous(memory_format=torch.channels_last).requires_grad_()
        self.responses = torch.rand(IMAGES, self.readout.outdims)
        self.optimizer = torch.optim.Adam(self.readout.parameters(), lr=1e-3, fused=True)
        self.loss = PoissonLoss(avg=False)

    def step(self) -> None:
        """Forward and backward pass, and Adam."""
        self.optimizer.zero_grad()
        self.features.grad = None
        loss: Tensor = self.loss(F.elu(self.readout(self.features)) + 1, self.responses)
        loss.backward()
        self.optimizer.step()

    def bytes_needed(self) -> int:
        """Parameters, their gradients, Adam's two averages, the features and the outputs, with a gradient of each."""
        own = [getattr(parameter, "to_local", parameter.detach)() for parameter in self.readout.parameters()]
        parameters = sum(parameter.nbytes for parameter in own)
        return 4 * parameters + 2 * (self.features.nbytes + self.responses.nbytes)


@dataclass(frozen=True)
class Work:
    """What is repeated and measured.

    Attributes:
        step: does it once.
        needed: bytes that it cannot do without.
        data: bytes of its data, which are not counted.
        fixed: of those needed, bytes that do not depend on the size.
    """

    step: Callable[[], object]
    needed: int
    data: int
    fixed: int = 0


@dataclass(frozen=True)
class Point:
    """What work of one size took.

    Attributes:
        series: the kind of work.
        size: neurons or stimuli.
        seconds: CPU time of a step.
        resident: bytes that the process held at most beside the data, freed ones that glibc keeps included.
        peak: bytes that were in use at most.
        needed: bytes that the work cannot do without.
        fixed: of those needed, bytes that do not depend on the size.
    """

    series: str
    size: int
    seconds: float
    resident: int
    peak: int
    needed: int
    fixed: int


def tasks_of_neurons(sizes: Sequence[int], half: bool = False) -> list[tuple[str, int]]:
    """What :func:`measure` takes, for populations of these sizes; ``half``: with weights in bfloat16."""
    return [(HALF if half else TRAINING, size) for size in sizes]


def tasks_of_stimuli(sizes: Sequence[int]) -> list[tuple[str, int]]:
    """Likewise for sets of stimuli, in each way that has room for them."""
    return [(way, size) for way in WAYS for size in sizes if size <= MOST.get(way, size)]


def work_of(series: str, size: int, folder: Path) -> Work:
    """Prepare work of one kind and size; files are written to ``folder``, and removed."""
    if series in (TRAINING, HALF):
        training = Training(size)
        if series == HALF:
            training.readout.weight_dtype = torch.bfloat16
        fixed = 2 * training.features.nbytes
        return Work(training.step, training.bytes_needed(), training.responses.nbytes, fixed)
    generator = torch.Generator().manual_seed(0)
    x, matrix = torch.randn(size, RECORDED, generator=generator), 2 * size * (size - 1)
    if series == IN_MEMORY:
        return Work(lambda: functional.rdm(x, condensed=True), matrix, x.nbytes)
    if series == TO_FILE:
        return Work(lambda: _write_and_remove(x, folder / "growth.npy"), 0, x.nbytes)
    y = torch.randn(size, RECORDED, generator=generator)
    return Work(lambda: rdm_correlation(x, y), 0, 2 * x.nbytes)


def _write_and_remove(x: Tensor, path: Path) -> None:
    try:
        rdm_to_file(x, path, overwrite=True, progress=False)
    finally:
        path.unlink(missing_ok=True)


def measure(tasks: Sequence[tuple[str, int]], folder: Path) -> list[Point]:
    """Measure all (series, size): the times here, the memory in use in another process."""
    torch.set_num_threads(1)
    _warm_up(tasks, folder)
    timed = [_timed(series, size, folder) for series, size in tasks]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        peaks = other.submit(_in_use, tasks, folder).result()
    return [
        Point(series, size, seconds, resident, peak, work.needed, work.fixed)
        for (series, size), (work, seconds, resident), peak in zip(tasks, timed, peaks, strict=True)
    ]


def _warm_up(tasks: Sequence[tuple[str, int]], folder: Path) -> None:
    """Pay what the first call of anything costs."""
    for series in dict(tasks):
        work_of(series, FITTED_FROM[series], folder).step()


def _timed(series: str, size: int, folder: Path) -> tuple[Work, float, int]:
    """(sizes of the work, CPU time of a step, peak with the usual settings)."""

    def run() -> tuple[Work, list[float]]:
        work = work_of(series, size, folder)
        taken: list[float] = []
        while len(taken) < FEWEST or (sum(taken) < SHORT and len(taken) < MOST_STEPS):
            start, began = time.process_time(), time.perf_counter()
            work.step()
            taken.append(time.process_time() - start)
            if time.perf_counter() - began > LONG:
                break
        # Without the first, which meets memory that the machine has not used and makes Adam's averages.
        return replace(work, step=_nothing), taken[1:] or taken

    (work, taken), peak = memory.peak_of(run, "cpu")
    print(f"{series}, {size:,}: {median(taken):.3g} s", flush=True)
    return work, median(taken), max(0, (peak or 0) - work.data)


def _nothing() -> None:
    """A step of work that is done."""


def _in_use(tasks: Sequence[tuple[str, int]], folder: Path) -> list[int]:
    """The bytes in use at most, for each task; in a process that times nothing."""
    memory.return_freed_memory()
    torch.set_num_threads(1)
    _warm_up(tasks, folder)
    peaks = []
    for series, size in tasks:
        data, peak = memory.peak_of(functools.partial(_done, series, size, folder), "cpu")
        peaks.append(max(0, (peak or 0) - data))
    return peaks


def _done(series: str, size: int, folder: Path) -> int:
    """Do the work; the bytes of its data."""
    work = work_of(series, size, folder)
    for _ in range(2 if series in (TRAINING, HALF) else 1):  # the second has Adam's averages from the beginning
        work.step()
    return work.data


def fitted(points: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """(k, c) of c x^k: the straight line through (log x, log y) by least squares.

    >>> k, c = fitted([(1.0, 3.0), (2.0, 12.0), (4.0, 48.0)])
    >>> round(k, 6), round(c, 6)
    (2.0, 3.0)
    """
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(axis) / len(logs) for axis in zip(*logs, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)
    return slope, math.exp(mean_y - slope * mean_x)


def fit_of(points: Sequence[Point], what: str) -> tuple[float, float] | None:
    """(k, c) of "seconds" or "peak" beside what does not depend on the size.

    None for less than two sizes, and for the memory of work that needs nothing that grows.
    """
    if what == "peak" and not points[0].needed:
        return None
    large = [point for point in points if point.size >= FITTED_FROM[point.series]]
    values = [(point.size, point.seconds if what == "seconds" else point.peak - point.fixed) for point in large]
    known = [(float(size), float(value)) for size, value in values if value > 0]
    return fitted(known) if len(known) > 1 else None


def exponents(points: Sequence[Point]) -> str:
    """What was fitted to one series, in words."""
    said = []
    for what, name in (("seconds", "time"), ("peak", "memory in use")):
        found = fit_of(points, what)
        if found is not None:
            said.append(f"{name} {found[0]:.2f}")
    return f"{points[0].series}, exponents from {FITTED_FROM[points[0].series]:,} on: {', '.join(said) or 'none'}"


def neurons_table(points: Sequence[Point]) -> list[str]:
    """The lines of the table of populations."""
    names = ["neurons", "a step, s", "ns per neuron and image", "in use, MiB", "of what is needed", "resident, MiB"]
    return _lines(
        names,
        [
            [
                f"{point.size:,}",
                _figures(point.seconds, 3),
                f"{1e9 * point.seconds / (point.size * IMAGES):.0f}",
                _mebibytes(point.peak),
                f"{point.peak / point.needed:.2f}",
                _mebibytes(point.resident),
            ]
            for point in points
        ],
    )


def stimuli_table(points: Sequence[Point]) -> list[str]:
    """The lines of the table of sets of stimuli: a row for each size, and columns for each way."""
    ways = [way for way in WAYS if any(point.series == way for point in points)]
    found = {(point.series, point.size): point for point in points}
    rows = []
    for size in sorted({point.size for point in points}):
        row = [f"{size:,}"]
        for way in ways:
            point = found.get((way, size))
            row += ["", ""] if point is None else [_figures(point.seconds, 2), _mebibytes(point.peak)]
        rows.append(row)
    return _lines(["stimuli", *(f"{way}: {what}" for way in ways for what in ("s", "MiB"))], rows)


def _figures(value: float, count: int) -> str:
    """At least so many significant figures of a positive number, without an exponent."""
    return f"{value:,.{max(0, count - 1 - math.floor(math.log10(value)))}f}"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f}"


def _lines(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *rows)]


def save(points: Sequence[Point], path: Path) -> None:
    """Write a table of comma-separated values."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([field.name for field in fields(Point)])
    writer.writerows(map(astuple, points))
    path.parent.mkdir(parents=True, exist_ok=True)
    _files.replace(path, text.getvalue().encode())


def load(path: Path) -> list[Point]:
    """Read what :func:`save` wrote."""
    with path.open(newline="") as file:
        return [
            Point(row["series"], int(row["size"]), float(row["seconds"]), *(int(row[name]) for name in _BYTES))
            for row in csv.DictReader(file)
        ]


_BYTES = ("resident", "peak", "needed", "fixed")
