"""PTX programs with one instruction changed."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

_INSTRUCTION = re.compile(
    r"(?P<indent>\s*)(?P<guard>@!?%p\d+\s+)?(?P<opcode>[a-z][\w.:]*)(?:\s+(?P<operands>[^/]*?))?;"
)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,{\[]+")
_INTEGER = re.compile(r"-?\d+")
_FLOAT = re.compile(r"0f[0-9A-F]{8}|0d[0-9A-F]{16}")

_OTHER_OPCODE = {
    "add": "sub", "sub": "add", "min": "max", "max": "min", "xor": "or", "or": "and", "and": "or",
}  # fmt: skip
_OTHER_COMPARISON = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "eq": "ne", "ne": "eq"}
_DROPPED = ("ld", "st", "red", "atom", "bar", "bra", "ldmatrix", "stmatrix", "cp")


@dataclass(frozen=True)
class Mutant:
    """One change."""

    kind: str
    line: int  # of the PTX, from 1
    before: str
    after: str

    def of(self, text: str) -> str:
        """The program with this change."""
        lines = text.split("\n")
        lines[self.line - 1] = self.after
        return "\n".join(lines)


@dataclass(frozen=True)
class _Instruction:
    indent: str
    guard: str
    opcode: str
    operands: tuple[str, ...]

    def text(self, **changes) -> str:
        guard, opcode = changes.get("guard", self.guard), changes.get("opcode", self.opcode)
        return f"{self.indent}{guard}{opcode} {', '.join(changes.get('operands', self.operands))};".rstrip()

    def swapped(self, i: int, j: int) -> str:
        order = list(self.operands)
        order[i], order[j] = order[j], order[i]
        return self.text(operands=order)

    def replaced(self, i: int, operand: str) -> str:
        return self.text(operands=[*self.operands[:i], operand, *self.operands[i + 1 :]])


def _parse(line: str) -> _Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    operands = tuple(o.strip() for o in _OPERAND.findall(match["operands"] or "") if o.strip())
    return _Instruction(match["indent"], match["guard"] or "", match["opcode"], operands)


def _opcodes(i: _Instruction) -> Iterator[tuple[str, str]]:
    first, *rest = i.opcode.split(".")
    if first in _OTHER_OPCODE:
        yield "another operation", i.text(opcode=".".join([_OTHER_OPCODE[first], *rest]))
    if first == "setp" and rest[0] in _OTHER_COMPARISON:
        yield "another comparison", i.text(opcode=".".join([first, _OTHER_COMPARISON[rest[0]], *rest[1:]]))
    if first in _DROPPED:
        yield f"{first} dropped", f"{i.indent}// dropped"
    if i.guard:
        guard = i.guard.replace("@!", "@") if "!" in i.guard else i.guard.replace("@", "@!")
        yield "predicate negated", i.text(guard=guard)


def _operands(i: _Instruction) -> Iterator[tuple[str, str]]:
    """Yield swapped operands and, for a fused multiply-add, a changed sign or addend."""
    first, *rest = i.opcode.split(".")
    commutes = first == "setp" and rest[0] in ("eq", "ne")
    if first in ("sub", "selp", "setp", "div", "shl", "shr") and not commutes and i.operands[1] != i.operands[2]:
        yield "operands swapped", i.swapped(1, 2)
    if first in ("fma", "mad") and "wide" not in rest:
        yield "operands swapped", i.swapped(2, 3)
    if first == "fma" and rest[-1] in ("f32", "f64"):
        out, a, b, c = i.operands
        if out not in (a, b) and c.startswith("%"):
            yield "fma: sign of the addend", f"{i.indent}neg.{rest[-1]} {out}, {c}; " + i.replaced(3, out).strip()
        if out not in (b, c) and a.startswith("%"):
            yield "fma: sign of the product", f"{i.indent}neg.{rest[-1]} {out}, {a}; " + i.replaced(1, out).strip()
        yield "fma without its addend", i.text(opcode="mul." + ".".join(rest), operands=(out, a, b))


def _constant(i: _Instruction, at: int) -> Iterator[tuple[str, str]]:
    operand = i.operands[at]
    if i.opcode.startswith("sh") and not i.opcode.startswith("shfl") and _INTEGER.fullmatch(operand):
        yield "shift by one more", i.replaced(at, str(int(operand) + 1))
    elif _INTEGER.fullmatch(operand):
        for step in (-1, 1):
            yield "integer off by one", i.replaced(at, str(int(operand) + step))
    elif _FLOAT.fullmatch(operand):
        digits, value = len(operand) - 2, int(operand[2:], 16)
        # another bit of the fraction, eight below the leading one; zero becomes one
        changed = value ^ (1 << (15 if digits == 8 else 44)) if value else int("3F8" if digits == 8 else "3FF", 16)
        text = f"{changed:0{digits}X}" if value else f"{changed:X}".ljust(digits, "0")
        yield "constant of another value", i.replaced(at, operand[:2] + text)
    elif operand.startswith("[") and not i.opcode.startswith("ld.param"):
        bits = re.search(r"\d+$", i.opcode)  # a copy names no type: cp.async.cg.shared.global
        width = int(bits[0]) // 8 if bits else 16
        base, _, offset = operand.strip("[] ").partition("+")
        yield "another address", i.replaced(at, f"[{base.strip()}+{int(offset or 0) + width}]")


def _constants(i: _Instruction) -> Iterator[tuple[str, str]]:
    first = i.opcode.split(".")[0]
    if first == "bar":  # a barrier of another number works equally
        return
    for at in range(len(i.operands)):
        written = at == 0 and first not in ("st", "red")
        if not written and not (first == "shfl" and at > 2):  # its mask and its clamp do not affect the result
            yield from _constant(i, at)


def mutants(text: str) -> list[Mutant]:
    """Return all changes of a program, one line each."""
    found = []
    for number, line in enumerate(text.split("\t.section", 1)[0].split("\n"), 1):
        i = _parse(line)
        if i is None or i.opcode in ("ret", "begin", "end"):
            continue
        for changes in (_opcodes, _operands, _constants):
            found += [Mutant(kind, number, line, after) for kind, after in changes(i)]
    return found


def sample(text: str, count: int, seed: int) -> Iterator[Mutant]:
    """Yield changes, cycling through the kinds so that additions do not dominate; at most one per line."""
    generator = random.Random(seed)
    kinds: dict[str, list[Mutant]] = {}
    for mutant in mutants(text):
        kinds.setdefault(mutant.kind, []).append(mutant)
    for candidates in kinds.values():
        generator.shuffle(candidates)
    lines: set[int] = set()
    while count and any(kinds.values()):
        turn = list(kinds.values())
        generator.shuffle(turn)  # a program may get fewer mutants than there are kinds
        for candidates in turn:
            while candidates and candidates[-1].line in lines:
                candidates.pop()
            if candidates and count:
                lines.add(candidates[-1].line)
                count -= 1
                yield candidates.pop()
