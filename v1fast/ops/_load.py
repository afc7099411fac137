"""Which kernels this installation has, and their order of preference."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from functools import partial

import torch

from v1fast._build import left_out, ops_binary, release, why_absent
from v1fast._torch import too_old_for_triton
from v1fast._warnings import warn_caller
from v1fast.fallback import FALLBACK, cross_rdm, small, small_layers, small_pooled, small_rdm
from v1fast.ops import gaussian_readout, pooled_readout, rdm
from v1fast.ops._define import launchers_of, register_defaults, register_launcher
from v1fast.ops._gpu_check import guarded, is_off

KERNEL_SETS = ("native", "triton", "fallback")
FLOAT64_PRODUCTS = (3, 5)  # the first Triton that multiplies matrices of float64


def _requested() -> list[str]:
    names = [name.strip() for name in os.environ.get("V1FAST_KERNELS", ",".join(KERNEL_SETS)).split(",")]
    names = [name for name in names if name]
    for name in names:
        if name not in KERNEL_SETS:
            raise ValueError(f"V1FAST_KERNELS: want a comma-separated list of {', '.join(KERNEL_SETS)}, got {name!r}")
    return names


def _load_native() -> str:
    binary = ops_binary(torch.__version__)
    try:
        importlib.import_module(binary)
    except ModuleNotFoundError as error:
        if error.name != binary:
            raise
        state = why_absent("v1fast._C", torch.__version__)
        # Of what a source tree lacks, or a system other than Linux, nobody has to be told.
        missed = sys.platform in ("linux", "darwin") and ("does not fit" in state or left_out("v1fast._C") is not None)
    except ImportError as error:
        state, missed = f"does not load: {error}", True
    else:
        return "loaded"
    if missed:
        warn_caller(f"v1fast runs without its kernels for the CPU, slower: {state}", RuntimeWarning)
    return state


def _load_triton() -> str:
    # Importing Triton takes longer than importing the rest of v1fast.
    asked_for = "V1FAST_KERNELS" in os.environ
    if not (torch.version.cuda or torch.version.hip or asked_for):
        names = ",".join(KERNEL_SETS)
        return f"not loaded: torch is built for the CPU alone; V1FAST_KERNELS={names} loads them all the same"
    old = too_old_for_triton()
    if old:
        return f"not loaded: {old}"
    try:
        kernels = importlib.import_module("v1fast.kernels")
    except ModuleNotFoundError as error:
        if error.name not in ("triton", "v1fast.kernels"):
            raise
        return f"not available: no module named {error.name!r}"
    self_test = importlib.import_module("v1fast.kernels._self_test")
    for name, launcher in kernels.CUDA.items():
        register_launcher(name, guarded(name, launcher, self_test), "CUDA")
    return _loaded_with_triton(importlib.import_module("triton").__version__)


def _loaded_with_triton(version: str) -> str:
    if release(version) >= FLOAT64_PRODUCTS:
        return "loaded"
    lacking = 'dissimilarities of float64 tensors and of accuracy="high"'
    return f"loaded, but for {lacking}: they need Triton 3.5"


def _load_fallback() -> str:
    register_defaults(FALLBACK)
    if not _has_kernel("CPU"):
        op, launchers = gaussian_readout, launchers_of("gaussian_readout")
        op.gaussian_readout = small.readout(op.gaussian_readout, op.gaussian_readout_backward, launchers)
        op.of_parameters = partial(small_layers.of_parameters, launchers)
        launchers = launchers_of("pooled_readout")
        pooled_readout.pooled_readout = small_pooled.first(
            pooled_readout.pooled_readout,
            pooled_readout.pooled_readout_backward,
            FALLBACK["pooled_readout"],
            FALLBACK["pooled_readout_backward"],
            launchers,
        )
        pooled_readout.of_parameters = partial(small_pooled.of_parameters, launchers)
        pooled_readout.of_levels = partial(small_pooled.of_levels, launchers)
        pooled_readout.STORING.discard("cpu")
        rdm.small = small_rdm.matrices(rdm.rdm_backward, launchers_of("rdm"))
        rdm.small_cross = cross_rdm.pairs_of_sets(rdm.cross_rdm_backward, launchers_of("cross_rdm"))
    return "loaded"


def _has_kernel(device: str) -> bool:
    """Whether readouts have a kernel for this device, of a set that is loaded."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("v1fast::gaussian_readout", device)


def _on_cuda(default: str) -> str:
    check = (
        "V1FAST_GPU_CHECK turns the check of their first use off" if is_off() else "each is checked at its first use"
    )
    return (
        f", which their authors have run on no GPU yet: {check}; "
        f"ops without one, and forms that it does not take or that fail: {default}"
    )


def paths(loaded: Mapping[str, str]) -> dict[str, str]:
    """Return what runs the ops on tensors of a CPU, of a CUDA device and of others, and why nothing faster does."""
    default = "the fallback, on torch's own kernels" if loaded["fallback"] == "loaded" else "the reference"
    found = {}
    for device, name in (("CPU", "native"), ("CUDA", "triton")):
        if _has_kernel(device):
            found[device] = f"the kernels of the set {name}{'' if device == 'CPU' else _on_cuda(default)}"
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
