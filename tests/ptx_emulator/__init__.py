"""Executes compiled Triton kernels on CPU tensors, from their PTX: see README.md."""

from .driver import active, install, launches, ptx_of, uninstall
from .errors import (
    DataRace,
    Deadlock,
    Divergence,
    EmulatorError,
    MisalignedAccess,
    OutOfBounds,
    OutOfResources,
    Trap,
    UnsupportedPtx,
)
from .kernel import PtxKernel
from .native import opcodes

__all__ = [
    "DataRace",
    "Deadlock",
    "Divergence",
    "EmulatorError",
    "MisalignedAccess",
    "OutOfBounds",
    "OutOfResources",
    "PtxKernel",
    "Trap",
    "UnsupportedPtx",
    "active",
    "install",
    "launches",
    "opcodes",
    "ptx_of",
    "uninstall",
]
