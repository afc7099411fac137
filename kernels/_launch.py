"""What the launchers share: operands as the kernels read them, and how much work one program takes.

The choices by shape below follow counts of instructions and registers in the compiled kernels. They have not been
measured on a GPU; ``V1FAST_AUTOTUNE=1`` times the alternatives on the machine at hand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch
import triton
from torch import Tensor

Result = TypeVar("Result")

OPTIONS: dict[str, Any] = {"enable_fp_fusion": False, "num_stages": 1}
"""Every fused multiply-add is written as one.

A product that the compiler contracts with the first addition of a sum across threads leaves them with different last
bits, and which thread's sum is stored is anyone's guess.
"""

SCALARS = {
    *("B", "N", "H", "W", "S", "M", "image_pitch", "row_pitch", "d_image_pitch"),
    *("first_block", "odd", "images", "first", "last", "stride_b", "stride_h", "stride_w"),
    *("stride_batch", "stride_row", "rows", "tiles", "blocks", "splits", "per_split"),
}
"""Integers that a kernel is not compiled anew for. What the compiler must know of an address follows from C."""

UNALIGNED = {
    *("mu", "sigma", "bias", "shift", "noise", "seed", "neuron_index", "grad", "partial"),
    *("d_mu", "d_sigma", "d_shift", "x", "stride_column"),
}
"""What is read an element at a time, or a step of it: a slice of a larger tensor needs no kernel of its own."""


def jit(function: Callable[..., None]) -> Any:
    """``triton.jit``, specialised on no more than the kernels can use."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(
        function,
        do_not_specialize=[name for name in names if name in SCALARS],
        do_not_specialize_on_alignment=[name for name in names if name in UNALIGNED],
    )


def has_warpgroups(target: Any = None) -> bool:
    """Whether the tensor cores read their operands from shared memory, which leaves registers for larger tiles.

    Of Triton's target, by default that of the GPU at hand.
    """
    target = triton.runtime.driver.active.get_current_target() if target is None else target
    return target.backend == "cuda" and target.arch // 10 in (9, 10)


class Rows(NamedTuple):
    """Feature maps in which the channels of a pixel lie side by side."""

    data: Tensor  # [B, C, H, W]
    pixel: int  # elements from a pixel to the next
    row: int  # pixels from a row to the next
    image: int  # pixels from an image to the next

    def arguments(self) -> dict[str, Any]:
        """As the kernels' arguments."""
        return {"features": self.data, "image_pitch": self.image, "row_pitch": self.row, "PIXEL": self.pixel}

    @property
    def wide(self) -> bool:
        """An offset in one image needs 64 bits."""
        return max(self.row, 1) * (self.data.shape[2] + 1) * self.pixel >= 2**31


def rows_in_place(features: Tensor) -> Rows | None:
    """The maps as they lie, or None where a pixel's channels are apart.

    Channels-last maps qualify, windows of them and slices of the batch. The steps are counted in pixels, so that the
    compiler knows from C alone how far each address is aligned.
    """
    (batch, channels, height, width), (image, channel, row, step) = features.shape, features.stride()
    pixel = step if width > 1 else row if height > 1 else channels
    apart = (channel != 1 and channels > 1) or pixel < channels
    if apart or (height > 1 and (row % pixel or row < width * pixel)) or (batch > 1 and image % pixel):
        return None
    return Rows(features, pixel, row // pixel if height > 1 else width, image // pixel if batch > 1 else height * width)


def as_rows(features: Tensor) -> Rows:
    """The maps with channels side by side, copied where they are not.

    Read where it lies, a channels-first map would cost a sector of 32 bytes for each value: more than the copy does
    as soon as there is a sample for every few pixels.
    """
    rows = rows_in_place(features)
    if rows is None:
        batch, channels, height, width = features.shape
        data = features.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)
        rows = Rows(data.copy_(features), channels, width, height * width)
    return rows


def philox_block(image: int) -> tuple[int, int]:
    """Number of an image's Philox block, its low 32 bits as a signed integer, and 1 for the odd image of the block."""
    block = (image >> 1) & 0xFFFFFFFF
    return block - (block >> 31 << 32), image & 1


class Operands(NamedTuple):
    """A map and what reads it, in the form that the kernels read: all but features and weight of the compute dtype."""

    rows: Rows
    mu: Tensor  # [N, 2], or [B, N, 2] where each image has positions of its own
    sigma: Tensor | None  # [N, 2, 2], [N, 2] or [N, 1]; None where there is no noise
    weight: Tensor | None  # [N, C], rows levels * C apart; None: the channels are not summed
    bias: Tensor | None  # [N]
    shift: Tensor | None  # [B, 2]
    noise: Tensor | None  # [B, N, 2] or [1, N, 2]
    seed: Tensor | None  # [1]
    neuron_index: Tensor | None  # [N]
    image_offset: int
    share_noise: bool
    align_corners: bool
    clamp: bool  # positions, before the shift
    levels: int = 1  # maps of C channels that a neuron has weights for

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """B, C, H, W, N."""
        batch, channels, height, width = self.rows.data.shape
        return batch, channels, height, width, self.mu.shape[-2]

    @property
    def dtype(self) -> torch.dtype:
        """What the arithmetic is done in."""
        return self.mu.dtype

    @property
    def per_image(self) -> bool:
        """Each image has positions of its own."""
        return self.mu.dim() == 3

    @property
    def odd(self) -> int:
        """1 where the first image is the second of its Philox block."""
        return self.image_offset & 1

    def shape_class(self) -> tuple[Any, ...]:
        """What the best configuration depends on."""
        batch, channels, _, _, neurons = self.sizes
        noise = "given" if self.noise is not None else "drawn" if self.seed is not None else "none"
        dtypes = (self.rows.data.dtype, None if self.weight is None else self.weight.dtype, self.dtype)
        return channels, batch.bit_length(), neurons.bit_length(), noise, self.clamp, self.per_image, *dtypes

    def positions(self) -> dict[str, Any]:
        """The kernels' arguments that say where the samples lie."""
        batch, _, height, width, neurons = self.sizes
        first_block, odd = philox_block(self.image_offset)
        return {
            "mu": self.mu,
            "sigma": self.sigma,
            "shift": self.shift,
            "noise": self.noise,
            "seed": self.seed,
            "neuron_index": None if self.seed is None else self.neuron_index,
            "B": batch,
            "N": neurons,
            "H": height,
            "W": width,
            "first_block": first_block,
            "odd": odd,
            "SIGMA": 0 if self.sigma is None else self.sigma[0].numel(),
            "SHARED": self.share_noise and self.sigma is not None,
            "PER_IMAGE": self.per_image,
            "ALIGN_CORNERS": self.align_corners,
            "CLAMP": self.clamp,
        }


def prepare(
    dtype: torch.dtype,
    features: Tensor,
    mu: Tensor,
    sigma: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    shift: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    neuron_index: Tensor | None,
    image_offset: int,
    share_noise: bool,
    align_corners: bool,
    clamp: bool = True,
) -> Operands:
    """The operands as the kernels read them; nothing is copied that is contiguous and of the compute dtype.

    Weights that a layer keeps channel after channel, [C, N], are transposed here, once for each call. The kernels read
    a neuron's weights again for every split of the images, and to gather d_features in the order of the samples: from
    [C, N] that would be a sector of 32 bytes for each value. The copy moves 2 C N values, where the samples read
    4 B C N of the features, and no further form of a kernel is compiled for it.
    """

    def plain(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().to(dtype).contiguous()

    samples = noise is not None or seed is not None
    return Operands(
        as_rows(features.detach()),
        mu.detach().to(dtype).contiguous(),
        plain(sigma) if samples else None,
        None if weight is None else weight.detach().contiguous(),
        plain(bias),
        plain(shift),
        plain(noise),
        seed,
        None if neuron_index is None else neuron_index.contiguous(),
        image_offset,
        share_noise,
        align_corners,
        clamp,
    )


def prepare_points(
    dtype: torch.dtype,
    features: Tensor,
    grid: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    shift: Tensor | None,
    align_corners: bool,
) -> Operands:
    """As ``prepare``, of positions that are given and not clamped: Gaussians without width."""
    nothing = (None, None, None, 0, False)  # noise, seed, neuron_index, image_offset, share_noise
    return prepare(dtype, features, grid, None, weight, bias, shift, *nothing, align_corners, clamp=False)


class Config(NamedTuple):
    """How much one program takes on."""

    neurons: int
    channels: int  # at a time
    images: int  # at a time, 2 or 4: pairs share a Philox block
    warps: int

    def options(self) -> dict[str, Any]:
        """As the kernels' arguments."""
        return {"BN": self.neurons, "BC": self.channels, "T": self.images, "num_warps": self.warps, **OPTIONS}


def channel_chunk(channels: int, most: int) -> int:
    """Channels at a time: up to ``most``, and as few beyond the last as may be (320 is 5 x 64, not 512)."""
    if channels < 32:
        return max(4, triton.next_power_of_2(channels))
    return min(
        (c for c in (32, 64, 128) if c <= most), key=lambda chunk: (triton.cdiv(channels, chunk) * chunk, -chunk)
    )


def neuron_configs(channels: int, images: int, most: int, few: bool) -> list[Config]:
    """Configurations of the kernels that hold neurons and loop over images; the first is the default.

    Eight elements a thread, or four: two 16-byte reads of each corner under way, no spilled register, and room
    for three blocks or more of 128 threads on a multiprocessor.

    Args:
        channels: C.
        images: of a tile, 2 or 4.
        most: channels at a time.
        few: four elements a thread, as in float64; two on AMD, whose scalar registers hold the masks of the rows.
    """
    chunk = channel_chunk(channels, most)
    warps = 2 if torch.version.hip and not few else 4
    elements = 512 if few else 1024
    sizes = [(elements, warps), (elements // 2, warps), (elements, 2 * warps), (2 * elements, 2 * warps)]
    tiles = (images, 6 - images)
    return [Config(min(max(size // chunk, 4), 64), chunk, tile, w) for size, w in sizes for tile in tiles]


def forward_configs(channels: int, dtype: torch.dtype) -> list[Config]:
    """Configurations of the forward pass."""
    return neuron_configs(channels, images=4, most=128, few=dtype == torch.float64)


def backward_configs(channels: int, features: torch.dtype, dtype: torch.dtype, scattered: bool = False) -> list[Config]:
    """Configurations of the backward pass, in which tiles of four images or 128 channels spill registers.

    Four elements a thread where more registers are needed: rows of 16 bits change their layout on the way to the
    scatter; and where no noise is drawn between them, the atomics of both images are under way at once.

    Args:
        channels: C.
        features: dtype of the first level.
        dtype: of the arithmetic.
        scattered: d_features is scattered to positions that are given.
    """
    few = dtype == torch.float64 or features.itemsize == 2 or scattered
    return neuron_configs(channels, images=2, most=64, few=few)


PROGRAMS = 2048  # several waves on any GPU, and the same number on each: partial sums keep their order
LEAST_IMAGES = 16  # images that a program reads with one load of its weights
MOST_SPLITS = 65535  # what the third axis of a grid may have


def images_per_program(images: int, programs_per_image: int, tile: int, most: int | None = None) -> int:
    """How many images one program takes in turn: a multiple of the tile that gives some PROGRAMS programs.

    More programs where one would take more than ``most`` images, a multiple of the tile.
    """
    splits = min(triton.cdiv(PROGRAMS, programs_per_image), triton.cdiv(images, LEAST_IMAGES))
    if most is not None:
        splits = min(max(splits, triton.cdiv(images, most)), MOST_SPLITS)
    return triton.cdiv(triton.cdiv(images, tile), splits) * tile


_best: dict[tuple[Any, ...], Config] = {}


def run_tuned(
    key: Iterable[Any], configs: list[Config], run: Callable[[Config], Result], device: torch.device
) -> Result:
    """``run`` with the default configuration or, under V1FAST_AUTOTUNE=1, with the fastest for this class of shapes.

    ``run`` allocates what it writes, so that trying it twice adds nothing up twice. Nothing is timed while a CUDA graph
    is captured.
    """
    key = (*key, device)
    if key not in _best:
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if os.environ.get("V1FAST_AUTOTUNE") != "1" or capturing:
            return run(configs[0])
        bench = triton.runtime.driver.active.get_benchmarker()
        times = {c: bench(lambda c=c: run(c), quantiles=(0.5, 0.2, 0.8))[0] for c in dict.fromkeys(configs)}
        _best[key] = min(times, key=lambda c: times[c])
    return run(_best[key])
