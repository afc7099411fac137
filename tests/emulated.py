"""Ops whose launchers run on the emulated GPU: they hold the CPU key of the dispatcher for a while."""

import contextlib

import emulator
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from v1fast import kernels


@contextlib.contextmanager
def gpu(arch, **how):
    """On this architecture; ``how`` as in ``emulator.active``."""
    library = torch.library.Library("v1fast", "IMPL")
    for name, launcher in kernels.CUDA.items():
        library.impl(name, launcher, "CPU", allow_override=True)
    try:
        with emulator.active(arch, **how):
            yield
    finally:
        library._destroy()


@contextlib.contextmanager
def launching():
    """What runs in it has to launch a kernel: it could also pass on the reference or the kernels of the CPU."""
    before = emulator.launches()
    yield
    assert emulator.launches() > before, "no kernel was launched"


HOST_READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class _Seen(TorchDispatchMode):
    """The ops of torch that are called in it."""

    def __init__(self):
        super().__init__()
        self.ops = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.add(func)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def reading_nothing_on_the_host():
    """No .item() in it, no sizes that depend on data: what a CUDA graph could not capture."""
    with _Seen() as seen, launching():
        yield
    assert seen.ops, "the launchers call torch's ops at least for their outputs"
    assert not seen.ops & HOST_READS
    with _Seen() as seen:
        torch.ones(1).item()
    assert seen.ops & HOST_READS, "a read on the host would not have been seen"
