"""The contract of ``v1fast::permuted_products``."""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast.contracts import _checks


def check(a: Tensor, b: Tensor, permutations: Tensor) -> None:
    """Raise ValueError that names the operand unless the operands fit each other."""
    _checks.dims("a", a, "[S, S]", 2)
    _checks.at_most("a", "S", a.shape[0], 2**28 - 1)
    _checks.dims("permutations", permutations, "[P, S]", 2)
    for name, matrix in (("a", a), ("b", b)):
        _checks.shape(name, matrix, "[S, S]", (a.shape[0], a.shape[0]))
        if matrix.dtype != torch.float32:
            raise ValueError(f"{name}: want float32, got {str(matrix.dtype).removeprefix('torch.')}")
    _checks.shape("permutations", permutations, "[P, S]", (permutations.shape[0], a.shape[0]))
    if permutations.dtype != torch.int32:
        raise ValueError(f"permutations: want int32, got {str(permutations.dtype).removeprefix('torch.')}")
    for name, tensor in (("b", b), ("permutations", permutations)):
        if tensor.device != a.device:
            raise ValueError(f"{name}: want device {a.device}, that of a, got {tensor.device}")


def new_output(a: Tensor, b: Tensor, permutations: Tensor) -> Tensor:
    """Return the output without values."""
    return a.new_empty(permutations.shape[:1], dtype=torch.float64)
