# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The backward passes of the dissimilarity matrices: one product of the pairs' gradients with the rows.

For distances the product's program writes the gradient itself. For angles it leaves the gradient of the unit rows. A
second kernel removes the part that would only lengthen a row. Unit rows have mean zero, so no part of it would shift a
row. The pairs' gradients are read from both halves of the matrix, or from its condensed form, without a copy.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from v1fast.reference.rdm import compute_dtype, no_gradients

from ._launch import OPTIONS, has_warpgroups, jit
from .rdm_rows import BLOCK, Rows, mean_row, standardise

PROMOTED = 256
"""Rows that the tensor cores sum by themselves; see rdm.py."""


@triton.jit
def _pairs(
    grad, i0, j0, r, c, has, S, stride_row, stride_column, dtype: tl.constexpr, PAIRS: tl.constexpr,
    CONDENSED: tl.constexpr,
):  # fmt: skip
    """Load the gradients of pairs of rows i0 + r and j0 + c, 0 for no pair. Offsets inside a tile have 32 bits."""
    first, last = i0.to(tl.int64), j0.to(tl.int64)
    i, j = i0 + r, j0 + c
    if PAIRS != "rows":
        has = has & (i != j)
    if CONDENSED:
        low, high = tl.minimum(i, j), tl.maximum(i, j)
        at = low.to(tl.int64) * (2 * S.to(tl.int64) - low - 1) // 2 + (high - low - 1)
        pairs = tl.load(grad + at * stride_column, mask=has, other=0).to(dtype)
    else:
        at = grad + (first * stride_row + last * stride_column)
        pairs = tl.load(at + (r * stride_row + c * stride_column), mask=has, other=0).to(dtype)
        if PAIRS != "rows":
            at = grad + (last * stride_row + first * stride_column)
            pairs += tl.load(at + (c * stride_row + r * stride_column), mask=has, other=0).to(dtype)
    return pairs


@jit
def mix_kernel(
    out,  # [B, S, N]
    grad,  # [B, S, M] by the strides, or [B, S (S - 1) / 2]
    own,  # [B, S, columns], for distances, or None
    others,  # [B, M, columns]
    norms,  # [B, S] float64: NaN where a row is not valid
    other_norms,  # [B, M] float64
    S,
    M,
    N,
    columns,
    stride_batch,
    stride_row,
    stride_column,
    PAIRS: tl.constexpr,  # "rows": as stored; "full": symmetric; "upper", "lower": others after, before the row
    CONDENSED: tl.constexpr,
    PRECISION: tl.constexpr,  # of float32 products
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PROMOTED: tl.constexpr,  # rows
):
    """Sum a block of rows and a block of columns over all other rows."""
    dtype: tl.constexpr = others.dtype.element_ty
    down, across = tl.cdiv(S, BM), tl.cdiv(N, BN)
    b = (tl.program_id(0) // down // across).to(tl.int64)
    i0, n0 = tl.program_id(0) % down * BM, tl.program_id(0) // down % across * BN
    r, c, n = tl.arange(0, BM)[:, None], tl.arange(0, BK), tl.arange(0, BN)[None, :]
    grad += b * stride_batch
    others += b * M * columns + n0
    norm = tl.load(norms + b * S + i0 + r, mask=i0 + r < S, other=float("nan"))
    valid = norm == norm
    total = tl.zeros([BM, BN], dtype)
    received = tl.zeros([BM], dtype)
    for first in range(0, M, PROMOTED):
        part = tl.zeros([BM, BN], dtype)
        for j0 in range(first, tl.minimum(first + PROMOTED, M), BK):
            j = j0 + c
            other_norm = tl.load(other_norms + b * M + j, mask=j < M, other=float("nan"))
            has = valid & (other_norm == other_norm)[None, :]
            pairs = _pairs(grad, i0, j0, r, c[None, :], has, S, stride_row, stride_column, dtype, PAIRS, CONDENSED)
            if own is not None:
                received += tl.sum(pairs, 1)
            if PAIRS == "upper":
                pairs = tl.where(j[None, :] > i0 + r, pairs, 0.0)
            elif PAIRS == "lower":
                pairs = tl.where(j[None, :] < i0 + r, pairs, 0.0)
            # Rows beyond the last repeat the last one, and have no pair. Columns beyond the last are padding.
            rows = tl.load(others + tl.minimum(j, M - 1).to(tl.int64)[:, None] * columns + n)
            if dtype == tl.float64:
                part = tl.dot(pairs, rows, part, out_dtype=tl.float64)
            else:
                part = tl.dot(pairs, rows, part, input_precision=PRECISION)
        total += part
    inside = (i0 + r < S) & (n0 + n < N)
    if own is not None:
        own += (b * S + i0) * columns + n0
        rows = tl.load(own + r.to(tl.int64) * columns + n, mask=inside, other=0)
        WEIGHT: tl.constexpr = 1.0 if PAIRS == "upper" or PAIRS == "lower" else 2.0
        total = (WEIGHT * received[:, None] * rows - 2.0 * total) / N
    out += (b * S + i0) * N + n0
    tl.store(out + r.to(tl.int64) * N + n, total.to(out.dtype.element_ty), mask=inside)


@jit
def angles_kernel(
    d_x,  # [rows, N]
    mixed,  # [rows, N]: the result of mix_kernel; may be d_x
    units,  # [rows, columns]
    inverses,  # [rows] float64
    N,
    columns,
    BLOCK: tl.constexpr,
):
    """Remove the part of the gradient along one row, and divide the rest by the row's norm."""
    row = tl.program_id(0).to(tl.int64)
    along = tl.zeros([BLOCK], tl.float64)
    for k0 in range(0, N, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        unit = tl.load(units + row * columns + k, mask=k < N, other=0).to(tl.float64)
        along = tl.fma(unit, tl.load(mixed + row * N + k, mask=k < N, other=0).to(tl.float64), along)
    length = tl.sum(along, 0)
    inverse = tl.load(inverses + row)
    for k0 in range(0, N, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        unit = tl.load(units + row * columns + k, mask=k < N, other=0).to(tl.float64)
        value = tl.load(mixed + row * N + k, mask=k < N, other=0).to(tl.float64)
        tl.store(d_x + row * N + k, (tl.fma(unit, length, -value) * inverse).to(d_x.dtype.element_ty), mask=k < N)


# Launchers -------------------------------------------------------------------------------------------------------


def block_shape(dtype: torch.dtype, warpgroups: bool) -> tuple[tuple[int, int, int], int]:
    """Return rows, columns and other rows of a program, as many as the registers hold, and its warps."""
    if dtype == torch.float64:
        return (32, 64, 16), 8
    return (64, 128 if warpgroups else 64, 16), 8


def product_precision() -> str:
    """Return the precision of products: three of tf32, as accurate as float32; AMD's matrix cores have float32."""
    return "ieee" if torch.version.hip else "tf32x3"


def _mix(
    out: Tensor,  # [B, S, N]
    grad: Tensor,
    own: Rows,
    others: Rows,
    pairs: str,
    distances: bool,
) -> None:
    """Write the sums over the other rows or, for distances, the gradient."""
    batch, rows, neurons = out.shape
    condensed = grad.dim() == 2
    strides = (grad.stride(0), 0, grad.stride(1)) if condensed else grad.stride()
    tile, warps = block_shape(others.planes.dtype, has_warpgroups())
    grid = (triton.cdiv(rows, tile[0]) * triton.cdiv(neurons, tile[1]) * batch,)
    mix_kernel[grid](
        out,
        grad,
        own.planes if distances else None,
        others.planes,
        own.norms,
        others.norms,
        rows,
        others.norms.shape[1],
        neurons,
        others.columns,
        *strides,
        PAIRS=pairs,
        CONDENSED=condensed,
        PRECISION=product_precision(),
        PROMOTED=PROMOTED,
        **dict(zip(("BM", "BN", "BK"), tile, strict=True)),
        **{**OPTIONS, "num_warps": warps, "num_stages": 2},
    )


def _through_angles(x: Tensor, grad: Tensor, own: Rows, others: Rows, pairs: str) -> Tensor:
    """Return the gradient of x [B, S, N], whose unit rows are ``own``."""
    assert own.inverses is not None
    d_x = x.new_empty(x.shape)
    mixed = d_x if d_x.dtype == own.planes.dtype else d_x.new_empty(d_x.shape, dtype=own.planes.dtype)
    _mix(mixed, grad, own, others, pairs, distances=False)
    angles_kernel[(x.shape[0] * x.shape[1],)](
        d_x, mixed, own.planes, own.inverses, x.shape[-1], own.columns, BLOCK=BLOCK, num_warps=4, **OPTIONS
    )
    return d_x


def _through_distances(x: Tensor, grad: Tensor, own: Rows, others: Rows, pairs: str) -> Tensor:
    """Return the gradient of x [B, S, N] for distances."""
    d_x = x.new_empty(x.shape)
    _mix(d_x, grad, own, others, pairs, distances=True)
    return d_x


def rdm_backward(
    grad: Tensor,  # [B, S, S] or [B, S (S - 1) / 2]
    matrix: Tensor | None,  # the matrix itself, which is not read: the part along each row is computed from the rows
    x: Tensor,  # [B, S, K]
    y: Tensor | None,  # [B, S, K]
    method: str,
    condensed: bool,
    accuracy: str,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor]:
    """The op ``v1fast::rdm_backward``."""
    none = x.new_empty(0)
    if x.numel() == 0:
        return no_gradients(x, y, output_mask)
    if not output_mask[0] and (y is None or not output_mask[1]):
        return none, none
    dtype = compute_dtype(x, y, accuracy)
    grad, x, y = grad.detach(), x.detach(), None if y is None else y.detach()
    with torch.cuda.device_of(x):
        if y is None:
            centre = mean_row(x) if method == "euclidean" else None
            rows = standardise(x, method, dtype, centre, backward=True)
            through = _through_distances if method == "euclidean" else _through_angles
            return through(x, grad, rows, rows, "full"), none
        a, b = (standardise(t, method, dtype, backward=True) for t in (x, y))
        # A row of x is paired with a row of y. If either is not valid, the pair is not valid.
        norms = a.norms + b.norms
        a, b = a._replace(norms=norms), b._replace(norms=norms)
        d_x = _through_distances(x, grad, b, b, "upper") if output_mask[0] else none
        return d_x, _through_distances(y, grad, a, a, "lower") if output_mask[1] else none


def cross_rdm_backward(
    grad: Tensor,  # [B, S, T]
    matrix: Tensor | None,  # not read, as above
    x: Tensor,  # [B, S, K]
    y: Tensor,  # [B, T, K]
    method: str,
    accuracy: str,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor]:
    """The op ``v1fast::cross_rdm_backward``."""
    none = x.new_empty(0)
    if x.numel() == 0 or y.numel() == 0:
        return no_gradients(x, y, output_mask)
    dtype = compute_dtype(x, y, accuracy)
    grad, x, y = grad.detach(), x.detach(), y.detach()
    with torch.cuda.device_of(x):
        centre = mean_row(x) if method == "euclidean" else None
        a, b = (standardise(t, method, dtype, centre, backward=True) for t in (x, y))
        through = _through_distances if method == "euclidean" else _through_angles
        d_x = through(x, grad, a, b, "rows") if output_mask[0] else none
        return d_x, through(y, grad.mT, b, a, "rows") if output_mask[1] else none
