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


def grid(tensor: Tensor, batch: int) -> None:
    """Raise ValueError unless the positions are one for each neuron, or one for each image and neuron."""
    if tensor.dim() not in (2, 3):
        raise ValueError(f"grid: want [N, 2] or [B, N, 2], got {tuple(tensor.shape)}")
    neurons = tensor.shape[-2]
    if tensor.dim() == 2:
        shape("grid", tensor, "[N, 2]", (neurons, 2))
    else:
        shape("grid", tensor, "[B, N, 2]", (batch, neurons, 2))


def floats(operands: Mapping[str, Tensor | None], features: Tensor) -> None:
    """Raise ValueError unless what is there has a floating dtype of the kernels and is where ``features`` is."""
    for name, tensor in operands.items():
        if tensor is not None:
            floating(name, tensor)
            device(name, tensor, features)
