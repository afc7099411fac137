"""The Gaussian readout with several outputs per neuron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from v1fast import functional
from v1fast.readouts._points import Noise, SeveralOutputs, of_neurons, rows_of, stacked
from v1fast.readouts.gaussian import FullGaussian2d


class GeneralizedFullGaussianReadout2d(SeveralOutputs, FullGaussian2d):
    """:class:`FullGaussian2d` with several outputs per neuron: the parameters of its response distribution.

    All outputs of a neuron read the same point. Drop-in for ``GeneralizedFullGaussianReadout2d`` of neuralpredictors.
    Differences from it: docs/layers.md.

    Args:
        in_shape: (C, H, W) of the features.
        outdims: number of neurons N.
        bias: whether to add a bias per output and neuron.
        inferred_params_n: number of outputs P per neuron, >= 1.
        **kwargs: as in :class:`FullGaussian2d`. ``mean_activity`` is [N], for all outputs, or [P, N]. With
            ``return_weighted_features``, forward returns the features at the points times their weights,
            [P, B, C, N], before the sum over channels and without the bias.

    Raises:
        ValueError: an argument out of range; in forward, features that are not of ``in_shape``.

    Shapes of the parameters: as in :class:`FullGaussian2d`, but ``_features`` (P, 1, C, 1, N), ``scales``
    (P, 1, 1, 1, N) and ``bias`` (P, N). The result is [P, B, N], for videos [P, B, T, N]; without the first axis if
    P = 1.
    """

    def __init__(
        self, in_shape: Sequence[int], outdims: int, bias: bool, inferred_params_n: int = 1, **kwargs: Any
    ) -> None:
        self._set_outputs(inferred_params_n)
        super().__init__(in_shape, outdims, bias, **kwargs)

    def _weight_shape(self, channels: int, neurons: int) -> tuple[int, ...]:
        return self.inferred_params_n, *super()._weight_shape(channels, neurons)

    def _check_features(self, x: Tensor) -> None:
        self._require_in_shape(x)

    @property
    def _result_axis(self) -> int:
        return -3 if self.return_weighted_features else -2

    def _read(
        self,
        images: Tensor,
        mu: Tensor,
        sigma: Tensor,
        shift: Tensor | None,
        index: Tensor | None,
        noise: Noise,
    ) -> Tensor:
        """Responses [P, B, N], or [B, N] if P = 1; or the weighted features."""
        features = self.features if index is None else self.features[..., index]
        weight = rows_of(self._as_read(features)).squeeze(1)  # [P, N, C]
        if self.return_weighted_features:
            grid = self._positions(mu, sigma, noise, images.shape[0])
            if index is not None:
                grid = grid[:, index]
            gathered = functional.gather_levels([images], grid, shift, align_corners=self.align_corners)
            return (weight.unsqueeze(1) * gathered).mT
        # The outputs of a neuron are read as neurons with the same index. A sample depends on the index alone.
        index = torch.arange(self.outdims, device=mu.device) if index is None else index
        bias, neurons = self._bias_of(index), index.repeat(self.inferred_params_n)
        out = functional.gaussian_readout(
            images,
            mu[neurons],
            sigma[neurons],
            stacked(weight),
            None if bias is None else bias.flatten(),
            shift,
            neuron_index=self._counters(neurons, mu.device),
            align_corners=self.align_corners,
            **of_neurons(noise, neurons),
        )
        out = out.unflatten(1, (self.inferred_params_n, -1)).transpose(0, 1)
        # ONNX squeezes only axes of length 1.
        return out.squeeze(0) if self.inferred_params_n == 1 else out
