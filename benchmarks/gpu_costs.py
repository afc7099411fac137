"""What the GPU kernels of the Gaussian readout have to do at least, and what that would take: predictions, not times.

``python -m v1fast.benchmarks.gpu_costs`` prints the tables of docs/gpu.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from .bench_gaussian_readout import CASES
from .exact_gaussian_readout import ReadoutCase


@dataclass(frozen=True)
class Device:
    """Rates a second. None of them was measured by this project."""

    name: str
    dram_bytes: float
    cache_bytes: float  # second-level cache
    instructions: float  # of warps, at 70 % of what the schedulers can issue
    atomics: tuple[float, float]  # float32 additions to global memory, a cautious and a hopeful rate
    launch: float  # seconds a kernel


H100 = Device(
    "H100 SXM",
    dram_bytes=2.77e12,
    cache_bytes=6.65e12,
    instructions=0.7 * 132 * 4 * 1.755e9,
    atomics=(0.53e12, 0.94e12),
    launch=2e-6,
)


@dataclass(frozen=True)
class Counts:
    """Warp instructions for each sample (an image and a neuron) of 64 channels in float32, counted in sm_90's SASS."""

    forward: float
    backward: float  # without the gradient of the features
    scatter: float  # with it, by atomics


@dataclass(frozen=True)
class Cost:
    """One pass of one case."""

    flops: float
    cache_bytes: float
    dram_bytes: float
    atomics: float
    instructions: float

    def bounds(self, device: Device) -> dict[str, tuple[float, float]]:
        """Seconds that each resource needs: (hopeful, cautious)."""
        cautious, hopeful = device.atomics
        same = {
            "arithmetic": self.instructions / device.instructions,
            "L2": self.cache_bytes / device.cache_bytes,
            "memory": self.dram_bytes / device.dram_bytes,
        }
        bounds = {name: (value, value) for name, value in same.items()}
        return bounds | {"atomics": (self.atomics / hopeful, self.atomics / cautious)}

    def seconds(self, device: Device) -> tuple[float, float, str]:
        """The least time (hopeful, cautious), and which resource it is. Atomics do not overlap with the reads."""
        bounds = self.bounds(device)
        atomics = bounds.pop("atomics")
        name = max(bounds, key=lambda key: bounds[key])
        if atomics[1] > bounds[name][1]:
            name, low, high = "atomics", bounds[name][0] + atomics[0], bounds[name][1] + atomics[1]
        else:
            low, high = bounds[name][0] + atomics[0], bounds[name][1] + atomics[1]
        return low + device.launch, high + device.launch, name


def costs(case: ReadoutCase, counts: Counts) -> dict[str, Cost]:
    """By pass: forward, backward without d_features (a frozen core), backward with atomics."""
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


def eager(case: ReadoutCase) -> dict[str, tuple[float, float]]:
    """Seconds of ``grid_sample``, product and sum on an H100, by bytes and scattered atomics: (hopeful, cautious)."""
    images, channels, _, _, neurons = case.sizes
    samples = images * neurons
    products = samples * channels
    forward = (16 * products + 120 * samples) / H100.dram_bytes + 3 * products / (132 * 1.755e9)
    read = (20 * products + 150 * samples) / H100.dram_bytes
    return {
        "forward": (forward, forward),
        "backward": (read + 4 * products / 165e9, read + 4 * products / 85e9),
    }


def rows(counts: Counts) -> list[tuple[str, ...]]:
    """Case, pass, GFLOP, MiB from L2, MiB of memory, millions of atomics, prediction, what bounds it, eager."""
    found: list[tuple[str, ...]] = []
    for case in CASES:
        if case.name == "tiny":  # nothing but the time of a launch
            continue
        chain = eager(case)
        for name, cost in costs(case, counts).items():
            if name.startswith("backward") and not case.gradients:
                continue
            if name == "backward" and "features" not in case.gradients:
                continue
            low, high, bound = cost.seconds(H100)
            figures = (
                f"{cost.flops / 1e9:.2f}",
                f"{cost.cache_bytes / 2**20:.0f}",
                f"{cost.dram_bytes / 2**20:.0f}",
                f"{cost.atomics / 1e6:.0f}" if cost.atomics else "",
                span(low, high),
                bound,
                span(*chain[name]) if name in chain else "",
            )
            found.append((case.name, name, *figures))
    return found


def span(low: float, high: float) -> str:
    """Milliseconds."""
    return f"{1e3 * low:.2g}" if high < 1.05 * low else f"{1e3 * low:.2g} - {1e3 * high:.2g}"


# As compiled by Triton 3.9: instructions of the loop over images, times its warps, over the samples of one turn.
COUNTS = Counts(forward=55, backward=83, scatter=109)


def main() -> None:
    """Print the table as markdown."""
    columns = ("case", "pass", "GFLOP", "L2 MiB", "memory MiB", "atomics, M", "derived ms", "bound by", "eager ms")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows(COUNTS):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
