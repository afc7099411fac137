"""Values of a configuration held to the annotations of the arguments that they are for."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, Union

NOTHING = inspect.Parameter.empty
"""Of an argument without a default."""

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_SEQUENCES = (list, tuple, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping)


class Unfit(ValueError):
    """A value is not of the type that is wanted; the message says which."""


def fit(value: Any, hint: Any) -> Any:
    """The value as ``hint`` wants it: a whole number becomes a float where that is wanted, a list a tuple.

    Raises:
        Unfit: the value is of another type.
    """
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value in arguments and type(value) in {type(choice) for choice in arguments}:
            return value
    elif origin in (Union, types.UnionType):
        for choice in sorted(arguments, key=_breadth):
            try:
                return fit(value, choice)
            except Unfit:
                continue
    elif origin in _SEQUENCES:
        if isinstance(value, list | tuple):
            return _elements(value, hint, arguments)
    elif origin in _MAPPINGS:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            inner = arguments[1] if arguments else Any
            return {key: fit(entry, inner) for key, entry in value.items()}
    elif origin is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif origin in (int, bool, str, type(None)) and type(value) is origin:
        return value
    raise Unfit(f"want {words(hint)}, got {value!r}")


def _elements(value: Collection[Any], hint: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if not arguments:
        return tuple(value)
    fixed = typing.get_origin(hint) is tuple and arguments[-1] is not Ellipsis
    if fixed and len(value) != len(arguments):
        raise Unfit(f"want {words(hint)}, got {list(value)!r}")
    inner = arguments if fixed else (arguments[0],) * len(value)
    return tuple(fit(entry, one) for entry, one in zip(value, inner, strict=True))


def _breadth(hint: Any) -> int:
    """Whole numbers before floats, so that 3 stays 3; text last."""
    return [type(None), bool, int, float].index(hint) if hint in (type(None), bool, int, float) else 4


def words(hint: Any) -> str:
    """What is wanted, for a message."""
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(words(choice) for choice in arguments if can_be_written(choice)))
    if origin in _SEQUENCES:
        inner = dict.fromkeys(words(one) for one in arguments if one is not Ellipsis)
        count = f"{len(arguments)} of them: " if origin is tuple and Ellipsis not in arguments else ""
        return f"a list ({count}{', '.join(inner)})" if inner else "a list"
    if origin in _MAPPINGS:
        return "a section of keys and values"
    return _WORDS.get(origin, getattr(origin, "__name__", str(hint)))


def can_be_written(hint: Any) -> bool:
    """Whether a configuration file can hold a value of the type: numbers, text, lists and sections of them."""
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (Union, types.UnionType):
        array = complex in arguments  # numpy's ArrayLike
        return not array and any(can_be_written(choice) for choice in arguments if choice is not type(None))
    return hint is Any or origin in (Literal, *_WORDS, *_SEQUENCES, *_MAPPINGS)


def arguments_of(factory: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> (annotation, default) of the arguments of a class that a configuration can hold.

    Those that a constructor passes on as ``**kwargs`` to that of its base class are among them.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for base in inspect.getmro(factory) if isinstance(factory, type) else (factory,):
        function = vars(base).get("__init__") if isinstance(factory, type) else base
        if not inspect.isfunction(function):
            continue
        hints = _hints(function)
        parameters = inspect.signature(function).parameters.values()
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                hint = hints.get(parameter.name, Any)
                if parameter.name != "self" and not parameter.name.startswith("_") and can_be_written(hint):
                    found.setdefault(parameter.name, (hint, parameter.default))
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError:  # a name that only type checkers import
        scope = {**vars(typing), **vars(collections.abc), **getattr(function, "__globals__", {})}
        return {name: _evaluated(text, scope) for name, text in function.__annotations__.items()}


def _evaluated(text: Any, scope: dict[str, Any]) -> Any:
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__={"x": text}), scope)["x"]
    except NameError:
        return object
