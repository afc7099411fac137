# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The forward pass of every readout of points: positions, four reads of rows of channels, dot product, one store.

A program holds the weights of some neurons and loops over images, one tile at a time. So the arithmetic of the
positions is spread over its threads. Image splits are the slowest grid axis: programs that run together read the same
images. Each level of a pyramid is a launch that adds to the sum of the levels before it. This costs eight bytes per
sample, in addition to the four rows that are read for it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import columns, corner_bits, corner_weights, in_range, load_corners, locate, of_all_images, of_images
from ._launch import Config, Operands, forward_configs, images_per_program, jit, run_tuned


@jit
def forward_kernel(
    out,  # [B, N]; weight is None: [B, N, C]
    partial,  # [B, N], the sum of the levels before, or None
    features,  # rows of PIXEL elements, C of them in use
    weight,  # [N, C], rows LEVELS * C apart; None: channels are not summed
    bias,  # [N] or None
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
    image_pitch,  # pixels from an image to the next
    row_pitch,  # pixels from a row to the next
    first_block,
    odd,  # the first image is image 2 * first_block + odd of the population's count
    images,  # per program
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    PIXEL: tl.constexpr,
    SIGMA: tl.constexpr,
    SHARED: tl.constexpr,
    PER_IMAGE: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    CLAMP: tl.constexpr,
    WIDE: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
    T: tl.constexpr,
):
    """Read one block of neurons in some of the images."""
    dtype: tl.constexpr = mu.dtype.element_ty
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    has_n = n < N
    row = n.to(tl.int64) * (LEVELS * C)
    c = tl.arange(0, BC)[None, :]
    tile_n, tile_has_n = n[:, None], has_n[:, None]
    every = of_all_images(mu, sigma, noise, seed, neuron_index, tile_n, tile_has_n, N, SIGMA, SHARED)
    if weight is not None and C <= BC:
        w = tl.load(weight + row[:, None] + c, mask=tile_has_n & in_range(c, C, BC), other=0).to(dtype)
    constant = tl.zeros([BN], dtype) if bias is None else tl.load(bias + n, mask=has_n, other=0)

    start = tl.program_id(1) * images - odd
    stop = tl.minimum(start + images, B)
    for b0 in range(start, stop, T):
        b = b0 + tl.arange(0, T)[None, :]
        has_b = (b >= 0) & (b < stop)
        _, _, z_x, z_y = of_images(
            every, mu, noise, seed, neuron_index, tile_n, tile_has_n, b, has_b, N, first_block, odd,
            SIGMA, SHARED, PER_IMAGE,
        )  # fmt: skip
        x, y, a_x, a_y = locate(z_x, z_y, shift, b, has_b, H, W, ALIGN_CORNERS, CLAMP)
        firsts = columns(y * row_pitch + x, T)
        bits = columns(corner_bits(x, y, tile_has_n, H, W), T)
        xs, ys = columns(a_x, T), columns(a_y, T)
        for i in tl.static_range(T):
            here = (b0 + i >= 0) & (b0 + i < stop)
            inside = tl.where(here, bits[i], 0)
            first = (firsts[i].to(tl.int64) if WIDE else firsts[i]) * PIXEL
            near = features + (b0 + i).to(tl.int64) * image_pitch * PIXEL + first[:, None] + c
            at = (b0 + i).to(tl.int64) * N + n
            w00, w01, w10, w11 = corner_weights(xs[i], ys[i])
            total = tl.zeros([BN, BC], dtype)
            for c0 in range(0, C, BC):
                has_c = in_range(c0 + c, C, BC)
                f00, f01, f10, f11 = load_corners(near + c0, inside[:, None], has_c, PIXEL, row_pitch * PIXEL, dtype)
                value = tl.fma(f01, w01[:, None], f00 * w00[:, None])
                value = tl.fma(f11, w11[:, None], tl.fma(f10, w10[:, None], value))
                if weight is None:
                    to = out + at[:, None] * C + c0 + c
                    tl.store(to, value.to(out.dtype.element_ty), mask=tile_has_n & here & has_c)
                else:
                    if C > BC:
                        w = tl.load(weight + row[:, None] + c0 + c, mask=tile_has_n & has_c, other=0).to(dtype)
                    total = tl.fma(value, w, total)
            if weight is not None:
                result = tl.sum(total, axis=1) + constant
                if partial is not None:
                    result += tl.load(partial + at, mask=has_n & here, other=0)
                tl.store(out + at, result.to(out.dtype.element_ty), mask=has_n & here)


def _launch(o: Operands, out: Tensor, partial: Tensor | None, config: Config) -> None:
    batch, channels, _, _, neurons = o.sizes
    blocks = triton.cdiv(neurons, config.neurons)
    images = images_per_program(batch + o.odd, blocks, config.images)
    with torch.cuda.device_of(out):
        forward_kernel[(blocks, triton.cdiv(batch + o.odd, images))](
            out,
            partial,
            weight=o.weight,
            bias=o.bias,
            LEVELS=o.levels,
            images=images,
            C=channels,
            WIDE=o.rows.wide,
            **o.rows.arguments(),
            **o.positions(),
            **config.options(),
        )


def read(levels: list[Operands], out: Tensor) -> Tensor:
    """Write what the points read: [B, N], or [B, N, C] for one level without weights. There is at least one sample."""
    o = levels[0]

    def run(config: Config) -> Tensor:
        # all levels are added before the sum is rounded to a narrower dtype
        sums = out if len(levels) == 1 or out.dtype == o.dtype else torch.empty_like(out, dtype=o.dtype)
        for i, level in enumerate(levels):
            _launch(level, sums if i + 1 < len(levels) else out, sums if i else None, config)
        return out

    return run_tuned(("forward", *o.shape_class()), forward_configs(o.sizes[1], o.dtype), run, out.device)
