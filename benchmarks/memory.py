"""The peak memory of a call, beyond what was held before it."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from v1fast import release_memory

T = TypeVar("T")
_PROCESS = Path("/proc/self")


def peak_of(call: Callable[[], T], device: str) -> tuple[T, int | None]:
    """Calls, and measures the peak.

    Returns:
        What the call returns, and the peak in bytes above what was held before, the call's results included. None where
        it cannot be measured: outside Linux, or where the process may not reset its high-water mark.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return call(), torch.cuda.max_memory_allocated() - before
    if not _reset_high_water_mark():
        return call(), None
    before = _status("VmRSS")
    return call(), max(0, _status("VmHWM") - before)


def return_freed_memory() -> bool:
    """From now on freed memory goes back to the system at once, so that a peak is that of the memory in use.

    glibc keeps freed blocks of up to 32 MiB otherwise, to give them out again. This takes time: each new block is
    cleared by the system. It cannot be undone in this process.

    Returns:
        Whether the C library has such settings: glibc has.
    """
    trim_threshold, mmap_threshold, page = -1, -3, 1 << 17  # numbers of malloc.h; glibc's own initial threshold
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # TypeError: Windows
        return False
    return all(set_option(option, page) == 1 for option in (trim_threshold, mmap_threshold))


def populate(count: int) -> None:
    """Touch this many bytes. A virtual machine gets memory from its host at the first touch, in milliseconds."""
    torch.ones(count // 4)


def available() -> int | None:
    """Return the bytes that this machine can still give to a process, None where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _reset_high_water_mark() -> bool:
    if sys.platform != "linux":
        return False
    try:
        # Memory that the allocator or v1fast keeps would be reused unnoticed.
        release_memory()
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # a C library without it
        return False
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    for line in (_PROCESS / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise LookupError(f"/proc/self/status has no {field}")
