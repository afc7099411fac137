"""A CUDA device that is none: its tensors are CPU tensors in disguise.

So code for a GPU is seen to run before it meets one. What a device refuses is refused: operands of two devices, NumPy,
and, while a graph is captured, reads by the host. Nothing is asynchronous. v1fast's ops run on what the CPU has: its
kernels, the fallback or the reference; with FAKE_CUDA=emulated on the Triton kernels, which the emulator executes.

``install()`` has to come before torch is imported; as ``pytest -p fake_cuda`` it does.
"""

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def _library():
    """The path of the compiled device.cpp. It takes seconds, once per version of it, torch and place of that torch.

    It is bound to the libraries of the torch that it was linked with: another environment may have the same version.
    """
    source = Path(__file__).with_name("device.cpp")
    torch = Path(importlib.util.find_spec("torch").origin).parent
    paths = [f"-I{torch / 'include'}", f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}"]
    command = ["g++", "-std=c++20", "-shared", "-fPIC", "-O0", "-w", *paths]
    made_of = source.read_bytes(), (torch / "version.py").read_bytes(), "\0".join(command).encode()
    key = hashlib.sha256(b"\0".join(made_of)).hexdigest()[:16]
    folder = Path(os.environ.get("V1FAST_EMULATOR_CACHE") or Path(tempfile.gettempdir()) / f"v1fast-{os.getuid()}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"fake-cuda-{key}.so"
    if not path.exists():
        made = path.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, str(source), "-o", str(made), "-ltorch_cpu", "-lc10"], check=True)
        made.replace(path)
    return path


def install():
    """From now on torch sees a CUDA device."""
    if "torch" in sys.modules:
        raise RuntimeError("fake_cuda: want to be installed before torch is imported")
    ctypes.CDLL(str(_library()))
    from . import runtime, tensors

    runtime.install()
    tensors.install()
    if os.environ.get("FAKE_CUDA") == "emulated":
        from emulated import gpu

        _kept.append(gpu(80))
        _kept[0].__enter__()


_kept = []  # a context that is never left

if "pytest" in sys.modules and "torch" not in sys.modules and "fake_cuda" in sys.argv:
    install()
