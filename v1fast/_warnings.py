"""Warnings that point at the user's line."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

# A line of these is none that a user can change: torch calls a layer's forward through several frames of its own, more
# of them where a module has hooks or is compiled. An import does so too.
_INTERNAL = (*(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__)), "<frozen importlib")


def run_while_tracing(function: F) -> F:
    """Mark a function for ``torch.compile`` and ``torch.export`` to call while they trace, rather than to trace it.

    What ``torch.compiler.assume_constant_result`` does, without the import of the compiler, which takes a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    # torch 2.5 keeps the result as a global by the name in the code: of the function itself, which then was the result.
    code = function.__code__
    function.__code__ = code.replace(co_name=f"_result_of_{code.co_name}")
    return function


@run_while_tracing
def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """``warnings.warn``, at the innermost line outside of v1fast and torch.

    Where ``torch.compile`` or ``torch.export`` traces the call, it warns while that traces, and the graph stays whole.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INTERNAL):
        frame = frame.f_back
    # What warnings.warn does with the frame that it finds by stacklevel, a number of frames.
    names = frame.f_globals
    registry = names.setdefault("__warningregistry__", {})
    module = names.get("__name__", "<string>")
    warnings.warn_explicit(message, category, frame.f_code.co_filename, frame.f_lineno, module, registry)
