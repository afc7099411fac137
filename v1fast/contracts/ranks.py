"""The contracts of ``v1fast::average_ranks`` and ``v1fast::rank_sums``."""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast.contracts import _checks


def _check(name: str, x: Tensor, axes: str, dim: int) -> None:
    if x.dim() != dim or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name}: want {axes} in float32 or float64, got {tuple(x.shape)} in {x.dtype}")
    _checks.at_most(name, "L", x.shape[-1])


def check_ranks(x: Tensor) -> None:
    """Raise ValueError that names the operand unless it fits."""
    _check("x", x, "[M, L]", 2)


def check_sums(a: Tensor, b: Tensor) -> None:
    """Raise ValueError that names the operand unless both have one length and one dtype."""
    _check("a", a, "[L]", 1)
    _check("b", b, "[L]", 1)
    _checks.shape("b", b, "[L]", a.shape)
    if b.dtype != a.dtype or b.device != a.device:
        raise ValueError(f"b: want {a.dtype} on {a.device}, as a is, got {b.dtype} on {b.device}")


def new_ranks(x: Tensor) -> Tensor:
    """Return the output of ``average_ranks`` without values."""
    return x.new_empty(x.shape, dtype=torch.float64)


def new_sums(a: Tensor, b: Tensor) -> Tensor:
    """Return the output of ``rank_sums`` without values."""
    return a.new_empty(3, dtype=torch.float64)
