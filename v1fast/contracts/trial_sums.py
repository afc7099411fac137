"""The contracts of ``v1fast::trial_sums`` and ``v1fast::trial_products``."""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast.contracts import _checks
from v1fast.reference.trial_sums import BITS

SETS = (
    ("x", "y"),
    ("x", "xx"),
    ("x", "xx", "error"),
    ("x", "y", "xx"),
    ("x", "y", "xx", "yy", "xy"),
    ("x", "y", "xx", "yy", "xy", "error"),
)
"""The sets of sums that there are kernels for."""


def which(names: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    """Return the smallest set with these sums: the op's argument, and the names in the order of its output."""
    found = next(each for each in SETS if set(names) <= set(each))
    return sum(BITS[name] for name in found), found


def check(x: Tensor, y: Tensor, center: Tensor, order: Tensor, counts: Tensor, which: int) -> None:
    """Raise ValueError unless the operands fit together."""
    if x.dim() != 2 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x: want [T, N] in float32 or float64, got {tuple(x.shape)} in {x.dtype}")
    _checks.shape("y", y, "[T, N]", x.shape)
    if y.dtype != x.dtype:
        raise ValueError(f"y: want the dtype of x, {x.dtype}, got {y.dtype}")
    _checks.shape("center", center, "[2, N]", (2, x.shape[1]))
    if center.dtype != torch.float64:
        raise ValueError(f"center: want float64, got {center.dtype}")
    for name, operand in (("y", y), ("center", center), ("order", order), ("counts", counts)):
        _checks.device(name, operand, x)
    for name, indices in (("order", order), ("counts", counts)):
        _checks.int64(name, indices)
        if indices.dim() != 1:
            raise ValueError(f"{name}: want one axis, got {tuple(indices.shape)}")
    if which not in {sum(BITS[name] for name in each) for each in SETS}:
        raise ValueError(f"which: want one of the sets of v1fast.contracts.trial_sums, got {which}")


def new_output(x: Tensor, y: Tensor, center: Tensor, order: Tensor, counts: Tensor, which: int) -> Tensor:
    """Return the output without values."""
    return x.new_empty((which.bit_count(), counts.shape[0], x.shape[1]), dtype=torch.float64)


def check_products(
    x: Tensor,
    y: Tensor,
    center: Tensor,
    order: Tensor,
    counts: Tensor,
    factors: Tensor,
    weights: Tensor,
    which: int,
) -> None:
    """Raise ValueError unless the operands of ``trial_products`` fit together."""
    check(x, y, center, order, counts, which)
    for name, operand in (("factors", factors), ("weights", weights)):
        _checks.device(name, operand, x)
    _checks.int64("factors", factors)
    if factors.dim() != 2 or factors.shape[1] != 2:
        raise ValueError(f"factors: want [K, 2], got {tuple(factors.shape)}")
    _checks.shape("weights", weights, "[K, I]", (factors.shape[0], counts.shape[0]))
    if weights.dtype != torch.float64:
        raise ValueError(f"weights: want float64, got {weights.dtype}")


def new_products(
    x: Tensor,
    y: Tensor,
    center: Tensor,
    order: Tensor,
    counts: Tensor,
    factors: Tensor,
    weights: Tensor,
    which: int,
) -> Tensor:
    """Return the output of ``trial_products`` without values."""
    return x.new_empty((factors.shape[0], x.shape[1]), dtype=torch.float64)
