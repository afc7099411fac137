# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The forward pass of the Gaussian readout: noise, positions, four reads of rows of channels, dot product, one store.

A program holds the weights of some neurons and loops over images, a tile at a time, so that the arithmetic of the
positions is spread over its threads. Image splits are the slowest grid axis: programs that run together read the same
images.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from v1fast.ops.gaussian_readout import check
from v1fast.reference.gaussian_readout import compute_dtype

from ._common import (
    columns,
    corner_bits,
    corner_weights,
    displace,
    draw,
    in_range,
    load_corners,
    load_gaussian,
    locate,
)
from ._launch import Config, Operands, forward_configs, images_per_program, jit, prepare, run_tuned


@jit
def forward_kernel(
    out,  # [B, N]
    features,  # rows of PIXEL elements, C of them in use
    weight,  # [N, C]
    bias,  # [N] or None
    mu,  # [N, 2]
    sigma,  # [N, SIGMA] or None
    shift,  # [B, 2] or None
    noise,  # [B, N, 2], SHARED: [1, N, 2], or None
    seed,  # [1] or None
    neuron_index,  # [N] or None
    B,
    N,
    H,
    W,
    image_pitch,  # pixels from an image to the next
    row_pitch,  # pixels from a row to the next
    first_block,
    odd,  # the first image is image 2 * first_block + odd of the population's count
    images,  # for each program
    C: tl.constexpr,
    PIXEL: tl.constexpr,
    SIGMA: tl.constexpr,
    SHARED: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    WIDE: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
    T: tl.constexpr,
):
    """One block of neurons, some of the images."""
    dtype: tl.constexpr = mu.dtype.element_ty
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    has_n = n < N
    row = n.to(tl.int64) * C
    c = tl.arange(0, BC)[None, :]
    tile_n, tile_has_n = n[:, None], has_n[:, None]
    gaussian = load_gaussian(mu, sigma, tile_n, tile_has_n, SIGMA)
    DRAWN: tl.constexpr = SIGMA > 0 and not SHARED  # for each image anew
    if SHARED:
        e_x, e_y = draw(noise, seed, neuron_index, tile_n, tile_has_n, 0, True, N, 0, 0, True, dtype)
        z_x, z_y = displace(gaussian, e_x, e_y, SIGMA)
    elif not DRAWN:
        z_x, z_y = gaussian[0], gaussian[1]
    if C <= BC:
        w = tl.load(weight + row[:, None] + c, mask=tile_has_n & in_range(c, C, BC), other=0).to(dtype)
    constant = tl.zeros([BN], dtype) if bias is None else tl.load(bias + n, mask=has_n, other=0)

    start = tl.program_id(1) * images - odd
    stop = tl.minimum(start + images, B)
    for b0 in range(start, stop, T):
        b = b0 + tl.arange(0, T)[None, :]
        has_b = (b >= 0) & (b < stop)
        if DRAWN:
            e_x, e_y = draw(noise, seed, neuron_index, tile_n, tile_has_n, b, has_b, N, first_block, odd, False, dtype)
            z_x, z_y = displace(gaussian, e_x, e_y, SIGMA)
        x, y, a_x, a_y = locate(z_x, z_y, shift, b, has_b, H, W, ALIGN_CORNERS)
        firsts = columns(y * row_pitch + x, T)
        bits = columns(corner_bits(x, y, tile_has_n, H, W), T)
        xs, ys = columns(a_x, T), columns(a_y, T)
        for i in tl.static_range(T):
            here = (b0 + i >= 0) & (b0 + i < stop)
            inside = tl.where(here, bits[i], 0)
            first = (firsts[i].to(tl.int64) if WIDE else firsts[i]) * PIXEL
            near = features + (b0 + i).to(tl.int64) * image_pitch * PIXEL + first[:, None] + c
            w00, w01, w10, w11 = corner_weights(xs[i], ys[i])
            total = tl.zeros([BN, BC], dtype)
            for c0 in range(0, C, BC):
                has_c = in_range(c0 + c, C, BC)
                if C > BC:
                    w = tl.load(weight + row[:, None] + c0 + c, mask=tile_has_n & has_c, other=0).to(dtype)
                f00, f01, f10, f11 = load_corners(near + c0, inside[:, None], has_c, PIXEL, row_pitch * PIXEL, dtype)
                value = tl.fma(f01, w01[:, None], f00 * w00[:, None])
                value = tl.fma(f11, w11[:, None], tl.fma(f10, w10[:, None], value))
                total = tl.fma(value, w, total)
            result = tl.sum(total, axis=1) + constant
            tl.store(out + (b0 + i).to(tl.int64) * N + n, result.to(out.dtype.element_ty), mask=has_n & here)


def launch_forward(o: Operands, out: Tensor, config: Config) -> None:
    """Write ``out`` [B, N]."""
    batch, channels, _, _, neurons = o.sizes
    blocks = triton.cdiv(neurons, config.neurons)
    images = images_per_program(batch + o.odd, blocks, config.images)
    with torch.cuda.device_of(out):
        forward_kernel[(blocks, triton.cdiv(batch + o.odd, images))](
            out,
            weight=o.weight,
            bias=o.bias,
            images=images,
            C=channels,
            WIDE=o.rows.wide,
            **o.rows.arguments(),
            **o.positions(),
            **config.options(),
        )


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
) -> Tensor:  # [B, N]
    """The op ``v1fast::gaussian_readout``."""
    operands = (features, mu, sigma, weight, bias, shift, noise, seed, neuron_index)
    check(*operands, image_offset, share_noise, align_corners)
    out = features.new_empty((features.shape[0], mu.shape[0]), dtype=torch.promote_types(features.dtype, weight.dtype))
    if out.numel() == 0:
        return out
    dtype = compute_dtype(*operands[:7])
    o = prepare(dtype, *operands, image_offset, share_noise, align_corners)

    def run(config: Config) -> Tensor:
        launch_forward(o, out, config)
        return out

    return run_tuned(("forward", *o.shape_class()), forward_configs(o.sizes[1], o.dtype), run, features.device)
