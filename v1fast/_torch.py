"""What v1fast uses of torch and some versions in its range lack: under one name, with what stands in for it there."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from v1fast._warnings import run_while_tracing


def _any_requires_grad(*arguments: Any) -> bool:
    return any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


@run_while_tracing
def _is_exporting() -> bool:
    trace = sys.modules.get("torch.export._trace")
    return getattr(trace, "_EXPORT_FLAGS", None) is not None


any_requires_grad = getattr(torch._C, "_any_requires_grad", _any_requires_grad)
"""Whether a tensor among the arguments requires grad; torch has it from 2.8 on."""

is_exporting = getattr(torch.compiler, "is_exporting", _is_exporting)
"""Whether ``torch.export`` traces the call; torch has it from 2.7 on."""
