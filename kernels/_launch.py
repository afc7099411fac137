"""What the launchers share: operands in the form that the kernels read, and how much work one program takes.

The choices by shape below follow counts of instructions and registers in the compiled kernels. They have not been
measured on a GPU; ``V1FAST_AUTOTUNE=1`` times the alternatives on the machine at hand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel

from v1fast._torch import too_old_for_triton
from v1fast.contracts._forms import Seen

if _old := too_old_for_triton():
    raise ImportError(f"v1fast.kernels: {_old}", name="triton")

OPTIONS: dict[str, Any] = {"enable_fp_fusion": False, "num_stages": 1}
"""Every fused multiply-add is written as one.

A product that the compiler contracts with the first addition of a sum across threads leaves them with different last
bits, and which thread's sum is stored is anyone's guess.
"""

SCALARS = {
    *("B", "N", "H", "W", "S", "M", "image_pitch", "row_pitch", "d_image_pitch"),
    *("first_block", "odd", "images", "first", "last", "stride_b", "stride_h", "stride_w"),
    *("stride_batch", "stride_row", "rows", "tiles", "blocks", "splits", "per_split"),
    *(f"{size}_{letter}" for size in "SM" for letter in "abcde"),
}
"""Integers that a kernel is not compiled anew for. What the compiler must know of an address follows from C."""

UNALIGNED = {
    *("mu", "sigma", "bias", "shift", "noise", "seed", "neuron_index", "grad", "partial"),
    *("d_mu", "d_sigma", "d_shift", "x", "stride_column"),
}
"""What is read an element at a time, or a step of it: a slice of a larger tensor needs no kernel of its own."""


def jit(function: Callable[..., None]) -> Any:
    """Apply ``triton.jit``, specialised only on what the kernels can use."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(
        function,
        do_not_specialize=[name for name in names if name in SCALARS],
        do_not_specialize_on_alignment=[name for name in names if name in UNALIGNED],
    )


def has_warpgroups(target: Any = None) -> bool:
    """Whether tensor cores read their operands from shared memory, which leaves registers for larger tiles.

    ``target`` is a Triton target; the default is that of the GPU at hand.
    """
    target = triton.runtime.driver.active.get_current_target() if target is None else target
    return target.backend == "cuda" and target.arch // 10 in (9, 10)


class Rows(NamedTuple):
    """Feature maps in which the channels of a pixel are contiguous."""

    data: Tensor  # [B, C, H, W]
    pixel: int  # elements from a pixel to the next
    row: int  # pixels from a row to the next
    image: int  # pixels from an image to the next

    def numbers(self) -> dict[str, int]:
        """Return the kernels' arguments, without the tensor."""
        return {"image_pitch": self.image, "row_pitch": self.row, "PIXEL": self.pixel}

    @property
    def wide(self) -> bool:
        """Whether an offset in one image needs 64 bits."""
        return max(self.row, 1) * (self.data.shape[2] + 1) * self.pixel >= 2**31


def rows_in_place(features: Tensor) -> Rows | None:
    """Return the maps without a copy, or None where a pixel's channels are not contiguous.

    Channels-last maps qualify, and so do windows of them and slices of the batch. The steps are counted in pixels. So
    the compiler knows the alignment of each address from C alone.
    """
    (batch, channels, height, width), (image, channel, row, step) = features.shape, features.stride()
    pixel = step if width > 1 else row if height > 1 else channels
    apart = (channel != 1 and channels > 1) or pixel < channels
    if apart or (height > 1 and (row % pixel or row < width * pixel)) or (batch > 1 and image % pixel):
        return None
    return Rows(features, pixel, row // pixel if height > 1 else width, image // pixel if batch > 1 else height * width)


def as_rows(features: Tensor) -> Rows:
    """Return the maps with contiguous channels, copied if they are not.

    Read without a copy, a channels-first map would cost a sector of 32 bytes per value. That is more than the copy
    costs as soon as there is a sample for every few pixels.
    """
    rows = rows_in_place(features)
    if rows is None:
        batch, channels, height, width = features.shape
        data = features.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)
        rows = Rows(data.copy_(features), channels, width, height * width)
    return rows


def philox_block(image: int) -> tuple[int, int]:
    """Return the low 32 bits of an image's Philox block as a signed integer, and 1 for the odd image of the block."""
    block = (image >> 1) & 0xFFFFFFFF
    return block - (block >> 31 << 32), image & 1


class Operands(NamedTuple):
    """A map and its readout's operands, as the kernels read them: in the compute dtype, except features and weight."""

    rows: Rows
    mu: Tensor  # [N, 2], or [B, N, 2] where each image has its own positions
    sigma: Tensor | None  # [N, 2, 2], [N, 2] or [N, 1]; None: no noise
    weight: Tensor | None  # [N, C], rows levels * C apart; None: channels are not summed
    bias: Tensor | None  # [N]
    shift: Tensor | None  # [B, 2]
    noise: Tensor | None  # [B, N, 2] or [1, N, 2]
    seed: Tensor | None  # [1]
    neuron_index: Tensor | None  # [N]
    image_offset: int
    share_noise: bool
    align_corners: bool
    clamp: bool  # clamp the positions, before the shift
    levels: int = 1  # number of maps of C channels that a neuron has weights for

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """B, C, H, W, N."""
        batch, channels, height, width = self.rows.data.shape
        return batch, channels, height, width, self.mu.shape[-2]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        return self.mu.dtype

    @property
    def per_image(self) -> bool:
        """Whether each image has its own positions."""
        return self.mu.dim() == 3

    @property
    def odd(self) -> int:
        """1 if the first image is the second of its Philox block."""
        return self.image_offset & 1

    def shape_class(self) -> tuple[Any, ...]:
        """What the best configuration depends on."""
        batch, channels, _, _, neurons = self.sizes
        noise = "given" if self.noise is not None else "drawn" if self.seed is not None else "none"
        dtypes = (self.rows.data.dtype, None if self.weight is None else self.weight.dtype, self.dtype)
        return channels, batch.bit_length(), neurons.bit_length(), noise, self.clamp, self.per_image, *dtypes

    def numbers(self) -> dict[str, Any]:
        """Return the kernels' arguments that determine the sample positions, without the tensors."""
        batch, _, height, width, neurons = self.sizes
        first_block, odd = philox_block(self.image_offset)
        return {
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

    def positions(self) -> dict[str, Any]:
        """Return the kernels' arguments that determine the sample positions."""
        return {
            "mu": self.mu,
            "sigma": self.sigma,
            "shift": self.shift,
            "noise": self.noise,
            "seed": self.seed,
            "neuron_index": self.neuron_index,
            **self.numbers(),
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
    """Return the operands as the kernels read them. Contiguous operands in the compute dtype are not copied.

    Layers keep weights as [C, N], channel after channel. They are transposed here, once per call. The kernels read the
    weights of a neuron again for every split of the images, and in the order of the samples to gather d_features. From
    [C, N], each value would cost a sector of 32 bytes. The copy moves 2 C N values; the samples read 4 B C N values of
    the features. It also saves compiling another form of each kernel.
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
        None if neuron_index is None or seed is None else neuron_index.contiguous(),
        image_offset,
        share_noise,
        align_corners,
        clamp,
    )


class Ready(NamedTuple):
    """How the operands of all calls of one form become those that the kernels read."""

    template: Operands  # on the meta device; its first image is that of its Philox block
    changes: list[tuple[int, Callable[[Tensor], Tensor | None]]]  # of the operands, by their index

    def __call__(self, operands: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return features, mu, sigma, weight, bias, shift, noise, seed and neuron_index as the kernels read them."""
        ready = [*operands]
        for i, change in self.changes:
            tensor = operands[i]
            ready[i] = None if tensor is None else change(tensor)
        return ready


def with_values(o: Operands, level: int, ready: Sequence[Any], data: Tensor, image_offset: int) -> Operands:
    """Return the operands of a level with what was made ready, and the level's features."""
    _, mu, sigma, weight, bias, shift, noise, seed, neuron_index = ready
    return o._replace(
        rows=o.rows._replace(data=data),
        mu=mu,
        sigma=sigma,
        weight=weight[:, level * data.shape[1] :] if level else weight,
        bias=bias,
        shift=shift,
        noise=noise,
        seed=seed,
        neuron_index=neuron_index,
        image_offset=image_offset,
    )


def without_values(tensor: Any) -> Any:
    """Return a tensor of the same form on the meta device, or None."""
    if tensor is None:
        return None
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _nothing(tensor: Tensor) -> None:
    return None


def _rows_of(features: Tensor) -> Tensor:
    return as_rows(features).data


def get_ready(dtype: torch.dtype, operands: Sequence[Tensor | None], *options: Any) -> Ready:
    """Work out what ``prepare`` does to operands of this form. ``options`` are its other arguments."""
    given: Any = [without_values(operand) for operand in operands]
    o = prepare(dtype, *given, *options)

    def plain(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).contiguous()

    changes: list[tuple[int, Callable[[Tensor], Tensor | None]]] = []
    made = (o.rows.data, o.mu, o.sigma, o.weight, o.bias, o.shift, o.noise, o.seed, o.neuron_index)
    for i, (before, after) in enumerate(zip(given, made, strict=True)):
        if before is None or (after is not None and before.dtype == after.dtype and before.stride() == after.stride()):
            continue
        changes.append(
            (i, _nothing if after is None else _rows_of if i == 0 else Tensor.contiguous if i in (3, 8) else plain)
        )
    return Ready(o, changes)


def operands_at_points(
    features: Tensor, grid: Tensor, weight: Tensor | None, bias: Tensor | None, shift: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Return the operands of ``prepare`` for given positions: Gaussians without width."""
    return features, grid, None, weight, bias, shift, None, None, None


def at_points(align_corners: bool) -> tuple[int, bool, bool, bool]:
    """Return the options of ``get_ready`` for ``operands_at_points``. The positions are not clamped."""
    return 0, False, align_corners, False


class Config(NamedTuple):
    """How much work one program takes."""

    neurons: int
    channels: int  # at a time
    images: int  # at a time, 2 or 4: pairs share a Philox block
    warps: int

    def options(self) -> dict[str, Any]:
        """Return the kernels' arguments."""
        return {"BN": self.neurons, "BC": self.channels, "T": self.images, "num_warps": self.warps, **OPTIONS}


def channel_chunk(channels: int, most: int) -> int:
    """Return the channels per step: at most ``most``, with as little padding as possible (320 is 5 x 64, not 512)."""
    if channels < 32:
        return max(4, triton.next_power_of_2(channels))
    return min(
        (c for c in (32, 64, 128) if c <= most), key=lambda chunk: (triton.cdiv(channels, chunk) * chunk, -chunk)
    )


def neuron_configs(channels: int, images: int, most: int, few: bool) -> list[Config]:
    """Return configurations of the kernels that hold neurons and loop over images. The first is the default.

    Each thread has eight elements, or four. So two 16-byte reads of each corner are in flight, no register is spilled,
    and three or more blocks of 128 threads fit on a multiprocessor.

    Args:
        channels: C.
        images: images per tile, 2 or 4.
        most: largest number of channels at a time.
        few: four elements per thread, as in float64; two on AMD, whose scalar registers hold the masks of the rows.
    """
    chunk = channel_chunk(channels, most)
    warps = 2 if torch.version.hip and not few else 4
    elements = 512 if few else 1024
    sizes = [(elements, warps), (elements // 2, warps), (elements, 2 * warps), (2 * elements, 2 * warps)]
    tiles = (images, 6 - images)
    return [Config(min(max(size // chunk, 4), 64), chunk, tile, w) for size, w in sizes for tile in tiles]


def forward_configs(channels: int, dtype: torch.dtype) -> list[Config]:
    """Return configurations of the forward pass."""
    return neuron_configs(channels, images=4, most=128, few=dtype == torch.float64)


def backward_configs(channels: int, features: torch.dtype, dtype: torch.dtype, scattered: bool = False) -> list[Config]:
    """Return configurations of the backward pass. Tiles of four images or 128 channels would spill registers.

    A thread has four elements where more registers are needed. Rows of 16 bits need them to change layout before the
    scatter. Given positions need them too: no noise is drawn, so the atomics of both images are in flight at once.

    Args:
        channels: C.
        features: dtype of the first level.
        dtype: dtype of the arithmetic.
        scattered: d_features is scattered, and the positions are given.
    """
    few = dtype == torch.float64 or features.itemsize == 2 or scattered
    return neuron_configs(channels, images=2, most=64, few=few)


PROGRAMS = 2048  # several waves on any GPU, and the same number on each, so that partial sums keep their order
LEAST_IMAGES = 16  # images that a program reads with one load of its weights
MOST_SPLITS = 65535  # limit of the third axis of a grid


def images_per_program(images: int, programs_per_image: int, tile: int, most: int | None = None) -> int:
    """Return how many images one program takes in turn: a multiple of the tile that gives about PROGRAMS programs.

    There are more programs if one would take more than ``most`` images. ``most`` is a multiple of the tile.
    """
    splits = min(triton.cdiv(PROGRAMS, programs_per_image), triton.cdiv(images, LEAST_IMAGES))
    if most is not None:
        splits = min(max(splits, triton.cdiv(images, most)), MOST_SPLITS)
    return triton.cdiv(triton.cdiv(images, tile), splits) * tile


_best: dict[tuple[Any, ...], Config] = {}


def choose(
    key: Iterable[Any], configs: list[Config], run: Callable[[Config], object], device: torch.device
) -> Config | None:
    """Return the default configuration or, under V1FAST_AUTOTUNE=1, the fastest for this class of shapes.

    ``run`` allocates its outputs, so trying it twice adds nothing up twice. None: it is to be timed, but a CUDA graph
    is being captured; use the default, and ask again.
    """
    key = (*key, device)
    if key not in _best:
        if os.environ.get("V1FAST_AUTOTUNE") != "1":
            return configs[0]
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None
        bench = triton.runtime.driver.active.get_benchmarker()
        times = {c: bench(lambda c=c: run(c), quantiles=(0.5, 0.2, 0.8))[0] for c in dict.fromkeys(configs)}
        _best[key] = min(times, key=lambda c: times[c])
    return _best[key]


_IS_KNOWN = (3, 4) <= tuple(map(int, triton.__version__.split(".")[:2])) <= (3, 9)
"""Whether ``Launch`` knows how this version of Triton launches a compiled kernel: 3.4 to 3.9 do it in the same way."""


_RUNTIME = triton.knobs.runtime


def _is_hooked() -> bool:
    """Whether a profiler wants to be told of launches."""
    enter, leave = _RUNTIME.launch_enter_hook, _RUNTIME.launch_exit_hook  # None or a function, or a chain of calls
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


class Launch:
    """A launch of which all is known but the tensors and the number of the first Philox block.

    In each launch, ``kernel[grid](...)`` works out which compiled kernel fits the arguments. That takes longer than all
    else in a call. In calls of one form the answer depends only on which tensors begin at a multiple of 16 bytes. So
    it is asked once for each such pattern, and the compiled kernel is kept.

    Args:
        kernel: of this package: its tensors come first.
        grid: numbers of programs.
        arguments: those that are no tensors, by name.
        options: of Triton.
    """

    def __init__(self, kernel: Any, grid: Sequence[int], arguments: dict[str, Any], options: dict[str, Any]) -> None:
        names = kernel.arg_names
        count = len(names) - len(arguments)
        self.kernel, self.grid, self.options = kernel, (*grid, 1, 1)[:3], options
        self.rest = tuple([arguments[name] for name in names[count:]])
        self.block_at = names.index("first_block") - count if "first_block" in arguments else -1
        self.checked = [i for i in range(count) if names[i] not in UNALIGNED]
        self.compiled: dict[int, tuple[Callable[..., None], Any, Any]] = {}

    def __call__(self, tensors: Sequence[Tensor | None], first_block: int = 0) -> None:
        """Launch the kernel on the current device."""
        rest = self.rest
        if first_block:
            rest = (*rest[: self.block_at], first_block, *rest[self.block_at + 1 :])
        unaligned = 0
        for i in self.checked:
            tensor = tensors[i]
            if tensor is not None and tensor.data_ptr() & 15:
                unaligned |= 1 << i
        made = self.compiled.get(unaligned)
        if made is None or _is_hooked():
            compiled = self.kernel[self.grid](*tensors, *rest, **self.options)
            # For AMD the code also depends on how large a tensor's storage is.
            if _IS_KNOWN and isinstance(compiled, CompiledKernel) and compiled.metadata.target.backend == "cuda":
                self.compiled[unaligned] = compiled.run, compiled.function, compiled.packed_metadata
            return
        driver = triton.runtime.driver.active
        run, function, metadata = made
        stream = driver.get_current_stream(driver.get_current_device())
        run(*self.grid, stream, function, metadata, None, None, None, *tensors, *rest)


class Plans:
    """What was worked out for the forms of calls that have been seen, as long as the driver is the same."""

    MOST = 1000  # forms; then all are forgotten

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}
        self._driver: Any = None

    def _all(self) -> dict[Hashable, Any]:
        driver = triton.runtime.driver.active
        if driver is not self._driver:
            self._made, self._driver = {}, driver
        return self._made

    def get(self, form: Hashable) -> Any:
        """Return the plan of a form of calls, or None."""
        return self._all().get(form)

    def recall(self, seen: Seen | None, which: Hashable = None) -> Any:
        """Return the plan that was remembered of a form, or None. It takes less than to look the form up."""
        if seen is None:
            return None
        of, found = seen.plans
        return found.get(which) if of is not None and of is self._all() else None

    def remember(self, seen: Seen | None, plan: Any, which: Hashable = None) -> None:
        """Let ``recall`` find a plan, as long as what was kept here is."""
        if seen is not None:
            of, found = seen.plans
            seen.plans = self._all(), {**found, which: plan} if of is self._all() else {which: plan}

    def keep(self, form: Hashable, plan: Any) -> None:
        """Keep a plan that ``get`` did not find."""
        if len(self._made) >= self.MOST:
            self._made = {}
        self._made[form] = plan

    def clear(self) -> None:
        """Forget all."""
        self._made = {}


plans = Plans()


_HERE = nullcontext()


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make a tensor's device the current one, which costs much more than to see that it is."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(tensor.device)
