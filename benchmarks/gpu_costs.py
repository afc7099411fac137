"""The least work of the readouts' GPU kernels, and the time that it would take: predictions, not measurements.

``python -m v1fast.benchmarks.gpu_costs`` prints the tables of docs/gpu.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .bench_gaussian_readout import CASES
from .bench_pooled_readout import CASES as POOLED_CASES
from .bench_pooled_readout import PooledCase
from .exact_gaussian_readout import ReadoutCase


@dataclass(frozen=True)
class Device:
    """Rates per second. None of them was measured by this project."""

    name: str
    dram_bytes: float
    cache_bytes: float  # second-level cache
    instructions: float  # of warps, at 70 % of what the schedulers can issue
    atomics: tuple[float, float]  # float32 additions to global memory, a cautious and a hopeful rate
    launch: float  # seconds per kernel


H100 = Device(
    "H100 SXM",
    dram_bytes=2.77e12,
    cache_bytes=6.65e12,
    instructions=0.7 * 132 * 4 * 1.755e9,
    atomics=(0.53e12, 0.94e12),
    launch=2e-6,
)


# Of an H100 SXM at 86 % of its data sheet: tensor cores, multiply-adds of float32 outside them.
HALF_FLOPS, TF32_FLOPS, FLOAT32_FLOPS = 850e12, 425e12, 51e12


@dataclass(frozen=True)
class Counts:
    """Warp instructions per sample (an image and a neuron) of 64 channels in float32, counted in sm_90's SASS."""

    forward: float
    backward: float  # without the gradient of the features
    scatter: float  # with that gradient, by atomics
    gather: float = 0  # that gradient alone, without atomics
    later: float = 0  # forward pass of a level after the first


@dataclass(frozen=True)
class Cost:
    """One stage of one pass."""

    flops: float
    cache_bytes: float
    dram_bytes: float
    atomics: float
    instructions: float
    sorted: float = 0  # samples

    def bounds(self, device: Device) -> dict[str, tuple[float, float]]:
        """Return the seconds that each resource needs: (hopeful, cautious)."""
        cautious, hopeful = device.atomics
        same = {
            "arithmetic": self.instructions / device.instructions,
            "L2": self.cache_bytes / device.cache_bytes,
            "memory": self.dram_bytes / device.dram_bytes,
        }
        bounds = {name: (value, value) for name, value in same.items()}
        return bounds | {"atomics": (self.atomics / hopeful, self.atomics / cautious)}

    def seconds(self, device: Device) -> tuple[float, float, str]:
        """Return the least time (hopeful, cautious) and its resource. Atomics do not overlap with reads."""
        bounds = self.bounds(device)
        atomics = bounds.pop("atomics")
        name = max(bounds, key=lambda key: bounds[key])
        if atomics[1] > bounds[name][1]:
            name, low, high = "atomics", bounds[name][0] + atomics[0], bounds[name][1] + atomics[1]
        else:
            low, high = bounds[name][0] + atomics[0], bounds[name][1] + atomics[1]
        sort = self.sorted / SORTED + SORT_START if self.sorted else 0
        name = "sort" if sort > high else name
        return low + sort + device.launch, high + sort + device.launch, name


SORTED, SORT_START = 10e9, 40e-6
"""Samples a second that are sorted by cell, and seconds of a sort of few: guesses."""


def costs(case: ReadoutCase, counts: Counts) -> dict[str, Cost]:
    """Return costs by pass: forward, backward without d_features (a frozen core), backward with atomics."""
    images, channels, height, width, neurons = case.sizes
    samples, itemsize = images * neurons, 2 if case.dtype == "bfloat16" else 4
    products = samples * channels
    maps = itemsize * images * channels * height * width
    weights = 4 * neurons * (channels + 7)
    scale = channels / 64
    forward = Cost(
        10 * products, 4 * itemsize * products, maps + weights + 4 * samples, 0, counts.forward * samples * scale
    )
    backward = Cost(
        20 * products, 4 * itemsize * products, maps + 2 * weights + 4 * samples, 0, counts.backward * samples * scale
    )
    scatter = Cost(
        28 * products,
        4 * itemsize * products,
        2 * maps + 2 * weights + 4 * samples,
        4 * products,
        counts.scatter * samples * scale,
    )
    return {"forward": forward, "backward, frozen core": backward, "backward": scatter}


def gathered(case: ReadoutCase, counts: Counts) -> Cost:
    """Return the cost of the gradient of the features alone, without atomics."""
    images, channels, height, width, neurons = case.sizes
    itemsize = 2 if case.dtype == "bfloat16" else 4
    size = itemsize * images * channels * height * width
    return _gathered(images * neurons, channels, size, 4 * neurons * (channels + 7), counts)


def _gathered(samples: int, channels: int, written: float, weights: float, counts: Counts) -> Cost:
    products, instructions = samples * channels, counts.gather * samples * channels / 64
    return Cost(8 * products, 16 * products, written + weights + 20 * samples, 0, instructions, samples)


def _maps(case: PooledCase) -> list[float]:
    """Return the bytes of each level."""
    images, channels, height, width, _ = case.shape.values()
    sides = [case.pool_kernel**step for step in range(case.pool_steps + 1)]
    return [4.0 * images * channels * (height // side) * (width // side) for side in sides]


def pooled_costs(case: PooledCase, counts: Counts) -> dict[str, list[Cost]]:
    """Return costs by pass and stage: poolings, levels, and adding the gradient of each level to the level before.

    A coarse level has many neurons per pixel. So its gradient is gathered, as kernels/_features.py decides.
    """
    images, channels, _, _, neurons = case.shape.values()
    samples, scale = images * neurons, channels / 64
    products, weights = samples * channels, 4 * neurons * (channels + 2)
    maps = _maps(case)
    pooling = [Cost(fine / 4, 0, fine + coarse, 0, 0) for fine, coarse in pairwise(maps)]
    forward = [
        Cost(
            10 * products,
            16 * products,
            size + weights + (12 if level else 4) * samples,  # the sum of the levels before is read and written
            0,
            (counts.later if level else counts.forward) * samples * scale,
        )
        for level, size in enumerate(maps)
    ]
    frozen = [
        Cost(20 * products, 16 * products, size + 2 * weights + 4 * samples, 0, counts.backward * samples * scale)
        for size in maps
    ]
    whole = []
    for size, without in zip(maps, frozen, strict=True):
        if 4 * images * channels * neurons > 8 * size:
            whole += [without, _gathered(samples, channels, size, weights, counts)]
        else:
            memory = without.dram_bytes + size
            whole += [Cost(28 * products, 16 * products, memory, 4 * products, counts.scatter * samples * scale)]
    adding = [Cost(fine / 2, 0, 2 * fine + coarse, 0, 0) for fine, coarse in pairwise(maps)]
    return {
        "forward": pooling + forward,
        "backward, frozen core": pooling + frozen,
        "backward": [*pooling, *whole, *adding],
    }


def eager(samples: int, channels: int) -> dict[str, tuple[float, float]]:
    """Return seconds of ``grid_sample``, product and sum on an H100, by bytes and atomics: (hopeful, cautious)."""
    products = samples * channels
    forward = (16 * products + 120 * samples) / H100.dram_bytes + 3 * products / (132 * 1.755e9)
    read = (20 * products + 150 * samples) / H100.dram_bytes
    return {
        "forward": (forward, forward),
        "backward": (read + 4 * products / 165e9, read + 4 * products / 85e9),
    }


def eager_pooled(case: PooledCase) -> dict[str, tuple[float, float]]:
    """Like ``eager``, for all levels, by the bytes of their maps: pooled, zeroed, pooled back, added."""
    images, channels, _, _, neurons = case.shape.values()
    chain = eager(images * neurons, channels * (case.pool_steps + 1))
    maps = _maps(case)
    pooling = sum(fine + coarse for fine, coarse in pairwise(maps)) / H100.dram_bytes
    back = (sum(maps) + sum(coarse + 4 * fine for fine, coarse in pairwise(maps))) / H100.dram_bytes
    more = {"forward": pooling, "backward": back}
    return {name: (low + more[name], high + more[name]) for name, (low, high) in chain.items()}


def _row(case: str, name: str, stages: Sequence[Cost], chain: dict[str, tuple[float, float]]) -> tuple[str, ...]:
    low, high, bounds = zip(*(stage.seconds(H100) for stage in stages), strict=True)
    atomics = sum(stage.atomics for stage in stages)
    return (
        case,
        name,
        f"{sum(stage.flops for stage in stages) / 1e9:.2f}",
        f"{sum(stage.cache_bytes for stage in stages) / 2**20:.0f}",
        f"{sum(stage.dram_bytes for stage in stages) / 2**20:.0f}",
        f"{atomics / 1e6:.0f}" if atomics else "",
        span(sum(low), sum(high)),
        bounds[high.index(max(high))],  # of the longest stage
        span(*chain[name]) if name in chain else "",
    )


def rows() -> Iterator[tuple[str, ...]]:
    """Case, pass, GFLOP, MiB from L2, MiB of memory, millions of atomics, prediction, what bounds it, eager."""
    for case in CASES:
        if case.name == "tiny":  # launch time only
            continue
        images, channels, _, _, neurons = case.sizes
        chain = eager(images * neurons, channels)
        for name, cost in costs(case, GAUSSIAN).items():
            if name.startswith("backward") and not case.gradients:
                continue
            if name == "backward" and "features" not in case.gradients:
                continue
            yield _row(case.name, name, [cost], chain)
    for pooled in POOLED_CASES:
        images, channels, _, _, neurons = pooled.shape.values()
        chain = eager_pooled(pooled)
        for name, stages in pooled_costs(pooled, POINTS).items():
            yield _row(f"{pooled.name}, {pooled.pool_steps} poolings", name, stages, chain)


def span(low: float, high: float) -> str:
    """Format milliseconds."""
    return f"{1e3 * low:.2g}" if high < 1.05 * low else f"{1e3 * low:.2g} - {1e3 * high:.2g}"


# As compiled by Triton 3.9: instructions of the loop over images, times its warps, divided by the samples of one
# iteration. For the gather: instructions of its loop over samples. Four pixels read each sample.
GAUSSIAN = Counts(forward=55, backward=81, scatter=106, gather=51)
POINTS = Counts(forward=37, backward=44, scatter=70, gather=33, later=40)


def main() -> None:
    """Print the table as markdown."""
    columns = ("case", "pass", "GFLOP", "L2 MiB", "memory MiB", "atomics, M", "derived ms", "bound by", "eager ms")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows():
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
