"""The meaning of the opcodes of float, double, half and bfloat16."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

from . import exact
from .exact import FORMATS, Format
from .integers import COMPARISONS, compared
from .snippets import Case

MODES = (exact.NEAREST, exact.ZERO, exact.DOWN, exact.UP)
Exact = Callable[..., tuple[float | Fraction, bool]]
ARITHMETIC: dict[str, tuple[Exact, int, bool, bool]] = {  # exact meaning, operands, may lack a rounding, has .sat
    "add": (exact.add, 2, True, True),
    "sub": (exact.subtract, 2, True, True),
    "mul": (exact.multiply, 2, True, True),
    "fma": (exact.fma, 3, False, True),
    "div": (exact.divide, 2, False, False),
    "rcp": (exact.reciprocal, 1, False, False),
    "sqrt": (exact.square_root, 1, False, False),
}


def rounded(kind: str, f: Exact, mode: str, flush: bool, saturate: bool) -> Callable[..., int]:
    """Apply f in one rounding to flushed operands; saturate and flush the result."""
    form = FORMATS[kind]

    def meaning(*values: float) -> int:
        value, negative = f(*(form.flush(v) if flush else v for v in values), mode)
        result = form.decode(form.encode(value, mode, negative))
        if saturate:
            result = min(max(result, 0.0), 1.0) if result > 0 else 0.0
        return form.encode(form.flush(result) if flush else result)

    return meaning


def arithmetic() -> Iterator[Case]:
    for kind in ("f32", "f64"):
        flushes = (False, True) if kind == "f32" else (False,)
        for name, (f, operands, plain, saturates) in ARITHMETIC.items():
            saturations = (False, True) if saturates and kind == "f32" else (False,)
            for mode in ([""] if plain else []) + list(MODES):
                for flush in flushes:
                    for saturate in saturations:
                        parts = [name, mode, "ftz" * flush, "sat" * saturate, kind]
                        meaning = rounded(kind, f, mode or exact.NEAREST, flush, saturate)
                        yield Case(".".join(filter(None, parts)), (kind,), (kind,) * operands, meaning)


def extreme(pick: Callable[[float, float], bool], keep_nan: bool) -> Callable[..., float]:
    """min or max of any number of values. A NaN loses or wins, and -0 is less than +0."""

    def meaning(*values: float) -> float:
        result = values[0]
        for v in values[1:]:
            if math.isnan(result) or math.isnan(v):
                result = math.nan if keep_nan else (v if math.isnan(result) else result)
            elif result == v == 0:
                result = min(result, v, key=lambda z: math.copysign(1, z) * (1 if pick(0.0, 1.0) else -1))
            else:
                result = result if pick(result, v) else v
        return result

    return meaning


EXTREMES = {"min": lambda a, b: a < b, "max": lambda a, b: a > b}


def signed_magnitude(pick: Callable[..., float]) -> Callable[..., float]:
    """min or max of the magnitudes, with the product's sign."""
    return lambda a, b: math.copysign(pick(abs(a), abs(b)), math.copysign(1, a) * math.copysign(1, b))


def signs_and_order() -> Iterator[Case]:
    for kind in ("f32", "f64", "f16", "bf16"):
        form = FORMATS[kind]
        for flush in (False, True) if kind == "f32" else (False,):
            tail = f"ftz.{kind}" if flush else kind

            def of(f: Callable[..., float], form: Format = form, flush: bool = flush) -> Callable[..., int]:
                return lambda *values: form.encode(f(*(form.flush(v) if flush else v for v in values)))

            yield Case(f"neg.{tail}", (kind,), (kind,), of(lambda a: -a))
            yield Case(f"abs.{tail}", (kind,), (kind,), of(abs))
            for name, pick in EXTREMES.items():
                first, last = (f"{name}.ftz", "f32") if flush else (name, kind)
                yield Case(f"{first}.{last}", (kind,), (kind, kind), of(extreme(pick, False)))
                if kind == "f64":
                    continue
                yield Case(f"{first}.NaN.{last}", (kind,), (kind, kind), of(extreme(pick, True)))
                for nan, keeps in (("", False), (".NaN", True)):
                    f = signed_magnitude(extreme(pick, keeps))
                    yield Case(f"{first}{nan}.xorsign.abs.{last}", (kind,), (kind, kind), of(f))
                    if kind == "f32":
                        yield Case(f"{first}{nan}.{last}", (kind,), (kind,) * 3, of(extreme(pick, keeps)))
        if kind in ("f32", "f64"):
            numbers = {0: [form.encode(a) for a in (0.0, -0.0, 1.5, -1.5, -math.inf)]}
            yield Case(f"copysign.{kind}", (kind,), (kind, kind),
                       lambda a, b, f=form: f.encode(math.copysign(b, a)), domains=numbers)  # fmt: skip


def _or_nan(f: Callable[[float], float]) -> Callable[[float], float]:
    def meaning(a: float) -> float:
        try:
            return f(a)
        except (ValueError, OverflowError):
            return math.nan

    return meaning


def _exp2(a: float) -> float:
    return math.inf if a >= 128 else math.exp2(a)


def _log2(a: float) -> float:
    return -math.inf if a == 0 else math.log2(a)


def _rsqrt(a: float) -> float:
    return math.copysign(math.inf, a) if a == 0 else 1 / math.sqrt(a)


def _ratio(*values: float) -> float:
    a, b = values if len(values) == 2 else (1.0, *values)
    value, negative = exact.divide(a, b, exact.NEAREST)
    return FORMATS["f32"].decode(FORMATS["f32"].encode(value, exact.NEAREST, negative))


def approximations() -> Iterator[Case]:
    """Cases compared with the true function: the hardware may have larger errors than the emulator."""
    functions: dict[str, Callable[..., float]] = {
        "div.full": _ratio, "div.approx": _ratio, "rcp.approx": _ratio, "sqrt.approx": math.sqrt,
        "rsqrt.approx": _rsqrt, "ex2.approx": _exp2, "lg2.approx": _log2, "sin.approx": math.sin,
        "cos.approx": math.cos,
    }  # fmt: skip
    form = FORMATS["f32"]
    for name, f in functions.items():
        operands = ("f32",) * (2 if name.startswith("div") else 1)
        for flush in (False, True):

            def meaning(*values: float, f: Callable[..., float] = f, flush: bool = flush) -> float:
                result = _or_nan(lambda _: f(*(form.flush(v) if flush else v for v in values)))(0)
                return form.flush(result) if flush else result

            yield Case(f"{name}{'.ftz' * flush}.f32", ("f32",), operands, meaning, tolerance=3e-7)
    yield Case("tanh.approx.f32", ("f32",), ("f32",), math.tanh, tolerance=3e-7)


def halves() -> Iterator[Case]:
    for kind in ("f16", "bf16"):
        for name in ("add", "sub", "mul", "fma"):
            f, operands, plain, _ = ARITHMETIC[name]
            for mode in ("", ".rn") if plain else (".rn",):
                yield Case(f"{name}{mode}.{kind}", (kind,), (kind,) * operands, rounded(kind, f, "rn", False, False))


def mixed() -> Iterator[Case]:
    """One or two halves, then a float, in float's arithmetic."""
    for kind in ("f16", "bf16"):
        for name in ("add", "sub", "fma"):
            f, operands, plain, _ = ARITHMETIC[name]
            for mode in ([""] if plain else []) + list(MODES):
                for saturate in (False, True):
                    opcode = ".".join(filter(None, [name, mode, "sat" * saturate, "f32", kind]))
                    meaning = rounded("f32", f, mode or exact.NEAREST, False, saturate)
                    yield Case(opcode, ("f32",), (*(kind,) * (operands - 1), "f32"), meaning)


def pair_of(case: Case, opcode: str, kind: str, bits: int) -> Case:
    """The packed form of a case on single numbers."""

    def meaning(*values: tuple[float, float]) -> int:
        low, high = (case.meaning(*(v[i] for v in values)) for i in (0, 1))
        return int(low) | int(high) << bits

    return Case(opcode, (kind,), (kind,) * len(case.operands), meaning)


def pairs() -> Iterator[Case]:
    singles = [*halves(), *(c for c in signs_and_order() if c.opcode.endswith("f16"))]
    for case in singles:
        yield pair_of(case, f"{case.opcode}x2", f"{case.operands[0]}x2", 16)
    for name in ("add", "sub", "mul", "fma"):
        f, operands, plain, _ = ARITHMETIC[name]
        for mode in ("", ".rn") if plain else (".rn",):
            for flush in (False, True):
                single = Case("", ("f32",), ("f32",) * operands, rounded("f32", f, "rn", flush, False))
                yield pair_of(single, f"{name}{mode}{'.ftz' * flush}.f32x2", "f32x2", 32)


def _nan(a: float, b: float) -> bool:
    return math.isnan(a) or math.isnan(b)


def _ordered(f: Callable[[float, float], bool]) -> Callable[[float, float], bool]:
    return lambda a, b: not _nan(a, b) and f(a, b)


def _or_unordered(f: Callable[[float, float], bool]) -> Callable[[float, float], bool]:
    return lambda a, b: _nan(a, b) or f(a, b)


def _of_flushed(f: Callable[[float, float], bool]) -> Callable[[float, float], bool]:
    flush = FORMATS["f32"].flush
    return lambda a, b: f(flush(a), flush(b))


def _of_both(f: Callable[[float, float], bool]) -> Callable[..., tuple[bool, bool]]:
    return lambda a, b: (f(a[0], b[0]), f(a[1], b[1]))


FLOAT_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    **{name: _ordered(f) for name, f in COMPARISONS.items()},
    **{f"{name}u": _or_unordered(f) for name, f in COMPARISONS.items()},
    "num": lambda a, b: not _nan(a, b),
    "nan": _nan,
}


def comparisons() -> Iterator[Case]:
    for name, f in FLOAT_COMPARISONS.items():
        for kind in ("f32", "f64", "f16", "bf16"):
            yield from compared(name, kind, kind, f)
        yield from compared(name, "ftz.f32", "f32", _of_flushed(f))
        for kind in ("f16x2", "bf16x2"):
            yield Case(f"setp.{name}.{kind}", ("pred", "pred"), (kind, kind),
                       _of_both(f),
                       form="{opcode} {r0}|{r1}, {a0}, {a1}")  # fmt: skip


CASES = [*arithmetic(), *signs_and_order(), *approximations(), *halves(), *mixed(), *pairs(), *comparisons()]
