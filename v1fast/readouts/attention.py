"""The readout whose masks depend on the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from v1fast.readouts._convolutions import convolutions, initialize_convolutions
from v1fast.readouts._frames import fold_frames, unfold_frames
from v1fast.readouts._maps import MapReadout
from v1fast.readouts._masks import shifted_pixels


class AttentionReadout(MapReadout):
    """Each neuron weights the channels by a vector and the pixels by a softmax that a small network computes.

    Drop-in for ``AttentionReadout`` of neuralpredictors: same constructor, state_dict keys and shapes. The network
    gets the features after the ``shift``. Differences from it: docs/layers.md.

    Args:
        in_shape: (C, H, W) of the features.
        outdims: number of neurons N.
        bias: whether to add a bias per neuron.
        init_noise: standard deviation of the initial features.
        attention_kernel: size of the network's kernels.
        attention_layers: number of its convolutions, >= 1.
        mean_activity: [N], initial bias.
        feature_reg_weight: factor of the L1 penalty on the features; default 1.
        gamma_readout: deprecated name of ``feature_reg_weight``.
        **kwargs: accepted and ignored, as neuralpredictors does.

    Raises:
        ValueError: an argument out of range; in forward, features that do not fit.

    Shapes of the parameters: ``features`` (N, C); ``bias`` (N); ``attention.conv0.weight``, ``attention.norm0.weight``,
    ...: convolutions and batch normalisations, the last ``attention.conv<layers>`` with N outputs.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        bias: bool,
        init_noise: float = 1e-3,
        attention_kernel: int = 1,
        attention_layers: int = 1,
        mean_activity: Tensor | None = None,
        feature_reg_weight: float | None = None,
        gamma_readout: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_shape, outdims, mean_activity)
        self.init_noise = init_noise
        self.feature_reg_weight = self.resolve_deprecated_gamma_readout(feature_reg_weight, gamma_readout, default=1.0)
        self.features = nn.Parameter(torch.empty(outdims, in_shape[0]))
        self.attention = convolutions("attention_layers", attention_layers, in_shape[0], outdims, attention_kernel)
        self._make_bias(bias)
        self.initialize(mean_activity)

    @torch.no_grad()
    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """Draw new features and filters and set the bias to ``mean_activity`` or zero."""
        self.features.normal_(0, self.init_noise)
        self._start_bias(mean_activity)
        self.initialize_attention()

    def initialize_attention(self) -> None:
        """Draw new filters for the network."""
        initialize_convolutions(self.attention)

    def _responses(self, x: Tensor, shift: Tensor | None, index: Tensor | None) -> Tensor:
        images, shift = fold_frames(x, shift)
        pixels = shifted_pixels(images, shift)  # [B, C, H W]
        features: Tensor = self.features
        bias = self._bias_of(index)
        attention = self.attention(pixels.unflatten(2, images.shape[2:])).flatten(2)  # [B, N, H W]
        if index is not None:
            features, attention = features[index], attention[:, index]
        out = (attention.softmax(-1) @ pixels.mT * features).sum(-1)
        return unfold_frames(out if bias is None else out + bias, x)
