# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The backward pass of the Gaussian readout.

A program holds the sums of some neurons, for some channels, and loops over images as the forward pass does. What it
sums goes to one slab of partial sums per image split, and a second kernel adds the slabs in a fixed order: no atomics,
the same bits every time. Only d_features is scattered, with relaxed float32 atomics, unless
``gaussian_readout_features`` gathers it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from v1fast.ops import _checks
from v1fast.ops.gaussian_readout import check
from v1fast.reference.gaussian_readout import compute_dtype

from . import gaussian_readout_features
from ._common import (
    CLAMP_X,
    CLAMP_Y,
    clamp_bits,
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
from ._launch import (
    Config,
    Operands,
    Rows,
    backward_configs,
    images_per_program,
    jit,
    prepare,
    rows_in_place,
    run_tuned,
)
from .gaussian_readout_sums import QUANTITIES, sum_parts, sum_slabs


@triton.jit
def _quarters(tile, BN: tl.constexpr, BC: tl.constexpr):
    """[BN, BC] -> 4 x [BN, BC / 4]: each fourth channel. A thread holds four neighbours of an aligned row anyway."""
    even, odd = tl.split(tl.reshape(tile, [BN, BC // 4, 2, 2]))
    c0, c2 = tl.split(even)
    c1, c3 = tl.split(odd)
    return c0, c1, c2, c3


@triton.jit
def _dot(corner, w, BN: tl.constexpr, BC: tl.constexpr):
    """[BN, BC / 4]: sums over four channels, w in quarters; what is left of the sum waits until all images are read."""
    c0, c1, c2, c3 = _quarters(corner, BN, BC)
    return tl.fma(c3, w[3], tl.fma(c2, w[2], tl.fma(c1, w[1], c0 * w[0])))


@triton.jit
def _pixel_gradient(f00, f01, f10, f11, w, a_x, a_y, g, BN: tl.constexpr, BC: tl.constexpr):
    """Gradients of the pixel coordinates (x, y), [BN, BC / 4]: shares of four channels each."""
    d00, d01, d10, d11 = _dot(f00, w, BN, BC), _dot(f01, w, BN, BC), _dot(f10, w, BN, BC), _dot(f11, w, BN, BC)
    x = tl.fma(d11 - d10, (g * a_y)[:, None], (d01 - d00) * (g * (1 - a_y))[:, None])
    y = tl.fma(d11 - d01, (g * a_x)[:, None], (d10 - d00) * (g * (1 - a_x))[:, None])
    return x, y


@triton.jit
def _scatter(near, w, gw00, gw01, gw10, gw11, bits, has_c, pixel, row):
    """Add to the four corners; the order of additions is the hardware's."""
    tl.atomic_add(near, gw00[:, None] * w, mask=((bits & 1) != 0)[:, None] & has_c, sem="relaxed")
    tl.atomic_add(near + pixel, gw01[:, None] * w, mask=((bits & 2) != 0)[:, None] & has_c, sem="relaxed")
    tl.atomic_add(near + row, gw10[:, None] * w, mask=((bits & 4) != 0)[:, None] & has_c, sem="relaxed")
    tl.atomic_add(near + row + pixel, gw11[:, None] * w, mask=((bits & 8) != 0)[:, None] & has_c, sem="relaxed")


@triton.jit
def _store_part(parts, value, row: tl.constexpr, part, n, has_n, N):
    """One quantity of the neurons; value is [BN, lanes] or [BN]."""
    total = value if len(value.shape) == 1 else tl.sum(value, axis=1)
    tl.store(parts + (part.to(tl.int64) * QUANTITIES + row) * N + n, total, mask=has_n)


@jit
def backward_kernel(
    d_features,  # rows, added to; None: not wanted
    d_weight,  # [splits, N, C]; None: not wanted
    parts,  # [splits * chunks, QUANTITIES, N]
    shift_parts,  # [blocks * chunks, B, 2]; None: not wanted
    grad,  # [B, N]
    features,  # rows
    weight,  # [N, C]
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
    image_pitch,
    row_pitch,  # of both, features and d_features
    d_image_pitch,
    first_block,
    odd,
    images,  # for each program
    C: tl.constexpr,
    PIXEL: tl.constexpr,
    D_PIXEL: tl.constexpr,
    SIGMA: tl.constexpr,
    SHARED: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    WIDE: tl.constexpr,
    MU: tl.constexpr,  # wanted
    COVARIANCE: tl.constexpr,  # wanted: d_sigma
    BIAS: tl.constexpr,  # wanted
    BN: tl.constexpr,
    BC: tl.constexpr,
    T: tl.constexpr,
):
    """One block of neurons, one chunk of channels, some of the images."""
    dtype: tl.constexpr = mu.dtype.element_ty
    POSITION: tl.constexpr = MU or COVARIANCE or shift_parts is not None
    DRAWN: tl.constexpr = SIGMA > 0 and not SHARED
    chunk, chunks = tl.program_id(1), tl.num_programs(1)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    has_n = n < N
    row = n.to(tl.int64) * C
    c = chunk * BC + tl.arange(0, BC)[None, :]
    has_c = in_range(c, C, BC)
    tile_n, tile_has_n = n[:, None], has_n[:, None]
    gaussian = load_gaussian(mu, sigma, tile_n, tile_has_n, SIGMA)
    if SHARED:
        e_x, e_y = draw(noise, seed, neuron_index, tile_n, tile_has_n, 0, True, N, 0, 0, True, dtype)
        z_x, z_y = displace(gaussian, e_x, e_y, SIGMA)
    elif not DRAWN:
        z_x, z_y = gaussian[0], gaussian[1]
    if POSITION or d_features is not None:
        w = tl.load(weight + row[:, None] + c, mask=tile_has_n & has_c, other=0).to(dtype)
    if POSITION:
        quarters = _quarters(w, BN, BC)
    d_w = tl.zeros([BN, BC], dtype)
    d_x, d_y = tl.zeros([BN, BC // 4], dtype), tl.zeros([BN, BC // 4], dtype)
    d_xx, d_xy, d_yx, d_yy = d_x, d_x, d_x, d_x
    d_bias = tl.zeros([BN, T], dtype)

    start = tl.program_id(2) * images - odd
    stop = tl.minimum(start + images, B)
    for b0 in range(start, stop, T):
        b = b0 + tl.arange(0, T)[None, :]
        has_b = (b >= 0) & (b < stop)
        if DRAWN:
            e_x, e_y = draw(noise, seed, neuron_index, tile_n, tile_has_n, b, has_b, N, first_block, odd, False, dtype)
            z_x, z_y = displace(gaussian, e_x, e_y, SIGMA)
        x, y, a_x, a_y = locate(z_x, z_y, shift, b, has_b, H, W, ALIGN_CORNERS)
        pixels = columns(y * row_pitch + x, T)
        a_xs, a_ys = columns(a_x, T), columns(a_y, T)
        bits = columns(corner_bits(x, y, tile_has_n & has_b, H, W) | clamp_bits(z_x, z_y), T)
        if COVARIANCE:
            e_xs, e_ys = columns(e_x, T), columns(e_y, T)
        if BIAS:
            d_bias += tl.load(grad + b.to(tl.int64) * N + tile_n, mask=tile_has_n & has_b, other=0).to(dtype)
        for i in tl.static_range(T):
            image = (b0 + i).to(tl.int64)
            here = (b0 + i >= 0) & (b0 + i < stop)
            inside = bits[i]
            g = tl.load(grad + image * N + n, mask=has_n & here, other=0).to(dtype)
            w00, w01, w10, w11 = corner_weights(a_xs[i], a_ys[i])
            gw00, gw01, gw10, gw11 = g * w00, g * w01, g * w10, g * w11
            first = (pixels[i].to(tl.int64) if WIDE else pixels[i])[:, None]
            if POSITION or d_weight is not None:
                near = features + image * image_pitch * PIXEL + first * PIXEL + c
                f00, f01, f10, f11 = load_corners(near, inside[:, None], has_c, PIXEL, row_pitch * PIXEL, dtype)
            if d_weight is not None:
                d_w = tl.fma(f01, gw01[:, None], tl.fma(f00, gw00[:, None], d_w))
                d_w = tl.fma(f11, gw11[:, None], tl.fma(f10, gw10[:, None], d_w))
            if POSITION:
                p_x, p_y = _pixel_gradient(f00, f01, f10, f11, quarters, a_xs[i], a_ys[i], g, BN, BC)
                if shift_parts is not None:
                    at = shift_parts + ((tl.program_id(0) * chunks + chunk).to(tl.int64) * B + image) * 2
                    tl.store(at, tl.sum(p_x), mask=here)
                    tl.store(at + 1, tl.sum(p_y), mask=here)
                p_x = tl.where(((inside & CLAMP_X) != 0)[:, None], p_x, 0)
                p_y = tl.where(((inside & CLAMP_Y) != 0)[:, None], p_y, 0)
                if MU:
                    d_x += p_x
                    d_y += p_y
                if COVARIANCE:
                    d_xx = tl.fma(p_x, e_xs[i][:, None], d_xx)
                    d_yy = tl.fma(p_y, e_ys[i][:, None], d_yy)
                    if SIGMA == 4:
                        d_xy = tl.fma(p_x, e_ys[i][:, None], d_xy)
                        d_yx = tl.fma(p_y, e_xs[i][:, None], d_yx)
            if d_features is not None:
                near = d_features + image * d_image_pitch * D_PIXEL + first * D_PIXEL + c
                _scatter(near, w, gw00, gw01, gw10, gw11, inside, has_c, D_PIXEL, row_pitch * D_PIXEL)

    part = tl.program_id(2) * chunks + chunk
    if d_weight is not None:
        at = d_weight + tl.program_id(2).to(tl.int64) * N * C + row[:, None] + c
        tl.store(at, d_w.to(d_weight.dtype.element_ty), mask=tile_has_n & has_c)
    if MU:
        _store_part(parts, d_x, 0, part, n, has_n, N)
        _store_part(parts, d_y, 1, part, n, has_n, N)
    if COVARIANCE:
        _store_part(parts, d_xx, 2, part, n, has_n, N)
        _store_part(parts, d_yy, 5, part, n, has_n, N)
        if SIGMA == 4:
            _store_part(parts, d_xy, 3, part, n, has_n, N)
            _store_part(parts, d_yx, 4, part, n, has_n, N)
    if BIAS:
        _store_part(parts, d_bias, 6, part, n, has_n & (chunk == 0), N)


# Launchers -------------------------------------------------------------------------------------------------------

MOST_IMAGES = 32
"""Images over which a program adds one after the other.

Each addition rounds the whole sum: in long chains the error is several times that of torch, which adds in a tree. The
partial sums of d_weight then take C / 32 times the memory of the readout's output.
"""


class Wanted(NamedTuple):
    """The operands whose gradients are asked for; None: not asked for, or not there."""

    features: Tensor | None
    mu: Tensor | None
    sigma: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    shift: Tensor | None


def _scatter_target(features: Tensor, o: Operands) -> tuple[Tensor, Rows]:
    """Gradient in the layout of ``empty_like(features)``, and zeroed rows to add to: its own where they can be.

    The rows are as far apart as those that are read, which saves the kernel an address.
    """
    out = torch.empty_like(features)
    rows = rows_in_place(out) if out.dtype == o.dtype else None
    if rows is None or rows.row != o.rows.row:
        batch, channels, height, width = features.shape
        buffer = out.new_empty((batch, height, o.rows.row, channels), dtype=o.dtype)
        rows = Rows(buffer[:, :, :width].permute(0, 3, 1, 2), channels, o.rows.row, height * o.rows.row)
    rows.data.zero_()
    return out, rows


def _scatter_arguments(target: Rows | None) -> dict[str, Any]:
    if target is None:
        return {"d_features": None, "d_image_pitch": 0, "D_PIXEL": 0}
    return {"d_features": target.data, "d_image_pitch": target.image, "D_PIXEL": target.pixel}


def neuron_pass(o: Operands, grad: Tensor, want: Wanted, config: Config) -> dict[str, Tensor]:
    """The gradients that are wanted, by name; that of the features is scattered."""
    batch, channels, _, _, neurons = o.sizes
    blocks, chunks = triton.cdiv(neurons, config.neurons), triton.cdiv(channels, config.channels)
    images = images_per_program(batch + o.odd, blocks * chunks, config.images, MOST_IMAGES)
    splits = triton.cdiv(batch + o.odd, images)
    sums = any(like is not None for like in (want.mu, want.sigma, want.bias))
    new = o.mu.new_empty
    slabs = parts = shift_parts = out_features = target = None
    if want.features is not None:
        out_features, target = _scatter_target(want.features, o)
    if want.weight is not None:
        slabs = new((splits, neurons, channels), dtype=want.weight.dtype if splits == 1 else o.dtype)
    if sums:
        parts = new((splits * chunks, QUANTITIES.value, neurons))
    if want.shift is not None:
        shift_parts = new((blocks * chunks, batch, 2))
    backward_kernel[(blocks, chunks, splits)](
        d_weight=slabs,
        parts=parts,
        shift_parts=shift_parts,
        grad=grad,
        weight=o.weight,
        images=images,
        C=channels,
        WIDE=o.rows.wide or (target is not None and target.wide),
        MU=want.mu is not None,
        COVARIANCE=want.sigma is not None,
        BIAS=want.bias is not None,
        **_scatter_arguments(target),
        **o.rows.arguments(),
        **o.positions(),
        **config.options(),
    )
    out = {} if parts is None else sum_parts(o, parts, chunks, {"mu": want.mu, "sigma": want.sigma, "bias": want.bias})
    if slabs is not None and want.weight is not None:
        out["weight"] = slabs[0] if splits == 1 else sum_slabs(o, slabs, want.weight)
    if shift_parts is not None and want.shift is not None:
        out["shift"] = sum_slabs(o, shift_parts, want.shift, pixels=True)
    if out_features is not None and target is not None:
        out["features"] = out_features if target.data is out_features else out_features.copy_(target.data)
    return out


def _gradients(o: Operands, grad: Tensor, want: Wanted) -> dict[str, Tensor]:
    """The gradients that are wanted, by name, of at least one sample."""
    out = {}
    if want.sigma is not None and o.sigma is None:  # the mean positions do not depend on it
        out["sigma"] = want.sigma.new_zeros(want.sigma.shape)
        want = want._replace(sigma=None)
    if want.features is not None and gaussian_readout_features.is_gathered(o):
        out["features"] = gaussian_readout_features.features_gradient(o, grad, want.features)
        want = want._replace(features=None)
    if any(like is not None for like in want):
        key = ("backward", *o.shape_class(), *(like is not None for like in want))
        configs = backward_configs(o.sizes[1], o.rows.data.dtype, o.dtype)
        out |= run_tuned(key, configs, lambda config: neuron_pass(o, grad, want, config), grad.device)
    return out


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
) -> tuple[Tensor, ...]:
    """The op ``v1fast::gaussian_readout_backward``: a gradient that is not asked for is ``empty(0)``."""
    operands = (features, mu, sigma, weight, bias, shift, noise, seed, neuron_index)
    check(*operands, image_offset, share_noise, align_corners)
    _checks.shape("grad_output", grad_output, "[B, N]", (features.shape[0], mu.shape[0]))
    want = Wanted(*(like if wanted else None for like, wanted in zip(operands[:6], output_mask, strict=True)))
    out: dict[str, Tensor] = {}
    if grad_output.numel() == 0:
        out = {name: torch.zeros_like(like) for name, like in want._asdict().items() if like is not None}
    elif any(output_mask):
        o = prepare(compute_dtype(*operands[:7]), *operands, image_offset, share_noise, align_corners)
        with torch.cuda.device_of(features):
            out = _gradients(o, grad_output.contiguous(), want)
    unwanted = {"features": features, "weight": weight}
    return tuple(out[name] if name in out else unwanted.get(name, mu).new_empty(0) for name in Wanted._fields)
