"""Dissimilarities of a small matrix in few operations of torch, which take a microsecond each, whatever they compute.

What needs more care is left to ``rdm``: a row with a value that is not finite, or without a direction, or almost; and
counts of which float64 does not decide how a pair is rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast.fallback import few_values
from v1fast.fallback.few_values import Counts
from v1fast.fallback.matmul import rows_by_rows, treats_rows_alike
from v1fast.fallback.rdm_rows import blank, chunks, power_of_two
from v1fast.reference.whole_numbers import Angles

MOST = 2**18  # values of a matrix, and pairs of its rows
FEW = 2**14  # values that are multiplied at once
BLOCK = 128  # rows of others that are
LEAST_SQUARE = 2.0**-60  # of a row: without scaling, its products are normal numbers, and its rounding errors small


def takes(x: Tensor, method: str) -> bool:
    """Whether a matrix [1, S, K] is for this module."""
    return method != "euclidean" and x.numel() <= MOST and x.shape[1] ** 2 <= MOST


def _products(memory: Tensor, count: int, exact: bool) -> Tensor:  # [1, R, K] -> [S, S] float64
    """Return the products of the first rows with each other, the same on both sides of the diagonal."""
    size = memory.shape[1]
    if size <= BLOCK or memory.numel() <= FEW:
        gram = rows_by_rows(memory, memory, exact)[0, :count, :count].double()
        return gram if treats_rows_alike(memory, size) else gram.triu() + gram.triu(1).mT
    gram = memory.new_empty((size, size), dtype=torch.float64)
    for part in chunks(size, BLOCK):
        block = rows_by_rows(memory[:, part], memory[:, part.start :], exact)[0]
        gram[part, part.start :] = block
        gram[part.stop :, part] = block[:, block.shape[0] :].mT
        diagonal = gram[part, part]
        diagonal.copy_(diagonal.triu() + diagonal.triu(1).mT)
    return gram[:count, :count]


def write(x: Tensor, counts: Counts | None, method: str, condensed: bool, out: Tensor) -> bool:
    """Write the dissimilarities of a matrix [S, K] for "correlation" or "cosine". False if it needs more care."""
    values = _of_responses(x, method) if counts is None else _of_counts(counts, method)
    if values is None and counts is None:
        scaled = _scaled(x)
        values = None if scaled is None else _of_responses(scaled, method)
    if values is None:
        return False
    if condensed:
        out.copy_(values[values.new_ones(values.shape, dtype=torch.bool).triu_(1)])
    else:
        out.copy_(values).fill_diagonal_(0)
    return True


def _scaled(x: Tensor) -> Tensor | None:
    """Return the rows scaled by powers of two, which is exact; None if one has no finite value other than 0."""
    largest = x.abs().amax(-1, keepdim=True)
    return x * power_of_two(largest, x.dtype) if bool(((largest > 0) & largest.isfinite()).all()) else None


def _of_responses(x: Tensor, method: str) -> Tensor | None:
    members = x.unsqueeze(0)
    memory = torch.empty_like(members) if treats_rows_alike(members, len(x)) else blank(members, x.dtype)
    rows = memory[0, : len(x)]
    rest = None
    if method == "correlation":
        torch.sub(x, x.mean(-1, keepdim=True), out=rows)
        rest = rows.mean(-1).double()  # what rounding left of the mean
    else:
        rows.copy_(x)
    values = _products(memory, len(x), False)
    if rest is not None:
        values.addr_(rest, rest, alpha=-x.shape[1])
    own = values.diagonal()
    least, most = torch.aminmax(own)
    if not (least.item() >= LEAST_SQUARE and most.item() <= 1 / LEAST_SQUARE):
        return None
    inverse = own.rsqrt()
    return values.mul_(torch.outer(inverse, inverse)).neg_().add_(1).clamp_(0, 2)


def _of_counts(counts: Counts, method: str) -> Tensor | None:
    offset = torch.tensor(counts.least, dtype=torch.float64)
    angles, sums = Angles(method == "correlation", counts.rows.shape[2], offset), counts.sums[0].double()
    wide = _products(counts.rows, len(sums), True)
    norms, _ = angles.products(wide.diagonal(), sums, sums)
    if not norms.amin().item() > 0:
        return None
    inverse = norms.rsqrt()
    pairs = sums.unsqueeze(1), sums
    values = few_values.near(angles, wide, pairs, (inverse.unsqueeze(1), inverse)).fill_diagonal_(1)
    below, above = few_values.between(values)
    return below if torch.equal(below, above) else None
