"""Compiled parts of v1fast; everything declarative is in pyproject.toml.

``v1fast._C``      the ops for the CPU, on torch's stable ABI (one binary for every torch >= 2.10); beside a torch from
                   2.5 to 2.9, on ATen, for that release alone, under a name of its own (``v1fast/_build.py``)
``v1fast._probe``  the machine probe of ``v1fast doctor``

Both are optional: where they do not compile (no compiler, no torch at build time, Windows) the package
installs without them and runs on the pure-torch reference. ``V1FAST_REQUIRE_NATIVE=1`` makes that an error.

torch is no requirement of the build, so that nobody's torch is replaced or downloaded again. The build uses the torch
that it finds, which is that of the environment with ``pip install --no-build-isolation``, and none without.

``V1FAST_SANITIZE=1`` builds ``v1fast._C`` alone, with AddressSanitizer and UndefinedBehaviorSanitizer, which end the
process at the first finding; see ``make test-sanitized``.
"""

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

_build = runpy.run_path(str(Path(__file__).parent / "v1fast" / "_build.py"))
ops_binary, STABLE_ABI = _build["ops_binary"], _build["STABLE_ABI"]
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
built: set[str] = set()


def write_left_out(path: Path) -> None:
    path.unlink(missing_ok=True)
    if left_out and path.parent.is_dir():
        path.write_text(json.dumps(left_out))


class BuildExtensions(build_ext):
    def build_extension(self, ext: Any) -> None:
        self.force = ext.name not in built  # what is left of an earlier build may be for another torch
        built.add(ext.name)  # bdist_wheel asks for it again
        try:
            super().build_extension(ext)
        except Exception as error:
            left_out["v1fast._C" if ext.name.startswith("v1fast._C") else ext.name] = str(error)
            raise

    def run(self) -> None:
        super().run()
        # The package has been copied by now; an editable one is used where it is.
        for folder in (Path(), Path(self.build_lib)):
            write_left_out(folder / LEFT_OUT)


def torch_macros(name: str, torch: Any) -> list[tuple[str, str]]:
    major, minor = STABLE_ABI
    if name == "v1fast._C":
        return [("TORCH_TARGET_VERSION", f"0x{major:02x}{minor:02x}000000000000")]
    return [("V1FAST_ATEN", "1"), ("_GLIBCXX_USE_CXX11_ABI", str(int(torch._C._GLIBCXX_USE_CXX11_ABI)))]


def openmp_libraries(folders: list[str]) -> list[str]:
    """ATen starts threads in its headers: by the library that torch's own code uses, or there would be two of them."""
    found = [str(path) for folder in folders for path in sorted(Path(folder).glob("libgomp*.so*"))]
    return found[:1] or ["-fopenmp"]


def ops_extension() -> Extension:
    import torch
    from torch.utils import cpp_extension

    name = ops_binary(torch.__version__)
    folders = cpp_extension.library_paths()
    on_aten = name != "v1fast._C"
    return Extension(
        name,
        sources=["csrc/module.cpp", "csrc/old_systems.cpp", *sorted(str(p) for p in Path("csrc/cpu").glob("**/*.cpp"))],
        depends=sorted(str(p) for p in Path("csrc").glob("**/*") if p.suffix in (".h", ".inc")),
        # -isystem: torch's headers are not ours to warn about
        extra_compile_args=[
            *COMPILE_FLAGS,
            *(SANITIZER_FLAGS if sanitized else []),
            *(["-fopenmp"] if on_aten else []),
            *(f"-isystem{path}" for path in cpp_extension.include_paths()),
        ],
        include_dirs=["csrc"],
        define_macros=[
            *torch_macros(name, torch),
            ("V1FAST_MODULE", name.rpartition(".")[2]),
            ("Py_LIMITED_API", LIMITED_API),
        ],
        library_dirs=[torch_libraries] if torch_libraries else folders,
        libraries=["torch_cpu", "c10"],
        extra_link_args=[
            *(openmp_libraries(folders) if on_aten else []),
            *(SANITIZER_FLAGS if sanitized else STRIPPED),
        ],
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
        except (ImportError, OSError) as error:  # OSError: a torch whose own libraries are missing
            if required:
                raise
            left_out[name] = str(error)
    write_left_out(LEFT_OUT)
    return found


def say_what_is_left_out(commands: dict[str, bool]) -> None:
    """Once a build, not in the steps that only ask for its name and requirements."""
    why = "it is for Linux and macOS" if sys.platform not in ("linux", "darwin") else left_out.get("v1fast._C")
    if not why or not commands.get("build_py"):
        return
    print(
        f"\nv1fast: no kernel was compiled: {why}\n"
        "v1fast works without, but slower. To compile the kernels, install it beside torch and a C++ compiler:\n"
        "pip install --no-build-isolation v1fast\n",
        file=sys.stderr,
    )


distribution = setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtensions},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
say_what_is_left_out(distribution.have_run)
