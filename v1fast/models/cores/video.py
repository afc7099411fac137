"""Cores for videos: convolutions over space and time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from v1fast import _choices
from v1fast._config import Configured
from v1fast._laplace import Laplace
from v1fast.models.activations import AdaptiveELU
from v1fast.models.layers import Bias3d, Scale3d, Size, pair
from v1fast.models.regularizers import REGULARIZERS, LaplacePenalty, TemporalPenalty

Triple = int | tuple[int, int, int]
"""One number for all of (time, height, width), or three."""

_NONLINEARITIES: dict[str, Any] = {
    "elu": lambda x, y: nn.ELU(),
    "softplus": lambda x, y: nn.Softplus(),
    "relu": lambda x, y: nn.ReLU(),
    "adaptive_elu": AdaptiveELU,
}


def _triple(size: Triple) -> tuple[int, int, int]:
    return (size, size, size) if isinstance(size, int) else (size[0], size[1], size[2])


def _each(name: str, value: Any, count: int) -> list[Any]:
    values = list(value) if isinstance(value, Iterable) else [value] * count
    if len(values) != count:
        raise ValueError(f"{name}: want one value or a list of {count}, got a list of {len(values)}")
    return values


class _VideoCore(Configured, ABC):
    """What :class:`Basic3dCore` and :class:`Factorized3dCore` share: norms, nonlinearities, penalties."""

    def __init__(
        self,
        kernel: tuple[int, int],
        *,
        layers: int,
        hidden_channels: int | Iterable[int],
        stride: int | Iterable[int],
        gamma_input_spatial: float,
        gamma_input_temporal: float,
        hidden_nonlinearities: str,
        shift: tuple[float, float],
        bias: bool,
        batch_norm: bool,
        batch_norm_scale: bool,
        independent_bn_bias: bool,
        momentum: float,
        padding: bool,
        laplace_padding: int | None,
        input_regularizer: str,
        final_nonlin: bool,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers: want 1 or more, got {layers}")
        self.layers, self.hidden_channels = layers, _each("hidden_channels", hidden_channels, layers)
        self.stride = _each("stride", stride, layers)
        self.gamma_input_spatial, self.gamma_input_temporal = gamma_input_spatial, gamma_input_temporal
        self.bias, self.batch_norm, self.batch_norm_scale = bias, batch_norm, batch_norm_scale
        self.independent_bn_bias, self.momentum, self.padding = independent_bn_bias, momentum, padding
        self.final_nonlinearity, self._shift = final_nonlin, shift
        self._make_nonlinearity = _choices.pick("hidden_nonlinearities", hidden_nonlinearities, _NONLINEARITIES)
        penalty = _choices.pick("input_regularizer", input_regularizer, REGULARIZERS)
        self._input_weight_regularizer: LaplacePenalty = penalty(kernel, laplace_padding)
        # The defaults of neuralpredictors' penalties: means, or a ratio of sums.
        self._mean_roughness = input_regularizer in ("LaplaceL1", "LaplaceL2")
        self.temporal_regularizer = TemporalPenalty()
        self.features = nn.Sequential()

    def _add_layer(self, index: int, convolutions: dict[str, nn.Module]) -> None:
        layer: OrderedDict[str, nn.Module] = OrderedDict(convolutions)
        layer.update(self._normalization(self.hidden_channels[index]))
        if index < self.layers - 1 or self.final_nonlinearity:
            layer["nonlin"] = self._make_nonlinearity(*self._shift)
        self.features.add_module(f"layer{index}", nn.Sequential(layer))

    def _normalization(self, channels: int) -> dict[str, nn.Module]:
        if not self.batch_norm:
            return {}
        affine = self.independent_bn_bias or (self.bias and self.batch_norm_scale)
        modules: dict[str, nn.Module] = {"norm": nn.BatchNorm3d(channels, momentum=self.momentum, affine=affine)}
        if not affine and self.bias:
            modules["bias"] = Bias3d(channels)
        elif not affine and self.batch_norm_scale:
            modules["scale"] = Scale3d(channels)
        return modules

    def _padding(self, kernel: tuple[int, int]) -> tuple[int, int, int]:
        return (0, kernel[0] // 2, kernel[1] // 2) if self.padding else (0, 0, 0)

    def initialize(self) -> None:
        """Draw the weights of all convolutions (Glorot & Bengio 2010, normal) and set their biases to 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Videos [B, input_channels, T, H, W] -> feature maps [B, outchannels, T', H', W']."""
        maps: Tensor = self.features(x)
        return maps

    def _roughness(self, filters: Tensor) -> Tensor:
        return self._input_weight_regularizer(filters, avg=self._mean_roughness)

    @abstractmethod
    def laplace_spatial(self) -> Tensor:
        """Roughness of the first layer's filters in space, by ``input_regularizer``; a scalar."""

    @abstractmethod
    def laplace_temporal(self) -> Tensor:
        """Roughness of the first layer's filters in time; a scalar."""

    def regularizer(self) -> tuple[Tensor, Tensor]:
        """The penalties in space and in time, each times its gamma: scalars to add to the loss."""
        return self.gamma_input_spatial * self.laplace_spatial(), self.gamma_input_temporal * self.laplace_temporal()

    @property
    def outchannels(self) -> int:
        """Number of channels that :meth:`forward` returns."""
        return int(self.hidden_channels[-1])

    @property
    def out_channels(self) -> int:
        """Another name of ``outchannels``."""
        return self.outchannels


class Basic3dCore(_VideoCore):
    """Stacked convolutions over space and time; a drop-in for ``Basic3dCore`` of neuralpredictors' main branch.

    Nothing is padded in time: each layer takes (kernel - 1) * dilation frames off. neuralpredictors fails with
    ``hidden_nonlinearities="adaptive_elu"`` and ignores ``final_nonlin=False`` after the first layer; here both work.

    Args:
        input_channels: Channels of the videos.
        hidden_channels: Channels of each layer's maps: one number, or a list.
        input_kernel: (time, height, width) of the first layer's filters, or one number for all.
        hidden_kernel: The same for the other layers.
        layers: Number of layers.
        stride: In space: one number, or a list.
        gamma_input_spatial: Weight of :meth:`laplace_spatial` in :meth:`regularizer`.
        gamma_input_temporal: Weight of :meth:`laplace_temporal` in :meth:`regularizer`.
        hidden_nonlinearities: "elu", "softplus", "relu" or "adaptive_elu".
        x_shift, y_shift: Of "adaptive_elu": ``elu(x - x_shift) + y_shift``.
        bias: Whether the first convolution, and norms that have no affine map, have a bias.
        batch_norm: Whether a batch norm follows each convolution.
        padding: Whether to pad by half the kernel in space.
        batch_norm_scale: Whether norms have a scale, if ``independent_bn_bias`` is False.
        momentum: Of the batch norms.
        laplace_padding: Zeros around the filters in the spatial penalty, pixels; None is 1.
        input_regularizer: Spatial penalty, see :mod:`v1fast.models.regularizers`.
        cuda: Accepted and ignored: use ``.to(device)``.
        final_nonlin: Whether the last layer has a nonlinearity.
        independent_bn_bias: Whether norms always have a scale and a bias.
        spatial_dilation, temporal_dilation: Of the first layer.
        hidden_spatial_dilation, hidden_temporal_dilation: Of the other layers: one number, or a list.

    Raises:
        ValueError: If an argument is out of its range or a list has not one entry per layer.

    >>> import torch
    >>> core = Basic3dCore(1, 8, input_kernel=(5, 7, 7), hidden_kernel=(3, 5, 5), layers=2, padding=True)
    >>> core(torch.randn(2, 1, 20, 24, 32)).shape
    torch.Size([2, 8, 14, 24, 32])
    """

    def __init__(
        self,
        input_channels: int,
        hidden_channels: int | Iterable[int],
        input_kernel: Triple,
        hidden_kernel: Triple,
        layers: int = 3,
        stride: int | Iterable[int] = 1,
        gamma_input_spatial: float = 0,
        gamma_input_temporal: float = 0,
        hidden_nonlinearities: str = "elu",
        x_shift: float = 0,
        y_shift: float = 0,
        bias: bool = True,
        batch_norm: bool = True,
        padding: bool = False,
        batch_norm_scale: bool = True,
        momentum: float = 0.01,
        laplace_padding: int | None = None,
        input_regularizer: str = "LaplaceL2norm",
        cuda: bool = False,
        final_nonlin: bool = True,
        independent_bn_bias: bool = True,
        spatial_dilation: int = 1,
        temporal_dilation: int = 1,
        hidden_spatial_dilation: int | Iterable[int] = 1,
        hidden_temporal_dilation: int | Iterable[int] = 1,
    ) -> None:
        self.input_kernel, self.hidden_kernel = _triple(input_kernel), _triple(hidden_kernel)
        super().__init__(
            self.input_kernel[1:],
            layers=layers,
            hidden_channels=hidden_channels,
            stride=stride,
            gamma_input_spatial=gamma_input_spatial,
            gamma_input_temporal=gamma_input_temporal,
            hidden_nonlinearities=hidden_nonlinearities,
            shift=(x_shift, y_shift),
            bias=bias,
            batch_norm=batch_norm,
            batch_norm_scale=batch_norm_scale,
            independent_bn_bias=independent_bn_bias,
            momentum=momentum,
            padding=padding,
            laplace_padding=laplace_padding,
            input_regularizer=input_regularizer,
            final_nonlin=final_nonlin,
        )
        self.input_channels = input_channels
        space = [spatial_dilation, *_each("hidden_spatial_dilation", hidden_spatial_dilation, layers)]
        time = [temporal_dilation, *_each("hidden_temporal_dilation", hidden_temporal_dilation, layers)]
        before = [input_channels, *self.hidden_channels]
        for i in range(layers):
            kernel = self.input_kernel if i == 0 else self.hidden_kernel
            convolution = nn.Conv3d(
                before[i],
                self.hidden_channels[i],
                kernel,
                stride=(1, self.stride[i], self.stride[i]),
                dilation=(time[i], space[i], space[i]),
                padding=self._padding(kernel[1:]),
                bias=bias or i > 0,
            )
            self._add_layer(i, {"conv" if i == 0 else f"conv_{i}": convolution})
        self.initialize()

    @property
    def _first(self) -> Tensor:
        convolution: Any = self.features[0].get_submodule("conv")
        weight: Tensor = convolution.weight
        return weight

    def laplace_spatial(self) -> Tensor:
        """Roughness of the first layer's filters in space, summed over their frames; a scalar."""
        return torch.stack([self._roughness(w) for w in self._first.unbind(2)]).sum()

    def laplace_temporal(self) -> Tensor:
        """Roughness of the first layer's filters in time, summed over their pixels; a scalar."""
        pixels = self._first.flatten(3).unbind(3)
        return torch.stack([self.temporal_regularizer(w) for w in pixels]).sum()

    def get_kernels(self) -> list[tuple[int, int, int]]:
        """(time, height, width) of each layer's filters."""
        return [self.input_kernel, *[self.hidden_kernel] * (self.layers - 1)]


class Factorized3dCore(_VideoCore):
    """:class:`Basic3dCore` in which each convolution is one over space, then one over time.

    Höfling et al., "A chromatic feature detector in the retina signals visual context changes", eLife 2024, and the
    Sensorium 2023 baseline use such cores. A drop-in for ``Factorized3dCore`` of neuralpredictors' main branch.

    Args:
        input_channels: Channels of the videos.
        hidden_channels: Channels of each layer's maps: one number, or a list.
        spatial_input_kernel: Of the first layer, pixels: (height, width) or one number.
        temporal_input_kernel: Of the first layer, frames.
        spatial_hidden_kernel: Of the other layers, pixels.
        temporal_hidden_kernel: Of the other layers, frames.
        final_nonlin: Whether the last layer has a nonlinearity.
        layers: Number of layers.
        stride: In space: one number, or a list.
        x_shift, y_shift: Of "adaptive_elu": ``elu(x - x_shift) + y_shift``.
        gamma_input_spatial: Weight of :meth:`laplace_spatial` in :meth:`regularizer`.
        gamma_input_temporal: Weight of :meth:`laplace_temporal` in :meth:`regularizer`.
        hidden_nonlinearities: "elu", "softplus", "relu" or "adaptive_elu".
        bias: Whether convolutions have a bias.
        batch_norm, padding, batch_norm_scale, independent_bn_bias, momentum: See :class:`Basic3dCore`.
        laplace_padding, input_regularizer, cuda: See :class:`Basic3dCore`.
        spatial_dilation, temporal_dilation: Of the first layer.
        hidden_spatial_dilation, hidden_temporal_dilation: Of the other layers: one number, or a list.

    Raises:
        ValueError: If an argument is out of its range or a list has not one entry per layer.

    >>> import torch
    >>> core = Factorized3dCore(1, 8, 7, 5, 5, 3, final_nonlin=True, layers=2, padding=True)
    >>> core(torch.randn(2, 1, 20, 24, 32)).shape
    torch.Size([2, 8, 14, 24, 32])
    """

    def __init__(
        self,
        input_channels: int,
        hidden_channels: int | Iterable[int],
        spatial_input_kernel: Size,
        temporal_input_kernel: int,
        spatial_hidden_kernel: Size,
        temporal_hidden_kernel: int,
        final_nonlin: bool,
        layers: int = 3,
        stride: int | Iterable[int] = 1,
        x_shift: float = 0.0,
        y_shift: float = 0.0,
        gamma_input_spatial: float = 0,
        gamma_input_temporal: float = 0,
        hidden_nonlinearities: str = "elu",
        bias: bool = True,
        batch_norm: bool = True,
        padding: bool = False,
        batch_norm_scale: bool = True,
        independent_bn_bias: bool = True,
        momentum: float = 0.01,
        laplace_padding: int | None = None,
        input_regularizer: str = "LaplaceL2norm",
        cuda: bool = False,
        spatial_dilation: int = 1,
        temporal_dilation: int = 1,
        hidden_spatial_dilation: int | Iterable[int] = 1,
        hidden_temporal_dilation: int | Iterable[int] = 1,
    ) -> None:
        self.spatial_input_kernel, self.temporal_input_kernel = pair(spatial_input_kernel), temporal_input_kernel
        self.spatial_hidden_kernel, self.temporal_hidden_kernel = pair(spatial_hidden_kernel), temporal_hidden_kernel
        super().__init__(
            self.spatial_input_kernel,
            layers=layers,
            hidden_channels=hidden_channels,
            stride=stride,
            gamma_input_spatial=gamma_input_spatial,
            gamma_input_temporal=gamma_input_temporal,
            hidden_nonlinearities=hidden_nonlinearities,
            shift=(x_shift, y_shift),
            bias=bias,
            batch_norm=batch_norm,
            batch_norm_scale=batch_norm_scale,
            independent_bn_bias=independent_bn_bias,
            momentum=momentum,
            padding=padding,
            laplace_padding=laplace_padding,
            input_regularizer=input_regularizer,
            final_nonlin=final_nonlin,
        )
        self.input_channels = input_channels
        space = [spatial_dilation, *_each("hidden_spatial_dilation", hidden_spatial_dilation, layers - 1)]
        time = [temporal_dilation, *_each("hidden_temporal_dilation", hidden_temporal_dilation, layers - 1)]
        before = [input_channels, *self.hidden_channels]
        for i, (frames, height, width) in enumerate(self.get_kernels()):
            channels, suffix = self.hidden_channels[i], f"_{i}" if i else ""
            # neuralpredictors' hidden layers take the stride of the layer before.
            stride_here = self.stride[max(i - 1, 0)]
            spatial = nn.Conv3d(
                before[i],
                channels,
                (1, height, width),
                stride=(1, stride_here, stride_here),
                dilation=(1, space[i], space[i]),
                padding=self._padding((height, width)),
                bias=bias,
            )
            temporal = nn.Conv3d(channels, channels, (frames, 1, 1), dilation=(time[i], 1, 1), bias=bias)
            self._add_layer(i, {f"conv_spatial{suffix}": spatial, f"conv_temporal{suffix}": temporal})
        self.initialize()

    def _weight(self, name: str) -> Tensor:
        convolution: Any = self.features[0].get_submodule(name)
        weight: Tensor = convolution.weight
        return weight

    def laplace_spatial(self) -> Tensor:
        """Roughness of the first layer's spatial filters, by ``input_regularizer``; a scalar."""
        return self._roughness(self._weight("conv_spatial")[:, :, 0])

    def laplace_temporal(self) -> Tensor:
        """Roughness of the first layer's temporal filters; a scalar."""
        return self.temporal_regularizer(self._weight("conv_temporal")[..., 0, 0])

    def get_kernels(self) -> list[tuple[int, int, int]]:
        """(time, height, width) of each layer's filters."""
        hidden = (self.temporal_hidden_kernel, *self.spatial_hidden_kernel)
        return [(self.temporal_input_kernel, *self.spatial_input_kernel), *[hidden] * (self.layers - 1)]


class STSeparableBatchConv3d(nn.Module):
    """A convolution whose filter for each pair of channels is a spatial filter times a smooth temporal one.

    The temporal filter is a sum of sines and cosines, as in Höfling et al. (eLife 2024). A drop-in for openretina's
    class of this name, as its cores use it.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels of the result.
        temporal_kernel_size: Frames T, at least ``subsampling_factor``.
        spatial_kernel_size: Pixels, in both directions.
        padding: Zeros around the video, or "same".
        bias: Whether to add a bias per channel.
        subsampling_factor: The filter has ``T // subsampling_factor`` sines and as many cosines.

    Raises:
        ValueError: If ``temporal_kernel_size`` is less than ``subsampling_factor``.

    Shapes: ``sin_weights``, ``cos_weights`` (out, in, T // subsampling_factor); ``weight_spatial`` (out, in, 1, H, W);
    ``bias`` (out); buffer ``_log_speed_default`` (1): logarithm of the speed at which time runs.
    """

    _log_speed_default: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temporal_kernel_size: int,
        spatial_kernel_size: int,
        padding: Any = 0,
        bias: bool = True,
        subsampling_factor: int = 3,
    ) -> None:
        super().__init__()
        if temporal_kernel_size < subsampling_factor:
            raise ValueError(
                f"temporal_kernel_size: want at least subsampling_factor = {subsampling_factor}, "
                f"got {temporal_kernel_size}"
            )
        self.temporal_kernel_size, self.padding = temporal_kernel_size, padding
        waves = (out_channels, in_channels, temporal_kernel_size // subsampling_factor)
        self.sin_weights = nn.Parameter(0.01 * torch.randn(waves))
        self.cos_weights = nn.Parameter(0.01 * torch.randn(waves))
        size = spatial_kernel_size
        self.weight_spatial = nn.Parameter(0.01 * torch.randn(out_channels, in_channels, 1, size, size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.register_buffer("_log_speed_default", torch.zeros(1))

    @property
    def weight_temporal(self) -> Tensor:
        """The temporal filters [out, in, T]."""
        frames, speed = self.temporal_kernel_size, self._log_speed_default.exp()
        time = torch.arange(frames, dtype=speed.dtype, device=speed.device) - frames
        phase = speed * time * (2 * math.pi / frames)
        waves = torch.arange(self.sin_weights.shape[2], dtype=speed.dtype, device=speed.device)
        angles = waves.unsqueeze(1) * phase
        # Fades out what lies further back than 95 % of the filter.
        fade = torch.sigmoid(time + int(0.95 * frames) / speed)
        return self.sin_weights @ (fade * angles.sin()) + self.cos_weights @ (fade * angles.cos())

    @property
    def weight(self) -> Tensor:
        """The filters [out, in, T, H, W]."""
        return self.weight_temporal[..., None, None] * self.weight_spatial

    def forward(self, x: Tensor) -> Tensor:
        """Videos [B, in_channels, T, H, W] -> [B, out_channels, T', H', W']."""
        return F.conv3d(x, self.weight, self.bias, padding=self.padding)


class _STSeparable(nn.Module):
    """A spatial convolution, then one over time. Keys: ``space_conv.weight``, ``time_conv.weight``."""

    _log_speed_default: Tensor

    def __init__(self, in_channels: int, out_channels: int, frames: int, size: int, padding: Any, bias: bool) -> None:
        super().__init__()
        self.register_buffer("_log_speed_default", torch.zeros(1))
        self.space_conv = nn.Conv3d(in_channels, out_channels, (1, size, size), padding=padding, bias=bias)
        self.time_conv = nn.Conv3d(out_channels, out_channels, (frames, 1, 1), padding=padding, bias=bias)

    @property
    def weight_spatial(self) -> Tensor:
        """The spatial filters [out, in, 1, H, W]."""
        return self.space_conv.weight

    def forward(self, x: Tensor) -> Tensor:
        """Videos [B, in_channels, T, H, W] -> [B, out_channels, T', H', W']."""
        out: Tensor = self._log_speed_default.exp() * self.time_conv(self.space_conv(x))
        return out


class _Full(nn.Module):
    """One convolution over space and time. Key: ``conv.weight``."""

    def __init__(self, in_channels: int, out_channels: int, frames: int, size: int, padding: Any, bias: bool) -> None:
        super().__init__()
        self.register_buffer("_log_speed_default", torch.zeros(1))
        self.conv = nn.Conv3d(in_channels, out_channels, (frames, size, size), padding=padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Videos [B, in_channels, T, H, W] -> [B, out_channels, T', H', W']."""
        out: Tensor = self.conv(x)
        return out


def _separable_waves(channels: int, out: int, frames: int, size: int, padding: Any) -> nn.Module:
    return STSeparableBatchConv3d(channels, out, frames, size, padding=padding, bias=False)


_CONVOLUTIONS: dict[str, Any] = {
    "custom_separable": _separable_waves,
    "separable": lambda i, o, frames, size, padding: _STSeparable(i, o, frames, size, padding, False),
    "full": lambda i, o, frames, size, padding: _Full(i, o, frames, size, padding, False),
    "time_independent": lambda i, o, frames, size, padding: _Full(i, o, 1, size, padding, False),
}


class SimpleCoreWrapper(Configured):
    """The core of openretina's models: convolutions over space and time, each with a norm, a bias and an ELU.

    Höfling et al., "A chromatic feature detector in the retina signals visual context changes", eLife 2024. A drop-in
    for ``SimpleCoreWrapper`` of openretina 1.1: same constructor and state_dict keys. There the convolution types
    "full" and "time_independent" fail; here they work. Weighting colours is not available.

    Args:
        channels: Channels of the videos, then of each layer's maps.
        temporal_kernel_sizes: Of each layer, frames.
        spatial_kernel_sizes: Of each layer, pixels.
        gamma_input: Weight of :meth:`spatial_laplace` in :meth:`regularizer`.
        gamma_temporal: Weight of :meth:`temporal_smoothness`.
        gamma_in_sparse: Weight of :meth:`group_sparsity_0`.
        gamma_hidden: Weight of :meth:`group_sparsity`.
        dropout_rate: Share of maps that training sets to 0.
        cut_first_n_frames: Frames that are cut off the maps.
        maxpool_every_n_layers: Every so many layers, from the first, end in a 2 x 2 max-pooling; None: none does.
        downsample_input_kernel_size: (time, height, width) of an average pooling of the video; None: no pooling.
        input_padding: Of the first layer: True ("same"), False (0), or a number of zeros.
        hidden_padding: Of the other layers.
        convolution_type: "custom_separable" (:class:`STSeparableBatchConv3d`), "separable" (a convolution over space,
            then one over time), "full", or "time_independent".
        n_neurons_dict: Accepted and ignored, as in openretina.

    Raises:
        ValueError: If lists do not fit or ``convolution_type`` is unknown.

    >>> import torch
    >>> core = SimpleCoreWrapper((2, 8, 8), (9, 3), (5, 3), 0, 0, 0, 0, cut_first_n_frames=4, input_padding=True)
    >>> core(torch.randn(1, 2, 20, 18, 16)).shape
    torch.Size([1, 8, 16, 18, 16])
    """

    def __init__(
        self,
        channels: Sequence[int],
        temporal_kernel_sizes: Sequence[int],
        spatial_kernel_sizes: Sequence[int],
        gamma_input: float,
        gamma_temporal: float,
        gamma_in_sparse: float,
        gamma_hidden: float,
        dropout_rate: float = 0.0,
        cut_first_n_frames: int = 30,
        maxpool_every_n_layers: int | None = None,
        downsample_input_kernel_size: tuple[int, int, int] | None = None,
        input_padding: Any = False,
        hidden_padding: Any = True,
        convolution_type: str = "custom_separable",
        n_neurons_dict: Any = None,
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ValueError(f"channels: want those of the video and of at least one layer, got {tuple(channels)}")
        layers = len(channels) - 1
        for name, given in (("temporal", temporal_kernel_sizes), ("spatial", spatial_kernel_sizes)):
            if len(given) != layers:
                raise ValueError(f"{name}_kernel_sizes: want {layers}, one per layer, got {len(given)}")
        make = _choices.pick("convolution_type", convolution_type, _CONVOLUTIONS)
        self.convolution_type = convolution_type
        self.gamma_input, self.gamma_temporal = gamma_input, gamma_temporal
        self.gamma_in_sparse, self.gamma_hidden = gamma_in_sparse, gamma_hidden
        self._cut_first_n_frames, self._downsample = cut_first_n_frames, downsample_input_kernel_size
        self._input_weights_regularizer_spatial = _SpatialPenalty()
        self.features = nn.Sequential()
        for i in range(layers):
            padding = input_padding if i == 0 else hidden_padding
            padding = {True: "same", False: 0}[padding] if isinstance(padding, bool) else padding
            layer: OrderedDict[str, nn.Module] = OrderedDict()
            layer["conv"] = make(
                channels[i], channels[i + 1], temporal_kernel_sizes[i], spatial_kernel_sizes[i], padding
            )
            layer["norm"] = nn.BatchNorm3d(channels[i + 1], momentum=0.1)
            layer["bias"] = Bias3d(channels[i + 1])
            layer["nonlin"] = nn.ELU()
            if dropout_rate > 0:
                layer["dropout"] = nn.Dropout3d(dropout_rate)
            if maxpool_every_n_layers is not None and i % maxpool_every_n_layers == 0:
                layer["pool"] = nn.MaxPool3d((1, 2, 2))
            self.features.add_module(f"layer{i}", nn.Sequential(layer))

    def forward(self, x: Tensor) -> Tensor:
        """Videos [B, channels[0], T, H, W] -> feature maps [B, channels[-1], T', H', W']."""
        if self._downsample is not None:
            x = F.avg_pool3d(x, self._downsample)
        maps: Tensor = self.features(x)
        return maps[:, :, self._cut_first_n_frames :]

    def _convolution(self, index: int) -> Any:
        convolution = self.features[index].get_submodule("conv")
        if not hasattr(convolution, "weight_spatial"):
            raise ValueError(f"convolution_type: want a separable one for this penalty, got {self.convolution_type!r}")
        return convolution

    def spatial_laplace(self) -> Tensor:
        """Roughness of the first layer's spatial filters: ``sum (L w)^2 / (sum w^2 + 1e-6)``; a scalar."""
        return self._input_weights_regularizer_spatial(self._convolution(0).weight_spatial[:, :, 0])

    def temporal_smoothness(self) -> Tensor:
        """A penalty on fast temporal filters; a scalar.

        "custom_separable": squared weights of sines and cosines, times squared factors that rise from .1 to .9 with
        frequency, divided by the number of filters, summed over layers. "separable": the sum of the second differences
        of the first layer's temporal filters, as openretina has it.
        """
        if self.convolution_type == "separable":
            weight = self._convolution(0).time_conv.weight.flatten(0, 1)[..., 0, 0]
            return (2 * weight[:, 1:-1] - weight[:, :-2] - weight[:, 2:]).sum()
        penalties = []
        for i in range(len(self.features)):
            convolution = self._convolution(i)
            waves = convolution.sin_weights.shape[2]
            factor = torch.linspace(0.1, 0.9, waves, device=convolution.sin_weights.device)
            squares = convolution.sin_weights.square() + convolution.cos_weights.square()
            penalties.append((squares * factor.square()).sum() / len(convolution.sin_weights))
        return torch.stack(penalties).sum()

    def _sparsity(self, index: int) -> Tensor:
        squares = self._convolution(index).weight_spatial.square().sum((2, 3, 4))  # [out, in]
        return (squares.sqrt().sum(1) / (1e-8 + squares.sum(1)).sqrt()).sum()

    def group_sparsity_0(self) -> Tensor:
        """How many input channels each filter uses, summed over the filters of all layers; a scalar."""
        return torch.stack([self._sparsity(i) for i in range(len(self.features))]).sum()

    def group_sparsity(self) -> Tensor:
        """The same, without the first layer."""
        if len(self.features) == 1:
            return torch.zeros(())
        return torch.stack([self._sparsity(i) for i in range(1, len(self.features))]).sum()

    def regularizer(self) -> Tensor | float:
        """All penalties times their gammas: a scalar to add to the loss."""
        terms = (
            (self.gamma_input, self.spatial_laplace),
            (self.gamma_hidden, self.group_sparsity),
            (self.gamma_temporal, self.temporal_smoothness),
            (self.gamma_in_sparse, self.group_sparsity_0),
        )
        return sum((gamma * term() for gamma, term in terms if gamma), start=0.0)

    @property
    def outchannels(self) -> int:
        """Number of channels that :meth:`forward` returns."""
        norm: Any = self.features[-1].get_submodule("norm")
        return int(norm.num_features)


class _SpatialPenalty(nn.Module):
    """``sum (L w)^2 / (sum w^2 + 1e-6)``. Key: ``laplace.filter``."""

    def __init__(self) -> None:
        super().__init__()
        self.laplace = Laplace(0)

    def forward(self, weight: Tensor) -> Tensor:
        rough: Tensor = self.laplace(weight)
        return rough.square().sum() / (weight.square().sum() + 1e-6)
