"""Small matrices of few values, in few operations of torch, or of NumPy, which take half as long for few values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from v1fast.fallback import few_values
from v1fast.fallback.few_values import Multiples
from v1fast.fallback.matmul import upper_products
from v1fast.fallback.rdm_rows import ALL
from v1fast.fallback.square_forms import assembled, finished, number, upper
from v1fast.reference import whole_numbers
from v1fast.reference.whole_numbers import Angles

BLOCK = 128  # rows that are multiplied at a time, so that most pairs are multiplied once
FEW = 2**13  # pairs, for which NumPy is faster


def of_multiples(x: Tensor, found: Multiples, method: str, condensed: bool) -> Tensor | None:  # [1, S, K]
    """A matrix of any few values. None: it needs more care."""
    rows, columns = x.shape[1:]
    m = found.of(x) if found.all is None else found.all
    blocks = [block[0] for block in upper_products([m.to(found.dtype)], rows, BLOCK)]
    own = (blocks[0].diagonal() if len(blocks) == 1 else torch.cat([block.diagonal() for block in blocks])).double()
    sums = found.sums[0].double()
    if method == "euclidean":
        finish: Finish | None = _distances(own, found.step or 1.0, columns)
    elif x.dtype == torch.float64:
        finish = _exact_angles(
            own, sums, Angles(method == "correlation", columns, own.new_full((1, 1, 1), found.offset))
        )
    elif method == "cosine" and found.offset:
        return None
    else:
        finish = _angles(own, None if method == "cosine" else sums, columns)
    if finish is None:
        return None
    parts, start = [], 0
    for block in blocks:
        values = finish(block.double(), slice(start, start + len(block)), slice(start, None))
        if values is None:
            return None
        parts.append(values.to(x.dtype))
        start += len(block)
    return finished(assembled(parts, rows), condensed)


def of_counts(x: Tensor, method: str, condensed: bool) -> Tensor | None:  # [B, S, K]
    """Matrices of whole numbers, the commonest of few values. None: these are others, or need more care."""
    if x.dtype != torch.float32 or not few_values.are_whole(x):
        return None
    gram = torch.bmm(x, x.mT).double()
    own = gram.diagonal(dim1=-2, dim2=-1).clone()
    if method == "euclidean":
        finish: Finish | None = _distances(own, 1.0, x.shape[2])
    else:
        finish = _angles(own, None if method == "cosine" else x.sum(-1).double(), x.shape[2])
    found = None if finish is None else finish(gram, ALL, ALL)
    return None if found is None else finished(found.float(), condensed)


Finish = Callable[[Tensor, slice, slice], Tensor | None]
"""Turns products [..., s, t] of some rows and others, float64, into dissimilarities. None: they need more care. It may
overwrite them.
"""


def _distances(own: Tensor, step: float, columns: int) -> Finish:  # [..., S]
    def finish(gram: Tensor, some: slice, others: slice) -> Tensor:
        # In the order of the reference, for the same bits.
        values = (own[..., some, None] + own[..., None, others]).sub_(gram, alpha=2)
        return values.mul_(step).mul_(step).div_(columns)

    return finish


def _exact_angles(own: Tensor, sums: Tensor, angles: Angles) -> Finish | None:  # [S]
    high, _ = angles.products(own[None, :, None], sums[None, :, None], sums[None, :, None])
    if not high.amin().item() > 0:
        return None

    def finish(gram: Tensor, some: slice, others: slice) -> Tensor:
        first, second = ((own[None, part], sums[None, part]) for part in (some, others))
        return whole_numbers.dissimilarities(angles, gram.unsqueeze(0), first, second)[0]

    return finish


def _angles(own: Tensor, sums: Tensor | None, columns: int) -> Finish | None:  # [..., S]
    finish = angles_of_sets((own, sums), (own, sums), columns)
    if finish is None:
        return None

    def of_one_set(gram: Tensor, some: slice, others: slice) -> Tensor | None:
        return finish(gram, some, others, True)

    return of_one_set


def angles_of_sets(
    own: tuple[Tensor, Tensor | None], other: tuple[Tensor, Tensor | None], columns: int
) -> Callable[[Tensor, slice, slice, bool], Tensor | None] | None:
    """Return what makes angles of products of whole numbers, which it may overwrite, from squares and sums of rows.

    Of one set, what stands on the diagonal may be anything. The sums are None for method "cosine".
    """
    (squares, sums), (other_squares, other_sums) = own, other
    if squares.dim() == 1 and len(squares) * len(other_squares) <= FEW:
        sets = [tuple(None if t is None else t.numpy() for t in pair) for pair in (own, other)]
        return partial(_few_angles, columns, sets[0], sets[0] if other_squares is squares else sets[1])
    norms = squares if sums is None else squares * columns - sums * sums
    other_norms = norms
    if other_squares is not squares:
        other_norms = other_squares if other_sums is None else other_squares * columns - other_sums * other_sums
    if not (norms.amin().item() > 0 and other_norms.amin().item() > 0):
        return None
    inverse, one = norms.rsqrt(), number(1, torch.float64)
    other_inverse = inverse if other_norms is norms else other_norms.rsqrt()

    def finish(gram: Tensor, some: slice, others: slice, is_symmetric: bool) -> Tensor | None:
        if sums is not None and other_sums is not None:
            gram.mul_(columns).addcmul_(sums[..., some, None], other_sums[..., None, others], value=-1)
        outer = inverse[..., some, None] * other_inverse[..., None, others]
        values = torch.addcmul(one, gram, outer, value=-1)
        if is_symmetric:
            values.diagonal(dim1=-2, dim2=-1).fill_(1)  # of a row with itself, which is 0 in the end
        below, above = few_values.between(values)
        if not torch.equal(below, above):
            # Of equal rows, near whose dissimilarity of 0 all numbers differ.
            same = (gram == norms[..., some, None]) & (gram == other_norms[..., None, others])
            below, above = below.masked_fill_(same, 0), above.masked_fill_(same, 0)
        return below if torch.equal(below, above) else None

    return finish


def _few_angles(
    columns: int, own: Any, other: Any, gram: Tensor, some: slice, others: slice, is_symmetric: bool
) -> Tensor | None:
    found = angles_of_few(columns, own, other, gram.numpy(), is_symmetric)
    return None if found is None else torch.from_numpy(found)


def angles_of_few(columns: int, own: Any, other: Any, products: Any, is_symmetric: bool) -> Any:
    """The same of few pairs, by NumPy, whose operations take half as long as torch's."""
    (squares, sums), (other_squares, other_sums) = own, other
    norms = squares if sums is None else squares * columns - sums * sums
    other_norms = norms
    if own is not other:
        other_norms = other_squares if other_sums is None else other_squares * columns - other_sums * other_sums
    if not (min(norms.tolist()) > 0 and (other_norms is norms or min(other_norms.tolist()) > 0)):
        return None
    inverse = 1 / np.sqrt(norms)
    other_inverse = inverse if other_norms is norms else 1 / np.sqrt(other_norms)
    if sums is not None:
        products *= columns
        products -= np.multiply.outer(sums, other_sums)
    values = products * np.multiply.outer(-inverse, other_inverse)
    values += 1
    if is_symmetric:
        values.ravel()[:: len(values) + 1] = 1  # of a row with itself, which is 0 in the end
    below = (values - few_values.UNCERTAIN).astype(np.float32)
    values += few_values.UNCERTAIN
    above = values.astype(np.float32)
    if not (below == above).all():
        # Of equal rows, near whose dissimilarity of 0 all numbers differ.
        same = (products == norms[:, None]) & (products == other_norms)
        below[same] = above[same] = 0
        if not (below == above).all():
            return None
    return below


def of_few_counts(x: Tensor, method: str, condensed: bool) -> Tensor | None:  # [S, K]
    """A small matrix of whole numbers from -128 to 127, by NumPy. None: it is another one, or needs more care."""
    given, m = x.numpy(), x.to(torch.int8).numpy()
    if not (given == m).all():
        return None
    rows, columns = given.shape
    products = np.dot(given, given.T).astype(np.float64)
    squares = products.ravel()[:: rows + 1].copy()
    if method == "euclidean":
        products *= -2
        products += squares[:, None]
        products += squares
        products /= columns
        found = products.astype(np.float32)
    else:
        own = squares, None if method == "cosine" else np.add.reduce(given, 1, dtype=np.float64)
        found = angles_of_few(columns, own, own, products, True)
        if found is None:
            return None
    if condensed:
        return torch.from_numpy(found.ravel()[upper(rows).numpy()])
    found.ravel()[:: rows + 1] = 0
    return torch.from_numpy(found)
