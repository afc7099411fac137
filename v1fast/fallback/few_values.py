"""Matrices of few values: found by looking at some values first, and computed in whole numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from v1fast.fallback.rdm_rows import Rows, blank, row_chunks
from v1fast.reference import whole_numbers
from v1fast.reference.whole_numbers import Angles, Places

SAMPLED = 320  # values that are looked at first, a few more than may be distinct
SAMPLED_PLACES = 16  # of these, values that are to be off all places
LARGEST_COUNT = 2**12
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
UNCERTAIN = 2.0**-49  # a dissimilarity of directions in float64 is closer to the exact one


class Whole(NamedTuple):
    """The whole numbers that the values of a few matrices are."""

    rows: Rows
    sums: Tensor  # [B, S] float64
    places: Places
    squares: Tensor | None = None  # [B, S] float64; None: they are taken from the products


class Sample(NamedTuple):
    """Some values from all over a matrix."""

    values: Tensor
    few: list[float]


def sampled(x: Tensor) -> Sample | None:
    """Return some values of a matrix, if it lies side by side in memory of the CPU."""
    if x.shape[0] > 1 or x.device.type != "cpu" or not x.is_contiguous():
        return None
    flat = x.view(-1)
    values = flat[:: max(1, flat.numel() // SAMPLED - 1 | 1)]
    return Sample(values, values[:SAMPLED_PLACES].tolist())


def _are_continuous(sample: Sample, places: int) -> bool:
    """Whether some values of a matrix alone show that it has not few: ``whole_numbers.is_continuous``, without torch.

    They are too many for rule 1, and for rule 2 one is off all places.
    """
    low, high = min(sample.few), max(sample.few)
    if not math.isfinite(sample.values.sum().item()):
        return False
    step = 2.0 ** max(-whole_numbers.LARGEST_EXPONENT, math.frexp(high - low)[1] - (places.bit_length() - 1))
    if not any(((value - low) / step) % 1 for value in sample.few):
        return False
    # As integers, because Python takes long to compare floats that have few bits. 0 has two forms.
    bits = sample.values.view(BITS[sample.values.element_size()]).tolist()
    return len(set(bits)) > whole_numbers.MOST_ROUNDED + 2


def places_of(x: Tensor, sample: Sample | None, dtype: torch.dtype) -> Places | None:
    """Return the places of a few matrices, looking at some of their rows at a time."""
    places = whole_numbers.most_exact(dtype)
    if whole_numbers.is_continuous([x], False, places) if sample is None else _are_continuous(sample, places):
        return None
    return whole_numbers.find([x[:, rows] for rows in row_chunks(x)], dtype)


class Counts(NamedTuple):
    """A matrix of whole numbers, the commonest of few values, and its least one."""

    rows: Tensor  # [1, S, K], from the least one on
    sums: Tensor  # [1, S]
    least: float

    def whole(self) -> Whole:
        """Return them as other matrices of few values.

        The places are what ``whole_numbers.find`` returns but for a common divisor, on which no dissimilarity depends.
        """
        origin, step = torch.tensor([[self.least], [1.0]], dtype=torch.float64).unbind()
        valid = torch.ones_like(self.sums, dtype=torch.bool).unsqueeze(-1)
        rows = Rows(self.rows, step[:, None, None], valid, self.rows)  # not in groups: all products are exact
        return Whole(rows, self.sums.double(), Places(origin, step, origin, step > 0))


def counts(x: Tensor, sample: Sample | None, dtype: torch.dtype) -> Counts | None:
    """Return a matrix of whole numbers, None if it is another one: then ``places_of`` is asked.

    Their largest magnitude is small enough for the places of the first rule to be exact.
    """
    if sample is None or x.dtype != torch.float32 or dtype != torch.float32 or any(v % 1 for v in sample.few):
        return None
    low, high = x.amin().item(), x.amax().item()
    n = high - low
    if not (low % 1 == high % 1 == 0 and 0 < n <= whole_numbers.MOST_ROUNDED and n * n * x.shape[2] <= 2**24):
        return None
    if max(-low, high) > LARGEST_COUNT:
        return None
    rows = x - low if low else x
    sums = x.new_empty(x.shape[:2])
    for some in row_chunks(x):
        part = rows[:, some]
        if part.frac().sum().item():
            return None
        sums[:, some] = part.sum(-1)
    return Counts(rows, sums, low)


def whole(x: Tensor, places: Places, dtype: torch.dtype) -> Whole:
    """Return the whole numbers of a few matrices that all have places."""
    batch, rows_in_all, _ = x.shape
    memory = blank(x, dtype)
    values = memory[:, :rows_in_all]
    squares, sums = (x.new_empty((batch, rows_in_all), dtype=torch.float64) for _ in range(2))
    valid = x.new_empty((batch, rows_in_all, 1), dtype=torch.bool)
    for part in row_chunks(x):
        m = places.of(x[:, part])
        values[:, part], squares[:, part], sums[:, part] = m, m.square().sum(-1), m.sum(-1)
        valid[:, part] = x[:, part].isfinite().all(-1, keepdim=True)
    return Whole(Rows(values, places.step[:, None, None], valid, memory), sums, places, squares)


def _turned(found: Whole, method: str) -> Angles:
    """Return what turns the products of these whole numbers into those of the responses."""
    return Angles(method == "correlation", found.rows.values.shape[2], found.places.offset[:, None, None])


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
    step, columns = found.rows.scale, found.rows.values.shape[2]

    def finish(gram: Tensor, some: slice, others: slice) -> Tensor:
        # In the order of the reference, for the same bits.
        return (squares[:, some, None] + squares[:, None, others] - 2 * gram.double()) * step * step / columns

    return finish


def _finish_exactly(found: Whole, squares: Tensor, angles: Angles) -> Finish:
    def finish(gram: Tensor, some: slice, others: slice) -> Tensor:
        own, other = ((squares[:, part], found.sums[:, part]) for part in (some, others))
        return whole_numbers.dissimilarities(angles, gram.double(), own, other)

    return finish


def near(angles: Angles, wide: Tensor, sums: tuple[Tensor, Tensor], inverse: tuple[Tensor, Tensor]) -> Tensor:
    """Return the dissimilarities from products, sums and 1 / norms of rows, in float64: nearer than ``UNCERTAIN``."""
    products, _ = angles.products(wide, *sums)
    return products.mul_(inverse[0]).mul_(inverse[1]).neg_().add_(1)


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
        pairs = sums[:, some, None], sums[:, None, others]
        below, above = between(near(angles, wide, pairs, (inverse[:, some], inverse[:, others].mT)))
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
