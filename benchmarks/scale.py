"""``python -m v1fast.benchmarks.scale PART``: time and memory against the number of neurons and of stimuli.

``population`` trains populations of growing size on this machine, one thread; ``stimuli`` computes dissimilarity
matrices of growing size, in memory, to a file, and compared without being stored. Both print a table and the exponents,
and leave their rows in a folder (``--out``). ``plot`` draws these rows; ``plot --page docs/scale.md`` draws beside the
page, and fills its tables. The default sizes take about ten minutes, 5 GB of memory and 5 GB of the disk.

``predict`` prints what docs/scale.md says of many GPUs: predictions. Under ``torchrun``, ``ranks`` measures steps with
the neurons split over the ranks: ``torchrun --nproc-per-node 2 -m v1fast.benchmarks.scale ranks``.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from . import growth, growth_picture, pages
from .exact_gaussian_readout import ReadoutCase
from .gpu_costs import FLOAT32_FLOPS, GAUSSIAN, H100, costs
from .growth import IMAGES, MAP, Point, Training

STEPS = 3


def grow(tasks: Sequence[tuple[str, int]], path: Path) -> None:
    """Measure, print, and save the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        points = growth.measure(tasks, Path(folder))
    growth.save(points, path)
    for line in lines_of(points):
        print(line)


def lines_of(points: Sequence[Point]) -> list[str]:
    """The table of populations or of sets of stimuli, and the exponents."""
    series = {name: [point for point in points if point.series == name] for name in growth.SERIES}
    of_stimuli = any(series[way] for way in growth.WAYS)
    table = growth.stimuli_table(points) if of_stimuli else growth.neurons_table(points)
    return [*table, "", *(f"- {growth.exponents(part)}" for part in series.values() if part)]


def draw(out: Path, page: Path | None) -> None:
    """Draw what was measured, beside the page and with its tables filled, if there is one."""
    measured = {name: growth.load(out / f"{name}.csv") for name in ("population", "stimuli")}
    growth_picture.save(measured["population"], measured["stimuli"], (page.parent if page else out) / "scale.png")
    if page:
        for name, points in measured.items():
            pages.fill(page, name, lines_of(points))


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
    parser.add_argument("part", choices=("population", "stimuli", "plot", "ranks", "predict"))
    parser.add_argument("--neurons", type=int, nargs="+", help="sizes of the populations; of ranks, the last one")
    parser.add_argument("--stimuli", type=int, nargs="+", help="numbers of stimuli")
    parser.add_argument(
        "--bfloat16", action="store_true", help="populations with weights in bfloat16, see v1fast.training"
    )
    parser.add_argument("--out", type=Path, default=Path("out/scale"), help="the folder of the rows")
    parser.add_argument("--page", type=Path, help="whose tables plot fills")
    given = parser.parse_args()
    if given.part == "population":
        tasks = growth.tasks_of_neurons(given.neurons or growth.NEURONS, given.bfloat16)
        grow(tasks, given.out / f"population{'-bfloat16' if given.bfloat16 else ''}.csv")
    elif given.part == "stimuli":
        grow(growth.tasks_of_stimuli(given.stimuli or growth.STIMULI), given.out / "stimuli.csv")
    elif given.part == "plot":
        draw(given.out, given.page)
    elif given.part == "ranks":
        over_ranks((given.neurons or [1_000_000])[-1])
    else:
        predict()


if __name__ == "__main__":
    main()
