"""The Triton launchers in the place of the CPU kernels, on an emulated GPU.

The public functions, autograd, opcheck and torch.compile then reach them as they would on a GPU.
"""

import contextlib
import re

import ptx_emulator as emulator
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from v1fast import kernels
from v1fast.ops._define import forget_launchers, register_launcher

ATOMICS = re.compile(r"\s(red|atom)\.")
"""Matches in the PTX of a kernel that uses atomic additions."""


@contextlib.contextmanager
def gpu(arch, **how):
    """Run the block on this architecture; ``how`` is passed to ``emulator.active``."""
    library = torch.library.Library("v1fast", "IMPL")
    for name, launcher in kernels.CUDA.items():
        register_launcher(name, launcher, "CPU", library, allow_override=True)
    try:
        with emulator.active(arch, **how):
            yield
    finally:
        forget_launchers("CPU")
        library._destroy()


@contextlib.contextmanager
def assert_launches():
    """The block has to launch a kernel: it could also pass on the reference or on the kernels of the CPU."""
    before = emulator.launches()
    yield
    assert emulator.launches() > before, "no kernel was launched"


def with_programs(call):
    """Return the result of ``call()`` on sm_90, and the PTX of each kernel that it launches."""
    programs = []
    with gpu(90, transform=lambda text: programs.append(text) or text):
        result = call()
    return result, programs


def kernel_name(program):
    """Return the name of the kernel in this PTX."""
    return re.search(r"\.entry\s+(\w+)", program)[1]


class SeenOps(TorchDispatchMode):
    """Records the ops of torch that are called; ``host_reads`` are those that a CUDA graph could not capture."""

    def __init__(self):
        super().__init__()
        self.ops = set()
        self.most_elements = 0  # of a tensor that one of them returned

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.add(func)
        result = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        self.most_elements = max([self.most_elements, *sizes])
        return result

    @property
    def host_reads(self):
        """Ops that read values, or whose sizes depend on values."""
        return self.ops & {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


@contextlib.contextmanager
def assert_no_host_reads():
    """The block calls no .item() and makes no sizes that depend on data: a CUDA graph could not capture them."""
    with SeenOps() as seen, assert_launches():
        yield
    assert seen.ops, "the launchers call torch's ops at least for their outputs"
    assert not seen.host_reads
    with SeenOps() as seen:
        torch.ones(1).item()
    assert seen.host_reads, "a read on the host would not have been seen"
