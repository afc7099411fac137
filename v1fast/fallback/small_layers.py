"""Gaussian readouts of so little work that what a call costs is Python, by the parameters of a layer as they are.

Of each view and each copy that makes operands of parameters, autograd would record a step; and a step of its own that
is written in Python takes as long as ten operations of torch. So autograd records torch's own operations here, as in an
eager model, but fewer of them. Derivatives of any order are those of the op.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from v1fast._torch import is_plain
from v1fast.fallback import bilinear, philox_cpu
from v1fast.fallback.small import FEATURES, VALUES

FEW = 2**8  # numbers, of which few operations are faster than fast ones


def is_usual(arguments: tuple[Any, ...], dtype: torch.dtype) -> bool:
    """Whether autograd alone looks on at a call with these arguments, and its dtype is computed in."""
    return (
        (dtype is torch.float32 or dtype is torch.float64)
        and is_plain(arguments)
        and not torch.is_autocast_enabled("cpu")
    )


def has(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether a tensor is of this form, and on the CPU."""
    return x.shape == shape and x.dtype is dtype and x.is_cpu


def _drawn(
    features: Tensor,
    neurons: int,
    seed: Tensor,
    neuron_index: Tensor | None,
    image_offset: int,
    share_noise: bool,
) -> Tensor:  # [B or 1, N, 1, 2]
    images, first = (1, 0) if share_noise else (features.shape[0], image_offset)
    eps = philox_cpu.normals(seed, images, neurons, neuron_index, first).unsqueeze(2)
    return eps.double() if features.dtype is torch.float64 else eps


def in_range(parameter: Tensor, least: float, most: float, write: bool) -> Tensor:
    """Return a layer's parameter in range. The gradient passes to it, wherever its values lie.

    With ``write``, the parameter itself is brought in range.
    """
    inside = parameter.detach()  # of the same memory and version
    if write and type(parameter) is torch.nn.Parameter:  # isinstance takes ten times as long
        inside.clamp_(least, most)
        return parameter
    inside = inside.clamp(least, most)
    if torch.is_grad_enabled() and parameter.requires_grad:
        return inside + (parameter - parameter.detach())
    return inside


def _means(mu: Tensor, sigma: Tensor) -> Tensor:
    """Return the means as positions to read.

    Where autograd keeps them, they are a copy: a parameter may be changed before the backward pass. sigma gets zeros.
    """
    return mu + sigma[:, :0].sum() if torch.is_grad_enabled() else mu


def _displaced(mu: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
    """Return mu + A eps, [B or 1, N, 1, 2]. Not by a matrix product, which may round."""
    if sigma.shape[2] == 1:
        return torch.addcmul(mu, sigma, eps)
    if eps.numel() < FEW:
        return (sigma.transpose(2, 3) * eps.mT).sum(2, True).add_(mu)
    first, second = sigma.unsqueeze(2).unbind(4)  # torch is slow where the last axis is as short
    return torch.addcmul(mu, first, eps[..., :1]).addcmul_(second, eps[..., 1:])


def of_parameters(
    launchers: Mapping[str, Any],
    features: Tensor,
    mu: Tensor,
    sigma: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    draw: Callable[[], Tensor | tuple[Any, ...] | None],
    align_corners: bool,
    write: bool,
    positive: bool,
) -> Tensor | None:  # [B, N]
    """Return the readout by the parameters of a layer, None where it is not faster, or not to be computed here.

    Args:
        launchers: kernels in Python by type of device: one for the CPU is called in any case.
        features: [B, C, H, W] on the CPU.
        mu: (1, N, 1, 2). A pass reads it in range.
        sigma: (1, N, rows, columns): (2, 2) for a full covariance, (1, 2) uncorrelated, (1, 1) isotropic.
        weight: (1, C, 1, N).
        bias: (N).
        shift: [B, 2] or [1, 2].
        draw: returns the noise [B or 1, N, 1, 2] of this pass, or what it is drawn from as the op takes it: seed,
            neuron_index, image_offset and share_noise; None for the means. Called only if the call is computed here.
        align_corners: as for the op.
        write: whether parameters that are out of range are written, as in training.
        positive: whether sigma has a range too: at least 0.
    """
    # Written out: each function called in Python takes as long as half an operation of torch.
    (batch, channels, _, _), dtype, numbers = features.shape, features.dtype, mu.numel()
    if not (
        mu.dtype is dtype
        and mu.is_cpu
        and sigma.dtype is dtype
        and sigma.is_cpu
        and weight.dtype is dtype
        and weight.is_cpu
        and 2 * weight.numel() == channels * numbers
        and 0 < batch * weight.numel() <= VALUES
        and 0 < features.numel() <= FEATURES
        and features.layout is torch.strided
        and (bias is None or (bias.dtype is dtype and bias.is_cpu and 2 * bias.numel() == numbers))
        and (shift is None or has(shift, (batch, 2), dtype) or has(shift, (1, 2), dtype))
        and "cpu" not in launchers
        and is_usual((features, mu, sigma, weight, bias, shift), dtype)
    ):
        return None
    drawn = draw()
    eps = _drawn(features, numbers // 2, *drawn) if isinstance(drawn, tuple) else drawn
    write = write and torch.is_grad_enabled()
    if positive:
        sigma = in_range(sigma, 0, math.inf, write)
    mu = in_range(mu, -1, 1, write)
    p = _means(mu, sigma) if eps is None else bilinear.clamped_to_map(_displaced(mu, sigma, eps))
    if shift is not None:
        p = p + shift.view(-1, 1, 1, 2)
    if p.shape[0] != batch:
        p = p.expand(batch, -1, -1, -1)
    read = bilinear.read(features, p, align_corners)
    output = bilinear.with_derivatives(read.mul(weight.transpose(2, 3)), p, align_corners, (features, read)).sum((1, 3))
    return output if bias is None else output.add_(bias)
