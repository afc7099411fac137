"""The machine, compiled once per version of its sources, and its interface."""

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .errors import EmulatorError

SLOTS = 19  # per step
_SOURCES = Path(__file__).parent / "machine"
# Arithmetic must follow the rounding mode, and the compiler must not fuse it.
_FLAGS = ("-std=c++20", "-O1", "-fPIC", "-frounding-math", "-ffp-contract=off", "-w")


class Step(ctypes.Structure):
    """An instruction, as the machine takes it."""

    _fields_ = (("opcode", ctypes.c_uint32), ("line", ctypes.c_uint32), ("slot", ctypes.c_uint32 * SLOTS))


class Region(ctypes.Structure):
    """A tensor: its memory, and its offset in its own address space as the kernel sees it."""

    _fields_ = (("host", ctypes.c_uint64), ("begin", ctypes.c_uint64), ("bytes", ctypes.c_uint64))


class Launch(ctypes.Structure):
    """Everything that a launch consists of."""

    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        *((name, ctypes.c_uint64) for name in ("steps", "registers", "regions", "parameter_bytes")),
        *((name, ctypes.c_uint64) for name in ("shared_bytes", "local_bytes", "order", "finds_races")),
        ("step", ctypes.c_void_p),
        ("initial", ctypes.c_void_p),
        ("region", ctypes.c_void_p),
        ("parameter", ctypes.c_void_p),
    )


def library() -> ctypes.CDLL:
    """The machine as a shared library."""
    loaded = _loaded()
    if isinstance(loaded, EmulatorError):
        raise loaded
    return loaded


@functools.cache
def _loaded() -> ctypes.CDLL | EmulatorError:
    # An error is cached as well: if the machine does not compile, the next test does not try again.
    try:
        loaded = ctypes.CDLL(str(_built()))
    except EmulatorError as error:
        return error
    loaded.emulator_opcodes.restype = ctypes.c_char_p
    loaded.emulator_launch.restype = ctypes.c_char_p
    loaded.emulator_launch.argtypes = [ctypes.POINTER(Launch)]
    return loaded


@functools.cache
def opcodes() -> dict[tuple[str, int], int]:
    """Return the whitelist: the number of each (opcode, number of operands)."""
    lines = library().emulator_opcodes().decode().splitlines()
    return {(line.split()[0], int(line.split()[1])): i for i, line in enumerate(lines)}


def cache_folder() -> Path:
    """Return the folder of the machine and Triton's kernels: V1FAST_EMULATOR_CACHE, or one for this process only."""
    if folder := os.environ.get("V1FAST_EMULATOR_CACHE"):
        return Path(folder)
    return Path(_temporary_folder().name)


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="v1fast-emulator-")


def _built() -> Path:
    sources = sorted(_SOURCES.iterdir())
    compiler = os.environ.get("CXX", "g++")
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True).stdout
    content = hashlib.sha256(version + " ".join(_FLAGS).encode())
    for source in sources:
        content.update(source.name.encode() + source.read_bytes())
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"machine-{content.hexdigest()[:24]}.so"
    if not target.exists():
        _build(compiler, [s for s in sources if s.suffix == ".cpp"], target)
    return target


def _build(compiler: str, sources: list[Path], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = [Path(folder) / f"{source.stem}.o" for source in sources]
        commands = [[compiler, *_FLAGS, "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)]
        # Longest first, two at a time: the smallest machines have two cores.
        commands.sort(key=lambda command: -Path(command[-3]).stat().st_size)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(_run, commands))
        built = Path(folder) / "machine.so"
        _run([compiler, "-shared", *map(str, objects), "-o", str(built)])
        built.replace(target)  # atomically, so that no other process sees an incomplete file


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise EmulatorError(f"{' '.join(command)}\n{result.stderr[-4000:]}")
