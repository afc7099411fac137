# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Dissimilarity matrices: the product of rows with rows. Only tiles on and above the diagonal are computed.

The tensor cores sum a tile, some hundred columns at a time. These partial sums are added in separate float32 registers.
There they become dissimilarities, which are written once, with their mirror image. Where tiles are few and rows are
long, several programs share a tile's columns. A second kernel then adds their sums in a fixed order. Float32 takes
three products of float16 planes (rdm_rows.py); "high" accuracy and float64 take one product of float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from v1fast.contracts import rdm as contract
from v1fast.reference import whole_numbers as whole_reference
from v1fast.reference.rdm import compute_dtype, output_dtype

from . import whole_numbers
from ._launch import OPTIONS, has_warpgroups, jit
from .rdm_rows import FIELDS, Rows, in_common_units, mean_row, multiply_pairs, plane_dtype, standardise

PROGRAMS = 132
"""Tiles are split until there are as many programs: an H100's multiprocessors, and the same number on each GPU, so that
sums keep their order."""

MOST_SPLITS = 32
"""Of a tile: what they leave is added one after the other."""

PROMOTED = 256
"""Columns that the tensor cores sum by themselves; they cut digits off, and one long chain of additions loses more."""

NEAR = 1e-4
"""Dissimilarity below which "high" accuracy takes the difference, as the CPU kernel does."""


_LEAST = tl.constexpr(2.0**-90)  # as in the reference

# Tiles -----------------------------------------------------------------------------------------------------------


@triton.jit
def triangle(tile):
    """Return row and column of a tile among those on and above the diagonal, counted column after column.

    The rounded square root is corrected in integers. The result is exact for all tiles below 2^31.
    """
    tile = tile.to(tl.int64)
    column = ((tl.sqrt(tile.to(tl.float32) * 8 + 1) - 1) * 0.5).to(tl.int64)
    column = tl.where(column * (column + 1) // 2 > tile, column - 1, column)
    column = tl.where((column + 1) * (column + 2) // 2 <= tile, column + 1, column)
    return (tile - column * (column + 1) // 2).to(tl.int32), column.to(tl.int32)


@triton.jit
def _place(tile, M, SIDE: tl.constexpr, FORM: tl.constexpr):
    """Return the first row and first column of a tile."""
    if FORM == "cross":
        across = tl.cdiv(M, SIDE)
        i, j = tile // across, tile % across
    else:
        i, j = triangle(tile)
    return i * SIDE, j * SIDE


@triton.jit
def _accumulate(total, a, b, at_a, at_b, a_plane, b_plane, TWO: tl.constexpr):
    """Add one block of columns, small products first. at_a and at_b are 32-bit offsets of its values."""
    left, right = tl.load(a + at_a), tl.load(b + at_b)
    if TWO:
        left_low, right_low = tl.load(a + a_plane + at_a), tl.load(b + b_plane + at_b)
        total = tl.dot(left_low, tl.trans(right), total)
        total = tl.dot(left, tl.trans(right_low), total)
    return tl.dot(left, tl.trans(right), total)


@triton.jit
def _dissimilarity(product, norm_i, norm_j, ANGLES: tl.constexpr, CLIP: tl.constexpr):
    """Turn products into dissimilarities. A norm may be NaN; the comparisons keep it."""
    if ANGLES:
        # 1 - product / norms, with 1 / norm = 1 - shortfall: only two additions round
        d = tl.fma(product, norm_i + tl.fma(-norm_i, norm_j, norm_j), 1 - product)
        d = tl.where(d > 2, 2.0, d)
    else:
        d = (norm_i - product) + (norm_j - product)
    if CLIP:
        d = tl.where(d < 0, 0.0, d)
    return d


@triton.jit
def _store(out, d, diagonal, i0, j0, r, c, S, M, FORM: tl.constexpr):
    """Store a tile's rows i0 + r and columns j0 + c, in any form of matrix. Offsets inside the tile have 32 bits.

    `diagonal` [rows, 1] holds the values for the diagonal: 0 or NaN.
    """
    d = d.to(out.dtype.element_ty)
    i, j = i0 + r, j0 + c
    inside = (i < S) & (j < M)
    first, last = i0.to(tl.int64), j0.to(tl.int64)
    if FORM == "condensed":
        out += first * (2 * S.to(tl.int64) - first - 1) // 2 - first - 1 + last
        tl.store(out + (r * (2 * (S - i0) - r - 1) // 2 - r + c), d, mask=inside & (i < j))
    elif FORM == "square":
        d = tl.where(i == j, diagonal.to(d.dtype), d)
        tl.store(out + (first * S + last) + (r * S + c), d, mask=inside & (i <= j))
    else:
        tl.store(out + (first * M + last) + (r * M + c), d, mask=inside)


@triton.jit
def _mirror(out, b, i0, j0, r0, rows, S, SIDE: tl.constexpr, HEIGHT: tl.constexpr):
    """Copy rows r0 .. r0 + rows of a square matrix's tile, which this program has stored, to their mirror columns.

    They are read back one strip at a time: the registers cannot hold both a tile and its mirror image.
    """
    tl.debug_barrier()
    out += b.to(tl.int64) * S * S
    first, last = i0.to(tl.int64), j0.to(tl.int64)
    c = tl.arange(0, SIDE)[None, :]
    for start in range(r0, r0 + rows, HEIGHT):
        r = start + tl.arange(0, HEIGHT)[:, None]
        upper = (i0 + r < j0 + c) & (j0 + c < S)
        d = tl.load(out + (first * S + last) + (r * S + c), mask=upper)
        tl.store(out + (last * S + first) + (c * S + r), d, mask=upper)


@triton.jit
def _finish(
    out, total, norms, other_norms, factors, other_factors, units, steps, b, i0, j0, r, c, B, S, M,
    CLIP: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Turn sums of products into dissimilarities and store them. b is the member of the batch."""
    dtype: tl.constexpr = total.dtype
    b = b.to(tl.int64)
    at, other = b * S + i0 + r, b * M + j0 + c
    has, has_other = i0 + r < S, j0 + c < M
    norm_i = tl.load(norms + at, mask=has, other=0).to(dtype)
    norm_j = tl.load(other_norms + other, mask=has_other, other=0).to(dtype)
    factor_i = tl.load(factors + at, mask=has, other=0).to(dtype)
    factor_j = tl.load(other_factors + other, mask=has_other, other=0).to(dtype)
    d = _dissimilarity(total * factor_i * factor_j, norm_i, norm_j, units is None, CLIP)
    if units is not None:
        d = d * tl.load(units + b).to(dtype) * tl.load(units + B + b).to(dtype)
    if steps is not None:  # whole_kernel needs the products of whole numbers as they are
        offset = tl.load(steps + b * FIELDS + 3)
        d = tl.where(offset == offset, total, d)
    size = S.to(tl.int64) * (S - 1) // 2 if FORM == "condensed" else S.to(tl.int64) * M
    _store(out + b * size, d, tl.where(norm_i == norm_i, 0.0, norm_i), i0, j0, r, c, S, M, FORM)


@jit
def tiles_kernel(
    out,  # [B, S, M], or [B, S (S - 1) / 2]; None: the sums go to slabs
    slabs,  # [B, tiles, splits, SIDE, SIDE], or None
    planes,  # [PLANES, B, S, columns]
    others,  # [PLANES, B, M, columns]
    norms,  # [B, S] float64
    other_norms,  # [B, M] float64
    factors,  # [B, S] float64
    other_factors,  # [B, M] float64
    units,  # [2, B] float64: see in_common_units; None for angles
    steps,  # [B, FIELDS] float64, for angles: see whole_numbers.py; or None
    B,
    S,
    M,
    tiles,
    splits,
    columns,
    blocks,  # of BK columns each, those in use
    per_split,  # blocks
    CLIP: tl.constexpr,
    FORM: tl.constexpr,  # "square", "condensed" or "cross"
    SIDE: tl.constexpr,
    BK: tl.constexpr,
    PROMOTED: tl.constexpr,  # blocks that are summed before they are added to the total
):
    """Compute one tile over some of its columns."""
    dtype: tl.constexpr = tl.float64 if planes.dtype.element_ty == tl.float64 else tl.float32
    TWO: tl.constexpr = planes.dtype.element_ty == tl.float16
    split = tl.program_id(0) % splits
    tile, b = tl.program_id(0) // splits % tiles, tl.program_id(0) // splits // tiles
    i0, j0 = _place(tile, M, SIDE, FORM)
    side, k = tl.arange(0, SIDE), tl.arange(0, BK)
    # Rows beyond the last repeat the last one. Their results are not stored.
    at_a = tl.minimum(side, S - 1 - i0)[:, None] * columns + k[None, :]
    at_b = tl.minimum(side, M - 1 - j0)[:, None] * columns + k[None, :]
    start = split * per_split
    stop = tl.minimum(start + per_split, blocks)
    first_column = start.to(tl.int64) * BK
    left = planes + (b.to(tl.int64) * S + i0) * columns + first_column
    right = others + (b.to(tl.int64) * M + j0) * columns + first_column
    a_plane, b_plane = B.to(tl.int64) * S * columns, B.to(tl.int64) * M * columns
    total = tl.zeros([SIDE, SIDE], dtype)
    if dtype == tl.float64:
        for _ in range(start, stop):
            total = tl.dot(tl.load(left + at_a), tl.trans(tl.load(right + at_b)), total, out_dtype=tl.float64)
            left += BK
            right += BK
    else:
        for first in range(start, stop, PROMOTED):
            part = tl.zeros([SIDE, SIDE], dtype)
            for _ in range(first, tl.minimum(first + PROMOTED, stop)):
                part = _accumulate(part, left, right, at_a, at_b, a_plane, b_plane, TWO)
                left += BK
                right += BK
            total += part
    r, c = side[:, None], side[None, :]
    if slabs is None:
        # In halves: the offsets of a whole tile would not fit into the registers together with the tile.
        HALF: tl.constexpr = SIDE // 2
        halves = tl.split(tl.permute(tl.reshape(total, [2, HALF, SIDE]), [1, 2, 0]))
        for half in tl.static_range(2):
            r = half * HALF + tl.arange(0, HALF)[:, None]
            _finish(
                out, halves[half], norms, other_norms, factors, other_factors, units, steps, b, i0, j0, r, c, B, S, M,
                CLIP, FORM,
            )  # fmt: skip
        if FORM == "square":
            _mirror(out, b, i0, j0, 0, SIDE, S, SIDE, 16)
    else:
        tl.store(slabs + tl.program_id(0).to(tl.int64) * SIDE * SIDE + r * SIDE + c, total)


@jit
def slabs_kernel(
    out,  # [B, S, M], or [B, S (S - 1) / 2]
    slabs,  # [B, tiles, splits, SIDE, SIDE]
    norms,  # [B, S] float64
    other_norms,  # [B, M] float64
    factors,  # [B, S] float64
    other_factors,  # [B, M] float64
    units,  # [2, B] float64, or None
    steps,  # [B, FIELDS] float64, or None
    B,
    S,
    M,
    tiles,
    splits,
    CLIP: tl.constexpr,
    FORM: tl.constexpr,
    SIDE: tl.constexpr,
    BR: tl.constexpr,
):
    """Sum BR rows of one tile over the splits, in float64 and in their order."""
    STRIPS: tl.constexpr = SIDE // BR
    strip = tl.program_id(0) % STRIPS
    tile, b = tl.program_id(0) // STRIPS % tiles, tl.program_id(0) // STRIPS // tiles
    i0, j0 = _place(tile, M, SIDE, FORM)
    r, c = strip * BR + tl.arange(0, BR)[:, None], tl.arange(0, SIDE)[None, :]
    at = slabs + (tl.program_id(0) // STRIPS).to(tl.int64) * splits * (SIDE * SIDE) + r * SIDE + c
    total = tl.zeros([BR, SIDE], tl.float64)
    for _ in range(splits):
        total += tl.load(at)
        at += SIDE * SIDE
    _finish(
        out, total, norms, other_norms, factors, other_factors, units, steps, b, i0, j0, r, c, B, S, M, CLIP, FORM
    )  # fmt: skip
    if FORM == "square":
        _mirror(out, b, i0, j0, strip * BR, BR, S, SIDE, BR)


@triton.jit
def _pairs_of(out, b, i, j, S, M, FORM: tl.constexpr):
    """Return the addresses of the dissimilarities of rows i and j, once per pair if symmetric, and which exist."""
    inside = (i < S) & (j < M)
    wide = S.to(tl.int64)
    if FORM == "condensed":
        inside = inside & (i < j)
        at = out + b * (wide * (wide - 1) // 2) + i.to(tl.int64) * (2 * wide - i - 1) // 2 - i - 1 + j
    else:
        inside = inside & (i < j) if FORM == "square" else inside
        at = out + (b * wide + i) * M + j
    return at, inside


@triton.jit
def _two_product(a, b):
    product = a * b
    return product, tl.fma(a, b, -product)


@triton.jit
def _two_sum(a, b):
    total = a + b
    t = total - a
    return total, (a - (total - t)) + (b - t)


@triton.jit
def _whole_product(gram, sums, others, N, offset, CENTRED: tl.constexpr):
    """Return K G_ij - s_i s_j, or K o^2 + o (s_i + s_j) + G_ij, in double-double arithmetic; see the reference."""
    if CENTRED:
        total, rest = gram * N - sums * others, gram * 0
    else:
        square, square_rest = _two_product(offset, offset)
        first, first_rest = _two_product(square, N)
        second, second_rest = _two_product(offset, sums + others)
        total, rest = _two_sum(first, second)
        total, more = _two_sum(total, gram)
        rest = rest + more + ((first_rest + N * square_rest) + second_rest)
        total, rest = _two_sum(total, rest)
    return total, rest


@triton.jit
def _inverse_norm(squares, sums, N, offset, CENTRED: tl.constexpr):
    """Return 1 / the norm of whole rows, in two parts. It is NaN for a row of zeros."""
    high, low = _whole_product(squares, sums, sums, N, offset, CENTRED)
    high = tl.where(high > 0, high, float("nan"))
    y = 1 / tl.sqrt(high)
    p, p_rest = _two_product(y, y)
    q, q_rest = _two_product(high, p)
    return y, y * (0.5 * (((1 - q) - q_rest) - (high * p_rest + low * p)))


@jit
def whole_kernel(
    out,  # [B, S, M], or [B, S (S - 1) / 2]: holds products of whole rows, gets dissimilarities
    norms,  # [B, S] float64: squares of the rows
    other_norms,  # [B, M] float64
    factors,  # [B, S] float64: sums of the rows
    other_factors,  # [B, M] float64
    steps,  # [B, FIELDS] float64
    S,
    M,
    N,
    tiles,
    CENTRED: tl.constexpr,
    FORM: tl.constexpr,
    SIDE: tl.constexpr,
):
    """Compute a tile in double-double arithmetic where the rows are whole numbers. The result is rounded once."""
    tile, b = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    offset = tl.load(steps + b * FIELDS + 3)
    if offset == offset:
        i0, j0 = _place(tile, M, SIDE, FORM)
        i, j = i0 + tl.arange(0, SIDE)[:, None], j0 + tl.arange(0, SIDE)[None, :]
        at, inside = _pairs_of(out, b, i, j, S, M, FORM)
        has, has_other = i < S, j < M
        columns = tl.full([], 0.0, tl.float64) + N
        sums = tl.load(factors + b * S + i, mask=has, other=0)
        others = tl.load(other_factors + b * M + j, mask=has_other, other=0)
        norm, norm_rest = _inverse_norm(tl.load(norms + b * S + i, mask=has, other=1), sums, columns, offset, CENTRED)
        other, other_rest = _inverse_norm(
            tl.load(other_norms + b * M + j, mask=has_other, other=1), others, columns, offset, CENTRED
        )
        gram = tl.load(at, mask=inside, other=0).to(tl.float64)
        product, product_rest = _whole_product(gram, sums, others, columns, offset, CENTRED)
        w, w_rest = _two_product(norm, other)
        w_rest += norm * other_rest + norm_rest * other
        r, r_rest = _two_product(product, w)
        r_rest += product * w_rest + product_rest * w
        difference = 1 - r
        t = difference - 1
        d = difference + (((1 - (difference - t)) + (-r - t)) - r_rest)
        d = tl.where(d < _LEAST, 0.0, tl.where(d > 2, 2.0, d)).to(out.dtype.element_ty)
        tl.store(at, d, mask=inside)
        if FORM == "square":
            tl.store(out + (b * S + j) * M + i, d, mask=inside)


@jit
def near_kernel(
    out,  # [B, S, M], or [B, S (S - 1) / 2]
    planes,  # [1, B, S, columns] float64
    others,  # [1, B, M, columns]
    steps,  # [B, FIELDS] float64: whole numbers are skipped
    S,
    M,
    columns,
    tiles,
    near,
    FORM: tl.constexpr,
    SIDE: tl.constexpr,
    BK: tl.constexpr,
):
    """Recompute pairs of nearly equal unit rows as half their squared difference, because 1 - product cancels."""
    tile, b = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    i0, j0 = _place(tile, M, SIDE, FORM)
    r, c = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    i, j = i0 + r, j0 + c
    at, inside = _pairs_of(out, b, i, j, S, M, FORM)
    wide = S.to(tl.int64)
    offset = tl.load(steps + b * FIELDS + 3)
    near = tl.where(offset == offset, 0.0, near)
    close = inside & (tl.load(at, mask=inside, other=1) < near)
    if tl.max(tl.max(close.to(tl.int32), 1), 0) > 0:
        k = tl.arange(0, BK)[None, :]
        rows, other_rows = tl.minimum(i0 + tl.arange(0, SIDE), S - 1), tl.minimum(j0 + tl.arange(0, SIDE), M - 1)
        a = planes + (b * S + rows)[:, None] * columns + k
        b_at = others + (b * M + other_rows)[:, None] * columns + k
        total = tl.zeros([SIDE, SIDE, BK], tl.float64)
        for _ in range(0, columns, BK):
            difference = tl.load(a)[:, None, :] - tl.load(b_at)[None, :, :]
            total = tl.fma(difference, difference, total)
            a += BK
            b_at += BK
        d = (tl.sum(total, 2) * 0.5).to(out.dtype.element_ty)
        tl.store(at, d, mask=close)
        if FORM == "square":
            tl.store(out + (b * wide + j) * M + i, d, mask=close)


# Launchers -------------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """How much work one program of the product takes."""

    side: int  # of a tile
    block: int  # columns at a time
    warps: int
    stages: int

    def options(self) -> dict[str, Any]:
        """Return the kernel's arguments."""
        promoted = PROMOTED // self.block
        shape = {"SIDE": self.side, "BK": self.block, "PROMOTED": promoted}
        return {**OPTIONS, **shape, "num_warps": self.warps, "num_stages": self.stages}


def tile_shape(rows: int, dtype: torch.dtype, warpgroups: bool) -> Shape:
    """Return the largest tiles that the registers hold, or small ones where large ones would stay half empty."""
    if dtype == torch.float64:
        return Shape(64, 16, 4, 3)
    if not warpgroups:
        return Shape(64, 32, 4, 2)
    return Shape(128, 64, 8, 3) if rows > 192 else Shape(64, 64, 4, 3)


def split_columns(tiles: int, blocks: int, promoted: int) -> tuple[int, int]:
    """Return how many programs share a tile, and the blocks of columns of each: a multiple of ``promoted``."""
    chains = triton.cdiv(blocks, promoted)
    wanted = min(max(PROGRAMS // tiles, 1), chains, MOST_SPLITS)
    per_split = triton.cdiv(chains, wanted) * promoted
    return triton.cdiv(blocks, per_split), per_split


def _count(rows: int, others: int, side: int, form: str) -> int:
    """Return the number of tiles of one matrix."""
    down, across = triton.cdiv(rows, side), triton.cdiv(others, side)
    return down * across if form == "cross" else down * (down + 1) // 2


def _launch(
    out: Tensor, x: Rows, y: Rows, units: Tensor | None, steps: Tensor | None, neurons: int, clip: bool, form: str
) -> None:
    """Write the dissimilarities of rows x and y to ``out``. For "square" and "condensed", x and y may be the same."""
    _, batch, rows, columns = x.planes.shape
    others = y.planes.shape[2]
    shape = tile_shape(max(rows, others), x.planes.dtype, has_warpgroups())
    tiles, blocks = _count(rows, others, shape.side, form), triton.cdiv(neurons, shape.block)
    splits, per_split = split_columns(batch * tiles, blocks, PROMOTED // shape.block)
    ends = (x.norms, y.norms, x.factors, y.factors, units, steps)
    sizes = (batch, rows, others, tiles, splits)
    grid = (batch * tiles * splits,)
    what = {"CLIP": clip, "FORM": form}
    if splits == 1:
        tiles_kernel[grid](
            out, None, x.planes, y.planes, *ends, *sizes, columns, blocks, per_split, **what, **shape.options()
        )
        return
    dtype = torch.float64 if x.planes.dtype == torch.float64 else torch.float32
    slabs = out.new_empty((*grid, shape.side, shape.side), dtype=dtype)
    # Programs that only sum do the same for all methods, and for both forms of a symmetric matrix.
    same = {"CLIP": True, "FORM": "cross" if form == "cross" else "square"}
    tiles_kernel[grid](
        None, slabs, x.planes, y.planes, *(None,) * 6, *sizes, columns, blocks, per_split, **same, **shape.options()
    )
    height = 16
    slabs_kernel[(batch * tiles * (shape.side // height),)](
        out, slabs, *ends, *sizes, **what, SIDE=shape.side, BR=height, num_warps=4, **OPTIONS
    )


def _finish_whole(out: Tensor, x: Rows, y: Rows, steps: Tensor, neurons: int, centred: bool, form: str) -> None:
    """Turn the products in ``out`` into dissimilarities where the rows are whole numbers."""
    _, batch, rows, _ = x.planes.shape
    others, side = y.planes.shape[2], 32
    tiles = _count(rows, others, side, form)
    ends = (x.norms, y.norms, x.factors, y.factors, steps)
    whole_kernel[(batch * tiles,)](
        out, *ends, rows, others, neurons, tiles, CENTRED=centred, FORM=form, SIDE=side, num_warps=4, **OPTIONS
    )


def _refine(out: Tensor, x: Rows, y: Rows, steps: Tensor, form: str) -> None:
    """Recompute the pairs of ``out`` that hardly differ, from their difference."""
    _, batch, rows, columns = x.planes.shape
    others, side = y.planes.shape[2], 8
    tiles = _count(rows, others, side, form)
    near_kernel[(batch * tiles,)](
        out,
        x.planes,
        y.planes,
        steps,
        rows,
        others,
        columns,
        tiles,
        NEAR,
        FORM=form,
        SIDE=side,
        BK=32,
        num_warps=4,
        **OPTIONS,
    )


def _steps(x: Tensor, y: Tensor | None, accuracy: str, paired: bool) -> tuple[Tensor, Tensor]:
    """Find the whole-number steps of x and of y, together, or separately if their rows are paired.

    The output holds the products for a while. So the largest product is set by the dtype of the output.
    """
    compute = output_dtype(x, y)
    most = 256 if accuracy == "bfloat16" else whole_reference.most_exact(compute)
    if not paired:
        found = whole_numbers.find([x] if y is None else [x, y], compute, most)
        return found, found
    assert y is not None
    one, other = (whole_numbers.find([t], compute, most, from_zero=True) for t in (x, y))
    both = one[:, 3:] + other[:, 3:]  # NaN unless both are found
    return torch.cat((one[:, :3], both), -1), torch.cat((other[:, :3], both), -1)


def _operands(
    x: Tensor, y: Tensor | None, method: str, accuracy: str, paired: bool
) -> tuple[Rows, Rows, Tensor | None, Tensor]:
    """Return the rows of x and of y (or of x twice), the units of distances, and the whole-number steps."""
    dtype = plane_dtype(compute_dtype(x, y, accuracy), accuracy)
    steps, other_steps = _steps(x, y, accuracy, paired)
    centre = mean_row(x) if method == "euclidean" and not paired else None
    rows = standardise(x, method, dtype, centre, steps=steps)
    others = rows if y is None else standardise(y, method, dtype, centre, steps=other_steps)
    if paired:
        multiply_pairs(rows, others)
    if method != "euclidean":
        return rows, others, None, steps
    return *in_common_units(rows, others, x.shape[-1], paired), steps


def _write(x: Tensor, y: Tensor | None, method: str, accuracy: str, form: str, out: Tensor) -> None:
    if out.numel() == 0:
        return
    with torch.cuda.device_of(out):
        paired = y is not None and form != "cross"
        x, y, neurons = x.detach(), None if y is None else y.detach(), x.shape[-1]
        rows, others, units, steps = _operands(x, y, method, accuracy, paired)
        angles = method != "euclidean"
        _launch(out, rows, others, units, steps if angles else None, neurons, not paired, form)
        if angles:
            _finish_whole(out, rows, others, steps, neurons, method == "correlation", form)
        if angles and accuracy == "high":
            _refine(out, rows, others, steps, form)


def rdm_out(
    x: Tensor,  # [B, S, K]
    y: Tensor | None,  # [B, S, K]
    method: str,
    condensed: bool,
    accuracy: str,
    out: Tensor,  # [B, S, S] or [B, S (S - 1) / 2]
) -> None:
    """The op ``v1fast::rdm_out``."""
    _write(x, y, method, accuracy, "condensed" if condensed else "square", out)


def rdm(
    x: Tensor,  # [B, S, K]
    y: Tensor | None,  # [B, S, K]
    method: str,
    condensed: bool,
    accuracy: str,
) -> Tensor:  # [B, S, S] or [B, S (S - 1) / 2]
    """The op ``v1fast::rdm``."""
    out = contract.new_output(x, y, method, condensed, accuracy)
    _write(x, y, method, accuracy, "condensed" if condensed else "square", out)
    return out


def cross_rdm(x: Tensor, y: Tensor, method: str, accuracy: str) -> Tensor:  # [B, S, K], [B, T, K] -> [B, S, T]
    """The op ``v1fast::cross_rdm``."""
    out = contract.new_cross(x, y, method, accuracy)
    _write(x, y, method, accuracy, "cross", out)
    return out
