# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The backward pass of every readout of points.

A program holds the sums of some neurons for some channels, and loops over images as the forward pass does. It writes
its partial sums to slabs. A second kernel adds the slabs in a fixed order, so the bits are the same every time and no
atomics are needed. Each level of a pyramid is a launch with its own slabs; the sums run over all levels. Only
d_features is scattered, with relaxed float32 atomics, unless ``_features`` gathers it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from v1fast.reference._common import laid_out_like

from . import _features
from ._common import (
    CLAMP_X,
    CLAMP_Y,
    clamp_bits,
    columns,
    corner_bits,
    corner_weights,
    in_range,
    load_corners,
    locate,
    of_all_images,
    of_images,
    pixels_per_unit,
)
from ._launch import Config, Operands, Rows, backward_configs, images_per_program, jit, rows_in_place, run_tuned
from ._pyramid import spread_back
from ._sums import new_slabs, sum_first, sum_slabs


@triton.jit
def _quarters(tile, BN: tl.constexpr, BC: tl.constexpr):
    """[BN, BC] -> 4 x [BN, BC / 4]: each fourth channel. A thread holds four neighbours of an aligned row anyway."""
    even, odd = tl.split(tl.reshape(tile, [BN, BC // 4, 2, 2]))
    c0, c2 = tl.split(even)
    c1, c3 = tl.split(odd)
    return c0, c1, c2, c3


@triton.jit
def _dot(corner, w, BN: tl.constexpr, BC: tl.constexpr):
    """[BN, BC / 4]: sums over four channels, with w in quarters. The remaining sum waits until all images are read."""
    c0, c1, c2, c3 = _quarters(corner, BN, BC)
    return tl.fma(c3, w[3], tl.fma(c2, w[2], tl.fma(c1, w[1], c0 * w[0])))


@triton.jit
def _pixel_gradient(f00, f01, f10, f11, w, a_x, a_y, g, BN: tl.constexpr, BC: tl.constexpr):
    """Gradients of the pixel coordinates (x, y), [BN, BC / 4]: each entry sums four channels."""
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
def _store_pair(pairs, at, x, y, mask):
    """Store (x, y) at ``pairs[at]``."""
    tl.store(pairs + at * 2, x.to(pairs.dtype.element_ty), mask=mask)
    tl.store(pairs + at * 2 + 1, y.to(pairs.dtype.element_ty), mask=mask)


@triton.jit
def _store_covariance(d_sigma, at, xx, xy, yx, yy, mask, SIGMA: tl.constexpr):
    """Store the gradients of those entries that sigma has columns for."""
    dtype: tl.constexpr = d_sigma.dtype.element_ty
    if SIGMA == 1:
        tl.store(d_sigma + at, (xx + yy).to(dtype), mask=mask)
    else:
        tl.store(d_sigma + at * SIGMA, xx.to(dtype), mask=mask)
        tl.store(d_sigma + at * SIGMA + SIGMA - 1, yy.to(dtype), mask=mask)
    if SIGMA == 4:
        tl.store(d_sigma + at * 4 + 1, xy.to(dtype), mask=mask)
        tl.store(d_sigma + at * 4 + 2, yx.to(dtype), mask=mask)


@jit
def backward_kernel(
    d_features,  # rows, added to; None: not needed
    d_weight,  # [splits, N, C], rows LEVELS * C apart; None: not needed
    d_mu,  # [splits * chunks, N, 2]; PER_IMAGE: [chunks, B, N, 2]; None: not needed
    d_sigma,  # [splits * chunks, N, SIGMA]; None: not needed
    d_shift,  # [blocks * chunks, B, 2]; None: not needed
    grad,  # [B, N]; None: weight has a row for each sample, [B, N, C], and channels are not summed
    features,  # rows
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
    image_pitch,
    row_pitch,  # of both features and d_features
    d_image_pitch,
    first_block,
    odd,
    images,  # per program
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    PIXEL: tl.constexpr,
    D_PIXEL: tl.constexpr,
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
    """Add up one block of neurons and one chunk of channels over some of the images."""
    dtype: tl.constexpr = mu.dtype.element_ty
    POSITION: tl.constexpr = d_mu is not None or d_sigma is not None or d_shift is not None
    chunk, chunks = tl.program_id(1), tl.num_programs(1)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    has_n = n < N
    row = n.to(tl.int64) * (LEVELS * C)
    c = chunk * BC + tl.arange(0, BC)[None, :]
    has_c = in_range(c, C, BC)
    tile_n, tile_has_n = n[:, None], has_n[:, None]
    every = of_all_images(mu, sigma, noise, seed, neuron_index, tile_n, tile_has_n, N, SIGMA, SHARED)
    if grad is not None and (POSITION or d_features is not None):
        w = tl.load(weight + row[:, None] + c, mask=tile_has_n & has_c, other=0).to(dtype)
        quarters = _quarters(w, BN, BC)
    d_w = tl.zeros([BN, BC], dtype)
    d_x, d_y = tl.zeros([BN, BC // 4], dtype), tl.zeros([BN, BC // 4], dtype)
    d_xx, d_xy, d_yx, d_yy = d_x, d_x, d_x, d_x

    start = tl.program_id(2) * images - odd
    stop = tl.minimum(start + images, B)
    for b0 in range(start, stop, T):
        b = b0 + tl.arange(0, T)[None, :]
        has_b = (b >= 0) & (b < stop)
        e_x, e_y, z_x, z_y = of_images(
            every, mu, noise, seed, neuron_index, tile_n, tile_has_n, b, has_b, N, first_block, odd,
            SIGMA, SHARED, PER_IMAGE,
        )  # fmt: skip
        x, y, a_x, a_y = locate(z_x, z_y, shift, b, has_b, H, W, ALIGN_CORNERS, CLAMP)
        pixels = columns(y * row_pitch + x, T)
        a_xs, a_ys = columns(a_x, T), columns(a_y, T)
        corners = corner_bits(x, y, tile_has_n & has_b, H, W)
        bits = columns(corners | clamp_bits(z_x, z_y) if CLAMP else corners, T)
        if d_sigma is not None:
            e_xs, e_ys = columns(e_x, T), columns(e_y, T)
        for i in tl.static_range(T):
            image = (b0 + i).to(tl.int64)
            here = (b0 + i >= 0) & (b0 + i < stop)
            inside = bits[i]
            if grad is None:
                g = tl.full([BN], 1, dtype)
                w_at = weight + (image * N + n)[:, None] * C + c
                w = tl.load(w_at, mask=tile_has_n & here & has_c, other=0).to(dtype)
                quarters = _quarters(w, BN, BC)
            else:
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
                scale_x, scale_y = pixels_per_unit(W, ALIGN_CORNERS, dtype), pixels_per_unit(H, ALIGN_CORNERS, dtype)
                if d_shift is not None:
                    at = (tl.program_id(0) * chunks + chunk).to(tl.int64) * B + image
                    _store_pair(d_shift, at, tl.sum(p_x) * scale_x, tl.sum(p_y) * scale_y, here)
                if CLAMP:
                    p_x = tl.where(((inside & CLAMP_X) != 0)[:, None], p_x, 0)
                    p_y = tl.where(((inside & CLAMP_Y) != 0)[:, None], p_y, 0)
                if d_mu is not None:
                    if PER_IMAGE:
                        at = (chunk.to(tl.int64) * B + image) * N + n
                        sum_x, sum_y = tl.sum(p_x, axis=1) * scale_x, tl.sum(p_y, axis=1) * scale_y
                        _store_pair(d_mu, at, sum_x, sum_y, has_n & here)
                    else:
                        d_x += p_x
                        d_y += p_y
                if d_sigma is not None:
                    d_xx = tl.fma(p_x, e_xs[i][:, None], d_xx)
                    d_yy = tl.fma(p_y, e_ys[i][:, None], d_yy)
                    if SIGMA == 4:
                        d_xy = tl.fma(p_x, e_ys[i][:, None], d_xy)
                        d_yx = tl.fma(p_y, e_xs[i][:, None], d_yx)
            if d_features is not None:
                near = d_features + image * d_image_pitch * D_PIXEL + first * D_PIXEL + c
                _scatter(near, w, gw00, gw01, gw10, gw11, inside, has_c, D_PIXEL, row_pitch * D_PIXEL)

    scale_x, scale_y = pixels_per_unit(W, ALIGN_CORNERS, dtype), pixels_per_unit(H, ALIGN_CORNERS, dtype)
    part = (tl.program_id(2) * chunks + chunk).to(tl.int64) * N + n
    if d_weight is not None:
        at = d_weight + tl.program_id(2).to(tl.int64) * N * (LEVELS * C) + row[:, None] + c
        tl.store(at, d_w.to(d_weight.dtype.element_ty), mask=tile_has_n & has_c)
    if d_mu is not None and not PER_IMAGE:
        _store_pair(d_mu, part, tl.sum(d_x, axis=1) * scale_x, tl.sum(d_y, axis=1) * scale_y, has_n)
    if d_sigma is not None:
        xx, xy = tl.sum(d_xx, axis=1) * scale_x, tl.sum(d_xy, axis=1) * scale_x
        yx, yy = tl.sum(d_yx, axis=1) * scale_y, tl.sum(d_yy, axis=1) * scale_y
        _store_covariance(d_sigma, part, xx, xy, yx, yy, has_n, SIGMA)


# Launchers -------------------------------------------------------------------------------------------------------

MOST_IMAGES = 32
"""Images over which a program adds one after the other.

Each addition rounds the whole sum: in long chains the error is several times that of torch, which adds in a tree. The
partial sums of d_weight then take C / 32 times the memory of the readout's output.
"""


class Wanted(NamedTuple):
    """The operands that need a gradient. None: not needed, or no such operand."""

    features: Tensor | None = None
    mu: Tensor | None = None  # or the positions themselves
    sigma: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    shift: Tensor | None = None


def _scatter_target(o: Operands, features: Tensor) -> Rows:
    """Return zeroed rows to add to, laid out like ``empty_like(features)`` where possible.

    They have the same pitch as the rows that are read. This saves the kernel an address.
    """
    rows = None
    if features.dtype == o.dtype:
        rows = rows_in_place(torch.empty_like(features))
    if rows is None or rows.row != o.rows.row:
        batch, channels, height, width = features.shape
        buffer = features.new_empty((batch, height, o.rows.row, channels), dtype=o.dtype)
        rows = Rows(buffer[:, :, :width].permute(0, 3, 1, 2), channels, o.rows.row, height * o.rows.row)
    rows.data.zero_()
    return rows


class _Slabs:
    """Partial sums of all levels. Each level's ``count`` slabs follow those of the level before."""

    def __init__(self, like: Tensor | None, levels: int, count: int, dtype: torch.dtype) -> None:
        self.like, self.count = like, count
        self.all = None if like is None else new_slabs(levels * count, like, dtype)

    def of_level(self, level: int) -> Tensor | None:
        return None if self.all is None else self.all[level * self.count :]

    def sum(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.all is None or self.like is None else sum_slabs(self.all, self.like, dtype)


def neuron_pass(
    levels: list[Operands],
    grad: Tensor | None,  # [B, N]; None: each sample has its own weights, [B, N, C]
    want: Wanted,
    scattered: list[bool],  # by level: whether the gradient of the map is computed here
    config: Config,
) -> tuple[dict[str, Tensor], list[Tensor | None]]:
    """Return the requested gradients of the neurons' operands and of shift, and those of the maps in ``scattered``."""
    o, count = levels[0], len(levels)
    batch, channels, _, _, neurons = o.sizes
    blocks, chunks = triton.cdiv(neurons, config.neurons), triton.cdiv(channels, config.channels)
    images = images_per_program(batch + o.odd, blocks * chunks, config.images, MOST_IMAGES)
    splits = triton.cdiv(batch + o.odd, images)
    slabs = {
        "mu": _Slabs(want.mu, count, chunks if o.per_image else splits * chunks, o.dtype),
        "sigma": _Slabs(want.sigma, count, splits * chunks, o.dtype),
        "shift": _Slabs(want.shift, count, blocks * chunks, o.dtype),
    }
    d_weight = None if want.weight is None else new_slabs(splits, want.weight, o.dtype)
    maps: list[Tensor | None] = []
    for i, level in enumerate(levels):
        target = None
        if scattered[i] and want.features is not None:
            target = _scatter_target(level, want.features if i == 0 else level.rows.data)
        maps.append(None if target is None else target.data)
        if target is None and all(like is None for like in want[1:]):
            continue
        backward_kernel[(blocks, chunks, splits)](
            d_weight=None if d_weight is None else d_weight[..., i * channels :],
            **{f"d_{name}": parts.of_level(i) for name, parts in slabs.items()},
            grad=grad,
            weight=level.weight,
            LEVELS=level.levels,
            images=images,
            C=channels,
            WIDE=level.rows.wide or (target is not None and target.wide),
            **_scatter_arguments(target),
            **level.rows.arguments(),
            **level.positions(),
            **config.options(),
        )
    out = {name: parts.sum(o.dtype) for name, parts in slabs.items()}
    if d_weight is not None and want.weight is not None:
        out["weight"] = sum_slabs(d_weight, want.weight, o.dtype)
    return {name: gradient for name, gradient in out.items() if gradient is not None}, maps


def _scatter_arguments(target: Rows | None) -> dict[str, Any]:
    if target is None:
        return {"d_features": None, "d_image_pitch": 0, "D_PIXEL": 0}
    return {"d_features": target.data, "d_image_pitch": target.image, "D_PIXEL": target.pixel}


def _gathered(o: Operands, grad: Tensor | None, like: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty_like(like, dtype=dtype)
    _features.gather(o, grad, out)
    return out


def _gradients(levels: list[Operands], grad: Tensor | None, want: Wanted, pool_kernel: int) -> dict[str, Tensor]:
    o, out = levels[0], {}
    if want.sigma is not None and o.sigma is None:  # the mean positions do not depend on sigma
        out["sigma"] = want.sigma.new_zeros(want.sigma.shape)
        want = want._replace(sigma=None)
    if want.bias is not None and grad is not None:
        out["bias"] = sum_first(grad, want.bias, o.dtype)
        want = want._replace(bias=None)
    maps: list[Tensor | None] = [None for _ in levels]
    scattered = [want.features is not None and not _features.is_gathered(level) for level in levels]
    wanted = [like is not None for like in want[1:]]
    if any(scattered) or any(wanted):
        key = ("backward", *o.shape_class(), *scattered, *wanted)
        configs = backward_configs(o.sizes[1], o.rows.data.dtype, o.dtype, any(scattered) and not o.clamp)
        found, maps = run_tuned(key, configs, lambda c: neuron_pass(levels, grad, want, scattered, c), o.mu.device)
        out |= found
    if want.features is not None:
        likes = [want.features, *(level.rows.data for level in levels[1:])]
        dtype = want.features.dtype if len(levels) == 1 else o.dtype  # added up before rounding
        whole = [
            _gathered(level, grad, like, dtype) if made is None else made
            for level, like, made in zip(levels, likes, maps, strict=True)
        ]
        out["features"] = spread_back(whole, want.features, pool_kernel)
    if want.weight is not None:
        out["weight"] = laid_out_like(out["weight"], want.weight)
    return out


def gradients(
    levels: Callable[[], list[Operands]],
    grad: Tensor | None,  # [B, N]; None: each sample has its own weights, [B, N, C]
    want: Wanted,
    samples: int,
    pool_kernel: int = 1,
) -> dict[str, Tensor]:
    """Return the requested gradients by name. Nothing is prepared if none is requested or there is no sample."""
    wanted = {name: like for name, like in want._asdict().items() if like is not None}
    if not wanted:
        return {}
    if samples == 0:
        laid_out = ("features", "weight")
        return {k: torch.zeros_like(v) if k in laid_out else v.new_zeros(v.shape) for k, v in wanted.items()}
    with torch.cuda.device_of(next(iter(wanted.values()))):
        return _gradients(levels(), grad, want, pool_kernel)
