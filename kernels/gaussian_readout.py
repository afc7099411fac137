"""Launchers of the Gaussian readout."""

from __future__ import annotations

from torch import Tensor

from v1fast.contracts import gaussian_readout as contract
from v1fast.contracts._forms import Form, form_of
from v1fast.reference._common import compute_dtype

from ._backward import Wanted, gradients
from ._forward import read
from ._launch import get_ready


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
    form: Form | None = None,  # of the other arguments
) -> Tensor:  # [B, N]
    """The op ``v1fast::gaussian_readout``."""
    operands = (features, mu, sigma, weight, bias, shift, noise, seed, neuron_index)
    out = contract.new_output(*operands)
    if out.numel() == 0:
        return out
    options = (image_offset & 1, share_noise, align_corners)
    key = (form_of(operands) if form is None else form[:9], *options)
    return read(key, operands, image_offset, out, lambda: get_ready(compute_dtype(*operands[:7]), operands, *options))


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
    form: Form | None = None,  # of the other arguments
) -> tuple[Tensor, ...]:
    """The op ``v1fast::gaussian_readout_backward``. A gradient that is not requested is ``empty(0)``."""
    operands = (features, mu, sigma, weight, bias, shift, noise, seed, neuron_index)
    options = (image_offset & 1, share_noise, align_corners)
    grad = grad_output.contiguous()
    want = Wanted(*[like if wanted else None for like, wanted in zip(operands[:6], output_mask, strict=True)])
    out = gradients(
        (grad.dtype, form_of(operands) if form is None else form[1:10], *options, *output_mask),
        operands,
        image_offset,
        grad,
        want,
        grad.numel(),
        lambda: get_ready(compute_dtype(*operands[:7]), operands, *options),
    )
    unwanted = {"features": features, "weight": weight}
    return tuple([out[name] if name in out else unwanted.get(name, mu).new_empty(0) for name in Wanted._fields])
