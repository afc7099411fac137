"""The op ``v1fast::cross_rdm`` and its backward: see ``v1fast.reference.rdm``.

Small calls, and those of few values, are computed for all rows at once. Of wide rows some columns are made ready at a
time, in memory that is used again.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd

from v1fast._torch import any_requires_grad, is_plain, without_autocast
from v1fast.fallback import few_values, rdm_rows
from v1fast.fallback.few_values import Multiples
from v1fast.fallback.matmul import columns_of_chain, rows_by_rows, treats_alike
from v1fast.fallback.rdm_rows import ALL, Rows, angles, chunks, plan
from v1fast.fallback.small_few import angles_of_sets
from v1fast.fallback.small_rdm import (
    FAR,
    LEAST,
    MOST_FORMS,
    NEAR,
    Op,
    by_batch,
    ends,
    has_nan,
    has_units,
    is_usual,
    mean_of,
    units,
)
from v1fast.fallback.square_forms import number
from v1fast.reference import rdm as reference
from v1fast.reference.rdm import ACCURACIES, METHODS, compute_dtype, output_dtype
from v1fast.reference.whole_numbers import Angles

PAIRS = 2**14  # for fewer, oneDNN saves less time than copies of its operands take
MOST = 2**20  # values of a set of rows, all of which are centred at once


def _is_plain_form(x: Tensor, y: Tensor, dtype: torch.dtype) -> bool:
    return x.dtype == y.dtype == dtype and x.is_cpu and y.is_cpu


# Responses of many values -----------------------------------------------------------------------------------------


def _products(x: Tensor, y: Tensor) -> Tensor:  # [..., S, K], [..., T, K] -> [..., S, T]
    if x.dim() == 3:
        return torch.bmm(x, y.mT)
    if len(x) * len(y) < PAIRS or not treats_alike(x, len(x), len(y), x.shape[1]):
        return torch.mm(x, y.t())
    width, found = columns_of_chain(x.shape[1]), None
    for a, b in zip(x.split(width, 1), y.split(width, 1), strict=True):
        products = rows_by_rows(a.contiguous().unsqueeze(0), b.unsqueeze(0))[0]
        found = products if found is None else found.add_(products)
    assert found is not None
    return found


def _distances(x: Tensor, y: Tensor) -> Tensor | None:
    """By products of rows less the mean row of the first set, which avoids cancellation of what all rows share."""
    columns = x.shape[-1]
    mean = mean_of(x, -2)
    x, y = x - mean, y - mean
    own, other = (torch.linalg.vector_norm(t, 2, -1).square_() for t in (x, y))
    most = max(ends(own)[1], ends(other)[1])
    if not LEAST * LEAST <= most <= 1 / LEAST:
        return None
    sums = own.unsqueeze(-1) + other.unsqueeze(-2)
    return sums.sub_(_products(x, y), alpha=2).mul_(1 / columns).clamp_(min=0)


def _correlations(x: Tensor, y: Tensor, method: str) -> Tensor | None:
    columns, is_centred, far, rests = x.shape[-1], method == "correlation", 0.0, None
    if is_centred:
        mean, other_mean = mean_of(x, -1), mean_of(y, -1)
        x, y = x - mean, y - other_mean
        (low, high), (other_low, other_high) = ends(mean), ends(other_mean)
        far = max(-low, high, -other_low, other_high)
    own, other = torch.linalg.vector_norm(x, 2, -1), torch.linalg.vector_norm(y, 2, -1)
    (least, most), (other_least, other_most) = ends(own), ends(other)
    least, most = min(least, other_least), max(most, other_most)
    # Written so that NaN is refused.
    if not (LEAST <= least <= other_least and most + other_most <= 1 / LEAST):
        return None
    if not far * far * columns <= NEAR * least * least:
        if not far * far * columns <= FAR * least * least:
            return None
        rests = [mean_of(t, -1).squeeze(-1) for t in (x, y)]  # what rounding left of the means
        own, other = (
            t.square_().addcmul_(r, r, value=-columns).sqrt_() for t, r in zip((own, other), rests, strict=True)
        )
    products = _products(x, y)
    if rests is not None:
        products.addcmul_(rests[0].unsqueeze(-1), rests[1].unsqueeze(-2), value=-columns)
    norms = own.unsqueeze(-1) * other.unsqueeze(-2)
    return products.div_(norms).neg_().add_(1).clamp_(0, 2)


# Responses of few values ------------------------------------------------------------------------------------------


def _of_multiples(x: Tensor, y: Tensor, found: Multiples, method: str) -> Tensor:
    """Return [B, S, T] of two sets of rows whose values share their places."""
    columns = x.shape[2]
    m = [found.of(t).contiguous() for t in (x, y)]
    (own, sums), (other, other_sums) = (
        (torch.linalg.vecdot(t, t).double(), s.double())
        for t, s in zip(m, found.sums.split([x.shape[1], y.shape[1]], 1), strict=True)
    )
    gram = rows_by_rows(*(t.to(found.dtype) for t in m))
    out = x.new_empty(gram.shape, dtype=x.dtype)
    offset = torch.full((x.shape[0], 1, 1), found.offset, dtype=torch.float64)
    centred, quick = method == "correlation", None
    if method != "euclidean" and x.dtype == torch.float32 and (centred or not found.offset):
        quick = angles_of_sets((own, sums if centred else None), (other, other_sums if centred else None), columns)
    exact: Any = None
    for some in chunks(gram.shape[1], rdm_rows.ELEMENTS // (gram.shape[0] * gram.shape[2])):
        wide = gram[:, some].double()
        if method == "euclidean":
            step = found.step or 1.0
            values = own[:, some, None] + other[:, None]
            out[:, some] = values.sub_(wide, alpha=2).mul_(step).mul_(step).div_(columns)
            continue
        angles = None if quick is None else quick(wide, some, ALL, False)
        if angles is None:
            exact = exact or few_values.between_sets(Angles(centred, columns, offset), (own, sums), (other, other_sums))
            angles = exact(gram[:, some].double(), some, out.dtype)
        out[:, some] = angles
    return out


# Which form? ------------------------------------------------------------------------------------------------------


def _of_many(x: Tensor, y: Tensor, method: str) -> Tensor | None:  # [..., S, K], [..., T, K]
    if method == "euclidean":
        return _distances(x, y)
    if max(x.numel(), y.numel()) > MOST:
        return None
    if x.dim() == 2 and has_units(x.shape, method) and has_units(y.shape, method):
        own = units(x, method)
        other = None if own is None else units(y, method)
        if own is not None and other is not None:
            return torch.addmm(number(1, x.dtype), own[0], other[0].t(), alpha=-own[1]).clamp_(0, 2)
    return _correlations(x, y, method)


def _alone(x: Tensor, y: Tensor, method: str, dtype: torch.dtype) -> Tensor | None:  # [S, K], [T, K]
    largest, seen = few_values.look(x.shape, dtype)(x)
    largest, others = (largest, []) if largest == math.inf else few_values.look(y.shape, dtype)(y)
    if largest < math.inf:
        few = few_values.find(torch.cat((x, y)).unsqueeze(0), dtype, sorted(seen + others))
        if isinstance(few, Multiples):
            return _of_multiples(x.unsqueeze(0), y.unsqueeze(0), few, method)[0]
        if few is not None:
            return None
    return _of_many(x, y, method)


def _quick(x: Tensor, y: Tensor, method: str, dtype: torch.dtype) -> Tensor | None:  # [B, S, K], [B, T, K]
    """Return the dissimilarities; None if they need more care, or less memory."""
    x, y = x.contiguous(), y.contiguous()
    if max(x.numel(), y.numel()) <= MOST:
        are_many = few_values.are_continuous(x, dtype)
        if are_many.all() or (are_many | few_values.are_continuous(y, dtype)).all():
            return _of_many(x, y, method)
        whole = few_values.whole_of_sets(x, y) if not are_many.any() else None
        if whole is not None:
            return _of_multiples(x, y, whole, method)
    found = []
    for a, b in zip(x, y, strict=True):
        one = _alone(a, b, method, dtype)
        if one is None:
            return None
        found.append(one)
    return torch.stack(found)


def _quick_of(x: Tensor, y: Tensor, method: str, dtype: torch.dtype) -> Tensor | None:  # [..., S, K], [..., T, K]
    if x.dim() == 2:
        return _alone(x.contiguous(), y.contiguous(), method, dtype)
    found = _quick(by_batch(x), by_batch(y), method, dtype)
    return None if found is None else found.view(*x.shape[:-1], y.shape[-2])


def cross_rdm(x: Tensor, y: Tensor, method: str, accuracy: str) -> Tensor:  # [B, S, K], [B, T, K] -> [B, S, T]
    """The op ``v1fast::cross_rdm``."""
    dtype = compute_dtype(x, y, accuracy)
    if x.numel() == 0 or y.numel() == 0:
        return reference.cross_rdm(x, y, method, accuracy)
    with without_autocast(x.device):
        if _is_plain_form(x, y, dtype):
            if x.shape[0] > 1:
                found = _quick_of(x.detach(), y.detach(), method, dtype)
            else:
                one = _quick_of(x[0].detach(), y[0].detach(), method, dtype)
                found = None if one is None else one.unsqueeze(0)
            if found is not None:
                return found
        if method == "euclidean" or few_values.may_have_places(x, y, dtype):
            return reference.cross_rdm(x, y, method, accuracy)
        return _by_columns(x, y, method, dtype)


def _by_columns(x: Tensor, y: Tensor, method: str, dtype: torch.dtype) -> Tensor:
    rows, others = (angles(t, method, dtype) for t in (x, y))
    gram, own, other = _products_of_rows(x, y, rows, others)
    rest, other_rest = (None if t.rest is None else t.rest.double() * t.shape[2] ** 0.5 for t in (rows, others))
    if rest is not None and other_rest is not None:
        own, other = own.sub_(rest.square()), other.sub_(other_rest.square())
    # NaN where a row is invalid, whose square may be 0.
    inverse, other_inverse = (torch.where(t.valid, s.rsqrt(), torch.nan) for t, s in ((rows, own), (others, other)))
    out = x.new_empty(gram.shape, dtype=output_dtype(x, y))
    for some in chunks(gram.shape[1], rdm_rows.ELEMENTS // (gram.shape[0] * gram.shape[2])):
        values = gram[:, some].double()
        if rest is not None and other_rest is not None:
            values -= rest[:, some] * other_rest.mT
        out[:, some] = values.mul_(inverse[:, some]).mul_(other_inverse.mT).neg_().add_(1).clamp_(0, 2)
    return out


def _products_of_rows(x: Tensor, y: Tensor, rows: Rows, others: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Return the products of all rows with all others, and the squares [B, S, 1] and [B, T, 1] in float64."""
    parts = plan(x, y.shape[1], rows.scale.dtype)._replace(padded=False)
    gram: Tensor | None = None
    own, other = (torch.zeros_like(t.scale, dtype=torch.float64) for t in (rows, others))
    for a, b in zip(parts.of(x, rows.write), parts.of(y, others.write), strict=True):
        products = rows_by_rows(a, b)
        gram = products if gram is None else gram.add_(products)
        for total, t in ((own, a), (other, b)):
            total += t.square().sum(-1, keepdim=True)
    assert gram is not None
    return gram, own, other


# Without the dispatcher -------------------------------------------------------------------------------------------


def _gradients(
    grad: Tensor, matrix: Tensor, x: Tensor, y: Tensor, method: str, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None] | None:
    """Return the gradients of both sets, [..., S, K] and [..., T, K], that are wanted. None: for the op."""
    columns = x.shape[-1]
    if has_nan(matrix):
        return None
    grad = grad.contiguous()
    d_x = d_y = None
    if method == "euclidean":
        mean = mean_of(x, -2)
        x, y = x - mean, y - mean
        weights, inverse, other_inverse, factor = grad, None, None, 2 / columns
        u, v = x, y
    else:
        if method == "correlation":
            x, y = (t - mean_of(t, -1) for t in (x, y))
            for t in (x, y):
                t -= mean_of(t, -1)  # what rounding left of a large mean
        squares, other_squares = (torch.linalg.vecdot(t, t) for t in (x, y))
        if not (is_usual(squares) and is_usual(other_squares)):
            return None
        inverse, other_inverse = (t.rsqrt_().unsqueeze(-1) for t in (squares, other_squares))
        u, v, factor = x * inverse, y * other_inverse, 1.0
        weights = grad - grad * matrix
    if wanted[0]:
        d_x = (u * weights.sum(-1, keepdim=True)).sub_(grad @ v).mul_(factor if inverse is None else inverse)
    if wanted[1]:
        total = weights.sum(-2).unsqueeze(-1)
        d_y = (v * total).sub_(grad.mT @ u).mul_(factor if other_inverse is None else other_inverse)
    return d_x, d_y


def pairs_of_sets(backward_op: Op, launchers: Mapping[str, Any]) -> Op:
    """Return what computes small calls of ``cross_rdm`` with x [..., S, N], y [..., T, N], method and accuracy.

    It returns None for what is for the op. See ``v1fast.fallback.small_rdm.matrices``.
    """
    forms: dict[Hashable, bool] = {}

    class SmallCross(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, y: Tensor, others: tuple[Any, ...]) -> Tensor:
            output: Tensor
            output, *ctx.options = others
            ctx.save_for_backward(x, y, output)
            return output

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            x, y, matrix = ctx.saved_tensors
            (method, accuracy), wanted = ctx.options, ctx.needs_input_grad[:2]
            if not torch.is_grad_enabled() and is_plain((grad,)) and not torch.is_autocast_enabled("cpu"):
                with _AutoDispatchBelowAutograd():
                    gradients = _gradients(grad, matrix, x, y, method, wanted)
                if gradients is not None:
                    return (*gradients, None)
            given = None if method == "euclidean" else by_batch(matrix)
            found = backward_op(by_batch(grad), given, by_batch(x), by_batch(y), method, accuracy, list(wanted))
            d_x, d_y = (d.view(t.shape) if w else None for d, t, w in zip(found, (x, y), wanted, strict=True))
            return d_x, d_y, None

    # What Function.apply calls if no transform is active; it would look at each argument first.
    record = partial(super(torch.autograd.Function, SmallCross).apply)

    def call(x: Tensor, y: Tensor, method: str, accuracy: str) -> Tensor | None:
        given = (x, y)
        if torch.compiler.is_compiling() or not is_plain(given) or torch.is_autocast_enabled("cpu") or launchers:
            return None
        form = (*(x.shape, x.dtype, x.is_cpu, x.layout), *(y.shape, y.dtype, y.is_cpu, y.layout), method, accuracy)
        suits = forms.get(form)
        if suits is None:
            if len(forms) >= MOST_FORMS:
                forms.clear()
            suits = forms[form] = _suits(x, y, method, accuracy)
        if not suits:
            return None
        if torch.is_grad_enabled() and any_requires_grad(*given):
            with _AutoDispatchBelowAutograd():
                found = _quick_of(x.detach(), y.detach(), method, x.dtype)
            return None if found is None else record(x, y, (found, method, accuracy))
        return _quick_of(x, y, method, x.dtype)

    return call


def _suits(x: Tensor, y: Tensor, method: str, accuracy: str) -> bool:
    return (
        method in METHODS
        and accuracy in ACCURACIES
        and x.layout == y.layout == torch.strided
        and x.dim() > 1
        and y.dim() == x.dim()
        and x.shape[:-2] == y.shape[:-2]
        and x.shape[-1] == y.shape[-1]
        and 0 < x.numel() <= MOST
        and 0 < y.numel() <= MOST
        and x.dtype in (torch.float32, torch.float64)
        and _is_plain_form(x, y, compute_dtype(x, y, accuracy))
    )
