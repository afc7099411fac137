"""The Gaussian readout with independent x and y, for models that were trained with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from v1fast._warnings import warn_caller
from v1fast.readouts._points import GaussianPointReadout, Sampler
from v1fast.readouts._ranges import Change, at_least_zero, within_map


class Gaussian2d(GaussianPointReadout):
    """Each neuron reads the features at a point drawn from a Gaussian with independent x and y.

    The readout of Lurz et al., "Generalization in data-driven models of primary visual cortex", ICLR 2021, with a
    diagonal covariance. For new models use :class:`v1fast.readouts.FullGaussian2d`: its ``gauss_type="uncorrelated"``
    corresponds to this. Drop-in for ``Gaussian2d`` of neuralpredictors: same constructor, state_dict keys and shapes,
    forward arguments. The computation is :func:`v1fast.functional.gaussian_readout`.

    Unlike ``FullGaussian2d``: sigma is kept at 0 or above (see :meth:`project_`) and starts at random, and features of
    another shape are an error.

    Differences from neuralpredictors: docs/layers.md.

    Args:
        in_shape: (C, H, W) of the features.
        outdims: number of neurons N.
        bias: whether to add a bias per neuron.
        init_mu_range: means start uniform in [-init_mu_range, init_mu_range]; in (0, 1].
        init_sigma_range: standard deviations start uniform in [0, init_sigma_range]; > 0.
        batch_sample: draw a position for each image; otherwise one for all images of a batch.
        align_corners: as in ``torch.nn.functional.grid_sample``.
        fixed_sigma: standard deviations start at exactly ``init_sigma_range``.
        mean_activity: [N], initial bias.
        feature_reg_weight: factor of the L1 penalty on the features; default 1.
        gamma_readout: deprecated name of ``feature_reg_weight``.
        sampler: "philox" draws the positions inside the kernel from a fresh seed of torch's generator; "torch" draws
            standard normals from torch's generator as neuralpredictors does, to reproduce its random stream.
        frame_sample: draw a position for each frame of a video; otherwise one for all frames of a clip.
        **kwargs: accepted and ignored, as neuralpredictors does.

    Raises:
        ValueError: an argument out of range; in forward, features that are not of ``in_shape``.

    Shapes of the parameters: ``mu`` (1, N, 1, 2), (x, y) in [-1, 1]; ``sigma`` (1, N, 1, 2); ``features`` (1, C, 1, N);
    ``bias`` (N).
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        bias: bool,
        init_mu_range: float = 0.5,
        init_sigma_range: float = 0.5,
        batch_sample: bool = True,
        align_corners: bool = True,
        fixed_sigma: bool = False,
        mean_activity: Tensor | None = None,
        feature_reg_weight: float | None = None,
        gamma_readout: float | None = None,
        sampler: Sampler = "philox",
        frame_sample: bool = True,
        **kwargs: Any,
    ) -> None:
        warn_caller(
            'Gaussian2d is deprecated: use FullGaussian2d, of which gauss_type="uncorrelated" corresponds to it',
            DeprecationWarning,
        )
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
        if not init_sigma_range > 0:
            raise ValueError(f"init_sigma_range: want a positive value, got {init_sigma_range}")
        self.init_sigma_range, self.fixed_sigma = init_sigma_range, fixed_sigma
        self.mu = nn.Parameter(torch.empty(self.grid_shape))
        self.sigma = nn.Parameter(torch.empty(self.grid_shape))
        self.features = nn.Parameter(torch.empty(1, in_shape[0], 1, outdims))
        self._make_bias(bias)
        self.initialize(mean_activity)

    @torch.no_grad()
    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """Draw new means and sigma, set features to 1 / C and the bias to ``mean_activity`` or zero."""
        self.mu.uniform_(-self.init_mu_range, self.init_mu_range)
        # neuralpredictors draws a fixed sigma too. Without that, whatever is drawn next would differ for the same seed.
        self.sigma.uniform_(self.init_sigma_range if self.fixed_sigma else 0, self.init_sigma_range)
        self.features.fill_(1 / self.in_shape[0])
        self._start_bias(mean_activity)

    def _ranges(self) -> Mapping[str, Change]:
        return {"mu": within_map, "sigma": at_least_zero}

    def _stored_gaussian(self) -> tuple[str, str]:
        return "mu", "sigma"

    def _gaussian(self, write: bool = False) -> tuple[Tensor, Tensor]:
        shape = (self.outdims, 2)
        return self._in_range("mu", write, shape), self._in_range("sigma", write, shape)

    def _check_features(self, x: Tensor) -> None:
        self._require_in_shape(x)
