"""The meaning of the integer, bit and predicate opcodes."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

from .snippets import Case, width

SIZES = (16, 32, 64)
SIGNED, UNSIGNED = [f"s{n}" for n in SIZES], [f"u{n}" for n in SIZES]
COUNTS = {1: [*range(70), 255, 256, 2**31, 2**32 - 1]}  # of a shift


def quotient(a: int, b: int) -> int:
    """Rounded towards zero; all ones for a division by zero."""
    if b == 0:
        return -1
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a: int, b: int) -> int:
    return a if b == 0 else a - b * quotient(a, b)


def arithmetic() -> Iterator[Case]:
    for kind in SIGNED + UNSIGNED:
        n = width(kind)
        two: dict[str, Callable[..., int]] = {
            "add": operator.add, "sub": operator.sub, "mul.lo": operator.mul, "min": min, "max": max,
            "mul.hi": lambda a, b, n=n: (a * b) >> n, "div": quotient, "rem": remainder,
        }  # fmt: skip
        for name, f in two.items():
            yield Case(f"{name}.{kind}", (kind,), (kind, kind), f)
        yield Case(f"mad.lo.{kind}", (kind,), (kind,) * 3, lambda a, b, c: a * b + c)
        yield Case(f"mad.hi.{kind}", (kind,), (kind,) * 3, lambda a, b, c, n=n: ((a * b) >> n) + c)
        if n < 64:
            double = f"{kind[0]}{2 * n}"
            yield Case(f"mul.wide.{kind}", (double,), (kind, kind), operator.mul)
            yield Case(f"mad.wide.{kind}", (double,), (kind, kind, double), lambda a, b, c: a * b + c)
    for kind in SIGNED:
        yield Case(f"neg.{kind}", (kind,), (kind,), operator.neg)
        yield Case(f"abs.{kind}", (kind,), (kind,), abs)
    for name, f in {"add": operator.add, "sub": operator.sub}.items():
        yield Case(f"{name}.sat.s32", ("s32",), ("s32", "s32"), lambda a, b, f=f: clamp(f(a, b), "s32"))


def clamp(value: int, kind: str) -> int:
    n = width(kind)
    low, high = (-(1 << (n - 1)), (1 << (n - 1)) - 1) if kind[0] == "s" else (0, (1 << n) - 1)
    return min(max(value, low), high)


def carries() -> Iterator[Case]:
    """Place each opcode between one that sets the carry, which gets the first operands, and one that shows it."""
    for kind in ("u32", "s32", "u64", "s64"):
        unsigned = f"u{width(kind)}"
        for opcode, takes, leaves in (
            ("add.cc", 0, 1), ("addc", 1, 0), ("addc.cc", 1, 1), ("sub.cc", 0, 1), ("subc", 1, 0), ("subc.cc", 1, 1)
        ):  # fmt: skip
            sign = 1 if opcode.startswith("add") else -1
            yield _chain(f"{opcode}.{kind}", unsigned, 2, takes, leaves, lambda a, b, n, s=sign: (a, s * b))
        for part in ("lo", "hi"):
            for name, takes, leaves in (("mad.{}.cc", 0, 1), ("madc.{}", 1, 0), ("madc.{}.cc", 1, 1)):
                signed = kind[0] == "s"

                def terms(
                    a: int, b: int, c: int, n: int, high: bool = part == "hi", signed: bool = signed
                ) -> tuple[int, int]:
                    product = (_signed(a, n) * _signed(b, n)) if signed else a * b
                    return (product >> n if high else product) & (2**n - 1), c

                yield _chain(f"{name.format(part)}.{kind}", unsigned, 3, takes, leaves, terms)


def _signed(value: int, n: int) -> int:
    return value - 2**n if value >> (n - 1) else value


def _chain(
    opcode: str, kind: str, operands: int, takes: int, leaves: int, terms: Callable[..., tuple[int, int]]
) -> Case:
    n = width(kind)
    minus = opcode.startswith("sub")

    def meaning(x: int, y: int, *values: int) -> tuple[int, int]:
        carry = (x + y) >> n
        first, second = terms(*values, n)
        total = first + second + (0 if not takes else -carry if minus else carry)
        left = ((total >> n) & 1) if leaves else carry
        return total, left

    names = ", ".join(f"{{a{i + 2}}}" for i in range(operands))
    form = f"add.cc.{kind} {{r1}}, {{a0}}, {{a1}}; {{opcode}} {{r0}}, {names}; addc.{kind} {{r1}}, 0, 0"
    return Case(opcode, (kind, kind), (kind,) * (operands + 2), meaning, form=form, key=(opcode, operands + 1))


def logic() -> Iterator[Case]:
    for kind in ("pred", "b16", "b32", "b64"):
        for name in ("and", "or", "xor"):
            yield Case(
                f"{name}.{kind}", (kind,), (kind, kind), getattr(operator, f"{name}_" if name != "xor" else "xor")
            )
        yield Case(f"not.{kind}", (kind,), (kind,), lambda a: (not a) if isinstance(a, bool) else ~a)


def shifts() -> Iterator[Case]:
    for n in SIZES:
        yield Case(f"shl.b{n}", (f"b{n}",), (f"b{n}", "u32"), lambda a, s: a << s if s < 64 else 0, domains=COUNTS)
        for sign in "bus":
            kind = f"{sign}{n}"
            yield Case(f"shr.{kind}", (kind,), (kind, "u32"), lambda a, s: a >> s, domains=COUNTS)
    counts = {2: COUNTS[1]}
    for mode, amount in {"wrap": lambda s: s & 31, "clamp": lambda s: min(s, 32)}.items():
        yield Case(f"shf.l.{mode}.b32", ("b32",), ("b32",) * 3,
                   lambda a, b, s, f=amount: ((b << 32 | a) << f(s)) >> 32, domains=counts)  # fmt: skip
        yield Case(f"shf.r.{mode}.b32", ("b32",), ("b32",) * 3,
                   lambda a, b, s, f=amount: (b << 32 | a) >> f(s), domains=counts)  # fmt: skip


def extracted(a: int, position: int, length: int, n: int, signed: bool) -> int:
    """Extract bit by bit, as in the PTX manual: bits above the operand are its sign."""
    position, length = position & 255, length & 255
    sign = bool(signed and length and (a >> min(position + length - 1, n - 1)) & 1)
    result = 0
    for i in range(n):
        inside = i < length and position + i < n
        bit = (a >> (position + i)) & 1 if inside else sign
        result |= bit << i
    return result


def inserted(a: int, b: int, position: int, length: int, n: int) -> int:
    for i in range(length & 255):
        at = (position & 255) + i
        if at < n:
            b = b & ~(1 << at) | ((a >> i) & 1) << at
    return b


def permuted(a: int, b: int, selector: int) -> int:
    source = (a | b << 32).to_bytes(8, "little")
    chosen = []
    for i in range(4):
        choice = selector >> 4 * i & 15
        byte = source[choice & 7]
        chosen.append((255 if byte & 128 else 0) if choice & 8 else byte)
    return int.from_bytes(bytes(chosen), "little")


def looked_up(a: int, b: int, c: int) -> int:
    return (a & b) | (~a & c)  # truth table 0xCA


def fields() -> Iterator[Case]:
    for n in (32, 64):
        b = f"b{n}"
        places = {1: [*range(70), 200, 256 + 3], 2: [*range(70), 200, 256 + 5]}
        for kind in (f"u{n}", f"s{n}"):
            yield Case(f"bfe.{kind}", (b,), (kind, "u32", "u32"),
                       lambda a, p, k, n=n, s=kind[0] == "s": extracted(a, p, k, n, s), domains=places)  # fmt: skip
        places = {2: places[1], 3: places[2]}
        yield Case(
            f"bfi.{b}", (b,), (b, b, "u32", "u32"), lambda a, c, p, k, n=n: inserted(a, c, p, k, n), domains=places
        )
        yield Case(f"popc.{b}", ("u32",), (b,), int.bit_count)
        yield Case(f"clz.{b}", ("u32",), (b,), lambda a, n=n: n - a.bit_length())
        yield Case(f"brev.{b}", (b,), (b,), lambda a, n=n: int(f"{a:0{n}b}"[::-1], 2))
    yield Case("prmt.b32", ("b32",), ("b32",) * 3, permuted)
    form = "{opcode} {r0}, {a0}, {a1}, {a2}, 0xCA"
    yield Case("lop3.b32", ("b32",), ("b32",) * 3, looked_up, form=form, key=("lop3.b32", 5))


def moves() -> Iterator[Case]:
    for n in SIZES:
        for kind in (f"b{n}", f"u{n}", f"s{n}"):
            yield from _moves(kind, f"b{n}")
    yield from _moves("f32", "b32")
    yield from _moves("f64", "b64")
    yield Case("mov.pred", ("pred",), ("pred",), lambda a: a)
    for whole, part in (("b32", "b16"), ("b64", "b32"), ("b64", "b16")):
        count = width(whole) // width(part)
        results, operands = [f"{{r{i}}}" for i in range(count)], [f"{{a{i}}}" for i in range(count)]
        into, out_of = "{{" + ", ".join(operands) + "}}", "{{" + ", ".join(results) + "}}"
        bits = width(part)

        def packed(*parts: int, bits: int = bits) -> int:
            return sum(p << bits * i for i, p in enumerate(parts))

        def unpacked(a: int, bits: int = bits, count: int = count) -> tuple[int, ...]:
            return tuple(a >> bits * i & (2**bits - 1) for i in range(count))

        yield Case(f"mov.{whole}", (whole,), (part,) * count, packed,
                   form=f"{{opcode}} {{r0}}, {into}", key=(f"mov.pack.{whole}", count + 1))  # fmt: skip
        yield Case(f"mov.{whole}", (part,) * count, (whole,), unpacked,
                   form=f"{{opcode}} {out_of}, {{a0}}", key=(f"mov.unpack.{whole}", count + 1))  # fmt: skip


def _moves(kind: str, bits: str) -> Iterator[Case]:
    yield Case(f"mov.{kind}", (bits,), (bits,), lambda a: a)
    yield Case(f"selp.{kind}", (bits,), (bits, bits, "pred"), lambda a, b, p: a if p else b)


COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip
COMBINATIONS = {"and": lambda r, c: r and c, "or": lambda r, c: r or c, "xor": lambda r, c: r != c}


def compared(name: str, tail: str, kind: str, f: Callable[[Any, Any], bool]) -> Iterator[Case]:
    """setp with one result, with two, and with each combination. ``tail`` is everything after the comparison."""
    yield Case(f"setp.{name}.{tail}", ("pred",), (kind, kind), f)
    yield Case(f"setp.{name}.{tail}", ("pred", "pred"), (kind, kind), lambda a, b: (f(a, b), not f(a, b)),
               form="{opcode} {r0}|{r1}, {a0}, {a1}")  # fmt: skip
    for combination, g in COMBINATIONS.items():
        yield Case(
            f"setp.{name}.{combination}.{tail}", ("pred",), (kind, kind, "pred"), lambda a, b, c, g=g: g(f(a, b), c)
        )


def comparisons() -> Iterator[Case]:
    for n in SIZES:
        for name in ("eq", "ne"):
            yield from compared(name, f"b{n}", f"b{n}", COMPARISONS[name])
        for kind in (f"u{n}", f"s{n}"):
            for name, f in COMPARISONS.items():
                yield from compared(name, kind, kind, f)
        for name, like in {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.items():
            yield from compared(name, f"u{n}", f"u{n}", COMPARISONS[like])


CASES = [*arithmetic(), *carries(), *logic(), *shifts(), *fields(), *moves(), *comparisons()]
