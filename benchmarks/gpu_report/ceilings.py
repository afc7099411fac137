# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""What the device can do at most, by small kernels that do nothing else: what docs/gpu.md assumes, measured."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from ..gpu_costs import FLOAT32_FLOPS, H100, HALF_FLOPS, SORT_START, SORTED, TF32_FLOPS, Device
from .record import Part, read
from .timing import replayed

NAME = "ceilings"
CHANNELS = 64  # of a row: 256 bytes, as a readout reads them


@triton.jit
def read_rows_kernel(rows, order, out, count, C: tl.constexpr, BLOCK: tl.constexpr):
    """Sum rows of C values in the given order, BLOCK rows in a program."""
    c = tl.arange(0, C)[None, :]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(order + at, mask=at < count, other=0).to(tl.int64)
    total = tl.sum(tl.load(rows + row[:, None] * C + c), 1)
    tl.store(out + at, total, mask=at < count)


@triton.jit
def add_rows_kernel(rows, order, count, C: tl.constexpr, BLOCK: tl.constexpr):
    """Add 1 to rows of C values in the given order, by relaxed atomics."""
    c = tl.arange(0, C)[None, :]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(order + at, mask=at < count, other=0).to(tl.int64)
    ones = tl.full([BLOCK, C], 1.0, tl.float32)
    tl.atomic_add(rows + row[:, None] * C + c, ones, mask=(at < count)[:, None], sem="relaxed")


def _rows(count: int, samples: int) -> tuple[torch.Tensor, torch.Tensor, tuple[int]]:
    rows = torch.zeros(count, CHANNELS, device="cuda")
    order = torch.randint(count, (samples,), device="cuda", dtype=torch.int32)
    return rows, order, (triton.cdiv(samples, 16),)


def _copy(count: int) -> tuple[Callable[[], Any], float]:
    source, target = torch.ones(count, device="cuda"), torch.empty(count, device="cuda")
    return lambda: target.copy_(source), 2.0 * source.nbytes


def _read_rows(count: int, samples: int) -> tuple[Callable[[], Any], float]:
    rows, order, grid = _rows(count, samples)
    out = torch.empty(samples, device="cuda")
    call = lambda: read_rows_kernel[grid](rows, order, out, samples, C=CHANNELS, BLOCK=16, num_warps=4)  # noqa: E731
    return call, 4.0 * samples * CHANNELS


def _atomics(count: int, samples: int) -> tuple[Callable[[], Any], float]:
    rows, order, grid = _rows(count, samples)
    call = lambda: add_rows_kernel[grid](rows, order, samples, C=CHANNELS, BLOCK=16, num_warps=4)  # noqa: E731
    return call, float(samples * CHANNELS)


def _product(size: int, dtype: torch.dtype, tf32: bool = False) -> tuple[Callable[[], Any], float]:
    a, b = (torch.ones(size, size, device="cuda", dtype=dtype) for _ in range(2))

    def call() -> Any:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            return a @ b
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return call, 2.0 * size**3


def _sort(count: int) -> tuple[Callable[[], Any], float]:
    keys = torch.randint(2**20, (count,), device="cuda", dtype=torch.int32)
    return lambda: torch.sort(keys, stable=True), float(count)


def _launches(count: int) -> tuple[Callable[[], Any], float]:
    one = torch.zeros(1, device="cuda")

    def call() -> None:
        for _ in range(count):
            one.add_(1)

    return call, float(count)


def _all(quick: bool) -> Iterator[tuple[str, str, float, Callable[[], tuple[Callable[[], Any], float]]]]:
    """Name, unit of the rate, the rate that docs/gpu.md assumes (0: none), and what prepares a call and its amount."""
    big, cached, pixels, samples, side = (2**29, 2**22, 200_704, 2**20, 8192)
    if quick:
        big, cached, pixels, samples, side = (2**10, 2**8, 50, 64, 32)
    yield "copy", "B/s", H100.dram_bytes, lambda: _copy(big)
    yield "copy within L2", "B/s", 0, lambda: _copy(cached)
    # a map of 128 images of 28 x 56 pixels, as in the case sensorium, and one that L2 holds with certainty
    yield "rows of 256 B, of a map", "B/s", H100.cache_bytes, lambda: _read_rows(pixels, samples)
    yield "rows of 256 B, within L2", "B/s", H100.cache_bytes, lambda: _read_rows(pixels // 8, samples)
    yield "atomics on a map", "/s", H100.atomics[0], lambda: _atomics(pixels, samples)
    yield "atomics within L2", "/s", H100.atomics[1], lambda: _atomics(pixels // 8, samples)
    yield "product in float16", "FLOP/s", HALF_FLOPS, lambda: _product(side, torch.float16)
    yield "product in bfloat16", "FLOP/s", HALF_FLOPS, lambda: _product(side, torch.bfloat16)
    yield "product in tf32", "FLOP/s", TF32_FLOPS, lambda: _product(side, torch.float32, tf32=True)
    yield "product in float32", "FLOP/s", FLOAT32_FLOPS, lambda: _product(side // 2, torch.float32)
    yield "product in float64", "FLOP/s", 0, lambda: _product(side // 4, torch.float64)
    yield "sort of 2^20 keys", "/s", samples / (SORT_START + samples / SORTED), lambda: _sort(samples)
    yield "launches in a graph", "/s", 1 / H100.launch, lambda: _launches(4 if quick else 50)


def device() -> dict[str, str]:
    """Return what the device is, and in what state: clocks and temperature decide how fast it is."""
    found = torch.cuda.get_device_properties(0)
    about = {
        "device": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": str(found.multi_processor_count),
        "memory": f"{found.total_memory / 2**30:.0f} GiB",
        "L2": f"{found.L2_cache_size / 2**20:.0f} MiB",
    }
    if shutil.which("nvidia-smi"):
        query = ["driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw"]
        command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(query)}", "--format=csv,noheader"]
        with suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
            about |= dict(zip(query, said.strip().split(", "), strict=False))
    return about


def main(part: Part) -> None:
    """Measure the rates."""
    part.about = device()
    for name, unit, assumed, prepare in _all(part.quick):
        if not part.begin(name):
            continue
        with part.guarded(name):
            call, amount = prepare()
            microseconds = replayed([call], 0.0 if part.quick else 0.3)
            part.add(key=name, name=name, unit=unit, rate=1e6 * amount / microseconds, assumed=assumed or None)
            del call
        torch.cuda.empty_cache()


class Rates:
    """The measured rates, and those that docs/gpu.md assumes where one was not measured."""

    def __init__(self, out: Path) -> None:
        self.found = {row["name"]: row["rate"] for row in read(out, NAME)["rows"]}

    def of(self, name: str, otherwise: float) -> float:
        """Return a measured rate, else the other one."""
        return self.found.get(name, otherwise)

    @property
    def copy(self) -> float:
        """Bytes a second."""
        return self.of("copy", H100.dram_bytes)

    @property
    def device(self) -> Device:
        """What the cost sheet needs, with the measured rates. What schedulers can issue stays as assumed."""
        slow, fast = self.of("atomics on a map", H100.atomics[0]), self.of("atomics within L2", H100.atomics[1])
        return replace(
            H100,
            name="measured",
            dram_bytes=self.copy,
            cache_bytes=self.of("rows of 256 B, of a map", H100.cache_bytes),
            atomics=(min(slow, fast), max(slow, fast)),
            launch=1 / self.of("launches in a graph", 1 / H100.launch),
        )
