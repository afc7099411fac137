"""Launchers of the Gaussian readout."""

from __future__ import annotations

from torch import Tensor

from v1fast.contracts import gaussian_readout as contract
from v1fast.contracts._forms import Seen, form_of
from v1fast.reference._common import compute_dtype

from . import _backward, _forward


def gaussian_readout(
    features: Tensor,  # [B, C, H, W]
    mu: Tensor,  # [N, 2]
    sigma: Tensor | None,  # [N, 2, 2], [N, 2] or [N, 1]
    weight: Tensor,  # [N, C]
    bias: Tensor | None,  # [N]
    shift: Tensor | None,  # [B, 2]
    noise: Tensor | None,  # [B, N, 2], or [1, N, 2] with share_noise
    seed: Tensor | None,  # [1] int64
    neuron_index: Tensor | None,  # [N] int64
    image_offset: int,
    share_noise: bool,
    align_corners: bool,
    seen: Seen | None = None,
) -> Tensor:  # [B, N]
    """The op ``v1fast::gaussian_readout``."""
    operands = (features, mu, sigma, weight, bias, shift, noise, seed, neuron_index)

    def describe() -> _forward.Described:
        options = (image_offset & 1, share_noise, align_corners)
        out = contract.new_output(*operands)
        return _forward.Described((form_of(operands), *options), out, compute_dtype(*operands[:7]), options)

    return _forward.read(seen, operands, image_offset, describe)


def gaussian_readout_backward(
    grad_output: Tensor,  # [B, N]
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
    output_mask: list[bool],  # features, mu, sigma, weight, bias, shift
    seen: Seen | None = None,
) -> tuple[Tensor, ...]:
    """The op ``v1fast::gaussian_readout_backward``. A gradient that is not requested is ``empty(0)``."""
    operands = (features, mu, sigma, weight, bias, shift, noise, seed, neuron_index)
    grad = grad_output.contiguous()

    def describe() -> _backward.Described:
        options = (image_offset & 1, share_noise, align_corners)
        return _backward.Described(
            (grad.dtype, form_of(operands), *options, *output_mask),
            dict(zip(_backward.Wanted._fields, operands, strict=False)),
            output_mask,
            grad.numel(),
            compute_dtype(*operands[:7]),
            options,
        )

    return _backward.gradients(seen, operands, image_offset, grad, describe)
