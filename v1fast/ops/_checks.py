"""Errors that name the operand, what is wanted and what came; shared by the contracts of all ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The floating dtypes that the kernels read and write, as in csrc/dispatch.h."""


def shape(name: str, tensor: Tensor, axes: str, want: Sequence[int]) -> None:
    """Raise ValueError unless ``tensor`` has exactly the sizes ``want``, named by ``axes``."""
    if tensor.dim() != len(want) or any(have != size for have, size in zip(tensor.shape, want, strict=True)):
        raise ValueError(f"{name}: want {axes} = {tuple(want)}, got {tuple(tensor.shape)}")


def floating(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless ``tensor`` has one of the floating dtypes of the kernels."""
    if tensor.dtype not in FLOATING:
        wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
        raise ValueError(f"{name}: want one of {wanted}, got {str(tensor.dtype).removeprefix('torch.')}")


def int64(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless ``tensor`` is int64."""
    if tensor.dtype != torch.int64:
        raise ValueError(f"{name}: want int64, got {str(tensor.dtype).removeprefix('torch.')}")


def device(name: str, tensor: Tensor, features: Tensor) -> None:
    """Raise ValueError unless ``tensor`` is where ``features`` is."""
    if tensor.device != features.device:
        raise ValueError(f"{name}: want device {features.device}, that of features, got {tensor.device}")


def feature_map(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless ``tensor`` is [B, C, H, W] and its images are not empty."""
    if tensor.dim() != 4:
        raise ValueError(f"{name}: want [B, C, H, W], got {tuple(tensor.shape)}")
    if min(tensor.shape[1:]) < 1:
        raise ValueError(f"{name}: want [B, C, H, W] with C, H, W >= 1, got {tuple(tensor.shape)}")


def levels(tensors: Sequence[Tensor]) -> None:
    """Raise ValueError unless there is a feature map, and all are of as many images, on one device."""
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
    axes, want = ("[N, 2]", (neurons, 2)) if grid.dim() == 2 else ("[B, N, 2]", (batch, neurons, 2))
    shape("grid", grid, axes, want)
    if shift is not None:
        shape("shift", shift, "[B, 2]", (batch, 2))
    floats({"grid": grid, "shift": shift}, features)


def floats(operands: Mapping[str, Tensor | None], features: Tensor) -> None:
    """Raise ValueError unless what is there has a floating dtype of the kernels and is where ``features`` is."""
    for name, tensor in operands.items():
        if tensor is not None:
            floating(name, tensor)
            device(name, tensor, features)


def poolings(features: Tensor, kernel: int, stride: int, steps: int) -> None:
    """Raise ValueError unless so many poolings of [B, C, H, W] leave something of it."""
    for name, value, least in (("kernel", kernel, 1), ("stride", stride, 1), ("steps", steps, 0)):
        if value < least:
            raise ValueError(f"{name}: want at least {least}, got {value}")
    height, width = features.shape[2:]
    for step in range(steps):
        if height < kernel or width < kernel:
            raise ValueError(
                f"features: want maps that {steps} poolings of {kernel} x {kernel} leave something of, got "
                f"{tuple(features.shape[2:])}, of which ({height}, {width}) is left after {step}"
            )
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
