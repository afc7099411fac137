"""The readout without assumptions about receptive fields, as a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from v1fast.readouts._frames import fold_frames, unfold_frames
from v1fast.readouts._maps import MapReadout
from v1fast.readouts._masks import shifted_pixels
from v1fast.readouts._matched import SharedFeatures


class DenseReadout(SharedFeatures, MapReadout):
    """Each neuron weights every value of the features by a weight of its own: C H W of them, against C + H W or C + 2.

    Args:
        in_shape: (C, H, W) of the features.
        outdims: number of neurons N.
        bias: whether to add a bias per neuron.
        init_noise: standard deviation of the initial weights.
        mean_activity: [N], initial bias.
        feature_reg_weight: factor of the L1 penalty on the weights.
        shared_features: dict of ``match_ids`` [N]: neurons with equal ids share all weights, scaled per neuron; and
            ``shared_features``: the parameter of another readout to use, or None to own it. What a neuron reads is not
            separated from where here, so that its place is shared too.
        **kwargs: accepted and ignored.

    Raises:
        ValueError: an argument does not fit; in forward, features that do not fit.

    Shapes of the parameters: ``weight`` (N, C, H, W), or (M, C, H, W) where M sets of weights are shared; ``bias`` (N);
    for shared weights also ``scales`` (N, 1, 1, 1) and the buffer ``feature_sharing_index`` (N).
    """

    stored_features = "weight"
    by_rows = True
    _axes = "[M, C, H, W]"
    weight: nn.Parameter

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        bias: bool,
        init_noise: float = 1e-3,
        mean_activity: Tensor | None = None,
        feature_reg_weight: float = 1.0,
        shared_features: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_shape, outdims, mean_activity)
        self.init_noise, self.feature_reg_weight = init_noise, feature_reg_weight
        self.initialize_features(**(shared_features or {}))
        self._make_bias(bias)
        self.initialize(mean_activity)

    def _weight_shape(self, channels: int, neurons: int) -> tuple[int, ...]:
        return neurons, channels, *self.in_shape[1:]

    def _scales_shape(self) -> tuple[int, ...]:
        return self.outdims, 1, 1, 1

    @torch.no_grad()
    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """Draw new weights and set the bias to ``mean_activity`` or zero.

        Weights that belong to another readout are left as they are.
        """
        if self._original_features:
            self.weight.normal_(0, self.init_noise)
        if self._shared_features:
            self.scales.fill_(1.0)
        self._start_bias(mean_activity)

    def _responses(self, x: Tensor, shift: Tensor | None, index: Tensor | None) -> Tensor:
        images, shift = fold_frames(x, shift)
        weight = self._features_of(index)
        pixels = shifted_pixels(images, shift).flatten(1)
        out = nn.functional.linear(pixels, weight.flatten(1), self._bias_of(index))
        return unfold_frames(out, x)

    def _details(self) -> list[str]:
        return self._sharing()
