"""The form of a call: what its check, and the choice of a kernel, may depend on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

Form = tuple[Hashable, ...]
"""An entry for each argument."""


class Seen:
    """A form of calls that was checked, and what a kernel remembers of it."""

    __slots__ = ("plans",)

    def __init__(self) -> None:
        self.plans: tuple[object, dict[Hashable, Any]] = None, {}  # what they hold for, and the plans


def form_of(arguments: Sequence[Any]) -> Form:
    """Return sizes, steps, dtype and device of each tensor, and all else by its value. No value in a tensor counts."""
    # A list, because a generator takes twice as long.
    return tuple(
        [
            a
            if a is None
            else (a.shape, a.stride(), a.dtype, a.device)
            if isinstance(a, Tensor)
            else tuple(a)
            if isinstance(a, list)
            else a
            for a in arguments
        ]
    )
