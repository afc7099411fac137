"""The readout without assumptions about receptive fields, as a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from v1fast.readouts._frames import fold_frames, unfold_frames
from v1fast.readouts._maps import MapReadout
from v1fast.readouts._masks import shifted_pixels


class DenseReadout(MapReadout):
    """Each neuron weights every value of the features by a weight of its own: C H W of them, against C + H W or C + 2.

    Args:
        in_shape: (C, H, W) of the features.
        outdims: number of neurons N.
        bias: whether to add a bias per neuron.
        init_noise: standard deviation of the initial weights.
        mean_activity: [N], initial bias.
        feature_reg_weight: factor of the L1 penalty on the weights.
        **kwargs: accepted and ignored.

    Raises:
        ValueError: an argument does not fit; in forward, features that do not fit.

    Shapes of the parameters: ``weight`` (N, C, H, W), ``bias`` (N).
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        bias: bool,
        init_noise: float = 1e-3,
        mean_activity: Tensor | None = None,
        feature_reg_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_shape, outdims, mean_activity)
        self.init_noise, self.feature_reg_weight = init_noise, feature_reg_weight
        self.weight = nn.Parameter(torch.empty(outdims, *in_shape))
        self._make_bias(bias)
        self.initialize(mean_activity)

    @torch.no_grad()
    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """Draw new weights and set the bias to ``mean_activity`` or zero."""
        self.weight.normal_(0, self.init_noise)
        self._start_bias(mean_activity)

    def _magnitudes(self) -> Tensor:
        return self.weight.abs()

    def _responses(self, x: Tensor, shift: Tensor | None, index: Tensor | None) -> Tensor:
        images, shift = fold_frames(x, shift)
        weight = self.weight if index is None else self.weight[index]
        pixels = shifted_pixels(images, shift).flatten(1)
        out = nn.functional.linear(pixels, weight.flatten(1), self._bias_of(index))
        return unfold_frames(out, x)
