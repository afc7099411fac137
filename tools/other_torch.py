"""Lets the tests run with another torch than the pinned one: ``make test-torch VERSION=2.8.0`` calls these.

``python tools/other_torch.py requirements`` prints what the installed torch requires, without the CUDA libraries, which
weigh several GB. ``constraints`` prints requirements/constraints.txt, less what this torch wants otherwise, and with
the versions of requirements/oldest.txt if this is the torch named there.

``stub`` lets a CUDA build of torch run on the CPU without these libraries: it puts one of its own in the place of each
that is missing, beside torch's. Every function returns an error code, so torch sees no device. It needs gcc and
binutils. It also takes these libraries out of what torch is said to require, or pip would bring them with the first
package that requires torch. A CPU build of torch is left as it is.

Nothing here imports torch.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from pip._vendor.packaging.requirements import Requirement  # pip is in every environment, packaging is not

REQUIREMENTS = Path(__file__).parents[1] / "requirements"
CUDA_PACKAGES = re.compile(r"^(nvidia|cuda)[-_]")
CUDA_REQUIREMENTS = re.compile(r"^Requires-Dist: (nvidia|cuda)[-_].*\n", re.MULTILINE)
CUDA_SYMBOLS = re.compile(r"^(cu|nccl|nvrtc|nvJitLink|nvml|nvtx|nvshmem|__cuda|cupti|cufile|cudss)", re.IGNORECASE)
CUDA_LIBRARIES = re.compile(r"^lib(cu|nv|nccl)")
STUBS = "libv1fast_no_cuda.so"

FAILURE, NO_DEVICE, SUCCESS = 1, 100, 0
TEXT = 'const char* {0}(void) {{ return "no CUDA library here"; }}'
CODE = "long {0}(void) {{ return {1}; }}"
CONTEXT = "long {0}(int device, unsigned* flags, int* active) {{ *flags = 0; *active = 0; return 0; }}"
# libtorch_cuda asks for the address of a function of the driver while it is loaded.
ENTRY_POINT = "long {0}(const char* name, void** found) {{ *found = (void*)cuDevicePrimaryCtxGetState; return 0; }}"


def _required() -> list[Requirement]:
    wanted = [Requirement(line) for line in importlib.metadata.requires("torch") or []]
    here = (r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""}))
    return [r for r in here if not CUDA_PACKAGES.match(r.name)]


def requirements() -> list[str]:
    """What torch requires on this machine, without the CUDA libraries."""
    return [f"{r.name}{r.specifier}" for r in _required()]


def _pins(name: str) -> dict[str, str]:
    lines = (line for line in (REQUIREMENTS / name).read_text().splitlines() if "==" in line and line[0] != "#")
    return dict(line.split("==") for line in lines)


def constraints() -> list[str]:
    """Exact versions of everything else."""
    pinned, oldest = _pins("constraints.txt"), _pins("oldest.txt")
    if oldest["torch"] == importlib.metadata.version("torch").partition("+")[0]:
        pinned |= oldest
    otherwise = {r.name for r in _required() if r.name in pinned and pinned[r.name] not in r.specifier}
    return [f"{name}=={version}" for name, version in pinned.items() if name not in otherwise | {"torch"}]


class Symbols(NamedTuple):
    """What a set of libraries needs and has."""

    libraries: set[str]
    undefined: set[str]
    defined: set[str]


def _symbols(folder: Path) -> Symbols:
    found = Symbols(set(), set(), set())
    for library in folder.glob("*.so*"):
        dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
        found.libraries.update(re.findall(r"NEEDED.*\[(.*?)\]", dynamic))
        for line in subprocess.run(
            ["nm", "-D", library], capture_output=True, text=True, check=True
        ).stdout.splitlines():
            *_, kind, name = line.split()
            (found.undefined if kind in "Uw" else found.defined).add(name.split("@")[0])
    return found


def _function(name: str) -> str:
    if "GetErrorString" in name or "GetErrorName" in name:
        return TEXT.format(name)
    if name == "cuDevicePrimaryCtxGetState":
        return CONTEXT.format(name)
    if name.startswith("cudaGetDriverEntryPoint"):
        return ENTRY_POINT.format(name)
    return CODE.format(name, NO_DEVICE if name == "cudaGetDeviceCount" else FAILURE)


def _compile(source: Path, output: Path, *options: str) -> None:
    subprocess.run(["gcc", "-w", "-shared", "-fPIC", "-fno-builtin", "-o", output, source, *options], check=True)


def stub(folder: Path) -> list[str]:
    """Put stubs in the place of what the libraries in ``folder`` lack. Return their names."""
    symbols = _symbols(folder)
    here = {path.name for path in folder.iterdir()}
    missing = sorted(name for name in symbols.libraries - here if CUDA_LIBRARIES.match(name))
    if not missing:
        return []
    names = {"cuDevicePrimaryCtxGetState", "cuGetErrorString", "cuDriverGetVersion"}
    names |= {name for name in symbols.undefined - symbols.defined if CUDA_SYMBOLS.match(name)}
    first = sorted(names, key=lambda name: (name != "cuDevicePrimaryCtxGetState", name))
    source, empty = folder / "v1fast_no_cuda.c", folder / "v1fast_empty.c"
    source.write_text("\n".join(map(_function, first)))
    empty.write_text("")
    _compile(source, folder / STUBS)
    for name in missing:  # each has all symbols, through the one library that it depends on
        _compile(
            empty, folder / name, f"-Wl,-soname,{name}", "-Wl,--no-as-needed", f"-L{folder}", f"-l:{STUBS}",
            "-Wl,-rpath,$ORIGIN",
        )  # fmt: skip
    return missing


def require_no_cuda(metadata: Path) -> None:
    """Take the CUDA libraries out of what torch's METADATA requires."""
    metadata.write_text(CUDA_REQUIREMENTS.sub("", metadata.read_text()))


def _folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None, "torch is not installed"  # noqa: PT018
    return Path(spec.origin).parent


def _stub() -> list[str]:
    folder = _folder()
    (metadata,) = folder.parent.glob("torch-*.dist-info/METADATA")
    require_no_cuda(metadata)
    return stub(folder / "lib")


if __name__ == "__main__":
    commands = {"requirements": requirements, "constraints": constraints, "stub": _stub}
    print("\n".join(commands[sys.argv[1]]()))
