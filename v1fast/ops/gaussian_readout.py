"""The contract of ``v1fast::gaussian_readout`` and its backward: shapes, fake outputs, derivatives, schemas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from v1fast.ops import _checks
from v1fast.ops._define import define
from v1fast.reference import gaussian_readout as reference

SIGMA_KINDS = "[N, 2, 2] (full), [N, 2] (uncorrelated) or [N, 1] (isotropic)"


def _check_sigma(sigma: Tensor, neurons: int) -> None:
    kinds = ((neurons, 2, 2), (neurons, 2), (neurons, 1))
    if not any(sigma.dim() == len(kind) and tuple(sigma.shape) == kind for kind in kinds):
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
    if image_offset < 0:
        raise ValueError(f"image_offset: want at least 0, got {image_offset}")


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
    """Raise ValueError, naming the operand, what is wanted and what came, unless the operands fit each other."""
    if features.dim() != 4:
        raise ValueError(f"features: want [B, C, H, W], got {tuple(features.shape)}")
    batch, channels, height, width = features.shape
    if channels < 1 or height < 1 or width < 1:
        raise ValueError(f"features: want [B, C, H, W] with C, H, W >= 1, got {tuple(features.shape)}")
    if mu.dim() != 2:
        raise ValueError(f"mu: want [N, 2], got {tuple(mu.shape)}")
    neurons = mu.shape[0]
    _checks.shape("mu", mu, "[N, 2]", (neurons, 2))
    _checks.shape("weight", weight, "[N, C]", (neurons, channels))
    if sigma is not None:
        _check_sigma(sigma, neurons)
    if bias is not None:
        _checks.shape("bias", bias, "[N]", (neurons,))
    if shift is not None:
        _checks.shape("shift", shift, "[B, 2]", (batch, 2))
    _check_noise(sigma, noise, seed, neuron_index, image_offset, share_noise, batch, neurons)
    floats = {"features": features, "mu": mu, "sigma": sigma, "weight": weight, "bias": bias, "shift": shift}
    for name, tensor in (floats | {"noise": noise}).items():
        if tensor is not None:
            _checks.floating(name, tensor)
    for name, tensor in (floats | {"noise": noise, "seed": seed, "neuron_index": neuron_index}).items():
        if tensor is not None:
            _checks.device(name, tensor, features)


def _fake(features: Tensor, mu: Tensor, sigma: Tensor | None, weight: Tensor, *rest: Any) -> Tensor:
    check(features, mu, sigma, weight, *rest)
    dtype = torch.promote_types(features.dtype, weight.dtype)
    return features.new_empty((features.shape[0], mu.shape[0]), dtype=dtype)


def _fake_backward(
    grad_output: Tensor,
    features: Tensor,
    mu: Tensor,
    sigma: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    check(features, mu, sigma, weight, bias, shift, *rest[:-1])
    _checks.shape("grad_output", grad_output, "[B, N]", (features.shape[0], mu.shape[0]))
    operands = (features, mu, sigma, weight, bias, shift)
    unwanted = (features, mu, mu, weight, mu, mu)
    _, *others = (
        like.new_empty(0) if operand is None or not wanted else operand.new_empty(operand.shape)
        for operand, like, wanted in zip(operands, unwanted, rest[-1], strict=True)
    )
    return (torch.empty_like(features) if rest[-1][0] else features.new_empty(0), *others)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors, ctx.options = inputs[:9], inputs[9:]
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    mask = list(ctx.needs_input_grad[1:7])
    gradients = gaussian_readout_backward(grad_output, *ctx.saved_tensors, *ctx.options, mask)
    return (*(g if wanted else None for g, wanted in zip(gradients, mask, strict=True)), *(None,) * 6)


def _setup_context_of_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors, ctx.options = inputs[:10], inputs[10:]
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiates the explicit formula of the reference's backward, in turn differentiable to any order."""
    create_graph = torch.is_grad_enabled()
    needed = [i for i in range(7) if ctx.needs_input_grad[1 + i]]
    with torch.enable_grad():
        # Views, so that a tensor that was given as two operands gets the gradient of each.
        operands: list[Any] = [t if t is None else t.view_as(t) for t in ctx.saved_tensors]
        outputs = reference.gaussian_readout_backward(*operands, *ctx.options)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
        result: list[Tensor | None] = [None] * 14
        if pairs:
            found = torch.autograd.grad(
                [o for o, _ in pairs],
                [operands[i] for i in needed],
                [g for _, g in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
            for i, gradient in zip(needed, found, strict=True):
                result[i] = gradient
    return tuple(result)


_OPERANDS = (
    "Tensor features, Tensor mu, Tensor? sigma, Tensor weight, Tensor? bias, Tensor? shift, Tensor? noise, "
    "Tensor? seed, Tensor? neuron_index, SymInt image_offset, bool share_noise, bool align_corners"
)

gaussian_readout = define(
    f"gaussian_readout({_OPERANDS}) -> Tensor",
    reference=reference.gaussian_readout,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)

gaussian_readout_backward = define(
    f"gaussian_readout_backward(Tensor grad_output, {_OPERANDS}, bool[6] output_mask)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.gaussian_readout_backward,
    fake=_fake_backward,
    setup_context=_setup_context_of_backward,
    backward=_double_backward,
)
