"""Why a compiled part is not there: what setup.py wrote down, or else what this environment lacks to build it."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import sys
from pathlib import Path

_LEFT_OUT = Path(__file__).with_name("_left_out.json")
_MODULES: dict[str, tuple[str, ...]] = {"v1fast._C": ("torch",), "v1fast._probe": ()}


def why_absent(extension: str) -> str:
    """Why ``v1fast._C`` or ``v1fast._probe`` cannot be found; "not built" and the reason."""
    if sys.platform not in ("linux", "darwin"):
        return f"not built: it is for Linux and macOS, and this is {platform.system()}"
    try:
        noted = json.loads(_LEFT_OUT.read_text()).get(extension)
    except FileNotFoundError:  # what is not built at all, but used in its source tree, has none
        noted = None
    if noted:
        return f"not built when v1fast was installed: {noted}"
    lacking = [f"the module {name}" for name in _MODULES[extension] if importlib.util.find_spec(name) is None]
    compilers = [os.environ["CXX"].split()[0]] if os.environ.get("CXX", "").strip() else ["g++", "c++", "clang++"]
    if not any(map(shutil.which, compilers)):
        lacking.append(f"a C++20 compiler ({' or '.join(compilers)})")
    if lacking:
        return f"not built: installing v1fast builds it, which needs {' and '.join(lacking)}, not found here"
    return "not built: nothing that it needs is missing here now; install v1fast again"
