"""The contract of ``v1fast::random_permutations``."""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast.contracts import _checks


def check(seed: Tensor, count: int, size: int) -> None:
    """Raise ValueError that names the operand unless the arguments fit."""
    _checks.shape("seed", seed, "[1]", (1,))
    _checks.int64("seed", seed)
    for name, value in (("count", count), ("size", size)):
        if value < 0:
            raise ValueError(f"{name}: want at least 0, got {value}")
    _checks.at_most("count", "a number", count, 2**32 - 1)
    _checks.at_most("size", "a number", size)


def new_output(seed: Tensor, count: int, size: int) -> Tensor:
    """Return the output without values."""
    return seed.new_empty((count, size), dtype=torch.int32)
