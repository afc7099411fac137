# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Responses with few distinct values as whole numbers, found without host synchronisation.

See v1fast/reference/whole_numbers.py. Its rule 1 asks for the fewest places. Here they are searched for on a sample of
the values and verified on all. If that fails, the search is repeated once with the worst value added to the sample. A
matrix that still has values off their places counts as one with many distinct values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from v1fast.reference import whole_numbers as reference

from ._launch import OPTIONS, jit

BLOCK = 1024  # columns that a program reads per step
FIELDS = 4  # per member: origin, 1 / step, step, and origin / step, which is NaN where nothing was found
_ROUNDING = tl.constexpr(6755399441055744.0)


@triton.jit
def round_to_whole(value):
    """Round a float64 below 2^51 to a whole number."""
    return (value + _ROUNDING) - _ROUNDING


@jit
def range_kernel(
    ranges,  # [2, B * S] float64: least and greatest finite value of a row
    x,  # [B, S, N] by the strides
    S,
    N,
    rows,  # B * S
    stride_batch,
    stride_row,
    stride_column,
    BLOCK: tl.constexpr,
):
    """Find the range of one row."""
    row = tl.program_id(0)
    x += (row // S).to(tl.int64) * stride_batch + (row % S).to(tl.int64) * stride_row
    low, high = tl.full([BLOCK], float("inf"), tl.float64), tl.full([BLOCK], float("-inf"), tl.float64)
    for k0 in range(0, N, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        value = tl.load(x + k.to(tl.int64) * stride_column, mask=k < N, other=float("nan")).to(tl.float64)
        finite = value - value == 0
        low = tl.where(finite & (value < low), value, low)
        high = tl.where(finite & (value > high), value, high)
    tl.store(ranges + row, tl.min(low, 0))
    tl.store(ranges + rows + row, tl.max(high, 0))


@jit
def places_kernel(
    found,  # [4, B * S] float64: largest distance from a place, its value, whether units are whole, their lowest bit
    x,  # [B, S, N] by the strides
    steps,  # [3, B] float64: origin, step, unit
    B,
    S,
    N,
    rows,  # B * S
    stride_batch,
    stride_row,
    stride_column,
    BLOCK: tl.constexpr,
):
    """Check one row: how far its values are from the places of rule 1, and of rule 2."""
    row = tl.program_id(0)
    b = row // S
    x += b.to(tl.int64) * stride_batch + (row % S).to(tl.int64) * stride_row
    origin, step, unit = tl.load(steps + b), tl.load(steps + B + b), tl.load(steps + 2 * B + b)
    off, worst = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    exact, bits = tl.full([BLOCK], 1.0, tl.float64), tl.zeros([BLOCK], tl.int64)
    for k0 in range(0, N, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        value = tl.load(x + k.to(tl.int64) * stride_column, mask=k < N, other=float("nan")).to(tl.float64)
        finite = value - value == 0
        z = tl.where(finite, (value - origin) / step, 0.0)
        away = tl.abs(z - round_to_whole(z)) * step
        worst = tl.where(away > off, value, worst)
        off = tl.maximum(off, away)
        z = tl.where(finite, (value - origin) / unit, 0.0)
        whole = round_to_whole(z)
        exact = tl.where(z == whole, exact, 0.0)
        bits |= whole.to(tl.int64)
    most = tl.max(off, 0)
    any_bits = tl.reduce(bits, 0, _either)
    tl.store(found + row, most)
    tl.store(found + rows + row, tl.max(tl.where(off == most, worst, float("-inf")), 0))
    tl.store(found + 2 * rows + row, tl.min(exact, 0))
    tl.store(found + 3 * rows + row, (any_bits & -any_bits).to(tl.float64))


@triton.jit
def _either(a, b):
    return a | b


# Launchers -------------------------------------------------------------------------------------------------------


def _ranges(x: Tensor) -> Tensor:  # [2, B]
    batch, rows, neurons = x.shape
    found = x.new_empty((2, batch * rows), dtype=torch.float64)
    range_kernel[(batch * rows,)](
        found, x, rows, neurons, batch * rows, *x.stride(), BLOCK=BLOCK, num_warps=4, **OPTIONS
    )
    found = found.view(2, batch, rows)
    return torch.stack((found[0].amin(-1), found[1].amax(-1)))


def _places(x: Tensor, steps: Tensor) -> Tensor:  # [4, B, S]
    batch, rows, neurons = x.shape
    found = x.new_empty((4, batch * rows), dtype=torch.float64)
    places_kernel[(batch * rows,)](
        found, x, steps, batch, rows, neurons, batch * rows, *x.stride(), BLOCK=BLOCK, num_warps=4, **OPTIONS
    )
    return found.view(4, batch, rows)


def _fewest(seen: Tensor, low: Tensor, high: Tensor, tolerance: Tensor) -> Tensor:
    """[B]: the smallest n for which the values [B, L] are close to their places, or NaN."""
    n = torch.arange(1, reference.MOST_ROUNDED + 1, device=seen.device, dtype=torch.float64)
    step = ((high - low)[:, None] / n)[..., None]  # [B, n, 1]
    z = (seen - low[:, None])[:, None] / step
    near = ((z - z.round()).abs() * step <= tolerance[:, None, None]).all(-1)
    near &= step.squeeze(-1) >= reference.CLEARANCE * tolerance[:, None]
    first = near.int().argmax(-1)
    return torch.where(near.any(-1), n[first], torch.nan)


def find(sets: list[Tensor], dtype: torch.dtype, most: int, from_zero: bool = False) -> Tensor:
    """Find steps [B, FIELDS] float64 that all sets [B, S, N] share. Products have ``dtype``; n is at most ``most``."""
    batch, neurons = sets[0].shape[0], sets[0].shape[-1]
    ranges = torch.stack([_ranges(x) for x in sets])
    low, high = ranges[:, 0].amin(0), ranges[:, 1].amax(0)
    largest = torch.maximum(low.abs(), high.abs())
    if from_zero:
        low, high = torch.zeros_like(low), largest
    usable = (high > low) & (high - low).isfinite()
    low, high, largest = (torch.where(usable, t, d) for t, d in ((low, 0.0), (high, 1.0), (largest, 1.0)))
    tolerance = reference.TOLERANCE * max(torch.finfo(x.dtype).eps for x in sets) * largest
    count = max(32, min(reference.SAMPLE, (1 << 12) // batch))
    seen = torch.cat([reference.sample(x, count) for x in sets], -1)
    seen = torch.where(seen.isfinite(), seen, low[:, None])
    unit = reference.levels(low, high, reference.most_exact(dtype))
    for _ in range(2):
        n = _fewest(seen, low, high, tolerance)
        steps = torch.stack((low, (high - low) / n.nan_to_num(1.0), unit))
        found = torch.cat([_places(x, steps) for x in sets], -1)  # [4, B, rows of all]
        farthest = found[0].argmax(-1, keepdim=True)
        seen = torch.cat((seen, found[1].gather(-1, farthest)), -1)
    rounded = (found[0].amax(-1) <= tolerance) & ~n.isnan()
    lowest = torch.where(found[3] > 0, found[3], torch.inf).amin(-1)
    step = torch.where(rounded, steps[1], unit * lowest)
    n = ((high - low) / step).round()
    usable = usable & (rounded | (found[2].amin(-1) > 0)) & reference.fits(n, neurons, dtype) & (n <= most)
    limit = 2.0**reference.LARGEST_EXPONENT
    usable = usable & (step >= 1 / limit) & (step <= limit)
    step = torch.where(usable, step, 1)
    offset = low / step
    near = rounded & ((offset - offset.round()).abs() * step <= tolerance)
    offset = torch.where(usable, torch.where(near, offset.round(), offset), torch.nan)
    return torch.stack((low, 1 / step, step, offset), -1).contiguous()
