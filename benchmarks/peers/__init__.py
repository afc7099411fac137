"""Layers of other libraries, where they are installed or found in the folder V1FAST_PEERS."""

from __future__ import annotations

import collections
import collections.abc
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ..contract import Absent

# Imported together with the readouts, but not used by them.
_STAND_INS = ("torchvision", "jaxtyping")


class _AnyType:
    def __class_getitem__(cls, item: Any) -> Any:
        return Any


def published(module: str, name: str) -> Any:
    """Return what another library calls ``name`` in ``module``.

    Raises:
        Absent: it is not installed, or cannot be imported.
    """
    folder = os.environ.get("V1FAST_PEERS")
    if folder and os.path.abspath(folder) not in sys.path:
        sys.path.append(os.path.abspath(folder))  # last, so that it does not hide installed packages
    library = module.partition(".")[0]
    try:
        with importable():
            return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name == library:
            raise Absent(f"not installed: pip install --no-deps {library}") from error
        raise Absent(f"does not import: {error}") from error
    except (ImportError, AttributeError) as error:
        raise Absent(f"does not import: {error}") from error


@contextmanager
def importable() -> Iterator[None]:
    """Provide stand-ins for absent packages while a library is imported."""
    for name in ("Iterable", "Mapping"):  # neuralpredictors 0.3.0 expects them where Python 3.9 had them
        setattr(collections, name, getattr(collections.abc, name))
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
