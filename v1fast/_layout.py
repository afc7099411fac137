"""Channels-last images, so that every map of a core up to the readout is channels-last too."""

from __future__ import annotations

import torch
from torch import Tensor

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(images: Tensor) -> Tensor:
    """Return images [B, C, H, W] or videos [B, C, T, H, W] in channels-last, anything else as it is.

    Convolutions, norms and nonlinearities keep the layout of their input. The parameters of a core keep theirs: one
    that is not contiguous breaks optimisers and checkpoints.
    """
    layout = _FORMATS.get(images.dim())
    if layout is None:
        return images
    # Images of one channel are contiguous in both layouts. Only a copy makes convolutions choose channels-last.
    convert = Tensor.contiguous if images.shape[1] > 1 else Tensor.clone
    return convert(images, memory_format=layout)
