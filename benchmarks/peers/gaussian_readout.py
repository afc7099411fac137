"""Layers that hold a Gaussian readout: those of other libraries, where installed, and v1fast's own."""

from __future__ import annotations

import collections
import collections.abc
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from v1fast.readouts import FullGaussian2d

from ..contract import Absent

MakeLayer = Callable[[int, int, int, int], nn.Module]  # C, H, W, N

_MODULES = {
    "neuralpredictors": "neuralpredictors.layers.readouts.gaussian",
    "openretina": "openretina.modules.readout.gaussian",
}
NAMES = tuple(_MODULES)
# Imported beside the readouts, but not to compute them.
_STAND_INS = ("torchvision", "jaxtyping")


class _AnyType:
    def __class_getitem__(cls, item: Any) -> Any:
        return Any


def v1fast(channels: int, height: int, width: int, neurons: int) -> nn.Module:
    """v1fast's layer."""
    return FullGaussian2d((channels, height, width), neurons, bias=True, mean_activity=torch.zeros(neurons))


def load(name: str) -> MakeLayer:
    """What makes the layer of a library.

    Raises:
        Absent: it is not installed, or does not import.
    """
    try:
        with importable():
            layer = importlib.import_module(_MODULES[name]).FullGaussian2d
    except ModuleNotFoundError as error:
        if error.name == name:
            raise Absent(f"not installed: pip install --no-deps {name}") from error
        raise Absent(f"does not import: {error}") from error
    except ImportError as error:
        raise Absent(f"does not import: {error}") from error
    time = (1,) if name == "openretina" else ()

    def make(channels: int, height: int, width: int, neurons: int) -> nn.Module:
        return layer((channels, *time, height, width), neurons, bias=True, mean_activity=torch.zeros(neurons))

    return make


def by_operand(layer: nn.Module) -> dict[str, Tensor]:
    """The parameters, which all these layers name and shape alike, by the operand that they are."""
    parameters = dict(layer.named_parameters())
    return {operand: parameters[name] for operand, name in _PARAMETERS.items()}


def as_operand(operand: str, parameter: Tensor) -> Tensor:
    """A parameter or its gradient as a view of the operand's shape."""
    if operand == "mu":
        return parameter[0, :, 0]  # (1, N, 1, 2)
    if operand == "sigma":
        return parameter[0]  # (1, N, 2, 2)
    if operand == "weight":
        return parameter[0, :, 0].t()  # (1, C, 1, N)
    return parameter


_PARAMETERS = {"mu": "_mu", "sigma": "sigma", "weight": "_features", "bias": "bias"}


@contextmanager
def importable() -> Iterator[None]:
    """Stand-ins for absent packages, while a library is imported."""
    # neuralpredictors 0.3.0 looks for it where Python 3.9 had it.
    collections.Iterable = collections.abc.Iterable  # type: ignore[attr-defined]
    added = [name for name in _STAND_INS if name not in sys.modules and importlib.util.find_spec(name) is None]
    for name in added:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__getattr__ = lambda attribute: _AnyType  # type: ignore[method-assign]
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]
