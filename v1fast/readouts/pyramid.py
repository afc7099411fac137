"""The readout of one point per neuron in a Laplacian pyramid of the features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from v1fast import _choices
from v1fast.readouts._frames import fold_frames, unfold_frames
from v1fast.readouts._points import GridReadout
from v1fast.readouts._ranges import Change, at_least_zero
from v1fast.readouts.base import NeuronSelection

PyramidType = Literal["gauss5x5", "gauss3x3", "laplace5x5"]


def _gaussian(size: int) -> NDArray[np.float64]:
    """The share of a standard Gaussian's mass in each of ``size`` pixels around 0."""
    edges = np.arange(size + 1) - size / 2
    mass = np.diff([math.erf(edge / math.sqrt(2)) for edge in edges])
    return mass / mass.sum()


# Each filter is the outer product of a row with itself, rounded to this many decimals: released checkpoints hold
# filters that were rounded like this.
_ROWS: dict[str, tuple[NDArray[Any], int]] = {
    "gauss5x5": (np.round(_gaussian(5), 5), 6),
    "gauss3x3": (np.array([1, 2, 1]) / 4, 16),
    "laplace5x5": (np.array([1, 4, 6, 4, 1]) / 16, 16),
}


class Pyramid(nn.Module):
    """The Laplacian pyramid of Burt and Adelson (1983), channel by channel.

    Each level is the difference between a map and its smoothed version; the last level is the last smoothed map.

    Args:
        scale_n: number of smoothings, >= 0.
        type: the filter: a Gaussian of 5 x 5 pixels, or a binomial filter of 3 x 3 or 5 x 5 pixels.
        downsample: keep every second pixel of a smoothed map.

    Raises:
        ValueError: an argument out of range.

    Buffer ``filter`` (5, 5) or (3, 3).
    """

    filter: Tensor

    def __init__(self, scale_n: int = 4, type: PyramidType = "gauss5x5", downsample: bool = True) -> None:
        super().__init__()
        if scale_n < 0:
            raise ValueError(f"scale_n: want at least 0, got {scale_n}")
        self.scale_n, self.filter_type, self.downsample = scale_n, type, downsample
        row, decimals = _choices.pick("type", type, _ROWS)
        weights = np.round(np.outer(row, row), decimals)
        self.register_buffer("filter", torch.as_tensor(weights, dtype=torch.get_default_dtype()))

    def lap_split(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``image`` [B, C, H, W] smoothed, and its difference from the smoothed image."""
        channels, height, width = image.shape[1:]
        size = self.filter.shape[0]
        each = self.filter.to(image.dtype).expand(channels, 1, size, size)
        smooth = F.conv2d(image, each, padding=size // 2, groups=channels)
        if not self.downsample:
            return smooth, image - smooth
        low = smooth[:, :, ::2, ::2]
        # The factor 4: upsampling fills three quarters of the pixels with zeros.
        back = 4 * F.conv_transpose2d(
            low,
            each,
            stride=2,
            padding=size // 2,
            output_padding=((height + 1) % 2, (width + 1) % 2),
            groups=channels,
        )
        return low, image - back

    def forward(self, img: Tensor, **kwargs: Any) -> list[Tensor]:
        """Return ``scale_n + 1`` maps of ``img`` [B, C, H, W], finest first."""
        levels = []
        for _ in range(self.scale_n):
            img, detail = self.lap_split(img)
            levels.append(detail)
        return [*levels, img]

    def extra_repr(self) -> str:
        """What ``print`` shows of the configuration."""
        return f"{self.scale_n} x {self.filter_type}" + (", downsampled" if self.downsample else "")


class PointPyramid2d(GridReadout):
    """Each neuron reads all levels of a Laplacian pyramid of the features at one point, by bilinear interpolation.

    Drop-in for ``PointPyramid2d`` of neuralpredictors (once ``SpatialTransformerPyramid2d``, in Sinz et al., "Stimulus
    domain transfer in recurrent models for large scale cortical population prediction on video", NeurIPS 2018): same
    constructor, state_dict keys and shapes, forward arguments. The computation is
    :func:`v1fast.functional.levels_readout` of :class:`Pyramid`.

    Differences from neuralpredictors: docs/layers.md.

    Args:
        in_shape: (C, H, W) of the features; H and W may differ in a call.
        outdims: number of neurons N.
        scale_n: number of smoothings S, >= 0.
        positive: keep the weights at 0 or above, see :meth:`project_`.
        bias: whether to add a bias per neuron.
        init_range: positions start uniform in [-init_range, init_range].
        downsample: keep every second pixel of a smoothed map.
        type: "gauss5x5", "gauss3x3" or "laplace5x5", see :class:`Pyramid`.
        align_corners: as in ``torch.nn.functional.grid_sample``.
        mean_activity: [N], initial bias.
        feature_reg_weight: factor of the L1 penalty on the features; default 1.
        gamma_readout: deprecated name of ``feature_reg_weight``.
        **kwargs: accepted and ignored, as neuralpredictors does.

    Raises:
        ValueError: an argument out of range; in forward, features that do not fit.

    Shapes of the parameters: ``grid`` (1, N, 1, 2), (x, y) in [-1, 1]; ``features`` (1, (S + 1) * C, 1, N), first the
    weights of the finest level's channels; ``bias`` (N). Buffer ``gauss_pyramid.filter``.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        scale_n: int,
        positive: bool,
        bias: bool,
        init_range: float,
        downsample: bool,
        type: PyramidType,
        align_corners: bool = True,
        mean_activity: Tensor | None = None,
        feature_reg_weight: float | None = None,
        gamma_readout: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_shape, outdims, mean_activity)
        self.positive, self.init_range, self.align_corners = positive, init_range, align_corners
        self.feature_reg_weight = self.resolve_deprecated_gamma_readout(feature_reg_weight, gamma_readout, default=1.0)
        self.gauss_pyramid = Pyramid(scale_n=scale_n, downsample=downsample, type=type)
        self.grid = nn.Parameter(torch.empty(1, outdims, 1, 2))
        self.features = nn.Parameter(torch.empty(1, in_shape[0] * (scale_n + 1), 1, outdims))
        self._make_bias(bias)
        self.initialize(mean_activity)

    @torch.no_grad()
    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """Draw new positions, set features to 1 / C and the bias to ``mean_activity`` or zero."""
        self.grid.uniform_(-self.init_range, self.init_range)
        self.features.fill_(1 / self.in_shape[0])
        self._start_bias(mean_activity)

    def _ranges(self) -> Mapping[str, Change]:
        return {**super()._ranges(), **({"features": at_least_zero} if self.positive else {})}

    def group_sparsity(self, group_size: int) -> Tensor:
        """Root mean square of each neuron's weights in groups of ``group_size`` channels, averaged.

        Raises:
            ValueError: the groups do not divide the channels of all levels.
        """
        if self.features.shape[1] % group_size:
            channels = self.features.shape[1]
            raise ValueError(f"group_size: want a divisor of (scale_n + 1) * C = {channels}, got {group_size}")
        return (self.features.square().unflatten(1, (-1, group_size)).mean(2) + 1e-12).sqrt().mean()

    def forward(
        self, x: Tensor, shift: Tensor | None = None, out_idx: NeuronSelection | None = None, **kwargs: Any
    ) -> Tensor:
        """Read the features.

        Args:
            x: features [B, C, H, W], or features of videos [B, C, T, H, W].
            shift: added to the positions after the clamp, e.g. from an eye-movement shifter: [B, 2], for videos also
                [B, T, 2]; B and T may be 1.
            out_idx: neurons to compute, as integer indices or a boolean mask (array, list or tensor).
            **kwargs: accepted and ignored.

        Returns:
            [B, N], or [B, len(out_idx)]; for videos [B, T, N] or [B, T, len(out_idx)].

        Raises:
            ValueError: an operand does not fit; the message names it.
        """
        if x.dim() not in (4, 5) or x.shape[1] != self.in_shape[0]:
            axes = "[B, C, H, W] or [B, C, T, H, W]"
            raise ValueError(f"features: want {axes} with C = {self.in_shape[0]}, got {tuple(x.shape)}")
        images, shift = fold_frames(x, shift)
        features = self._in_range("features", write=True)
        out = self._read_levels(self.gauss_pyramid(images), features, out_idx, shift, self.align_corners)
        return unfold_frames(out, x)


SpatialTransformerPyramid2d = PointPyramid2d
"""The name that Sinz et al. gave :class:`PointPyramid2d`."""
