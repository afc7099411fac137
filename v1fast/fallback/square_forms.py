"""The forms of a matrix of dissimilarities: square, the pairs i < j, rows from their diagonal on."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=4)
def number(value: float, dtype: torch.dtype) -> Tensor:
    """Return a number as a tensor, for operations that take no other."""
    return torch.full((), value, dtype=dtype, device="cpu")


@lru_cache(maxsize=16)
def upper(rows: int) -> Tensor:  # int64 [P]
    """Return where the pairs i < j of a square matrix are, row by row."""
    i, j = torch.triu_indices(rows, rows, 1, device="cpu").unbind()
    return i * rows + j


@lru_cache(maxsize=16)
def spread(rows: int) -> Tensor:  # int64 [S, S]
    """Return which pair stands where in a square matrix; the first on the diagonal."""
    where = torch.zeros(rows * rows, dtype=torch.long, device="cpu")
    where[upper(rows)] = torch.arange(rows * (rows - 1) // 2, device="cpu")
    where = where.view(rows, rows)
    return where + where.t()


def assembled(blocks: list[Tensor], rows: int) -> Tensor:  # [S, S]
    """Return the matrix whose rows are given from their diagonal on, [s, t] each."""
    if len(blocks) == 1:
        return blocks[0]
    found, start = blocks[0].new_empty(rows, rows), 0
    for block in blocks:
        stop = start + block.shape[0]
        found[start:stop, start:] = block
        found[stop:, start:stop] = block[:, stop - start :].t()
        corner = found[start:stop, start:stop]
        corner.copy_(torch.maximum(corner, corner.t()))
        start = stop
    return found


def finished(found: Tensor, condensed: bool) -> Tensor:
    """Return the requested form of [..., S, S], whose diagonal may be anything."""
    if condensed:
        pairs = upper(found.shape[-1])
        return found.take(pairs) if found.dim() == 2 else found.flatten(1).index_select(1, pairs)
    if found.dim() == 2:
        return found.fill_diagonal_(0)
    found.diagonal(dim1=-2, dim2=-1).zero_()
    return found
