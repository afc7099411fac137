"""Gaussian readouts of so little work that what a call costs is Python: as few operations of torch as there can be.

An op that Python computes passes through the dispatcher, and its backward too. For a model of ten neurons that takes
longer than all of eager torch. Here, ``torch.autograd.Function`` is called at once where nothing but autograd looks on,
and what is read is kept for the backward pass. Second derivatives are those of the op.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd

from v1fast._torch import any_requires_grad, is_plain
from v1fast.contracts import gaussian_readout as contract
from v1fast.fallback import bilinear, philox_cpu
from v1fast.fallback.gaussian_readout import displaced, sigma_gradient

FEATURES = 2**21
VALUES = 2**19  # that are read: more would leave the cache before the next operation
IMAGES = 2**62  # beyond this, the op says how many images can be counted
MOST_FORMS = 1000  # of calls that are remembered
Op = Callable[..., Any]
_GRID_SAMPLER_BACKWARD = torch.ops.aten.grid_sampler_2d_backward.default
_GRID_SAMPLER_BACKWARD = getattr(_GRID_SAMPLER_BACKWARD, "_op", _GRID_SAMPLER_BACKWARD)  # without a call of Python's


def _form_of(
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
) -> Hashable:
    """Return what ``_suits`` looks at. Most is written out: a loop would take as long as an operation of torch."""
    return (
        *(features.shape, features.dtype, features.is_cpu, features.layout),
        *(mu.shape, mu.dtype, mu.is_cpu, weight.shape, weight.dtype, weight.is_cpu),
        None if sigma is None else (sigma.shape, sigma.dtype, sigma.is_cpu),
        None if bias is None else (bias.shape, bias.dtype, bias.is_cpu),
        None if shift is None else (shift.shape, shift.dtype, shift.is_cpu),
        None if noise is None else (noise.shape, noise.dtype, noise.is_cpu, noise.requires_grad),
        None if seed is None else (seed.shape, seed.dtype, seed.is_cpu),
        None if neuron_index is None else (neuron_index.shape, neuron_index.dtype, neuron_index.is_cpu),
        share_noise,
    )


def _suits(features: Tensor, mu: Tensor, *rest: Any) -> bool:
    """Whether the call is legal, small, on the CPU and of one dtype. All else is for the op, and so are errors."""
    try:
        contract.check(features, mu, *rest)
    except ValueError:
        return False
    floats = (features, mu, *rest[:5])
    given = [t for t in floats if t is not None]
    noise, values = floats[-1], features.shape[0] * floats[3].numel()
    return (
        all(t.is_cpu and t.dtype == features.dtype and t.layout == torch.strided for t in given)
        and features.dtype in (torch.float32, torch.float64)
        and 0 < features.numel() <= FEATURES
        and 0 < values <= VALUES
        and not (noise is not None and noise.requires_grad)
    )


class _Read(NamedTuple):
    """What the backward pass needs of a forward pass."""

    eps: Tensor | None  # [B or 1, N, 2]
    z: Tensor  # [B or 1, N, 2], the positions before the clamp
    clamped: Tensor  # [B or 1, N, 2], and after it
    grid: Tensor  # [B, N, 1, 2], and with the shift
    values: Tensor  # [B, C, N], what is read there


def _read(
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
) -> tuple[Tensor, _Read] | None:  # [B, N]
    """Return the output and what was read; None where torch would read at a position that is not finite."""
    eps = noise
    if seed is not None:
        images, first = (1, 0) if share_noise else (features.shape[0], image_offset)
        eps = philox_cpu.normals(seed, images, mu.shape[0], neuron_index, first)
        if mu.dtype is torch.float64:
            eps = eps.double()
    z = displaced(mu, sigma, eps)
    clamped = z.clamp(-1, 1)
    p = clamped if shift is None else clamped + shift.unsqueeze(1)
    if not bilinear.reads_none_at_nan() and not math.isfinite(p.sum().item()):
        return None
    grid = p.unsqueeze(2)
    if grid.shape[0] != features.shape[0]:
        grid = grid.expand(features.shape[0], -1, -1, -1)
    values = torch.grid_sampler_2d(features, grid, 0, 0, align_corners).squeeze(3)
    output = values.mul(weight.t()).sum(1)
    return output if bias is None else output.add_(bias), _Read(eps, z, clamped, grid, values)


def _laid_out_like(gradient: Tensor, operand: Tensor) -> Tensor:
    return gradient if gradient.stride() == operand.stride() else torch.empty_like(operand).copy_(gradient)


def _gradients(
    grad: Tensor,
    features: Tensor,
    sigma: Tensor | None,
    weight: Tensor,
    read: _Read,
    align_corners: bool,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of features, mu, sigma, weight, bias and shift, None where not wanted."""
    want_features, want_mu, want_sigma, want_weight, want_bias, want_shift = wanted
    eps, z, clamped, grid, values = read
    g = grad.unsqueeze(1)
    d_features = d_mu = d_sigma = d_weight = d_shift = None
    want_position = want_mu or want_sigma or want_shift
    if want_features or want_position:
        upstream = (g * weight.t()).unsqueeze(3)
        operands = (upstream, features, grid, 0, 0, align_corners, [want_features, True])
        d_features, d_grid = _GRID_SAMPLER_BACKWARD(*operands)
        d_features = _laid_out_like(d_features, features) if want_features else None
        if want_position:
            d_position = d_grid.squeeze(2)
            if want_shift:
                d_shift = d_position.sum(1)
            d_z = d_position.masked_fill_(z != clamped, 0)
            if want_mu:
                d_mu = d_z.sum(0)
            if want_sigma and sigma is not None:
                d_sigma = sigma_gradient(sigma, d_z, eps)
                if not d_sigma.is_contiguous():
                    d_sigma = d_sigma.contiguous()
    if want_weight:
        d_weight = _laid_out_like((values * g).sum(0).t(), weight)
    return d_features, d_mu, d_sigma, d_weight, grad.sum(0) if want_bias else None, d_shift


def readout(op: Op, backward_op: Op, launchers: Mapping[str, Any]) -> Op:
    """Return the op of the Gaussian readout, or what is faster for a small call.

    Args:
        op: the op.
        backward_op: its derivative.
        launchers: kernels in Python by type of device: one for the CPU is called in any case.
    """
    forms: dict[Hashable, bool] = {}

    class Small(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor:
            output: Tensor
            *tensors, (output, ctx.read, options) = arguments
            noise, seed, neuron_index, *ctx.options = options
            ctx.save_for_backward(*tensors, noise, seed, neuron_index)
            return output

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            operands, wanted = ctx.saved_tensors, ctx.needs_input_grad[:6]
            if not torch.is_grad_enabled() and is_plain((grad,)):
                features, _, sigma, weight, *_ = operands
                with _AutoDispatchBelowAutograd():
                    found = _gradients(grad, features, sigma, weight, ctx.read, ctx.options[-1], wanted)
            else:
                found = backward_op(grad, *operands, *ctx.options, list(wanted))
                found = tuple(d if w else None for d, w in zip(found, wanted, strict=True))
            return (*found, None)

    # What Function.apply calls if no transform is active; it would look at each argument first.
    record = partial(super(torch.autograd.Function, Small).apply)

    def is_usual(arguments: tuple[Any, ...]) -> bool:
        return is_plain(arguments) and not torch.is_autocast_enabled("cpu") and launchers.get("cpu") is None

    def suits(arguments: tuple[Any, ...]) -> bool:
        form = _form_of(*arguments)
        known = forms.get(form)
        if known is None:
            if len(forms) >= MOST_FORMS:
                forms.clear()
            known = forms[form] = _suits(*arguments)
        return known and 0 <= arguments[9] < IMAGES

    def of_operands(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or not is_usual(arguments) or not suits(arguments):
            return op(*arguments)
        with _AutoDispatchBelowAutograd():
            found = _read(*arguments)
        if found is None:
            return op(*arguments)
        output, read = found
        if torch.is_grad_enabled() and any_requires_grad(*arguments):
            return record(*arguments[:6], (output, read, arguments[6:]))
        return output

    return of_operands
