"""Compiled parts of v1fast; everything declarative is in pyproject.toml.

``v1fast._C``      the ops for the CPU, on torch's stable ABI (one binary for every torch >= 2.13)
``v1fast._probe``  the machine probe of ``v1fast doctor``

Both are optional: where they do not compile (no compiler, no torch at build time, Windows) the package
installs without them and runs on the pure-torch reference. ``V1FAST_REQUIRE_NATIVE=1`` makes that an error.

``V1FAST_SANITIZE=1`` builds ``v1fast._C`` alone, with AddressSanitizer and UndefinedBehaviorSanitizer, which end the
process at the first finding; see ``make test-sanitized``.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

STABLE_ABI_VERSION = "0x020d000000000000"  # torch 2.13
LIMITED_API = "0x030a0000"  # one binary for every Python >= 3.10
COMPILE_FLAGS = [
    "-O3",
    "-std=c++20",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",  # vectors are passed between inlined functions only
    "-Wno-maybe-uninitialized",  # GCC 12's own AVX-512 header
    "-Wno-unknown-warning-option",  # clang does not know the last one
    "-Wno-pass-failed",  # clang: a loop that it might have vectorised
]
SANITIZER_FLAGS = [
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-O1",  # after -O3, which it replaces
    "-g1",
]
STRIPPED = ["-Wl,-s"] if sys.platform == "linux" else []
required = os.environ.get("V1FAST_REQUIRE_NATIVE") == "1"
sanitized = os.environ.get("V1FAST_SANITIZE") == "1"
torch_libraries = os.environ.get(
    "V1FAST_TORCH_LIBRARIES"
)  # to link with, where not those of this torch: tools/wheels.py

LEFT_OUT = Path("v1fast/_left_out.json")  # name of an extension: why it is not built; v1fast doctor reads it
left_out: dict[str, str] = {}


def write_left_out(path: Path) -> None:
    path.unlink(missing_ok=True)
    if left_out and path.parent.is_dir():
        path.write_text(json.dumps(left_out))


class BuildExtensions(build_ext):
    def build_extension(self, ext: Any) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:
            left_out[ext.name] = str(error)
            raise

    def run(self) -> None:
        super().run()
        # The package has been copied by now; an editable one is used where it is.
        for folder in (Path(), Path(self.build_lib)):
            write_left_out(folder / LEFT_OUT)


def ops_extension() -> Extension:
    from torch.utils import cpp_extension

    return Extension(
        "v1fast._C",
        sources=["csrc/module.cpp", "csrc/old_systems.cpp", *sorted(str(p) for p in Path("csrc/cpu").glob("**/*.cpp"))],
        depends=sorted(str(p) for p in Path("csrc").glob("**/*") if p.suffix in (".h", ".inc")),
        # -isystem: torch's headers are not ours to warn about
        extra_compile_args=[
            *COMPILE_FLAGS,
            *(SANITIZER_FLAGS if sanitized else []),
            *(f"-isystem{path}" for path in cpp_extension.include_paths()),
        ],
        include_dirs=["csrc"],
        define_macros=[("TORCH_TARGET_VERSION", STABLE_ABI_VERSION), ("Py_LIMITED_API", LIMITED_API)],
        library_dirs=[torch_libraries] if torch_libraries else cpp_extension.library_paths(),
        libraries=["torch_cpu", "c10"],
        extra_link_args=SANITIZER_FLAGS if sanitized else STRIPPED,
        py_limited_api=True,
        optional=not required,
        language="c++",
    )


def probe_extension() -> Extension:
    return Extension(
        "v1fast._probe",
        sources=["csrc/probe.cpp", "csrc/old_systems.cpp"],
        depends=["csrc/cpu/detail/isa.h"],
        extra_compile_args=COMPILE_FLAGS,
        include_dirs=["csrc"],
        define_macros=[("Py_LIMITED_API", LIMITED_API)],
        extra_link_args=["-pthread", *STRIPPED],
        py_limited_api=True,
        optional=not required,
        language="c++",
    )


def extensions() -> list[Extension]:
    if sys.platform not in ("linux", "darwin"):  # macOS: meant to compile, never run
        return []
    found = []
    makers = {"v1fast._C": ops_extension, "v1fast._probe": probe_extension}
    for name, make in makers.items():
        if sanitized and make is probe_extension:
            continue
        try:
            found.append(make())
        except ImportError as error:
            if required:
                raise
            left_out[name] = str(error)
            print(f"v1fast: {name} left out: {error}", file=sys.stderr)
    write_left_out(LEFT_OUT)
    return found


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtensions},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
