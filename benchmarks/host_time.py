"""Host time on the GPU path: what a call costs in Python and torch where every launch of a Triton kernel does nothing.

``python -m v1fast.benchmarks.host_time`` needs Triton but no GPU. The launchers run in the place of the CPU kernels, on
tiny CPU tensors, and Triton compiles for sm_90. What a kernel's launch costs in the driver is not in the figures. What
torch's own small ops do is, with their tiny work on the CPU; on a GPU they would launch kernels instead. Both are true
of the chain of torch's own ops too, which is measured beside it: ``grid_sample``, product and sum.

Where V1FAST_PEERS says where they are, or they are installed, neuralpredictors' own layers are measured too.

``--against TREE`` measures another source tree in turns with this one, each turn in a new process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

CALLS, ROUNDS = 100, 20  # of a batch, and batches of each case
SIZES = {
    "B": 64,
    "C": 16,
    "H": 2,
    "W": 2,
    "N": 16,
}  # so many images that partial sums are added in a launch of their own
CHAIN_SIZES = {"B": 2, "C": 4, "H": 2, "W": 2, "N": 4}  # a chain's arithmetic must not count, and it has no other path

Call = Callable[[], Any]


class _Driver:
    """Triton's driver for a device on which nothing runs. It counts the launches."""

    launches = 0

    class Launcher:
        def __init__(self, source: Any, metadata: Any) -> None:
            pass

        def __call__(self, *arguments: Any) -> None:
            _Driver.launches += 1

    def __init__(self) -> None:
        from triton.backends.compiler import GPUTarget

        self.target, self.launcher_cls = GPUTarget("cuda", 90, 32), self.Launcher
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 2**18, "multiprocessor_count": 132},
            load_binary=lambda *arguments: (1, 1, 0, 0, 1024),  # module, function, registers, spills, threads
            unload_module=lambda module: None,
        )

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def _without_gpu() -> Iterator[None]:
    """Let the launchers run on CPU tensors, and their launches do nothing."""
    import triton

    from v1fast import kernels
    from v1fast.ops._define import forget_launchers, register_launcher

    library = torch.library.Library("v1fast", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, launcher in kernels.CUDA.items():
            register_launcher(name, launcher, "CPU", library, allow_override=True)
    before, triton.runtime.driver._active = triton.runtime.driver._active, _Driver()
    try:
        yield
    finally:
        triton.runtime.driver._active = before
        forget_launchers("CPU")
        library._destroy()


def _operands(sizes: dict[str, int], grad: bool) -> dict[str, Tensor]:
    batch, channels, height, width, neurons = (sizes[axis] for axis in "BCHWN")
    made = {
        "features": torch.randn(batch, channels, height, width).to(memory_format=torch.channels_last),
        "mu": torch.rand(neurons, 2) - 0.5,
        "sigma": 0.1 * torch.randn(neurons, 2, 2),
        "weight": torch.randn(channels, neurons).t(),  # as layers keep it
        "bias": torch.randn(neurons),
    }
    return {name: tensor.requires_grad_(grad) for name, tensor in made.items()}


def _map(sizes: dict[str, int]) -> Tensor:
    """Features that can be pooled."""
    return torch.randn(sizes["B"], sizes["C"], 8, 8).to(memory_format=torch.channels_last).requires_grad_()


def _step(forward: Callable[[], Tensor], leaves: list[Tensor]) -> Call:
    """Forward and backward to all leaves."""
    upstream = torch.ones_like(forward())
    return lambda: torch.autograd.grad(forward(), leaves, upstream)


def _training(layer: nn.Module, features: Tensor) -> Call:
    """A training step without an optimiser."""

    def step() -> None:
        features.grad = None
        layer.zero_grad(set_to_none=True)
        layer(features).sum().backward()

    return step


class ChainLayer(nn.Module):
    """The Gaussian layer in torch's own ops, with the parameters that neuralpredictors keeps.

    It does what their ``FullGaussian2d`` does in training: the clamp of the means, the noise, the covariance, the clamp
    of the positions, ``grid_sample``, weights and bias. It leaves out what only they do: comparing the size of the map,
    choosing neurons, shifting. So it takes a little less time than their layer, which is measured where it is found.
    """

    def __init__(self, channels: int, neurons: int) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.rand(1, neurons, 1, 2) - 0.5)
        self.sigma = nn.Parameter(0.1 * torch.randn(1, neurons, 2, 2))
        self.features = nn.Parameter(torch.randn(1, channels, 1, neurons))
        self.bias = nn.Parameter(torch.zeros(neurons))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mu.clamp_(-1, 1)
        noise = x.new_empty(len(x), *self.mu.shape[1:]).normal_()
        grid = (torch.einsum("ancd,bnid->bnic", self.sigma, noise) + self.mu).clamp(-1, 1)
        read = nn.functional.grid_sample(x, grid, align_corners=True).squeeze(-1)
        return (read * self.features.view(1, x.shape[1], -1)).sum(1) + self.bias


def _published(x: Tensor, pooled: Tensor) -> dict[str, nn.Module]:
    """neuralpredictors' own layers for these maps, if they are found."""
    from v1fast.benchmarks.contract import Absent  # type: ignore[import-not-found]
    from v1fast.benchmarks.peers import published  # type: ignore[import-not-found]

    readouts, neurons = "neuralpredictors.layers.readouts", CHAIN_SIZES["N"]
    try:
        gaussian = published(f"{readouts}.gaussian", "FullGaussian2d")
        point = published(f"{readouts}.point_pooled", "PointPooled2d")
    except Absent:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a bias that starts at 0
        return {
            "FullGaussian2d": gaussian(x.shape[1:], neurons, bias=True),
            "PointPooled2d": point(
                pooled.shape[1:], neurons, pool_steps=1, pool_kern=2, bias=True, init_range=0.1, align_corners=True
            ),
        }


def cases() -> dict[str, tuple[Call, bool]]:
    """Name -> what is timed, and whether autograd records."""
    from v1fast import _eager, functional, readouts

    found: dict[str, tuple[Call, bool]] = {}
    seed = torch.tensor([5])
    for grad in (False, True):
        given, chain = _operands(SIZES, grad), _operands(CHAIN_SIZES, grad)

        def ours(given: dict[str, Any] = given) -> Tensor:
            return functional.gaussian_readout(**given, seed=seed)

        def eager(chain: dict[str, Any] = chain) -> Tensor:
            return _eager.gaussian_readout(**chain, noise=torch.randn(CHAIN_SIZES["B"], CHAIN_SIZES["N"], 2))

        if grad:
            found["gaussian_readout, forward and backward"] = _step(ours, list(given.values())), True
            found["chain, forward and backward"] = _step(eager, list(chain.values())), True
            layer = readouts.FullGaussian2d([SIZES[axis] for axis in "CHW"], SIZES["N"], bias=True)
            found["FullGaussian2d, step"] = _training(layer, given["features"]), True
            own = ChainLayer(CHAIN_SIZES["C"], CHAIN_SIZES["N"])
            found["chain as a layer, step"] = _training(own, chain["features"]), True
            pooled = readouts.PointPooled2d(
                [SIZES["C"], 8, 8], SIZES["N"], pool_steps=1, pool_kern=2, bias=True, init_range=0.1
            )
            x = _map(SIZES)
            found["PointPooled2d, step"] = _training(pooled, x), True
            maps = chain["features"], _map(CHAIN_SIZES)
            small = readouts.PointPooled2d(maps[1].shape[1:], CHAIN_SIZES["N"], 1, True, 2, 0.1)
            found["PointPooled2d on the chain's maps, step"] = _training(small, maps[1]), True
            for name, peer in _published(*maps).items():
                found[f"neuralpredictors' {name}, step"] = _training(peer, maps[name != "FullGaussian2d"]), True
        else:
            found["gaussian_readout, forward"] = ours, False
            found["chain, forward"] = eager, False
    return found


class _Counter(TorchDispatchMode):
    """Counts the ops of torch that would launch a kernel: those that are no views and do more than allocate."""

    FREE = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach", "_unsafe_view")

    def __init__(self) -> None:
        super().__init__()
        from v1fast import kernels
        from v1fast.ops._define import defaults

        self.count, self.launchers = 0, {**defaults, **kernels.CUDA}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        view = any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)
        if name.startswith("v1fast::"):
            with self:  # a launcher's own calls of torch
                return self.launchers[name.removeprefix("v1fast::")](*args, **(kwargs or {}))
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # such as contiguous, below autograd: what it is made of counts
                return func.decompose(*args, **(kwargs or {}))
        if not view and name.removeprefix("aten::") not in self.FREE:
            self.count += 1
        return func(*args, **(kwargs or {}))


def _launches(call: Call) -> tuple[int, int]:
    """Return the launches of Triton kernels, and of kernels of torch, in one call."""
    before = _Driver.launches
    call()
    # Where the counter is seen, a call takes another way.
    with mock.patch("v1fast._torch._len_torch_dispatch_stack", return_value=0), _Counter() as torchs:
        call()
    return (_Driver.launches - before) // 2, torchs.count


def _timed(call: Call) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e3


def measure() -> dict[str, dict[str, float]]:
    """Return the microseconds of each case, the median over calls, and its launches; batches of calls take turns."""
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {}
    with _without_gpu():
        made = cases()
        for call, grad in made.values():
            with torch.set_grad_enabled(grad):
                for _ in range(10):
                    call()
        for _ in range(ROUNDS):
            for name, (call, grad) in made.items():
                with torch.set_grad_enabled(grad):
                    times.setdefault(name, []).extend(_timed(call) for _ in range(CALLS))
        counts = {}
        for name, (call, grad) in made.items():
            with torch.set_grad_enabled(grad):
                counts[name] = _launches(call)
    return {
        name: {"us": statistics.median(found), "triton": counts[name][0], "torch": counts[name][1]}
        for name, found in times.items()
    }


_IN_TREE = """
import runpy, sys
# What is installed in place of the tree under test is not wanted.
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _in_turns(trees: dict[str, Path], turns: int) -> dict[str, dict[str, dict[str, float]]]:
    """Measure each tree in processes of its own, in turns. Return the medians over the turns."""
    found: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in trees}
    for turn in range(turns):
        for name in sorted(trees, reverse=bool(turn % 2)):
            environment = {**os.environ, "PYTHONPATH": str(trees[name]), "V1FAST_KERNELS": "triton,fallback"}
            command = [sys.executable, "-P", "-c", _IN_TREE, __file__, "--json"]
            printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[name].append(json.loads(printed.splitlines()[-1]))
    return {
        name: {
            case: {key: statistics.median(run[case][key] for run in runs) for key in runs[0][case]} for case in runs[0]
        }
        for name, runs in found.items()
    }


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another source tree")
    parser.add_argument("--turns", type=int, default=3, help="of each tree")
    parser.add_argument("--json", action="store_true", help="print the figures of this process alone")
    arguments = parser.parse_args()
    if arguments.json:
        print(json.dumps(measure()))
        return
    trees = {"this tree": Path(__file__).parents[1]}
    if arguments.against:
        trees["other"] = arguments.against.resolve()
    for name, found in _in_turns(trees, arguments.turns).items():
        for case, row in found.items():
            print(
                f"{name:10} {case:44} {row['us']:6.0f} us, {row['triton']:.0f} launches of Triton's kernels, "
                f"{row['torch']:.0f} of torch's"
            )


if __name__ == "__main__":
    main()
