# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The rows that dissimilarities are computed from: standardised, rounded to the dtype of the tensor cores, and padded
with zeros to whole blocks of columns.

A program reads its row twice, the second time from the cache: first for float64 statistics, then to write it. A row
scaled to values of order 1 keeps 22 bits in two float16 planes; the second plane holds the rounding error of the first.
The factor that undoes the scale is stored beside them, and so is the product of the rounded row with itself. The norms
come from the rounded rows. So the rounding errors of a row's large values cancel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import whole_numbers
from ._launch import OPTIONS, jit
from .whole_numbers import round_to_whole

PADDING = 128
"""Columns of a plane are a multiple of this: 16-byte reads and whole blocks of columns, without masks."""

BLOCK = 1024  # columns that a program standardises per step
_EXPONENT_BITS = tl.constexpr(0x7FF)
FIELDS = tl.constexpr(whole_numbers.FIELDS)
_LARGEST_EXPONENT = tl.constexpr(1000)  # of a scale, as in the reference


# Scales ----------------------------------------------------------------------------------------------------------


@triton.jit
def _power_of_two(exponent):
    """Return 2^exponent, limited to 2^-1000 .. 2^1000."""
    exponent = tl.minimum(tl.maximum(exponent, -_LARGEST_EXPONENT), _LARGEST_EXPONENT)
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _exponent(value):
    """Return the exponent of a positive float64: value / 2^exponent is in [1/2, 1). Subnormals get the smallest one."""
    return ((value.to(tl.int64, bitcast=True) >> 52) & _EXPONENT_BITS) - 1022


# Rows ------------------------------------------------------------------------------------------------------------


@triton.jit
def _values(x, centre, k, N, stride_column, before, centre_scale, fill):
    """Load a block of a row in float64, times `before`, minus the scaled centre. `fill` goes beyond the end."""
    has = k < N
    value = tl.load(x + k.to(tl.int64) * stride_column, mask=has, other=fill).to(tl.float64) * before
    if centre is not None:
        value -= tl.load(centre + k, mask=has, other=0) * centre_scale
    return value


@triton.jit
def _scale_of_range(x, N, stride_column, BLOCK: tl.constexpr):
    """Return a power of two that scales the largest magnitude of a row into [1/2, 1)."""
    largest = tl.zeros([BLOCK], tl.float64)
    for k0 in range(0, N, BLOCK):
        value = tl.abs(_values(x, None, k0 + tl.arange(0, BLOCK), N, stride_column, 1.0, 1.0, 0.0))
        largest = tl.where(value > largest, value, largest)
    return _power_of_two(-_exponent(tl.max(largest, 0)))


@triton.jit
def _statistics(x, centre, N, stride_column, before, shift, fill, BLOCK: tl.constexpr):
    """Return sum and sum of squares of a row minus `shift`, its range, and the count of non-finite values."""
    total = tl.zeros([BLOCK], tl.float64)
    squares = total
    low, high = tl.full([BLOCK], float("inf"), tl.float64), tl.full([BLOCK], float("-inf"), tl.float64)
    spoilt = tl.zeros([BLOCK], tl.int32)
    for k0 in range(0, N, BLOCK):
        value = _values(x, centre, k0 + tl.arange(0, BLOCK), N, stride_column, before, before, fill)
        spoilt |= tl.where(value - value == 0, 0, 1)
        low, high = tl.minimum(low, value), tl.maximum(high, value)
        value -= shift
        total += value
        squares = tl.fma(value, value, squares)
    return tl.sum(total, 0), tl.sum(squares, 0), tl.min(low, 0), tl.max(high, 0), tl.max(spoilt, 0)


@triton.jit
def _with_itself(first, second):
    """Return squares of the sum of two planes as the product computes them, without the smallest term."""
    high, low = first.to(tl.float64), second.to(tl.float64)
    return tl.fma(high, high, 2 * (high * low))


@jit
def rows_kernel(
    planes,  # [PLANES, B, S, columns]; None: only check whether rows are valid
    norms,  # [B, S] float64: see Rows
    factors,  # [B, S] float64
    inverses,  # [B, S] float64: 1 / norm, 0 where invalid; or None
    x,  # [B, S, N] by the strides
    centre,  # [B, N] float64, or None
    steps,  # [B, FIELDS] float64: for rows of whole numbers, see whole_numbers.py; or None
    B,
    S,
    N,
    columns,
    stride_batch,
    stride_row,
    stride_column,
    lift,  # power of two: norm of the rows, for angles
    unlift,  # 1 / lift
    METHOD: tl.constexpr,
    SCALED: tl.constexpr,  # euclidean: rows are scaled to values of the order of 1
    BLOCK: tl.constexpr,
):
    """One row."""
    ANGLES: tl.constexpr = METHOD != "euclidean"
    CENTRED: tl.constexpr = METHOD == "correlation"
    b, s = tl.program_id(0) // S, tl.program_id(0) % S
    row = b.to(tl.int64) * S + s
    x += b.to(tl.int64) * stride_batch + s.to(tl.int64) * stride_row
    if centre is not None:
        centre += b.to(tl.int64) * N
    before = tl.full([], 1.0, tl.float64)
    if x.dtype.element_ty == tl.float64 and SCALED:  # squares could overflow or underflow
        before = _scale_of_range(x, N, stride_column, BLOCK)
    fill = tl.load(x) if CENTRED else tl.full([], 0.0, x.dtype.element_ty)
    # With any one of the values subtracted, the sum of squares is close to that about the mean.
    shift = fill.to(tl.float64) * before
    total, squares, low, high, spoilt = _statistics(x, centre, N, stride_column, before, shift, fill, BLOCK)
    valid = spoilt == 0
    mean = tl.full([], 0.0, tl.float64)
    scale = tl.full([], 1.0, tl.float64)
    if ANGLES:
        valid = valid & (low != high if CENTRED else (low != 0) | (high != 0))
        if CENTRED:
            mean = shift + total / N
            squares -= total * (total / N)
        inverse = tl.where(valid, 1 / tl.sqrt(tl.where(valid, squares, 1.0)), 0.0)
        scale = inverse * lift
        if inverses is not None:
            tl.store(inverses + row, inverse * before)
    elif SCALED:
        scale = _power_of_two(-_exponent(tl.sqrt(tl.where(valid, squares, 1.0) / N)))
    whole = False
    centre_scale = before
    if steps is not None:
        steps += b * FIELDS
        offset = tl.load(steps + 3)
        whole = offset == offset
        mean, scale = tl.where(whole, tl.load(steps), mean), tl.where(whole, tl.load(steps + 1), scale)
        before, centre_scale = tl.where(whole, 1.0, before), tl.where(whole, 0.0, before)
    scale = tl.where(valid, scale, 0.0)
    nan = float("nan")
    if planes is None:
        tl.store(norms + row, tl.where(valid, 0.0, nan))
    else:
        plane = B.to(tl.int64) * S * columns
        own = tl.zeros([BLOCK], tl.float64)
        sums = own
        for k0 in range(0, columns, BLOCK):
            k = k0 + tl.arange(0, BLOCK)
            value = _values(x, centre, k, N, stride_column, before, centre_scale, fill)
            value = (value - mean) * scale
            value = tl.where(valid & (k < N), value, 0.0)
            if steps is not None:
                value = tl.where(whole, round_to_whole(value), value)
                sums += value
            at = planes + row * columns + k
            if planes.dtype.element_ty == tl.float16:
                single = value.to(tl.float32)
                first = single.to(tl.float16)
                second = (single - first.to(tl.float32)).to(tl.float16)
                tl.store(at + plane, second, mask=k < columns)
                own += _with_itself(first, second)
            else:
                # no instruction rounds from float64 to bfloat16
                first = (value.to(tl.float32) if planes.dtype.element_ty == tl.bfloat16 else value).to(
                    planes.dtype.element_ty
                )
                wide = first.to(tl.float64)
                own = tl.fma(wide, wide, own)
            tl.store(at, first, mask=k < columns)
        product = tl.sum(own, 0)
        if ANGLES:
            factor = unlift.to(tl.float64)
            norm = 1 - 1 / tl.sqrt(tl.where(valid, product * (factor * factor), 1.0))
            if steps is not None:
                total = tl.sum(sums, 0)
                factor, norm = tl.where(whole, total, factor), tl.where(whole, product, norm)
                if CENTRED:  # constant except for rounding
                    valid = valid & ((whole & (product * N == total * total)) == 0)
        else:
            factor = tl.where(valid, 1 / (scale * before), 0.0)
            if steps is not None:
                factor = tl.where(valid & whole, tl.load(steps + 2), factor)
            norm = product
        tl.store(norms + row, tl.where(valid, norm, nan))
        tl.store(factors + row, factor)


@jit
def centre_kernel(
    centre,  # [B, N] float64
    norms,  # [B, S] float64: NaN where a row is not valid
    x,  # [B, S, N] by the strides
    S,
    N,
    stride_batch,
    stride_row,
    stride_column,
    BS: tl.constexpr,
    BN: tl.constexpr,
):
    """Compute the mean over the valid rows of a block of columns."""
    blocks = tl.cdiv(N, BN)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * BN
    k = first + tl.arange(0, BN)[None, :]
    x += b * stride_batch
    total = tl.zeros([BS, BN], tl.float64)
    count = tl.zeros([BS, 1], tl.int32)
    for s0 in range(0, S, BS):
        s = s0 + tl.arange(0, BS)[:, None]
        norm = tl.load(norms + b * S + s, mask=s < S, other=float("nan"))
        valid = norm == norm
        count += valid.to(tl.int32)
        at = x + s.to(tl.int64) * stride_row + k.to(tl.int64) * stride_column
        total += tl.load(at, mask=valid & (k < N), other=0).to(tl.float64)
    mean = tl.sum(total, 0) / tl.maximum(tl.sum(tl.sum(count, 1), 0), 1)
    column = first + tl.arange(0, BN)
    tl.store(centre + b * N + column, mean, mask=column < N)


@jit
def pairs_kernel(
    norms,  # [B * S] float64: of x, replaced by x_i . y_i
    other_norms,  # [B * S] float64: of y
    planes,  # [PLANES, B * S, columns]
    others,  # [PLANES, B * S, columns]
    rows,  # B * S
    columns,
    BLOCK: tl.constexpr,
):
    """Compute the product of one row of x with its row of y."""
    row = tl.program_id(0).to(tl.int64)
    plane = rows.to(tl.int64) * columns
    total = tl.zeros([BLOCK], tl.float64)
    for k0 in range(0, columns, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        at = row * columns + k
        a = tl.load(planes + at, mask=k < columns, other=0).to(tl.float64)
        b = tl.load(others + at, mask=k < columns, other=0).to(tl.float64)
        total = tl.fma(a, b, total)
        if planes.dtype.element_ty == tl.float16:
            low = tl.load(planes + plane + at, mask=k < columns, other=0).to(tl.float64)
            other_low = tl.load(others + plane + at, mask=k < columns, other=0).to(tl.float64)
            total = tl.fma(low, b, tl.fma(a, other_low, total))
    norm, other = tl.load(norms + row), tl.load(other_norms + row)
    tl.store(norms + row, tl.where((norm == norm) & (other == other), tl.sum(total, 0), float("nan")))


# Launchers -------------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """Rows in the form that the product reads."""

    planes: Tensor  # [1 or 2, B, S, columns]
    norms: Tensor  # [B, S]: 1 - 1 / norm of the rounded unit rows; euclidean: squares of the planes; NaN: not valid
    factors: Tensor  # [B, S]: what undoes the scale of the planes
    # Angles between rows of whole numbers: squares, and sums, of the planes.
    inverses: Tensor | None  # [B, S]: 1 / norm of the given rows, for the backward pass of angles

    @property
    def columns(self) -> int:
        """The number of columns, padding included."""
        return self.planes.shape[-1]


def plane_dtype(compute: torch.dtype, accuracy: str) -> torch.dtype:
    """Return the dtype of the product's operands. float16 stands for two planes."""
    if compute == torch.float64:
        return compute
    return torch.bfloat16 if accuracy == "bfloat16" else torch.float16


def _launch_rows(
    x: Tensor,
    method: str,
    centre: Tensor | None,
    steps: Tensor | None,
    out: Rows,
    planes: Tensor | None,
    lift: float,
    scaled: bool,
) -> None:
    batch, rows, neurons = x.shape
    rows_kernel[(batch * rows,)](
        planes,
        out.norms,
        out.factors,
        out.inverses,
        x,
        centre,
        steps,
        batch,
        rows,
        neurons,
        out.columns,
        *x.stride(),
        lift,
        1 / lift,
        METHOD=method,
        SCALED=scaled,
        BLOCK=BLOCK,
        num_warps=4,
        **OPTIONS,
    )


def _buffers(x: Tensor, dtype: torch.dtype, inverses: bool) -> Rows:
    batch, rows, neurons = x.shape
    columns = triton.cdiv(neurons, PADDING) * PADDING
    planes = x.new_empty((2 if dtype == torch.float16 else 1, batch, rows, columns), dtype=dtype)
    norms, factors = (x.new_empty((batch, rows), dtype=torch.float64) for _ in range(2))
    return Rows(planes, norms, factors, torch.empty_like(norms) if inverses else None)


def mean_row(x: Tensor) -> Tensor:  # [B, S, N] -> [B, N] float64
    """Return the mean of the valid rows. Subtracting it from all rows changes no distance."""
    batch, rows, neurons = x.shape
    out = _buffers(x[..., :0], torch.float64, inverses=False)
    _launch_rows(x, "euclidean", None, None, out, None, 1.0, scaled=False)
    centre = x.new_empty((batch, neurons), dtype=torch.float64)
    centre_kernel[(triton.cdiv(neurons, 32) * batch,)](
        centre, out.norms, x, rows, neurons, *x.stride(), BS=32, BN=32, num_warps=4, **OPTIONS
    )
    return centre


def standardise(
    x: Tensor,  # [B, S, N] of any strides
    method: str,
    dtype: torch.dtype,
    centre: Tensor | None = None,  # [B, N] float64
    backward: bool = False,
    steps: Tensor | None = None,  # [B, FIELDS] float64: for rows that may be whole numbers
) -> Rows:
    """Return the planes of dtype, the factors that undo their scale, and the rows' norms.

    For the backward pass, return unit rows (for distances, rows minus the centre), unrounded, and 1 / norm.
    """
    out = _buffers(x, dtype, inverses=backward and method != "euclidean")
    # Values of the order of 1, far from both ends of float16's range.
    lift = 1.0 if backward or dtype == torch.float64 else 2.0 ** (x.shape[-1].bit_length() // 2)
    _launch_rows(x, method, centre, steps, out, out.planes, lift, scaled=method != "euclidean" or not backward)
    return out


def multiply_pairs(x: Rows, y: Rows) -> None:
    """Replace the norms of x by the products of the rows of x with those of y. NaN where either is not valid."""
    pairs_kernel[(x.norms.numel(),)](
        x.norms,
        y.norms,
        x.planes,
        y.planes,
        x.norms.numel(),
        x.columns,
        BLOCK=BLOCK,
        num_warps=4,
        **OPTIONS,
    )


def in_common_units(x: Rows, y: Rows, neurons: int, paired: bool) -> tuple[Rows, Rows, Tensor]:
    """For distances: return factors and norms relative to the largest row's, and units [2, B] of the dissimilarities.

    So they fit float32, whatever the scale of the rows. Every product of paired rows has one row of x and one of y. So
    x and y each have their own unit.
    """
    unit, other_unit = x.factors.amax(-1, keepdim=True), y.factors.amax(-1, keepdim=True)
    if not paired:
        unit = other_unit = torch.maximum(unit, other_unit)
    factors, other_factors = x.factors / unit, y.factors / other_unit
    norms = x.norms * factors * (other_factors if paired else factors)
    other_norms = norms if paired else y.norms * other_factors * other_factors
    units = torch.stack((unit.squeeze(-1), other_unit.squeeze(-1) / neurons))
    return x._replace(norms=norms, factors=factors), y._replace(norms=other_norms, factors=other_factors), units
