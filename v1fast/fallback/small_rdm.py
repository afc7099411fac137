"""Dissimilarities of a small matrix in few operations of torch, which take a microsecond each, whatever they compute.

What needs more care is left to ``rdm``: a row with a value that is not finite, or without a direction, or almost; and
counts of which float64 does not decide how a pair is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial

import torch
from torch import Tensor

from v1fast.fallback import few_values
from v1fast.fallback.few_values import Multiples
from v1fast.fallback.matmul import square, upper_products
from v1fast.fallback.rdm_rows import ALL, Panels, Write, plan, power_of_two

MOST = 2**18  # values of a matrix, and pairs of its rows
NEAR = 2.0**8  # means squared, in variances: of such a mean, what rounding left changes no digit of a correlation
LEAST_SQUARE = 2.0**-60  # of a row: without scaling, its products are normal numbers, and its rounding errors small

Finish = Callable[[Tensor, slice, slice], Tensor | None]
"""Turns products [s, t] of some rows and others, float64, into dissimilarities. None: they need more care."""


def takes(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether matrices [B, S, K] are for this module, for products of this dtype."""
    batch, rows, columns = x.shape
    is_small = batch == 1 and rows * columns <= MOST and rows * rows <= MOST
    return is_small and x.dtype == dtype and x.device.type == "cpu" and x.is_contiguous()


def write(x: Tensor, found: Multiples | None, method: str, condensed: bool, size: int, out: Tensor) -> bool:
    """Write the dissimilarities of a matrix [1, S, K]. False if they need more care.

    Args:
        x: the matrix.
        found: its values as whole numbers, if they are few.
        method: "correlation", "cosine" or "euclidean".
        condensed: as for the op.
        size: rows of the result that are computed at once.
        out: the result.
    """
    if found is not None:
        return out.dtype == torch.float32 and _write_multiples(x, found, method, condensed, size, out[0])
    if _write_responses(x, method, condensed, size, out[0]):
        return True
    scaled = None if method == "euclidean" else _scaled(x)
    return scaled is not None and _write_responses(scaled, method, condensed, size, out[0])


def _scaled(x: Tensor) -> Tensor | None:
    """Return the rows scaled by powers of two, which is exact; None if one has no finite value other than 0."""
    largest = x.abs().amax(-1, keepdim=True)
    return x * power_of_two(largest, x.dtype) if bool(((largest > 0) & largest.isfinite()).all()) else None


def _write_blocks(blocks: list[Tensor], finish: Finish, condensed: bool, out: Tensor) -> bool:
    """Finish products of rows with themselves and all later ones, and write them."""
    if len(blocks) == 1 and not condensed:
        values = finish(blocks[0], ALL, ALL)
        if values is None:
            return False
        out.copy_(values).fill_diagonal_(0)
        return True
    start = filled = 0
    for block in blocks:
        some = slice(start, start + block.shape[0])
        values = finish(block, some, slice(start, None))
        if values is None:
            return False
        if condensed:
            pairs = values[values.new_ones(values.shape, dtype=torch.bool).triu_(1)]
            out[filled : filled + len(pairs)] = pairs
            filled += len(pairs)
        else:
            out[some, start:] = values
            out[some.stop :, some] = values[:, len(block) :].t()
        start += block.shape[0]
    if not condensed:
        out.fill_diagonal_(0)
    return True


def _products(panels: Iterable[Tensor], count: int, size: int, symmetric: bool) -> list[Tensor]:
    """Return products of rows with themselves and all later ones, [s, t] float64."""
    blocks = [block[0].double() for block in upper_products(panels, count, size)]
    if symmetric:
        return blocks
    if len(blocks) == 1:
        return [blocks[0].triu() + blocks[0].triu(1).t()]
    for block in blocks:
        corner = block[:, : len(block)]
        corner.copy_(corner.triu() + corner.triu(1).t())
    return blocks


def _squares(blocks: list[Tensor]) -> Tensor:  # [S]
    return blocks[0].diagonal() if len(blocks) == 1 else torch.cat([block.diagonal() for block in blocks])


def _write_responses(x: Tensor, method: str, condensed: bool, size: int, out: Tensor) -> bool:
    count, columns = x.shape[1:]
    if method == "euclidean":
        return _write_points(x, condensed, size, out)
    panels, mean = plan(x, count, x.dtype), x.mean(2, keepdim=True) if method == "correlation" else None
    blocks = _products_of_centred(x, mean, panels, size)
    own = _squares(blocks)
    least, most = _ends(own)
    if mean is not None:
        far = max(map(abs, _ends(mean)))
        if not far * far * columns <= NEAR * least:
            # What rounding left of the mean.
            rest = (x - mean).mean(2)[0].double()
            _add_products(blocks, rest, -columns)
            own = _squares(blocks)
            least, most = _ends(own)
    if not LEAST_SQUARE <= least <= most <= 1 / LEAST_SQUARE:
        return False
    return _write_blocks(blocks, _angles(own.rsqrt()), condensed, out)


def _products_of_centred(x: Tensor, mean: Tensor | None, panels: Panels, size: int) -> list[Tensor]:
    """Return ``_products`` of the rows from which a mean is subtracted: [1, S, 1] or [1, 1, K]."""
    if panels.padded or x.shape[1] > size:
        return _products(panels.of(x, _centred(x, mean)), x.shape[1], size, not panels.padded)
    # In the fewest operations.
    parts: Iterable[Tensor] = x[0].split(panels.width, 1)
    if mean is None:
        parts = map(Tensor.contiguous, parts)
    elif mean.shape[2] == 1:
        parts = map(partial(torch.sub, other=mean[0]), parts)
    else:
        parts = map(torch.sub, parts, mean[0].split(panels.width, 1))
    return [square(parts).double()]


def _centred(x: Tensor, mean: Tensor | None) -> Write:
    """Return what writes columns of the rows from which a mean is subtracted: [1, S, 1] or [1, 1, K]."""

    def write(_: slice, some: slice, out: Tensor) -> None:
        part = x[:, :, some]
        if mean is None:
            out.copy_(part)
        else:
            torch.sub(part, mean if mean.shape[2] == 1 else mean[:, :, some], out=out)

    return write


def _angles(inverse: Tensor) -> Finish:
    """Return what makes angles of products, from 1 / norms of rows [S]."""
    column, one = inverse.unsqueeze(1), _one()

    def finish(gram: Tensor, some: slice, others: slice) -> Tensor:
        outer = column * inverse if some is ALL else column[some] * inverse[others]
        return torch.addcmul(one, gram, outer, value=-1).clamp_(0, 2)

    return finish


def _ends(values: Tensor) -> tuple[float, float]:
    least, most = torch.aminmax(values)
    return least.item(), most.item()


def _add_products(blocks: list[Tensor], values: Tensor, factor: float) -> None:
    """Add the products of values of rows to those of rows."""
    start = 0
    for block in blocks:
        others = values[start:] if start else values
        block.addr_(others[: len(block)] if len(blocks) > 1 else others, others, alpha=factor)
        start += len(block)


@lru_cache(maxsize=1)
def _one() -> Tensor:
    return torch.ones((), dtype=torch.float64, device="cpu")


def _write_points(x: Tensor, condensed: bool, size: int, out: Tensor) -> bool:
    count, columns = x.shape[1:]
    panels, mean = plan(x, count, x.dtype), x.mean(1, keepdim=True)
    blocks = _products_of_centred(x, mean, panels, size)
    own = _squares(blocks)
    if not LEAST_SQUARE <= own.amax().item() <= 1 / LEAST_SQUARE:
        return False
    column = own.unsqueeze(1).clone()

    def finish(gram: Tensor, some: slice, others: slice) -> Tensor:
        return gram.mul_(-2).add_(column[some] + column.t()[0, others]).mul_(1 / columns).clamp_(min=0)

    return _write_blocks(blocks, finish, condensed, out)


def _write_multiples(x: Tensor, found: Multiples, method: str, condensed: bool, size: int, out: Tensor) -> bool:
    if method == "cosine" and found.offset:
        return False
    columns = x.shape[2]
    m = found.of(x) if found.all is None else found.all
    blocks = _products([m.to(found.dtype)], x.shape[1], size, True)
    own = _squares(blocks)
    if method == "euclidean":
        return _write_blocks(blocks, _exact_distances(own.clone(), found.step or 1.0, columns), condensed, out)
    sums = None if method == "cosine" else found.sums[0].double()
    norms = own if sums is None else own * columns - sums * sums
    if not norms.amin().item() > 0:
        return False
    inverse, one = norms.rsqrt(), _one()
    column = inverse.unsqueeze(1)

    def finish(gram: Tensor, some: slice, others: slice) -> Tensor | None:
        if sums is not None:
            gram = torch.addr(gram, sums[some], sums[others], beta=columns, alpha=-1)
        values = torch.addcmul(one, gram, column[some] * inverse[others], value=-1)
        values.fill_diagonal_(1)  # of a row with itself, which is 0 in the end
        below, above = few_values.between(values)
        if not torch.equal(below, above):
            # Of equal rows, near whose dissimilarity of 0 all numbers differ.
            same = (gram == norms[some, None]) & (gram == norms[others])
            below, above = below.masked_fill_(same, 0), above.masked_fill_(same, 0)
        return below if torch.equal(below, above) else None

    return _write_blocks(blocks, finish, condensed, out)


def _exact_distances(own: Tensor, step: float, columns: int) -> Finish:
    def finish(gram: Tensor, some: slice, others: slice) -> Tensor:
        # In the order of the reference, for the same bits.
        return (own[some, None] + own[others]).sub_(gram, alpha=2).mul_(step).mul_(step).div_(columns)

    return finish
