"""The arguments that a module was made with, so that it can be saved as a description and made again."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self  # torch brings it

_CALLS = ("add_session",)
"""Methods that a description may call: a file must not choose among all."""

_SMALL = 100_000
"""Longest array of whole numbers that is kept with its values, such as the ids of matched neurons."""


def _encode(value: Any) -> Any:
    """A value of JSON for an argument. Of an array of real numbers only the shape: the state_dict has the values."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor | np.ndarray) and not isinstance(value, nn.Parameter):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        if array.dtype.kind in "iub" and array.size <= _SMALL:
            return {"values": array.tolist()}
        return {"shape": list(array.shape)}
    if isinstance(value, Mapping):
        return {"dict": {str(key): _encode(entry) for key, entry in value.items()}}
    if isinstance(value, tuple | list):
        return [_encode(entry) for entry in value]
    if isinstance(value, type) and value.__module__.split(".")[0] == "v1fast":
        return {"class": f"{value.__module__}:{value.__qualname__}"}
    return {"left out": type(value).__name__}


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(entry) for entry in value)
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {key: _decode(entry) for key, entry in content.items()}
    if kind == "values":
        return torch.as_tensor(content)
    if kind == "shape":
        # Values that every constructor accepts; the state_dict overwrites them.
        return torch.linspace(0, 1, max(math.prod(content), 1))[: math.prod(content)].view(content)
    if kind == "class":
        return _class(content)
    raise ValueError(f"an argument of type {content} cannot be restored")


def _class(path: str) -> type[Any]:
    module, _, name = path.partition(":")
    if module.split(".")[0] != "v1fast":
        raise ValueError(f"want a class of v1fast, got {path}")
    found = getattr(importlib.import_module(module), name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"want a class of modules, got {path}")
    return found


class Configured(nn.Module):
    """A module that remembers the arguments of its constructor, as values of JSON.

    Arrays of real numbers are remembered by their shape alone. Anything else that JSON cannot hold is left out.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Make the object as usual, then note the arguments."""
        made = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(made, *args, **kwargs).arguments
        except TypeError:  # the constructor is about to raise it; or pickle makes the object without calling it
            return made
        names = list(bound)[1:]  # without self
        made.__dict__["_v1fast_arguments"] = {name: _encode(bound[name]) for name in names}
        return made

    def _note_call(self, method: str, **arguments: Any) -> None:
        """Note a call that changes what the module is made of, to be repeated after the constructor."""
        self.__dict__.setdefault("_v1fast_calls", []).append((method, {k: _encode(v) for k, v in arguments.items()}))


def describe(module: nn.Module) -> dict[str, Any]:
    """Return the class and arguments of a module, as values of JSON.

    Raises:
        ValueError: the module is not of a class of v1fast, or has an argument that JSON cannot hold.
    """
    arguments = module.__dict__.get("_v1fast_arguments")
    cls = type(module)
    if arguments is None or cls.__module__.split(".")[0] != "v1fast":
        raise ValueError(f"want a module of v1fast's classes, got {cls.__module__}.{cls.__qualname__}")
    calls = module.__dict__.get("_v1fast_calls", [])
    kept = [(method, _kept(cls, method, given)) for method, given in (("__init__", arguments), *calls)]
    return {"class": f"{cls.__module__}:{cls.__qualname__}", "arguments": kept[0][1], "calls": kept[1:]}


def _kept(cls: type, method: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, without those that ``**kwargs`` took and that cannot be kept: they are ignored anyway."""
    kept = dict(arguments)
    extra = _rest(cls, method, inspect.Parameter.VAR_KEYWORD)
    if extra in kept:
        entries = kept[extra]["dict"]
        kept[extra] = {"dict": {k: v for k, v in entries.items() if not (isinstance(v, dict) and "left out" in v)}}
    for name, value in kept.items():
        _require_complete(f"{cls.__name__}.{name}", value)
    return kept


def _rest(cls: type, method: str, kind: Any) -> str | None:
    """The name of ``*args`` or ``**kwargs`` in a method."""
    parameters = inspect.signature(getattr(cls, method)).parameters.values()
    return next((p.name for p in parameters if p.kind is kind), None)


def _require_complete(name: str, value: Any) -> None:
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        if kind == "left out":
            raise ValueError(f"{name}: want numbers, text, arrays or classes of v1fast, got {content}")
        if kind == "dict":
            for key, entry in content.items():
                _require_complete(f"{name}[{key!r}]", entry)
    elif isinstance(value, list):
        for entry in value:
            _require_complete(name, entry)


def make(description: Mapping[str, Any]) -> Any:
    """Make the module that :func:`describe` described, with initial values.

    Raises:
        ValueError: the description is of something else than a class of v1fast.
    """
    cls = _class(description["class"])
    positional, named = _call(cls, "__init__", description["arguments"])
    made = cls(*positional, **named)
    for method, arguments in description["calls"]:
        if method not in _CALLS:
            raise ValueError(f"want calls of {', '.join(_CALLS)}, got {method}")
        positional, named = _call(cls, method, arguments)
        getattr(made, method)(*positional, **named)
    return made


def _call(cls: type, method: str, encoded: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    arguments = {name: _decode(value) for name, value in encoded.items()}
    positional: Any = _rest(cls, method, inspect.Parameter.VAR_POSITIONAL)
    extra: Any = _rest(cls, method, inspect.Parameter.VAR_KEYWORD)
    rest, more = arguments.pop(positional, ()), arguments.pop(extra, {})
    return rest, {**arguments, **more}
