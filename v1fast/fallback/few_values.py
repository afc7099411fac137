"""Matrices of few values: found by looking at some values first, and computed in whole numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from operator import sub
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v1fast.fallback.matmul import multiplies_bytes
from v1fast.fallback.rdm_rows import Rows, row_chunks
from v1fast.reference import whole_numbers
from v1fast.reference.whole_numbers import CLEARANCE, MOST_ROUNDED, TOLERANCE, Angles, Places

SAMPLED = 512  # values that are looked at first, as many as the reference's
SMALL = 2**12  # values of a matrix, of which the reference's own sample is looked at
EACH = 5  # of these, one in so many is looked at before the others
FIRST = 40  # about as many are looked at before these
MORE = 170  # and as many of a matrix of which half of the values are equal
LARGEST = 2**12  # magnitude of a whole number: its product with a number of half the bits of the dtype is exact
BITS = {torch.float32: 24 - 13, torch.float64: 53 - 13}  # of such a number
SURE = 1 - 2.0**-6  # of a bound: what is closer is left to float64
BYTES = 2**16  # columns of bytes whose products int32 holds, twice
UNCERTAIN = 2.0**-49  # a dissimilarity of directions in float64 is closer to the exact one


class Whole(NamedTuple):
    """The whole numbers that the values of a few matrices are."""

    rows: Rows
    sums: Tensor  # [B, S] float64
    places: Places
    dtype: torch.dtype  # in which they are multiplied
    squares: Tensor | None = None  # [B, S] float64; None: not yet known


class Multiples(NamedTuple):
    """A matrix [1, S, K] of few values: ``origin + step * (shift + m)``, m the whole numbers that ``of`` returns.

    The places are those of ``whole_numbers.find``, but for a multiple of the step and for a common divisor of the
    whole numbers, on which no dissimilarity depends.
    """

    origin: float
    step: float | None  # None: 1, and all values are whole numbers
    shift: float
    offset: float  # of m = 0 from zero, in steps
    sums: Tensor  # [1, S], of m
    dtype: torch.dtype  # in which they are multiplied
    all: Tensor | None = None  # [1, S, K]: m, if known

    def of(self, x: Tensor) -> Tensor:
        """Return m for some of the values, in their dtype: x itself if it is."""
        if self.origin:
            x = x - self.origin
        if self.step is not None:
            x = (x * (1 / self.step)).round_()
        return x - self.shift if self.shift else x

    def whole(self, x: Tensor, dtype: torch.dtype) -> Whole:
        """Return them as other matrices of few values."""

        def write(rows: slice, columns: slice, out: Tensor) -> None:
            for part in row_chunks(out):
                out[:, part] = self.of(x[:, rows, columns][:, part].to(dtype))

        ends = [[self.step or 1.0], [self.offset]]
        step, offset = torch.tensor(ends, dtype=torch.float64, device=x.device).unbind()
        valid = torch.ones_like(self.sums, dtype=torch.bool).unsqueeze(-1)
        rows = Rows(x.shape, write, step[:, None, None], valid)
        return Whole(rows, self.sums.double(), Places(offset * step, step, offset, step > 0), self.dtype)


def _dtype_of_products(low: float, high: float, columns: int, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which whole numbers between these are multiplied fastest."""
    fit = low >= -128 and high <= 127 and columns <= BYTES
    return torch.int8 if fit and multiplies_bytes() else dtype


# Is it such a matrix? ---------------------------------------------------------------------------------------------


class _Range(NamedTuple):
    """Where all values of a matrix are, or some of them."""

    low: float
    high: float
    tolerance: float  # of a value from its place

    @classmethod
    def of(cls, low: float, high: float, dtype: torch.dtype) -> _Range:
        return cls(low, high, TOLERANCE * torch.finfo(dtype).eps * max(-low, high))

    @property
    def width(self) -> float:
        return self.high - self.low

    def least_step(self, most: int) -> float:
        """Return the smallest step of rule 1, of at most so many."""
        return max(self.width / min(MOST_ROUNDED, most), CLEARANCE * self.tolerance)

    def are_at_fine_places(self, values: list[float], places: int) -> bool:
        """Whether all values are at the places of rule 2, so many."""
        exponent = math.frexp(self.width)[1] - (places.bit_length() - 1)
        step = 2.0 ** max(-whole_numbers.LARGEST_EXPONENT, exponent)
        return not any(((value - self.low) / step) % 1 for value in values)


def _gaps(values: list[float]) -> list[float]:
    return list(map(sub, values[1:], values))


def most_places(columns: int, dtype: torch.dtype) -> int:
    """Return the largest n of which all sums over these columns are exact, by the dtype of the products."""
    return 2**26 // columns if dtype == torch.float64 else math.isqrt(2**24 // columns)


def _exclude_rule_1(gaps: list[float], found: _Range, most: int) -> bool:
    """Whether the gaps between some values show that rule 1 does not hold.

    Two values are at the same place, and nearer than two tolerances, or farther than a step but for these.
    """
    closest = 2 * found.tolerance
    step = SURE * (found.least_step(most) - closest)
    return any(closest < gap < step for gap in gaps)


def _exclude_rule_2(values: list[float], gaps: list[float], found: _Range, most: int, places: int) -> bool:
    """Whether some values, or the gaps between them, show that rule 2 does not hold."""
    step = SURE * found.width / min(most, places)
    return any(0 < gap < step for gap in gaps) or not found.are_at_fine_places(values, places)


def _first(count: int, number: int) -> tuple[int, int]:
    """Return how many values of so many are looked at, about this number, and how far apart."""
    step = count // number | 1
    return -(-count // step), step


def _sample(x: Tensor, each: int) -> Tensor:
    """Return some values from all over a matrix."""
    count = x.numel()
    step = each * max(1, count // SAMPLED - 1 | 1)
    return x.as_strided((-(-count // step),), (step,))


def _is_one(x: Tensor) -> bool:
    """Whether it is one matrix, side by side in memory of the CPU: the values of others are not looked at first."""
    return x.shape[0] == 1 and x.device.type == "cpu" and x.is_contiguous()


def _few(x: Tensor, are_first: bool) -> list[float]:
    """Return some values that are finite: the first that are looked at, or more."""
    size, step = _first(x.numel(), FIRST)
    few: list[float] = (x.as_strided((size,), (step,)) if are_first else _sample(x, EACH)).tolist()
    return few if math.isfinite(sum(few)) else list(filter(math.isfinite, few))


def _exclude_both(values: list[float], found: _Range, most: int, places: int) -> bool:
    gaps = _gaps(values)
    return _exclude_rule_1(gaps, found, most) and _exclude_rule_2(values, gaps, found, most, places)


def _largest_if_continuous(few: list[float], eps: float, most: int, places: int) -> float:
    """Return the largest magnitude of all values of a matrix for which some sorted ones show that it has not few.

    0: they do not show it. Infinity: they are distinct, and show it by themselves. A far larger value than those seen
    would have all these at a single place.

    What ``_exclude_both`` computes is written out, and looks at the closest values first: a call would take longer.
    """
    if most < 1:
        return math.inf
    if len(few) < 3 or not few[-1] - few[0] < math.inf:
        return 0.0
    low, high, gap = few[0], few[-1], min(map(sub, few[1:], few))
    width, tolerance = high - low, TOLERANCE * eps * max(-low, high)
    closest, step = 2 * tolerance, max(width / min(MOST_ROUNDED, most), CLEARANCE * tolerance)
    bound, largest = SURE * (step - closest), math.inf
    if gap == 0:
        gaps = _gaps(sorted(set(few)))
        gap, step = min(gaps, default=0.0), width / min(MOST_ROUNDED, most)
        closest = min(gap, step - gap / SURE)
        if closest < SURE * step / 64:  # of all gaps the best one
            closest = max((min(gap, step - gap / SURE) for gap in gaps), default=0.0)
        largest = SURE * closest / (2.0 * TOLERANCE * eps)
        if not largest > max(-low, high):
            return 0.0
    elif not (closest < gap < bound or any(closest < gap < bound for gap in _gaps(few))):
        return 0.0
    unit = 2.0 ** max(-whole_numbers.LARGEST_EXPONENT, math.frexp(width)[1] - (places.bit_length() - 1))
    is_shown = gap < SURE * width / min(most, places) or any(((value - low) / unit) % 1 for value in few)
    return largest if is_shown else 0.0


@lru_cache(maxsize=1000)
def look(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[Tensor], tuple[float, list[float]]]:
    """Return what looks at some values of a contiguous matrix [S, K] of this form [1, S, K].

    It returns ``_largest_if_continuous`` of these values, and the values, sorted.
    """
    size, step = _first(math.prod(shape), FIRST)
    sizes, strides, columns = (size,), (step,), shape[-1]
    eps, most, places = torch.finfo(dtype).eps, most_places(columns, dtype), whole_numbers.most_exact(dtype)

    more = _first(math.prod(shape), MORE)

    def some(x: Tensor) -> tuple[float, list[float]]:
        few: list[float] = x.as_strided(sizes, strides).tolist()
        few.sort()
        largest = _largest_if_continuous(few, eps, most, places)
        if not largest and not all(map(float.is_integer, few)):
            few = x.as_strided(more[:1], more[1:]).tolist()
            few.sort()
            largest = _largest_if_continuous(few, eps, most, places)
        return largest, few

    return some


def are_continuous(x: Tensor, dtype: torch.dtype) -> NDArray[np.bool_]:  # [B, S, K], contiguous -> [B]
    """Which matrices are known from some values to have not few: ``_largest_if_continuous`` of all at once.

    By NumPy, which sorts short rows ten times as fast as torch.
    """
    batch, rows, columns = x.shape
    most, places = most_places(columns, dtype), whole_numbers.most_exact(dtype)
    if most < 1:
        return np.ones(batch, np.bool_)
    size, step = _first(rows * columns, FIRST)
    few = np.sort(x.as_strided((batch, size), (rows * columns, step)).numpy().astype(np.float64), -1)
    if size < 3:
        return np.zeros(batch, np.bool_)
    low, high = few[:, 0], few[:, -1]
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        gaps, width, largest = np.diff(few), high - low, np.maximum(-low, high)
        gap = gaps.min(-1)
        are_repeated = gap == 0
        if are_repeated.any():
            largest = np.where(are_repeated, max(map(abs, _ends(x))), largest)
            gap = np.where(gaps > 0, gaps, np.inf).min(-1)
        tolerance = TOLERANCE * torch.finfo(x.dtype).eps * largest
        step_1 = np.maximum(width / min(MOST_ROUNDED, most), CLEARANCE * tolerance)
        found: NDArray[np.bool_] = (2 * tolerance < gap) & (gap < SURE * (step_1 - 2 * tolerance)) & (width < np.inf)
        unit = np.ldexp(1.0, np.frexp(width)[1] - (places.bit_length() - 1))
        off = ((few[:, 1:4] - low[:, None]) / unit[:, None] % 1 != 0).any(-1)
        return found & (off | (gap < SURE * width / min(most, places)))


def find(
    x: Tensor,  # [B, S, K]
    dtype: torch.dtype,
    few: list[float] | None = None,
) -> Multiples | Places | None:
    """Return how the values of a few matrices are whole numbers, for products of this dtype. None if none's are.

    ``few``: some values of a matrix, sorted, which show nothing by themselves.
    """
    places = whole_numbers.most_exact(dtype)
    if not _is_one(x):
        return None if whole_numbers.is_continuous([x], False, places) else _find_exactly(x, dtype)
    most, were_looked_at = most_places(x.shape[2], dtype), few is not None
    few = sorted(_few(x, True)) if few is None else list(filter(math.isfinite, few))
    if all(map(float.is_integer, few)):
        found = _find_whole(x, most, dtype)
        if found is not None:
            return found
    elif not were_looked_at and _largest_if_continuous(few, torch.finfo(x.dtype).eps, most, places) == math.inf:
        return None
    ends = _range(x, few)
    if ends is None:
        return _find_exactly(x, dtype)
    if most < 1 or _exclude_both(few, ends, most, places) or _exclude_both(sorted(_few(x, False)), ends, most, places):
        return None
    found, is_clear = _find_multiples(x, ends, most, dtype)
    return found if is_clear else _find_exactly(x, dtype)


def may_have_places(x: Tensor, y: Tensor, dtype: torch.dtype) -> bool:
    """Whether two sets of rows, [B, S, K] and [B, T, K], have few values between them."""
    most, places = most_places(x.shape[2], dtype), whole_numbers.most_exact(dtype)
    each = [sorted(_few(t, True)) if _is_one(t) else [] for t in (x, y)]
    for few, t in zip(each, (x, y), strict=True):
        if _largest_if_continuous(few, torch.finfo(t.dtype).eps, most, places) == math.inf:
            return False
    ranges = [_range(t, few) if few else None for few, t in zip(each, (x, y), strict=True)]
    if ranges[0] is not None and ranges[1] is not None:
        wider = x.dtype if torch.finfo(x.dtype).eps > torch.finfo(y.dtype).eps else y.dtype
        ends = _Range.of(min(t.low for t in ranges if t), max(t.high for t in ranges if t), wider)
        if any(_exclude_both(few, ends, most, places) for few in each):
            return False
    return whole_numbers.find([x, y], dtype) is not None


def _find_exactly(x: Tensor, dtype: torch.dtype) -> Places | None:
    return whole_numbers.find([x[:, rows] for rows in row_chunks(x)], dtype)


def _ends(x: Tensor) -> tuple[float, float]:
    """Return the least and the largest value."""
    low, high = torch.aminmax(x)
    return low.item(), high.item()


def _range(x: Tensor, few: list[float]) -> _Range | None:
    """Return where all finite values are, of which some are known. None if float64 does not tell them apart."""
    low, high = _ends(x)
    if few and not math.isfinite(high - low):
        ends = [_ends(x[:, rows].nan_to_num(few[0], few[0], few[0])) for rows in row_chunks(x)]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
    found = _Range.of(low, high, x.dtype)
    return found if 0 < found.width < math.inf and found.tolerance > 0 else None


def _is_range_of_whole(low: float, high: float, most: int, dtype: torch.dtype) -> bool:
    """Whether values between these, of this dtype, may be whole numbers whose places are their own."""
    if not (low % 1 == high % 1 == 0 and 0 < high - low <= min(most, whole_numbers.most_exact(torch.float32) - 1)):
        return False
    # Near enough to other places of rule 1 is none: from those of n steps, whole numbers are 1 / n away.
    largest = max(-low, high)
    return largest <= LARGEST and TOLERANCE * torch.finfo(dtype).eps * largest * MOST_ROUNDED < 1


def _are_whole(x: Tensor) -> bool:
    rest = x.frac().view(-1)
    return not rest.dot(rest).item()


def are_whole(x: Tensor) -> bool:  # [B, S, K], contiguous
    """Whether all values of matrices are whole numbers, of which all sums are exact in their dtype."""
    (low, high), most = _ends(x), most_places(x.shape[2], x.dtype)
    return _is_range_of_whole(low, high, most, x.dtype) and max(-low, high) <= most and _are_whole(x)


def whole_of_sets(x: Tensor, y: Tensor) -> Multiples | None:  # [B, S, K], [B, T, K], contiguous
    """Return two sets of rows of matrices as whole numbers, if ``are_whole`` holds for all together."""
    most = most_places(x.shape[2], x.dtype)
    each = [_ends(t) for t in (x, y)]
    low, high = min(low for low, _ in each), max(high for _, high in each)
    if not (
        _is_range_of_whole(low, high, most, x.dtype) and max(-low, high) <= most and _are_whole(x) and _are_whole(y)
    ):
        return None
    return Multiples(0.0, None, 0.0, 0.0, torch.cat((x.sum(2), y.sum(2)), 1), x.dtype)


def _find_whole(x: Tensor, most: int, dtype: torch.dtype) -> Multiples | None:
    """Return a matrix of whole numbers, the commonest of few values. None if it is another one."""
    low, high = _ends(x)
    if not _is_range_of_whole(low, high, most, x.dtype):
        return None
    shift = 0.0 if max(-low, high) <= most else low
    sums = x.new_empty(x.shape[:2], dtype=dtype)
    for rows in row_chunks(x):
        part = x[:, rows].to(dtype)
        if not _are_whole(part):
            return None
        torch.sum(part - shift if shift else part, -1, out=sums[:, rows])
    return Multiples(0.0, None, shift, shift, sums, _dtype_of_products(low - shift, high - shift, x.shape[2], dtype))


def _find_multiples(x: Tensor, found: _Range, most: int, dtype: torch.dtype) -> tuple[Multiples | None, bool]:
    """Return a matrix of rule 1, None if it is another one, and whether that is clear.

    Its places are found from the distances of some values, and then checked.
    """
    places, values = whole_numbers.most_exact(dtype), _sample(x, 1).double().numpy()
    values = np.sort(np.append(values[np.isfinite(values)], (found.low, found.high)))
    gaps = np.diff(values)
    if x.numel() <= SMALL:
        are_many = _is_continuous(x, places)
    else:
        are_many = bool(np.count_nonzero(gaps) > MOST_ROUNDED) and not found.are_at_fine_places(values.tolist(), places)
    if are_many:
        return None, True
    n = next(iter(_numbers(gaps, found, most)), None)  # the first is the one, nearly always
    while n is not None:
        checked = _checked(x, found, n, dtype)
        if not isinstance(checked, float):
            return checked, checked is not None
        values = np.sort(np.append(values, checked))
        if _are_near(values, found, n):
            return None, False
        gaps = np.diff(values)
        n = next((n for n in _numbers(gaps, found, most) if _are_near(values, found, n)), None)
    return None, _exclude_rule_2(values.tolist(), gaps.tolist(), found, most, places)


@lru_cache(maxsize=16)
def _positions(rows: int, columns: int) -> NDArray[np.int64]:
    count = min(SAMPLED, rows * columns)
    return np.arange(count) * (rows * columns) // count


def _is_continuous(x: Tensor, places: int) -> bool:  # [1, S, K], contiguous
    """``whole_numbers.is_continuous`` of one matrix, by NumPy."""
    seen = x.double().numpy().reshape(-1)[_positions(*x.shape[1:])]
    seen = np.sort(np.where(np.isfinite(seen), seen, 0))
    width = seen[-1] - seen[0]
    if np.count_nonzero(np.diff(seen)) <= MOST_ROUNDED:
        return False
    exponent = math.frexp(width)[1] - (places.bit_length() - 1)
    z = (seen - seen[0]) / 2.0 ** max(-whole_numbers.LARGEST_EXPONENT, min(exponent, whole_numbers.LARGEST_EXPONENT))
    return bool((z != np.rint(z)).any())


def _are_near(values: NDArray[np.float64], found: _Range, n: int) -> bool:
    """Whether some values are at their places, of n steps."""
    z = (values - found.low) * (n / found.width)
    z -= np.rint(z)
    return max(-z.min().item(), z.max().item()) * (found.width / n) <= found.tolerance


def _numbers(gaps: NDArray[np.float64], found: _Range, most: int) -> range:
    """Return the numbers of steps of rule 1 that the gaps between some values leave."""
    apart = gaps[gaps > 2 * found.tolerance].min(initial=found.width).item()
    first = max(1, math.ceil(found.width / (apart + 2 * found.tolerance) - 1e-6))
    last = min(MOST_ROUNDED, most, math.floor(found.width / (CLEARANCE * found.tolerance)))
    return range(first, last + 1)


def _checked(x: Tensor, found: _Range, n: int, dtype: torch.dtype) -> Multiples | float | None:
    """Check all values. Return the matrix, or the value of some rows farthest from its place; None if it is not clear.

    The multiple of the step is subtracted in two parts, so that nearly nothing is rounded.
    """
    most, step = most_places(x.shape[2], dtype), found.width / n
    shift = round(found.low / step)
    is_multiple = abs(found.low / step - shift) * step <= found.tolerance
    offset = float(shift) if is_multiple else found.low / step
    origin, bound = 0.0, found.tolerance
    if not is_multiple or max(-shift, shift + n) > LARGEST:
        origin, shift, bound = found.low, 0, bound - torch.finfo(dtype).eps / 2 * found.width
    least = shift
    rest = found.low - origin - shift * step  # of the places from the multiples of the step
    if max(-shift, shift + n) <= most:
        shift, offset = 0, 0.0 if origin == 0 else offset
    mantissa, exponent = math.frexp(step)
    high = math.ldexp(round(math.ldexp(mantissa, BITS[dtype])), exponent - BITS[dtype])
    sums = x.new_empty(x.shape[:2], dtype=dtype)
    for rows in row_chunks(x):
        part = x[:, rows].to(dtype)
        part = part - origin if origin else part
        m = (part * (1 / step)).round_()
        off = torch.sub(part, m, alpha=high).sub_(m, alpha=step - high)
        off = (off.sub_(rest) if rest else off).abs_()
        away = off.amax().item()
        if not away <= SURE * bound:
            value: float = x[:, rows].reshape(-1)[int(off.argmax().item())].item()
            return value if away > found.tolerance / SURE else None
        torch.sum(m.sub_(shift) if shift else m, -1, out=sums[:, rows])
    products = _dtype_of_products(least - shift, least - shift + n, x.shape[2], dtype)
    return Multiples(origin, step, float(shift), offset, sums, products, m if m.shape == x.shape else None)


# What becomes of it -----------------------------------------------------------------------------------------------


def whole(x: Tensor, places: Places, dtype: torch.dtype) -> Whole:
    """Return the whole numbers of a few matrices that all have places."""
    sums = x.new_empty(x.shape[:2], dtype=torch.float64)
    valid = x.new_empty((*x.shape[:2], 1), dtype=torch.bool)
    for rows in row_chunks(x):
        sums[:, rows] = places.of(x[:, rows]).sum(-1)
        valid[:, rows] = x[:, rows].isfinite().all(-1, keepdim=True)

    def write(rows: slice, columns: slice, out: Tensor) -> None:
        for part in row_chunks(out):
            out[:, part] = places.of(x[:, rows, columns][:, part])

    return Whole(Rows(x.shape, write, places.step[:, None, None], valid), sums, places, dtype)


def _turned(found: Whole, method: str) -> Angles:
    """Return what turns the products of these whole numbers into those of the responses."""
    return Angles(method == "correlation", found.rows.shape[2], found.places.offset[:, None, None])


def with_norms(found: Whole, squares: Tensor, method: str) -> Whole:
    """Return the same with the squares of rows, and rows without a direction invalid."""
    found = found._replace(squares=squares)
    if method == "euclidean":
        return found
    sums = found.sums[..., None]
    norms, _ = _turned(found, method).products(squares[..., None], sums, sums)
    return found._replace(rows=found.rows._replace(valid=found.rows.valid & (norms > 0)))


Finish = Callable[[Tensor, slice, slice], Tensor]
"""Turns products [B, s, t] of some rows and others into their dissimilarities, in float64."""


def finish(found: Whole, method: str, dtype: torch.dtype) -> Finish:
    """Return what makes dissimilarities of the whole numbers, which have norms, for a result of this dtype."""
    assert found.squares is not None
    if method == "euclidean":
        return _finish_distances(found, found.squares)
    angles = _turned(found, method)
    if dtype == torch.float64:
        return _finish_exactly(found, found.squares, angles)
    return _finish_certain(found, found.squares, angles)


def _finish_distances(found: Whole, squares: Tensor) -> Finish:
    step, columns = found.rows.scale, found.rows.shape[2]

    def finish(gram: Tensor, some: slice, others: slice) -> Tensor:
        # In the order of the reference, for the same bits.
        return (squares[:, some, None] + squares[:, None, others] - 2 * gram.double()) * step * step / columns

    return finish


def _finish_exactly(found: Whole, squares: Tensor, angles: Angles) -> Finish:
    def finish(gram: Tensor, some: slice, others: slice) -> Tensor:
        own, other = ((squares[:, part], found.sums[:, part]) for part in (some, others))
        return whole_numbers.dissimilarities(angles, gram.double(), own, other)

    return finish


def between(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the float32 below and above, between which the exact value is; where they are equal, it is this one.

    ``values`` are overwritten.
    """
    return (values - UNCERTAIN).float(), values.add_(UNCERTAIN).float()


def _finish_certain(found: Whole, squares: Tensor, angles: Angles) -> Finish:
    """Return what computes a float32 in float64, and exactly only where that does not decide how it is rounded."""
    sums = found.sums
    inverse, _ = whole_numbers.norms(angles, squares.unsqueeze(-1), sums.unsqueeze(-1))

    def finish(gram: Tensor, some: slice, others: slice) -> Tensor:
        wide = gram.double()
        products, _ = angles.products(wide, sums[:, some, None], sums[:, None, others])
        near = products.mul_(inverse[:, some]).mul_(inverse[:, others].mT).neg_().add_(1)
        below, above = between(near)
        # Of each pair once, and not of a row with itself: what is below stands in no matrix.
        uncertain = (below != above).triu_(1).nonzero(as_tuple=True)
        values = below.double()
        if len(uncertain[0]):
            member, i, j = uncertain
            own = squares[member, some.start + i, None], sums[member, some.start + i, None]
            other = squares[member, others.start + j, None], sums[member, others.start + j, None]
            of_pairs, products = angles._replace(offset=angles.offset[member]), wide[uncertain][:, None, None]
            values[uncertain] = whole_numbers.dissimilarities(of_pairs, products, own, other).flatten()
        return values

    return finish


def between_sets(
    angles: Angles,
    own: tuple[Tensor, Tensor],  # squares and sums [B, S] of one set of rows
    other: tuple[Tensor, Tensor],  # and [B, T] of another
) -> Callable[[Tensor, slice, torch.dtype], Tensor]:
    """Return what makes dissimilarities of products [B, s, T] of some rows with all others, in float64.

    For a float32, they are computed exactly only where float64 does not decide how they are rounded.
    """
    (squares, sums), (other_squares, other_sums) = own, other
    inverse, _ = whole_numbers.norms(angles, squares.unsqueeze(-1), sums.unsqueeze(-1))
    other_inverse, _ = whole_numbers.norms(angles, other_squares.unsqueeze(-2), other_sums.unsqueeze(-2))

    def finish(gram: Tensor, some: slice, dtype: torch.dtype) -> Tensor:
        if dtype == torch.float64:
            return whole_numbers.dissimilarities(angles, gram, (squares[:, some], sums[:, some]), other)
        products, _ = angles.products(gram, sums[:, some, None], other_sums[:, None])
        near = (products * inverse[:, some]).mul_(other_inverse).neg_().add_(1)
        below, above = between(near)
        uncertain = (below != above).nonzero(as_tuple=True)
        values = below.double()
        if len(uncertain[0]):
            member, i, j = uncertain
            first = squares[member, some.start + i, None], sums[member, some.start + i, None]
            second = other_squares[member, j, None], other_sums[member, j, None]
            of_pairs = angles._replace(offset=angles.offset[member])
            exact = whole_numbers.dissimilarities(of_pairs, gram[uncertain][:, None, None], first, second)
            values[uncertain] = exact.flatten()
        return values

    return finish
