"""Rows of responses, made ready a few columns or rows at a time for products in the dtype to compute in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from v1fast.fallback.matmul import columns_of_chain, treats_rows_alike

ELEMENTS = 2**17  # of rows, or of a matrix, that are worked on at a time
PANEL = 2**22  # elements of rows that are multiplied at a time, where no chain of columns is to be short
LARGEST_EXPONENT = {torch.float32: 126, torch.float64: 1000}  # of a scale: 2 to this power and its inverse are normal
ALL = slice(None)

Write = Callable[[slice, slice, Tensor], None]
"""Makes some columns of some rows ready, and writes them into memory [B, s, k] in the dtype of the products."""


class Rows(NamedTuple):
    """Rows as they are multiplied: scaled by powers of two to the order of 1, and centred if the method wants it."""

    shape: torch.Size  # B, S, K
    write: Write
    scale: Tensor  # [B, S, 1]; [B, 1, 1] for method "euclidean"
    valid: Tensor  # [B, S, 1]
    rest: Tensor | None = None  # [B, S, 1]: what rounding left of the mean of a centred row


def chunks(rows: int, size: int) -> Iterator[slice]:
    """Yield that many rows, so many at a time."""
    for first in range(0, rows, max(1, size)):
        yield slice(first, min(rows, first + max(1, size)))


def row_chunks(x: Tensor) -> Iterator[slice]:  # [B, S, K]
    """Yield the rows of matrices, a few at a time, so that they stay in the cache."""
    return chunks(x.shape[1], ELEMENTS // x.shape[2])


class Panels(NamedTuple):
    """How rows of responses are multiplied: some columns after others."""

    width: int  # columns at a time
    padded: bool  # to whole groups of 16 rows, with zeros
    dtype: torch.dtype

    def of(self, like: Tensor, write: Write) -> Iterator[Tensor]:
        """Yield the rows of responses like these [B, S, K], in memory that is used again."""
        batch, rows, columns = like.shape
        height = -(-rows // 16) * 16 if self.padded else rows
        memory = like.new_empty(batch * height * min(self.width, columns), dtype=self.dtype)
        for some in chunks(columns, self.width):
            panel = memory[: batch * height * (some.stop - some.start)].view(batch, height, -1)
            if height > rows:
                panel[:, rows:] = 0
            write(ALL, some, panel[:, :rows])
            yield panel


def plan(x: Tensor, rows: int, dtype: torch.dtype) -> Panels:
    """Return how the rows of responses [B, S, K] are multiplied by so many.

    Matrix products treat the rows of a group of 16 alike, and some treat all. So equal rows have equal products, and a
    dissimilarity of 0.
    """
    batch, own, columns = x.shape
    like = x if x.dtype == dtype else x.new_empty((), dtype=dtype).expand(x.shape)
    if treats_rows_alike(like, rows):
        return Panels(columns_of_chain(columns), False, dtype)
    return Panels(max(1, PANEL // (batch * max(own, rows))), True, dtype)


def plan_exact(x: Tensor, dtype: torch.dtype) -> Panels:
    """Return how the rows of responses are multiplied as whole numbers, of which all sums are exact."""
    return Panels(max(1, PANEL // (x.shape[0] * x.shape[1])), False, dtype)


def power_of_two(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 1 / largest, rounded to a power of two: scaling by it is exact."""
    most = LARGEST_EXPONENT[dtype]
    return torch.exp2(torch.frexp(largest).exponent.neg_().clamp_(-most, most).to(dtype))


def angles(x: Tensor, method: str, dtype: torch.dtype) -> Rows:
    """Return the rows for methods "correlation" and "cosine".

    The mean is float64, so that it is the same for equal rows, whatever the order of the sum. It is subtracted in the
    dtype of the products. The rest, which is known, is taken off the products.
    """
    scale = x.new_empty((*x.shape[:2], 1), dtype=dtype)
    valid = torch.empty_like(scale, dtype=torch.bool)
    mean, rest = (torch.empty_like(scale) if method == "correlation" else None for _ in range(2))
    for rows in row_chunks(x):
        part = x[:, rows].to(dtype)
        low, high = part.amin(-1, keepdim=True), part.amax(-1, keepdim=True)
        has_direction = low < high if method == "correlation" else (low != 0) | (high != 0)
        valid[:, rows] = has_direction & (low > -torch.inf) & (high < torch.inf)
        scale[:, rows] = power_of_two(torch.maximum(-low, high), dtype)
        if mean is not None and rest is not None:
            # Scaled first only where a sum might leave the range of float64.
            factor = scale[:, rows]
            if x.dtype == torch.float64:
                exact = (part * factor).mean(-1, keepdim=True)
            else:
                exact = part.mean(-1, keepdim=True, dtype=torch.float64) * factor
            mean[:, rows] = exact
            rest[:, rows] = exact - mean[:, rows]

    def write(rows: slice, columns: slice, out: Tensor) -> None:
        torch.mul(x[:, rows, columns], scale[:, rows], out=out)
        if mean is not None:
            out -= mean[:, rows]

    return Rows(x.shape, write, scale, valid, rest)


def whole_rows(rows: Rows, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return all columns of all rows, ready."""
    values = like.new_empty(rows.shape, dtype=dtype)
    for some in row_chunks(values):
        rows.write(some, ALL, values[:, some])
    return values


def units(x: Tensor, method: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit rows (zero where invalid), 1 / norm [B, S, 1], and which rows are valid [B, S, 1]."""
    found = angles(x, method, dtype)
    values, inverse = whole_rows(found, x, dtype), found.scale
    for rows in row_chunks(x):
        part, valid = values[:, rows], found.valid[:, rows]
        if found.rest is not None:
            part -= found.rest[:, rows]
        part.masked_fill_(~valid, 0)
        factor = 1 / torch.where(valid, part.square().sum(-1, keepdim=True).sqrt_(), 1)
        part *= factor
        inverse[:, rows] *= factor
    return values, inverse, found.valid


def points(x: Tensor) -> Rows:
    """Return the rows for method "euclidean". Their mean row is subtracted, which changes no distance."""
    batch, rows_in_all, columns = x.shape
    valid = x.new_empty((batch, rows_in_all, 1), dtype=torch.bool)
    total = x.new_zeros((batch, 1, columns), dtype=torch.float64)
    largest = x.new_zeros((batch, 1, 1), dtype=torch.float64)
    for rows in row_chunks(x):
        wide = x[:, rows].double()
        here = wide.isfinite().all(-1, keepdim=True)
        valid[:, rows] = here
        wide = torch.where(here, wide, 0)
        total += wide.sum(1, keepdim=True)
        largest = torch.maximum(largest, wide.abs().amax((1, 2), keepdim=True))
    centre = total / valid.sum(1, keepdim=True).clamp(min=1)
    scale = power_of_two(2 * largest, torch.float64)

    def write(rows: slice, columns: slice, out: Tensor) -> None:
        some, given, here = x[:, rows, columns], valid[:, rows], centre[..., columns]
        for part in row_chunks(some):
            out[:, part] = torch.where(given[:, part], (some[:, part].double() - here) * scale, 0)

    return Rows(x.shape, write, scale, valid)
