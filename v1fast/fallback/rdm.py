"""The ops ``v1fast::rdm``, ``rdm_out``, ``cross_rdm`` and their backwards: see ``v1fast.reference.rdm``.

Rows are made ready a few at a time, in the dtype of the products, and only pairs i <= j are multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from v1fast.reference import rdm as reference
from v1fast.reference import whole_numbers
from v1fast.reference.rdm import compute_dtype, output_dtype
from v1fast.reference.whole_numbers import Angles, Places

ELEMENTS = 2**17  # of rows, or of a matrix, that are worked on at a time
BLOCK = 128  # rows of the matrix that are multiplied at a time
FEW = 2**14  # values that are multiplied at once
SAMPLED = 320  # values that are looked at first, a few more than may be distinct
SAMPLED_PLACES = 16  # of these, values that are to be off all places
LARGEST_COUNT = 2**12
LEAST_SQUARE = 2.0**-60  # of a row: without scaling, its products are normal numbers, and its rounding errors small
UNCERTAIN = 2.0**-49  # a dissimilarity of directions in float64 is closer to the exact one
LARGEST_EXPONENT = {torch.float32: 126, torch.float64: 1000}  # of a scale: 2 to this power and its inverse are normal


class Rows(NamedTuple):
    """Rows as they are multiplied: scaled by powers of two to the order of 1, and centred if the method wants it."""

    values: Tensor  # [B, S, K], in ``memory``
    scale: Tensor  # [B, S, 1]; [B, 1, 1] for method "euclidean"
    valid: Tensor  # [B, S, 1]
    memory: Tensor
    rest: Tensor | None = None  # [B, S, 1]: what rounding left of the mean of a centred row


def _blank(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return memory for rows, the first of whole groups of 16; the others are zero.

    Matrix products treat the rows of a group alike. So equal rows have equal products, and a dissimilarity of 0.
    """
    batch, rows, columns = x.shape
    memory = x.new_empty((batch, -(-rows // 16) * 16, columns), dtype=dtype)
    memory[:, rows:] = 0
    return memory


def _chunks(rows: int, size: int) -> Iterator[slice]:
    for first in range(0, rows, max(1, size)):
        yield slice(first, first + max(1, size))


def _row_chunks(x: Tensor) -> Iterator[slice]:
    return _chunks(x.shape[1], ELEMENTS // x.shape[2])


def _scale(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 1 / largest, rounded to a power of two: scaling by it is exact."""
    most = LARGEST_EXPONENT[dtype]
    return torch.exp2(torch.frexp(largest).exponent.neg_().clamp_(-most, most).to(dtype))


def _angles(x: Tensor, method: str, dtype: torch.dtype) -> Rows:
    """Return the rows for methods "correlation" and "cosine".

    The mean is float64, so that it is the same for equal rows, whatever the order of the sum. It is subtracted in the
    dtype of the products. The rest, which is known, is taken off the products.
    """
    memory = _blank(x, dtype)
    values = memory[:, : x.shape[1]]
    scale = x.new_empty((*x.shape[:2], 1), dtype=dtype)
    rest = torch.empty_like(scale) if method == "correlation" else None
    valid = torch.empty_like(scale, dtype=torch.bool)
    for rows in _row_chunks(x):
        part = x[:, rows].to(dtype)
        low, high = part.amin(-1, keepdim=True), part.amax(-1, keepdim=True)
        has_direction = low < high if method == "correlation" else (low != 0) | (high != 0)
        valid[:, rows] = has_direction & (low > -torch.inf) & (high < torch.inf)
        scale[:, rows] = _scale(torch.maximum(-low, high), dtype)
        torch.mul(part, scale[:, rows], out=values[:, rows])
        if rest is not None:
            part = values[:, rows]
            mean = part.mean(-1, keepdim=True, dtype=torch.float64)
            rounded = mean.to(dtype)
            part -= rounded
            rest[:, rows] = mean - rounded
    return Rows(values, scale, valid, memory, rest)


def _units(x: Tensor, method: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit rows (zero where invalid), 1 / norm [B, S, 1], and which rows are valid [B, S, 1]."""
    found = _angles(x, method, dtype)
    inverse = found.scale
    for rows in _row_chunks(x):
        part, valid = found.values[:, rows], found.valid[:, rows]
        if found.rest is not None:
            part -= found.rest[:, rows]
        part.masked_fill_(~valid, 0)
        factor = 1 / torch.where(valid, part.square().sum(-1, keepdim=True).sqrt_(), 1)
        part *= factor
        inverse[:, rows] *= factor
    return found.values, inverse, found.valid


def _points(x: Tensor, dtype: torch.dtype) -> Rows:
    """Return the rows for method "euclidean". Their mean row is subtracted, which changes no distance."""
    batch, rows_in_all, columns = x.shape
    valid = x.new_empty((batch, rows_in_all, 1), dtype=torch.bool)
    total = x.new_zeros((batch, 1, columns), dtype=torch.float64)
    largest = x.new_zeros((batch, 1, 1), dtype=torch.float64)
    for rows in _row_chunks(x):
        wide = x[:, rows].double()
        here = wide.isfinite().all(-1, keepdim=True)
        valid[:, rows] = here
        wide = torch.where(here, wide, 0)
        total += wide.sum(1, keepdim=True)
        largest = torch.maximum(largest, wide.abs().amax((1, 2), keepdim=True))
    centre = total / valid.sum(1, keepdim=True).clamp(min=1)
    scale = _scale(2 * largest, torch.float64)
    memory = _blank(x, dtype)
    values = memory[:, :rows_in_all]
    for rows in _row_chunks(x):
        values[:, rows] = torch.where(valid[:, rows], (x[:, rows].double() - centre) * scale, 0)
    return Rows(values, scale, valid, memory)


class Whole(NamedTuple):
    """The whole numbers that the values of a few matrices are, as ``whole_numbers.Places`` has them."""

    rows: Rows
    squares: Tensor  # [B, S] float64
    sums: Tensor


def _sampled(x: Tensor) -> list[float] | None:
    """Return some values from all over a matrix, if it lies side by side in memory of the CPU."""
    if x.shape[0] > 1 or x.device.type != "cpu" or not x.is_contiguous():
        return None
    flat = x.view(-1)
    found: list[float] = flat[:: flat.numel() // SAMPLED | 1].tolist()
    return found


def _are_continuous(values: list[float], places: int) -> bool:
    """Whether some values of a matrix alone show that it has not few: ``whole_numbers.is_continuous``, without torch.

    They are too many for rule 1, and for rule 2 one is off all places.
    """
    if len(set(values)) <= whole_numbers.MOST_ROUNDED + 1 or not math.isfinite(sum(values)):
        return False
    few = values[:SAMPLED_PLACES]
    low, high = min(few), max(few)
    step = 2.0 ** max(-whole_numbers.LARGEST_EXPONENT, math.frexp(high - low)[1] - (places.bit_length() - 1))
    return any(((value - low) / step) % 1 for value in few)


def _places(x: Tensor, values: list[float] | None, dtype: torch.dtype) -> Places | None:
    """Return the places of a few matrices, looking at some of their rows at a time. ``values`` are some, if any."""
    places = whole_numbers.most_exact(dtype)
    if whole_numbers.is_continuous([x], False, places) if values is None else _are_continuous(values, places):
        return None
    return whole_numbers.find([x[:, rows] for rows in _row_chunks(x)], dtype)


class Counts(NamedTuple):
    """A matrix of whole numbers, the commonest of few values, from its least one on."""

    rows: Rows
    sums: Tensor  # [1, S] float64
    places: Places


def _counts(x: Tensor, values: list[float] | None, dtype: torch.dtype) -> Counts | None:
    """Return a matrix of whole numbers, None if it is another one: then ``_places`` is asked.

    The places are what ``whole_numbers.find`` returns but for a common divisor, on which no dissimilarity depends. The
    largest magnitude is small enough for the places of its first rule to be exact.
    """
    if values is None or x.dtype != torch.float32 or dtype != torch.float32 or any(value % 1 for value in values):
        return None
    low, high = (float(end) for end in torch.aminmax(x))
    n = high - low
    if not (low % 1 == high % 1 == 0 and 0 < n <= whole_numbers.MOST_ROUNDED and n * n * x.shape[2] <= 2**24):
        return None
    if max(-low, high) > LARGEST_COUNT:
        return None
    origin, step, found = (x.new_tensor([value], dtype=torch.float64) for value in (low, 1.0, 1.0))
    memory = _blank(x, dtype)
    inside = memory[:, : x.shape[1]]
    sums = x.new_empty(x.shape[:2], dtype=torch.float64)
    for rows in _row_chunks(x):
        part = torch.sub(x[:, rows], low, out=inside[:, rows])
        if bool((part != part.round()).any()):
            return None
        sums[:, rows] = part.sum(-1)  # exact, as all products are
    valid = x.new_ones((*x.shape[:2], 1), dtype=torch.bool)
    return Counts(Rows(inside, step[:, None, None], valid, memory), sums, Places(origin, step, origin, found > 0))


def _whole(x: Tensor, places: Places, method: str, dtype: torch.dtype) -> Whole:
    batch, rows_in_all, _ = x.shape
    memory = _blank(x, dtype)
    values = memory[:, :rows_in_all]
    squares, sums = (x.new_empty((batch, rows_in_all), dtype=torch.float64) for _ in range(2))
    valid = x.new_empty((batch, rows_in_all, 1), dtype=torch.bool)
    for part in _row_chunks(x):
        m = places.of(x[:, part])
        values[:, part], squares[:, part], sums[:, part] = m, m.square().sum(-1), m.sum(-1)
        valid[:, part] = x[:, part].isfinite().all(-1, keepdim=True)
    rows = Rows(values, places.step[:, None, None], valid, memory)
    return _with_norms(Whole(rows, squares, sums), places, method)


def _with_norms(found: Whole, places: Places, method: str) -> Whole:
    """Return the same, with rows without a direction invalid."""
    if method == "euclidean":
        return found
    squares, sums = found.squares[..., None], found.sums[..., None]
    norms, _ = _turned(places, method, found.rows.values.shape[2]).products(squares, sums, sums)
    return found._replace(rows=found.rows._replace(valid=found.rows.valid & (norms > 0)))


def _turned(places: Places, method: str, columns: int) -> Angles:
    return Angles(method == "correlation", columns, places.offset[:, None, None])


Finish = Callable[[Tensor, slice, slice], Tensor]
"""Turns products [B, s, t] of some rows and others into their dissimilarities, in float64."""


def _finish_whole(found: Whole, places: Places, method: str, dtype: torch.dtype) -> Finish:
    squares, sums, columns = found.squares, found.sums, found.rows.values.shape[2]
    angles, step = _turned(places, method, columns), found.rows.scale

    def euclidean(gram: Tensor, some: slice, others: slice) -> Tensor:
        # In the order of the reference, for the same bits.
        return (squares[:, some, None] + squares[:, None, others] - 2 * gram.double()) * step * step / columns

    def exact(gram: Tensor, some: slice, others: slice) -> Tensor:
        own, other = ((squares[:, part], sums[:, part]) for part in (some, others))
        return whole_numbers.dissimilarities(angles, gram.double(), own, other)

    if method == "euclidean":
        return euclidean
    return exact if dtype == torch.float64 else _finish_certain(found, angles)


def _finish_certain(found: Whole, angles: Angles) -> Finish:
    """Return what computes a float32 in float64, and exactly only where that does not decide how it is rounded."""
    squares, sums = found.squares, found.sums
    inverse, _ = whole_numbers.norms(angles, squares.unsqueeze(-1), sums.unsqueeze(-1))

    def finish(gram: Tensor, some: slice, others: slice) -> Tensor:
        wide = gram.double()
        turned, _ = angles.products(wide, sums[:, some, None], sums[:, None, others])
        values = turned.mul_(inverse[:, some]).mul_(inverse[:, others].mT).neg_().add_(1)
        rounded = (values - UNCERTAIN).float()
        # Of each pair once, and not of a row with itself: what is below stands in no matrix.
        uncertain = (rounded != values.add_(UNCERTAIN).float()).triu_(1).nonzero(as_tuple=True)
        values = rounded.double()
        if len(uncertain[0]):
            member, i, j = uncertain
            own = squares[member, some.start + i, None], sums[member, some.start + i, None]
            other = squares[member, others.start + j, None], sums[member, others.start + j, None]
            pairs, products = angles._replace(offset=angles.offset[member]), wide[uncertain][:, None, None]
            values[uncertain] = whole_numbers.dissimilarities(pairs, products, own, other).flatten()
        return values

    return finish


def _finish_points(rows: Rows, own: Tensor) -> Finish:
    factor = 1 / (rows.scale.square() * rows.values.shape[-1])

    def finish(gram: Tensor, some: slice, others: slice) -> Tensor:
        values = gram.double().mul_(-2).add_(own[:, some]).add_(own[:, others].mT)
        return values.mul_(factor).clamp_(min=0)

    return finish


def _finish_angles(rows: Rows, own: Tensor) -> Finish:
    rest = None if rows.rest is None else rows.rest.double() * rows.values.shape[-1] ** 0.5
    # Norms from the same products: the rounding errors of a row's large values cancel.
    inverse = (own if rest is None else own - rest.square()).rsqrt()

    def finish(gram: Tensor, some: slice, others: slice) -> Tensor:
        values = gram.double()
        if rest is not None:
            values -= rest[:, some] * rest[:, others].mT
        return values.mul_(inverse[:, some]).mul_(inverse[:, others].mT).neg_().add_(1).clamp_(0, 2)

    return finish


def _products(memory: Tensor, count: int) -> list[Tensor]:
    """Return the products of rows with themselves and all later ones, some rows after another."""
    # Two halves, of which one product is left out; of few rows it saves less than an operation of torch costs.
    size = BLOCK if count > BLOCK or memory.numel() <= FEW else -(-count // 32) * 16
    blocks = []
    for part in _chunks(count, size):
        block = memory[:, part] @ memory[:, part.start :].mT
        blocks.append(block[:, : count - part.start, : count - part.start])
    return blocks


def _write(
    x: Tensor,
    places: Places | None,
    counts: Counts | None,
    method: str,
    condensed: bool,
    dtype: torch.dtype,
    out: Tensor,
) -> None:
    """Write the dissimilarities of a few matrices, of which all or none have few values."""
    whole = None
    if counts is not None:
        rows = counts.rows
    elif places is not None:
        whole = _whole(x, places, method, dtype)
        rows = whole.rows
    else:
        rows = _points(x, dtype) if method == "euclidean" else _angles(x, method, dtype)
    count = x.shape[1]
    blocks = _products(rows.memory, count)
    if whole is None:
        own = torch.cat([block.diagonal(dim1=-2, dim2=-1) for block in blocks], -1).double()
    if counts is not None:
        places = counts.places
        whole = _with_norms(Whole(rows, own, counts.sums), places, method)
        rows = whole.rows
    if whole is not None and places is not None:
        finish = _finish_whole(whole, places, method, out.dtype)
    else:
        own = own.unsqueeze(-1)
        finish = _finish_points(rows, own) if method == "euclidean" else _finish_angles(rows, own)
    undefined = torch.where(rows.valid, 0.0, torch.nan).double()
    filled = 0
    start = 0
    for block in blocks:
        for part in _chunks(block.shape[1], ELEMENTS // (block.shape[0] * block.shape[2])):
            first = start + part.start
            gram = block[:, part, part.start :]
            some, others = slice(first, first + gram.shape[1]), slice(first, None)
            found_here = finish(gram, some, others).add_(undefined[:, some]).add_(undefined[:, others].mT)
            filled = _place(found_here, first, condensed, out, filled)
        start += block.shape[1]
    if not condensed:
        out.diagonal(dim1=-2, dim2=-1).copy_(undefined.squeeze(-1))


def _place(values: Tensor, first: int, condensed: bool, out: Tensor, filled: int) -> int:
    """Write rows of the upper triangle, and their mirror image. Return how many pairs have been written in all."""
    count = values.shape[1]
    if condensed:
        pairs = values[:, values.new_ones(values.shape[1:], dtype=torch.bool).triu_(1)]
        out[:, filled : filled + pairs.shape[1]] = pairs
        return filled + pairs.shape[1]
    corner = values[:, :, :count].triu(1)
    values[:, :, :count] = corner + corner.mT
    out[:, first : first + count, first:] = values
    out[:, first + count :, first : first + count] = values[:, :, count:].mT
    return 0


def _write_small(x: Tensor, method: str, condensed: bool, out: Tensor) -> bool:
    """Write the dissimilarities of a small matrix [S, K] in few operations, unless a row needs more care.

    That is one with a value that is not finite or without a direction, or one so large or small that products of it
    would not be normal numbers.
    """
    memory = _blank(x.unsqueeze(0), x.dtype)[0]
    rows, count = memory[: len(x)], len(x)
    if method == "correlation":
        mean = x.mean(-1, keepdim=True, dtype=torch.float64)
        rounded = mean.to(x.dtype)
        torch.sub(x, rounded, out=rows)
    else:
        rows.copy_(x)
    gram = memory.new_empty((len(memory), len(memory)))
    for part in _chunks(len(memory), len(memory) if memory.numel() <= FEW else 32):
        torch.mm(memory[part], memory[part.start :].t(), out=gram[part, part.start :])
    values = gram[:count, :count].double()
    if method == "correlation":
        rest = (mean - rounded).squeeze(1)
        values.addr_(rest, rest, alpha=-x.shape[1])
    own = values.diagonal()
    least, most = torch.aminmax(own)
    if not (least.item() >= LEAST_SQUARE and most.item() <= 1 / LEAST_SQUARE):
        return False
    inverse = own.rsqrt()
    values.mul_(inverse.unsqueeze(1)).mul_(inverse).neg_().add_(1).clamp_(0, 2).triu_(1)
    if condensed:
        out.copy_(values[values.new_ones(values.shape, dtype=torch.bool).triu_(1)])
    else:
        torch.add(values, values.mT, out=out)
    return True


def _fill(x: Tensor, y: Tensor | None, method: str, condensed: bool, accuracy: str, out: Tensor) -> None:
    if out.numel() == 0:
        return
    if y is not None:
        out.copy_(reference.rdm(x, y, method, condensed, accuracy))
    elif torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            _fill_alone(x, method, condensed, accuracy, out)
    else:
        _fill_alone(x, method, condensed, accuracy, out)


def _fill_alone(x: Tensor, method: str, condensed: bool, accuracy: str, out: Tensor) -> None:
    dtype = compute_dtype(x, None, accuracy)
    for members in _chunks(x.shape[0], ELEMENTS // (x.shape[1] * x.shape[2])):
        some, into = x[members], out[members]
        values = _sampled(some)
        counts = _counts(some, values, dtype)
        places = None if counts is not None else _places(some, values, dtype)
        is_small = values is not None and x.dtype == dtype and some.numel() <= ELEMENTS and method != "euclidean"
        if is_small and counts is None and places is None and _write_small(some[0], method, condensed, into[0]):
            continue
        if places is None or bool(places.found.all()):
            _write(some, places, counts, method, condensed, dtype, into)
            continue
        for which, found in (
            (~places.found, None),
            (places.found, Places(*(part[places.found] for part in places))),
        ):
            result = into[which]
            _write(some[which], found, None, method, condensed, dtype, result)
            into[which] = result


def rdm_out(x: Tensor, y: Tensor | None, method: str, condensed: bool, accuracy: str, out: Tensor) -> None:
    """The op ``v1fast::rdm_out``."""
    _fill(x, y, method, condensed, accuracy, out)


def rdm(
    x: Tensor,  # [B, S, K]
    y: Tensor | None,  # [B, S, K]
    method: str,
    condensed: bool,
    accuracy: str,
) -> Tensor:  # [B, S, S] or [B, S (S - 1) / 2]
    """The op ``v1fast::rdm``."""
    batch, rows = x.shape[:2]
    shape = (batch, rows * (rows - 1) // 2) if condensed else (batch, rows, rows)
    out = x.new_empty(shape, dtype=output_dtype(x, y))
    _fill(x, y, method, condensed, accuracy, out)
    return out


def rdm_backward(
    grad: Tensor,
    matrix: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    method: str,
    condensed: bool,
    accuracy: str,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor]:
    """The op ``v1fast::rdm_backward``."""
    if y is not None or x.numel() == 0 or not output_mask[0]:
        return reference.rdm_backward(grad, matrix, x, y, method, condensed, accuracy, output_mask)
    dtype, none = compute_dtype(x, y, accuracy), x.new_empty(0)
    if method == "euclidean":
        values, scale, valid, *_ = _points(x, dtype)
        pairs = reference.upper_gradient(grad.to(dtype), valid, condensed)
        pairs = (pairs + pairs.mT) * (2 / x.shape[-1])
        total, factor = pairs.sum(-1, keepdim=True), (1 / scale).to(dtype)
    else:
        assert matrix is not None
        values, factor, valid = _units(x, method, dtype)
        pairs = reference.upper_gradient(grad.to(dtype), valid, condensed)
        square = reference.square_of(matrix, x.shape[1], condensed)
        own = pairs * reference.similarity(square, valid & valid.mT, dtype)
        pairs = pairs + pairs.mT
        total = (own + own.mT).sum(-1, keepdim=True)
    return _project(values, pairs, total, factor).to(x.dtype), none


def _project(values: Tensor, pairs: Tensor, total: Tensor, factor: Tensor) -> Tensor:
    """Return (total * values - pairs @ values) * factor, a few rows at a time. The values are overwritten."""
    with torch.autocast(values.device.type, enabled=False):
        found = pairs @ values
    for rows in _row_chunks(values):
        part = values[:, rows].mul_(total[:, rows]).sub_(found[:, rows])
        torch.mul(part, factor if factor.shape[1] == 1 else factor[:, rows], out=found[:, rows])
    return found


def cross_rdm(x: Tensor, y: Tensor, method: str, accuracy: str) -> Tensor:  # [B, S, K], [B, T, K] -> [B, S, T]
    """The op ``v1fast::cross_rdm``."""
    dtype = compute_dtype(x, y, accuracy)
    empty = x.numel() == 0 or y.numel() == 0
    if empty or method == "euclidean" or whole_numbers.find([x, y], dtype) is not None:
        return reference.cross_rdm(x, y, method, accuracy)
    (u, _, valid), (v, _, other_valid) = (_units(rows, method, dtype) for rows in (x, y))
    with torch.autocast(x.device.type, enabled=False):
        values = u @ v.mT
    values = values.to(output_dtype(x, y)).neg_().add_(1).clamp_(0, 2)
    return values.masked_fill_(~(valid & other_valid.mT), torch.nan)
