"""One training step of the Gaussian readout beside the same in eager torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from v1fast import _eager, functional
from v1fast.readouts import FullGaussian2d


def time_readout(shape: tuple[int, int, int, int, int], rounds: int) -> dict[str, Any]:
    """Times of forward and backward, all gradients wanted, with fresh noise in each step.

    The two take turns, round by round, after one round that is not counted. Both read the same channels-last features:
    the eager readout is faster with them, too. Of the orders in which eager torch can compute it, the one that was
    fastest in a first try takes part.

    Args:
        shape: (B, C, H, W, N): images, channels, height and width of the map, neurons.
        rounds: that are counted.

    Returns:
        ``eager_ms`` and ``v1fast_ms``, medians over rounds, and their ``ratio``; ``eager_order``, of ``_eager.ORDERS``;
        ``largest_difference`` between the two outputs for the same noise.
    """
    images, channels, height, width, neurons = shape
    layer = FullGaussian2d((channels, height, width), neurons, bias=True, init_mu_range=0.9, init_sigma=0.2).train()
    features = torch.randn(images, channels, height, width).contiguous(memory_format=torch.channels_last)
    features.requires_grad_()
    mu, sigma = layer.mu[0, :, 0].detach().requires_grad_(), layer.sigma[0].detach().requires_grad_()
    # [C, N], as eager layers store it
    weight = layer.features[0, :, 0].detach().contiguous().requires_grad_()
    bias = torch.zeros(neurons, requires_grad=True)
    upstream = torch.randn(images, neurons)

    def noise() -> Tensor:
        return torch.randn(images, neurons, 2)

    def eager_step(order: str) -> None:
        output = _eager.gaussian_readout(features, mu, sigma, weight.T, bias, noise=noise(), order=order)
        torch.autograd.grad(output, [features, mu, sigma, weight, bias], upstream)

    def v1fast_step() -> None:
        torch.autograd.grad(layer(features), [features, *layer.parameters()], upstream)

    with torch.no_grad():
        same = noise()
        ours = functional.gaussian_readout(features, mu, sigma, weight.T, bias, noise=same)
        theirs = _eager.gaussian_readout(features, mu, sigma, weight.T, bias, noise=same)
        difference = (ours - theirs).abs().max().item()
    tries = {order: _milliseconds(partial(eager_step, order)) for _ in range(2) for order in _eager.ORDERS}
    fastest = min(tries, key=tries.__getitem__)
    eager = partial(eager_step, fastest)
    times = [(_milliseconds(eager), _milliseconds(v1fast_step)) for _ in range(rounds + 1)][1:]
    eager_ms, v1fast_ms = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "shape": dict(zip("BCHWN", shape, strict=True)),
        "eager_ms": eager_ms,
        "v1fast_ms": v1fast_ms,
        "ratio": eager_ms / v1fast_ms,
        "eager_order": fastest,
        "rounds": rounds,
        "largest_difference": difference,
    }


def _milliseconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)
