"""Which binary fits the torch at hand, and why a compiled part is not there.

The kernels for the CPU are one binary, ``v1fast._C``, for every torch from 2.10 on: its stable ABI. For torch 2.5 to
2.9 there is a binary for each release, ``v1fast._C_torch2_8`` for 2.8. A torch never meets a binary of another one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

STABLE_ABI = (2, 10)  # the first torch whose stable ABI has all that the kernels call

_FOLDER = Path(__file__).parent
_LEFT_OUT = _FOLDER / "_left_out.json"
_MODULES: dict[str, tuple[str, ...]] = {"v1fast._C": ("torch",), "v1fast._probe": ()}


def release(version: str) -> tuple[int, int]:
    """(2, 13) for "2.13.0+cpu"."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


def ops_binary(torch_version: str) -> str:
    """Name of the module with the kernels for the CPU that fits a torch, such as "2.13.0+cpu"."""
    major, minor = release(torch_version)
    return "v1fast._C" if (major, minor) >= STABLE_ABI else f"v1fast._C_torch{major}_{minor}"


def left_out(extension: str) -> str | None:
    """Why the installation of v1fast built no ``extension``; None where it did, and in a source tree."""
    try:
        reason: str | None = json.loads(_LEFT_OUT.read_text()).get(extension)
    except FileNotFoundError:  # what is not built at all, but used in its source tree, has none
        return None
    return reason


def _misfit(extension: str, torch_version: str) -> str | None:
    """What is wrong with the binaries of ``extension`` that are there, none of which was found by the right name."""
    stem = extension.rpartition(".")[2]
    found = sorted(path.name for path in _FOLDER.glob(f"{stem}[._]*") if path.suffix in (".so", ".pyd"))
    wanted = ops_binary(torch_version).rpartition(".")[2] if stem == "_C" else stem
    if not found or any(wanted + suffix in found for suffix in EXTENSION_SUFFIXES):
        return None
    if any(name.partition(".")[0] == wanted for name in found):
        return f"does not fit: {' and '.join(found)} is for another Python than {platform.python_version()}"
    least = f"torch {STABLE_ABI[0]}.{STABLE_ABI[1]} or later"
    what_for = []
    for name in found:
        torch = name.partition(".")[0].partition("_torch")[2].replace("_", ".")
        what_for.append(f"{name} for {f'torch {torch}' if torch else least}")
    there = f"{' and '.join(what_for)} is there, and this is torch {torch_version}"
    return f"does not fit: {there}: install v1fast again beside it"


def why_absent(extension: str, torch_version: str) -> str:
    """Why ``v1fast._C`` or ``v1fast._probe`` cannot be found; "not built" or "does not fit", and the reason."""
    unfit = _misfit(extension, torch_version)
    if unfit:
        return unfit
    if sys.platform not in ("linux", "darwin"):
        return f"not built: it is for Linux and macOS, and this is {platform.system()}"
    noted = left_out(extension)
    if noted:
        return f"not built when v1fast was installed: {noted}"
    lacking = [f"the module {name}" for name in _MODULES[extension] if importlib.util.find_spec(name) is None]
    compilers = [os.environ["CXX"].split()[0]] if os.environ.get("CXX", "").strip() else ["g++", "c++", "clang++"]
    if not any(map(shutil.which, compilers)):
        lacking.append(f"a C++20 compiler ({' or '.join(compilers)})")
    if lacking:
        return f"not built: installing v1fast builds it, which needs {' and '.join(lacking)}, not found here"
    return "not built: nothing that it needs is missing here now; install v1fast again"
