"""A compiled kernel that can be launched on CPU tensors."""

import ctypes
import math
import re
import struct
from collections.abc import Sequence
from typing import Any

import torch

from . import errors, native
from .assemble import TAG_SHIFT, Program, assemble
from .ptx import parse, sources

# The limits of one block on the tested architectures.
SHARED_BYTES = {80: 166912, 90: 232448, 100: 232448}
_MAX_THREADS = 1024
_PAGE = 4096


class PtxKernel:
    """One kernel of a PTX module.

    Args:
        text: the PTX.
        name: of the kernel, if there are several.
    """

    def __init__(self, text: str, name: str | None = None):
        kernels = [k for k in parse(text) if name in (None, k.name)]
        if len(kernels) != 1:
            raise errors.EmulatorError(f"{len(kernels)} kernels named {name or 'anything'} in this PTX, want one")
        self.text = text
        self.program: Program = assemble(kernels[0])
        self.name = kernels[0].name
        target = re.search(r"^\.target\s+sm_(\d+)", text, re.MULTILINE)
        self.arch = int(target[1]) if target else None
        self._steps = _steps(self.program)
        self._initial = (ctypes.c_uint64 * len(self.program.initial))(*self.program.initial)

    def launch(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared: int = 0,
        order: str | int = "forward",
        names: Sequence[str] = (),
        races: bool = True,
    ) -> None:
        """Run the kernel to its end.

        Args:
            grid: blocks along x, y, z; trailing ones may be left out.
            block: threads, likewise.
            args: CPU tensors, ints and floats, one per parameter; missing ones are null.
            shared: dynamic shared memory in bytes.
            order: of blocks and threads: "forward", "reverse" or the seed of a shuffle.
            names: of the arguments, for messages.
            races: whether a race in shared memory is an error.
        """
        grid, block = ([*map(int, size)] + [1] * (3 - len(size)) for size in (grid, block))
        self._check_resources(block, shared)
        if not math.prod(grid):
            return
        memory = _Memory(self.program.constants)
        parameters = self._parameters(args, memory, names)
        regions = (native.Region * max(1, len(memory.regions)))(*memory.regions)
        raw = native.Launch(
            (ctypes.c_uint32 * 3)(*grid), (ctypes.c_uint32 * 3)(*block),
            len(self._steps), len(self._initial), len(memory.regions), len(parameters),
            self.program.shared_bytes + shared, self.program.local_bytes, _order_number(order), races,
            ctypes.addressof(self._steps), ctypes.addressof(self._initial), ctypes.addressof(regions),
            ctypes.cast(ctypes.c_char_p(parameters), ctypes.c_void_p),
        )  # fmt: skip
        message = native.library().emulator_launch(ctypes.byref(raw))
        if message:
            raise self._error(message.decode(), memory.names)

    def _check_resources(self, block: Sequence[int], shared: int) -> None:
        threads, wanted = math.prod(block), self.program.kernel.threads
        if not 0 < threads <= _MAX_THREADS or (wanted and wanted != threads):
            raise errors.OutOfResources(f"{self.name}: {threads} threads, want {wanted or f'1 to {_MAX_THREADS}'}")
        limit = SHARED_BYTES.get(self.arch or 80, min(SHARED_BYTES.values()))
        if self.program.shared_bytes + shared > limit:
            total = self.program.shared_bytes + shared
            raise errors.OutOfResources(f"{self.name}: {total} bytes of shared memory, sm_{self.arch} has {limit}")

    def _parameters(self, args: Sequence[Any], memory: "_Memory", names: Sequence[str]) -> bytes:
        kinds = self.program.kernel.parameters
        if len(args) > len(kinds):
            raise errors.EmulatorError(f"{self.name}: {len(args)} arguments for {len(kinds)} parameters")
        packed = b""
        values = [*args, *[0] * (len(kinds) - len(args))]
        for i, ((kind, name), value) in enumerate(zip(kinds, values, strict=True)):
            if isinstance(value, torch.Tensor):
                if kind not in ("u64", "b64", "s64"):
                    raise errors.EmulatorError(f"{self.name}: a tensor for parameter {name} of type {kind}")
                value = memory.address(value, names[i] if i < len(names) else name)
            if isinstance(value, float):
                if kind[1:] not in ("32", "64"):
                    raise errors.EmulatorError(f"{self.name}: a float for parameter {name} of type {kind}")
                packed += struct.pack("<f4x" if kind[1:] == "32" else "<d", value)
            else:
                packed += (int(value) & (2**64 - 1)).to_bytes(8, "little")
        return packed

    def _error(self, message: str, names: Sequence[str]) -> errors.EmulatorError:
        kind, line_text, what = message.split("\n", 2)
        line = int(line_text)
        what = re.sub(r"tensor (\d+)", lambda match: names[int(match[1])], what)
        origin = sources(self.text)
        source = f" ({origin[line]})" if line < len(origin) and origin[line] else ""
        where = f"PTX line {line}{source}: `{self.program.texts.get(line, 'ret')}`"
        error: errors.EmulatorError = getattr(errors, kind)(f"{self.name}, {where}: {what}")
        return error


class _Memory:
    """Gives every tensor its own address space, so that no overrun reaches another tensor."""

    def __init__(self, constants: Sequence[bytes]):
        self.regions: list[native.Region] = []
        self.names: list[str] = []
        self.numbers: dict[tuple[int, int], int] = {}
        self.kept = [ctypes.create_string_buffer(data, len(data)) for data in constants]
        for data in self.kept:  # the assembler expects them first, each at the start of its space
            self.regions.append(native.Region(ctypes.addressof(data), 0, len(data)))
            self.names.append("module memory")

    def address(self, tensor: torch.Tensor, name: str) -> int:
        """Return the address that the kernel sees instead of ``data_ptr()``. Views of one storage share a space."""
        if tensor.device.type != "cpu":
            raise errors.EmulatorError(f"{name}: the emulator runs on CPU tensors, got one on {tensor.device}")
        storage = tensor.untyped_storage()
        base, size = storage.data_ptr(), storage.nbytes()
        # In the middle: an overrun at either end is still told apart from other spaces. The alignment is that of the
        # tensor.
        begin = (1 << (TAG_SHIFT - 1)) + base % _PAGE
        if (base, size) not in self.numbers:
            self.numbers[base, size] = len(self.regions)
            self.regions.append(native.Region(base, begin, size))
            self.names.append(name)
        return ((self.numbers[base, size] + 1) << TAG_SHIFT) + begin + (tensor.data_ptr() - base if size else 0)


def _steps(program: Program) -> ctypes.Array[native.Step]:
    steps = (native.Step * len(program.steps))()
    for raw, (opcode, line, slots) in zip(steps, program.steps, strict=True):
        raw.opcode, raw.line = opcode, line
        raw.slot[: len(slots)] = slots
    return steps


def _order_number(order: str | int) -> int:
    if isinstance(order, str):
        try:
            return ("forward", "reverse").index(order)
        except ValueError:
            raise ValueError(f"order: want 'forward', 'reverse' or a seed, got {order!r}") from None
    return order % 2**32 + 2
