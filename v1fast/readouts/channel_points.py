"""Readouts that read single values of the features, at points (x, y, channel)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from v1fast import functional
from v1fast.readouts._frames import fold_frames, unfold_frames
from v1fast.readouts._points import check_seed, draw_seed
from v1fast.readouts._ranges import Change, at_least_zero, within_map
from v1fast.readouts.base import FeatureReadout, NeuronSelection, Reduction, select_neurons
from v1fast.reference._common import clamped_to_map


class ChannelPointReadout(FeatureReadout, ABC):
    """Base class of the layers that read each neuron's value, or few values, at points (x, y, channel).

    A value is interpolated from eight numbers (``torch.nn.functional.grid_sample``, which has no second derivative in
    three dimensions). That is little work beside a readout of all channels, so there is no kernel for it. Positions
    are sampled with torch's generator, as in neuralpredictors, unless a seed is given.

    Attributes:
        num_filters: number of points F of each neuron.
        features: one weight per point, N F in all.
    """

    features: nn.Parameter
    num_filters: int = 1

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        *,
        init_mu_range: float,
        init_sigma_range: float,
        batch_sample: bool,
        frame_sample: bool,
        align_corners: bool,
        fixed_sigma: bool,
        mean_activity: Tensor | None,
    ) -> None:
        super().__init__(in_shape, outdims, mean_activity)
        if not 0 < init_mu_range <= 1:
            raise ValueError(f"init_mu_range: want a value in (0, 1], got {init_mu_range}")
        if not init_sigma_range > 0:
            raise ValueError(f"init_sigma_range: want a positive value, got {init_sigma_range}")
        self.init_mu_range, self.init_sigma_range = init_mu_range, init_sigma_range
        self.batch_sample, self.frame_sample = batch_sample, frame_sample
        self.align_corners, self.fixed_sigma = align_corners, fixed_sigma

    @abstractmethod
    def _clamped(self, write: bool = False) -> tuple[Tensor, Tensor]:
        """mu and sigma for this pass, in range, (1, 1, F N, 1, 3): all neurons' first points, then the second, ...

        ``write``: see ``_in_range``.
        """

    def _start_sigma(self, *sigmas: Tensor) -> None:
        for sigma in sigmas:
            # neuralpredictors draws a fixed sigma too. Without that, whatever is drawn next would differ.
            sigma.uniform_(self.init_sigma_range if self.fixed_sigma else 0, self.init_sigma_range)

    def _draw(
        self,
        draws: tuple[int, ...],
        sample: bool | None,
        seed: int | Tensor | None = None,
        first: int = 0,
        write: bool = False,
    ) -> Tensor:
        """Positions [*draws, F N, 3], sampled if ``sample`` (None: in training mode), else the means."""
        mu, sigma = (t.reshape(-1, 3) for t in self._clamped(write))
        if not (self.training if sample is None else sample):
            noise = mu.new_zeros(*mu.shape)  # sigma gets a gradient of zeros, not none
        elif seed is None and not first:
            noise = mu.new_empty(*draws, *mu.shape).normal_()
        else:
            # A point takes the draws of two neurons, of x and y each, and leaves the fourth number.
            key = draw_seed(mu.device) if seed is None else functional.seed_tensor(seed, mu.device)
            pairs = functional.philox_normal(key, math.prod(draws), 2 * len(mu), image_offset=first)
            noise = pairs.view(*draws, len(mu), 4)[..., :3].to(mu.dtype)
        return clamped_to_map(mu + sigma * noise).expand(*draws, -1, -1)

    def sample_grid(self, batch_size: int, sample: bool | None = None) -> Tensor:
        """Positions (batch_size, 1, F N, 1, 3), sampled if ``sample`` (None: in training mode), else the means."""
        return self._draw((batch_size,), sample).unsqueeze(1).unsqueeze(3)

    @property
    def grid(self) -> Tensor:
        """Positions read in evaluation, (1, 1, F N, 1, 3)."""
        return self.sample_grid(batch_size=1, sample=False)

    def forward(
        self,
        x: Tensor,
        sample: bool | None = None,
        shift: Tensor | None = None,
        out_idx: NeuronSelection | None = None,
        *,
        seed: int | Tensor | None = None,
        image_offset: int = 0,
        **kwargs: Any,
    ) -> Tensor:
        """Read the features.

        Args:
            x: features [B, C, H, W], or features of videos [B, C, T, H, W].
            sample: sample the positions (True) or read the means (False); None: sample in training mode only.
            shift: added to the positions in the map after the clamp: [B, 2], for videos also [B, T, 2]; B and T may
                be 1.
            out_idx: neurons to compute, as integer indices or a boolean mask (array, list or tensor). The sample of a
                neuron does not depend on which others are computed.
            seed: sample as :func:`v1fast.functional.philox_normal` does with this seed, a signed 64-bit int or an int64
                tensor [1]; None: from torch's generator.
            image_offset: index of the first image, or clip, of ``x`` in a larger batch, >= 0. Parts of a batch that are
                read with the same seed and with their offsets get the samples that the whole batch gets.
            **kwargs: accepted and ignored.

        Returns:
            [B, N] or [B, len(out_idx)]; for videos [B, T, N] or [B, T, len(out_idx)].

        Raises:
            ValueError: an operand does not fit (the message names it), or an ``image_offset`` without a seed.
        """
        self._require_in_shape(x)
        check_seed(seed, image_offset)
        clips, frames = x.shape[0], x.shape[2] if x.dim() == 5 else 1
        draws = clips if self.batch_sample else 1, frames if self.frame_sample else 1
        first_image = self.first_image if seed is None else image_offset
        first = first_image * draws[1] if self.batch_sample else 0
        points = self._draw(draws, sample, seed, first, write=True).expand(clips, frames, -1, -1).flatten(0, 1)
        images, shift = fold_frames(x, shift)
        points = points.unflatten(1, (self.num_filters, self.outdims))  # [B, F, N, 3]
        weights: Tensor = self.features.view(self.outdims, self.num_filters)
        index = None if out_idx is None else select_neurons(out_idx, self.outdims, x.device)
        if index is not None:
            points, weights = points[:, :, index], weights[index]
        shift = functional.shift_of_images(shift, len(images))
        if shift is not None:
            if tuple(shift.shape) != (len(images), 2):
                raise ValueError(f"shift: want [B, 2] = ({len(images)}, 2), got {tuple(shift.shape)}")
            points = points + F.pad(shift, (0, 1))[:, None, None]
        out, bias = (self._values(images, points) * weights.t()).sum(1), self._bias_of(index)
        return unfold_frames(out if bias is None else out + bias, x)

    def _values(self, images: Tensor, points: Tensor) -> Tensor:
        """The values at the points [B, F, N, 3], as [B, F, N]. Positions are never rounded below float32."""
        dtype = torch.promote_types(torch.promote_types(images.dtype, points.dtype), torch.float32)
        volume, grid = images.unsqueeze(1).to(dtype), points.unsqueeze(1).to(dtype)
        return F.grid_sample(volume, grid, align_corners=self.align_corners)[:, 0, 0].to(images.dtype)


class Gaussian3d(ChannelPointReadout):
    """Each neuron reads one value, at a point (x, y, channel) drawn from a Gaussian, and scales it.

    Drop-in for ``Gaussian3d`` of neuralpredictors: same constructor, state_dict keys and shapes, forward arguments.
    Differences from it: docs/layers.md.

    Args:
        in_shape: (C, H, W) of the features.
        outdims: number of neurons N.
        bias: whether to add a bias per neuron.
        init_mu_range: means start uniform in [-init_mu_range, init_mu_range], in x, y and channel; in (0, 1].
        init_sigma_range: standard deviations start uniform in [0, init_sigma_range]; > 0.
        batch_sample: draw a position for each image; otherwise one for all images of a batch.
        align_corners: as in ``torch.nn.functional.grid_sample``.
        fixed_sigma: standard deviations start at exactly ``init_sigma_range``.
        mean_activity: [N], initial bias.
        feature_reg_weight: factor of the L1 penalty on the features; default 1.
        gamma_readout: deprecated name of ``feature_reg_weight``.
        frame_sample: draw a position for each frame of a video; otherwise one for all frames of a clip.
        **kwargs: accepted and ignored, as neuralpredictors does.

    Raises:
        ValueError: an argument out of range; in forward, features that are not of ``in_shape``.

    Shapes of the parameters: ``mu`` and ``sigma`` (1, 1, N, 1, 3), (x, y, channel) in [-1, 1]; ``features``
    (1, 1, 1, N); ``bias`` (N).
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
        frame_sample: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            in_shape,
            outdims,
            init_mu_range=init_mu_range,
            init_sigma_range=init_sigma_range,
            batch_sample=batch_sample,
            frame_sample=frame_sample,
            align_corners=align_corners,
            fixed_sigma=fixed_sigma,
            mean_activity=mean_activity,
        )
        self.feature_reg_weight = self.resolve_deprecated_gamma_readout(feature_reg_weight, gamma_readout, default=1.0)
        self.mu = nn.Parameter(torch.empty(1, 1, outdims, 1, 3))
        self.sigma = nn.Parameter(torch.empty(1, 1, outdims, 1, 3))
        self.features = nn.Parameter(torch.empty(1, 1, 1, outdims))
        self._make_bias(bias)
        self.initialize(mean_activity)

    @torch.no_grad()
    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """Draw new means and sigma, set features to 1 / C and the bias to ``mean_activity`` or zero."""
        self.mu.uniform_(-self.init_mu_range, self.init_mu_range)
        self._start_sigma(self.sigma)
        self.features.fill_(1 / self.in_shape[0])
        self._start_bias(mean_activity)

    def _ranges(self) -> Mapping[str, Change]:
        return {"mu": within_map, "sigma": at_least_zero}

    def _clamped(self, write: bool = False) -> tuple[Tensor, Tensor]:
        return self._in_range("mu", write), self._in_range("sigma", write)


class UltraSparse(ChannelPointReadout):
    """Each neuron reads a few values, at points (x, y, channel) drawn from Gaussians, and weights them.

    Drop-in for ``UltraSparse`` of neuralpredictors: same constructor, state_dict keys and shapes, forward arguments.
    Differences from it: docs/layers.md.

    Args:
        in_shape: (C, H, W) of the features.
        outdims: number of neurons N.
        bias: whether to add a bias per neuron.
        init_mu_range: means start uniform in [-init_mu_range, init_mu_range], in (0, 1]; the channels of
            ``shared_mean`` start uniform in [-1, 1].
        init_sigma_range: standard deviations start uniform in [0, init_sigma_range]; > 0.
        batch_sample: draw positions for each image; otherwise once for all images of a batch.
        num_filters: number of points F of each neuron, >= 1.
        shared_mean: the points of a neuron have the same means in x and y, and the same standard deviations.
        align_corners: as in ``torch.nn.functional.grid_sample``.
        fixed_sigma: standard deviations start at exactly ``init_sigma_range``.
        mean_activity: [N], initial bias.
        feature_reg_weight: factor of the penalty, which is on the features and on the standard deviations; default 1.
        gamma_readout: deprecated name of ``feature_reg_weight``.
        frame_sample: draw positions for each frame of a video; otherwise once for all frames of a clip.
        **kwargs: accepted and ignored, as neuralpredictors does.

    Raises:
        ValueError: an argument out of range; in forward, features that are not of ``in_shape``.

    Shapes of the parameters: ``mu`` and ``sigma`` (1, 1, F N, 1, 3), (x, y, channel) in [-1, 1], all neurons'
    first points, then the second, ...; with ``shared_mean`` ``mu_xy`` and ``sigma_xy`` (1, 1, N, 1, 2), ``mu_ch`` and
    ``sigma_ch`` (1, 1, F N, 1, 1); ``features`` (1, 1, N, F); ``bias`` (N).
    """

    mu: nn.Parameter
    sigma: nn.Parameter
    mu_xy: nn.Parameter
    mu_ch: nn.Parameter
    sigma_xy: nn.Parameter
    sigma_ch: nn.Parameter

    def __init__(
        self,
        in_shape: Sequence[int],
        outdims: int,
        bias: bool,
        init_mu_range: float,
        init_sigma_range: float,
        batch_sample: bool = True,
        num_filters: int = 1,
        shared_mean: bool = False,
        align_corners: bool = True,
        fixed_sigma: bool = False,
        mean_activity: Tensor | None = None,
        feature_reg_weight: float | None = None,
        gamma_readout: float | None = None,
        frame_sample: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            in_shape,
            outdims,
            init_mu_range=init_mu_range,
            init_sigma_range=init_sigma_range,
            batch_sample=batch_sample,
            frame_sample=frame_sample,
            align_corners=align_corners,
            fixed_sigma=fixed_sigma,
            mean_activity=mean_activity,
        )
        self.feature_reg_weight = self.resolve_deprecated_gamma_readout(feature_reg_weight, gamma_readout, default=1.0)
        if num_filters < 1:
            raise ValueError(f"num_filters: want at least 1, got {num_filters}")
        self.num_filters, self.shared_mean = num_filters, shared_mean
        points = outdims * num_filters
        shapes = {"mu_xy": (outdims, 2), "mu_ch": (points, 1), "sigma_xy": (outdims, 2), "sigma_ch": (points, 1)}
        for name, (count, numbers) in (shapes if shared_mean else {"mu": (points, 3), "sigma": (points, 3)}).items():
            self.register_parameter(name, nn.Parameter(torch.empty(1, 1, count, 1, numbers)))
        self.features = nn.Parameter(torch.empty(1, 1, outdims, num_filters))
        self._make_bias(bias)
        self.initialize(mean_activity)

    @torch.no_grad()
    def initialize(self, mean_activity: Tensor | None = None) -> None:
        """Draw new means and sigma, set features to 1 / C and the bias to ``mean_activity`` or zero."""
        if self.shared_mean:
            self.mu_ch.uniform_(-1, 1)
            self.mu_xy.uniform_(-self.init_mu_range, self.init_mu_range)
            self._start_sigma(self.sigma_ch, self.sigma_xy)
        else:
            self.mu.uniform_(-self.init_mu_range, self.init_mu_range)
            self._start_sigma(self.sigma)
        self.features.fill_(1 / self.in_shape[0])
        self._start_bias(mean_activity)

    def _ranges(self) -> Mapping[str, Change]:
        names = (("mu_xy", "mu_ch"), ("sigma_xy", "sigma_ch")) if self.shared_mean else (("mu",), ("sigma",))
        return dict.fromkeys(names[0], within_map) | dict.fromkeys(names[1], at_least_zero)

    def _clamped(self, write: bool = False) -> tuple[Tensor, Tensor]:
        if not self.shared_mean:
            return self._in_range("mu", write), self._in_range("sigma", write)
        place = (1, 1, self.num_filters, 1, 1)
        mu = self._in_range("mu_xy", write).repeat(place), self._in_range("mu_ch", write)
        sigma = self._in_range("sigma_xy", write).repeat(place), self._in_range("sigma_ch", write)
        return torch.cat(mu, -1), torch.cat(sigma, -1)

    def variance_l1(self, reduction: Reduction = "sum", average: bool | None = None) -> Tensor:
        """L1 norm of the standard deviations of all points."""
        return self.apply_reduction(self._clamped()[1], reduction=reduction, average=average)

    def regularizer(self, reduction: Reduction = "sum", average: bool | None = None) -> Tensor:
        """``feature_l1`` plus ``variance_l1``, times ``feature_reg_weight``.

        Raises:
            ValueError: for any other reduction than "sum" and "mean".
        """
        reduction = self._sum_or_mean(reduction, average)
        return (self.feature_l1(reduction) + self.variance_l1(reduction)) * self.feature_reg_weight
