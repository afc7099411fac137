# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Sums over the first axis in a fixed order: of partial sums, and of the outputs' gradient for the bias."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import OPTIONS, Launch, jit


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


def _launch(shape: Sequence[int], dtype: torch.dtype) -> Launch:
    """Return the launch that adds up [S, ...] over the first axis. Its tensors are the sums and the values."""
    count = math.prod(shape[1:])
    many = shape[0] >= 32  # many parts, few sums: the parts are spread over the threads too
    slab_block, block = (64, 16) if many else (1, 512)
    arguments = {"S": shape[0], "M": count, "DOUBLE": dtype == torch.float64, "BS": slab_block, "BM": block}
    return Launch(slabs_kernel, (triton.cdiv(count, block),), arguments, {"num_warps": 4, **OPTIONS})


class SumFirst:
    """The sum over the first axis, computed in ``dtype`` and returned in the dtype of ``like``: [S, ...] -> [...].

    Args:
        shape: of the values.
        like: of the dtype of the sums.
        dtype: of the arithmetic.
    """

    def __init__(self, shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> None:
        self.shape, self.dtype, self.launch = tuple(shape[1:]), like.dtype, _launch(shape, dtype)

    def __call__(self, values: Tensor) -> Tensor:
        """Return the sums of contiguous values."""
        out = values.new_empty(self.shape, dtype=self.dtype)
        self.launch((out, values))
        return out


class Slabs:
    """Partial sums of one gradient. A single one is the result itself, and has the dtype of ``like``.

    Args:
        count: of the partial sums.
        like: has the shape and the dtype of the gradient.
        dtype: of the partial sums.
    """

    def __init__(self, count: int, like: Tensor, dtype: torch.dtype) -> None:
        self.shape: tuple[int, ...] = tuple(like.shape) if count == 1 else (count, *like.shape)
        self.dtype = like.dtype if count == 1 else dtype
        self._sum = None if count == 1 else SumFirst(self.shape, like, dtype)

    def new(self, device: torch.device) -> Tensor:
        """Allocate them."""
        return torch.empty(self.shape, dtype=self.dtype, device=device)

    def sum(self, slabs: Tensor) -> Tensor:
        """Add them up."""
        return slabs if self._sum is None else self._sum(slabs)


def sum_first(values: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:  # [S, ...] -> [...]
    """Return the sum over the first axis, computed in ``dtype`` and returned in the dtype of ``like``."""
    return SumFirst(values.shape, like, dtype)(values)


def sum_slabs(slabs: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum of slabs that are all there."""
    return slabs[0] if slabs.shape[0] == 1 else sum_first(slabs, like, dtype)
