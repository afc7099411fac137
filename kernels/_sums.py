# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Sums over the first axis in a fixed order: of partial sums, and of the outputs' gradient for the bias."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

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


@triton.jit
def _sum_block(out, slabs, S, M, block, DOUBLE: tl.constexpr, MANY: tl.constexpr):
    """Compute one block of sums over the first axis."""
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    # many parts, few sums: the parts are spread over the threads too
    BS: tl.constexpr = 64 if MANY else 1
    BM: tl.constexpr = 16 if MANY else 512
    column = block.to(tl.int64) * BM + tl.arange(0, BM)[None, :]
    total = tl.zeros([BS, BM], dtype)
    error = total
    for s0 in range(0, S, BS):
        s = s0 + tl.arange(0, BS)[:, None]
        value = tl.load(slabs + s.to(tl.int64) * M + column, mask=(s < S) & (column < M), other=0)
        total, error = _add(total, error, value.to(dtype))
    m = block.to(tl.int64) * BM + tl.arange(0, BM)
    value = tl.sum(_corrected(total, error), axis=0)
    tl.store(out + m, value.to(out.dtype.element_ty), mask=m < M)


@jit
def sums_kernel(
    out_a,  # [M_a]
    slabs_a,  # [S_a, M_a]
    out_b,
    slabs_b,  # None: there are no more
    out_c,
    slabs_c,
    out_d,
    slabs_d,
    out_e,
    slabs_e,
    S_a,
    M_a,
    S_b,
    M_b,
    S_c,
    M_c,
    S_d,
    M_d,
    S_e,
    M_e,
    DOUBLE: tl.constexpr,  # the sums are float64; otherwise float32
    MANY_a: tl.constexpr,
    MANY_b: tl.constexpr,
    MANY_c: tl.constexpr,
    MANY_d: tl.constexpr,
    MANY_e: tl.constexpr,
):
    """Compute one block of the sums over the first axis of one of the operands. The blocks of each follow another's."""
    block = tl.program_id(0)
    blocks = tl.cdiv(M_a, 16 if MANY_a else 512)
    if block < blocks:
        _sum_block(out_a, slabs_a, S_a, M_a, block, DOUBLE, MANY_a)
    if slabs_b is not None:
        block -= blocks
        blocks = tl.cdiv(M_b, 16 if MANY_b else 512)
        if (block >= 0) & (block < blocks):
            _sum_block(out_b, slabs_b, S_b, M_b, block, DOUBLE, MANY_b)
    if slabs_c is not None:
        block -= blocks
        blocks = tl.cdiv(M_c, 16 if MANY_c else 512)
        if (block >= 0) & (block < blocks):
            _sum_block(out_c, slabs_c, S_c, M_c, block, DOUBLE, MANY_c)
    if slabs_d is not None:
        block -= blocks
        blocks = tl.cdiv(M_d, 16 if MANY_d else 512)
        if (block >= 0) & (block < blocks):
            _sum_block(out_d, slabs_d, S_d, M_d, block, DOUBLE, MANY_d)
    if slabs_e is not None:
        block -= blocks
        blocks = tl.cdiv(M_e, 16 if MANY_e else 512)
        if (block >= 0) & (block < blocks):
            _sum_block(out_e, slabs_e, S_e, M_e, block, DOUBLE, MANY_e)


class Sums:
    """Sums over the first axis of at most five operands, in one launch: [S, ...] -> [...] for each.

    Args:
        parts: shape [S, ...] of each operand, which is contiguous, and dtype of its sum.
        dtype: of the arithmetic.
    """

    def __init__(self, parts: dict[str, tuple[Sequence[int], torch.dtype]], dtype: torch.dtype) -> None:
        self.outputs = [(name, tuple(shape[1:]), out) for name, (shape, out) in parts.items()]
        arguments: dict[str, Any] = {"DOUBLE": dtype == torch.float64}
        shapes, blocks = [tuple(shape) for shape, _ in parts.values()], 0
        for letter, shape in itertools.zip_longest("abcde", shapes, fillvalue=()):
            count, sums = (shape[0], math.prod(shape[1:])) if shape else (0, 0)
            many = count >= 32
            blocks += triton.cdiv(sums, 16 if many else 512)
            arguments |= {f"S_{letter}": count, f"M_{letter}": sums, f"MANY_{letter}": many}
        self.launch = Launch(sums_kernel, (blocks,), arguments, {"num_warps": 4, **OPTIONS})

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums."""
        found: dict[str, Tensor] = {}
        tensors: list[Tensor | None] = [None] * 10
        for i, (name, shape, dtype) in enumerate(self.outputs):
            value = tensors[2 * i + 1] = values[name]
            found[name] = tensors[2 * i] = torch.empty(*shape, dtype=dtype, device=value.device)
        self.launch(tensors)
        return found


def sum_first(values: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:  # [S, ...] -> [...]
    """Return the sum over the first axis, computed in ``dtype`` and returned in the dtype of ``like``."""
    return Sums({"": (values.shape, like.dtype)}, dtype)({"": values})[""]


def sum_slabs(slabs: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum of slabs that are all there."""
    return slabs[0] if slabs.shape[0] == 1 else sum_first(slabs, like, dtype)
