"""The pooled readout with what :class:`FullGaussian2d` has: predicted positions, shared features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from v1fast.readouts._matched import PredictedPositions, SharedFeatures, SourceFrame
from v1fast.readouts._ranges import Change, within_map
from v1fast.readouts.base import ConfigurationError
from v1fast.readouts.pooled import PointPooled2d
from v1fast.reference._common import clamped_to_map


class FullPointPooled2d(SharedFeatures, PredictedPositions, PointPooled2d):  # type: ignore[override]
    """:class:`PointPooled2d` whose positions may be predicted from cortex, and whose features neurons may share.

    Both as in :class:`v1fast.readouts.FullGaussian2d` (Lurz et al., "Generalization in data-driven models of primary
    visual cortex", ICLR 2021), on the readout of Sinz et al. (NeurIPS 2018). neuralpredictors has no such class.

    Args:
        in_shape: (C, H, W) of the features.
        outdims: number of neurons N.
        pool_steps, bias, pool_kern, init_range, align_corners: see :class:`PointPooled2d`.
        grid_mean_predictor: predict the positions from ``source_grid`` by a small network: a dict of ``hidden_layers``
            (default 0), ``hidden_features`` (20), ``final_tanh`` (False). Predictions outside the map are clamped.
        shared_features: dict of ``match_ids`` [N]: neurons with equal ids share a feature vector, scaled per neuron;
            and ``shared_features``: the parameter of another readout to use, or None to own it.
        source_grid: [N, D], e.g. cortical positions, finite, for ``grid_mean_predictor``.
        mean_activity: [N], initial bias.
        feature_reg_weight: factor of the L1 penalty on the features; default 1.
        gamma_readout: deprecated name of ``feature_reg_weight``.
        return_weighted_features: see :class:`PointPooled2d`.
        shared_transform: ``mu_transform`` of another readout, to use in place of an own grid_mean_predictor network.
        source_frame: centre and scale to normalise ``source_grid`` by in place of its own.
        residual_reg_weight: with ``grid_mean_predictor``, give each neuron an offset ``mu_residual`` from its predicted
            position, which starts at 0; this is the factor of the sum of squared offsets in :meth:`regularizer`.
        **kwargs: accepted and ignored.

    Raises:
        ValueError: an argument out of range; in forward, features that are not of ``in_shape`` or too small for the
            poolings; a change of ``pool_steps`` where features are shared.
        ConfigurationError: ``shared_transform`` or ``residual_reg_weight`` without ``grid_mean_predictor``.

    Shapes of the parameters: ``_grid`` (1, N, 1, 2) unless positions are predicted; ``_features``
    (1, (P + 1) * C, 1, N), or M for N where M vectors are shared; ``bias`` (N); and, where they are used,
    ``mu_transform.*``, ``mu_residual`` (1, N, 1, 2), ``scales`` (1, 1, 1, N) and the buffers ``source_grid`` (N, D) and
    ``feature_sharing_index`` (N). ``grid`` and ``features`` are those of every neuron.

    >>> import torch
    >>> cortex = torch.rand(20, 2).numpy()
    >>> layer = FullPointPooled2d((8, 16, 24), 20, 2, True, 2, 0.1, grid_mean_predictor={}, source_grid=cortex)
    >>> layer(torch.randn(3, 8, 16, 24)).shape, layer.grid.shape, layer.place(cortex[:4]).shape
    (torch.Size([3, 20]), torch.Size([1, 20, 1, 2]), torch.Size([4, 2]))
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        pool_steps: int,
        bias: bool,
        pool_kern: int,
        init_range: float,
        align_corners: bool = True,
        grid_mean_predictor: Mapping[str, Any] | None = None,
        shared_features: Mapping[str, Any] | None = None,
        source_grid: ArrayLike | None = None,
        mean_activity: Tensor | None = None,
        feature_reg_weight: float | None = None,
        gamma_readout: float | None = None,
        return_weighted_features: bool = False,
        shared_transform: nn.Module | None = None,
        source_frame: SourceFrame | None = None,
        residual_reg_weight: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            in_shape,
            outdims,
            pool_steps,
            bias,
            pool_kern,
            init_range,
            align_corners,
            mean_activity,
            feature_reg_weight,
            gamma_readout,
            return_weighted_features,
            predictor=grid_mean_predictor,
            shared_features=shared_features,
            source_grid=source_grid,
            shared_transform=shared_transform,
            source_frame=source_frame,
            residual_reg_weight=residual_reg_weight,
        )

    def _make_points_and_features(  # type: ignore[override]
        self,
        predictor: Mapping[str, Any] | None,
        shared_features: Mapping[str, Any] | None,
        source_grid: ArrayLike | None,
        shared_transform: nn.Module | None,
        source_frame: SourceFrame | None,
        residual_reg_weight: float | None,
    ) -> None:
        if predictor is None:
            for name, value in (("shared_transform", shared_transform), ("residual_reg_weight", residual_reg_weight)):
                if value is not None:
                    raise ConfigurationError(f"{name}: want it beside grid_mean_predictor, got no grid_mean_predictor")
            self._grid = nn.Parameter(torch.empty(1, self.outdims, 1, 2))
        else:
            self.init_grid_predictor(source_grid, **predictor, shared_transform=shared_transform, frame=source_frame)
        self.residual_reg_weight = residual_reg_weight
        if residual_reg_weight is not None:
            self.mu_residual = nn.Parameter(torch.empty(1, self.outdims, 1, 2))
        self.initialize_features(**(shared_features or {}))

    @torch.no_grad()
    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """Draw new positions, set features to 1 / C and the bias to ``mean_activity`` or zero.

        The network that predicts positions, and features that belong to another readout, are left as they are.
        """
        if not self._predicted_grid:
            self._grid.uniform_(-self.init_range, self.init_range)
        if self.residual_reg_weight is not None:
            self.mu_residual.zero_()
        if self._original_features:
            self._features.fill_(1 / self.in_shape[0])
        if self._shared_features:
            self.scales.fill_(1.0)
        self._start_bias(mean_activity)

    @property
    def _channels(self) -> int:
        return self.in_shape[0] * (self._pool_steps + 1)

    @property
    def grid(self) -> Tensor:  # type: ignore[override]
        """Positions of every neuron, (1, N, 1, 2), (x, y) in [-1, 1]."""
        return clamped_to_map(self._predicted()) if self._predicted_grid else self._grid

    def _points(self) -> Tensor:
        if self._predicted_grid:
            return self.grid.view(self.outdims, 2)
        return self._in_range("_grid", True, (self.outdims, 2))

    def _ranges(self) -> Mapping[str, Change]:
        return {} if self._predicted_grid else {"_grid": within_map}

    def _details(self) -> list[str]:
        return [*super()._details(), *self._sharing(), *self._prediction()]
