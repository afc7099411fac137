"""The methods of ``functional.rdm`` as operands of one op: rows x, for some a second set y, and the op's method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v1fast.ops import _checks
from v1fast.reference.rdm import power_of_two, product

METHODS = ("correlation", "cosine", "euclidean", "mahalanobis", "crossnobis", "poisson")
SYMMETRIC_METHODS = {"correlation": "correlation", "cosine": "cosine", "euclidean": "distance"}


def choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of those known."""
    if value not in known:
        raise ValueError(f"{name}: want one of {', '.join(known)}, got {value!r}")


def from_numpy(array: NDArray[Any]) -> Tensor:
    """The same memory where torch can see it; a copy of a read-only array, or one with negative strides."""
    if any(stride < 0 for stride in array.strides) or not array.flags.writeable:
        array = np.array(array)
    return torch.from_numpy(array)


def rows(name: str, given: Tensor) -> Tensor:
    """[..., S, N] floating; integers and bool as float32."""
    if given.dim() < 2 or given.shape[-1] < 1:
        raise ValueError(f"{name}: want [..., rows, neurons >= 1], got {tuple(given.shape)}")
    if not given.is_floating_point() and not given.is_complex():
        return given.float()
    _checks.floating(name, given)
    return given


def by_batch(x: Tensor) -> Tensor:
    """[B, S, N], of which the leading dimensions are one."""
    return x.unsqueeze(0) if x.dim() == 2 else x.flatten(0, -3)


def _widest(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _times_precision(x: Tensor, noise: Tensor) -> Tensor:
    """x P with P [N, N], or [N] for a diagonal one; the mean of P and its transpose where P is not symmetric."""
    neurons = x.shape[-1]
    if tuple(noise.shape) not in ((neurons, neurons), (neurons,)):
        raise ValueError(f"noise: want [N, N] or [N] with N = {neurons}, got {tuple(noise.shape)}")
    _checks.floating("noise", noise)
    noise = noise.to(x.dtype)
    if noise.dim() == 1:
        return x * noise
    return product(x, (noise + noise.mT) / 2)


def _centred(x: Tensor) -> Tensor:
    """Less about the mean row, which is in no difference of rows: a constant for autograd.

    It is rounded to a power of two that is as large as the spread of its column, or twice that, so that whole numbers
    stay whole: see the rule of ties in ``reference.rdm``. Values that are not finite are left out of it.
    """
    wide = x.detach().double()
    finite = wide.isfinite()
    count = finite.sum(-2, keepdim=True).clamp(min=1)
    mean = torch.where(finite, wide, 0).sum(-2, keepdim=True) / count
    spread = torch.where(finite, wide - mean, 0).abs().sum(-2, keepdim=True) / count
    step = 1 / power_of_two(torch.where(spread > 0, spread, 1))
    return x - torch.where(spread > 0, (mean / step).round() * step, mean).to(x.dtype)


def mahalanobis(x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(xi - xj) P (xi - xj) / N; without a noise euclidean."""
    if noise is None:
        return x, None
    x = _centred(_widest(x))
    return x, _times_precision(x, noise)


def crossnobis(x: Tensor, noise: Tensor | None, folds: Tensor | None) -> tuple[Tensor, Tensor]:
    """(xi - xj) of one fold, P, and (xi - xj) of the mean of the others, / N; the mean over folds."""
    if folds is None or folds.dim() != 1 or folds.shape[0] != x.shape[-2]:
        got = None if folds is None else tuple(folds.shape)
        raise ValueError(f"folds: want [R] = ({x.shape[-2]},), the fold of each row of responses, got {got}")
    labels, counts = torch.unique(folds, return_counts=True)
    if len(labels) < 2 or (counts != counts[0]).any():
        raise ValueError(f"folds: want at least 2 with the same number of rows, got {counts.tolist()} rows")
    order = torch.argsort(folds, stable=True).to(x.device)
    x = _widest(x)[..., order, :].unflatten(-2, (len(labels), -1))  # [..., F, S, N]
    x = _centred(x)
    others = (x.sum(-3, keepdim=True) - x) / (len(labels) - 1)
    other = others if noise is None else _times_precision(others, noise)
    return x.transpose(-3, -2).flatten(-2), other.transpose(-3, -2).flatten(-2)


def poisson(x: Tensor, prior_lambda: float, prior_weight: float) -> tuple[Tensor, Tensor]:
    """(li - lj) (log li - log lj) / N, with rates l = (x + prior_lambda prior_weight) / (1 + prior_weight)."""
    rates = (_widest(x) + prior_lambda * prior_weight) / (1 + prior_weight)
    logs = _centred(rates.log())
    rates = _centred(rates)
    # Both orders side by side make the product symmetric.
    return torch.cat([rates, logs], -1), torch.cat([logs, rates], -1)


def operands(
    responses: Tensor,
    method: str,
    noise: Tensor | None,
    folds: Tensor | None,
    prior_lambda: float,
    prior_weight: float,
) -> tuple[Tensor, Tensor | None, str]:
    """x and y [B, S, K] and the op's method."""
    choice("method", method, METHODS)
    x = rows("responses", responses)
    if noise is not None and method not in ("mahalanobis", "crossnobis"):
        raise ValueError(f"noise: want None beside method {method!r}, got a tensor")
    if folds is not None and method != "crossnobis":
        raise ValueError(f"folds: want None beside method {method!r}, got a tensor")
    if method in SYMMETRIC_METHODS:
        return by_batch(x), None, SYMMETRIC_METHODS[method]
    make: dict[str, Callable[[], tuple[Tensor, Tensor | None]]] = {
        "mahalanobis": lambda: mahalanobis(x, noise),
        "crossnobis": lambda: crossnobis(x, noise, folds),
        "poisson": lambda: poisson(x, prior_lambda, prior_weight),
    }
    first, second = make[method]()
    return by_batch(first), None if second is None else by_batch(second), "distance"
