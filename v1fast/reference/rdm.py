"""Representational dissimilarity matrices (Kriegeskorte, Mur & Bandettini, Frontiers in Systems Neuroscience 2, 2008).

correlation  M[i,j] = 1 - u_i . u_j            u = (x - mean of the row) / norm
cosine       M[i,j] = 1 - u_i . u_j            u = x / norm
euclidean    M[i,j] = (x_i . y_i + x_j . y_j - 2 x_i . y_j) / K   for i < j; y is x where none is given

The lower triangle mirrors the upper one, and the diagonal is 0. A row is invalid if it has no direction (correlation:
all its values are equal; cosine: all are zero) or a value that is not finite. An invalid row is NaN in its row and
column, diagonal included. It affects nothing else, and its gradient is zero.

Means, norms and scales are float64. Products are float32, or float64 if an operand is float64 or the accuracy is
"high".

The rule of ties: if the responses have few distinct values (one-hot codes, ratings, counts), dissimilarities that are
equal in exact arithmetic are equal in every bit. ``whole_numbers`` defines which responses these are. Their
dissimilarities are computed in whole numbers and rounded only once, at the end. Values of the responses are treated as
equal if they are within 4 eps of the largest magnitude, and only then. Dissimilarities are never made equal or rounded
to a grid. The dissimilarities of other responses differ by rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast._torch import without_autocast
from v1fast.reference import whole_numbers
from v1fast.reference.whole_numbers import Angles, Places

METHODS = ("correlation", "cosine", "euclidean")
ACCURACIES = ("float32", "high", "bfloat16")
LARGEST_EXPONENT = 1000  # of a scale: 2 to this power and its inverse are finite


def output_dtype(x: Tensor, y: Tensor | None) -> torch.dtype:
    """Return float64 if an operand is float64, otherwise float32."""
    return torch.float64 if torch.float64 in (x.dtype, x.dtype if y is None else y.dtype) else torch.float32


def compute_dtype(x: Tensor, y: Tensor | None, accuracy: str) -> torch.dtype:
    """Return the dtype of products: float64 if an operand is float64 or the accuracy is "high", otherwise float32."""
    return torch.float64 if accuracy == "high" else output_dtype(x, y)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b in their own dtype: autocast would round responses to bfloat16."""
    with without_autocast(a.device):
        return a @ b


def power_of_two(largest: Tensor) -> Tensor:
    """Return 1 / largest, rounded to a power of two: scaling by it is exact. It is a constant for autograd."""
    exponent = torch.frexp(largest.detach()).exponent.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
    return torch.exp2(-exponent.double())


def _directions(x: Tensor, method: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit rows u [B, S, K] (zero if invalid), 1 / norm [B, S, 1], and which rows are valid [B, S, 1]."""
    wide = x.double()
    low, high = wide.amin(-1, keepdim=True), wide.amax(-1, keepdim=True)
    has_direction = low != high if method == "correlation" else (low != 0) | (high != 0)
    valid = has_direction & low.isfinite() & high.isfinite()
    scale = power_of_two(torch.where(valid, torch.maximum(-low, high).abs(), 1))
    rows = torch.where(valid, wide, 0) * scale
    if method == "correlation":
        rows = rows - rows.mean(-1, keepdim=True)
    inverse = 1 / torch.where(valid, rows, 1).norm(dim=-1, keepdim=True)
    return (rows * inverse).to(dtype), inverse * scale, valid


def _points(x: Tensor, centre: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows for method "euclidean", of the order of 1 (zero where invalid), the scale that made them so, the valid rows.

    ``centre`` [B, 1, K] is subtracted. This changes no distance, and it avoids cancellation of what all rows share.
    """
    wide = x.double()
    valid = wide.isfinite().all(-1, keepdim=True)
    rows = torch.where(valid, wide, 0)
    if centre is not None:
        rows = torch.where(valid, rows - centre, 0)
    scale = power_of_two(rows.detach().abs().amax((-2, -1), keepdim=True))
    return (rows * scale).to(dtype), scale, valid


def _mean_row(x: Tensor) -> Tensor:
    """Return the mean [B, 1, K] of the rows whose values are all finite."""
    wide = x.double()
    valid = wide.isfinite().all(-1, keepdim=True)
    return torch.where(valid, wide, 0).sum(-2, keepdim=True) / valid.sum(-2, keepdim=True).clamp(min=1)


def _mirror(upper: Tensor) -> Tensor:
    return upper.triu(1) + upper.triu(1).mT


def _pairs(rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    i, j = torch.triu_indices(rows, rows, 1, device=device).unbind()
    return i, j


def _finish(values: Tensor, valid: Tensor, condensed: bool, dtype: torch.dtype) -> Tensor:
    """Finish [B, S, S], given above its diagonal: set invalid rows to NaN and return the requested form."""
    matrix = torch.where(valid, _mirror(values), torch.nan)
    if condensed:
        i, j = _pairs(matrix.shape[-1], matrix.device)
        matrix = matrix[:, i, j]
    return matrix.to(dtype)


def _is_differentiated(*operands: Tensor | None) -> bool:
    """Whether autograd or a transform differentiates this code: whole numbers would have no derivative."""
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    return recorded or torch._C._functorch.peek_interpreter_stack() is not None


def _whole(
    sets: list[Tensor], places: list[Places], method: str, dtype: torch.dtype, paired: bool
) -> Tensor:  # one or two sets [B, S, K] -> [B, S, T], right where places were found
    """Return the dissimilarities from whole numbers: exact, and rounded once."""
    columns = sets[0].shape[-1]
    m = [p.of(x) for p, x in zip(places, sets, strict=True)]
    gram = product(m[0].to(dtype), m[-1].to(dtype).mT).double()
    squares = [gram.diagonal(dim1=-2, dim2=-1)] * 2 if paired else [t.square().sum(-1) for t in m]
    if method == "euclidean":
        counts = squares[0].unsqueeze(-1) + squares[-1].unsqueeze(-2) - 2 * gram
        return counts * places[0].step[:, None, None] * places[-1].step[:, None, None] / columns
    sums = [t.sum(-1) for t in m]
    angles = Angles(method == "correlation", columns, places[0].offset[:, None, None])
    return whole_numbers.dissimilarities(angles, gram, (squares[0], sums[0]), (squares[-1], sums[-1]))


def _with_whole(values: Tensor, x: Tensor, y: Tensor | None, method: str, accuracy: str, paired: bool) -> Tensor:
    """Return ``values`` [B, S, T], replaced by those from whole numbers for members of the batch with few values."""
    if _is_differentiated(x, y):
        return values
    dtype = compute_dtype(x, y, accuracy)
    sets = [x] if y is None else [x, y]
    each = [[t] for t in sets] if paired else [sets]  # sets that share their places
    found = [whole_numbers.find(some, dtype, from_zero=paired) for some in each]
    places = [p for p in found for _ in range(len(sets) // len(found)) if p is not None]
    if len(places) < len(sets):
        return values
    few = places[0].found & places[-1].found
    return torch.where(few[:, None, None], _whole(sets, places, method, dtype, y is None or paired), values)


def rdm(
    x: Tensor,  # [B, S, K]
    y: Tensor | None,  # [B, S, K], for method "euclidean"
    method: str,
    condensed: bool,
    accuracy: str,
) -> Tensor:  # [B, S, S] or [B, S (S - 1) / 2], the upper triangle row by row
    """The op ``v1fast::rdm``."""
    if x.numel() == 0:
        batch, rows = x.shape[:2]
        shape = (batch, rows * (rows - 1) // 2) if condensed else (batch, rows, rows)
        return x.new_empty(shape, dtype=output_dtype(x, y))  # no elements
    dtype = compute_dtype(x, y, accuracy)
    if method == "euclidean":
        a, scale, valid = _points(x, _mean_row(x) if y is None else None, dtype)
        b, other_scale, other_valid = (a, scale, valid) if y is None else _points(y, None, dtype)
        gram, valid = product(a, b.mT).double(), valid & other_valid
        own = gram.diagonal(dim1=-2, dim2=-1)
        values = (own.unsqueeze(-1) + own.unsqueeze(-2) - 2 * gram) / (scale * other_scale * x.shape[-1])
        if y is None:
            values = values.clamp(min=0)
    else:
        u, _, valid = _directions(x, method, dtype)
        # Norms from the same products: the rounding errors of a row's large values cancel.
        gram = product(u, u.mT).double()
        norm = torch.where(valid, gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-1), 1).sqrt()
        values = (1 - gram / (norm * norm.mT)).clamp(0, 2)
    values = _with_whole(values, x, y, method, accuracy, y is not None)
    # A row that is constant except for rounding has no direction in whole numbers.
    valid = valid & ~values.diagonal(dim1=-2, dim2=-1).isnan().unsqueeze(-1)
    return _finish(values, valid & valid.mT, condensed, output_dtype(x, y))


def cross_rdm(x: Tensor, y: Tensor, method: str, accuracy: str) -> Tensor:  # [B, S, K], [B, T, K] -> [B, S, T]
    """The op ``v1fast::cross_rdm``: the same dissimilarities between the rows of two sets."""
    if x.numel() == 0 or y.numel() == 0:
        return x.new_zeros((x.shape[0], x.shape[1], y.shape[1]), dtype=output_dtype(x, y))
    dtype = compute_dtype(x, y, accuracy)
    if method == "euclidean":
        centre = _mean_row(x)
        a, scale, valid = _points(x, centre, dtype)
        b, other_scale, other_valid = _points(y, centre, dtype)
        a, b = a.double() / scale, b.double() / other_scale
        own, other = a.square().sum(-1, keepdim=True), b.square().sum(-1, keepdim=True)
        gram = product((a * scale).to(dtype), (b * other_scale).to(dtype).mT).double() / (scale * other_scale)
        values = ((own + other.mT - 2 * gram) / x.shape[-1]).clamp(min=0)
    else:
        u, _, valid = _directions(x, method, dtype)
        v, _, other_valid = _directions(y, method, dtype)
        values = (1 - product(u, v.mT).double()).clamp(0, 2)
    values = _with_whole(values, x, y, method, accuracy, paired=False)
    return torch.where(valid & other_valid.mT, values, torch.nan).to(output_dtype(x, y))


def square_of(matrix: Tensor, rows: int, condensed: bool) -> Tensor:
    """Return [B, S, S]. Below the diagonal it is 0 if the matrix was condensed."""
    if not condensed:
        return matrix
    square = matrix.new_zeros((matrix.shape[0], rows, rows))
    i, j = _pairs(rows, matrix.device)
    return square.index_put((torch.arange(matrix.shape[0], device=matrix.device).unsqueeze(-1), i, j), matrix)


def upper_gradient(grad: Tensor, valid: Tensor, condensed: bool) -> Tensor:
    """Return the gradient [B, S, S] of every pair i < j, 0 if a row is invalid. ``valid`` is [B, S, 1]."""
    square = square_of(grad, valid.shape[-2], condensed)
    return torch.where(valid & valid.mT, square if condensed else (square + square.mT).triu(1), 0)


def similarity(matrix: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Return u_i . u_j, 0 if a row is invalid."""
    return 1 - torch.where(valid, matrix, 1).to(dtype)


def no_gradients(x: Tensor, y: Tensor | None, output_mask: list[bool]) -> tuple[Tensor, Tensor]:
    """Return the gradients of operands without elements: zeros, or ``empty(0)`` in the dtype of x if not requested."""
    d_x, d_y = (
        torch.zeros_like(t, memory_format=torch.contiguous_format) if wanted and t is not None else x.new_empty(0)
        for t, wanted in zip((x, y), output_mask, strict=True)
    )
    return d_x, d_y


def rdm_backward(
    grad: Tensor,  # as the output of rdm
    matrix: Tensor | None,  # that output; for method "euclidean", which can do without, None
    x: Tensor,
    y: Tensor | None,
    method: str,
    condensed: bool,
    accuracy: str,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor]:
    """The op ``v1fast::rdm_backward``: d_x and d_y, ``empty(0)`` where the mask is false or y is None.

    g_ij is the gradient of the pair of i and j. c is its sum over j, weighted by u_i . u_j for correlation and cosine.

    correlation, cosine  d_x_i = (c_i u_i - sum_j g_ij u_j) / norm_i
    euclidean            d_x_i = 2 (c_i x_i - sum_j g_ij x_j) / K
    euclidean, with y    d_x_i = (c_i y_i - 2 sum_(j > i) g_ij y_j) / K,  d_y_i = (c_i x_i - 2 sum_(j < i) g_ij x_j) / K

    Clipping is not differentiated. It only affects values that are out of range by rounding.
    """
    none = x.new_empty(0)
    want_x, want_y = output_mask[0], output_mask[1] and y is not None
    if x.numel() == 0:
        return no_gradients(x, y, output_mask)
    if not want_x and not want_y:
        return none, none
    dtype = compute_dtype(x, y, accuracy)
    if method != "euclidean":
        assert matrix is not None
        u, inverse_norm, valid = _directions(x, method, dtype)
        upper = upper_gradient(grad.to(dtype), valid, condensed)
        own = upper * similarity(square_of(matrix, x.shape[-2], condensed), valid & valid.mT, dtype)
        total = (own + own.mT).sum(-1, keepdim=True)
        return ((total * u - product(upper + upper.mT, u)) * inverse_norm.to(dtype)).to(x.dtype), none
    a, scale, valid = _points(x, _mean_row(x) if y is None else None, dtype)
    b, other_scale, other_valid = (a, scale, valid) if y is None else _points(y, None, dtype)
    upper = upper_gradient(grad.to(dtype), valid & other_valid, condensed) / x.shape[-1]
    total = (upper + upper.mT).sum(-1, keepdim=True)
    if y is None:
        d_x = 2 * (total * a - product(upper + upper.mT, a))
        return (d_x.double() / scale).to(x.dtype), none
    d_x = (total * b - 2 * product(upper, b)).double() / other_scale
    d_y = (total * a - 2 * product(upper.mT, a)).double() / scale
    return d_x.to(x.dtype) if want_x else none, d_y.to(y.dtype) if want_y else none


def cross_rdm_backward(
    grad: Tensor, matrix: Tensor | None, x: Tensor, y: Tensor, method: str, accuracy: str, output_mask: list[bool]
) -> tuple[Tensor, Tensor]:
    """The op ``v1fast::cross_rdm_backward``: d_x and d_y, as in ``rdm_backward``."""
    if x.numel() == 0 or y.numel() == 0:
        return no_gradients(x, y, output_mask)
    dtype = compute_dtype(x, y, accuracy)
    if method != "euclidean":
        assert matrix is not None
        u, inverse_norm, valid = _directions(x, method, dtype)
        v, other_inverse_norm, other_valid = _directions(y, method, dtype)
        valid = valid & other_valid.mT
        g = torch.where(valid, grad.to(dtype), 0)
        own = g * similarity(matrix, valid, dtype)
        d_x = (own.sum(-1, keepdim=True) * u - product(g, v)) * inverse_norm.to(dtype)
        d_y = (own.sum(-2).unsqueeze(-1) * v - product(g.mT, u)) * other_inverse_norm.to(dtype)
    else:
        centre = _mean_row(x)
        a, scale, valid = _points(x, centre, torch.float64)
        b, other_scale, other_valid = _points(y, centre, torch.float64)
        a, b = a / scale, b / other_scale
        g = torch.where(valid & other_valid.mT, grad.double(), 0) * (2 / x.shape[-1])
        d_x = g.sum(-1, keepdim=True) * a - product(g, b)
        d_y = g.sum(-2).unsqueeze(-1) * b - product(g.mT, a)
    none = x.new_empty(0)
    return d_x.to(x.dtype) if output_mask[0] else none, d_y.to(y.dtype) if output_mask[1] else none
