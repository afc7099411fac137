"""How long a trial takes until a model has it: v1fast's loaders beside neuralpredictors', on the same files.

    V1FAST_PEERS=.peers python -m v1fast.benchmarks.loaders docs/data.md

replaces the table between the markers of the page (a minute). Interleaved in one process, medians, one thread beside
the workers. That both give the same trials, tests/peers/test_data.py says.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from v1fast import _files
from v1fast.data import Preparation, Recording, loaders, read, write_sensorium

from .peers import published

START, END = "<!-- loaders -->", "<!-- end of loaders -->"
TRIALS, NEURONS, IMAGE = 256, 7776, (1, 144, 256)
ROUNDS = 7
PREPARATION = Preparation(scale=0.25, behavior_as_channels=True)
NAME = "static1-2-3-benchmark"


def recording() -> Recording:
    """A session of Sensorium in size, of fewer trials."""
    rng = np.random.default_rng(0)
    return Recording(
        rng.integers(0, 256, (TRIALS, *IMAGE)).astype(np.float32),
        rng.gamma(1, 2, (TRIALS, NEURONS)),
        behavior=rng.random((TRIALS, 3)),
        pupil_center=rng.random((TRIALS, 2)),
    )


def theirs(folder: Path) -> Any:
    """neuralpredictors' dataset with the transforms of Sensorium+."""
    data = "neuralpredictors.data"
    made = published(f"{data}.datasets", "FileTreeDataset")(
        str(folder), "images", "responses", "behavior", "pupil_center"
    )
    transforms = {
        name: published(f"{data}.transforms", name)
        for name in ("NeuroNormalizer", "AddBehaviorAsChannels", "ScaleInputs", "ToTensor")
    }
    made.transforms += [
        transforms["NeuroNormalizer"](made),
        transforms["AddBehaviorAsChannels"](),
        transforms["ScaleInputs"](scale=PREPARATION.scale),
        transforms["ToTensor"](),
    ]
    return made


def ours(path: Path, **options: Any) -> Iterable[Any]:
    return loaders(read(path), 128, tiers=["train"], preparation=PREPARATION, **options)["train"]["1-2-3"]


def every(dataset: Any) -> list[Any]:
    return [dataset[trial] for trial in range(TRIALS)]


def measure(folder: Path) -> dict[str, float]:
    """Median seconds of a trial, by what gives it."""
    whole = recording()
    plain, archive = folder / NAME, folder / f"{NAME}.zip"
    write_sensorium(whole, plain)
    write_sensorium(whole, archive)
    cached = theirs(plain)
    resident = ours(plain)
    ways: dict[str, Callable[[], Any]] = {
        "neuralpredictors, cached": lambda: every(cached),
        "neuralpredictors, from files": lambda: every(theirs(plain)),
        "v1fast, resident": lambda: list(resident),
        "v1fast, from files": lambda: list(ours(plain, memory=0, workers=0)),
        "v1fast, from files, two threads ahead": lambda: list(ours(plain, memory=0)),
        "v1fast, from a zip, two threads ahead": lambda: list(ours(archive, memory=0)),
    }

    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append((time.perf_counter() - start) / TRIALS)
    return {name: statistics.median(each) for name, each in times.items()}


def main(page: Path | None = None) -> None:
    """Print the table, and write it into the page."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        times = measure(Path(folder))
    base = times["neuralpredictors, cached"]
    lines = [f"| | time of a trial, relative to {base * 1e3:.1f} ms |", "|---|---|"]
    lines += [f"| {name} | {seconds / base:.2f} |" for name, seconds in times.items()]
    print("\n".join(lines))
    if page is not None:
        text = page.read_text()
        before, after = text[: text.index(START)], text[text.index(END) :]
        _files.replace(page, (before + "\n".join([START, "", *lines, "", ""]) + after).encode())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
