"""The library's computations as functions of tensors.

Each function checks its operands and makes one call of an op ``torch.ops.v1fast.*``; the dispatcher picks the kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from v1fast import ops

__all__ = ["gaussian_readout", "philox_normal"]


def _seed_tensor(seed: int | Tensor, device: torch.device) -> Tensor:
    return seed if isinstance(seed, Tensor) else torch.full((1,), seed, dtype=torch.int64, device=device)


def gaussian_readout(
    features: Tensor,
    mu: Tensor,
    sigma: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    neuron_index: Tensor | None = None,
    image_offset: int = 0,
    share_noise: bool = False,
    align_corners: bool = True,
) -> Tensor:
    r"""Each neuron reads the features at one point, sampled from its Gaussian, and weights the channels.

    .. math::
        p_{bn} &= \mathrm{clamp}(\mu_n + A_n \epsilon_{bn}, -1, 1) + \mathrm{shift}_b \\
        \mathrm{out}_{bn} &= \mathrm{bias}_n
            + \sum_c \mathrm{weight}_{nc}\, \mathrm{bilinear}(\mathrm{features}_{bc}, p_{bn})

    The readout of Lurz et al., "Generalization in data-driven models of primary visual cortex", ICLR 2021. Positions
    are (x, y) with x along the width; -1 and 1 are the centres of the outermost pixels (``align_corners``) or their
    outer edges. Outside the map the features are zero. Conventions at the clamp, on the border and for NaN are those
    of ``torch.clamp`` and ``torch.nn.functional.grid_sample``.

    Noise is given (``noise``), drawn inside the kernel from a counter (``seed``), or absent (the mean positions). A
    draw depends on the seed, the neuron's index and the image's index only: not on the batch, its split, or threads.

    Args:
        features: [B, C, H, W] in float64, float32, bfloat16 or float16, of any memory format; channels-last is read in
            place.
        mu: [N, 2], mean positions.
        sigma: square root A of the covariance: [N, 2, 2] full, [N, 2] uncorrelated, [N, 1] isotropic, or None.
        weight: [N, C], any strides; its dtype may differ from that of the features.
        bias: [N].
        shift: [B, 2], added to all positions of an image after the clamp, in units of the positions.
        noise: standard normals [B, N, 2], or [1, N, 2] with ``share_noise``. A constant: it gets no gradient.
        seed: int, or int64 tensor [1] on the features' device.
        neuron_index: int64 [N], the neurons' indices in the population that the draws are counted by; default 0..N-1.
        image_offset: index of the first image of the batch.
        share_noise: one draw for each neuron, that of image 0, for all images.
        align_corners: as in ``torch.nn.functional.grid_sample``.

    Returns:
        [B, N] of dtype ``promote_types(features, weight)``. Arithmetic is float32, or float64 where an operand is.

    Raises:
        ValueError: an operand does not fit; the message names it, what is wanted and what came.
    """
    seed_tensor = None if seed is None else _seed_tensor(seed, features.device)
    operands = (features, mu, sigma, weight, bias, shift, noise, seed_tensor, neuron_index)
    options = (image_offset, share_noise, align_corners)
    ops.gaussian_readout.check(*operands, *options)
    if noise is not None and noise.requires_grad:
        raise ValueError("noise: want a constant, got a tensor that requires grad; pass noise.detach()")
    return ops.gaussian_readout.gaussian_readout(*operands, *options)


def philox_normal(
    seed: int | Tensor,
    images: int,
    neurons: int,
    *,
    neuron_index: Tensor | None = None,
    image_offset: int = 0,
) -> Tensor:
    """The standard normals that ``gaussian_readout`` draws from the same seed.

    Philox4x32-10 (Salmon et al. 2011), counter = (neuron, image // 2, 0, 0), and Box-Muller. Kernels agree in every
    bit; the reference is within 2e-6 of them.

    Args:
        seed: int, or int64 tensor [1] on the device wanted.
        images: number of images B.
        neurons: number of neurons N.
        neuron_index: int64 [N], indices that the draws are counted by; default 0..N-1.
        image_offset: index of the first image.

    Returns:
        [images, neurons, 2] float32: the noise of (x, y).

    Raises:
        ValueError: an operand does not fit; the message names it.
    """
    device = torch.device("cpu") if neuron_index is None else neuron_index.device
    seed_tensor = _seed_tensor(seed, device)
    ops.philox_normal.check(seed_tensor, images, neurons, neuron_index, image_offset)
    return ops.philox_normal.philox_normal(seed_tensor, images, neurons, neuron_index, image_offset)
