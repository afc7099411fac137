"""The contract of ``v1fast::condensed_row_sums``."""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast.contracts import _checks


def check(x: Tensor, stimuli: int) -> None:
    """Raise ValueError unless ``x`` has the pairs of that many stimuli, in float32 or float64."""
    if stimuli < 0:
        raise ValueError(f"stimuli: want at least 0, got {stimuli}")
    _checks.at_most("stimuli", "a number", stimuli)
    _checks.dims("x", x, "[M, S (S - 1) / 2]", 2)
    _checks.shape("x", x, "[M, S (S - 1) / 2]", (x.shape[0], stimuli * (stimuli - 1) // 2))
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x: want float32 or float64, got {str(x.dtype).removeprefix('torch.')}")


def new_output(x: Tensor, stimuli: int) -> Tensor:
    """Return the output without values."""
    return x.new_empty((x.shape[0], stimuli), dtype=torch.float64)
