"""Gaussian readouts of so little work that what a call costs is Python: as few operations of torch as there can be.

An op that Python computes passes through the dispatcher, and its backward too. For a model of ten neurons that takes
longer than all of eager torch. Here, ``torch.autograd.Function`` is called at once where nothing but autograd looks on.
Second derivatives are those of the op.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from v1fast._torch import any_requires_grad, is_plain
from v1fast.fallback import direct
from v1fast.fallback.philox_normal import few_normals
from v1fast.reference._common import laid_out_like

MOST = 2**13  # features, and values that are read
FEW = 2**9  # numbers, of which few operations are faster than fast ones
Op = Callable[..., Any]


def _nobody_looks_on(arguments: tuple[Any, ...]) -> bool:
    """Whether the op would run here, as it is, and autograd alone can want to know of it."""
    return (
        is_plain(arguments)
        and not torch._C._dispatch_has_kernel_for_dispatch_key("v1fast::gaussian_readout", "CPU")
        and not torch.is_autocast_enabled("cpu")
    )


def _suits(
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
) -> bool:
    """Whether the call is legal, small, on the CPU and of one dtype, and has full covariances and noise of its own.

    All else is for the op, and so are errors.
    """
    if sigma is None or bias is None or shift is not None or neuron_index is not None or share_noise:
        return False
    if (noise is None) == (seed is None) or features.dim() != 4 or not 0 < features.numel() <= MOST:
        return False
    batch, channels = features.shape[:2]
    neurons = weight.shape[0]
    if not 0 < batch * neurons * channels <= MOST or not 0 <= image_offset < 2**63 - batch:
        return False
    dtype = features.dtype
    if dtype not in (torch.float32, torch.float64):
        return False
    given = (batch, neurons, 2)
    return (
        weight.shape == (neurons, channels)
        and mu.shape == (neurons, 2)
        and sigma.shape == (neurons, 2, 2)
        and bias.shape == (neurons,)
        and mu.dtype == sigma.dtype == weight.dtype == bias.dtype == dtype
        and (
            (noise.shape == given and noise.dtype == dtype and noise.is_cpu)
            if noise is not None
            else seed is not None and seed.shape == (1,) and seed.dtype == torch.int64 and seed.is_cpu
        )
        and features.is_cpu
        and mu.is_cpu
        and sigma.is_cpu
        and weight.is_cpu
        and bias.is_cpu
        and features.layout == torch.strided
    )


def _noise(features: Tensor, mu: Tensor, noise: Tensor | None, seed: Tensor | None, image_offset: int) -> Tensor:
    if noise is not None:
        return noise
    assert seed is not None
    return few_normals(seed.item(), features.shape[0], mu.shape[0], image_offset, features.dtype)


class _Read(NamedTuple):
    """A forward pass: what its backward needs, and the output."""

    eps: Tensor  # [B, N, 2]
    z: Tensor  # [B, N, 2], the positions before the clamp
    p: Tensor  # [B, N, 2], and after it
    values: Tensor  # [B, C, N], what is read there
    output: Tensor  # [B, N]


def _read(
    features: Tensor,
    mu: Tensor,
    sigma: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: Tensor,
    align_corners: bool,
) -> _Read:
    z = (sigma * eps.unsqueeze(-2)).sum(-1).add_(mu)
    p = z.clamp(-1, 1)
    values = torch.grid_sampler_2d(features, p.unsqueeze(2), 0, 0, align_corners).squeeze(3)
    return _Read(eps, z, p, values, values.mul(weight.t()).sum(1).add_(bias))


def _gradients(
    grad: Tensor, features: Tensor, weight: Tensor, read: Sequence[Tensor], align_corners: bool, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of features, mu, sigma, weight and bias, None where not wanted."""
    eps, z, p, values = read
    g = grad.unsqueeze(1)
    d_features = d_mu = d_sigma = d_weight = None
    if wanted[0] or wanted[1] or wanted[2]:
        upstream = (g * weight.t()).unsqueeze(3)
        operands = (upstream, features, p.unsqueeze(2), 0, 0, align_corners, [wanted[0], True])
        d_features, d_p = torch.ops.aten.grid_sampler_2d_backward.default(*operands)
        if not wanted[0]:
            d_features = None
        elif d_features.stride() != features.stride():
            d_features = laid_out_like(d_features, features)
        if wanted[1] or wanted[2]:
            d_z = d_p.squeeze(2).masked_fill_(z != p, 0)
            d_mu = d_z.sum(0)
            if wanted[2]:
                d_sigma = (d_z.unsqueeze(-1) * eps.unsqueeze(-2)).sum(0)
    if wanted[3]:
        d_weight = (values * g).sum(0).t()
        if d_weight.stride() != weight.stride():
            d_weight = d_weight.contiguous() if weight.is_contiguous() else laid_out_like(d_weight, weight)
    return d_features, d_mu, d_sigma, d_weight, grad.sum(0) if wanted[4] else None


def _are_finite(*operands: Tensor) -> bool:
    return math.isfinite(sum(t.sum().item() for t in operands))


def first(op: Op, backward_op: Op) -> Op:
    """Return ``op`` of the Gaussian readout, or what is faster for a small call; ``backward_op`` is its derivative."""

    class Small(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, eps: Tensor, *arguments: Any) -> Tensor:
            features, mu, sigma, weight, bias, _, noise, seed, _, image_offset, _, align_corners = arguments
            *read, output = _read(features, mu, sigma, weight, bias, eps, align_corners)
            ctx.save_for_backward(features, mu, sigma, weight, bias, noise, seed, *read)
            ctx.options = image_offset, align_corners
            return output

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            features, mu, sigma, weight, bias, noise, seed, *read = ctx.saved_tensors
            image_offset, align_corners = ctx.options
            wanted = ctx.needs_input_grad[1:7]
            if not torch.is_grad_enabled() and _nobody_looks_on((grad,)):
                return (None, *_gradients(grad, features, weight, read, align_corners, wanted), *(None,) * 7)
            operands = (features, mu, sigma, weight, bias, None, noise, seed, None, image_offset, False, align_corners)
            found = backward_op(grad, *operands, list(wanted))
            return (None, *(d if w else None for d, w in zip(found, wanted, strict=True)), *(None,) * 6)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or not (_nobody_looks_on(arguments) and _suits(*arguments)):
            return op(*arguments)
        features, mu, sigma, weight, bias, _, noise, seed, _, image_offset, _, align_corners = arguments
        eps = _noise(features, mu, noise, seed, image_offset)
        if not direct.reads_none_at_nan() and not _are_finite(mu, sigma, eps):
            return op(*arguments)
        if torch.is_grad_enabled() and any_requires_grad(*arguments):
            return Small.apply(eps, *arguments)
        with torch.no_grad():
            return _read(features, mu, sigma, weight, bias, eps, align_corners).output

    return call
