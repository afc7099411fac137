"""``python -m v1fast.benchmarks.large_rdm``: a dissimilarity matrix larger than memory, written to a file.

By default 100,000 stimuli and 1,000 neurons: 20 GB, minutes. Its time is compared with two lower bounds: the products
at the rate of a matrix that fits into memory, and writing as many bytes.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from pathlib import Path

import torch

from v1fast import functional
from v1fast.rsa import rdm_to_file

WRITTEN = 1 << 30  # bytes that are written to measure the disk's rate
FITTING = 4000  # stimuli of the matrix that measures the rate of products


def main() -> None:
    """Measure, print, and remove the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the file is written")
    parser.add_argument("--stimuli", type=int, default=100_000)
    parser.add_argument("--neurons", type=int, default=1_000)
    given = parser.parse_args()
    x = torch.randn(given.stimuli, given.neurons, generator=torch.Generator().manual_seed(0))
    size = 2 * given.stimuli * (given.stimuli - 1)
    products, disk = _seconds_of_products(x), size / _bytes_per_second(given.folder)
    memory = _AnonymousMemory()
    start, cpu = time.perf_counter(), time.process_time()
    with memory:
        matrix = rdm_to_file(x, given.folder / "large_rdm.npy", overwrite=True)
    taken, worked = time.perf_counter() - start, time.process_time() - cpu
    assert matrix.nbytes == size
    os.unlink(given.folder / "large_rdm.npy")
    print(
        f"{given.stimuli} x {given.neurons}, {size / 1e9:.1f} GB: {taken:.1f} s, {worked:.1f} s of CPU time on "
        f"{torch.get_num_threads()} threads\n"
        f"the products alone, at the rate of {FITTING} stimuli: {products:.1f} s; the bytes alone: {disk:.1f} s\n"
        f"anonymous memory beside the responses of {x.nbytes / 2**20:.0f} MiB: {memory.most / 2**20:.0f} MiB"
    )


def _seconds_of_products(x: torch.Tensor) -> float:
    part = x[:FITTING]
    functional.rdm(part[:100])
    start = time.perf_counter()
    functional.rdm(part, condensed=True)
    return (time.perf_counter() - start) * (len(x) / len(part)) ** 2


def _bytes_per_second(folder: Path) -> float:
    path, block = folder / "large_rdm.probe", bytes(1 << 24)
    start = time.perf_counter()
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(WRITTEN // len(block)):
                file.write(block)
            os.fsync(file.fileno())
        return WRITTEN / (time.perf_counter() - start)
    finally:
        path.unlink(missing_ok=True)


class _AnonymousMemory:
    """The peak of memory above the start, polled every few milliseconds inside the context. Linux only."""

    def __init__(self) -> None:
        self.before, self.most, self._done = self._now(), 0, threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._watcher.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.most = max(self.most, self._now() - self.before)

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


if __name__ == "__main__":
    main()
