"""The factorised readout: a mask of pixels times a vector of channels for each neuron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from v1fast import _choices
from v1fast._warnings import warn_caller
from v1fast.readouts._maps import MapReadout
from v1fast.readouts._masks import masked_readout
from v1fast.readouts._matched import SharedFeatures
from v1fast.readouts._ranges import Change, at_least_zero
from v1fast.readouts.base import Reduction

RegularizerMode = Literal["legacy", "per_neuron"]


class FullFactorized2d(SharedFeatures, MapReadout):
    """Each neuron weights the pixels by a mask and the channels by a vector, and adds all up.

    Klindt, Ecker, Euler & Bethge, "Neural system identification for large populations separating 'what' and 'where'",
    NeurIPS 2017. Drop-in for ``FullFactorized2d`` of neuralpredictors (also ``SpatialXFeatureLinear``, ``FullSXF``):
    same constructor, state_dict keys and shapes, forward arguments. The order of the sums is the one with the
    smallest intermediate tensor, see ``v1fast.readouts._masks``. It is images x channels x neurons only if the map has
    more pixels than there are images (times frames) and channels.

    Differences from neuralpredictors: docs/layers.md.

    Args:
        in_shape: (C, H, W) of the features.
        outdims: number of neurons N.
        bias: whether to add a bias per neuron.
        normalize: divide each mask by its L2 norm (plus 1e-6).
        init_noise: standard deviation of the initial masks and features.
        constrain_pos: keep features and masks at 0 or above, see :meth:`project_`. Normalised masks are clamped after
            the division instead, and their gradient ignores the clamp, as in neuralpredictors.
        positive_weights: keep the features at 0 or above, see :meth:`project_`.
        positive_spatial: use the absolute values of the masks; no effect together with ``constrain_pos``.
        shared_features: dict of ``match_ids`` [N]: neurons with equal ids share a feature vector, scaled per neuron;
            and ``shared_features``: the parameter of another readout to use, or None to own it.
        mean_activity: [N], initial bias.
        spatial_and_feature_reg_weight: factor of the penalty; default 1.
        gamma_readout: deprecated name of ``spatial_and_feature_reg_weight``.
        reg_mode: "legacy" is the L1 norm of all masks times that of all features, as in neuralpredictors. "per_neuron"
            is the sum over neurons of the product of the two norms, about N times less. Factors in the literature
            were chosen for "legacy".
        **kwargs: accepted and ignored, as neuralpredictors does.

    Raises:
        ValueError: an argument out of range; in forward, features that do not fit.

    Shapes of the parameters: ``_features`` (N, C), or (M, C) where M vectors are shared; ``spatial`` (N, H, W);
    ``bias`` (N); for shared features also ``scales`` (N, 1) and the buffer ``feature_sharing_index`` (N).
    """

    by_rows = True
    _axes = "[M, C]"

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        bias: bool,
        normalize: bool = True,
        init_noise: float = 1e-3,
        constrain_pos: bool = False,
        positive_weights: bool = False,
        positive_spatial: bool = False,
        shared_features: Mapping[str, Any] | None = None,
        mean_activity: Tensor | None = None,
        spatial_and_feature_reg_weight: float | None = None,
        gamma_readout: float | None = None,
        reg_mode: RegularizerMode = "legacy",
        **kwargs: Any,
    ) -> None:
        super().__init__(in_shape, outdims, mean_activity)
        _choices.one_of("reg_mode", reg_mode, ("legacy", "per_neuron"))
        if positive_spatial and constrain_pos:
            warn_caller("positive_spatial has no effect beside constrain_pos")
        self.reg_mode, self.normalize, self.init_noise = reg_mode, normalize, init_noise
        self.constrain_pos, self.positive_weights = constrain_pos, positive_weights
        self.positive_spatial = positive_spatial
        self.spatial_and_feature_reg_weight = self.resolve_deprecated_gamma_readout(
            spatial_and_feature_reg_weight, gamma_readout, default=1.0
        )
        self.initialize_features(**(shared_features or {}))
        self.spatial = nn.Parameter(torch.empty(outdims, *in_shape[1:]))
        self._make_bias(bias)
        self.initialize(mean_activity)

    @torch.no_grad()
    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """Draw new masks and features and set the bias to ``mean_activity`` or zero.

        Features that belong to another readout are left as they are.
        """
        self.spatial.normal_(0, self.init_noise)
        if self._original_features:
            self._features.normal_(0, self.init_noise)
        if self._shared_features:
            self.scales.fill_(1.0)
        self._start_bias(mean_activity)

    @property
    def normalized_spatial(self) -> Tensor:
        """The masks that weight the pixels, (N, H, W), after the constraints."""
        return self._masks_of(None)

    @property
    def weight(self) -> Tensor:
        """The weight of every value of the features, (N, C, H, W)."""
        return self.normalized_spatial.unsqueeze(1) * self.features.unsqueeze(-1).unsqueeze(-1)

    def _ranges(self) -> Mapping[str, Change]:
        names = ["spatial"] if self.constrain_pos and not self.normalize else []
        if self.constrain_pos or self.positive_weights:
            names += ["_features", "scales"] if self._shared_features else ["_features"]
        return dict.fromkeys(names, at_least_zero)

    def _masks_of(self, index: Tensor | None, write: bool = False) -> Tensor:
        masks = self._in_range("spatial", write)
        if index is not None:
            masks = masks[index]
        if self.normalize:
            masks = masks / (torch.linalg.vector_norm(masks, dim=(1, 2), keepdim=True) + 1e-6)
        if self.constrain_pos and self.normalize:
            return masks - masks.detach().clamp(max=0)  # clamps the values, not the gradient
        return masks.abs() if self.positive_spatial and not self.constrain_pos else masks

    def l1(self, reduction: Reduction = "sum", average: bool | None = None) -> Tensor:
        """The penalty without its factor: see ``reg_mode``; "mean" divides it by N C H W.

        Raises:
            ValueError: for any other reduction than "sum" and "mean".
        """
        reduction = self._sum_or_mean(reduction, average)
        masks = self.normalized_spatial.abs().sum((1, 2))
        features = self.features.abs().sum(1)
        total = masks.sum() * features.sum() if self.reg_mode == "legacy" else (masks * features).sum()
        channels, height, width = self.in_shape
        return total if reduction == "sum" else total / (self.outdims * channels * height * width)

    def regularizer(self, reduction: Reduction = "sum", average: bool | None = None) -> Tensor:
        """``l1`` times ``spatial_and_feature_reg_weight``."""
        return self.l1(reduction=reduction, average=average) * self.spatial_and_feature_reg_weight

    def _responses(self, x: Tensor, shift: Tensor | None, index: Tensor | None) -> Tensor:
        masks, features = self._masks_of(index, True), self._features_of(index, True)
        return masked_readout(x, masks, features, self._bias_of(index), shift)

    def _details(self) -> list[str]:
        return ["normalized"] * self.normalize + self._sharing()


SpatialXFeatureLinear = FullFactorized2d
"""An older name of :class:`FullFactorized2d` in neuralpredictors."""

FullSXF = FullFactorized2d
"""Another older name of :class:`FullFactorized2d` in neuralpredictors."""
