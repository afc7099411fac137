"""Wraps one instruction in a kernel and runs it on many operands: the basis of the opcode tests."""

import functools
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from ptx_emulator.kernel import PtxKernel

from .exact import FORMATS

HEADER = ".version 8.6\n.target sm_100a\n.address_size 64\n"
_THREADS = 128


@dataclass
class Case:
    """An opcode, the types of its operands and results, and its meaning in Python.

    ``meaning`` gets one value per operand (ints, bools, floats) and returns one value per result. Floats are returned
    as codes of their format, so ``meaning`` does the rounding. With a ``tolerance``, it returns the float itself.
    """

    opcode: str
    results: tuple[str, ...]
    operands: tuple[str, ...]
    meaning: Callable[..., Any]
    tolerance: float | None = None
    domains: Mapping[int, Sequence[int]] = field(default_factory=dict)  # operand -> codes to draw from
    form: str | None = None  # the instruction, if it is not "opcode results, operands"
    key: tuple[str, int] | None = None  # in the machine's table, if it is not the opcode

    @property
    def table_key(self) -> tuple[str, int]:
        return self.key or (self.opcode, len(self.results) + len(self.operands))


@functools.cache
def width(kind: str) -> int:
    """Bits of a type."""
    if kind == "pred":
        return 1
    digits = re.search(r"(\d+)(x2)?$", kind)
    assert digits, kind
    return int(digits[1]) * (2 if digits[2] else 1)


def decode(kind: str, code: int) -> Any:
    """The value of a code."""
    if kind.endswith("x2"):
        half = width(kind) // 2
        return decode(kind[:-2], code & (2**half - 1)), decode(kind[:-2], code >> half)
    if kind in FORMATS:
        return FORMATS[kind].decode(code)
    if kind == "pred":
        return bool(code)
    return code - (1 << width(kind)) if kind[0] == "s" and code >> (width(kind) - 1) else code


def encode(kind: str, value: Any) -> int:
    """Return the code of an int or a bool. Floats are already codes."""
    return int(value) & ((1 << width(kind)) - 1)


@functools.cache
def samples(kind: str, count: int, seed: int) -> list[int]:
    """Return codes worth testing: those at the edges of the type, and random ones."""
    source = random.Random(seed)
    bits = width(kind)
    if kind == "pred":
        return [source.getrandbits(1) for _ in range(count)]
    if kind.endswith("x2"):
        low, high = samples(kind[:-2], count, seed + 1), samples(kind[:-2], count, seed + 2)
        return [a | b << bits // 2 for a, b in zip(low, high, strict=True)]
    if kind in FORMATS:
        special = _float_codes(kind)
    else:
        edges = [0, 1, 2, 3, 5, 7, 31, 32, 33, 2 ** (bits // 2), 2 ** (bits - 1), 2 ** (bits - 1) - 1]
        special = [e & (2**bits - 1) for edge in edges for e in (edge, -edge)]
    return [source.choice(special) if source.random() < 0.6 else source.getrandbits(bits) for _ in range(count)]


def _float_codes(kind: str) -> list[int]:
    form = FORMATS[kind]
    top = form.bits - 1
    infinity = (2**form.exponent_bits - 1) << form.mantissa_bits
    codes = [0, 1, 2, 2**form.mantissa_bits - 1, 2**form.mantissa_bits, infinity - 1, infinity, infinity + 1]
    numbers = [0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 100.25, 127.5, 128, 255.5, 32767.5, 32768, 65535.5, 1e6]
    numbers += [2.0**31, 2.0**31 - 1, 2.0**32, 2.0**63, 2.0**64, 1 / 3, math.pi, 1e-3]
    codes += [form.encode(float(n)) for n in numbers]
    return [c | sign << top for c in codes for sign in (0, 1)]


def run_case(case: Case, count: int = 300) -> tuple[list[list[int]], list[list[int]]]:
    """Return the codes of the operands, and of the machine's results for them."""
    columns = [
        random.Random(7 + i).choices(case.domains[i], k=count)
        if i in case.domains
        else samples(kind, count, 11 * i + 1)
        for i, kind in enumerate(case.operands)
    ]
    return columns, run(case, columns)


def run(case: Case, columns: Sequence[Sequence[int]]) -> list[list[int]]:
    """Codes of the results for the given codes of the operands."""
    count = len(columns[0])
    inputs = [torch.from_numpy(np.array(column, dtype=np.uint64).view(np.int64)) for column in columns]
    outputs = [torch.full((count,), -1, dtype=torch.int64) for _ in case.results]
    kernel = PtxKernel(elementwise(case))
    kernel.launch((-(-count // _THREADS),), (_THREADS,), [*outputs, *inputs, count])
    codes = [output.numpy().view(np.uint64).tolist() for output in outputs]
    return [[c & (2 ** width(k) - 1) for c in column] for k, column in zip(case.results, codes, strict=True)]


def elementwise(case: Case) -> str:
    """A kernel that applies the instruction to element i of its operands; all arrays hold 64-bit words."""
    names = [f"r{i}" for i in range(len(case.results))] + [f"a{i}" for i in range(len(case.operands))]
    kinds = [*case.results, *case.operands]
    registers = [f"%{name}" for name in names]
    parameters = "".join(f".param .u64 p{i}, " for i in range(len(names))) + ".param .u32 count"
    lines = [f".reg .{_register(kind)} {reg};" for kind, reg in zip(kinds, registers, strict=True)]
    first_operand = len(case.results)
    for i in range(first_operand, len(names)):
        lines += [f"ld.param.u64 %at, [p{i}];", "add.u64 %at, %at, %offset;"]
        if kinds[i] == "pred":
            lines += ["ld.global.u32 %word, [%at];", f"setp.ne.b32 {registers[i]}, %word, 0;"]
        else:
            lines += [f"ld.global.b{width(kinds[i])} {registers[i]}, [%at];"]
    form = case.form or "{opcode} " + ", ".join(f"{{{name}}}" for name in names)
    named = dict(zip(names, registers, strict=True))
    lines.append(form.format(opcode=case.opcode, **named) + ";")
    for i in range(first_operand):
        lines += [f"ld.param.u64 %at, [p{i}];", "add.u64 %at, %at, %offset;"]
        if kinds[i] == "pred":
            lines += [f"selp.b32 %word, 1, 0, {registers[i]};", "st.global.u32 [%at], %word;"]
        else:
            lines += [f"st.global.b{width(kinds[i])} [%at], {registers[i]};"]
    return (
        f"""{HEADER}
.visible .entry snippet({parameters})
{{
.reg .pred %over;
.reg .b32 %word, %i, %b, %n;
.reg .b64 %at, %offset;
mov.u32 %i, %tid.x;
mov.u32 %b, %ctaid.x;
mov.u32 %n, %ntid.x;
mad.lo.s32 %i, %b, %n, %i;
ld.param.u32 %n, [count];
setp.ge.s32 %over, %i, %n;
@%over ret;
mul.wide.s32 %offset, %i, 8;
"""
        + "\n".join(lines)
        + "\nret;\n}\n"
    )


def _register(kind: str) -> str:
    return "pred" if kind == "pred" else f"b{max(16, width(kind))}"


def assert_as_meant(case: Case, count: int = 300) -> None:
    """Run a case and compare every result. All NaN are equal, whatever their bits."""
    columns, got = run_case(case, count)
    for row, codes in zip(zip(*columns, strict=True), zip(*got, strict=True), strict=True):
        values = [decode(kind, code) for kind, code in zip(case.operands, row, strict=True)]
        want = case.meaning(*values)
        want = want if isinstance(want, tuple) and len(case.results) == len(want) else (want,)
        for kind, code, expected in zip(case.results, codes, want, strict=True):
            assert _agree(case, kind, code, expected), (
                f"{case.opcode} of {values} ({', '.join(map(hex, row))}): "
                f"got {decode(kind, code)} ({code:#x}), want {expected!r}"
            )


def _agree(case: Case, kind: str, code: int, expected: Any) -> bool:
    if case.tolerance is not None:
        got = decode(kind, code)
        if math.isnan(expected) or math.isinf(expected) or expected == 0:
            return (math.isnan(got) and math.isnan(expected)) or got == expected
        return math.isclose(got, expected, rel_tol=case.tolerance, abs_tol=2.0**-149)
    if kind in FORMATS or kind.endswith("x2"):
        got, wanted = decode(kind, code), decode(kind, expected)
        parts = list(zip(got, wanted, strict=True)) if isinstance(got, tuple) else [(got, wanted)]
        if any(math.isnan(w) for _, w in parts):
            return all(math.isnan(g) if math.isnan(w) else g == w for g, w in parts)
    return code == encode(kind, expected)
