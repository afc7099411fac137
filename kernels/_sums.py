# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Sums over the first axis in a fixed order: of partial sums, and of the outputs' gradient for the bias."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import OPTIONS, jit


@triton.jit
def _add(total, error, value):
    """Add a value. Return the sum and all rounding errors so far (Knuth's two-sum), so that order hardly matters."""
    new = total + value
    rest = new - total
    return new, error + ((total - (new - rest)) + (value - rest))


@triton.jit
def _corrected(total, error):
    """Return the sum plus its rounding error. The error is NaN where the sum is not finite, and is left out there."""
    return tl.where(error == error, total + error, total)


@jit
def slabs_kernel(
    out,  # [M]
    slabs,  # [S, M]
    S,
    M,
    DOUBLE: tl.constexpr,  # the sums are float64; otherwise float32
    BS: tl.constexpr,
    BM: tl.constexpr,
):
    """Compute one block of sums over the first axis."""
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    column = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)[None, :]
    total = tl.zeros([BS, BM], dtype)
    error = total
    for s0 in range(0, S, BS):
        s = s0 + tl.arange(0, BS)[:, None]
        value = tl.load(slabs + s.to(tl.int64) * M + column, mask=(s < S) & (column < M), other=0)
        total, error = _add(total, error, value.to(dtype))
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    value = tl.sum(_corrected(total, error), axis=0)
    tl.store(out + m, value.to(out.dtype.element_ty), mask=m < M)


def sum_first(values: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:  # [S, ...] -> [...]
    """Return the sum over the first axis, computed in ``dtype`` and returned in the dtype of ``like``."""
    out = values.new_empty(values.shape[1:], dtype=like.dtype)
    many = values.shape[0] >= 32  # many parts, few sums: the parts are spread over the threads too
    slab_block, block = (64, 16) if many else (1, 512)
    slabs_kernel[(triton.cdiv(out.numel(), block),)](
        out,
        values,
        values.shape[0],
        out.numel(),
        DOUBLE=dtype == torch.float64,
        BS=slab_block,
        BM=block,
        num_warps=4,
        **OPTIONS,
    )
    return out


def new_slabs(count: int, like: Tensor, dtype: torch.dtype) -> Tensor:  # [count, *like.shape]
    """Allocate ``count`` partial sums. A single one is the result itself, and has the dtype of ``like``."""
    return like.new_empty((count, *like.shape), dtype=like.dtype if count == 1 else dtype)


def sum_slabs(slabs: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum of the slabs from ``new_slabs``."""
    return slabs[0] if slabs.shape[0] == 1 else sum_first(slabs, like, dtype)
