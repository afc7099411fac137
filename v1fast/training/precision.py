"""Readouts that compute with weights in bfloat16, of which the optimiser keeps float32 masters."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from v1fast.readouts._points import PointReadout

Module = TypeVar("Module", bound=nn.Module)


def bfloat16_weights(model: Module, wanted: bool = True) -> Module:
    """Let the readouts of a model compute with their channel weights in bfloat16. The parameters stay float32 masters.

    Each pass rounds the weights to bfloat16, and a kernel reads two bytes for each. Their gradient is rounded to
    bfloat16 as well, and reaches the parameter in float32. The optimiser changes the parameter, so that updates much
    smaller than a weight add up, which a bfloat16 parameter loses: near 1 its values are 1/128 apart. Positions, biases
    and sums stay float32. The responses are bfloat16 only if the features are too.

    ``state_dict``, checkpoints and their resumption are those of float32; call this again for a model that is made
    anew. It saves no memory, see "One big machine" in ``docs/scale.md``: 2 bytes for each weight come on top.

    Args:
        model: a readout, or a model with readouts; it is changed.
        wanted: False goes back to the parameters as they are.

    Returns:
        The model.

    Raises:
        ValueError: no readout reads all channels at points, as FullGaussian2d does.

    >>> import torch
    >>> from v1fast.readouts import FullGaussian2d
    >>> readout = bfloat16_weights(FullGaussian2d((8, 9, 9), 100, bias=True))
    >>> readout(torch.randn(2, 8, 9, 9)).dtype, readout.features.dtype
    (torch.float32, torch.float32)
    """
    readouts = [module for module in model.modules() if isinstance(module, PointReadout)]
    if not readouts:
        raise ValueError(f"model: want a readout of points, such as FullGaussian2d, got {type(model).__name__}")
    for readout in readouts:
        readout.weight_dtype = torch.bfloat16 if wanted else None
    return model
