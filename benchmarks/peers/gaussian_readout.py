"""Layers with a Gaussian readout: those of other libraries, where installed, and v1fast's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from v1fast.readouts import FullGaussian2d

from . import published

MakeLayer = Callable[[int, int, int, int], nn.Module]  # C, H, W, N

_MODULES = {
    "neuralpredictors": "neuralpredictors.layers.readouts.gaussian",
    "openretina": "openretina.modules.readout.gaussian",
}
NAMES = tuple(_MODULES)


def v1fast(channels: int, height: int, width: int, neurons: int) -> nn.Module:
    """v1fast's layer."""
    return FullGaussian2d((channels, height, width), neurons, bias=True, mean_activity=torch.zeros(neurons))


def load(name: str) -> MakeLayer:
    """Return the constructor of a library's layer.

    Raises:
        Absent: it is not installed, or cannot be imported.
    """
    layer = published(_MODULES[name], "FullGaussian2d")
    time = (1,) if name == "openretina" else ()

    def make(channels: int, height: int, width: int, neurons: int) -> nn.Module:
        return layer((channels, *time, height, width), neurons, bias=True, mean_activity=torch.zeros(neurons))

    return make


def by_operand(layer: nn.Module) -> dict[str, Tensor]:
    """Return the parameters by operand. All these layers use the same names and shapes."""
    parameters = dict(layer.named_parameters())
    return {operand: parameters[name] for operand, name in _PARAMETERS.items()}


def as_operand(operand: str, parameter: Tensor) -> Tensor:
    """Return a parameter or its gradient as a view with the operand's shape."""
    if operand == "mu":
        return parameter[0, :, 0]  # (1, N, 1, 2)
    if operand == "sigma":
        return parameter[0]  # (1, N, 2, 2)
    if operand == "weight":
        return parameter[0, :, 0].t()  # (1, C, 1, N)
    return parameter


_PARAMETERS = {"mu": "_mu", "sigma": "sigma", "weight": "_features", "bias": "bias"}
