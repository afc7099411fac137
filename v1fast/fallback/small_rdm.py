"""Dissimilarities of small matrices in few operations of torch, which take a microsecond each, whatever they compute.

An op that Python computes passes through the dispatcher, and its backward too. For a matrix of twenty rows that takes
longer than all of ``torch.corrcoef``. Here, ``torch.autograd.Function`` is called at once where nothing but autograd
looks on. Second derivatives are those of the op.

What needs more care is left to the op: a row with a value that is not finite, or without a direction, or almost; and
counts of which float64 does not decide how a pair is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd

from v1fast._torch import is_plain
from v1fast.fallback import few_values
from v1fast.fallback.few_values import Multiples
from v1fast.fallback.matmul import columns_of_chain, square, treats_alike, upper_products
from v1fast.fallback.rdm_rows import power_of_two
from v1fast.fallback.small_few import BLOCK, of_counts, of_few_counts, of_multiples
from v1fast.fallback.square_forms import assembled, finished, number, spread
from v1fast.reference.rdm import ACCURACIES, METHODS, compute_dtype

MOST = 2**18  # values of a matrix, and pairs of its rows
ELEMENTS = 2**17  # of a batch that are worked on at a time
BY_PAIRS = 2**20  # differences of values, of fewer than which their squares take no longer than products
FEW = 2**12  # values, of fewer of which the norm of layers saves time
WHOLE = 256  # rows, of fewer of which all pairs are multiplied twice: halves would have to be put together
LITTLE = 2**20  # multiplications of a member of a batch, which is computed by itself if it takes more
LITTLE_COUNTS = 2**13  # values of a matrix of counts, and pairs of its rows, for which NumPy is faster
BYTES = 2**8  # columns, of which all sums of products of differences of bytes are exact in float32
SHORT = 16, 128  # columns of which norms of layers, and of vectors, have small rounding errors
MEAN = 4.0  # and largest mean of a row that a norm of layers subtracts, in standard deviations
NEAR = 2.0**8  # means squared, in variances: of such a mean, what rounding left changes no digit of a correlation
FAR = 2.0**30  # and of such a mean, what rounding left is small
LEAST = 2.0**-41  # a norm: without scaling, what is lost of its products is nothing beside their rounding errors
MOST_FORMS = 1000  # of calls that are remembered
Op = Callable[..., Any]
Compute = Callable[[Tensor], Tensor | None]
"""Turns a matrix [S, K], or several [B, S, K], contiguous, into dissimilarities. None: they need more care."""


# Which form? ------------------------------------------------------------------------------------------------------


def compute_of(
    shape: tuple[int, ...], dtype: torch.dtype, method: str, condensed: bool, accuracy: str
) -> Compute | None:
    """Return what computes matrices [B, S, K] on the CPU of this form, or [S, K] if B is 1. None: the op does."""
    if method not in METHODS or accuracy not in ACCURACIES or dtype not in (torch.float32, torch.float64):
        return None
    batch, rows, columns = shape
    like = torch.empty((), dtype=dtype, device="cpu")
    if not (batch > 0 and rows > 1 and columns > 0 and rows * columns <= MOST and rows * rows <= MOST):
        return None
    if compute_dtype(like, None, accuracy) != dtype:
        return None
    one = _or_of_valid_rows(partial(_single, (1, rows, columns), dtype, method), method, condensed)
    if batch == 1:
        return one
    if rows * rows * columns >= LITTLE:
        return partial(_one_by_one, one)
    return _or_of_valid_rows(partial(_batch, shape, dtype, method), method, condensed)


def _or_of_valid_rows(form: Callable[[bool], Compute], method: str, condensed: bool) -> Compute:
    """Return what computes matrices by a form, condensed or not, and then those of which some rows are invalid."""
    compute, square_form = form(condensed), form(False)

    def of_others(x: Tensor) -> Tensor | None:
        low, high = x.amin(-1), x.amax(-1)
        valid = (low > -torch.inf) & (high < torch.inf)  # and not NaN
        if method != "euclidean":
            valid &= low < high if method == "correlation" else (low != 0) | (high != 0)
        if not bool(valid.any(-1).all()):
            return None
        are_valid, found = bool(valid.all()), None
        if not are_valid:
            # Copies of valid rows in their place. No other value is among the few, then.
            first = valid.to(torch.uint8).argmax(-1, keepdim=True)
            x = torch.where(valid.unsqueeze(-1), x, x.take_along_dim(first.unsqueeze(-1), -2))
            found = square_form(x)
        if found is None and method != "euclidean":
            # Scaled by powers of two, which is exact.
            found = square_form(x * power_of_two(x.abs().amax(-1, keepdim=True), x.dtype))
        if found is None:
            return None
        if not are_valid:
            found.masked_fill_(~(valid.unsqueeze(-1) & valid.unsqueeze(-2)), torch.nan)
        return finished(found, True) if condensed else found

    def computed(x: Tensor) -> Tensor | None:
        try:
            found = compute(x)
            return of_others(x) if found is None else found
        except _UndecidedError:
            return None

    return computed


class _UndecidedError(ValueError):
    """A matrix of few values needs more care. Nobody sees it: the op computes the matrix."""


_known = lru_cache(maxsize=MOST_FORMS)(compute_of)


def _single(shape: tuple[int, ...], dtype: torch.dtype, method: str, condensed: bool) -> Compute:
    _, rows, columns = shape
    look = few_values.look(shape, dtype)
    forms: list[Callable[[Tensor, str, bool, float], Tensor | None]] = [_of_products]
    if method == "euclidean":
        if rows * rows * columns <= BY_PAIRS:
            forms = [_of_pairs, *forms]
    elif has_units((rows, columns), method):
        forms = [_of_units, *forms]

    # A matrix of one value only is none of few; but its dissimilarities are the same.
    may_be_counts = dtype == torch.float32 and rows * max(rows, columns) <= LITTLE_COUNTS and columns <= BYTES

    def of_many(x: Tensor, largest: float) -> Tensor | None:
        for form in forms:
            found = form(x, method, condensed, largest)
            if found is not None:
                return found
        return None

    def single(x: Tensor) -> Tensor | None:
        largest, some = look(x)
        found = of_many(x, largest) if largest else None
        if found is not None:
            return found
        if largest < math.inf:
            if may_be_counts and float.is_integer(some[0]):
                found = of_few_counts(x, method, condensed)
                if found is not None:
                    return found
            few = few_values.find(x.unsqueeze(0), dtype, some)
            if few is not None:
                found = of_multiples(x.unsqueeze(0), few, method, condensed) if isinstance(few, Multiples) else None
                if found is None:
                    raise _UndecidedError
                return found
            found = of_many(x, math.inf)
        return found

    return single


def _batch(shape: tuple[int, ...], dtype: torch.dtype, method: str, condensed: bool) -> Compute:
    batch, rows, columns = shape
    size = max(1, ELEMENTS // (rows * max(rows, columns)))
    single = _single((1, rows, columns), dtype, method, condensed)

    def some(x: Tensor) -> Tensor | None:
        are_many = few_values.are_continuous(x, dtype)
        found = _of_products(x, method, condensed) if are_many.any() else of_counts(x, method, condensed)
        if found is None:
            return None if are_many.all() else _one_by_one(single, x)
        if are_many.any():
            for member in np.flatnonzero(~are_many).tolist():
                one = single(x[member])
                if one is None:
                    return None
                found[member] = one
        return found

    def several(x: Tensor) -> Tensor | None:
        if batch <= size:
            return some(x)
        parts = []
        for members in x.split(size):
            part = some(members)
            if part is None:
                return None
            parts.append(part)
        return torch.cat(parts)

    return several


def _one_by_one(single: Compute, x: Tensor) -> Tensor | None:
    found = []
    for member in x:
        one = single(member)
        if one is None:
            return None
        found.append(one)
    return torch.stack(found)


# Responses of many values -----------------------------------------------------------------------------------------


def ends(values: Tensor) -> tuple[float, float]:
    """Return the least and the largest value; NaN if one is."""
    least, most = torch.aminmax(values)
    return least.item(), most.item()


def mean_of(x: Tensor, dim: int) -> Tensor:
    """Return the mean along a dimension, which is kept. ``torch.mean`` takes twice as long for few values."""
    return x.sum(dim, keepdim=True).mul_(1 / x.shape[dim])


def _of_pairs(x: Tensor, method: str, condensed: bool, largest: float) -> Tensor | None:  # [S, K]
    """Distances, by the differences of rows."""
    if largest < math.inf:  # it is not known of x
        return None
    rows, columns = x.shape
    distances = torch.pdist(x)
    found = distances.square_().mul_(1 / columns)
    # Written so that NaN is refused.
    if not LEAST * LEAST <= found.amax().item() <= 1 / LEAST:
        return None
    return found if condensed else found.take(spread(rows)).fill_diagonal_(0)


def has_units(shape: tuple[int, ...], method: str) -> bool:
    """Whether ``units`` has small rounding errors for [S, K], and takes little time."""
    rows, columns = shape
    return rows * columns <= FEW and (SHORT[0] <= columns if method == "correlation" else columns <= SHORT[1])


def units(x: Tensor, method: str, largest: float = math.inf) -> tuple[Tensor, float] | None:  # [S, K]
    """Return rows of equal length, centred for method "correlation", and 1 / their squares.

    None: they need more care, or a value may be larger than the largest.

    For a correlation, by torch's norm of layers.
    """
    if method == "correlation":
        found, mean, inverse = torch.native_layer_norm(x, x.shape[1:], None, None, 0.0)
        means, sizes, factor = mean.view(-1).tolist(), inverse.view(-1).tolist(), 1 / x.shape[1]
        most = max(sizes)
        if largest < math.inf and max(max(means), -min(means)) + x.shape[1] ** 0.5 / min(sizes) > largest:
            return None
        if not (most * max(means) <= MEAN and most * min(means) >= -MEAN):
            return None
    else:
        norms = torch.linalg.vector_norm(x, 2, 1)
        found, sizes, factor = x / norms.unsqueeze(1), norms.tolist(), 1.0
        if max(sizes) > largest:
            return None
    # Written so that NaN is refused.
    return (found, factor) if min(sizes) >= LEAST and sum(sizes) <= 1 / LEAST else None


def _of_units(x: Tensor, method: str, condensed: bool, largest: float) -> Tensor | None:  # [S, K]
    found = units(x, method, largest)
    if found is None:
        return None
    rows, factor = found
    one = number(1, x.dtype)
    if x.shape[1] <= SHORT[1]:
        values = torch.addmm(one, rows, rows.t(), alpha=-factor)
        return finished(torch.maximum(values, values.t()).clamp_(0, 2), condensed)
    # Sums of more columns are rounded less before 1 is added.
    return finished(torch.add(one, _products(rows, None), alpha=-factor).clamp_(0, 2), condensed)


def _one(x: Tensor) -> Tensor:
    return x.unsqueeze(0)


def _products(x: Tensor, mean: Tensor | None) -> Tensor:
    """Return the products of rows with each other [..., S, S], symmetric in every bit.

    A mean of rows, [..., S, 1] or [..., 1, K], is subtracted first.
    """
    rows, columns = x.shape[-2:]
    if x.dim() == 3 or not treats_alike(x, rows, rows, columns):
        if mean is not None:
            x = x - mean
        found = torch.mm(x, x.t()) if x.dim() == 2 else torch.bmm(x, x.mT)
        return torch.maximum(found, found.mT)
    width = columns_of_chain(columns)
    if width == columns and rows <= WHOLE:
        return square((x.contiguous() if mean is None else x - mean,))
    parts: Iterable[Tensor] = x.split(width, 1)
    if mean is None:
        parts = map(Tensor.contiguous, parts)
    elif mean.shape[1] == 1:
        parts = map(partial(torch.sub, other=mean), parts)
    else:
        parts = map(torch.sub, parts, mean.split(width, 1))
    if rows <= WHOLE:
        return square(parts)
    return assembled([block[0] for block in upper_products(map(_one, parts), rows, BLOCK)], rows)


def _of_products(
    x: Tensor,  # [S, K] or [B, S, K]
    method: str,
    condensed: bool,
    largest: float = math.inf,
) -> Tensor | None:
    """None: they need more care, or a value may be larger than the largest."""
    columns = x.shape[-1]
    if method == "euclidean":
        if largest < math.inf:  # it is not known of x
            return None
        products = _products(x, mean_of(x, -2))
        own = products.diagonal(dim1=-2, dim2=-1)
        least, most = ends(own.amax(-1, keepdim=True))
        if not LEAST * LEAST <= least <= most <= 1 / LEAST:
            return None
        found = (own.unsqueeze(-1) + own.unsqueeze(-2)).sub_(products, alpha=2).mul_(1 / columns).clamp_(min=0)
        return finished(found, condensed)
    far, mean = 0.0, mean_of(x, -1) if method == "correlation" else None
    if mean is not None:
        low, high = ends(mean)
        far = max(-low, high)
    products = _products(x, mean)
    own = products.diagonal(dim1=-2, dim2=-1)
    least, most = ends(own)
    if largest < math.inf and not far + max(most, 0) ** 0.5 <= largest:
        return None
    if mean is not None and not far * far * columns <= NEAR * least:
        if not far * far * columns <= FAR * least:
            return None
        rest = mean_of(x - mean, -1).squeeze(-1)  # what rounding left of the mean
        products.sub_(rest.unsqueeze(-1) * rest.unsqueeze(-2), alpha=columns)  # in this order symmetric
        least, most = ends(own)
    if not LEAST * LEAST <= least <= most <= 1 / (LEAST * LEAST):
        return None
    inverse = own.rsqrt()
    outer = inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
    return finished(torch.addcmul(number(1, x.dtype), products, outer, value=-1).clamp_(0, 2), condensed)


def write(x: Tensor, method: str, condensed: bool, accuracy: str, out: Tensor) -> bool:
    """Write the dissimilarities of matrices [B, S, K]. False if they are not small, or need more care."""
    if x.layout != torch.strided or not x.is_cpu:
        return False
    compute = _known(x.shape, x.dtype, method, condensed, accuracy)
    found = None if compute is None else _computed(compute, x.detach())
    if found is None:
        return False
    out.copy_(found)
    return True


# Without the dispatcher --------------------------------------------------------------------------------------------


def by_batch(x: Tensor) -> Tensor:  # [..., S, K] -> [B, S, K]
    """Return matrices whose leading dimensions are one."""
    return x.unsqueeze(0) if x.dim() == 2 else x.flatten(0, -3)


def has_nan(matrix: Tensor) -> bool:
    """Whether a row is invalid."""
    return math.isnan(torch.aminmax(matrix)[0].item())


def is_usual(squares: Tensor) -> bool:
    """Whether these squares of rows, without scaling, have small rounding errors."""
    least, most = ends(squares)
    return LEAST * LEAST <= least <= most <= 1 / (LEAST * LEAST)


def _gradient(grad: Tensor, matrix: Tensor, x: Tensor, method: str, condensed: bool) -> Tensor | None:
    """Return the gradient of responses [..., S, K]: see ``v1fast.reference.rdm.rdm_backward``. None: for the op."""
    rows, columns = x.shape[-2:]
    if has_nan(matrix):
        return None
    grad = grad.contiguous()  # for the same bits of any layout
    if condensed:
        where = spread(rows).view(-1)
        grad, matrix = (t.index_select(-1, where).view(*x.shape[:-1], rows) for t in (grad, matrix))
        pairs = grad
    else:
        pairs = grad + grad.mT
    pairs.diagonal(dim1=-2, dim2=-1).zero_()
    if method == "euclidean":
        x = x - mean_of(x, -2)
        return (x * pairs.sum(-1, keepdim=True)).sub_(pairs @ x).mul_(2 / columns)
    if method == "correlation":
        x = x - mean_of(x, -1)
        x -= mean_of(x, -1)  # what rounding left of a large mean
    squares = torch.linalg.vecdot(x, x)
    if not is_usual(squares):
        return None
    inverse = squares.rsqrt_().unsqueeze(-1)
    u = x * inverse
    total = (pairs - pairs * matrix).sum(-1, keepdim=True)
    return (u * total).sub_(pairs @ u).mul_(inverse)


def matrices(backward_op: Op, launchers: Mapping[str, Any]) -> Op:
    """Return what computes matrices [..., S, N] of a method, condensed or not, of an accuracy; None is for the op.

    Args:
        backward_op: the derivative of the op.
        launchers: kernels in Python by type of device: where there is one for the CPU, all is for the op.
    """
    forms: dict[Hashable, Compute | None] = {}

    class Small(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, others: tuple[Any, ...]) -> Tensor:
            output: Tensor
            output, *ctx.options = others
            ctx.save_for_backward(x, output)
            return output

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            x, matrix = ctx.saved_tensors
            method, condensed, accuracy = ctx.options
            if not torch.is_grad_enabled() and is_plain((grad,)) and not torch.is_autocast_enabled("cpu"):
                with _AutoDispatchBelowAutograd():
                    gradient = _gradient(grad, matrix, x, method, condensed)
                if gradient is not None:
                    return gradient, None
            dims = 1 if condensed else 2
            grad, matrix = (t.reshape(-1, *t.shape[t.dim() - dims :]) for t in (grad, matrix))
            given = None if method == "euclidean" else matrix
            found = backward_op(grad, given, by_batch(x), None, method, condensed, accuracy, [True, False])
            return found[0].view(x.shape), None

    # What Function.apply calls if no transform is active; it would look at each argument first.
    record = partial(super(torch.autograd.Function, Small).apply)

    def call(x: Tensor, method: str, condensed: bool, accuracy: str) -> Tensor | None:
        if torch.compiler.is_compiling() or not is_plain((x,)) or torch.is_autocast_enabled("cpu") or launchers:
            return None
        form = (x.shape, x.dtype, x.is_cpu, x.layout, method, condensed, accuracy)
        try:
            compute = forms[form]
        except KeyError:
            if len(forms) >= MOST_FORMS:
                forms.clear()
            compute = forms[form] = _compute_of_call(*form)
        if compute is None:
            return None
        if torch.is_grad_enabled() and x.requires_grad:
            with _AutoDispatchBelowAutograd():
                found = _computed(compute, x.detach())
            return None if found is None else record(x, (found, method, condensed, accuracy))
        return _computed(compute, x)

    return call


def _compute_of_call(
    shape: torch.Size, dtype: torch.dtype, is_cpu: bool, layout: torch.layout, *options: Any
) -> Compute | None:
    if len(shape) < 2 or not is_cpu or layout != torch.strided:
        return None
    return compute_of((math.prod(shape[:-2]), *shape[-2:]), dtype, *options)


def _computed(compute: Compute, x: Tensor) -> Tensor | None:
    x = x if x.is_contiguous() else x.contiguous()
    if x.dim() == 2:
        return compute(x)
    *leading, rows, columns = x.shape
    batch = math.prod(leading)
    found = compute(x.view(rows, columns) if batch == 1 else x.view(batch, rows, columns))
    return None if found is None else found.view(*leading, *found.shape[batch != 1 :])
