"""``python -m v1fast.benchmarks.scale``: time and memory of training against the number of neurons.

``population`` trains populations of growing size on this machine, one thread, and fits exponents. ``predict`` prints
what docs/scale.md says of many GPUs: predictions. Under ``torchrun``, ``ranks`` measures steps with the neurons split
over the ranks: ``torchrun --nproc-per-node 2 -m v1fast.benchmarks.scale ranks``.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn import functional as F

from v1fast.distributed import shard_neurons
from v1fast.losses import PoissonLoss
from v1fast.readouts import FullGaussian2d

from . import memory
from .exact_gaussian_readout import ReadoutCase
from .gpu_costs import GAUSSIAN, H100, costs
from .gpu_costs_rdm import FLOAT32_FLOPS

IMAGES, MAP = 16, (64, 28, 56)
STEPS = 3
FITTED_FROM = 10_000  # neurons; below, features and calls cost more


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
class Point:
    """What one population took."""

    neurons: int
    seconds: float  # CPU time of a step
    peak: int  # bytes
    needed: int


def measured(neurons: int) -> Point:
    """Train for a few steps; the first, which makes Adam's averages, is not timed."""
    parts: list[Training] = []

    def run() -> list[float]:
        parts.append(Training(neurons))
        taken = []
        for _ in range(STEPS):
            start = time.process_time()
            parts[0].step()
            taken.append(time.process_time() - start)
        return taken[1:]

    taken, peak = memory.peak_of(run, "cpu")
    responses = parts[0].responses.nbytes  # data, not part of what is asked about
    return Point(neurons, median(taken), (peak or 0) - responses, parts[0].bytes_needed())


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The slope of a straight line through (log x, log y), by least squares.

    >>> round(exponent([(1.0, 3.0), (2.0, 12.0), (4.0, 48.0)]), 6)
    2.0
    """
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(axis) / len(logs) for axis in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def population(sizes: Sequence[int]) -> None:
    """Measure, and print a table and the exponents."""
    torch.set_num_threads(1)
    measured(1000)  # once for what the first call of anything costs
    print("| neurons | a step, s | ns per neuron and image | peak, MiB | of what is needed |\n|---|---|---|---|---|")
    points = []
    for size in sizes:
        point = measured(size)
        points.append(point)
        each = 1e9 * point.seconds / (size * IMAGES)
        print(
            f"| {size:,} | {point.seconds:.3f} | {each:.0f} | {point.peak / 2**20:,.0f} |"
            f" {point.peak / point.needed:.2f} |",
            flush=True,
        )
    large = [point for point in points if point.neurons >= FITTED_FROM]
    if len(large) > 1:
        times = exponent([(point.neurons, point.seconds) for point in large])
        peaks = exponent([(point.neurons, point.peak) for point in large])
        print(f"\nexponents from {FITTED_FROM:,} neurons on: time {times:.2f}, memory {peaks:.2f}")


def over_ranks(neurons: int) -> None:
    """Measure steps on the ranks of ``torchrun``; the first rank prints a row."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    training = Training(neurons, init_device_mesh("cpu", (ranks,)))
    cpu, wall = [], []
    for _ in range(STEPS + 2):
        dist.barrier()
        start, worked = time.perf_counter(), time.process_time()
        training.step()
        cpu.append(time.process_time() - worked)
        wall.append(time.perf_counter() - start)
    figures = [median(cpu[1:]), median(wall[1:]), training.bytes_needed() / 2**20]
    slowest: list[list[float]] = [[]] * ranks
    dist.all_gather_object(slowest, figures)
    if dist.get_rank() == 0:
        most = [max(column) for column in zip(*slowest, strict=True)]
        moved = bytes_moved(neurons, ranks)["neurons"] / 2**20
        print(f"| {ranks} | {most[0]:.3f} | {most[1]:.3f} | {most[2]:,.0f} | {moved:.1f} |")
    dist.destroy_process_group()


# predictions

PREDICTED_IMAGES = 64  # of a batch: one for each of as many GPUs
CORE = 300_000  # parameters of a core of convolutions: each takes part in 6 operations for each pixel and image
NVLINK, NETWORK, GPUS_OF_A_NODE = 450e9, 50e9, 8
"""Bytes a second that a GPU sends: by NVLink 4 within a node, by InfiniBand NDR between nodes.

900 GB/s in both directions together: NVIDIA H100 datasheet. One 400 Gb/s adapter for each GPU: NVIDIA DGX H100 user
guide.
"""


def bytes_moved(neurons: int, ranks: int, images: int = IMAGES) -> dict[str, float]:
    """Bytes that each rank sends in a step, with neurons or with images split over the ranks; float32.

    A ring adds up n bytes over R ranks by sending 2 n (R - 1) / R from each (Patarasuk & Yuan, "Bandwidth optimal
    all-reduce algorithms for clusters of workstations", 2009). Neurons split: the gradient of the features of all
    images. Images split: the gradients of all parameters.
    """
    channels, height, width = MAP
    ring = 2 * (ranks - 1) / ranks
    parameters = CORE + neurons * (channels + 7)
    return {"neurons": ring * 4 * images * channels * height * width, "images": ring * 4 * parameters}


def seconds_predicted(neurons: int, gpus: int) -> dict[str, tuple[float, float]]:
    """(computing, communicating) of a step by what is split; the cautious figures of the cost sheet.

    With the neurons split, every GPU computes the core for all images.
    """
    link = NVLINK if gpus <= GPUS_OF_A_NODE else NETWORK
    moved = bytes_moved(neurons, gpus, PREDICTED_IMAGES)
    parts = {"neurons": (PREDICTED_IMAGES, -(-neurons // gpus)), "images": (-(-PREDICTED_IMAGES // gpus), neurons)}
    found = {}
    for name, (images, own) in parts.items():
        core = 6 * CORE * math.prod(MAP[1:]) * images / (FLOAT32_FLOPS / 2)
        shape = dict(zip(("B", "C", "H", "W", "N"), (images, *MAP, own), strict=True))
        passes = costs(ReadoutCase("predicted", shape), GAUSSIAN)
        readout = sum(passes[one].seconds(H100)[1] for one in ("forward", "backward"))
        found[name] = core + readout, moved[name] / link
    return found


def prediction_rows() -> Iterator[tuple[str, ...]]:
    """The cells of each row of the table of predictions."""
    for neurons in (10**4, 10**5, 10**6, 10**7):
        for gpus in (1, 8, 64):
            found = seconds_predicted(neurons, gpus)
            cells = [f"{1e3 * part:.2f}" for name in ("neurons", "images") for part in found[name]]
            needed = 16 * (64 + 7) * neurons / 2**30
            better = min(found, key=lambda name: sum(found[name])) if gpus > 1 else ""
            yield f"{neurons:,}", str(gpus), *cells, f"{needed / gpus:.2f}", f"{needed:.2f}", better


def predict() -> None:
    """Print the table of predictions."""
    columns = ("compute, ms", "communicate, ms")
    names = ["neurons", "GPUs", *(f"by {split}: {one}" for split in ("neurons", "images") for one in columns)]
    names += ["GiB by neurons", "GiB by images", "faster"]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for row in prediction_rows():
        print(f"| {' | '.join(row)} |")


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=("population", "ranks", "predict"))
    parser.add_argument("--neurons", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    given = parser.parse_args()
    if given.part == "population":
        population(given.neurons)
    elif given.part == "ranks":
        over_ranks(given.neurons[-1])
    else:
        predict()


if __name__ == "__main__":
    main()
