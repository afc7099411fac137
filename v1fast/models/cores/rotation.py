"""Rotation-equivariant cores: each filter is applied in several orientations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import eval_genlaguerre
from torch import Tensor, nn
from torch.nn import functional as F

from v1fast.models.cores.stacked import Stacked2dCore
from v1fast.models.layers import Size, pair


def _orders(ranks: int) -> Iterator[tuple[int, int]]:
    """(angular order m, radial order) of the Hermite functions of rank 0, 1, ...; one with m = 0, pairs with m > 0."""
    for rank in range(ranks):
        for m in range(rank % 2, rank + 1, 2):
            yield m, (rank - m) // 2


def hermite_functions(ranks: int, size: int, extent: float) -> tuple[NDArray[np.float64], list[int]]:
    """Two-dimensional Hermite functions in polar form, sampled on a square grid.

    ``(-1)^n exp(-r^2 / 4) r^m L_n^m(r^2 / 2)`` times 1, or times cos(m theta) and sin(m theta), divided by the L2 norm
    on the grid. The filters of Victor, Mechler, Repucci, Purpura & Sharpee, "Responses of V1 neurons to two-dimensional
    Hermite functions", J. Neurophysiol. 2006.

    Args:
        ranks: number of ranks m + 2n, from 0.
        size: points of the grid in each direction, at least 1.
        extent: half the width of the square.

    Returns:
        The functions [ranks (ranks + 1) / 2, size, size]; and the angular order of each, in which two neighbours of the
        same order m > 0 are cosine and sine.
    """
    end = extent * (1 - 1 / size)
    axis = np.linspace(-end, end, size)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    square, angle = x**2 + y**2, np.arctan2(y, x)
    functions, orders = [], []
    for m, n in _orders(ranks):
        radial = (-1) ** n * np.exp(-square / 4) * square ** (m / 2) * eval_genlaguerre(n, m, square / 2)
        for wave in (np.cos, np.sin)[: 1 if m == 0 else 2]:
            function = radial * wave(m * angle)
            functions.append(function / np.linalg.norm(function))
            orders.append(m)
    return np.stack(functions), orders


def rotation(orders: list[int], angle: float) -> NDArray[np.float64]:
    """The matrix [K, K] that turns coefficients of :func:`hermite_functions` into those of the rotated filter."""
    matrix = np.eye(len(orders))
    k = 0
    while k < len(orders):
        if orders[k] == 0:
            k += 1
            continue
        cos, sin = math.cos(orders[k] * angle), math.sin(orders[k] * angle)
        matrix[k : k + 2, k : k + 2] = [[cos, sin], [-sin, cos]]
        k += 2
    return matrix


class _Rotations(nn.Module):
    """The buffers of a :class:`HermiteConv2d`, under neuralpredictors' keys: ``H``, ``Rs.0``, ``Rs.1``, ..."""

    H: Tensor

    def __init__(self, filter_size: int, upsampling: int, rotations: int) -> None:
        super().__init__()
        functions, orders = hermite_functions(filter_size, filter_size * upsampling, 2 * math.sqrt(filter_size))
        self.register_buffer("H", torch.from_numpy(functions).to(torch.get_default_dtype()))
        self.Rs = nn.Module()
        for i in range(rotations):
            matrix = torch.from_numpy(rotation(orders, 2 * math.pi * i / rotations))
            self.Rs.register_buffer(str(i), matrix.to(torch.get_default_dtype()))

    def matrices(self) -> Tensor:
        """The rotations, [rotations, K, K]."""
        return torch.stack(list(self.Rs.buffers()))


class HermiteConv2d(nn.Module):
    """A convolution whose filters are sums of Hermite functions, each filter in several orientations.

    Ecker et al., "A rotation-equivariant convolutional neural network model of primary visual cortex", ICLR 2019.

    Args:
        input_features: Channels that come in. After the first layer: those of all rotations.
        output_features: Filters; the result has ``num_rotations`` times as many channels, rotation by rotation.
        filter_size: Of the kernel, pixels; also the number of ranks of Hermite functions.
        padding: Zeros on each side, pixels.
        stride: Pixels.
        num_rotations: Number of orientations, evenly spaced over 360 degrees.
        upsampling: The functions are sampled this much finer, then summed to pixels.
        first_layer: Whether the input is an image rather than the maps of all rotations.

    Shapes: parameter ``coeffs`` (filter_size (filter_size + 1) / 2, input_features, output_features); buffers
    ``rotate_hermite.H`` and ``rotate_hermite.Rs.<rotation>``, which neuralpredictors keeps as frozen parameters.
    """

    def __init__(
        self,
        input_features: int,
        output_features: int,
        filter_size: int,
        padding: Size,
        stride: Size,
        num_rotations: int,
        upsampling: int,
        first_layer: bool,
    ) -> None:
        super().__init__()
        self.padding, self.stride, self.upsampling = padding, stride, upsampling
        self.num_rotations, self.first_layer, self.kernel_size = num_rotations, first_layer, filter_size
        coefficients = filter_size * (filter_size + 1) // 2
        self.coeffs = nn.Parameter(torch.zeros(coefficients, input_features, output_features))
        self.rotate_hermite = _Rotations(filter_size, upsampling, num_rotations)

    @property
    def weights_all_rotations(self) -> Tensor:
        """The filters [num_rotations * output_features, input_features, filter_size, filter_size]."""
        size = self.kernel_size
        pixels = self.rotate_hermite.H.unflatten(2, (size, -1)).unflatten(1, (size, -1)).sum((2, 4))  # [K, y, x]
        rotated = self.rotate_hermite.matrices() @ self.coeffs.flatten(1)  # [R, K, in * out]
        filters = torch.einsum("rkc,kyx->rcyx", rotated, pixels).unflatten(1, self.coeffs.shape[1:])
        if not self.first_layer:
            # A rotated filter reads the maps of the input in the order in which they are rotated.
            step = self.coeffs.shape[1] // self.num_rotations
            filters = torch.stack([f.roll(i * step, dims=0) for i, f in enumerate(filters)])
        return filters.transpose(1, 2).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, input_features, H, W] -> [B, num_rotations * output_features, H', W']."""
        return F.conv2d(x, self.weights_all_rotations, stride=self.stride, padding=self.padding)

    def extra_repr(self) -> str:
        """What the modules do not show, for ``repr``."""
        inputs, outputs = self.coeffs.shape[1:]
        return f"{inputs}, {outputs} x {self.num_rotations}, kernel_size={self.kernel_size}, padding={self.padding}"


class _SharedByRotations(nn.Module):
    """Base of the modules that treat the channels of all rotations alike."""

    def __init__(self, channels: int, rotations: int) -> None:
        super().__init__()
        self.num_features, self.num_rotations = channels, rotations


class RotationBatchNorm2d(_SharedByRotations):
    """A batch norm with one mean and variance for all rotations of a channel. Keys: ``batch_norm.*``."""

    def __init__(self, channels: int, rotations: int, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__(channels, rotations)
        self.batch_norm = nn.BatchNorm1d(channels, momentum=momentum, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, R C, H, W] in, maps of the same shape out."""
        # For maps in channels-last these are views: all pixels and rotations are a batch of vectors.
        pixels = x.permute(0, 2, 3, 1)
        out: Tensor = self.batch_norm(pixels.reshape(-1, self.num_features))
        return out.view(pixels.shape).permute(0, 3, 1, 2)


class RotationBias2d(_SharedByRotations):
    """Adds a learned number per channel, the same for all its rotations. Key: ``bias`` (1, 1, C, 1, 1)."""

    def __init__(self, channels: int, rotations: int) -> None:
        super().__init__(channels, rotations)
        self.bias = nn.Parameter(torch.zeros(1, 1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, R C, H, W] in, maps of the same shape out."""
        return x + self.bias.expand(1, self.num_rotations, -1, 1, 1).flatten(1, 2)


class RotationScale2d(_SharedByRotations):
    """Multiplies by a learned number per channel, the same for all its rotations. Key: ``scale`` (1, 1, C, 1, 1)."""

    def __init__(self, channels: int, rotations: int) -> None:
        super().__init__(channels, rotations)
        self.scale = nn.Parameter(torch.ones(1, 1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, R C, H, W] in, maps of the same shape out."""
        return x * self.scale.expand(1, self.num_rotations, -1, 1, 1).flatten(1, 2)


class RotationEquivariant2dCore(Stacked2dCore):
    """A core in which rotating the image rotates the maps and permutes their orientations.

    Ecker et al., "A rotation-equivariant convolutional neural network model of primary visual cortex", ICLR 2019. Each
    layer is a :class:`HermiteConv2d`, a norm and a nonlinearity. A drop-in for ``RotationEquivariant2dCore`` of
    neuralpredictors: same arguments and state_dict keys.

    Args:
        *args: Arguments of :class:`Stacked2dCore`, from ``input_channels``. Kernels are square, and ``skip``,
            ``depth_separable``, ``attention_conv`` and ``hidden_dilation`` are not available.
        num_rotations: Number of orientations of each filter, evenly spaced over 360 degrees.
        stride: Of all layers, pixels.
        upsampling: See :class:`HermiteConv2d`.
        rot_eq_batch_norm: Whether all rotations of a channel share norm, scale and bias. Otherwise each of the
            ``num_rotations`` times ``hidden_channels`` maps has its own, and the core is not equivariant.
        input_regularizer: See :class:`Stacked2dCore`.
        init_std: Standard deviation of the initial coefficients.
        **kwargs: Other arguments of :class:`Stacked2dCore`.

    Raises:
        ValueError: As :class:`Stacked2dCore`, or an argument that is not available.

    >>> import torch
    >>> core = RotationEquivariant2dCore(1, 4, input_kern=5, hidden_kern=3, layers=2, num_rotations=8, stack=-1)
    >>> core(torch.randn(2, 1, 20, 20)).shape
    torch.Size([2, 32, 20, 20])
    """

    def __init__(
        self,
        *args: Any,
        num_rotations: int = 8,
        stride: Size = 1,
        upsampling: int = 2,
        rot_eq_batch_norm: bool = True,
        input_regularizer: str = "LaplaceL2norm",
        init_std: float = 0.1,
        **kwargs: Any,
    ) -> None:
        unavailable = {"skip": 0, "depth_separable": False, "attention_conv": False, "hidden_dilation": 1}
        for name, value in unavailable.items():
            if kwargs.get(name, value) not in (value, 1 if name == "skip" else value):
                raise ValueError(f"{name}: want {value} in a rotation-equivariant core, got {kwargs[name]}")
        self.num_rotations, self.upsampling = num_rotations, upsampling
        self.rot_eq_batch_norm, self.init_std = rot_eq_batch_norm, init_std
        super().__init__(*args, stride=stride, input_regularizer=input_regularizer, **kwargs)  # type: ignore[misc]

    def _convolution(self, index: int) -> tuple[str, nn.Module]:
        kernel = self.input_kern if index == 0 else self.hidden_kern[index - 1]
        size = pair(kernel)[0]
        if pair(kernel) != (size, size):
            name = "input_kern" if index == 0 else "hidden_kern"
            raise ValueError(f"{name}: want a square kernel in a rotation-equivariant core, got {kernel}")
        if index == 0:
            padding: Size = size // 2 if self.pad_input else 0
        else:
            padding = size // 2 if self.hidden_padding is None else self.hidden_padding
        return "hermite_conv", HermiteConv2d(
            self.input_channels if index == 0 else self.hidden_channels[index - 1] * self.num_rotations,
            self.hidden_channels[index],
            size,
            padding,
            self.stride,
            self.num_rotations,
            self.upsampling,
            first_layer=index == 0,
        )

    def _normalization(self, index: int) -> dict[str, nn.Module]:
        if not self.batch_norm[index]:
            return {}
        channels, bias, scale = self.hidden_channels[index], self.bias[index], self.batch_norm_scale[index]
        if not self.rot_eq_batch_norm:
            return self._norm_of(channels * self.num_rotations, bias, scale)
        modules: dict[str, nn.Module] = {
            "norm": RotationBatchNorm2d(channels, self.num_rotations, self.momentum, affine=bool(bias and scale))
        }
        if bias and not scale:
            modules["bias"] = RotationBias2d(channels, self.num_rotations)
        elif scale and not bias:
            modules["scale"] = RotationScale2d(channels, self.num_rotations)
        return modules

    def initialize(self) -> None:
        """Draw the coefficients of all filters, normal with standard deviation ``init_std``."""
        for module in self.modules():
            if isinstance(module, HermiteConv2d):
                nn.init.normal_(module.coeffs, std=self.init_std)

    def _filters(self, index: int) -> Tensor:
        convolution: Any = self.features[index].get_submodule("hermite_conv")
        weights: Tensor = convolution.weights_all_rotations
        return weights

    @property
    def outchannels(self) -> int:
        """Number of channels that :meth:`forward` returns."""
        return super().outchannels * self.num_rotations
