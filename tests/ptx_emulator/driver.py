"""A Triton driver whose device is this emulator: real compilation for a GPU, execution on CPU tensors."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.cache import get_cache_manager

from . import native
from .errors import EmulatorError, UnsupportedPtx
from .kernel import SHARED_BYTES, PtxKernel

Transform = Callable[[str], str]


@dataclass
class _State:
    order: str | int = "forward"
    transform: Transform | None = None
    races: bool = True
    launches: int = 0
    kernels: dict[str, PtxKernel] = field(default_factory=dict)  # by digest of the PTX


_state = _State()


def ptx_of(compiled: Any) -> str:
    """Return the PTX of the result of ``kernel[grid](...)`` or ``kernel.warmup(...)``."""
    return str(compiled.asm["ptx"])


def kernel_of(text: str) -> PtxKernel:
    """Return the translated kernel, cached by its text."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest not in _state.kernels:
        _state.kernels[digest] = PtxKernel(text)
    return _state.kernels[digest]


def launches() -> int:
    """Return how many kernels have been launched in this process."""
    return _state.launches


def install(
    arch: int = 80, order: str | int = "forward", transform: Transform | None = None, races: bool = True
) -> None:
    """Make the emulator Triton's device, until ``uninstall``.

    Args:
        arch: compute capability: 80, 90 or 100.
        order: of blocks and threads: "forward", "reverse" or the seed of a shuffle.
        transform: applied to the PTX before it runs.
        races: whether a race in shared memory is an error.
    """
    if arch not in SHARED_BYTES:
        raise ValueError(f"arch: want one of {sorted(SHARED_BYTES)}, got {arch}")
    _state.order, _state.transform, _state.races = order, transform, races
    if "TRITON_CACHE_DIR" not in os.environ:
        triton.knobs.cache.dir = str(native.cache_folder() / "triton")
    triton.runtime.driver.set_active(Driver(arch))


def uninstall() -> None:
    """Let Triton choose its own driver again."""
    _set_active(None)
    _state.order, _state.transform, _state.races = "forward", None, True


@contextlib.contextmanager
def active(
    arch: int = 80, order: str | int = "forward", transform: Transform | None = None, races: bool = True
) -> Iterator[None]:
    """Call ``install`` for the duration of a ``with`` block; the arguments are the same."""
    before = triton.runtime.driver._active, _state.order, _state.transform, _state.races
    install(arch, order, transform, races)
    try:
        yield
    finally:
        _set_active(before[0])
        _state.order, _state.transform, _state.races = before[1:]


def _set_active(driver: Any) -> None:
    # reset_active() would look for a GPU immediately. Here the search waits until a driver is needed.
    triton.runtime.driver._active = driver


class Launcher:
    """The object that Triton calls to launch a compiled kernel. It is made from the kernel's source and metadata."""

    def __init__(self, source: Any, metadata: Any):
        if getattr(metadata, "num_ctas", 1) > 1:
            raise UnsupportedPtx("num_ctas > 1: clusters are not supported")
        self.signature = list(_flat(source.signature.values()))
        self.names = [name for name, kind in source.signature.items() for _ in _flat((kind,))]
        self.metadata = metadata
        stored = get_cache_manager(metadata.hash).get_file(f"{metadata.name}.ptx")
        if stored is None:
            raise EmulatorError(f"Triton's cache holds no PTX of {metadata.name}: is TRITON_STORE_BINARY_ONLY set?")
        self.text = Path(stored).read_text()

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
        """Launch. The four arguments after the function (two kinds of metadata, two hooks) are not used."""
        text = self.text if _state.transform is None else _state.transform(self.text)
        args, names = [], []
        for name, kind, value in zip(self.names, self.signature, _flat(rest[4:]), strict=True):
            if kind != "constexpr":
                args.append(_argument(kind, value))
                names.append(name)
        _state.launches += 1
        scratch = self._scratch(x * y * z)
        threads = (32 * self.metadata.num_warps,)
        kernel_of(text).launch(
            (x, y, z), threads, [*args, *scratch], self.metadata.shared, _state.order, names, _state.races
        )

    def _scratch(self, blocks: int) -> list[torch.Tensor | int]:
        sizes = (getattr(self.metadata, f"{kind}_scratch_size", 0) for kind in ("global", "profile"))
        return [torch.empty(size * blocks, dtype=torch.uint8) if size else 0 for size in sizes]


def _flat(items: Any) -> Iterator[Any]:
    for item in items:
        if isinstance(item, tuple):
            yield from _flat(item)
        else:
            yield item


def _argument(kind: str, value: Any) -> Any:
    """Convert one argument to the form of the kernel's parameter."""
    if kind.startswith("*"):
        if value is None:
            return 0
        if not isinstance(value, torch.Tensor):
            raise EmulatorError(f"want a tensor for an argument of type {kind}, got {type(value).__name__}")
        return value
    if kind in ("fp16", "bf16"):
        dtype = torch.float16 if kind == "fp16" else torch.bfloat16
        return int(torch.tensor(float(value), dtype=dtype).view(torch.int16))
    if kind in ("fp32", "f32", "fp64"):
        return float(value)
    if kind[0] in "iu" and kind[1:].isdigit():
        return int(value)
    raise UnsupportedPtx(f"an argument of type {kind} is not supported")


class _Utils:
    """The part of a driver that knows the device and loads binaries."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": SHARED_BYTES[self.arch], "multiprocessor_count": 4, "warpSize": 32,
            "max_num_regs": 65536, "sm_clock_rate": 1, "mem_clock_rate": 1, "mem_bus_width": 1,
        }  # fmt: skip

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, ...]:
        return 1, 1, 0, 0, 1024  # module, function, registers, spills, threads

    def unload_module(self, module: int) -> None:
        pass


class Driver:
    """The interface of ``triton.backends.driver.DriverBase``, for one architecture."""

    def __init__(self, arch: int):
        self.arch = arch
        self.utils = _Utils(arch)
        self.launcher_cls = Launcher

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        # Triton caches compiled kernels by device, so each architecture is a device.
        return self.arch

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(self.arch, 10)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    def get_benchmarker(self) -> Callable[..., Any]:
        """Return a benchmarker that runs once and reports equal times. The autotuner takes its first configuration."""

        def benchmark(function: Callable[[], Any], quantiles: Sequence[float] | None = None, **_: Any) -> Any:
            function()
            return [1.0] * len(quantiles) if quantiles else 1.0

        return benchmark

    def get_empty_cache_for_benchmark(self) -> torch.Tensor:
        return torch.empty(1)

    def clear_cache(self, cache: torch.Tensor) -> None:
        pass

    @staticmethod
    def is_active() -> bool:
        return True
