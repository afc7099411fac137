"""The methods of ``functional.rdm`` as operands of one op: rows x, for some a second set y, and the op's method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from v1fast import _choices
from v1fast._rdm_folds import equal_folds, fold_means
from v1fast._rdm_rows import by_batch, rows
from v1fast.contracts import _checks
from v1fast.reference.rdm import METHODS as OP_METHODS
from v1fast.reference.rdm import power_of_two, product

METHODS = (*OP_METHODS, "mahalanobis", "crossnobis", "poisson")


def operands(
    responses: Tensor,
    method: str,
    precision: Tensor | None,
    folds: Tensor | None,
    stimuli: Tensor | None,
    prior_lambda: float,
    prior_weight: float,
) -> tuple[Tensor, Tensor | None, str]:
    """x and y [B, S, K] and the op's method; ``precision`` is what the public functions call noise."""
    _choices.one_of("method", method, METHODS)
    x = rows("responses", responses)
    if precision is not None and method not in ("mahalanobis", "crossnobis"):
        raise ValueError(f"noise: want None beside method {method!r}, got a tensor")
    if folds is not None and method != "crossnobis":
        raise ValueError(f"folds: want None beside method {method!r}, got a tensor")
    if stimuli is not None and method != "crossnobis":
        raise ValueError(f"stimuli: want None beside method {method!r}, got a tensor; average_repeats averages them")
    if method in OP_METHODS:
        return by_batch(x), None, method
    make: dict[str, Callable[[], tuple[Tensor, Tensor | None]]] = {
        "mahalanobis": lambda: mahalanobis(x, precision),
        "crossnobis": lambda: crossnobis(x, precision, folds, stimuli),
        "poisson": lambda: poisson(x, prior_lambda, prior_weight),
    }
    first, second = make[method]()
    return by_batch(first), None if second is None else by_batch(second), "euclidean"


def mahalanobis(x: Tensor, precision: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(xi - xj) P (xi - xj) / N; without a precision euclidean."""
    if precision is None:
        return x, None
    x = _centred(_widest(x))
    return x, _times_precision(x, precision)


def crossnobis(
    x: Tensor, precision: Tensor | None, folds: Tensor | None, stimuli: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(xi - xj) of one fold, P, and (xi - xj) of the mean of the others, / N; the mean over folds.

    With a precision for each fold, the mean over pairs of folds, of one difference from each.
    """
    x, balanced = _widest(x), True
    if stimuli is None:
        own = _centred(equal_folds(x, folds))
    else:
        means, means_of_others, balanced = fold_means(x, folds, stimuli)
        own = _centred(means).to(x.dtype)
    if balanced:
        others = (own.sum(-3, keepdim=True) - own) / (own.shape[-3] - 1)
    else:
        others = _centred(means_of_others).to(x.dtype)
    if precision is not None and precision.dim() == 3:
        other, balanced = _times_fold_precision(own, precision), True
    else:
        other = others if precision is None else _times_precision(others, precision)
    first, second = (each.transpose(-3, -2).flatten(-2) for each in (own, other))
    # The op takes the product for symmetric. Where it is not, both orders side by side make it so.
    return (first, second) if balanced else (torch.cat([first, second], -1), torch.cat([second, first], -1))


def poisson(x: Tensor, prior_lambda: float, prior_weight: float) -> tuple[Tensor, Tensor]:
    """(li - lj) (log li - log lj) / N, with rates l = (x + prior_lambda prior_weight) / (1 + prior_weight)."""
    rates = (_widest(x) + prior_lambda * prior_weight) / (1 + prior_weight)
    logs = _centred(rates.log())
    rates = _centred(rates)
    # Both orders side by side make the product symmetric.
    return torch.cat([rates, logs], -1), torch.cat([logs, rates], -1)


def _widest(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


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


def _times_precision(x: Tensor, precision: Tensor) -> Tensor:
    """x P with P [N, N], or [N] for a diagonal one; the mean of P and its transpose where P is not symmetric."""
    neurons = x.shape[-1]
    if tuple(precision.shape) not in ((neurons, neurons), (neurons,)):
        raise ValueError(f"noise: want [N, N] or [N] with N = {neurons}, got {tuple(precision.shape)}")
    _check_precision(precision, x)
    precision = precision.to(x.dtype)
    if precision.dim() == 1:
        return x * precision
    return product(x, (precision + precision.mT) / 2)


def _times_fold_precision(own: Tensor, precision: Tensor) -> Tensor:
    """Of the rows of each fold f [..., F, S, N] the mean over the other folds g of x_g P_fg.

    P_fg is the inverse of the mean covariance of both: precision [F, N, N] are the precisions of the folds' means.
    """
    count, _, neurons = own.shape[-3:]
    if tuple(precision.shape) != (count, neurons, neurons):
        raise ValueError(
            f"noise: want one for each fold, [F, N, N] = {(count, neurons, neurons)}, got {tuple(precision.shape)}"
        )
    _check_precision(precision, own)
    covariances = _inverse(precision)
    found = [torch.zeros_like(own.select(-3, 0))] * count
    for f in range(count):
        for g in range(f + 1, count):
            of_both = _inverse((covariances[f] + covariances[g]) / 2).to(own.dtype)
            found[f] = found[f] + product(own.select(-3, g), of_both)
            found[g] = found[g] + product(own.select(-3, f), of_both)
    return torch.stack(found, -3) / (count - 1)


def _check_precision(precision: Tensor, x: Tensor) -> None:
    _checks.floating("noise", precision)
    if precision.device != x.device:
        raise ValueError(f"noise: want device {x.device}, that of responses, got {precision.device}")


def _inverse(matrices: Tensor) -> Tensor:
    """Float64 and symmetric."""
    found, failed = torch.linalg.inv_ex(matrices.double())
    if not failed.is_meta and failed.any():
        which = f" for fold {failed.nonzero()[0].item()}" if failed.dim() else ""
        raise ValueError(f"noise: want precision matrices that have an inverse, got a singular one{which}")
    return (found + found.mT) / 2
