"""Gradient descent on all stimuli, or on random batches of them; and how to do it in few dimensions."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from v1fast import _choices
from v1fast._progress import progress
from v1fast.decoding.networks import DeepNet

Net = TypeVar("Net", bound=DeepNet)
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": nn.functional.mse_loss,
    "cross-entropy": nn.functional.nll_loss,
}
"""Name -> mean loss: of outputs [S, K] and targets [S, K]; of log probabilities [S, K] and classes [S]."""


HALVINGS = 13  # rates that are tried
LAST = 5  # iterations whose losses are compared


class DivergedError(ValueError):
    """The loss is no longer finite."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch computes on one thread: in steps of less than a millisecond a second one only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclasses.dataclass(frozen=True)
class Descent:
    """The course of a fit.

    Attributes:
        train: [I], loss of the stimuli of each iteration, before its step, without penalties.
        test: [I], loss of the held-out stimuli after it; NaN without any.
        seen: [I], stimuli that were used up to then, those of all iterations counted.
    """

    train: NDArray[np.float64]
    test: NDArray[np.float64]
    seen: NDArray[np.int64]


def descend(
    network: nn.Module,
    responses: Tensor,
    targets: Tensor,
    *,
    loss: str = "squared",
    iterations: int = 50,
    rate: float = 1e-4,
    batch: int | None = None,
    l1: float = 0.0,
    l2: float = 0.0,
    held_out: tuple[Tensor, Tensor] | None = None,
    seed: int | None = None,
    show: bool = False,
) -> Descent:
    """Fit a network in place by gradient descent with a constant rate.

    Args:
        network: [S, N] -> [S, K].
        responses: [S, N].
        targets: [S, K], or for the cross-entropy classes [S].
        loss: squared or cross-entropy.
        iterations: I >= 1, steps.
        rate: of learning, > 0; see ``descend_safely``.
        batch: stimuli of a step, drawn with replacement; None: all, which is gradient descent.
        l1, l2: factors of the sum of magnitudes, and of squares, of all weights; biases are free.
        held_out: responses and targets for :attr:`Descent.test`.
        seed: of the batches; None: torch's random numbers as they come.
        show: whether to show progress.

    Returns:
        The losses.

    Raises:
        ValueError: an argument out of range.
        DivergedError: a ValueError: the loss is no longer finite, because the rate is too large.
    """
    _choices.one_of("loss", loss, LOSSES)
    for name, value in (("iterations", iterations), ("batch", 1 if batch is None else batch)):
        if value < 1:
            raise ValueError(f"{name}: want >= 1, got {value}")
    if not rate > 0:
        raise ValueError(f"rate: want > 0, got {rate}")
    for name, penalty in (("l1", l1), ("l2", l2)):
        if not penalty >= 0:
            raise ValueError(f"{name}: want >= 0, got {penalty}")
    measure, count = LOSSES[loss], len(responses)
    random = None if seed is None else torch.Generator().manual_seed(seed)
    weights = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    train, test = np.empty(iterations), np.full(iterations, np.nan)
    with progress("gradient descent" if batch is None else "SGD", iterations, show=show) as bar:
        for number in range(iterations):
            drawn = slice(None) if batch is None else torch.randint(count, (batch,), generator=random)
            error = measure(network(responses[drawn]), targets[drawn])
            total = error
            if l1:
                total = total + l1 * sum(weight.abs().sum() for weight in weights)
            if l2:
                total = total + l2 * sum(weight.square().sum() for weight in weights)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            train[number] = error.item()
            if not np.isfinite(train[number]):
                raise DivergedError(
                    f"rate: want one at which the loss stays finite, got {rate} (iteration {number + 1})"
                )
            if held_out is not None:
                with torch.no_grad():
                    test[number] = measure(network(held_out[0]), held_out[1]).item()
            bar.advance()
    seen = np.arange(1, iterations + 1) * (count if batch is None else batch)
    return Descent(train, test, seen)


def descend_safely(
    make: Callable[[], Net], responses: Tensor, targets: Tensor, *, rate: float, **options: Any
) -> tuple[Net, Descent, float]:
    """Fit a new network by ``descend``, at half the rate as often as the loss ends above where it began, or infinite.

    The rate at which gradient descent diverges depends on the responses: it falls as 1 / the largest variance along an
    axis of theirs, which grows with the number of neurons.

    Args:
        make: makes the network, the same each time.
        responses, targets: as for ``descend``.
        rate: to begin with.
        options: as for ``descend``.

    Returns:
        The network, its losses, and the rate.

    Raises:
        ValueError: an argument out of range; 12 halvings are not enough.
    """
    tried = rate
    for _ in range(HALVINGS):
        network = make()
        try:
            descent = descend(network, responses, targets, rate=tried, **options)
        except DivergedError:
            descent = None
        if descent is not None and not descent.train[-LAST:].mean() > descent.train[:LAST].mean():
            return network, descent, tried
        tried /= 2
    raise ValueError(f"rate: want one at which the loss falls, got {rate} and {HALVINGS - 1} halvings of it")


def span(responses: Tensor) -> tuple[Tensor, Tensor]:
    """Responses [S, N] as scores [S, K] times an orthonormal basis [K, N], K = min(S, N).

    A recording has many more neurons than stimuli. Weights matter only within the span of the responses, and gradients
    lie in it. So a network that is fitted to the scores, with its first weights in this basis (see ``within``), is the
    same as one that is fitted to the responses, with L1 as the only exception: it depends on the axes.

    >>> scores, basis = span(torch.eye(2, 5))
    >>> scores.shape, basis.shape
    (torch.Size([2, 2]), torch.Size([2, 5]))
    """
    left, values, basis = torch.linalg.svd(responses, full_matrices=False)
    return left * values, basis


def within(network: Net, basis: Tensor) -> Net:
    """The same network for scores of responses: first weights [M, N] become [M, K].

    Args:
        network: of N inputs.
        basis: [K, N], orthonormal, of ``span``.
    """
    smaller = copy.deepcopy(network)
    first: nn.Linear = smaller.layers[0]  # type: ignore[assignment]
    first.weight = nn.Parameter(first.weight.detach() @ basis.T)
    first.in_features = len(basis)
    return smaller
