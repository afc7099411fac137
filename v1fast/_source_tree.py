"""``kernels/`` and ``benchmarks/`` stand at the top level of the source tree, and are installed inside v1fast.

Once this module is imported, ``import v1fast.kernels`` and ``import v1fast.benchmarks`` also work in a source tree that
nothing has installed.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

_FOLDERS = {f"v1fast.{name}": Path(__file__).parents[1] / name for name in ("kernels", "benchmarks")}


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        init = _FOLDERS[fullname] / "__init__.py" if fullname in _FOLDERS else None
        return spec_from_file_location(fullname, init) if init is not None and init.exists() else None


sys.meta_path.append(_Finder())  # the last: what is installed comes first
