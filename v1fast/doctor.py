"""What a bug report needs: versions, devices, which kernels are loaded, and what this machine can do at most.

Needs nothing beyond the base install: ``python -m v1fast.doctor`` prints it as plain text. With ``--gpu``, it also
compares every GPU kernel with the fallback.
"""

import importlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any, NamedTuple

import torch

from v1fast._build import why_absent
from v1fast._version import __version__
from v1fast.ops import _gpu_examination, loaded, paths

_PACKAGES = ("torch", "triton", "numpy", "scipy", "typer", "rich", "matplotlib", "scikit-image")
_ENVIRONMENT = (
    "V1FAST_KERNELS",
    "V1FAST_GPU_CHECK",
    "V1FAST_AUTOTUNE",
    "V1FAST_MAX_ISA",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)


@dataclass(frozen=True)
class Report:
    """The state of an installation and of its machine. Every value is ready for JSON.

    Attributes:
        versions: version of v1fast, of Python and of each package, None where not installed.
        system: ``os``, ``architecture``, ``torch_threads``, ``torch_cuda`` (the CUDA release that torch was built for,
            None for a CPU build) and ``environment`` (variables that change what runs, where set).
        cuda_devices: ``name``, ``capability`` (such as "9.0") and ``memory_bytes`` of each device that torch sees.
        kernels: kernel set to "loaded", or the reason why it is not.
        paths: "CPU", "CUDA" and "others" to what runs the ops on such tensors, and why nothing faster does.
        probe: "loaded", or the reason why this machine could not be measured.
        machine: what ``v1fast._probe.facts`` returns, None without the probe.
        ceilings: what ``v1fast._probe.ceilings`` returns for one thread, then for all; empty without the probe.
        gpu_check: "done", or the reason why no GPU kernel was checked.
        gpu_kernels: for each form of each GPU kernel ``device``, ``op``, ``form``, ``failure`` (None: it agrees with
            the fallback), ``error`` (the largest, of the result's largest value), ``allowed`` and ``seconds``.
    """

    versions: dict[str, str | None]
    system: dict[str, Any]
    cuda_devices: list[dict[str, Any]]
    kernels: dict[str, str]
    paths: dict[str, str]
    probe: str
    machine: dict[str, Any] | None
    ceilings: list[dict[str, Any]]
    gpu_check: str = "not asked for"
    gpu_kernels: list[dict[str, Any]] = field(default_factory=list)

    @property
    def gpu_failures(self) -> int:
        """Number of forms of GPU kernels that do not agree with the fallback, or could not be checked."""
        return sum(form["failure"] is not None for form in self.gpu_kernels)

    def to_json(self) -> str:
        """The report as indented JSON, one key per attribute."""
        return json.dumps(asdict(self), indent=2)


class Table(NamedTuple):
    """One part of a report for people; every row has as many cells as ``columns``."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def examine(quick: bool = False, gpu: bool = False, say: Callable[[str], None] = lambda what: None) -> Report:
    """Looks at the installation and measures the machine.

    Args:
        quick: measure with fewer and shorter repeats: about half a second instead of two.
        gpu: compare every form of every GPU kernel with the fallback, on tiny operands: minutes. What came of it is
            kept: a kernel that fails is replaced by the fallback from then on, and one that agrees is used again.
        say: is told which kernel is checked next.

    Returns:
        The report. What cannot be found out is None or the sentence that says why: a broken part must not keep the
        others from being reported.
    """
    probe, machine, ceilings = _measure(quick)
    versions = {package: _installed(package) for package in _PACKAGES}
    versions["torch"] = (
        torch.__version__
    )  # with the build, as in 2.9.1+cu128, where the name of its package may lack it
    gpu_check, gpu_kernels = _check_gpu(say) if gpu else ("not asked for", [])
    return Report(
        versions={"v1fast": __version__, "python": platform.python_version(), **versions},
        system={
            "os": platform.platform(),
            "architecture": platform.machine(),
            "torch_threads": torch.get_num_threads(),
            "torch_cuda": torch.version.cuda,
            "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        },
        cuda_devices=[_device(index) for index in range(torch.cuda.device_count())],
        kernels=dict(loaded),
        paths=dict(paths),
        probe=probe,
        machine=machine,
        ceilings=ceilings,
        gpu_check=gpu_check,
        gpu_kernels=gpu_kernels,
    )


def tables(report: Report) -> Iterator[Table]:
    """The report as tables of text, in reading order; the command line and ``as_text`` print the same ones."""
    versions = [(name, version or "not installed") for name, version in report.versions.items()]
    yield Table("Versions", ("package", "version"), versions)
    yield Table("System", ("", ""), _system_rows(report))
    yield Table("Kernels", ("set", "state"), list(report.kernels.items()))
    yield Table("What runs", ("tensors", "path"), list(report.paths.items()))
    if report.gpu_check != "not asked for":
        yield from _gpu_tables(report)
    if not report.ceilings:
        yield Table("Ceilings", ("", ""), [("probe", report.probe)])
        return
    threads = [f"{count} thread{'s' if count > 1 else ''}" for count in (part["threads"] for part in report.ceilings)]
    yield Table("Measured ceilings, best (median)", ("", *threads), list(_ceiling_rows(report.ceilings)))


def as_text(report: Report) -> str:
    """The report as plain text, in aligned columns."""
    parts = []
    for table in tables(report):
        rows = [table.columns, *table.rows] if any(table.columns) else table.rows
        widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        parts.append("\n".join([table.title, *(f"  {line}" for line in lines)]))
    return "\n\n".join(parts)


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device(index: int) -> dict[str, Any]:
    try:
        found = torch.cuda.get_device_properties(index)
    except RuntimeError as error:  # a driver older than torch wants, a device in a bad state
        return {"name": f"unusable: {error}", "capability": None, "memory_bytes": None}
    return {"name": found.name, "capability": f"{found.major}.{found.minor}", "memory_bytes": found.total_memory}


def _check_gpu(say: Callable[[str], None]) -> tuple[str, list[dict[str, Any]]]:
    if not loaded["triton"].startswith("loaded"):
        return f"the GPU kernels are {loaded['triton']}", []
    if not torch.cuda.is_available():
        return "torch sees no CUDA device", []
    try:
        return "done", list(_gpu_examination.examine(say))
    except RuntimeError as error:
        return str(error), []


def _gpu_tables(report: Report) -> Iterator[Table]:
    if not report.gpu_kernels:
        yield Table("GPU kernels", ("", ""), [("none was checked", report.gpu_check)])
    for device in dict.fromkeys(form["device"] for form in report.gpu_kernels):
        forms = [form for form in report.gpu_kernels if form["device"] == device]
        failed = sum(form["failure"] is not None for form in forms)
        title = f"GPU kernels on {device}: {failed} of {len(forms)} fail"
        columns = ("op", "form", "result", "error", "allowed", "seconds")
        yield Table(title, columns, [_gpu_row(form) for form in forms])


def _gpu_row(form: dict[str, Any]) -> tuple[str, ...]:
    numbers = ("-" if form[name] is None else f"{form[name]:.2g}" for name in ("error", "allowed", "seconds"))
    return (form["op"], form["form"], "agrees" if form["failure"] is None else form["failure"], *numbers)


def _measure(quick: bool) -> tuple[str, dict[str, Any] | None, list[dict[str, Any]]]:
    try:
        probe = importlib.import_module("v1fast._probe")
    except ModuleNotFoundError:
        return why_absent("v1fast._probe", torch.__version__), None, []
    except ImportError as error:
        return f"does not load: {error}", None, []
    facts = probe.facts()
    try:
        ceilings = [probe.ceilings(threads=count, quick=quick) for count in sorted({1, facts["logical_cores"]})]
    except (MemoryError, RuntimeError) as error:  # a limit on this process's memory or threads
        return f"could not measure: {error!r}", facts, []
    return "loaded", facts, ceilings


def _system_rows(report: Report) -> list[tuple[str, ...]]:
    system, machine = report.system, report.machine
    rows = [("os", system["os"]), ("architecture", system["architecture"])]
    if machine:
        rows += [("processor", machine["cpu"]), ("instruction set", machine["isa"])]
        rows += [("logical cores", str(machine["logical_cores"]))]
        rows += [(f"{level} cache", _cache(cache)) for level, cache in machine["caches"].items()]
    rows += [("torch threads", str(system["torch_threads"])), ("torch built for CUDA", system["torch_cuda"] or "no")]
    for index, device in enumerate(report.cuda_devices):
        rows.append((f"CUDA device {index}", _device_text(device)))
    if not report.cuda_devices:
        rows.append(("CUDA devices", "none seen"))
    return rows + list(system["environment"].items())


def _device_text(device: dict[str, Any]) -> str:
    if device["memory_bytes"] is None:
        return str(device["name"])
    return f"{device['name']}, capability {device['capability']}, {_size(device['memory_bytes'])}"


def _cache(cache: dict[str, int] | None) -> str:
    if cache is None:
        return "unknown or absent"
    if cache["shared_by"] == 1:
        return f"{_size(cache['bytes'])} per logical core"
    return f"{_size(cache['bytes'])} shared by {cache['shared_by']} logical cores"


def _ceiling_rows(ceilings: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    yield ("float32 multiply-add, GFLOP/s", *(_rate(ceiling["fma_gflops"]) for ceiling in ceilings))
    for level in ("L1", "L2", "L3", "memory"):
        found = [ceiling[level] for ceiling in ceilings]
        for kind in ("read", "update"):
            yield (f"{level} {kind}, GB/s", *(_rate(entry[f"{kind}_gbs"]) if entry else "-" for entry in found))


def _rate(rate: dict[str, float]) -> str:
    return f"{rate['best']:.1f} ({rate['median']:.1f})"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


if __name__ == "__main__":
    print(as_text(examine(gpu="--gpu" in sys.argv[1:])))
