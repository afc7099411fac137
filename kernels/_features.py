# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""d_features without atomics: every pixel gathers the gradient from the samples around it.

Samples are sorted by their cell. So the samples that touch a pixel lie in two contiguous ranges, one for each row of
cells beside it. A program owns a pixel, adds its ranges in order and writes once: the same bits every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import in_range, locate, of_all_images, of_images
from ._launch import OPTIONS, Operands, channel_chunk, jit

RECORDS = 2**21
"""Samples, and cells, that are sorted at a time: the workspace does not grow with the batch."""

NEURONS_PER_PIXEL = 8
"""Where a pixel is read by more neurons than this on average, gathering is taken to be faster than atomics.

Derived, not measured: atomics cost the same for each sample, the sort and the ranges less the fuller they are.
"""


def is_gathered(o: Operands) -> bool:
    """Whether d_features is gathered pixel by pixel, rather than scattered with atomics."""
    _, _, height, width, neurons = o.sizes
    return torch.are_deterministic_algorithms_enabled() or neurons > NEURONS_PER_PIXEL * height * width


@triton.jit
def _position(
    mu, sigma, shift, noise, seed, neuron_index, n, has_n, b, has_b, N, H, W, first_block, odd,
    SIGMA: tl.constexpr, SHARED: tl.constexpr, PER_IMAGE: tl.constexpr, ALIGN_CORNERS: tl.constexpr,
    CLAMP: tl.constexpr,
):  # fmt: skip
    """Return cells and fractions (x, y) of neurons n in images b."""
    every = of_all_images(mu, sigma, noise, seed, neuron_index, n, has_n, N, SIGMA, SHARED)
    _, _, z_x, z_y = of_images(
        every, mu, noise, seed, neuron_index, n, has_n, b, has_b, N, first_block, odd, SIGMA, SHARED, PER_IMAGE
    )
    return locate(z_x, z_y, shift, b, has_b, H, W, ALIGN_CORNERS, CLAMP)


@jit
def cells_kernel(
    cells,  # [last - first, N]: the number of the sample's cell; samples in no cell get the largest number
    mu,  # [N, 2]; PER_IMAGE: [B, N, 2]
    sigma,  # [N, SIGMA] or None
    shift,  # [B, 2] or None
    noise,  # [B, N, 2], SHARED: [1, N, 2], or None
    seed,  # [1] or None
    neuron_index,  # [N] or None
    B,
    N,
    H,
    W,
    first_block,
    odd,
    first,  # image
    last,
    SIGMA: tl.constexpr,
    SHARED: tl.constexpr,
    PER_IMAGE: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    CLAMP: tl.constexpr,
    BN: tl.constexpr,
    T: tl.constexpr,
):
    """Number the cells of a block of neurons in a few images."""
    out: tl.constexpr = cells.dtype.element_ty
    blocks = tl.cdiv(N, BN)
    n = (tl.program_id(0) % blocks * BN + tl.arange(0, BN))[:, None]
    b = (first + tl.program_id(0) // blocks * T + tl.arange(0, T))[None, :]
    has_n, has_b = n < N, b < last
    x, y, _, _ = _position(
        mu, sigma, shift, noise, seed, neuron_index, n, has_n, b, has_b, N, H, W, first_block, odd,
        SIGMA, SHARED, PER_IMAGE, ALIGN_CORNERS, CLAMP,
    )  # fmt: skip
    row = (b - first).to(out) * (H + 1) + y + 1
    cell = tl.where((x >= -1) & (y >= -1), row * (W + 1) + x + 1, (last - first).to(out) * (H + 1) * (W + 1))
    tl.store(cells + (b - first).to(tl.int64) * N + n, cell, mask=has_n & has_b)


@jit
def pixels_kernel(
    d_features,  # [B, C, H, W] by the strides
    order,  # [records] int64: samples image * N + neuron, counted from the first image, sorted by cell
    starts,  # [cells + 1] int32: where each cell's samples begin in order
    grad,  # [B, N]; None: weight has a row for each sample, [B, N, C], and channels are not summed
    weight,  # [N, C], rows LEVELS * C apart
    mu,  # [N, 2]; PER_IMAGE: [B, N, 2]
    sigma,  # [N, SIGMA] or None
    shift,  # [B, 2] or None
    noise,  # [B, N, 2], SHARED: [1, N, 2], or None
    seed,  # [1] or None
    neuron_index,  # [N] or None
    B,
    N,
    H,
    W,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    first_block,
    odd,
    first,  # image
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    SIGMA: tl.constexpr,
    SHARED: tl.constexpr,
    PER_IMAGE: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    CLAMP: tl.constexpr,
    BS: tl.constexpr,
    BC: tl.constexpr,
):
    """Gather the gradient of one pixel for one chunk of channels."""
    dtype: tl.constexpr = mu.dtype.element_ty
    pixel, image = tl.program_id(0) % (H * W), tl.program_id(0) // (H * W)
    p_x, p_y = pixel % W, pixel // W
    b = first + image
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    # the cells up left and up right of the pixel are neighbours in order, and so are the two below
    upper = starts + (image.to(tl.int64) * (H + 1) + p_y) * (W + 1) + p_x
    lower = upper + W + 1
    upper_start, lower_start = tl.load(upper), tl.load(lower)
    upper_count = tl.load(upper + 2) - upper_start
    count = upper_count + tl.load(lower + 2) - lower_start
    total = tl.zeros([BS, BC], dtype)
    for r0 in range(0, count, BS):
        r = r0 + tl.arange(0, BS)
        has = r < count
        at = tl.where(r < upper_count, upper_start, lower_start - upper_count) + r
        n = (tl.load(order + at, mask=has, other=0) - image.to(tl.int64) * N).to(tl.int32)
        n = tl.where(has, n, 0)
        x, y, a_x, a_y = _position(
            mu, sigma, shift, noise, seed, neuron_index, n, has, b, True, N, H, W, first_block, odd,
            SIGMA, SHARED, PER_IMAGE, ALIGN_CORNERS, CLAMP,
        )  # fmt: skip
        factor = tl.where(y == p_y, 1 - a_y, a_y) * tl.where(x == p_x, 1 - a_x, a_x)
        sample = b.to(tl.int64) * N + n
        if grad is not None:
            factor = tl.load(grad + sample, mask=has, other=0).to(dtype) * factor
        row = sample if grad is None else n.to(tl.int64) * LEVELS
        w_at = weight + row[:, None] * C + c[None, :]
        w = tl.load(w_at, mask=has[:, None] & in_range(c, C, BC)[None, :], other=0).to(dtype)
        total = tl.fma(factor[:, None], w, total)
    out = d_features + b.to(tl.int64) * stride_b + p_y.to(tl.int64) * stride_h + p_x.to(tl.int64) * stride_w
    value = tl.sum(total, axis=0).to(d_features.dtype.element_ty)
    tl.store(out + c.to(tl.int64) * stride_c, value, mask=c < C)


def pixel_block(channels: int, double: bool) -> dict[str, int]:
    """Return how many samples and channels a program takes at a time.

    32 samples fill the threads of one warp. With fewer, Triton recomputes their positions for every lane of channels.
    """
    return {"BS": 32, "BC": channel_chunk(channels, 32 if double else 64)}


def images_per_sort(neurons: int, cells: int) -> int:
    """Return how many images are sorted together."""
    return max(1, min(RECORDS // neurons, RECORDS // cells))


def _sort(o: Operands, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Sort the samples of images first .. last - 1 by cell. Return their order, and where each cell's samples begin."""
    _, _, height, width, neurons = o.sizes
    count = (last - first) * (height + 1) * (width + 1)
    dtype = torch.int32 if count < 2**31 else torch.int64
    cells = o.mu.new_empty((last - first) * neurons, dtype=dtype)
    grid = (triton.cdiv(neurons, 64) * triton.cdiv(last - first, 2),)
    cells_kernel[grid](cells, first=first, last=last, BN=64, T=2, num_warps=4, **o.positions(), **OPTIONS)
    cells, order = torch.sort(cells, stable=True)
    every = torch.arange(count + 1, dtype=dtype, device=cells.device)
    return order, torch.searchsorted(cells, every, out_int32=True)


def gather(
    o: Operands,
    grad: Tensor | None,  # [B, N]; None: each sample has its own weights, [B, N, C]
    out: Tensor,  # [B, C, H, W], any strides
) -> None:
    """Write the gradient of the features, in chunks of images."""
    batch, channels, height, width, neurons = o.sizes
    block = pixel_block(channels, o.dtype == torch.float64)
    step = images_per_sort(neurons, (height + 1) * (width + 1))
    for first in range(0, batch, step):
        last = min(first + step, batch)
        order, starts = _sort(o, first, last)
        grid = ((last - first) * height * width, triton.cdiv(channels, block["BC"]))
        pixels_kernel[grid](
            out,
            order,
            starts,
            grad,
            o.weight,
            first=first,
            **dict(zip(("stride_b", "stride_c", "stride_h", "stride_w"), out.stride(), strict=True)),
            LEVELS=o.levels,
            C=channels,
            num_warps=1,
            **block,
            **o.positions(),
            **OPTIONS,
        )
