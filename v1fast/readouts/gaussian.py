"""Readouts that sample one point per neuron from a learned Gaussian."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from v1fast import _choices
from v1fast._warnings import warn_caller
from v1fast.readouts._matched import PredictedPositions, SharedFeatures, SourceFrame, source_frame
from v1fast.readouts._points import GaussianPointReadout, Sampler, matrix_shape
from v1fast.readouts._ranges import Change, copied, in_range, within_map
from v1fast.readouts.base import ConfigurationError, sharing_index

__all__ = ["FullGaussian2d", "GaussType", "SourceFrame", "source_frame"]

GaussType = Literal["full", "uncorrelated", "isotropic"]

_SIGMA_SHAPE: dict[str, tuple[int, int]] = {"full": (2, 2), "uncorrelated": (1, 2), "isotropic": (1, 1)}


class FullGaussian2d(SharedFeatures, PredictedPositions, GaussianPointReadout):
    """Each neuron reads the features at a point drawn from its Gaussian, by bilinear interpolation.

    Lurz et al., "Generalization in data-driven models of primary visual cortex", ICLR 2021. In training a position is
    sampled for every neuron and image, in evaluation the mean is read. Drop-in for ``FullGaussian2d`` of
    neuralpredictors: same constructor, state_dict keys and shapes, forward arguments. The computation is
    :func:`v1fast.functional.gaussian_readout`.

    Differences from neuralpredictors: docs/layers.md.

    Args:
        in_shape: (C, H, W) of the features. Other H and W are accepted in forward, with a warning.
        outdims: number of neurons N.
        bias: whether to add a bias per neuron.
        init_mu_range: means start uniform in [-init_mu_range, init_mu_range]; in (0, 1].
        init_sigma: initial standard deviation, > 0; for the full Gaussian the entries of the square root of the
            covariance start uniform in [-init_sigma, init_sigma].
        batch_sample: draw a position for each image; otherwise one for all images of a batch.
        align_corners: as in ``torch.nn.functional.grid_sample``.
        gauss_type: "full", "uncorrelated" or "isotropic".
        grid_mean_predictor: predict the means from ``source_grid`` by a small network: a dict of ``hidden_layers``
            (default 0), ``hidden_features`` (20), ``final_tanh`` (False), and ``init_range`` (None): predicted means
            start within [-init_range, init_range], about 0. None: anywhere, as in neuralpredictors.
        shared_features: dict of ``match_ids`` [N]: neurons with equal ids share a feature vector, scaled per neuron;
            and ``shared_features``: the parameter of another readout to use, or None to own it.
        shared_grid: dict of ``match_ids`` and ``shared_grid``, likewise for the means. A readout that uses another's
            means transforms them by a learned affine map.
        shared_transform: ``mu_transform`` of another readout, to use in place of an own grid_mean_predictor network.
        source_grid: [N, D], e.g. cortical positions, finite, for ``grid_mean_predictor``; centred and divided by its
            largest absolute value, if that is not 0 (one neuron, or all at one place).
        source_frame: centre and scale to normalise ``source_grid`` by in place of its own: those of the neurons on
            which the network was trained, see the attribute.
        residual_reg_weight: with ``grid_mean_predictor``, give each neuron an offset ``mu_residual`` from its predicted
            mean, which starts at 0; this is the factor of the sum of squared offsets in :meth:`regularizer`. None: no
            offsets.
        mean_activity: [N], initial bias.
        feature_reg_weight: factor of the L1 penalty on the features; default 1.
        gamma_readout: deprecated name of ``feature_reg_weight``.
        return_weighted_features: kept for compatibility, unused.
        sampler: "philox" draws the positions inside the kernel from a fresh seed of torch's generator; "torch" draws
            standard normals from torch's generator as neuralpredictors does, to reproduce its random stream.
        frame_sample: draw a position for each frame of a video; otherwise one for all frames of a clip.
        **kwargs: accepted and ignored, as neuralpredictors does.

    Raises:
        ValueError: an argument out of range.
        ConfigurationError: both ``grid_mean_predictor`` and ``shared_grid``, or ``shared_transform`` without the first.

    Shapes of the parameters: ``_mu`` (1, N, 1, 2); ``sigma`` (1, N, 2, 2), (1, N, 1, 2) or (1, N, 1, 1), a square root
    of the covariance with free sign; ``_features`` (1, C, 1, N); ``bias`` (N); ``mu_residual`` (1, N, 1, 2) if there is
    a ``residual_reg_weight``.

    Attributes:
        source_frame: centre and scale of ``source_grid``, by which :meth:`place` places other neurons; None without
            ``grid_mean_predictor``, and where a state_dict with another grid was loaded, since state_dicts do not hold
            it. ``FiringRateEncoder.save`` keeps it; :func:`v1fast.readouts.gaussian.source_frame` computes it anew.

    >>> import torch
    >>> readout = FullGaussian2d(in_shape=(64, 28, 56), outdims=100, bias=True, init_sigma=0.3)
    >>> features = torch.randn(8, 64, 28, 56)
    >>> readout(features).shape
    torch.Size([8, 100])
    >>> readout.eval()(features).equal(readout(features))  # the means are read: nothing is drawn
    True
    """

    grid_sharing_index: Tensor

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        bias: bool,
        init_mu_range: float = 0.1,
        init_sigma: float = 1,
        batch_sample: bool = True,
        align_corners: bool = True,
        gauss_type: GaussType = "full",
        grid_mean_predictor: Mapping[str, Any] | None = None,
        shared_features: Mapping[str, Any] | None = None,
        shared_grid: Mapping[str, Any] | None = None,
        source_grid: ArrayLike | None = None,
        mean_activity: Tensor | None = None,
        feature_reg_weight: float | None = None,
        gamma_readout: float | None = None,
        return_weighted_features: bool = False,
        sampler: Sampler = "philox",
        shared_transform: nn.Module | None = None,
        frame_sample: bool = True,
        source_frame: SourceFrame | None = None,
        residual_reg_weight: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            in_shape,
            outdims,
            init_mu_range=init_mu_range,
            batch_sample=batch_sample,
            frame_sample=frame_sample,
            align_corners=align_corners,
            mean_activity=mean_activity,
            sampler=sampler,
        )
        self.feature_reg_weight = self.resolve_deprecated_gamma_readout(feature_reg_weight, gamma_readout, default=1.0)
        if not init_sigma > 0:
            raise ValueError(f"init_sigma: want a positive value, got {init_sigma}")
        _choices.one_of("gauss_type", gauss_type, _SIGMA_SHAPE)
        if grid_mean_predictor is not None and shared_grid is not None:
            raise ConfigurationError("grid_mean_predictor and shared_grid exclude each other")
        if shared_transform is not None and grid_mean_predictor is None:
            raise ConfigurationError("shared_transform: want it beside grid_mean_predictor, got no grid_mean_predictor")
        if residual_reg_weight is not None and grid_mean_predictor is None:
            raise ConfigurationError("residual_reg_weight: want it beside grid_mean_predictor, got none")
        self.residual_reg_weight = residual_reg_weight
        self.gauss_type, self.sigma_shape = gauss_type, (1, outdims, *_SIGMA_SHAPE[gauss_type])
        self.init_sigma, self.return_weighted_features = init_sigma, return_weighted_features

        self._predicted_grid, self._shared_grid = False, False
        self._original_grid = grid_mean_predictor is None
        # The order of registration is that of neuralpredictors: the same seed gives the same initial values.
        if grid_mean_predictor is not None:
            self.init_grid_predictor(
                source_grid, **grid_mean_predictor, shared_transform=shared_transform, frame=source_frame
            )
        elif shared_grid is not None:
            self.initialize_shared_grid(**shared_grid)
        else:
            self._mu = nn.Parameter(torch.empty(self.grid_shape))
        self.sigma = nn.Parameter(torch.empty(self.sigma_shape))
        self.initialize_features(**(shared_features or {}))
        self._make_bias(bias)
        if residual_reg_weight is not None:
            self.mu_residual = nn.Parameter(torch.empty(self.grid_shape))
        self.initialize(mean_activity)

    def initialize_shared_grid(
        self, match_ids: ArrayLike | None = None, shared_grid: nn.Parameter | None = None
    ) -> None:
        """Own means that neurons share, or use another readout's through an affine map."""
        if match_ids is None:
            raise ConfigurationError("shared_grid: want match_ids, one id per neuron, got None")
        count, index = sharing_index(match_ids, self.outdims)
        if shared_grid is None:
            self._mu = nn.Parameter(torch.empty(1, count, 1, 2))
        else:
            if tuple(shared_grid.shape) != (1, count, 1, 2):
                raise ValueError(f"shared_grid: want (1, {count}, 1, 2), got {tuple(shared_grid.shape)}")
            self._mu, self._original_grid = shared_grid, False
            self.mu_transform = nn.Linear(2, 2)
            with torch.no_grad():
                self.mu_transform.bias.zero_()
                self.mu_transform.weight.copy_(torch.eye(2))
        self.register_buffer("grid_sharing_index", index)
        self._shared_grid = True

    @torch.no_grad()
    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """Draw new means and sigma, set features to 1 / C and the bias to ``mean_activity`` or zero.

        Means and features that belong to another readout are left as they are.
        """
        if self._original_grid:
            self._mu.uniform_(-self.init_mu_range, self.init_mu_range)
        if self.gauss_type == "full":
            self.sigma.uniform_(-self.init_sigma, self.init_sigma)
        else:
            self.sigma.fill_(self.init_sigma)
        if self._original_features:
            self._features.fill_(1 / self.in_shape[0])
        if self._shared_features:
            self.scales.fill_(1.0)
        if self.residual_reg_weight is not None:
            self.mu_residual.zero_()
        self._start_bias(mean_activity)

    @property
    def shared_grid(self) -> nn.Parameter:
        """The parameter (1, M, 1, 2) to hand to another readout's ``shared_grid``."""
        return self._mu

    @property
    def features(self) -> Tensor:  # type: ignore[override]
        """Feature weights of every neuron, (1, C, 1, N)."""
        return self._features_of(None) if self._shared_features else self._features

    @property
    def mu(self) -> Tensor:
        """Means of every neuron, (1, N, 1, 2), (x, y) in [-1, 1]."""
        if not (self._predicted_grid or self._shared_grid):
            return self._mu
        if self._predicted_grid:
            return self._predicted()
        if self._original_grid:
            return self._mu[:, self.grid_sharing_index]
        with torch.autocast(self.sigma.device.type, enabled=False):  # as in a predicted grid
            return self.mu_transform(self._mu)[:, self.grid_sharing_index]

    @property
    def mu_dispersion(self) -> Tensor:
        """Standard deviation of the means over neurons, summed over x and y: a penalty that pulls them together.

        0 for a single neuron.
        """
        return self.mu.view(-1, 2).std(0, correction=1 if self.outdims > 1 else 0).sum()

    def _ranges(self) -> Mapping[str, Change]:
        return {} if self._predicted_grid or self._shared_grid else {"_mu": within_map}

    def _neuron_axes(self) -> dict[str, int]:
        axes = super()._neuron_axes() | {"_mu": 1, "grid_sharing_index": 0}
        if self._shared_grid:
            del axes["_mu"]
        return axes

    def _gaussian(self, write: bool = False) -> tuple[Tensor, Tensor]:
        sigma = self.sigma
        shape = matrix_shape(sigma)
        if self._predicted_grid or self._shared_grid:
            mu = self.mu.view(shape[0], 2)
        else:
            mu = in_range(self._mu, within_map, write and self.training, (shape[0], 2))
        # A copy, so that the parameter may be changed before the backward pass.
        return mu, copied(sigma, shape) if torch.is_grad_enabled() else sigma.view(shape)

    def _own_parameters(self) -> tuple[Tensor, Tensor, Tensor] | None:
        if self._predicted_grid or self._shared_grid or self._shared_features:
            return None
        cls, own = type(self), self._parameters
        usual = cls._gaussian is FullGaussian2d._gaussian and cls._read is GaussianPointReadout._read
        mu, sigma, features = own.get("_mu"), own.get("sigma"), own.get("_features")
        if not usual or mu is None or sigma is None or features is None or self.features is not features:
            return None
        return mu, sigma, features

    def _check_features(self, x: Tensor) -> None:
        shape, in_shape = x.shape, self.in_shape
        if shape[1] != in_shape[0] or shape[-1] != in_shape[-1] or shape[-2] != in_shape[-2]:
            got, want = (shape[1], *shape[-2:]), self._map_shape
            # A traced size may be symbolic.
            shown = "another" if torch.compiler.is_compiling() else got
            warn_caller(f"features of shape (C, H, W) = {shown} where the readout was made for {want}")

    def _details(self) -> list[str]:
        words = [self.gauss_type, *self._sharing(), *self._prediction()]
        if self._shared_grid:
            words.append(f"{'own' if self._original_grid else 'shared'} matched grid")
        return words
