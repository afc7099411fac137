"""The least work of the dissimilarity matrices' GPU kernels, and the time that it would take: predictions.

``python -m v1fast.benchmarks.gpu_costs_rdm`` prints the table of docs/gpu.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import no_kernels
from .gpu_costs import FLOAT32_FLOPS, H100, HALF_FLOPS, TF32_FLOPS

try:
    import triton
    from v1fast.kernels import rdm, rdm_backward  # type: ignore[import-not-found]
except ImportError as missing:
    no_kernels.end(__name__, missing)
    raise

MULTIPROCESSORS = 132
CASES = {"360 x 23589": (360, 23589), "1000 x 20000": (1000, 20000), "4000 x 20000": (4000, 20000),
         "8000 x 8000": (8000, 8000), "16384 x 64": (16384, 64)}  # fmt: skip


@dataclass(frozen=True)
class Pass:
    """One kernel of one case."""

    seconds_of_arithmetic: float
    cache_bytes: float
    dram_bytes: float
    programs: int

    def bounds(self) -> dict[str, float]:
        """Return the seconds that each resource needs. An incomplete round of programs takes as long as a full one."""
        rounds = triton.cdiv(self.programs, MULTIPROCESSORS) * MULTIPROCESSORS / self.programs
        filled = min(self.programs / MULTIPROCESSORS, 1)
        return {
            "arithmetic": self.seconds_of_arithmetic * rounds,
            "L2": self.cache_bytes / H100.cache_bytes / filled,
            "memory": self.dram_bytes / H100.dram_bytes,
        }

    def seconds(self) -> tuple[float, str]:
        """Return the least time and the resource that sets it."""
        bounds = self.bounds()
        name = max(bounds, key=lambda key: bounds[key])
        return bounds[name] + H100.launch, name


def standardise(rows: int, columns: int) -> Pass:
    """A row is read twice, the second time from the cache, and written as two planes of 16 bits."""
    values = rows * columns
    return Pass(0, 12 * values, 8 * values, rows)


def multiply(rows: int, columns: int) -> Pass:
    """Three products of tiles on and above the diagonal, slabs of shared tiles, and the whole matrix."""
    shape = rdm.tile_shape(rows, torch.float16, True)
    down = triton.cdiv(rows, shape.side)
    tiles = down * (down + 1) // 2
    splits, _ = rdm.split_columns(tiles, triton.cdiv(columns, shape.block), rdm.PROMOTED // shape.block)
    slabs = 8 * tiles * splits * shape.side**2 if splits > 1 else 0
    flops = 3 * 2 * tiles * shape.side**2 * columns
    read, written = 8 * tiles * shape.side * columns, 4 * rows**2
    return Pass(flops / HALF_FLOPS, read + slabs + 1.5 * written, 4 * rows * columns + written, tiles * splits)


def mix(rows: int, columns: int) -> Pass:
    """Three products of tf32: the gradient, read as stored and mirrored, times all rows."""
    (height, width, _), _ = rdm_backward.block_shape(torch.float32, True)
    programs = triton.cdiv(rows, height) * triton.cdiv(columns, width)
    read = programs * rows * 4 * (2 * height + width)
    return Pass(3 * 2 * rows**2 * columns / TF32_FLOPS, read, 4 * rows**2 + 8 * rows * columns, programs)


def project(rows: int, columns: int) -> Pass:
    """The gradient of unit rows becomes that of rows. Both are read twice, once from memory."""
    values = rows * columns
    return Pass(0, 20 * values, 12 * values, rows)


def eager(rows: int, columns: int) -> float:
    """Return seconds of ``torch.corrcoef``: a full product in float32, and passes over responses and matrix."""
    return 2 * rows**2 * columns / FLOAT32_FLOPS + (16 * rows * columns + 32 * rows**2) / H100.dram_bytes


def table() -> list[tuple[str, ...]]:
    """Case, pass, arithmetic, MiB from L2, MiB of memory, programs, prediction, what bounds it, eager."""
    found: list[tuple[str, ...]] = []
    for name, sizes in CASES.items():
        passes = {"rows": standardise(*sizes), "product": multiply(*sizes)}
        passes |= {"backward, product": mix(*sizes), "backward, projection": project(*sizes)}
        for which, work in passes.items():
            seconds, bound = work.seconds()
            arithmetic = f"{1e3 * work.seconds_of_arithmetic:.2g}" if work.seconds_of_arithmetic else ""
            figures = (arithmetic, f"{work.cache_bytes / 2**20:.0f}", f"{work.dram_bytes / 2**20:.0f}")
            chain = f"{1e3 * eager(*sizes):.2g}" if which == "product" else ""
            found.append((name, which, *figures, str(work.programs), f"{1e3 * seconds:.2g}", bound, chain))
    return found


def main() -> None:
    """Print the table as markdown."""
    columns = (
        "S x N", "pass", "tensor cores, ms", "L2 MiB", "memory MiB", "programs", "derived ms", "bound by", "corrcoef ms"
    )  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in table():
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
