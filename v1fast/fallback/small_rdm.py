"""Dissimilarities of a small matrix in few operations of torch, which take a microsecond each, whatever they compute.

What needs more care is left to ``rdm``: a row with a value that is not finite or without a direction; one so large or
small that products of it would not be normal numbers; counts of which float64 does not decide how a pair is rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast.fallback import few_values
from v1fast.fallback.few_values import Whole
from v1fast.fallback.matmul import rows_by_rows, treats_rows_alike
from v1fast.fallback.rdm_rows import blank, chunks

MOST = 2**18  # values of a matrix, and pairs of its rows
FEW = 2**14  # values that are multiplied at once
BLOCK = 128  # rows of others that are
LEAST_SQUARE = 2.0**-60  # of a row: without scaling, its products are normal numbers, and its rounding errors small


def takes(x: Tensor, method: str) -> bool:
    """Whether a matrix [1, S, K] is for this module."""
    return method != "euclidean" and x.numel() <= MOST and x.shape[1] ** 2 <= MOST


def _upper_products(memory: Tensor, count: int) -> Tensor:  # [1, R, K] -> [S, S] float64
    """Return the products of the first rows with themselves and later ones; what is below the diagonal is anything."""
    size = memory.shape[1]
    if memory.numel() <= FEW or size <= BLOCK:
        return rows_by_rows(memory, memory)[0, :count, :count].double()
    gram = memory.new_empty((size, size), dtype=torch.float64)
    for part in chunks(size, BLOCK):
        gram[part, part.start :] = rows_by_rows(memory[:, part], memory[:, part.start :])[0]
    return gram[:count, :count]


def write(x: Tensor, counts: Whole | None, method: str, condensed: bool, out: Tensor) -> bool:
    """Write the dissimilarities of a matrix [S, K] for "correlation" or "cosine". False if it needs more care."""
    values = _of_responses(x, method) if counts is None else _of_counts(counts, method)
    if values is None:
        return False
    if condensed:
        out.copy_(values[values.new_ones(values.shape, dtype=torch.bool).triu_(1)])
    else:
        values.triu_(1)
        torch.add(values, values.mT, out=out)
    return True


def _of_responses(x: Tensor, method: str) -> Tensor | None:
    members = x.unsqueeze(0)
    memory = torch.empty_like(members) if treats_rows_alike(members, len(x)) else blank(members, x.dtype)
    rows = memory[0, : len(x)]
    rest = None
    if method == "correlation":
        torch.sub(x, x.mean(-1, keepdim=True), out=rows)
        rest = rows.mean(-1, dtype=x.dtype).double()  # what rounding left of the mean
    else:
        rows.copy_(x)
    values = _upper_products(memory, len(x))
    if rest is not None:
        values.addr_(rest, rest, alpha=-x.shape[1])
    own = values.diagonal()
    least, most = torch.aminmax(own)
    if not (least.item() >= LEAST_SQUARE and most.item() <= 1 / LEAST_SQUARE):
        return None
    inverse = own.rsqrt()
    return values.mul_(inverse.unsqueeze(1)).mul_(inverse).neg_().add_(1).clamp_(0, 2)


def _of_counts(counts: Whole, method: str) -> Tensor | None:
    angles, sums = few_values.turned(counts, method), counts.sums[0]
    wide = _upper_products(counts.rows.memory, len(sums))
    norms = angles._replace(offset=angles.offset[0]).products(
        wide.diagonal().unsqueeze(1), sums[:, None], sums[:, None]
    )[0]
    if not norms.amin().item() > 0:
        return None
    inverse = norms.rsqrt()
    found = few_values.near(angles, wide, (sums[:, None], sums), (inverse, inverse.t()))
    below, above = few_values.between(found[0] if found.dim() == 3 else found)
    return below if torch.equal(below.triu_(1), above.triu_(1)) else None
