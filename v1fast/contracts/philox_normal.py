"""The contract of ``v1fast::philox_normal``: the position noise that the readout kernels draw, as a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from v1fast.contracts import _checks


def check(seed: Tensor, images: int, neurons: int, neuron_index: Tensor | None, image_offset: int) -> None:
    """Raise ValueError that names the operand unless the arguments fit each other."""
    _checks.shape("seed", seed, "[1]", (1,))
    _checks.int64("seed", seed)
    if images < 0:
        raise ValueError(f"images: want at least 0, got {images}")
    if neurons < 0:
        raise ValueError(f"neurons: want at least 0, got {neurons}")
    _checks.image_offset(image_offset, images)
    if neuron_index is not None:
        _checks.shape("neuron_index", neuron_index, "[N]", (neurons,))
        _checks.int64("neuron_index", neuron_index)
        if neuron_index.device != seed.device:
            raise ValueError(f"neuron_index: want device {seed.device}, that of seed, got {neuron_index.device}")


def new_output(seed: Tensor, images: int, neurons: int, *rest: Any) -> Tensor:
    """Return the output without values."""
    return seed.new_empty((images, neurons, 2), dtype=torch.float32)
