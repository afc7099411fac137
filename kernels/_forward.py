# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The forward pass of every readout of points: positions, four reads of rows of channels, dot product, one store.

A program holds the weights of some neurons and loops over images, one tile at a time. So the arithmetic of the
positions is spread over its threads. Image splits are the slowest grid axis: programs that run together read the same
images. Each level of a pyramid is a launch that adds to the sum of the levels before it. This costs eight bytes per
sample, in addition to the four rows that are read for it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from v1fast.contracts._forms import Seen

from ._common import columns, corner_bits, corner_weights, in_range, load_corners, locate, of_all_images, of_images
from ._launch import (
    Config,
    Launch,
    Operands,
    Ready,
    choose,
    forward_configs,
    get_ready,
    images_per_program,
    jit,
    on_device,
    philox_block,
    plans,
    without_values,
)
from ._pyramid import levels_of, only


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


def _launch(o: Operands, config: Config) -> Launch:
    batch, channels, _, _, neurons = o.sizes
    blocks = triton.cdiv(neurons, config.neurons)
    images = images_per_program(batch + o.odd, blocks, config.images)
    options = config.options()
    arguments = {
        "LEVELS": o.levels,
        "images": images,
        "C": channels,
        "WIDE": o.rows.wide,
        **o.rows.numbers(),
        **o.numbers(),
        **{name: options.pop(name) for name in ("BN", "BC", "T")},
    }
    return Launch(forward_kernel, (blocks, triton.cdiv(batch + o.odd, images)), arguments, options)


class Forward:
    """The forward pass of calls of one form: [B, N], or [B, N, C] for one level without weights.

    Args:
        levels: operands without values; there is at least one sample.
        narrow: whether the output has another dtype than the arithmetic.
        config: how much work a program takes.
    """

    def __init__(self, levels: list[Operands], narrow: bool, config: Config) -> None:
        self.launches = [_launch(level, config) for level in levels]
        # all levels are added before the sum is rounded to a narrower dtype
        self.sums = levels[0].dtype if narrow and len(levels) > 1 else None

    def __call__(self, ready: Sequence[Any], maps: Sequence[Tensor], out: Tensor, first_block: int) -> Tensor:
        """Write what the points read. ``maps`` are the levels' features."""
        _, mu, sigma, weight, bias, shift, noise, seed, neuron_index = ready
        positions = (mu, sigma, shift, noise, seed, neuron_index)
        if len(self.launches) == 1:
            self.launches[0]((out, None, maps[0], weight, bias, *positions), first_block)
            return out
        sums = out if self.sums is None else torch.empty_like(out, dtype=self.sums)
        partial = None
        for launch, data in zip(self.launches, maps, strict=True):
            target = out if data is maps[-1] else sums
            launch((target, partial, data, weight, bias, *positions), first_block)
            partial, bias, weight = sums, None, weight[:, data.shape[1] :]
        return out


class Reading(NamedTuple):
    """How the calls of one form read."""

    shape: tuple[int, ...]  # of the output
    dtype: torch.dtype
    maps_of: Callable[[Tensor, Tensor | None], list[Tensor]]  # features of all levels, of the first ones and the pooled
    ready: Ready | None  # None: there is no sample
    run: Any  # Forward

    def __call__(self, operands: Sequence[Any], image_offset: int, pooled: Tensor | None) -> Tensor:
        """Return what the points read: [B, N], or [B, N, C] without weights."""
        out = torch.empty(*self.shape, dtype=self.dtype, device=operands[0].device)
        if self.ready is None:
            return out
        tensors: Any = self.ready(operands)
        maps = self.maps_of(tensors[0], pooled)
        return self.run(tensors, maps, out, image_offset >> 1 and philox_block(image_offset)[0])


class Described(NamedTuple):
    """What a form of calls means: asked for when it is first seen."""

    key: Hashable  # that of the same calls with another first image; all else here depends on it
    out: Tensor  # an output, so that one for which there is no memory is refused before anything is prepared
    dtype: torch.dtype  # of the arithmetic
    options: Sequence[Any] = ()  # arguments of ``get_ready``
    maps_of: Callable[[Tensor, Tensor | None], list[Tensor]] = only


def read(
    seen: Seen | None,
    operands: Sequence[Any],
    image_offset: int,
    describe: Callable[[], Described],
    pooled: Tensor | None = None,
) -> Tensor:
    """Return what the points read.

    Args:
        seen: the form of the call.
        operands: those of ``prepare``.
        image_offset: number of the first image.
        describe: says what the form means.
        pooled: the poolings, where they are given.
    """
    with on_device(operands[0]):
        plan: Reading | None = plans.recall(seen)
        if plan is None:
            plan = _plan(seen, operands, describe(), pooled)
        return plan(operands, image_offset, pooled)


def _plan(seen: Seen | None, operands: Sequence[Any], call: Described, pooled: Tensor | None) -> Reading:
    key = ("forward", call.key)
    plan: Reading | None = plans.get(key)
    if plan is None:
        plan, final = _made(operands, call, pooled)
        if not final:
            return plan
        plans.keep(key, plan)
    plans.remember(seen, plan)
    return plan


def _made(operands: Sequence[Any], call: Described, pooled: Tensor | None) -> tuple[Reading, bool]:
    """Return a plan, and whether it is the best one."""
    out = call.out
    if out.numel() == 0:
        return Reading(tuple(out.shape), out.dtype, call.maps_of, None, None), True
    ready = get_ready(call.dtype, operands, *call.options)
    o = ready.template
    levels = levels_of(o, call.maps_of(o.rows.data, without_values(pooled)))

    def made(config: Config) -> Reading:
        run = Forward(levels, out.dtype != o.dtype, config)
        return Reading(tuple(out.shape), out.dtype, call.maps_of, ready, run)

    configs = forward_configs(o.sizes[1], o.dtype)
    config = choose(
        ("forward", *o.shape_class()), configs, lambda config: made(config)(operands, 0, pooled), operands[0].device
    )
    return made(config or configs[0]), config is not None
