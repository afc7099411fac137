"""Cores of stacked convolutions: images in, feature maps out."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from v1fast import _choices
from v1fast._config import Configured
from v1fast._warnings import warn_caller
from v1fast.models.activations import ACTIVATIONS, AdaptiveELU
from v1fast.models.cores._biases import adapt_biases
from v1fast.models.layers import (
    AttentionConv2d,
    Bias2d,
    DepthSeparableConv2d,
    Scale2d,
    Size,
    SqueezeExcitation,
    pair,
)
from v1fast.models.regularizers import REGULARIZERS, LaplacePenalty


class Stacked2dCore(Configured):
    """A stack of convolutions, each with a batch norm and a nonlinearity; a drop-in for neuralpredictors' class.

    Arguments, parameter names, the order of the initial random draws and the results are those of that class on
    neuralpredictors' main branch. ``core.to(memory_format=torch.channels_last)`` makes channels-last feature maps,
    which the readouts of this package read without a copy.

    Where an argument takes a list, it has one entry per layer (``hidden_kern``: per layer after the first).

    Biases: a batch norm has a scale and a bias if ``bias`` and ``batch_norm_scale`` are true; if only one of them is, a
    separate module ``bias`` or ``scale`` follows it. A convolution has a bias if ``conv_bias`` is true, the first one
    only if no batch norm follows. The released Sensorium models are ``bias=True, conv_bias=False``; models trained on
    neuralpredictors' main are ``conv_bias=True``, whatever their ``bias``.

    Loading: ``load_state_dict`` takes, strictly, checkpoints with other biases than the core was built with.
    Convolution biases that a checkpoint lacks are set to 0, which is the same function. Biases that only the checkpoint
    has are added to the core, and so are the scale and bias of batch norms, with a warning: an optimiser made earlier
    does not hold the new parameters.

    Differences, where neuralpredictors' main fails or does not do what it says:

    - ``bias=False`` gives convolutions without a bias (there it is ignored), and ``bias=True, batch_norm=False`` gives
      the first one a bias. Both are as in release 0.3.0, so a seed gives the same initial weights as there.
    - ``outchannels`` is the number of channels that ``forward`` returns, rather than always that of all layers.
    - ``hidden_padding=0`` means no padding (there it means None); a list with too many entries is an error.
    - ``GaussianLaplaceL2`` works with ``laplace_padding=0``, ``Log1Exp`` does not overflow, and ``skip > 1`` works with
      a list of ``hidden_channels``.

    Args:
        input_channels: Channels of the images.
        hidden_channels: Channels of each layer's map: one number, or a list.
        input_kern: Kernel size of the first layer, pixels.
        hidden_kern: Kernel size of the other layers: one number, or a list.
        layers: Number of layers.
        gamma_hidden: Weight of :meth:`group_sparsity` in :meth:`regularizer`.
        gamma_input: Weight of :meth:`laplace` in :meth:`regularizer`.
        skip: Each layer reads this many previous layers' maps, concatenated; 0 and 1 mean just the previous one's.
        stride: Of the layers after the first, pixels.
        input_stride: Of the first layer, pixels.
        final_nonlinearity: Whether the last layer has a nonlinearity.
        elu_shift: (xshift, yshift) of ``AdaptiveELU``: ``elu(x - xshift) + yshift``.
        bias: Whether layers have a bias: one bool, or a list.
        momentum: Of the batch norms.
        pad_input: Whether to pad the images by half the kernel; the other layers are padded in any case.
        hidden_padding: Padding of the layers after the first, pixels: one number or (height, width). None: half of the
            dilated kernel.
        batch_norm: Whether a batch norm follows the convolution: one bool, or a list.
        batch_norm_scale: Whether batch norms have a scale: one bool for all layers but the last, or a list for all.
        final_batchnorm_scale: The same for the last layer; without effect if batch_norm_scale is a list.
        hidden_dilation: Of the layers after the first.
        laplace_padding: Zeros around the first layer's filters in the penalty, pixels; None is 1. With 0 the filters'
            borders are not penalised.
        input_regularizer: Penalty of the first layer's filters: ``LaplaceL1``, ``LaplaceL2``, ``LaplaceL2norm``,
            ``GaussianLaplaceL2`` or ``GaussianLaplaceL2Adaptive`` (see :mod:`v1fast.models.regularizers`).
        stack: Layers whose maps ``forward`` returns, concatenated: None for all, an int i for ``layers[i:]``, or a list
            of indices. -1 returns the last layer's map itself, without a copy.
        use_avg_reg: Whether penalties are means rather than sums over the filters.
        depth_separable: Whether layers after the first are depth-separable; ``gamma_hidden`` then has no effect.
        attention_conv: Whether layers after the first are local self-attention; ``gamma_hidden`` then has no effect.
        linear: Whether to leave out all nonlinearities.
        nonlinearity_type: ``AdaptiveELU``, ``Elu1``, ``Exp``, ``Log1Exp`` or ``SoftThreshold``.
        nonlinearity_config: Arguments of the nonlinearity; AdaptiveELU takes ``elu_shift`` instead.
        conv_bias: Whether convolutions have a bias: one bool, or a list. None: as ``bias``.

    Raises:
        ValueError: If an argument is out of its range, a list has not one entry per layer, or both depth_separable and
            attention_conv are true.
    """

    def __init__(
        self,
        input_channels: int,
        hidden_channels: int | Iterable[int],
        input_kern: Size,
        hidden_kern: int | Iterable[Size],
        layers: int = 3,
        gamma_hidden: float = 0,
        gamma_input: float = 0.0,
        skip: int = 0,
        stride: Size = 1,
        input_stride: Size = 1,
        final_nonlinearity: bool = True,
        elu_shift: tuple[float, float] = (0, 0),
        bias: bool | Iterable[bool] = True,
        momentum: float = 0.1,
        pad_input: bool = True,
        hidden_padding: Size | None = None,
        batch_norm: bool | Iterable[bool] = True,
        batch_norm_scale: bool | Iterable[bool] = True,
        final_batchnorm_scale: bool = True,
        hidden_dilation: int = 1,
        laplace_padding: int | None = 0,
        input_regularizer: str = "LaplaceL2",
        stack: int | Iterable[int] | None = None,
        use_avg_reg: bool = True,
        depth_separable: bool = False,
        attention_conv: bool = False,
        linear: bool = False,
        nonlinearity_type: str = "AdaptiveELU",
        nonlinearity_config: Mapping[str, Any] | None = None,
        *,
        conv_bias: bool | Iterable[bool] | None = None,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers: want 1 or more, got {layers}")
        if isinstance(batch_norm_scale, bool):
            batch_norm_scale = [batch_norm_scale] * (layers - 1) + [final_batchnorm_scale]
        self.num_layers = layers
        self.input_channels = input_channels
        self.hidden_channels = _per_layer("hidden_channels", hidden_channels, layers)
        self.input_kern = input_kern
        self.hidden_kern = _per_layer("hidden_kern", hidden_kern, layers - 1)
        self.gamma_hidden = gamma_hidden
        self.gamma_input = gamma_input
        self.skip = skip
        self.stride = stride
        self.input_stride = input_stride
        self.final_nonlinearity = final_nonlinearity
        self.elu_xshift, self.elu_yshift = elu_shift
        self.bias = _per_layer("bias", bias, layers)
        self.conv_bias = self.bias if conv_bias is None else _per_layer("conv_bias", conv_bias, layers)
        self.momentum = momentum
        self.pad_input = pad_input
        self.hidden_padding = hidden_padding
        self.batch_norm = _per_layer("batch_norm", batch_norm, layers)
        self.batch_norm_scale = _per_layer("batch_norm_scale", batch_norm_scale, layers)
        self.hidden_dilation = hidden_dilation
        self.stack = _stacked_layers(stack, layers)
        self.use_avg_reg = use_avg_reg
        self.linear = linear
        self.activation_fn = _choices.pick("nonlinearity_type", nonlinearity_type, ACTIVATIONS)
        self.activation_config = dict(nonlinearity_config or {})
        self.conv_layer_name, self.ConvLayer = _hidden_convolution(depth_separable, attention_conv)
        self.ignore_group_sparsity = self.ConvLayer is not nn.Conv2d
        if self.ignore_group_sparsity and gamma_hidden > 0:
            warn_caller(f"gamma_hidden has no effect on layers of type {self.conv_layer_name}")

        penalty = _choices.pick("input_regularizer", input_regularizer, REGULARIZERS)
        self._input_weights_regularizer: LaplacePenalty = penalty(pair(input_kern), laplace_padding)
        self.features = nn.Sequential()
        for index in range(layers):
            name, convolution = self._convolution(index)
            modules = OrderedDict({name: convolution}, **self._normalization(index), **self._nonlinearity(index))
            modules.update(self._appended(index))
            self.features.add_module(f"layer{index}", nn.Sequential(modules))
        self.initialize()
        self.register_load_state_dict_pre_hook(adapt_biases)

    def _convolution(self, index: int) -> tuple[str, nn.Module]:
        channels, bias = self.hidden_channels[index], self.conv_bias[index]
        if index == 0:
            padding = _half(self.input_kern) if self.pad_input else 0
            bias = bias and not self.batch_norm[0]
            return "conv", nn.Conv2d(
                self.input_channels, channels, self.input_kern, self.input_stride, padding, bias=bias
            )
        kernel = self.hidden_kern[index - 1]
        return self.conv_layer_name, self.ConvLayer(
            in_channels=sum(self.hidden_channels[max(0, index - max(self.skip, 1)) : index]),
            out_channels=channels,
            kernel_size=kernel,
            stride=self.stride,
            padding=_half(kernel, self.hidden_dilation) if self.hidden_padding is None else self.hidden_padding,
            dilation=self.hidden_dilation,
            bias=bias,
        )

    def _normalization(self, index: int) -> dict[str, nn.Module]:
        if not self.batch_norm[index]:
            return {}
        return self._norm_of(self.hidden_channels[index], self.bias[index], self.batch_norm_scale[index])

    def _norm_of(self, channels: int, bias: bool, scale: bool) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {
            "norm": nn.BatchNorm2d(channels, momentum=self.momentum, affine=bool(bias and scale))
        }
        if bias and not scale:
            modules["bias"] = Bias2d(channels)
        elif scale and not bias:
            modules["scale"] = Scale2d(channels)
        return modules

    def _nonlinearity(self, index: int) -> dict[str, nn.Module]:
        if self.linear or (index == self.num_layers - 1 and not self.final_nonlinearity):
            return {}
        if self.activation_fn is AdaptiveELU:
            return {"nonlin": AdaptiveELU(self.elu_xshift, self.elu_yshift)}
        return {"nonlin": self.activation_fn(**self.activation_config)}

    def _appended(self, index: int) -> dict[str, nn.Module]:
        """Modules that a subclass adds at the end of a layer."""
        return {}

    def initialize(self) -> None:
        """Draw the weights of all convolutions (Glorot & Bengio 2010, normal) and set their biases to 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, input_: Tensor) -> Tensor:
        """Images [B, input_channels, H, W] -> feature maps [B, outchannels, H', W']."""
        x = input_
        maps: list[Tensor] = []
        for layer in self.features:
            x = layer(_concatenate(maps[-self.skip :]) if maps and self.skip > 1 else x)
            maps.append(x)
        return _concatenate([maps[index] for index in self.stack])

    def _filters(self, index: int) -> Tensor:
        return cast(Tensor, self.features[index].get_submodule("conv").weight)

    def laplace(self) -> Tensor:
        """Roughness of the first layer's filters, by ``input_regularizer``; a scalar."""
        return self._input_weights_regularizer(self._filters(0), avg=self.use_avg_reg)

    def group_sparsity(self) -> Tensor | float:
        """L2 norm over space of each filter after the first layer, averaged over filters, then over layers.

        0 with one layer, and with depth-separable or attention layers.
        """
        if self.ignore_group_sparsity or self.num_layers == 1:
            return 0.0
        norms = [torch.linalg.vector_norm(self._filters(i), dim=(2, 3)) for i in range(1, self.num_layers)]
        return torch.stack([norm.mean() for norm in norms]).mean()

    def regularizer(self) -> Tensor:
        """``gamma_hidden * group_sparsity() + gamma_input * laplace()``, a scalar to add to the loss."""
        return self.group_sparsity() * self.gamma_hidden + self.gamma_input * self.laplace()

    @property
    def outchannels(self) -> int:
        """Number of channels that :meth:`forward` returns."""
        return sum(self.hidden_channels[index] for index in self.stack)

    def extra_repr(self) -> str:
        """What the modules do not show, for ``repr``."""
        return f"gamma_input={self.gamma_input}, gamma_hidden={self.gamma_hidden}, skip={self.skip}, stack={self.stack}"


class SE2dCore(Stacked2dCore):
    """A :class:`Stacked2dCore` whose last layers rescale their channels by squeeze and excitation.

    The core of Lurz et al., "Generalization in data-driven models of primary visual cortex", ICLR 2021; squeeze and
    excitation after Hu, Shen & Sun, CVPR 2018. A drop-in for ``SE2dCore`` of neuralpredictors: same arguments, defaults
    and state_dict keys. Its main branch fails with ``n_se_blocks > 0``; release 0.3.0 does not.

    Args:
        input_channels: Channels of the images.
        hidden_channels: Channels of each layer's map: one number, or a list.
        input_kern: Kernel size of the first layer, pixels.
        hidden_kern: Kernel size of the other layers: one number, or a list.
        bias: See :class:`Stacked2dCore`; here False by default.
        laplace_padding: See :class:`Stacked2dCore`; here None by default.
        input_regularizer: See :class:`Stacked2dCore`; here "LaplaceL2norm" by default.
        n_se_blocks: Number of layers, counted from the last, with squeeze and excitation; the first layer never has it.
        se_reduction: Channels of a layer per unit of its block's bottleneck.
        use_avg_reg: See :class:`Stacked2dCore`; here False by default.
        **kwargs: Other arguments of :class:`Stacked2dCore`. ``gamma_hidden`` has no effect, as in neuralpredictors.

    Raises:
        ValueError: As :class:`Stacked2dCore`; or ``se_reduction`` leaves no unit in a bottleneck.

    >>> import torch
    >>> core = SE2dCore(1, 64, input_kern=15, hidden_kern=13, layers=4, depth_separable=True, pad_input=False, stack=-1)
    >>> core(torch.randn(2, 1, 36, 64)).shape
    torch.Size([2, 64, 22, 50])
    """

    def __init__(
        self,
        input_channels: int,
        hidden_channels: int | Iterable[int],
        input_kern: Size,
        hidden_kern: int | Iterable[Size],
        bias: bool | Iterable[bool] = False,
        laplace_padding: int | None = None,
        input_regularizer: str = "LaplaceL2norm",
        n_se_blocks: int = 0,
        se_reduction: int = 32,
        use_avg_reg: bool = False,
        **kwargs: Any,
    ) -> None:
        self.n_se_blocks, self.se_reduction = n_se_blocks, se_reduction
        super().__init__(
            input_channels,
            hidden_channels,
            input_kern,
            hidden_kern,
            bias=bias,
            laplace_padding=laplace_padding,
            input_regularizer=input_regularizer,
            use_avg_reg=use_avg_reg,
            **kwargs,
        )

    def _appended(self, index: int) -> dict[str, nn.Module]:
        if index == 0 or self.num_layers - index > self.n_se_blocks:
            return {}
        return {"seg_ex_block": SqueezeExcitation(self.hidden_channels[index], self.se_reduction)}

    def regularizer(self) -> Tensor:
        """``gamma_input * laplace()``, a scalar to add to the loss."""
        return self.gamma_input * self.laplace()


class LinearNonlinearCore(Stacked2dCore):
    """A core of one convolution, a batch norm and a nonlinearity: with a readout, a linear-nonlinear model.

    Args:
        input_channels: Channels of the images.
        hidden_channels: Number of filters.
        input_kern: Size of the filters, pixels.
        **kwargs: Other arguments of :class:`Stacked2dCore`, which apply to its first layer.

    Raises:
        ValueError: As :class:`Stacked2dCore`.

    >>> import torch
    >>> LinearNonlinearCore(1, 16, 15, pad_input=False)(torch.randn(2, 1, 36, 64)).shape
    torch.Size([2, 16, 22, 50])
    """

    def __init__(self, input_channels: int, hidden_channels: int, input_kern: Size, **kwargs: Any) -> None:
        super().__init__(input_channels, hidden_channels, input_kern, hidden_kern=[], layers=1, **kwargs)


def _concatenate(maps: list[Tensor]) -> Tensor:
    return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)


def _per_layer(name: str, value: Any, layers: int) -> list[Any]:
    values = list(value) if isinstance(value, Iterable) else [value] * layers
    if len(values) != layers:
        raise ValueError(f"{name}: want one value or a list of {layers}, got a list of {len(values)}")
    return values


def _stacked_layers(stack: int | Iterable[int] | None, layers: int) -> list[int]:
    chosen = list(range(layers))[stack or 0 :] if stack is None or isinstance(stack, int) else list(stack)
    if not chosen or not all(-layers <= index < layers for index in chosen):
        raise ValueError(f"stack: want layers from {-layers} to {layers - 1}, got {stack}")
    return chosen


def _hidden_convolution(depth_separable: bool, attention_conv: bool) -> tuple[str, Any]:
    if depth_separable and attention_conv:
        raise ValueError("depth_separable, attention_conv: want at most one of them true, got both")
    if depth_separable:
        return "ds_conv", DepthSeparableConv2d
    return ("attention_conv", AttentionConv2d) if attention_conv else ("conv", nn.Conv2d)


def _half(kernel: Size, dilation: int = 1) -> tuple[int, int]:
    """The padding that keeps the size of a map under an odd kernel."""
    height, width = pair(kernel)
    return ((height - 1) * dilation + 1) // 2, ((width - 1) * dilation + 1) // 2
