"""What came of the checks of the GPU's kernels, kept in the user's cache folder.

A file for each form of a kernel on a model of a device, with given versions: it is written at once, whatever other
processes write meanwhile, and none has to wait for another. A file that cannot be read is as good as none. Where none
can be written, each process checks for itself.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

import torch

from v1fast import _files
from v1fast._version import __version__

Machine = dict[str, str]
"""A model of a device, and the versions that decide about the code that runs there."""


class Record(NamedTuple):
    """What came of a check."""

    failure: str | None  # None: the kernel is right


def folder() -> Path | None:
    """Where the records are, None where there is no such place: ``$XDG_CACHE_HOME/v1fast``, or ``~/.cache/v1fast``."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError:  # nobody's home
        return None
    return cache / "v1fast" / "gpu-check"


def _driver() -> str:
    """The version of the driver, as far as it can be found out."""
    asked = getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)
    found = [str(asked())]
    for path in ("/proc/driver/nvidia/version", "/sys/module/amdgpu/version"):
        with contextlib.suppress(OSError, IndexError):
            found.append(Path(path).read_text(errors="replace").splitlines()[0])
    return "; ".join(found)


@functools.cache
def _sources() -> str:
    """A hash of the sources of the kernels."""
    package = importlib.import_module("v1fast.kernels")
    found = hashlib.sha256()
    for path in sorted(Path(str(package.__file__)).parent.glob("*.py")):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


@functools.cache
def machine(index: int) -> Machine:
    """The CUDA device of this index, as far as it decides about its kernels, and the versions of what makes them."""
    found = torch.cuda.get_device_properties(index)
    return {
        "device": found.name,
        "capability": found.gcnArchName if torch.version.hip else f"{found.major}.{found.minor}",
        "driver": _driver(),
        "system": platform.system(),
        "torch": torch.__version__,
        "built for": f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}",
        "triton": importlib.import_module("triton").__version__,
        "v1fast": __version__,
        "kernels": _sources(),
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def _path(where: Machine, op: str, form: str) -> Path | None:
    base = folder()
    return None if base is None else base / _hash(where) / f"{op}-{_hash(form)}.json"


def read(where: Machine, op: str, form: str) -> Record | None:
    """The record of a form of an op's kernel, None where there is none that can be read."""
    path = _path(where, op, form)
    if path is None:
        return None
    try:
        with _files.reading(path):
            found = json.loads(path.read_text())
            failure = found["failure"]
            if (found["machine"], found["op"], found["form"]) != (where, op, form):
                return None
            if not (failure is None or isinstance(failure, str)):
                return None
    except (OSError, ValueError):
        return None
    return Record(failure)


def write(where: Machine, op: str, form: str, failure: str | None, renew: bool = False) -> None:
    """Keep what came of a check, where that is possible.

    Args:
        where: the device and the versions.
        op: name of the op.
        form: which form of its kernel.
        failure: what was wrong, None if nothing.
        renew: replace a failure too; otherwise one that another process has met stands.
    """
    path = _path(where, op, form)
    if path is None or (failure is None and not renew and read(where, op, form) is not None):
        return
    content = {"machine": where, "op": op, "form": form, "failure": failure}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _files.replace(path, (json.dumps(content, indent=2) + "\n").encode())
