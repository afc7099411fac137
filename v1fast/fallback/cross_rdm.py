"""The op ``v1fast::cross_rdm`` and its backward: see ``v1fast.reference.rdm``.

Small calls, and those of few values, are computed for all rows at once. Of wide rows some columns are made ready at a
time, in memory that is used again.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd

from v1fast._torch import any_requires_grad, is_plain, without_autocast
from v1fast.fallback import few_values, rdm_rows
from v1fast.fallback.few_values import Multiples
from v1fast.fallback.matmul import columns_of_chain, rows_by_rows, treats_rows_alike
from v1fast.fallback.rdm_rows import Rows, angles, chunks, plan
from v1fast.fallback.small_rdm import FAR, LEAST, MOST_FORMS, NEAR, SHORT, Op, by_batch, ends, number
from v1fast.reference import rdm as reference
from v1fast.reference.rdm import ACCURACIES, METHODS, compute_dtype, output_dtype
from v1fast.reference.whole_numbers import Angles

MOST = 2**20  # values of a set of rows, all of which are centred at once


def _is_plain_form(x: Tensor, y: Tensor, dtype: torch.dtype) -> bool:
    return x.dtype == y.dtype == dtype and x.is_cpu and y.is_cpu


# Responses of many values -----------------------------------------------------------------------------------------


def _products(x: Tensor, y: Tensor) -> Tensor:  # [B, S, K], [B, T, K] -> [B, S, T]
    if not treats_rows_alike(x, y.shape[1]):
        return torch.bmm(x, y.mT)
    width, found = columns_of_chain(x.shape[2]), None
    for a, b in zip(x.split(width, 2), y.split(width, 2), strict=True):
        products = rows_by_rows(a.contiguous(), b)
        found = products if found is None else found.add_(products)
    assert found is not None
    return found


def _squares(x: Tensor) -> Tensor:  # [B, S]
    if x.shape[-1] <= SHORT[1]:
        return torch.linalg.vector_norm(x, 2, -1).square_()
    return torch.linalg.vecdot(x, x)


def _distances(x: Tensor, y: Tensor) -> Tensor | None:
    """By products of rows less the mean row of the first set, which avoids cancellation of what all rows share."""
    rows, columns = x.shape[1:]
    mean = x.sum(1, keepdim=True)
    x, y = (t.sub(mean, alpha=1 / rows) for t in (x, y))
    own, other = _squares(x), _squares(y)
    most = max(ends(own)[1], ends(other)[1])
    if not LEAST * LEAST <= most <= 1 / LEAST:
        return None
    sums = own.unsqueeze(2) + other.unsqueeze(1)
    return sums.sub_(_products(x, y), alpha=2).mul_(1 / columns).clamp_(min=0)


def _correlations(x: Tensor, y: Tensor, method: str) -> Tensor | None:
    columns, rests = x.shape[2], None
    if method == "correlation":
        sums = [t.sum(2, keepdim=True) for t in (x, y)]
        x, y = (t.sub(s, alpha=1 / columns) for t, s in zip((x, y), sums, strict=True))
        far = max(max(-low, high) for low, high in map(ends, sums)) / columns
    own, other = _squares(x), _squares(y)
    (least, most), (other_least, other_most) = ends(own), ends(other)
    least, most = min(least, other_least), max(most, other_most)
    if method == "correlation" and not far * far * columns <= NEAR * least:
        if not far * far * columns <= FAR * least:
            return None
        rests = [t.sum(2).mul_(1 / columns) for t in (x, y)]  # what rounding left of the means
        own, other = (t.addcmul_(r, r, value=-columns) for t, r in zip((own, other), rests, strict=True))
    if not LEAST * LEAST <= least <= most <= 1 / (LEAST * LEAST):
        return None
    products = _products(x, y)
    if rests is not None:
        products.addcmul_(rests[0].unsqueeze(2), rests[1].unsqueeze(1), value=-columns)
    outer = own.rsqrt_().unsqueeze(2) * other.rsqrt_().unsqueeze(1)
    return torch.addcmul(number(1, x.dtype), products, outer, value=-1).clamp_(0, 2)


# Responses of few values ------------------------------------------------------------------------------------------


def _of_multiples(x: Tensor, y: Tensor, found: Multiples, method: str) -> Tensor:
    """Return [1, S, T] of two sets of rows whose values share their places."""
    columns = x.shape[2]
    m = [found.of(t).contiguous() for t in (x, y)]
    sides = [
        (torch.linalg.vecdot(t, t).double(), s.double())
        for t, s in zip(m, found.sums.split([x.shape[1], y.shape[1]], 1), strict=True)
    ]
    (own, sums), (other, other_sums) = sides
    gram = rows_by_rows(*(t.to(found.dtype) for t in m))
    out = x.new_empty(gram.shape, dtype=output_dtype(x, y))
    offset = torch.full((1, 1, 1), found.offset, dtype=torch.float64)
    finish = few_values.between_sets(Angles(method == "correlation", columns, offset), (own, sums), (other, other_sums))
    for some in chunks(gram.shape[1], rdm_rows.ELEMENTS // gram.shape[2]):
        wide = gram[:, some].double()
        if method == "euclidean":
            step = found.step or 1.0
            values = own[:, some, None] + other[:, None]
            out[:, some] = values.sub_(wide, alpha=2).mul_(step).mul_(step).div_(columns)
        else:
            out[:, some] = finish(wide, some, out.dtype)
    return out


# Which form? ------------------------------------------------------------------------------------------------------


def _alone(x: Tensor, y: Tensor, method: str, dtype: torch.dtype) -> Tensor | None:  # [1, S, K], [1, T, K]
    looks = [few_values.look(tuple(t.shape), dtype)(t) for t in (x, y)]
    if None not in looks:
        both = torch.cat((x, y), 1)
        few = few_values.find(both, dtype, sorted(v for look in looks if look for v in look))
        if isinstance(few, Multiples):
            return _of_multiples(x, y, few, method)
        if few is not None:
            return None
    if method == "euclidean":
        return _distances(x, y)
    return _correlations(x, y, method) if max(x.numel(), y.numel()) <= MOST else None


def _quick(x: Tensor, y: Tensor, method: str, dtype: torch.dtype) -> Tensor | None:  # [B, S, K], [B, T, K]
    """Return the dissimilarities; None if they need more care, or less memory."""
    x, y = x.contiguous(), y.contiguous()
    if x.shape[0] == 1:
        return _alone(x, y, method, dtype)
    if max(x.numel(), y.numel()) <= MOST:
        if (few_values.are_continuous(x, dtype) | few_values.are_continuous(y, dtype)).all():
            return _distances(x, y) if method == "euclidean" else _correlations(x, y, method)
    found = []
    for a, b in zip(x.split(1), y.split(1), strict=True):
        one = _alone(a, b, method, dtype)
        if one is None:
            return None
        found.append(one)
    return torch.cat(found)


def cross_rdm(x: Tensor, y: Tensor, method: str, accuracy: str) -> Tensor:  # [B, S, K], [B, T, K] -> [B, S, T]
    """The op ``v1fast::cross_rdm``."""
    dtype = compute_dtype(x, y, accuracy)
    if x.numel() == 0 or y.numel() == 0:
        return reference.cross_rdm(x, y, method, accuracy)
    with without_autocast(x.device):
        if _is_plain_form(x, y, dtype):
            found = _quick(x.detach(), y.detach(), method, dtype)
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
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of both sets, [..., S, K] and [..., T, K], that are wanted."""
    rows, columns = x.shape[-2:]
    grad = grad.contiguous()
    d_x = d_y = None
    if method == "euclidean":
        mean = x.sum(-2, keepdim=True)
        x, y = (t.sub(mean, alpha=1 / rows) for t in (x, y))
        weights, inverse, other_inverse, factor = grad, None, None, 2 / columns
        u, v = x, y
    else:
        if method == "correlation":
            x, y = (t.sub(t.sum(-1, keepdim=True), alpha=1 / columns) for t in (x, y))
            for t in (x, y):
                t.sub_(t.sum(-1, keepdim=True), alpha=1 / columns)  # what rounding left of a large mean
        inverse, other_inverse = (torch.linalg.vecdot(t, t).rsqrt_().unsqueeze(-1) for t in (x, y))
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
            if not torch.is_grad_enabled() and is_plain((grad,)):
                with _AutoDispatchBelowAutograd():
                    return (*_gradients(grad, matrix, x, y, method, wanted), None)
            given = None if method == "euclidean" else by_batch(matrix)
            found = backward_op(by_batch(grad), given, by_batch(x), by_batch(y), method, accuracy, list(wanted))
            d_x, d_y = (d.view(t.shape) if w else None for d, t, w in zip(found, (x, y), wanted, strict=True))
            return d_x, d_y, None

    # What Function.apply calls if no transform is active; it would look at each argument first.
    record = partial(super(torch.autograd.Function, SmallCross).apply)

    def call(x: Tensor, y: Tensor, method: str, accuracy: str) -> Tensor | None:
        given = (x, y)
        if not is_plain(given) or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or launchers:
            return None
        form = (*(x.shape, x.dtype, x.is_cpu, x.layout), *(y.shape, y.dtype, y.is_cpu, y.layout), method, accuracy)
        suits = forms.get(form)
        if suits is None:
            if len(forms) >= MOST_FORMS:
                forms.clear()
            suits = forms[form] = _suits(x, y, method, accuracy)
        if not suits:
            return None
        with _AutoDispatchBelowAutograd():
            found = _quick(by_batch(x.detach()), by_batch(y.detach()), method, x.dtype)
            if found is None:
                return None
            found = found.view(*x.shape[:-1], y.shape[-2])
        if torch.is_grad_enabled() and any_requires_grad(*given):
            return record(x, y, (found, method, accuracy))
        return found

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
