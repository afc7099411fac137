"""What v1fast uses of torch and some versions in its range lack: under one name, with what stands in for it there."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _get_tracing_state,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch.autograd import forward_ad

from v1fast._build import release
from v1fast._warnings import run_while_tracing

LEAST_FOR_TRITON = {"torch": (2, 8), "triton": (3, 4)}


def too_old_for_triton() -> str | None:
    """Which of torch and Triton is too old for the kernels, None for neither and where there is no Triton."""
    for package, wanted in LEAST_FOR_TRITON.items():
        try:
            # Not what metadata says: torch's build for ROCm has a package of another name for Triton.
            version = importlib.import_module(package).__version__
        except ModuleNotFoundError:
            return None
        if release(version) < wanted:
            return f"the kernels need {package} {wanted[0]}.{wanted[1]} or later, and this is {version}"
    return None


def _any_requires_grad(*arguments: Any) -> bool:
    return any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


_PLAIN = frozenset({Tensor, torch.nn.Parameter, type(None), bool, int, float, str, list})


def is_plain(arguments: tuple[Any, ...]) -> bool:
    """Whether autograd alone can want to know of a call: no tensor of another kind, no transform, mode or tracer."""
    return (
        _PLAIN.issuperset(map(type, arguments))
        and forward_ad._current_level < 0
        and not _are_functorch_transforms_active()
        and not _len_torch_dispatch_stack()
        and not _len_torch_function_stack()
        and _get_tracing_state() is None
    )


@run_while_tracing
def _is_exporting() -> bool:
    trace = sys.modules.get("torch.export._trace")
    return getattr(trace, "_EXPORT_FLAGS", None) is not None


class _AboveBatched:
    """An interpreter of vmap that leaves the keys above its own alone, autograd's among them."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._interpreter, name)

    def lower(self) -> Any:
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchBatched)
        return torch._C._ExcludeDispatchKeyGuard(keys)


def register_vmap(op: Any, rule: Callable[..., Any], library: torch.library.Library) -> None:
    """``torch.library.register_vmap``. What ``rule`` computes is recorded by autograd; torch itself does that from 2.8
    on at the latest.
    """
    if release(torch.__version__) >= (2, 8):
        torch.library.register_vmap(op, rule, lib=library)
        return
    from torch._functorch.autograd_function import custom_function_call_vmap_helper
    from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

    def batched(keyset: Any, *arguments: Any) -> Any:
        interpreter: Any = _AboveBatched(retrieve_current_functorch_interpreter())
        return custom_function_call_vmap_helper(interpreter, rule, op, *arguments)

    library.impl(op._schema.name, batched, "FuncTorchBatched", with_keyset=True)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """``torch.autocast`` turned off; nothing on the meta device, where there is none and torch raises."""
    # torch.compile does not trace torch.amp.is_autocast_available before torch 2.6.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


any_requires_grad = getattr(torch._C, "_any_requires_grad", _any_requires_grad)
"""Whether a tensor among the arguments requires grad; torch has it from 2.8 on."""


@run_while_tracing
def _says_that_it_exports() -> bool:
    return torch.compiler.is_exporting()


# torch.compile takes torch's own for true while it traces, at least up to torch 2.10: it is called there, not traced.
# torch 2.7 has it too, and then it is false in a strict export.
is_exporting = _says_that_it_exports if release(torch.__version__) >= (2, 8) else _is_exporting
"""Whether ``torch.export`` traces the call; torch says it in every export from 2.8 on."""
