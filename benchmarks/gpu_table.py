"""Registers, shared memory and spills of the GPU kernels, compiled ahead of time: docs/gpu-kernels.md.

``python -m v1fast.benchmarks.gpu_table docs/gpu-kernels.md`` writes the table. No GPU is needed: the compilers of all
targets come with Triton.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from . import no_kernels

try:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from v1fast.kernels._launch import has_warpgroups  # type: ignore[import-not-found]
    from v1fast.kernels._specialisations import Specialisation, specialisations  # type: ignore[import-not-found]
except ImportError as missing:
    no_kernels.end(__name__, missing)
    raise


@dataclass(frozen=True)
class Architecture:
    """The limits of one block on an architecture."""

    backend: str
    name: str | int  # as in Triton's targets
    warp: int
    shared_bytes: int

    @property
    def target(self) -> GPUTarget:
        return GPUTarget(self.backend, self.name, self.warp)


ARCHITECTURES = {
    "sm_80": Architecture("cuda", 80, 32, 166912),
    "sm_90": Architecture("cuda", 90, 32, 232448),
    "sm_100": Architecture("cuda", 100, 32, 232448),
    "sm_120": Architecture("cuda", 120, 32, 101376),
    "gfx942": Architecture("hip", "gfx942", 64, 65536),
}


@dataclass(frozen=True)
class Usage:
    """The resources that one form of a kernel uses on one architecture."""

    registers: int  # per thread
    shared: int  # bytes per block
    spilled: int  # bytes of local memory per thread

    def __str__(self) -> str:
        return f"{self.registers} / {self.shared} / {self.spilled}"


Table = dict[str, dict[str, Usage]]  # form -> architecture -> usage


def forms(architecture: Architecture) -> dict[str, Specialisation]:
    """Return the forms that a launcher requests on this architecture. The number of warps follows torch's build."""
    with mock.patch.object(torch.version, "hip", "ahead of time" if architecture.backend == "hip" else None):
        return {form.name: form for form in specialisations(has_warpgroups(architecture.target))}


def _nvidia(cubin: bytes, shared: int) -> Usage:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", text.split("Function", 1)[1])}
    return Usage(found["REG"], shared, found["STACK"] + found["LOCAL"])


def _amd(assembly: str, shared: int) -> Usage:
    found = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)", assembly)}
    # A scalar register may be spilled to a lane of a vector register. This needs no memory, but counts as a spill.
    registers = found["vgpr_spill_count"] + found["sgpr_spill_count"]
    return Usage(found["vgpr_count"], shared, max(found["private_segment_fixed_size"], 4 * registers))


def usage(form: str, architecture: str) -> Usage:
    """Compile one form for one architecture."""
    where = ARCHITECTURES[architecture]
    s = forms(where)[form]
    source = ASTSource(s.kernel, s.signature, s.constants, s.attributes)
    compiled: Any = triton.compile(source, target=where.target, options=s.options)
    if where.backend == "hip":
        return _amd(compiled.asm["amdgcn"], compiled.metadata.shared)
    return _nvidia(compiled.asm["cubin"], compiled.metadata.shared)


def _use_cache(folder: str) -> None:
    triton.knobs.cache.dir = folder


def compile_table() -> Table:
    """Compile all forms for all architectures, on all cores: 0.3 to 3 s each."""
    calls = list(product([form.name for form in specialisations()], ARCHITECTURES))
    cores = len(os.sched_getaffinity(0))
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(cores, multiprocessing.get_context("spawn"), _use_cache, (cache,)) as pool,
    ):
        found = list(pool.map(usage, *zip(*calls, strict=True)))
    table: Table = {name: {} for name, _ in calls}
    for (name, architecture), taken in zip(calls, found, strict=True):
        table[name][architecture] = taken
    return table


def fingerprint() -> str:
    """Return what changes with the kernels' code and their forms, and with no comment."""
    found = hashlib.sha256()
    for name, value in sorted(_kernel_code().items()):
        found.update(f"{name}: {value}\n".encode())
    for architecture in ARCHITECTURES.values():
        for form in forms(architecture).values():
            found.update(f"{form._replace(kernel=form.kernel.fn.__name__)}\n".encode())
    return found.hexdigest()[:16]


def _kernel_code() -> dict[str, str]:
    """Return the code of each function that Triton compiles, and the constants in the same modules, by name."""
    waiting = {form.kernel.fn.__module__ for form in specialisations()}
    seen: set[str] = set()
    found = {}
    while waiting:
        module = waiting.pop()
        seen.add(module)
        for name, value in vars(sys.modules[module]).items():
            if isinstance(value, triton.runtime.JITFunction):
                found[f"{value.fn.__module__}.{value.fn.__name__}"] = _code(value.fn)
                waiting |= {value.fn.__module__} - seen
            elif isinstance(value, triton.language.constexpr):
                found[f"{module}.{name}"] = repr(value.value)
    return found


def _code(function: Any) -> str:
    """Return the source of a function without comments and docstring."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    if ast.get_docstring(tree.body[0]) is not None:  # type: ignore[arg-type]
        del body[0]
    return ast.unparse(tree)


def faults(table: Table) -> list[str]:
    """List what does not fit: spilled registers, more shared memory than a block has."""
    found = []
    for name, columns in table.items():
        for architecture, taken in columns.items():
            limit = ARCHITECTURES[architecture].shared_bytes
            if taken.spilled:
                found.append(f"{name} on {architecture}: {taken.spilled} bytes spilled, want 0")
            if taken.shared > limit:
                found.append(f"{name} on {architecture}: {taken.shared} bytes of shared memory, want <= {limit}")
    return found


# The file --------------------------------------------------------------------------------------------------------

TITLE = "# What the GPU kernels take"
NOTE = """\
Written by `make gpu-table`; do not edit. Compiled ahead of time by Triton {version}, without a GPU, for every form of a
kernel in `kernels/_specialisations.py`. A cell is **registers of a thread / shared memory of a block in bytes / spilled
bytes of a thread**. Registers are 32 bits wide; on gfx942 they are the vector registers. Nothing may be spilled, and
shared memory has to fit.

`tests/test_gpu_table.py` checks that the kernels are those of this table, by their fingerprint, {fingerprint}. It
compiles a few forms again, in `make test-slow` all of them. With the same version of Triton the numbers are these.
"""


def write(table: Table) -> str:
    """Return the text of the file."""
    columns = list(next(iter(table.values())))
    limits = ", ".join(f"{name} {ARCHITECTURES[name].shared_bytes}" for name in columns)
    note = NOTE.format(version=triton.__version__, fingerprint=fingerprint())
    lines = [TITLE, "", note, f"Shared memory that a block may have: {limits}.", ""]
    lines += [f"| form | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(str(row[c]) for c in columns)} |" for name, row in table.items()]
    return "\n".join(lines) + "\n"


def read(text: str) -> tuple[str, str, Table]:
    """Return the version of Triton, the fingerprint of the kernels and the table of a file."""
    version, kernels = re.search(r"by Triton (\S+),", text), re.search(r"fingerprint, (\w+)\.", text)
    if version is None or kernels is None:
        raise ValueError("the table names no version of Triton, or no fingerprint")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    (_, *columns), _, *body = rows
    cells = {name: [Usage(*map(int, cell.split("/"))) for cell in row] for name, *row in body}
    return version[1], kernels[1], {name: dict(zip(columns, row, strict=True)) for name, row in cells.items()}


def main(path: str) -> None:
    """Write the table to a file. Fail if a kernel does not fit."""
    table = compile_table()
    Path(path).write_text(write(table))
    if wrong := faults(table):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main(sys.argv[1])
