"""The ops ``v1fast::rdm``, ``rdm_out``, ``cross_rdm`` and their backwards: see ``v1fast.reference.rdm``.

Rows are made ready a few at a time, in the dtype of the products, and only pairs i <= j are multiplied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast.fallback import few_values, rdm_rows, small_rdm
from v1fast.fallback.few_values import Finish, Whole
from v1fast.fallback.matmul import upper_products
from v1fast.fallback.rdm_rows import Rows, angles, chunks, plan, plan_exact, points, row_chunks, units, whole_rows
from v1fast.reference import rdm as reference
from v1fast.reference.rdm import compute_dtype, output_dtype
from v1fast.reference.whole_numbers import Places

BLOCK = 128  # rows of the matrix that are multiplied at a time
FEW = 2**14  # values that are multiplied at once


def _finish_points(rows: Rows, own: Tensor) -> Finish:
    factor = 1 / (rows.scale.square() * rows.shape[2])

    def finish(gram: Tensor, some: slice, others: slice) -> Tensor:
        values = gram.double().mul_(-2).add_(own[:, some]).add_(own[:, others].mT)
        return values.mul_(factor).clamp_(min=0)

    return finish


def _finish_angles(rows: Rows, own: Tensor) -> Finish:
    rest = None if rows.rest is None else rows.rest.double() * rows.shape[2] ** 0.5
    # Norms from the same products: the rounding errors of a row's large values cancel.
    inverse = (own if rest is None else own - rest.square()).rsqrt()

    def finish(gram: Tensor, some: slice, others: slice) -> Tensor:
        values = gram.double()
        if rest is not None:
            values -= rest[:, some] * rest[:, others].mT
        return values.mul_(inverse[:, some]).mul_(inverse[:, others].mT).neg_().add_(1).clamp_(0, 2)

    return finish


def _ready(x: Tensor, method: str, dtype: torch.dtype) -> Rows:
    return points(x) if method == "euclidean" else angles(x, method, dtype)


def _block(x: Tensor) -> int:
    """Return how many rows of a matrix to multiply at a time."""
    # Two halves, of which one product is left out; of few rows it saves less than an operation of torch costs.
    rows = x.shape[1]
    return BLOCK if rows > BLOCK or x.shape[0] * rows * x.shape[2] <= FEW else -(-rows // 32) * 16


def _write(x: Tensor, whole: Whole | None, method: str, condensed: bool, dtype: torch.dtype, out: Tensor) -> None:
    """Write the dissimilarities of a few matrices, which are whole numbers or have many values, all of them."""
    rows = _ready(x, method, dtype) if whole is None else whole.rows
    panels = plan(x, x.shape[1], dtype) if whole is None else plan_exact(x, whole.dtype)
    blocks = upper_products(panels.of(x, rows.write), x.shape[1], _block(x))
    own = torch.cat([block.diagonal(dim1=-2, dim2=-1) for block in blocks], -1).double()
    if whole is not None:
        whole = few_values.with_norms(whole, own, method)
        rows, finish = whole.rows, few_values.finish(whole, method, out.dtype)
    else:
        finish = (_finish_points if method == "euclidean" else _finish_angles)(rows, own.unsqueeze(-1))
    undefined = torch.where(rows.valid, 0.0, torch.nan).double()
    filled = start = 0
    for block in blocks:
        for part in chunks(block.shape[1], rdm_rows.ELEMENTS // (block.shape[0] * block.shape[2])):
            first = start + part.start
            gram = block[:, part, part.start :]
            some, others = slice(first, first + gram.shape[1]), slice(first, None)
            found = finish(gram, some, others).add_(undefined[:, some]).add_(undefined[:, others].mT)
            filled = _place(found, first, condensed, out, filled)
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
    batch, rows, columns = x.shape
    if small_rdm.write(x, method, condensed, accuracy, out):
        return
    if batch == 1:
        _fill_some(x, method, condensed, dtype, out)
        return
    for members in chunks(batch, rdm_rows.ELEMENTS // (rows * columns)):
        _fill_some(x[members], method, condensed, dtype, out[members])


def _fill_some(x: Tensor, method: str, condensed: bool, dtype: torch.dtype, out: Tensor) -> None:
    found = few_values.find(x, dtype)
    if isinstance(found, Places):
        _write_mixed(x, found, method, condensed, dtype, out)
    else:
        _write(x, None if found is None else found.whole(x, dtype), method, condensed, dtype, out)


def _write_mixed(x: Tensor, places: Places, method: str, condensed: bool, dtype: torch.dtype, out: Tensor) -> None:
    """Write the dissimilarities of a few matrices, of which some have places."""
    if bool(places.found.all()):
        _write(x, few_values.whole(x, places, dtype), method, condensed, dtype, out)
        return
    for which in (~places.found, places.found):
        some, result = x[which], out[which]
        found = None
        if which is places.found:
            found = few_values.whole(some, Places(*(part[which] for part in places)), dtype)
        _write(some, found, method, condensed, dtype, result)
        out[which] = result


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
        rows = points(x)
        values, scale, valid = whole_rows(rows, x, dtype), rows.scale, rows.valid
        pairs = reference.upper_gradient(grad.to(dtype), valid, condensed)
        pairs = (pairs + pairs.mT) * (2 / x.shape[-1])
        total, factor = pairs.sum(-1, keepdim=True), (1 / scale).to(dtype)
    else:
        assert matrix is not None
        values, factor, valid = units(x, method, dtype)
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
    for rows in row_chunks(values):
        part = values[:, rows].mul_(total[:, rows]).sub_(found[:, rows])
        torch.mul(part, factor if factor.shape[1] == 1 else factor[:, rows], out=found[:, rows])
    return found
