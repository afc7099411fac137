"""Products of rows with rows, by the faster one of the libraries in torch.

``torch.mm`` calls MKL, which on processors of other makers than its own uses no vectors of 64 bytes. oneDNN, which
torch's builds hold too, does: it takes half the time there. Whole numbers of a byte it multiplies in a third of that.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

LITTLE = 2**19  # multiplications: for fewer, a call of oneDNN takes longer than the work
PAIRS = 2**12  # products, for fewer of which the same holds in each chain of columns
COLUMNS = 384  # that are summed in one chain, so that rounding errors are those of MKL; oneDNN has one for many more


@lru_cache(maxsize=1)
def _inner_product() -> Callable[..., Tensor] | None:
    """Return oneDNN's product of rows with rows, or None where this torch has it not: it belongs to no public API.

    It has to treat all rows alike, however many there are: equal rows have equal products, on either side.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return None
    try:
        op: Any = torch.ops.mkldnn._linear_pointwise.default
        for count, columns in ((37, 1000), (100, 77), (131, 300)):
            few = (torch.arange(3.0 * columns) * 0.7).cos().view(3, columns)
            rows = few.repeat(count // 3 + 1, 1)[:count]
            products = _called(op, rows, rows)
            same = products[:3, :3].repeat(count // 3 + 1, count // 3 + 1)[:count, :count]
            if not (torch.equal(products, same) and torch.allclose(products, rows @ rows.t(), atol=columns * 1e-6)):
                return None
    except (AttributeError, RuntimeError, TypeError):
        return None
    return op


def multiplies_bytes() -> bool:
    """Whether there is a fast and exact product of whole numbers from -128 to 127."""
    return torch._C._get_mkldnn_enabled() and _has_product_of_bytes()


@lru_cache(maxsize=1)
def _has_product_of_bytes() -> bool:
    """Whether oneDNN has it here, and it is exact. It belongs to no public API."""
    try:
        if not (torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()):
            return False  # without these instructions sums of two products saturate, or there is no fast product
        for count, columns in ((3, 7), (37, 1000), (16, 1)):
            rows = (torch.arange(count * columns, device="cpu") * 37 % 256 - 128).view(count, columns)
            for some in (rows, rows.clamp(max=-128), rows.clamp(min=127)):
                if not torch.equal(_product_of_bytes(some.to(torch.int8), some.to(torch.int8)).long(), some @ some.t()):
                    return False
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


def _product_of_bytes(a: Tensor, b: Tensor) -> Tensor:  # int8 [s, K], [t, K] -> int32 [s, t]
    if a.shape[1] == 1:  # of which torch 2.13 returns what stood in memory
        return a.int() * b.t()
    return torch._int_mm(a, b.t())


def _called(op: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
    # oneDNN takes a thousand times as long where the second operand has gaps.
    return op(a, b.contiguous(), None, "none", [], "")


def treats_rows_alike(a: Tensor, count: int) -> bool:  # [B, s, K]
    """Whether the products of these rows with ``count`` others are oneDNN's: those of equal rows are equal, and those
    of rows with themselves are symmetric.
    """
    batch, rows, columns = a.shape
    return batch == 1 and treats_alike(a, rows, count, columns)


def treats_alike(a: Tensor, rows: int, count: int, columns: int) -> bool:
    """``treats_rows_alike`` for a tensor of which all but the sizes counts."""
    return (
        rows * count >= PAIRS
        and rows * count * columns >= LITTLE
        and a.dtype == torch.float32
        and a.is_cpu
        and torch._C._get_mkldnn_enabled()
        and _inner_product() is not None
    )


def rows_by_rows(a: Tensor, b: Tensor) -> Tensor:  # [B, s, K], [B, t, K] -> [B, s, t]
    """Return ``a @ b.mT``, of int8 as int32. oneDNN sums all columns in one chain: see ``columns_of_chain``."""
    if a.dtype == torch.int8:
        return _product_of_bytes(a[0], b[0]).unsqueeze(0)
    op = _inner_product() if treats_rows_alike(a, b.shape[1]) else None
    return a @ b.mT if op is None else _called(op, a[0], b[0]).unsqueeze(0)


def columns_of_chain(columns: int) -> int:
    """Return how many of all columns to multiply at once, so that rounding errors are those of MKL."""
    return -(-columns // -(-columns // COLUMNS))


def square(parts: Iterable[Tensor]) -> Tensor:  # [S, k] each -> [S, S]
    """Return the products of rows with each other, which are given some columns after others, by oneDNN."""
    op = _inner_product()
    assert op is not None
    found: Tensor | None = None
    for rows in parts:
        products = op(rows, rows, None, "none", [], "")
        found = products if found is None else found.add_(products)
    assert found is not None
    return found


def upper_products(panels: Iterable[Tensor], count: int, size: int) -> list[Tensor]:
    """Return the products of the first rows with themselves and all later ones, ``size`` rows after others.

    Args:
        panels: the rows, some columns after others, [B, R, k] each. What is multiplied holds further rows.
        count: how many rows count.
        size: of a block of products.
    """
    blocks: list[Tensor] = []
    starts = range(0, count, size)
    for panel in panels:
        for block, first in enumerate(starts):
            a, b = (panel, panel) if count <= size else (panel[:, first : first + size], panel[:, first:])
            products = rows_by_rows(a, b)
            if block == len(blocks):
                blocks.append(products)
            else:
                blocks[block] += products
    if blocks[0].shape[1] == blocks[0].shape[2] == count:
        return blocks
    return [block[:, : count - first, : count - first] for block, first in zip(blocks, starts, strict=True)]
