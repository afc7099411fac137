"""The contract of ``v1fast::gaussian_readout`` and its backward: legal operands, and the tensors returned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from v1fast.contracts import _checks
from v1fast.contracts._gradients import empty_gradients

SIGMA_KINDS = "[N, 2, 2] (full), [N, 2] (uncorrelated) or [N, 1] (isotropic)"


def _check_sigma(sigma: Tensor, neurons: int) -> None:
    kinds = ((neurons, 2, 2), (neurons, 2), (neurons, 1))
    if tuple(sigma.shape) not in kinds:
        raise ValueError(f"sigma: want {SIGMA_KINDS} with N = {neurons}, got {tuple(sigma.shape)}")


def _check_noise(
    sigma: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    neuron_index: Tensor | None,
    image_offset: int,
    share_noise: bool,
    batch: int,
    neurons: int,
) -> None:
    if noise is not None and seed is not None:
        raise ValueError("noise, seed: want at most one of the two, got both")
    if sigma is None and (noise is not None or seed is not None):
        raise ValueError(f"sigma: want {SIGMA_KINDS} beside noise or seed, got None")
    if noise is not None:
        axes, images = ("[1, N, 2] (share_noise)", 1) if share_noise else ("[B, N, 2]", batch)
        _checks.shape("noise", noise, axes, (images, neurons, 2))
    if seed is not None:
        _checks.shape("seed", seed, "[1]", (1,))
        _checks.int64("seed", seed)
    if neuron_index is not None:
        _checks.shape("neuron_index", neuron_index, "[N]", (neurons,))
        _checks.int64("neuron_index", neuron_index)
    _checks.image_offset(image_offset, batch)


def check(
    features: Tensor,
    mu: Tensor,
    sigma: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    neuron_index: Tensor | None,
    image_offset: int,
    share_noise: bool,
    align_corners: bool,
) -> None:
    """Raise ValueError unless the operands fit each other. It names the operand, what was wanted and what came."""
    _checks.feature_map("features", features)
    batch, channels = features.shape[:2]
    _checks.dims("mu", mu, "[N, 2]", 2)
    neurons = mu.shape[0]
    _checks.at_most("mu", "N", neurons)
    _checks.shape("mu", mu, "[N, 2]", (neurons, 2))
    _checks.shape("weight", weight, "[N, C]", (neurons, channels))
    if sigma is not None:
        _check_sigma(sigma, neurons)
    if bias is not None:
        _checks.shape("bias", bias, "[N]", (neurons,))
    if shift is not None:
        _checks.shape("shift", shift, "[B, 2]", (batch, 2))
    _check_noise(sigma, noise, seed, neuron_index, image_offset, share_noise, batch, neurons)
    operands = {"mu": mu, "sigma": sigma, "weight": weight, "bias": bias, "shift": shift, "noise": noise}
    _checks.floats({"features": features, **operands}, features)
    for name, tensor in (("seed", seed), ("neuron_index", neuron_index)):
        if tensor is not None:
            _checks.device(name, tensor, features)


def check_backward(grad_output: Tensor, features: Tensor, mu: Tensor, *rest: Any) -> None:
    """Like ``check``, for the arguments of the backward op."""
    *operands, output_mask = rest
    check(features, mu, *operands)
    _checks.grad_output(grad_output, "[B, N]", (features.shape[0], mu.shape[0]), features)
    _checks.output_mask(output_mask, 6)


def new_output(features: Tensor, mu: Tensor, sigma: Tensor | None, weight: Tensor, *rest: Any) -> Tensor:
    """Return the output without values."""
    dtype = torch.promote_types(features.dtype, weight.dtype)
    return features.new_empty((features.shape[0], mu.shape[0]), dtype=dtype)


def new_gradients(
    grad_output: Tensor,
    features: Tensor,
    mu: Tensor,
    sigma: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    """Return the gradients without values: ``empty(0)`` where the mask is false."""
    operands = (features, mu, sigma, weight, bias, shift)
    return empty_gradients(operands, (features, mu, mu, weight, mu, mu), rest[-1], laid_out=(0, 3))
