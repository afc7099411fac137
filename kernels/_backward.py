# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The backward pass of every readout of points.

A program holds the sums of some neurons for some channels, and loops over images as the forward pass does. It writes
its partial sums to slabs. A second kernel adds the slabs in a fixed order, so the bits are the same every time and no
atomics are needed. Each level of a pyramid is a launch with its own slabs; the sums run over all levels. Only
d_features is scattered, with relaxed float32 atomics, unless ``_features`` gathers it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from v1fast.contracts._forms import Seen

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
from ._launch import (
    Config,
    Launch,
    Operands,
    Ready,
    Rows,
    backward_configs,
    choose,
    get_ready,
    images_per_program,
    jit,
    on_device,
    philox_block,
    plans,
    rows_in_place,
    with_values,
    without_values,
)
from ._pyramid import levels_of, only, spread_back
from ._sums import Sums


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


class _Target:
    """Zeroed rows to add the gradient of a map to, laid out like ``empty_like`` of the map where possible.

    They have the same pitch as the rows that are read. This saves the kernel an address.

    Args:
        o: the level, without values.
        features: the map whose gradient it is, as it was given, without values.
    """

    def __init__(self, o: Operands, features: Tensor) -> None:
        rows = rows_in_place(torch.empty_like(features)) if features.dtype == o.dtype else None
        self.own: tuple[int, ...] | None = None  # shape of a buffer
        if rows is None or rows.row != o.rows.row:
            batch, channels, height, width = features.shape
            self.own, self.width = (batch, height, o.rows.row, channels), width
            buffer = features.new_empty(self.own, dtype=o.dtype)
            rows = Rows(self._map(buffer), channels, o.rows.row, height * o.rows.row)
        self.rows, self.dtype = rows, o.dtype

    def _map(self, buffer: Tensor) -> Tensor:
        return buffer[:, :, : self.width].permute(0, 3, 1, 2)

    def new(self, features: Tensor) -> Tensor:
        """Allocate them; ``features`` is the map itself."""
        if self.own is None:
            return torch.empty_like(features).zero_()
        return self._map(torch.zeros(self.own, dtype=self.dtype, device=features.device))


class NeuronPass:
    """The gradients of the neurons' operands and of shift, and those of the maps in ``scattered``.

    Args:
        levels: operands of each level, without values.
        grad: [B, N], without values; None: each sample has its own weights, [B, N, C].
        want: the operands, as they were given, that need a gradient; without values.
        scattered: by level: whether the gradient of the map is computed here.
        config: how much work a program takes.
    """

    def __init__(
        self, levels: list[Operands], grad: Tensor | None, want: Wanted, scattered: list[bool], config: Config
    ) -> None:
        o, count = levels[0], len(levels)
        batch, channels, _, _, neurons = o.sizes
        blocks, chunks = triton.cdiv(neurons, config.neurons), triton.cdiv(channels, config.channels)
        images = images_per_program(batch + o.odd, blocks * chunks, config.images, MOST_IMAGES)
        splits = triton.cdiv(batch + o.odd, images)
        self.channels = channels
        # each level's partial sums follow those of the level before
        self.steps = {
            "mu": chunks if o.per_image else splits * chunks,
            "sigma": splits * chunks,
            "shift": blocks * chunks,
        }
        counts = {name: count * step for name, step in self.steps.items()} | {"weight": splits}
        self.parts: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}  # to allocate
        sums: dict[str, tuple[Sequence[int], torch.dtype]] = {}
        for name, number in counts.items():
            like: Tensor | None = getattr(want, name)
            if like is None:
                continue
            if number == 1:  # the result itself
                self.parts[name] = tuple(like.shape), like.dtype
            else:
                self.parts[name] = (number, *like.shape), o.dtype
                sums[name] = self.parts[name][0], like.dtype
        if want.bias is not None and grad is not None:
            sums["bias"] = grad.shape, want.bias.dtype
        self.sums = Sums(sums, o.dtype) if sums else None
        self.targets: list[_Target | None] = []
        self.launches: list[Launch | None] = []
        for i, level in enumerate(levels):
            target = None
            if scattered[i] and want.features is not None:
                target = _Target(level, want.features if i == 0 else level.rows.data)
            self.targets.append(target)
            options = config.options()
            arguments = {
                "LEVELS": count,
                "images": images,
                "C": channels,
                "WIDE": level.rows.wide or (target is not None and target.rows.wide),
                "d_image_pitch": 0 if target is None else target.rows.image,
                "D_PIXEL": 0 if target is None else target.rows.pixel,
                **level.rows.numbers(),
                **level.numbers(),
                **{name: options.pop(name) for name in ("BN", "BC", "T")},
            }
            needed = target is not None or bool(self.parts)
            launch = Launch(backward_kernel, (blocks, chunks, splits), arguments, options)
            self.launches.append(launch if needed else None)

    def __call__(
        self,
        ready: Sequence[Any],
        maps: Sequence[Tensor],  # the levels' features
        given: Tensor,  # the features, as they were given
        grad: Tensor | None,
        first_block: int,
    ) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        _, mu, sigma, weight, _, shift, noise, seed, neuron_index = ready
        device = given.device
        made = {name: torch.empty(*shape, dtype=dtype, device=device) for name, (shape, dtype) in self.parts.items()}
        d_mu, d_sigma, d_shift, d_weight = [made.get(name) for name in ("mu", "sigma", "shift", "weight")]
        gradients: list[Tensor | None] = []
        for i, (launch, target) in enumerate(zip(self.launches, self.targets, strict=True)):
            if i > 0:
                weight = weight[:, self.channels :]
                d_mu, d_sigma, d_shift = [
                    None if parts is None else parts[self.steps[name] :]
                    for name, parts in (("mu", d_mu), ("sigma", d_sigma), ("shift", d_shift))
                ]
                d_weight = None if d_weight is None else d_weight[..., self.channels :]
            d_map = None if target is None else target.new(maps[i] if i else given)
            gradients.append(d_map)
            if launch is not None:
                outputs = (d_map, d_weight, d_mu, d_sigma, d_shift)
                operands = (grad, maps[i], weight, mu, sigma, shift, noise, seed, neuron_index)
                launch((*outputs, *operands), first_block)
        if self.sums is not None:
            made |= self.sums(made if grad is None else made | {"bias": grad})
        return made, gradients


class _Layout:
    """How a gradient is brought into the dtype of an operand, and into the layout of ``torch.empty_like`` of it.

    Args:
        gradient: without values.
        operand: without values.
    """

    def __init__(self, gradient: Tensor, operand: Tensor) -> None:
        form = torch.empty_like(operand)
        self.kept = gradient.dtype == form.dtype and gradient.stride() == form.stride()

    def __call__(self, gradient: Tensor, operand: Tensor) -> Tensor:
        """Return the gradient, or a copy."""
        return gradient if self.kept else torch.empty_like(operand).copy_(gradient)


class Backward:
    """The backward pass of calls of one form.

    Args:
        levels: operands of each level, without values.
        grad: [B, N], without values; None: each sample has its own weights, [B, N, C].
        want: the operands that need a gradient, without values.
        pool_kernel: of the poolings between the levels.
    """

    def __init__(self, levels: list[Operands], grad: Tensor | None, want: Wanted, pool_kernel: int) -> None:
        o = levels[0]
        self.levels, self.grad, self.pool_kernel = levels, grad, pool_kernel
        self.scattered = [want.features is not None and not _features.is_gathered(level) for level in levels]
        self.no_sigma = None if want.sigma is None or o.sigma is not None else want.sigma
        # the mean positions do not depend on sigma
        self.want = want._replace(sigma=want.sigma if self.no_sigma is None else None)
        self.neurons: NeuronPass | None = None
        self.features_dtype = o.dtype  # several levels are added up before rounding
        if want.features is not None:
            if len(levels) == 1:
                self.features_dtype = want.features.dtype
            target = _Target(o, want.features).rows.data
            made = target if self.scattered[0] else torch.empty_like(want.features, dtype=self.features_dtype)
            self.features = _Layout(made, want.features)
        if want.weight is not None:
            self.weight = _Layout(torch.empty_like(want.weight, memory_format=torch.contiguous_format), want.weight)

    def use(self, config: Config) -> Backward:
        """Make the pass over the neurons of this configuration."""
        self.neurons = NeuronPass(self.levels, self.grad, self.want, self.scattered, config)
        return self

    @property
    def needs_neurons(self) -> bool:
        """Whether there is more than what is gathered pixel by pixel."""
        return any(self.scattered) or any(like is not None for like in self.want[1:])

    def __call__(
        self,
        operands: Sequence[Any],  # as they were given: features, mu, sigma, weight, ...
        ready: Sequence[Any],
        maps: Sequence[Tensor],  # the levels' features
        grad: Tensor | None,
        image_offset: int,
    ) -> dict[str, Tensor]:
        """Return the requested gradients by name."""
        given, out = operands[0], {}
        if self.no_sigma is not None:
            out["sigma"] = given.new_zeros(self.no_sigma.shape, dtype=self.no_sigma.dtype)
        d_maps: Sequence[Tensor | None] = (None,) * len(maps)
        if self.neurons is not None:
            found, d_maps = self.neurons(ready, maps, given, grad, philox_block(image_offset)[0])
            out |= found
        if self.want.features is not None:
            whole = [
                self._gathered(i, ready, data, given if i == 0 else data, grad, image_offset) if made is None else made
                for i, (data, made) in enumerate(zip(maps, d_maps, strict=True))
            ]
            spread_back(whole, self.pool_kernel)
            out["features"] = self.features(whole[0], given)
        if self.want.weight is not None:
            out["weight"] = self.weight(out["weight"], operands[3])
        return out

    def _gathered(
        self, i: int, ready: Sequence[Any], data: Tensor, like: Tensor, grad: Tensor | None, image_offset: int
    ) -> Tensor:
        out = torch.empty_like(like, dtype=self.features_dtype)
        _features.gather(with_values(self.levels[i], i, ready, data, image_offset), grad, out)
        return out


class Described(NamedTuple):
    """What a form of calls means: asked for when it is first seen."""

    key: Hashable  # that of the same calls with another first image; all else here depends on it
    operands: Mapping[str, Tensor | None]  # in the order of the result, by names of ``Wanted``
    mask: Sequence[bool]  # which of them need a gradient
    samples: int  # elements of the output
    dtype: torch.dtype  # of the arithmetic
    options: Sequence[Any] = ()  # arguments of ``get_ready``
    maps_of: Callable[[Tensor, Tensor | None], list[Tensor]] = only
    pool_kernel: int = 1

    def wanted(self) -> dict[str, Tensor]:
        """Return what needs a gradient, without values."""
        pairs = zip(self.operands.items(), self.mask, strict=True)
        return {name: without_values(like) for (name, like), needs in pairs if needs and like is not None}

    def unwanted(self) -> dict[str, torch.dtype]:
        """Return the dtype of each gradient that is ``empty(0)``: where there is no operand, that of the positions."""
        mu: Any = self.operands["mu"]
        wanted = self.wanted()
        both = ("features", "weight")
        return {
            name: like.dtype if name in both and like is not None else mu.dtype
            for name, like in self.operands.items()
            if name not in wanted
        }


class Plan(NamedTuple):
    """How the gradients of calls of one form are computed."""

    names: Sequence[str]  # in the order of the result
    unwanted: Sequence[tuple[str, torch.dtype]]  # gradients ``empty(0)``
    zeros: Mapping[str, Tensor]  # gradients without values, where there is no sample
    maps_of: Callable[[Tensor, Tensor | None], list[Tensor]]
    ready: Ready | None
    run: Backward | None  # None: nothing is computed

    def __call__(
        self, operands: Sequence[Any], image_offset: int, grad: Tensor | None, pooled: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the gradients."""
        device, found = operands[0].device, {}
        if self.run is not None and self.ready is not None:
            tensors: Any = self.ready(operands)
            found = self.run(operands, tensors, self.maps_of(tensors[0], pooled), grad, image_offset)
        elif self.zeros:
            found = {name: torch.zeros_like(like, device=device) for name, like in self.zeros.items()}
        for name, dtype in self.unwanted:
            found[name] = torch.empty(0, dtype=dtype, device=device)
        return tuple([found[name] for name in self.names])


def gradients(
    seen: Seen | None,
    operands: Sequence[Any],
    image_offset: int,
    grad: Tensor | None,  # [B, N]; None: each sample has its own weights, [B, N, C]
    describe: Callable[[], Described],
    pooled: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return the gradients, ``empty(0)`` where not requested. The other arguments are those of ``read``."""
    with on_device(operands[0]):
        exact = torch.are_deterministic_algorithms_enabled()
        plan: Plan | None = plans.recall(seen, exact)
        if plan is None:
            plan = _plan(seen, operands, grad, describe(), pooled, exact)
        return plan(operands, image_offset, grad, pooled)


def _plan(
    seen: Seen | None, operands: Sequence[Any], grad: Tensor | None, call: Described, pooled: Tensor | None, exact: bool
) -> Plan:
    key = ("backward", call.key, exact)
    plan: Plan | None = plans.get(key)
    if plan is None:
        plan, final = _made(operands, grad, call, pooled)
        if not final:
            return plan
        plans.keep(key, plan)
    plans.remember(seen, plan, exact)
    return plan


def _made(operands: Sequence[Any], grad: Tensor | None, call: Described, pooled: Tensor | None) -> tuple[Plan, bool]:
    """Return a plan, and whether it is the best one."""
    wanted = call.wanted()
    plan = Plan([*call.operands], [*call.unwanted().items()], {}, call.maps_of, None, None)
    if not wanted:
        return plan, True
    if call.samples == 0:
        laid_out = ("features", "weight")
        zeros = {k: torch.empty_like(v) if k in laid_out else v.new_empty(v.shape) for k, v in wanted.items()}
        return plan._replace(zeros=zeros), True
    ready = get_ready(call.dtype, operands, *call.options)
    o = ready.template
    levels = levels_of(o, call.maps_of(o.rows.data, without_values(pooled)))
    run = Backward(levels, without_values(grad), Wanted(**wanted), call.pool_kernel)
    plan = plan._replace(ready=ready, run=run)
    if not run.needs_neurons:
        return plan, True

    def timed(config: Config) -> None:
        tensors: Any = ready(operands)
        neurons = NeuronPass(levels, run.grad, run.want, run.scattered, config)
        neurons(tensors, call.maps_of(tensors[0], pooled), operands[0], grad, 0)

    tuned = ("backward", *o.shape_class(), *run.scattered, *(like is not None for like in run.want[1:]))
    configs = backward_configs(o.sizes[1], o.rows.data.dtype, o.dtype, any(run.scattered) and not o.clamp)
    config = choose(tuned, configs, timed, operands[0].device)
    run.use(config or configs[0])
    return plan, config is not None
