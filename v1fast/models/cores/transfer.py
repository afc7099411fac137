"""Goal-driven cores: a network that was trained on another task, cut at one of its layers."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self  # torch brings it

from v1fast._config import Configured
from v1fast._warnings import warn_caller

_VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")


def vgg16_features() -> nn.Sequential:
    """Return the convolution stack of VGG-16, with random weights.

    Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015
    (configuration D). Its keys are those of ``torchvision.models.vgg16().features`` ("0.weight", "0.bias", "2.weight",
    ...), so that the published weights load.

    Returns:
        13 convolutions of 3 x 3 pixels with ReLUs and 5 max-poolings, 31 modules in all.
    """
    layers: list[nn.Module] = []
    channels = 3
    for entry in _VGG16:
        if isinstance(entry, str):
            layers.append(nn.MaxPool2d(2))
            continue
        convolution = nn.Conv2d(channels, entry, 3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        layers += [convolution, nn.ReLU()]
        channels = entry
    return nn.Sequential(*layers)


class TransferLearningCore(Configured):
    """A network cut after one of its layers, as a core; frozen unless ``fine_tune``.

    Cadena et al., "Deep convolutional models improve predictions of macaque V1 responses to natural images", PLoS
    Comput. Biol. 2019. A drop-in for ``TransferLearningCore`` of neuralpredictors: same constructor and state_dict keys
    ``features.TransferLearning.*`` and ``features.OutBatchNorm.*``. Here ``tl_model_name`` may also be any module, and
    ``layers`` the name of a layer.

    A frozen network stays in evaluation mode: its batch norms never change.

    Args:
        input_channels: Of the images: 1 (copied to 3 where the network takes 3) or what the network takes.
        tl_model_name: "vgg16" (defined here), another model of torchvision, if that is installed, or a module. Of a
            model with a part named ``features``, that part is used.
        layers: How many of the network's layers to keep; or the name of the last layer to keep, as in
            ``named_modules()``. A named layer's parents must be sequences.
        pretrained: Whether to load torchvision's weights. For "vgg16", "random" weights need no torchvision.
        final_batchnorm: Whether to add a batch norm.
        final_nonlinearity: Whether to add a ReLU.
        momentum: Of the batch norm.
        fine_tune: Whether to train the network too.
        **kwargs: Accepted and ignored, with a warning, as neuralpredictors does.

    Raises:
        ValueError: No such layer, or the network has no convolution up to it.
        ModuleNotFoundError: torchvision is needed and not installed.

    >>> import torch
    >>> core = TransferLearningCore(1, "vgg16", layers=5, pretrained=False)
    >>> core(torch.randn(2, 1, 36, 64)).shape
    torch.Size([2, 64, 18, 32])
    """

    def __init__(
        self,
        input_channels: int,
        tl_model_name: str | nn.Module,
        layers: int | str,
        pretrained: bool = True,
        final_batchnorm: bool = True,
        final_nonlinearity: bool = True,
        momentum: float = 0.1,
        fine_tune: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if kwargs:
            warn_caller(f"TransferLearningCore ignores {', '.join(kwargs)}")
        self.input_channels, self.momentum, self.fine_tune = input_channels, momentum, fine_tune
        network = tl_model_name if isinstance(tl_model_name, nn.Module) else _named(tl_model_name, pretrained)
        cut = _cut(getattr(network, "features", network), layers)
        self.features = nn.Sequential()
        self.features.add_module("TransferLearning", cut.requires_grad_(fine_tune))
        if final_batchnorm:
            self.features.add_module("OutBatchNorm", nn.BatchNorm2d(self.outchannels, momentum=momentum))
        if final_nonlinearity:
            self.features.add_module("OutNonlin", nn.ReLU())
        self.train()

    @property
    def _network(self) -> nn.Module:
        return self.features.get_submodule("TransferLearning")

    def _convolutions(self) -> list[nn.Conv2d]:
        found = [m for m in self._network.modules() if isinstance(m, nn.Conv2d)]
        if not found:
            raise ValueError("layers: want a network with a convolution up to this layer, got none")
        return found

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; the network itself stays in evaluation mode unless ``fine_tune``."""
        super().train(mode)
        if not self.fine_tune:
            self._network.eval()
        return self

    def forward(self, input_: Tensor) -> Tensor:
        """Images [B, input_channels, H, W] -> feature maps [B, outchannels, H', W']."""
        if self.input_channels == 1 and self._convolutions()[0].in_channels == 3:
            layout = torch.channels_last if input_.is_contiguous(memory_format=torch.channels_last) else None
            input_ = input_.repeat(1, 3, 1, 1)
            input_ = input_ if layout is None else input_.contiguous(memory_format=layout)
        maps: Tensor = self.features(input_)
        return maps

    def regularizer(self) -> float:
        """0: there is no penalty."""
        return 0.0

    def initialize(self) -> None:
        """Do nothing: the weights come from the other task."""

    @property
    def outchannels(self) -> int:
        """Number of channels of the last convolution."""
        return self._convolutions()[-1].out_channels


def _named(name: str, pretrained: bool) -> nn.Module:
    if name == "vgg16" and not pretrained:
        return vgg16_features()
    try:
        models = importlib.import_module("torchvision.models")
    except ModuleNotFoundError as error:
        if error.name not in ("torchvision", "torchvision.models"):
            raise
        what = f"the weights of {name}" if name == "vgg16" else f"the model {name!r}"
        raise ModuleNotFoundError(
            f"tl_model_name: want torchvision installed for {what}, got no module named torchvision"
        ) from None
    model: nn.Module = getattr(models, name)(weights="DEFAULT" if pretrained else None)
    return model


def _cut(network: nn.Module, layers: int | str) -> nn.Sequential:
    """The layers up to ``layers``, as a new sequence of the same modules."""
    if isinstance(layers, str):
        return nn.Sequential(OrderedDict(_up_to(network, layers)))
    children = list(network.children())
    if not 1 <= layers <= len(children):
        raise ValueError(f"layers: want a number from 1 to {len(children)}, or a layer's name, got {layers}")
    return nn.Sequential(*children[:layers])


def _up_to(network: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    first, _, rest = name.partition(".")
    children = dict(network.named_children())
    if first not in children:
        raise ValueError(f"layers: want the name of a layer, one of {', '.join(children)}, got {name!r}")
    if not isinstance(network, nn.Sequential) and first != next(iter(children)):
        # The order of the children of other modules says nothing about the order of the computation.
        warn_caller(f"layers: takes the parts of {type(network).__name__} up to {first!r} in the order of definition")
    for child_name, child in children.items():
        if child_name != first:
            yield child_name, child
            continue
        yield child_name, nn.Sequential(OrderedDict(_up_to(child, rest))) if rest else child
        return
