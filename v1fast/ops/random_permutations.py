"""The contract of ``v1fast::random_permutations``."""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast.ops import _checks
from v1fast.ops._define import define
from v1fast.reference.random_permutations import random_permutations as _reference


def check(seed: Tensor, count: int, size: int) -> None:
    """Raise ValueError that names the operand unless the arguments fit."""
    _checks.shape("seed", seed, "[1]", (1,))
    _checks.int64("seed", seed)
    for name, value in (("count", count), ("size", size)):
        if value < 0:
            raise ValueError(f"{name}: want at least 0, got {value}")
    _checks.at_most("count", "a number", count, 2**32 - 1)
    _checks.at_most("size", "a number", size)


def _fake(seed: Tensor, count: int, size: int) -> Tensor:
    return seed.new_empty((count, size), dtype=torch.int32)


random_permutations = define(
    "random_permutations(Tensor seed, SymInt count, SymInt size) -> Tensor",
    check=check,
    reference=_reference,
    fake=_fake,
)
