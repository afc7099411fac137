"""Counters of the hardware for one call of each kernel, read by ncu. Often that is not permitted."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys

import torch

from v1fast import functional

from . import readouts, testing
from .record import Part

METRICS = {
    "us": "gpu__time_duration.sum",
    "multiprocessors, %": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "L2, %": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "memory, %": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "warps, %": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
}
KERNELS = "regex:(forward|backward|pixels|cells|sum|standardise|tiles|slabs|mix|angles).*kernel"


def main(part: Part) -> None:
    """Run ``call_each`` under ncu."""
    ncu = shutil.which("ncu")
    if ncu is None:
        part.leave_out("counters", "ncu is not installed")
        return
    log = part.out / "parts" / "ncu.csv"
    own = [sys.executable, "-m", "v1fast.benchmarks.gpu_report", str(part.out), "--part", "counted", "--seconds", "60"]
    options = ["--csv", "--page", "raw", "--clock-control", "none", "--metrics", ",".join(METRICS.values())]
    command = [ncu, *options, "-k", KERNELS, *own, *(["--quick"] if part.quick else [])]
    try:
        with log.open("w") as file:
            subprocess.run(
                command, env=testing._environment(), stdout=file, stderr=subprocess.STDOUT, timeout=max(1, part.left)
            )
    except subprocess.TimeoutExpired:
        part.leave_out("what ncu had not written", "no time left")
    text = log.read_text(errors="replace")
    if "ERR_NVGPUCTRPERM" in text:
        part.leave_out("counters", "the driver gives them to administrators alone (ERR_NVGPUCTRPERM)")
        return
    for row in parse(text):
        part.add(**row)
    if not part.rows:
        part.leave_out("counters", f"ncu wrote none: {text.strip().splitlines()[-1][:200] if text.strip() else ''}")


def parse(text: str) -> list[dict[str, str | float]]:
    """Return kernel and metrics of each launch from ncu's raw page: names, units, then values."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    table = list(csv.DictReader(lines[start:]))
    found: list[dict[str, str | float]] = []
    for row in table[1:]:
        values = {name: row.get(metric) for name, metric in METRICS.items()}
        if row.get("Kernel Name") and all(values.values()):
            found.append(
                {"kernel": row["Kernel Name"], **{n: float(str(v).replace(",", "")) for n, v in values.items()}}
            )
    units = table[0] if table else {}
    if units.get(METRICS["us"]) in ("ns", "nsecond"):
        for each in found:
            each["us"] = float(each["us"]) / 1e3
    return found


def call_each(part: Part) -> None:
    """Call each kernel once: what ncu looks at."""
    name, sizes = next(iter(readouts.sizes_of(part.quick).items()))
    images, channels, height, width, neurons = sizes
    features = torch.randn(images, channels, height, width, device="cuda").to(memory_format=torch.channels_last)
    mu, sigma = 1.8 * torch.rand(neurons, 2, device="cuda") - 0.9, 0.1 * torch.randn(neurons, 2, 2, device="cuda")
    leaves = [t.requires_grad_() for t in (features, mu, sigma, torch.randn(neurons, channels, device="cuda"))]
    seed = torch.tensor([7], device="cuda")
    for way in readouts.WAYS[1:3]:
        with way.chosen():
            functional.gaussian_readout(*leaves, seed=seed).sum().backward()
    responses = torch.randn(*((20, 30) if part.quick else (1000, 20000)), device="cuda").requires_grad_()
    functional.rdm(responses).sum().backward()
    torch.cuda.synchronize()
    part.add(case=name, process=os.getpid())
