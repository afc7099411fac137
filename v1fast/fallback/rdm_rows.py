"""Rows of responses, made ready a few at a time for products in the dtype to compute in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ELEMENTS = 2**17  # of rows, or of a matrix, that are worked on at a time
LARGEST_EXPONENT = {torch.float32: 126, torch.float64: 1000}  # of a scale: 2 to this power and its inverse are normal


class Rows(NamedTuple):
    """Rows as they are multiplied: scaled by powers of two to the order of 1, and centred if the method wants it."""

    values: Tensor  # [B, S, K], in ``memory``
    scale: Tensor  # [B, S, 1]; [B, 1, 1] for method "euclidean"
    valid: Tensor  # [B, S, 1]
    memory: Tensor
    rest: Tensor | None = None  # [B, S, 1]: what rounding left of the mean of a centred row


def blank(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return memory for rows, the first of whole groups of 16; the others are zero.

    Matrix products treat the rows of a group alike. So equal rows have equal products, and a dissimilarity of 0.
    """
    batch, rows, columns = x.shape
    memory = x.new_empty((batch, -(-rows // 16) * 16, columns), dtype=dtype)
    memory[:, rows:] = 0
    return memory


def chunks(rows: int, size: int) -> Iterator[slice]:
    """Yield that many rows, so many at a time."""
    for first in range(0, rows, max(1, size)):
        yield slice(first, first + max(1, size))


def row_chunks(x: Tensor) -> Iterator[slice]:  # [B, S, K]
    """Yield the rows of matrices, a few at a time, so that they stay in the cache."""
    return chunks(x.shape[1], ELEMENTS // x.shape[2])


def power_of_two(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 1 / largest, rounded to a power of two: scaling by it is exact."""
    most = LARGEST_EXPONENT[dtype]
    return torch.exp2(torch.frexp(largest).exponent.neg_().clamp_(-most, most).to(dtype))


def angles(x: Tensor, method: str, dtype: torch.dtype) -> Rows:
    """Return the rows for methods "correlation" and "cosine".

    The mean is float64, so that it is the same for equal rows, whatever the order of the sum. It is subtracted in the
    dtype of the products. The rest, which is known, is taken off the products.
    """
    memory = blank(x, dtype)
    values = memory[:, : x.shape[1]]
    scale = x.new_empty((*x.shape[:2], 1), dtype=dtype)
    rest = torch.empty_like(scale) if method == "correlation" else None
    valid = torch.empty_like(scale, dtype=torch.bool)
    for rows in row_chunks(x):
        part = x[:, rows].to(dtype)
        low, high = part.amin(-1, keepdim=True), part.amax(-1, keepdim=True)
        has_direction = low < high if method == "correlation" else (low != 0) | (high != 0)
        valid[:, rows] = has_direction & (low > -torch.inf) & (high < torch.inf)
        scale[:, rows] = power_of_two(torch.maximum(-low, high), dtype)
        torch.mul(part, scale[:, rows], out=values[:, rows])
        if rest is not None:
            part = values[:, rows]
            mean = part.mean(-1, keepdim=True, dtype=torch.float64)
            rounded = mean.to(dtype)
            part -= rounded
            rest[:, rows] = mean - rounded
    return Rows(values, scale, valid, memory, rest)


def units(x: Tensor, method: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit rows (zero where invalid), 1 / norm [B, S, 1], and which rows are valid [B, S, 1]."""
    found = angles(x, method, dtype)
    inverse = found.scale
    for rows in row_chunks(x):
        part, valid = found.values[:, rows], found.valid[:, rows]
        if found.rest is not None:
            part -= found.rest[:, rows]
        part.masked_fill_(~valid, 0)
        factor = 1 / torch.where(valid, part.square().sum(-1, keepdim=True).sqrt_(), 1)
        part *= factor
        inverse[:, rows] *= factor
    return found.values, inverse, found.valid


def points(x: Tensor, dtype: torch.dtype) -> Rows:
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
    memory = blank(x, dtype)
    values = memory[:, :rows_in_all]
    for rows in row_chunks(x):
        values[:, rows] = torch.where(valid[:, rows], (x[:, rows].double() - centre) * scale, 0)
    return Rows(values, scale, valid, memory)
