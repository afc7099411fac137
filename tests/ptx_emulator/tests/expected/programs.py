"""Completes bodies of kernels with declarations, parameters and the address of each thread's own elements."""

from typing import Any

import torch
from ptx_emulator.kernel import PtxKernel

from .snippets import HEADER, width


def dotted(*parts: str) -> str:
    """``a.b.c``, without the empty parts."""
    return ".".join(part for part in parts if part)


def vector(lanes: int) -> str:
    """The modifier of an access to several values."""
    return f"v{lanes}" if lanes > 1 else ""


def braced(names: list[str]) -> str:
    """The operand of an access to one or several values."""
    return "{" + ", ".join(names) + "}" if len(names) > 1 else names[0]


def from_memory(kind: str, data: torch.Tensor, lanes: int, stride: int | None = None) -> list[int]:
    """Return the codes of values in memory, contiguous or ``stride`` bytes apart."""
    n = width(kind) // 8
    raw = bytes(data.tolist())
    return [int.from_bytes(raw[i * (stride or n) :][:n], "little") for i in range(lanes)]


def launch(text: str, *args: Any, block: int = 1, grid: int = 1, **options: Any) -> None:
    """Translate and run."""
    PtxKernel(text).launch((grid,), (block,), args, **options)


def with_pointers(body: str, parameters: str = "x y", declarations: str = "", registers: str = "") -> str:
    """Return a kernel whose 64-bit parameters are in registers of the same names."""
    names = parameters.split()
    listed = ", ".join(f".param .u64 p_{name}" for name in names)
    loads = "\n".join(f".reg .b64 %{name};\nld.param.u64 %{name}, [p_{name}];" for name in names)
    return f"""{HEADER}{declarations}
.visible .entry snippet({listed})
{{
.reg .pred %p, %q;
.reg .b32 %tid, %w<16>;
.reg .b64 %l<16>, %at;
{registers}
mov.u32 %tid, %tid.x;
{loads}
{body}
ret;
}}
"""


def per_thread(body: str, declarations: str = "", out_bytes: int = 4) -> str:
    """Return a kernel of ``out`` and ``x``. A thread's elements are at %at (``out_bytes`` each) and %from (four)."""
    return f"""{HEADER}{declarations}
.visible .entry snippet(.param .u64 p_out, .param .u64 p_x)
{{
.reg .pred %p, %q;
.reg .b32 %t, %b, %n, %a, %w<32>;
.reg .b64 %at, %from, %out, %x, %l<8>;
ld.param.u64 %out, [p_out];
ld.param.u64 %x, [p_x];
mov.u32 %b, %ctaid.x;
mov.u32 %n, %ntid.x;
mov.u32 %t, %tid.x;
mad.lo.s32 %a, %b, %n, %t;
mul.wide.s32 %l0, %a, {out_bytes};
add.s64 %at, %out, %l0;
mul.wide.s32 %l0, %a, 4;
add.s64 %from, %x, %l0;
{body}
ret;
}}
"""


# Memory of each space at %at. For global memory, that is the tensor at %x.
PLACES = {
    "global": ("", "mov.b64 %at, %x;"),
    "shared": (".shared .align 16 .b8 place[32];\n", "mov.b64 %at, place;"),
    "local": ("", ".local .align 16 .b8 place[32];\nmov.b64 %at, place;"),
    "": (".shared .align 16 .b8 place[32];\n", "mov.b64 %at, place;\ncvta.shared.u64 %at, %at;"),
}


def copied_in(space: str, source: str = "%x") -> str:
    """Copy 32 bytes of a tensor to %at."""
    return _copied("global", source, space, "%at") if space != "global" else ""


def copied_out(space: str, to: str) -> str:
    """Copy 32 bytes at %at to a tensor."""
    return _copied(space, "%at", "global", to) if space != "global" else ""


def _copied(source_space: str, source: str, to_space: str, to: str) -> str:
    load, store = dotted("ld", source_space, "b64"), dotted("st", to_space, "b64")
    return "\n".join(f"{load} %l{i}, [{source}+{8 * i}];\n{store} [{to}+{8 * i}], %l{i};" for i in range(4))


def launch_per_thread(
    text: str, out: torch.Tensor, x: torch.Tensor, threads: int = 32, blocks: int = 1, **options: Any
) -> torch.Tensor:
    """``launch`` for the kernels of ``per_thread``; returns ``out``."""
    launch(text, out, x, block=threads, grid=blocks, **options)
    return out


def words(count: int, seed: int = 0) -> torch.Tensor:
    """Random 32-bit words."""
    return torch.randint(-(2**31), 2**31, (count,), generator=torch.Generator().manual_seed(seed)).to(torch.int32)
