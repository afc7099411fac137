"""Products of rows with rows, by the faster one of the libraries in torch.

``torch.mm`` calls MKL, which on processors of other makers than its own uses no vectors of 64 bytes. oneDNN, which
torch's builds hold too, does: it takes half the time there.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

LITTLE = 2**20  # multiplications: for fewer, a call of oneDNN takes longer than the work
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


def _called(op: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
    # oneDNN takes a thousand times as long where the second operand has gaps.
    return op(a, b.contiguous(), None, "none", [], "")


def treats_rows_alike(a: Tensor, count: int) -> bool:  # [B, s, K]
    """Whether the products of these rows with ``count`` others are oneDNN's: those of equal rows are equal, and those
    of rows with themselves are symmetric.
    """
    return (
        a.shape[0] == 1
        and a.shape[1] * count * a.shape[2] >= LITTLE
        and a.dtype == torch.float32
        and a.device.type == "cpu"
        and torch._C._get_mkldnn_enabled()
        and _inner_product() is not None
    )


def rows_by_rows(a: Tensor, b: Tensor, exact: bool = False) -> Tensor:  # [B, s, K], [B, t, K] -> [B, s, t]
    """Return ``a @ b.mT``. ``exact``: all sums of products are."""
    op = _inner_product() if treats_rows_alike(a, b.shape[1]) else None
    if op is None:
        return a @ b.mT
    if exact or a.shape[2] <= COLUMNS:
        return _called(op, a[0], b[0]).unsqueeze(0)
    found: Tensor | None = None
    parts = -(-a.shape[2] // COLUMNS)
    for some, others in zip(a[0].chunk(parts, 1), b[0].chunk(parts, 1), strict=True):
        products = _called(op, some, others)
        found = products if found is None else found.add_(products)
    assert found is not None
    return found.unsqueeze(0)
