"""The Gaussian readout of videos, with a draw for each clip or each frame, as openretina has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from v1fast.readouts._points import Sampler
from v1fast.readouts.base import require_finite
from v1fast.readouts.gaussian import FullGaussian2d, GaussType


class PointGaussianReadout(FullGaussian2d):
    """:class:`FullGaussian2d` with openretina's constructor, for features of videos.

    Drop-in for ``PointGaussianReadout`` of openretina (there also ``FullGaussian2d``): same constructor, state_dict
    keys and shapes, forward arguments. Differences from it: docs/layers.md.

    Args:
        in_shape: (C, T, H, W) of the features. Other T, H and W are accepted in forward, with a warning for H and W.
        outdims: number of neurons N.
        bias: whether to add a bias per neuron.
        init_mu_range: means start uniform in [-init_mu_range, init_mu_range]; in (0, 1].
        init_sigma_range: ``init_sigma`` of :class:`FullGaussian2d`.
        batch_sample: draw a position for each clip; otherwise one for all clips of a batch.
        align_corners: as in ``torch.nn.functional.grid_sample``.
        gauss_type: "full", "uncorrelated" or "isotropic".
        grid_mean_predictor: see :class:`FullGaussian2d`.
        shared_features: see :class:`FullGaussian2d`.
        shared_grid: see :class:`FullGaussian2d`.
        init_grid: initial means, (1, N, 1, 2) or as many numbers in that order; unused if means are predicted or
            shared.
        source_grid: see :class:`FullGaussian2d`.
        mean_activity: [N], initial bias.
        gamma_readout: factor of the L1 penalty on the features.
        sampler: see :class:`FullGaussian2d`.
        frame_sample: draw a position for each frame of a video; otherwise one for all frames of a clip.
        **kwargs: accepted and ignored, as openretina does.

    Raises:
        ValueError: an argument out of range.
        ConfigurationError: both ``grid_mean_predictor`` and ``shared_grid``.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        bias: bool,
        init_mu_range: float = 0.1,
        init_sigma_range: float = 0.15,
        batch_sample: bool = True,
        align_corners: bool = True,
        gauss_type: GaussType = "full",
        grid_mean_predictor: Mapping[str, Any] | None = None,
        shared_features: Mapping[str, Any] | None = None,
        shared_grid: Mapping[str, Any] | None = None,
        init_grid: ArrayLike | Tensor | None = None,
        source_grid: ArrayLike | None = None,
        mean_activity: Tensor | None = None,
        gamma_readout: float = 1.0,
        sampler: Sampler = "philox",
        frame_sample: bool = True,
        **kwargs: Any,
    ) -> None:
        self.init_grid, self.init_sigma_range = init_grid, init_sigma_range
        super().__init__(
            in_shape,
            outdims,
            bias,
            init_mu_range=init_mu_range,
            init_sigma=init_sigma_range,
            batch_sample=batch_sample,
            align_corners=align_corners,
            gauss_type=gauss_type,
            grid_mean_predictor=grid_mean_predictor,
            shared_features=shared_features,
            shared_grid=shared_grid,
            source_grid=source_grid,
            mean_activity=mean_activity,
            feature_reg_weight=gamma_readout,
            sampler=sampler,
            frame_sample=frame_sample,
        )

    @property
    def gamma_readout(self) -> float:
        """Factor of the penalty."""
        return self.feature_reg_weight

    @gamma_readout.setter
    def gamma_readout(self, value: float) -> None:
        self.feature_reg_weight = value

    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """As in :class:`FullGaussian2d`; the means start at ``init_grid`` where it is given."""
        super().initialize(mean_activity)
        if self.init_grid is None or self._predicted_grid or self._shared_grid:
            return
        given = torch.as_tensor(self.init_grid)
        if given.numel() != self._mu.numel():
            raise ValueError(f"init_grid: want {tuple(self._mu.shape)}, got {tuple(given.shape)}")
        require_finite("init_grid", given.detach().cpu())
        with torch.no_grad():
            self._mu.copy_(given.view_as(self._mu))
