# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Sums of the partial sums that the backward pass of the Gaussian readout leaves, in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._common import pixels_per_unit
from ._launch import OPTIONS, Operands, jit

QUANTITIES = tl.constexpr(7)
"""What ``parts`` holds of each neuron: d_z (x, y), d_z times noise (xx, xy, yx, yy), d_bias. d_z is per pixel."""


@triton.jit
def _add(total, error, value):
    """The sum, and what all additions so far have rounded away (Knuth's two-sum): the order hardly matters then."""
    new = total + value
    rest = new - total
    return new, error + ((total - (new - rest)) + (value - rest))


@triton.jit
def _corrected(total, error):
    """The sum with what was rounded away; that is NaN where the sum is not finite."""
    return tl.where(error == error, total + error, total)


@triton.jit
def _total(parts, row: tl.constexpr, n, has_n, first, step, count, N):
    """Sum over parts first, first + step, ... of one quantity."""
    total = tl.zeros(n.shape, parts.dtype.element_ty)
    error = total
    for i in range(count):
        at = ((first + i * step).to(tl.int64) * QUANTITIES + row) * N + n
        total, error = _add(total, error, tl.load(parts + at, mask=has_n, other=0))
    return _corrected(total, error)


@jit
def neurons_kernel(
    d_mu,  # [N, 2] or None
    d_sigma,  # [N, SIGMA] or None
    d_bias,  # [N] or None
    parts,  # [splits * chunks, QUANTITIES, N]
    splits,
    chunks,
    N,
    H,
    W,
    SIGMA: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    BN: tl.constexpr,
):
    """d_mu, d_sigma and d_bias of one block of neurons."""
    dtype: tl.constexpr = parts.dtype.element_ty
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    has_n = n < N
    count = splits * chunks
    scale_x, scale_y = pixels_per_unit(W, ALIGN_CORNERS, dtype), pixels_per_unit(H, ALIGN_CORNERS, dtype)
    if d_mu is not None:
        at = d_mu + n.to(tl.int64) * 2
        x, y = _total(parts, 0, n, has_n, 0, 1, count, N), _total(parts, 1, n, has_n, 0, 1, count, N)
        tl.store(at, (x * scale_x).to(d_mu.dtype.element_ty), mask=has_n)
        tl.store(at + 1, (y * scale_y).to(d_mu.dtype.element_ty), mask=has_n)
    if d_sigma is not None:
        at = d_sigma + n.to(tl.int64) * SIGMA
        out: tl.constexpr = d_sigma.dtype.element_ty
        xx = _total(parts, 2, n, has_n, 0, 1, count, N) * scale_x
        yy = _total(parts, 5, n, has_n, 0, 1, count, N) * scale_y
        if SIGMA == 1:
            tl.store(at, (xx + yy).to(out), mask=has_n)
        else:
            tl.store(at, xx.to(out), mask=has_n)
            tl.store(at + SIGMA - 1, yy.to(out), mask=has_n)
        if SIGMA == 4:
            xy, yx = _total(parts, 3, n, has_n, 0, 1, count, N), _total(parts, 4, n, has_n, 0, 1, count, N)
            tl.store(at + 1, (xy * scale_x).to(out), mask=has_n)
            tl.store(at + 2, (yx * scale_y).to(out), mask=has_n)
    if d_bias is not None:
        # the first chunk's parts: each chunk of channels would add the same
        bias = _total(parts, 6, n, has_n, 0, chunks, splits, N)
        tl.store(d_bias + n, bias.to(d_bias.dtype.element_ty), mask=has_n)


@jit
def slabs_kernel(
    out,  # [M]
    slabs,  # [S, M]
    S,
    M,
    H,
    W,
    PIXELS: tl.constexpr,  # the sums are gradients (x, y) per pixel, wanted for normalised coordinates
    ALIGN_CORNERS: tl.constexpr,
    BS: tl.constexpr,
    BM: tl.constexpr,
):
    """One block of sums over the first axis."""
    column = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)[None, :]
    total = tl.zeros([BS, BM], slabs.dtype.element_ty)
    error = total
    for s0 in range(0, S, BS):
        s = s0 + tl.arange(0, BS)[:, None]
        value = tl.load(slabs + s.to(tl.int64) * M + column, mask=(s < S) & (column < M), other=0)
        total, error = _add(total, error, value)
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    value = tl.sum(_corrected(total, error), axis=0)
    if PIXELS:
        dtype: tl.constexpr = slabs.dtype.element_ty
        scale_x, scale_y = pixels_per_unit(W, ALIGN_CORNERS, dtype), pixels_per_unit(H, ALIGN_CORNERS, dtype)
        value *= tl.where(m % 2 == 0, scale_x, scale_y)
    tl.store(out + m, value.to(out.dtype.element_ty), mask=m < M)


# Launchers -------------------------------------------------------------------------------------------------------


def sum_slabs(o: Operands, slabs: Tensor, like: Tensor, pixels: bool = False) -> Tensor:  # [S, ...] -> [...]
    """The sum over the first axis, in the dtype of ``like``."""
    out = slabs.new_empty(slabs.shape[1:], dtype=like.dtype)
    many = slabs.shape[0] >= 32  # parts of few sums: spread over the threads too
    slab_block, block = (64, 16) if many else (1, 512)
    _, _, height, width, _ = o.sizes
    slabs_kernel[(triton.cdiv(out.numel(), block),)](
        out,
        slabs,
        slabs.shape[0],
        out.numel(),
        height,
        width,
        PIXELS=pixels,
        ALIGN_CORNERS=o.align_corners,
        BS=slab_block,
        BM=block,
        num_warps=4,
        **OPTIONS,
    )
    return out


def sum_parts(
    o: Operands,
    parts: Tensor,  # [splits * chunks, QUANTITIES, N]
    chunks: int,
    wanted: dict[str, Tensor | None],  # mu, sigma, bias; None: not wanted
) -> dict[str, Tensor]:
    """d_mu, d_sigma and d_bias, those that are wanted."""
    out = {name: like.new_empty(like.shape) for name, like in wanted.items() if like is not None}
    _, _, height, width, neurons = o.sizes
    neurons_kernel[(triton.cdiv(neurons, 128),)](
        out.get("mu"),
        out.get("sigma"),
        out.get("bias"),
        parts,
        parts.shape[0] // chunks,
        chunks,
        neurons,
        height,
        width,
        SIGMA=0 if "sigma" not in out else out["sigma"][0].numel(),
        ALIGN_CORNERS=o.align_corners,
        BN=128,
        num_warps=4,
        **OPTIONS,
    )
    return out
