"""Converts the statements of a kernel into the steps of the machine."""

import re
from dataclasses import dataclass, field

from . import native
from .errors import EmulatorError, UnsupportedPtx
from .opcodes import canonical
from .ptx import Kernel, Statement, Symbol, number, symbol

_SPECIAL = [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"] + [
    "%laneid", "%warpid",
]  # fmt: skip
_SINK = len(_SPECIAL)
_POISON = 2**64 - 1  # NaN in every floating format, -1 in every integer one
_INSTRUCTION = re.compile(r"(?:@(!?)([\w$%.]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)
_ADDRESS = re.compile(r"\[\s*([\w$%.]+)\s*(?:\+?\s*(-?\w+)\s*)?\]")
TAG_SHIFT = 40  # as in machine.h: 1 + index of a region, above the offset in it


@dataclass
class Program:
    """A kernel that the machine can run once its arguments are known."""

    kernel: Kernel
    steps: list[tuple[int, int, list[int]]] = field(default_factory=list)  # (opcode, line, slots)
    initial: list[int] = field(default_factory=list)  # initial value of each slot
    shared_bytes: int = 0  # declared with a size
    local_bytes: int = 0
    constants: list[bytes] = field(default_factory=list)  # module memory, passed as tensors before the launch's own
    texts: dict[int, str] = field(default_factory=dict)  # line -> instruction
    opcodes: set[tuple[str, int]] = field(default_factory=set)

    @property
    def parameter_offsets(self) -> dict[str, int]:
        """The offset of each parameter. Every parameter has eight bytes."""
        return {name: 8 * i for i, (_, name) in enumerate(self.kernel.parameters)}


def assemble(kernel: Kernel) -> Program:
    """Translate a kernel. UnsupportedPtx names anything for which the machine has no exact match."""
    assembler = _Assembler(kernel)
    for statement in kernel.body:
        try:
            assembler.statement(statement)
        except UnsupportedPtx as error:
            what = f"kernel {kernel.name}, PTX line {statement.line}: `{statement.text}`: {error}"
            raise UnsupportedPtx(f"{what} is not supported") from None
    return assembler.finish()


class _Assembler:
    def __init__(self, kernel: Kernel):
        self.program = Program(kernel)
        self.program.initial = [0] * len(_SPECIAL) + [0]
        self.scopes: list[dict[str, int]] = [{name: i for i, name in enumerate(_SPECIAL)} | {"_": _SINK}]
        self.constants: dict[int, int] = {}
        self.labels: dict[str, int] = {}
        self.jumps: list[tuple[list[int], str, int]] = []  # (slots of a step, label, line)
        self.addresses = dict(self.program.parameter_offsets)
        dynamic = []
        for name, found in kernel.symbols.items():
            if found.space == "shared" and found.extern:
                dynamic.append(name)
            else:
                self.memory(name, found)
        for name in dynamic:  # dynamic memory of the launch comes after all arrays with a size
            self.addresses[name] = self.program.shared_bytes = -(-self.program.shared_bytes // 16) * 16

    def memory(self, name: str, found: Symbol) -> None:
        """Assign a place to a named array."""
        if found.space == "global":
            self.program.constants.append(found.data or bytes(found.size))
            self.addresses[name] = len(self.program.constants) << TAG_SHIFT
        elif found.space == "shared":
            self.addresses[name] = -(-self.program.shared_bytes // found.align) * found.align
            self.program.shared_bytes = self.addresses[name] + found.size
        else:
            self.addresses[name] = -(-self.program.local_bytes // found.align) * found.align
            self.program.local_bytes = self.addresses[name] + found.size

    def statement(self, statement: Statement) -> None:
        text = statement.text
        if text == "{":
            self.scopes.append({})
        elif text == "}":
            self.scopes.pop()
        elif text.endswith(":"):
            self.labels[text[:-1]] = len(self.program.steps)
        elif declared := _REGISTERS.fullmatch(text):
            self.registers(declared[2])
        elif text.startswith("."):
            found = symbol(text)
            if not found:
                raise UnsupportedPtx("this declaration")
            self.memory(*found)
        else:
            self.instruction(statement)

    def registers(self, names: str) -> None:
        for name in names.split(","):
            name, _, count = name.strip().rstrip(">").partition("<")
            for register in (f"{name}{i}" for i in range(int(count))) if count else (name,):
                self.scopes[-1][register] = len(self.program.initial)
                self.program.initial.append(_POISON)

    def instruction(self, statement: Statement) -> None:
        match = _INSTRUCTION.fullmatch(statement.text)
        if not match:
            raise UnsupportedPtx("this statement")
        negated, predicate, opcode, operands = match.groups()
        self.program.texts[statement.line] = statement.text
        if opcode in ("bra", "bra.uni"):
            condition = [self.register(predicate)] if predicate else []
            name = opcode if not predicate else "bra.unless" if negated else "bra.if"
            self.jump(name, condition, operands.strip(), statement.line)
            return
        skip = f" after {len(self.program.steps)}"  # cannot clash: no label has a space
        if predicate:
            self.jump("bra.if" if negated else "bra.unless", [self.register(predicate)], skip, statement.line)
        self.emit(opcode, operands, statement.line)
        self.labels[skip] = len(self.program.steps)

    def jump(self, name: str, condition: list[int], label: str, line: int) -> None:
        step = [*condition, 0]
        self.jumps.append((step, label, line))
        self.step(name, line, step)

    def emit(self, opcode: str, operands: str, line: int) -> None:
        name, policy = canonical(opcode)
        parts = _split(operands)
        if policy:
            parts.pop()
        if name.startswith("mov.") and any(part.startswith("{") for part in parts):
            kind = "unpack" if parts[0].startswith("{") else "pack"
            name = f"mov.{kind}.{name[4:]}"
        type_name = name.rpartition(".")[2]
        slots = [slot for part in parts for slot in self.operand(part, type_name, line)]
        self.step(name, line, slots)

    def step(self, name: str, line: int, slots: list[int]) -> None:
        key = (name, len(slots))
        if key not in native.opcodes():
            raise UnsupportedPtx(f"`{name}` with {len(slots)} operands")
        self.program.opcodes.add(key)
        self.program.steps.append((native.opcodes()[key], line, slots))

    def operand(self, text: str, type_name: str, line: int) -> list[int]:
        """Return the slots of one operand: several for a vector, for p|q and for an address."""
        if text.startswith("{"):
            return [slot for part in _split(text[1:-1]) for slot in self.operand(part, type_name, line)]
        if text.startswith("["):
            return self.address(text)
        if "|" in text:
            return [self.register(part.strip()) for part in text.split("|")]
        if text.startswith("!"):
            inverse = len(self.program.initial)
            self.program.initial.append(_POISON)
            self.step("not.pred", line, [inverse, self.register(text[1:])])
            return [inverse]
        return [self.value(text, type_name)]

    def address(self, text: str) -> list[int]:
        match = _ADDRESS.fullmatch(text)
        if not match:
            raise UnsupportedPtx(f"address {text}")
        return [self.value(match[1], "b64"), self.constant(number(match[2] or "0"))]

    def value(self, text: str, type_name: str) -> int:
        if text[0].isdigit() or text[0] == "-":
            return self.constant(number(text, type_name))
        if text in self.addresses:
            return self.constant(self.addresses[text])
        return self.register(text)

    def register(self, name: str) -> int:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        raise UnsupportedPtx(f"register {name}")

    def constant(self, bits: int) -> int:
        if bits not in self.constants:
            self.constants[bits] = len(self.program.initial)
            self.program.initial.append(bits)
        return self.constants[bits]

    def finish(self) -> Program:
        for slots, label, line in self.jumps:
            if label not in self.labels:
                raise EmulatorError(f"kernel {self.program.kernel.name}, PTX line {line}: no label {label}")
            slots[-1] = self.labels[label]
        self.step("ret", 0, [])  # the end of the body is the end of the kernel
        return self.program


def _split(text: str) -> list[str]:
    """Split operands at commas that are not inside brackets."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        if char in "{[(":
            depth += 1
        elif char in "}])":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts
