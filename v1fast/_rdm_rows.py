"""Rows and batches, as the ops of dissimilarities take them."""

from __future__ import annotations

from torch import Tensor

from v1fast import _arrays
from v1fast.contracts import _checks


def rows(name: str, given: Tensor) -> Tensor:
    """[..., S, N] floating; integers and bool as float32, those that it does not hold are an error."""
    if given.dim() < 2 or given.shape[-1] < 1:
        raise ValueError(f"{name}: want [..., rows, neurons >= 1], got {tuple(given.shape)}")
    if not given.is_floating_point() and not given.is_complex():
        _arrays.check_exact(name, given)
        return given.float()
    _checks.floating(name, given)
    return given


def by_batch(x: Tensor) -> Tensor:
    """[B, S, N], of which the leading dimensions are one."""
    return x.unsqueeze(0) if x.dim() == 2 else x.flatten(0, -3)
