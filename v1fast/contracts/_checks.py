"""Errors that name the operand, what was wanted and what came. The contracts of all ops share them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The floating dtypes that the kernels read and write, as in csrc/dispatch.h."""


MOST = 2**31 - 1
"""The kernels count neurons, and pixels of a map with a border of one, in 32 bits."""

MOST_POOLINGS = 1024
"""With a kernel of 1, any number of poolings would leave something of a map."""


def shape(name: str, tensor: Tensor, axes: str, want: Sequence[int]) -> None:
    """Raise ValueError unless ``tensor`` has exactly the sizes ``want``, named by ``axes``."""
    if tuple(tensor.shape) != tuple(want):
        raise ValueError(f"{name}: want {axes} = {tuple(want)}, got {tuple(tensor.shape)}")


def floating(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless ``tensor`` has one of the floating dtypes of the kernels."""
    if tensor.dtype not in FLOATING:
        wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
        raise ValueError(f"{name}: want one of {wanted}, got {str(tensor.dtype).removeprefix('torch.')}")


def dims(name: str, tensor: Tensor, axes: str, dim: int) -> None:
    """Raise ValueError unless ``tensor`` has ``dim`` axes, named by ``axes``."""
    if tensor.dim() != dim:
        raise ValueError(f"{name}: want {axes}, got {tuple(tensor.shape)}")


def int64(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless ``tensor`` is int64."""
    if tensor.dtype != torch.int64:
        raise ValueError(f"{name}: want int64, got {str(tensor.dtype).removeprefix('torch.')}")


def device(name: str, tensor: Tensor, features: Tensor) -> None:
    """Raise ValueError unless ``tensor`` is on the device of ``features``."""
    if tensor.device != features.device:
        raise ValueError(f"{name}: want device {features.device}, that of features, got {tensor.device}")


def feature_map(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless ``tensor`` is [B, C, H, W] and its images are not empty."""
    dims(name, tensor, "[B, C, H, W]", 4)
    if min(tensor.shape[1:]) < 1:
        raise ValueError(f"{name}: want [B, C, H, W] with C, H, W >= 1, got {tuple(tensor.shape)}")
    if (tensor.shape[2] + 1) * (tensor.shape[3] + 1) >= MOST:
        raise ValueError(f"{name}: want [B, C, H, W] with (H + 1) (W + 1) < 2^31 - 1, got {tuple(tensor.shape)}")


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte that the tensor may read and the byte after the last; an empty range without memory."""
    try:
        begin = 0 if isinstance(tensor, FakeTensor) or tensor.numel() == 0 else tensor.data_ptr()
    except RuntimeError:  # of a function transform, or of another kind of tensor without memory
        begin = 0
    if not begin:
        return 0, 0
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (last + 1) * tensor.element_size()


def apart(name: str, tensor: Tensor, others: Mapping[str, Tensor | None]) -> None:
    """Raise ValueError if ``tensor``, an output, overlaps the range from the first to the last byte of another."""
    if torch.compiler.is_compiling():  # the op itself checks this when the compiled code runs
        return
    begin, end = _span(tensor)
    for other, operand in others.items():
        first, last = (0, 0) if operand is None else _span(operand)
        if first < end and begin < last:
            raise ValueError(f"{name}: want memory of its own, got some of that of {other}")


def at_most(name: str, what: str, value: int, most: int = MOST) -> None:
    """Raise ValueError if ``value``, named ``what``, is more than ``most``."""
    if value > most:
        raise ValueError(f"{name}: want {what} of at most {most}, got {value}")


def levels(tensors: Sequence[Tensor]) -> None:
    """Raise ValueError unless there is a feature map, and all have the same number of images and one device."""
    if not tensors:
        raise ValueError("levels: want at least one [B, C, H, W], got none")
    for i, level in enumerate(tensors):
        feature_map(f"levels[{i}]", level)
        if level.shape[0] != tensors[0].shape[0]:
            raise ValueError(f"levels[{i}]: want B = {tensors[0].shape[0]}, that of levels[0], got {level.shape[0]}")
        floats({f"levels[{i}]": level}, tensors[0])


def points(grid: Tensor, shift: Tensor | None, features: Tensor) -> None:
    """Raise ValueError unless ``grid`` has a position for each neuron, or for each image and neuron of ``features``."""
    if grid.dim() not in (2, 3):
        raise ValueError(f"grid: want [N, 2] or [B, N, 2], got {tuple(grid.shape)}")
    batch, neurons = features.shape[0], grid.shape[-2]
    at_most("grid", "N", neurons)
    axes, want = ("[N, 2]", (neurons, 2)) if grid.dim() == 2 else ("[B, N, 2]", (batch, neurons, 2))
    shape("grid", grid, axes, want)
    if shift is not None:
        shape("shift", shift, "[B, 2]", (batch, 2))
    floats({"grid": grid, "shift": shift}, features)


def floats(operands: Mapping[str, Tensor | None], features: Tensor) -> None:
    """Raise ValueError unless all given operands have a dtype of the kernels and are on the device of ``features``."""
    wanted = features.device
    for name, tensor in operands.items():
        if tensor is not None and (tensor.dtype not in FLOATING or tensor.device != wanted):
            floating(name, tensor)
            device(name, tensor, features)


def grad_output(tensor: Tensor, axes: str, want: Sequence[int], features: Tensor) -> None:
    """Raise ValueError unless ``tensor`` can be the gradient of an output of the sizes ``want``."""
    shape("grad_output", tensor, axes, want)
    floats({"grad_output": tensor}, features)


def output_mask(mask: Sequence[bool], want: int) -> None:
    """Raise ValueError unless ``mask`` has an entry for each gradient."""
    if len(mask) != want:
        raise ValueError(f"output_mask: want {want} entries, got {len(mask)}")


def image_offset(value: int, images: int) -> None:
    """Raise ValueError unless the numbers of the images, counted from ``value``, fit 64 bits."""
    if value < 0:
        raise ValueError(f"image_offset: want at least 0, got {value}")
    at_most("image_offset", "image_offset + B", value + images, 2**63 - 1)


def poolings(features: Tensor, kernel: int, stride: int, steps: int) -> None:
    """Raise ValueError unless ``steps`` poolings of [B, C, H, W] leave at least one pixel."""
    for name, value, least in (("kernel", kernel, 1), ("stride", stride, 1), ("steps", steps, 0)):
        if value < least:
            raise ValueError(f"{name}: want at least {least}, got {value}")
    at_most("steps", "a number", steps, MOST_POOLINGS)
    height, width = features.shape[2:]
    for step in range(steps):
        if height < kernel or width < kernel:
            raise ValueError(
                f"features: want maps that {steps} poolings of {kernel} x {kernel} leave something of, got "
                f"{tuple(features.shape[2:])}, of which ({height}, {width}) is left after {step}"
            )
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
