"""The meaning of cvt and cvta."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

from .exact import FORMATS
from .floats import MODES
from .integers import clamp
from .snippets import Case, samples

INTEGERS = [f"{sign}{n}" for n in (8, 16, 32, 64) for sign in "us"]
WHOLE: dict[str, Callable[[Fraction], int]] = {
    "rn": lambda x: round(x),  # ties to even, like Python's
    "rz": lambda x: math.trunc(x),
    "rm": lambda x: math.floor(x),
    "rp": lambda x: math.ceil(x),
}


def between_integers() -> Iterator[Case]:
    for to in INTEGERS:
        for source in INTEGERS:
            yield Case(f"cvt.{to}.{source}", (to,), (source,), lambda a: a)
            yield Case(f"cvt.sat.{to}.{source}", (to,), (source,), lambda a, to=to: clamp(a, to))


def to_integer(value: float, mode: str, kind: str) -> int:
    if math.isnan(value):
        return 0
    if math.isinf(value):
        return clamp(2**70 if value > 0 else -(2**70), kind)
    return clamp(WHOLE[mode](Fraction(value)), kind)


def integers_and_floats() -> Iterator[Case]:
    for mode in MODES:
        for kind in INTEGERS:
            for real, form in FORMATS.items():
                yield Case(f"cvt.{mode}.{real}.{kind}", (real,), (kind,),
                           lambda a, f=form, m=mode: f.encode(Fraction(a), m, False))  # fmt: skip
                for flush in (False, True) if real == "f32" else (False,):
                    for saturate in (False, True):
                        opcode = f"cvt.{mode}i{'.ftz' * flush}{'.sat' * saturate}.{kind}.{real}"
                        before = form.flush if flush else float
                        yield Case(opcode, (kind,), (real,),
                                   lambda a, f=before, m=mode, k=kind: to_integer(f(a), m, k))  # fmt: skip


def whole(value: float, mode: str) -> float:
    if math.isnan(value) or math.isinf(value):
        return value
    return math.copysign(float(WHOLE[mode](Fraction(value))), value)


def saturated(value: float) -> float:
    return min(value, 1.0) if value > 0 else 0.0


def between_floats() -> Iterator[Case]:
    f16, bf16, f32, f64 = (FORMATS[kind] for kind in ("f16", "bf16", "f32", "f64"))
    for mode in MODES:
        for kind in ("f32", "f64", "f16"):
            form = FORMATS[kind]
            yield Case(f"cvt.{mode}i.{kind}.{kind}", (kind,), (kind,), lambda a, m=mode, f=form: f.encode(whole(a, m)))
        yield Case(f"cvt.{mode}i.ftz.f32.f32", ("f32",), ("f32",), lambda a, m=mode: f32.encode(whole(f32.flush(a), m)))
        narrow = [
            ("f32.f64", f32, lambda a: a), ("sat.f32.f64", f32, saturated), ("f16.f32", f16, lambda a: a),
            ("ftz.f16.f32", f16, f32.flush), ("sat.f16.f32", f16, saturated), ("f16.f64", f16, lambda a: a),
        ]  # fmt: skip
        if mode in ("rn", "rz"):
            narrow.append(("bf16.f32", bf16, lambda a: a))
            for kind, form in (("f16", f16), ("bf16", bf16)):
                yield Case(f"cvt.{mode}.{kind}x2.f32", (f"{kind}x2",), ("f32", "f32"),
                           lambda a, b, m=mode, f=form: f.encode(a, m) << 16 | f.encode(b, m))  # fmt: skip
        for types, form, before in narrow:
            to, source = types.split(".")[-2:]
            yield Case(f"cvt.{mode}.{types}", (to,), (source,), lambda a, m=mode, f=form, g=before: f.encode(g(a), m))
    widen = {
        "f32.f16": f32.encode, "ftz.f32.f16": f32.encode, "f32.bf16": f32.encode, "f64.f16": f64.encode,
        "f64.f32": f64.encode, "ftz.f64.f32": lambda a: f64.encode(f32.flush(a)),
        "sat.f32.f32": lambda a: f32.encode(saturated(a)),
        "ftz.sat.f32.f32": lambda a: f32.encode(saturated(f32.flush(a))),
    }  # fmt: skip
    for types, meaning in widen.items():
        to, source = types.split(".")[-2:]
        yield Case(f"cvt.{types}", (to,), (source,), meaning)
    ties = [code | low for code in (0x3F800000, 0xBF802000, 0x00002000) for low in (0, 0xFFF, 0x1000, 0x1001, 0x1FFF)]
    yield Case("cvt.rna.tf32.f32", ("f32",), ("f32",), to_tf32, domains={0: [*ties, *samples("f32", 100, 0)]})


def to_tf32(value: float) -> int:
    """To ten digits of mantissa, ties away from zero."""
    f32 = FORMATS["f32"]
    if not math.isfinite(value):
        return f32.encode(value)
    code = f32.encode(abs(value))
    return ((code >> 13) + (code >> 12 & 1)) << 13 | (math.copysign(1, value) < 0) << 31


SHARED, LOCAL = 0xFFFE << 40, 0xFFFF << 40


def addresses() -> Iterator[Case]:
    low = {0: [0, 16, 4096, 2**31]}
    for space, window in {"global": 0, "const": 0, "shared": SHARED, "local": LOCAL}.items():
        yield Case(f"cvta.{space}.u64", ("u64",), ("u64",), lambda a, w=window: a | w, domains=low)
        yield Case(f"cvta.to.{space}.u64", ("u64",), ("u64",), lambda a, w=window: a - w if w else a,
                   domains={0: [window + a for a in low[0]]})  # fmt: skip


CASES = [*between_integers(), *integers_and_floats(), *between_floats(), *addresses()]
