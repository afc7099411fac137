"""Responses of few distinct values as whole numbers, whose sums and products are exact: one-hot codes, ratings, counts.

All values of a matrix are at places ``origin + step * m``, with whole numbers m from 0 to n. (``from_zero``: the origin
is 0, and m goes from -n to n.) The first rule that holds is used:

1. The smallest n <= 256 for which each value is within 2 eps of the largest magnitude of its place. eps is that of its
   dtype, and ``step`` is at least 64 times that tolerance. Examples: multiples of 0.1, or thirds, in floating point.
2. ``step`` is a power of two, and each value is exactly at its place. n <= 2^11, or 2^20 if products are float64.

With K columns, n^2 K <= 2^24 for float32 products, and n K <= 2^26 for float64 (for a float64 result, on a GPU). So
every sum is exact. Values that are not finite do not count. If the origin is as close to a multiple of the step as
values are to their places, it is that multiple.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MOST_ROUNDED = 256  # largest n for values that are rounded to their places
SAMPLE = 512  # values that are checked first: enough to recognise a continuous variable
TOLERANCE = 2  # largest distance of a value from its place, in eps of the largest magnitude
CLEARANCE = 64  # smallest distance of two places, in tolerances
LARGEST_EXPONENT = 1000  # of a step, whose inverse must be finite
LEAST = 2.0**-90  # a smaller dissimilarity of directions is 0 with a rounding error


class Places(NamedTuple):
    """The map from responses to whole numbers, for each member of a batch."""

    origin: Tensor  # [B] float64
    step: Tensor  # [B] float64
    offset: Tensor  # [B] float64: origin / step
    found: Tensor  # [B] bool

    def of(self, x: Tensor) -> Tensor:  # [B, S, K] -> [B, S, K] float64
        """Return m; 0 if nothing was found or a value is not finite."""
        m = ((x.double() - _each(self.origin)) * _each(1 / self.step)).round()
        return torch.where(_each(self.found) & m.isfinite(), m, 0)


def _each(values: Tensor) -> Tensor:
    return values[:, None, None]


def sample(x: Tensor, count: int = SAMPLE) -> Tensor:  # [B, S, K] -> [B, at most count], from all over the matrix
    """Return the values to check first."""
    rows, columns = x.shape[1:]
    count = min(count, rows * columns)
    at = torch.arange(count, device=x.device) * (rows * columns) // count
    return x[:, at // columns, at % columns].double()


def levels(low: Tensor, high: Tensor, places: int) -> Tensor:
    """Return a power of two that divides the range of values into at most ``places`` steps."""
    exponent = torch.frexp(high - low).exponent - (places.bit_length() - 1)
    return torch.exp2(exponent.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).double())


def _are_whole(z: Tensor) -> Tensor:
    return ((z == z.round()) | ~z.isfinite()).flatten(1).all(-1)


def most_exact(dtype: torch.dtype) -> int:
    """Return the largest n for values exactly at their places, by the dtype of the products."""
    return 1 << (20 if dtype == torch.float64 else 11)


def fits(n: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """Whether all sums of products are exact."""
    return n * columns <= 2.0**26 if dtype == torch.float64 else n * n * columns <= 2.0**24


def _rounded(sets: list[Tensor], low: Tensor, high: Tensor, tolerance: Tensor) -> tuple[Tensor, Tensor]:
    """Rule 1: return the smallest n for which all values are near their places, and whether there is one."""
    steps = (high - low)[:, None] / torch.arange(1, MOST_ROUNDED + 1, device=low.device)
    left = steps >= CLEARANCE * tolerance[:, None]  # [B, n]: the numbers that may still be it
    for values in ([sample(x) for x in sets], [x.flatten(1) for x in sets]):
        found = torch.zeros_like(left[:, 0])
        while (left.any(-1) & ~found).any():
            step = steps.gather(-1, left.long().argmax(-1, keepdim=True))
            # Of all values, the one farthest from its place for the smallest n excludes others, too.
            away, worst = _farthest(values, low, step)
            found = found | (left.any(-1) & (away <= tolerance))
            left &= _off(worst, low, steps) <= tolerance[:, None]
    return left.long().argmax(-1) + 1, left.any(-1)


def _farthest(values: list[Tensor], low: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:  # -> [B], [B, 1]
    """Return how far the value is from its place that is farthest from it, and this value."""
    found = []
    for x in values:
        away, at = _off(x.double(), low, step).max(-1)
        found.append((away, x.gather(-1, at[:, None]).double()))
    aways, worst = (torch.stack(column) for column in zip(*found, strict=True))
    away, which = aways.max(0)
    return away, worst.gather(0, which[None, :, None]).squeeze(0)


def _off(values: Tensor, low: Tensor, step: Tensor) -> Tensor:  # [B, L], [B], [B, 1] or [B, L] -> [B, L]
    """Return how far values are from their places; 0 if they are not finite."""
    z = (values - low[:, None]) / step
    return torch.where(values.isfinite(), (z - z.round()).abs() * step, 0)


def is_continuous(sets: list[Tensor], from_zero: bool, places: int) -> bool:
    """Whether a sample alone shows that no member of the batch has few values."""
    seen = torch.cat([sample(x) for x in sets], -1)
    seen = torch.where(seen.isfinite(), seen, 0)
    low, high = (torch.zeros_like(seen[:, 0]), seen.abs().amax(-1)) if from_zero else (seen.amin(-1), seen.amax(-1))
    distinct = (seen.sort(-1).values.diff(dim=-1) != 0).sum(-1) + 1
    most = 2 * MOST_ROUNDED + 1 if from_zero else MOST_ROUNDED + 1
    exact = _are_whole((seen - low[:, None]) / levels(low, high, places)[:, None])
    return not bool(((distinct <= most) | exact).any())


def find(sets: list[Tensor], dtype: torch.dtype, from_zero: bool = False) -> Places | None:
    """Find the places that sets [B, S, K] share, for products of ``dtype``. None if no member has any."""
    columns, places = sets[0].shape[-1], most_exact(dtype)
    if is_continuous(sets, from_zero, places):
        return None
    low, high = (torch.stack(ends) for ends in zip(*(_range(x) for x in sets), strict=True))
    low, high = low.amin(0), high.amax(0)
    largest = torch.maximum(low.abs(), high.abs())
    if from_zero:
        low, high = torch.zeros_like(low), largest
    usable = (high > low) & (high - low).isfinite()
    low, high, largest = (torch.where(usable, t, d) for t, d in ((low, 0.0), (high, 1.0), (largest, 1.0)))
    tolerance = TOLERANCE * max(torch.finfo(x.dtype).eps for x in sets) * largest
    n, rounded = _rounded(sets, low, high, tolerance)
    step = (high - low) / n
    exact = rounded
    if not bool(rounded.all()):
        unit = levels(low, high, places)
        checked = [_exact((x.double() - _each(low)) / _each(unit)) for x in sets]
        whole, lowest = (torch.stack(column) for column in zip(*checked, strict=True))
        exact, step = rounded | whole.all(0), torch.where(rounded, step, unit * lowest.amin(0))
    n = ((high - low) / step).round()
    found = usable & exact & fits(n, columns, dtype)
    found &= (step >= 2.0**-LARGEST_EXPONENT) & (step <= 2.0**LARGEST_EXPONENT)
    step = torch.where(found, step, 1)
    offset = low / step
    near = rounded & ((offset - offset.round()).abs() * step <= tolerance)
    return Places(low, step, torch.where(near, offset.round(), offset), found) if bool(found.any()) else None


def _range(x: Tensor) -> tuple[Tensor, Tensor]:  # [B, S, K] -> [B] each
    """Return the lowest and the highest value that is finite, inf and -inf if none is."""
    wide = x.double()
    finite = wide.isfinite()
    return torch.where(finite, wide, torch.inf).amin((-2, -1)), torch.where(finite, wide, -torch.inf).amax((-2, -1))


def _exact(z: Tensor) -> tuple[Tensor, Tensor]:  # [B, S, K] -> [B] each
    """Return whether all are whole numbers, and the power of two that divides them."""
    return _are_whole(z), _lowest_bit(z)


def _lowest_bit(z: Tensor) -> Tensor:  # [B, S, K] -> [B], the power of two that divides all whole numbers
    whole = torch.where(z.isfinite() & (z.abs() < 2.0**31), z, 0).long()
    bit = whole & -whole
    return torch.where(bit == 0, 1 << 31, bit).amin((-2, -1)).double()


# Double-double arithmetic: a number is the sum of two, the second at most half a unit in the last place of the first
# (Dekker, Numerische Mathematik 18, 1971).


def _halves(a: Tensor) -> tuple[Tensor, Tensor]:
    high = a * 134217729.0
    high = high - (high - a)
    return high, a - high


def two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return a b and its rounding error."""
    p = a * b
    (a1, a2), (b1, b2) = _halves(a), _halves(b)
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


def two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return a + b and its rounding error."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def inverse_root(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 / sqrt(high + low), by one Newton step."""
    y = 1 / high.sqrt()
    p, p_rest = two_product(y, y)
    q, q_rest = two_product(high, p)
    return y, y * (0.5 * (((1 - q) - q_rest) - (high * p_rest + low * p)))


class Angles(NamedTuple):
    """Turns the products of whole rows into those of the responses, with or without subtracting the means."""

    centred: bool
    columns: int
    offset: Tensor  # [B, 1, 1]: origin / step

    def products(self, gram: Tensor, sums: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """In units of step squared: K G_ij - s_i s_j, or K o^2 + o (s_i + s_j) + G_ij."""
        if self.centred:
            found = self.columns * gram - sums * others
            return found, found.new_zeros(())
        square, square_rest = two_product(self.offset, self.offset)
        first, first_rest = two_product(square, torch.full_like(square, self.columns))
        second, second_rest = two_product(self.offset, sums + others)
        total, rest = two_sum(first, second)
        total, more = two_sum(total, gram)
        rest = rest + more + ((first_rest + self.columns * square_rest) + second_rest)
        return two_sum(total, rest)


def dissimilarities(
    angles: Angles, gram: Tensor, own: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor]
) -> Tensor:  # [B, S, T]
    """Return 1 - the cosine of rows [B, S] and [B, T], from products and (squares, sums). NaN if a row is zero.

    It is double-double arithmetic, rounded once: what is equal in exact arithmetic is equal here.
    """
    (squares, sums), (other_squares, other_sums) = own, others
    sums, other_sums = sums.unsqueeze(-1), other_sums.unsqueeze(-2)
    own_norms = norms(angles, squares.unsqueeze(-1), sums)
    other_norms = norms(angles, other_squares.unsqueeze(-2), other_sums)
    t, t_rest = angles.products(gram, sums, other_sums)
    w, w_rest = two_product(own_norms[0], other_norms[0])
    w_rest = w_rest + (own_norms[0] * other_norms[1] + own_norms[1] * other_norms[0])
    r, r_rest = two_product(t, w)
    r_rest = r_rest + (t * w_rest + t_rest * w)
    d, d_rest = two_sum(torch.ones_like(r), -r)
    d = d + (d_rest - r_rest)
    return torch.where(d < LEAST, 0, torch.where(d > 2, 2, d))


def norms(angles: Angles, squares: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 / the norms of rows. NaN for a row of zeros."""
    high, low = angles.products(squares, sums, sums)
    return inverse_root(torch.where(high > 0, high, torch.nan), low)
