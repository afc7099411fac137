"""The one check of an argument that takes one of several names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

T = TypeVar("T")


def one_of(argument: str, value: object, known: Collection[object], error: type[Exception] = ValueError) -> None:
    """Raise ``error`` unless ``value`` is one of those known; None is among them where it is a choice, too."""
    if value not in known:
        names = ", ".join(str(name) for name in known)
        raise error(f"{argument}: want one of {names}, got {value!r}")


def pick(argument: str, name: str, known: Mapping[str, T]) -> T:
    """The value of ``name`` among those known; ValueError where it is none of them."""
    one_of(argument, name, known)
    return known[name]
