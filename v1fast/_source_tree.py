"""Packages that stand at the top level of the source tree and are installed inside v1fast."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def import_package(name: str) -> ModuleType:
    """``v1fast.<name>``; in a source tree that nothing has installed, the folder ``<name>`` beside ``v1fast``."""
    qualified = f"v1fast.{name}"
    init = Path(__file__).parents[1] / name / "__init__.py"
    if importlib.util.find_spec(qualified) is None and init.exists():
        spec = importlib.util.spec_from_file_location(qualified, init)
        if spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            sys.modules[qualified] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[qualified]  # half a module: the next import must fail as this one did
                raise
    return importlib.import_module(qualified)
