"""Which kernels this installation has, and their order of preference."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping

import torch

from v1fast._build import why_absent
from v1fast.fallback import FALLBACK
from v1fast.ops._define import behind_check, library, register_defaults

KERNEL_SETS = ("native", "triton", "fallback")


def _requested() -> list[str]:
    names = [name.strip() for name in os.environ.get("V1FAST_KERNELS", ",".join(KERNEL_SETS)).split(",")]
    names = [name for name in names if name]
    for name in names:
        if name not in KERNEL_SETS:
            raise ValueError(f"V1FAST_KERNELS: want a comma-separated list of {', '.join(KERNEL_SETS)}, got {name!r}")
    return names


def _load_native() -> str:
    try:
        importlib.import_module("v1fast._C")
    except ModuleNotFoundError as error:
        # Loading goes on only if exactly this module is missing: a broken binary must not look like "not built".
        if error.name != "v1fast._C":
            raise
        return why_absent("v1fast._C")
    return "loaded"


def _load_triton() -> str:
    # Importing Triton takes longer than importing the rest of v1fast.
    asked_for = "V1FAST_KERNELS" in os.environ
    if not (torch.version.cuda or torch.version.hip or asked_for):
        names = ",".join(KERNEL_SETS)
        return f"not loaded: torch is built for the CPU alone; V1FAST_KERNELS={names} loads them all the same"
    try:
        kernels = importlib.import_module("v1fast.kernels")
    except ModuleNotFoundError as error:
        if error.name not in ("triton", "v1fast.kernels"):
            raise
        return f"not available: no module named {error.name!r}"
    for name, launcher in kernels.CUDA.items():
        library.impl(name, behind_check(name, launcher), "CUDA")
    return "loaded" if kernels.CUDA else "no op has a Triton kernel yet: CUDA tensors run on the reference"


def _load_fallback() -> str:
    register_defaults(FALLBACK)
    return "loaded"


def paths(loaded: Mapping[str, str]) -> dict[str, str]:
    """Return what runs the ops on tensors of a CPU, of a CUDA device and of others, and why nothing faster does."""
    default = "the fallback, on torch's own kernels" if loaded["fallback"] == "loaded" else "the reference"
    found = {}
    for device, name in (("CPU", "native"), ("CUDA", "triton")):
        if torch._C._dispatch_has_kernel_for_dispatch_key("v1fast::gaussian_readout", device):
            others = "" if device == "CPU" else f"; ops without one, and forms that it does not take: {default}"
            found[device] = f"the kernels of the set {name}{others}"
        else:
            found[device] = f"{default}; {name}: {loaded[name]}"
    return found | {"others": default}


def load_kernels() -> dict[str, str]:
    """Load the kernel sets that ``V1FAST_KERNELS`` names. Return the outcome for each.

    Without the variable, all usable sets are loaded. Triton's are usable only if torch is built for CUDA or ROCm. Ops
    without a kernel run on the fallback, or, if that is left out, on the reference.
    """
    requested = _requested()
    if "fallback" not in requested:
        register_defaults({})
    loaders = {"native": _load_native, "triton": _load_triton, "fallback": _load_fallback}
    return {
        name: loaders[name]() if name in requested else "left out by the environment variable V1FAST_KERNELS"
        for name in KERNEL_SETS
    }
