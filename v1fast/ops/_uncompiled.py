"""What runs where Triton cannot compile a kernel: the op's fallback, after one warning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from v1fast._warnings import warn_caller
from v1fast.ops._define import defaults

failures: dict[str, str] = {}
"""Op name -> why a form of its kernel did not compile in this process."""


def _form(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What decides about a kernel's code, of an op's arguments: dtypes, names and flags."""
    kinds = ((a.dtype if isinstance(a, Tensor) else a) for a in arguments)
    return tuple(tuple(k) if isinstance(k, list) else None if type(k) is int else k for k in kinds)


def _is_of_the_compiler(error: Exception) -> bool:
    from triton.errors import TritonError  # from Triton 3.4 on

    return isinstance(error, TritonError) or (type(error) is RuntimeError and "PassManager" in str(error))


def reason_of(error: BaseException) -> str:
    """The first line of what the compiler says: it wraps that in the code that it was about."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def or_default(name: str, launcher: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``launcher``; for operands whose kernel does not compile, what runs op ``name`` without a kernel."""
    uncompiled: set[tuple[Any, ...]] = set()

    def launch(*arguments: Any) -> Any:
        if uncompiled and _form(arguments) in uncompiled:
            return defaults[name](*arguments)
        try:
            return launcher(*arguments)
        except Exception as error:
            if not _is_of_the_compiler(error):
                raise
            reason = reason_of(error)
        uncompiled.add(_form(arguments))
        if name not in failures:
            failures[name] = reason
            warn_caller(
                f"v1fast::{name} runs without a Triton kernel, slower: it does not compile here: {reason}",
                RuntimeWarning,
            )
        return defaults[name](*arguments)

    return launch
