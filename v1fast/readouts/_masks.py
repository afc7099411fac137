"""What all readouts share that weight the pixels by a mask and the channels by a vector, per neuron."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from v1fast import functional
from v1fast.readouts._frames import fold_frames, unfold_frames


def _pixels_first(x: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    return (x @ mask.mT * weight.mT.unsqueeze(-3)).sum(-2)


def _channels_first(x: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    return (weight.unsqueeze(-3) @ x * mask).sum(-1)


def _images_last(x: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    dense = weight.unsqueeze(-1) * mask.unsqueeze(-2)
    return x.flatten(1) @ dense.flatten(-2).mT


def _cheapest(images: int, channels: int, pixels: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Choose the order of the sums. All need B C S N products; they differ in the intermediate tensor.

    That tensor has the axis of neurons and two of the other three. The cheapest order sums over the longest first.
    """
    longest = max(images, channels, pixels)
    if longest == pixels:
        return _pixels_first
    return _images_last if longest == images else _channels_first


def masked_sum(x: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """``sum_cs weight[..., n, c] mask[n, s] x[b, c, s]``.

    Args:
        x: [B, C, S].
        mask: [N, S].
        weight: [..., N, C].

    Returns:
        [..., B, N].
    """
    return _cheapest(*x.shape)(x, mask, weight)


def _pixel_centres(like: Tensor) -> Tensor:
    """Positions (x, y) of all pixels of [B, C, H, W], [H W, 2]; the outermost are at -1 and 1."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    # A single pixel is in the middle, so that a shift of 0 reads it.
    axes = (
        torch.linspace(-1, 1, size, dtype=dtype, device=like.device) if size > 1 else like.new_zeros(1, dtype=dtype)
        for size in like.shape[2:]
    )
    y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y], dim=-1).view(-1, 2)


def shifted_pixels(x: Tensor, shift: Tensor | None) -> Tensor:
    """Features [B, C, H, W], read at their pixels plus ``shift`` [B, 2], as [B, C, H W].

    Each pixel of a mask then gets what a point readout reads there: between pixels the features are interpolated,
    outside the map they are zero.
    """
    if shift is None:
        return x.flatten(2)
    return functional.gather_levels([x], _pixel_centres(x), shift).mT


def masked_readout(
    x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """Each neuron weights the pixels by its mask and the channels by its vector, and adds all up.

    Args:
        x: features [B, C, H, W], or features of videos [B, C, T, H, W].
        mask: [N, H, W].
        weight: [..., N, C].
        bias: [..., N].
        shift: see ``shifted_pixels``: [B, 2], for videos also [B, T, 2]; B and T may be 1.

    Returns:
        [..., B, N], for videos [..., B, T, N].
    """
    images, shift = fold_frames(x, shift)
    out = masked_sum(shifted_pixels(images, shift), mask.flatten(1), weight)
    if bias is not None:
        out = out + bias.unsqueeze(-2)
    return unfold_frames(out, x)
