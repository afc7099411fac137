"""Number formats in exact arithmetic, with which the machine's results are compared."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

NEAREST, ZERO, DOWN, UP = "rn", "rz", "rm", "rp"


@dataclass(frozen=True)
class Format:
    """A binary floating-point format. Every value of it is a Python float."""

    exponent_bits: int
    mantissa_bits: int

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @functools.cached_property
    def smallest_normal(self) -> float:
        return math.ldexp(1.0, 2 - 2 ** (self.exponent_bits - 1))

    def decode(self, code: int) -> float:
        m, e = self.mantissa_bits, self.exponent_bits
        sign = -1.0 if code >> (m + e) & 1 else 1.0
        exponent, mantissa = code >> m & ((1 << e) - 1), code & ((1 << m) - 1)
        if exponent == (1 << e) - 1:
            return math.copysign(math.nan if mantissa else math.inf, sign)
        bias = (1 << (e - 1)) - 1
        if exponent == 0:
            return sign * math.ldexp(mantissa, 1 - bias - m)
        return sign * math.ldexp(mantissa + (1 << m), exponent - bias - m)

    def encode(self, value: float | Fraction, mode: str = NEAREST, negative: bool | None = None) -> int:
        """Return the code of ``value``, rounded. ``negative`` is the sign of a zero, which a Fraction lacks."""
        m, e = self.mantissa_bits, self.exponent_bits
        infinity = ((1 << e) - 1) << m
        if isinstance(value, float) and math.isnan(value):
            return infinity | 1 << (m - 1)
        if negative is None or value != 0:
            negative = math.copysign(1, value) < 0 if isinstance(value, float) else value < 0
        sign = int(negative) << (m + e)
        if isinstance(value, float) and math.isinf(value):
            return sign | infinity
        size = abs(Fraction(value))
        bias = (1 << (e - 1)) - 1
        unit = max(_log2(size), 1 - bias) - m if size else 1 - bias - m
        denominator = size.denominator << max(unit, 0)
        whole, rest = divmod(size.numerator << max(-unit, 0), denominator)
        if mode == NEAREST:
            whole += 2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1)
        else:
            whole += rest > 0 and mode == (DOWN if negative else UP)
        code = whole if whole < (1 << m) else ((unit + m + bias) << m) + whole - (1 << m)
        if code >= infinity:
            overflows = mode == NEAREST or mode == (DOWN if negative else UP)
            code = infinity if overflows else infinity - 1
        return sign | code

    def flush(self, value: float) -> float:
        return math.copysign(0.0, value) if abs(value) < self.smallest_normal else value


def _log2(value: Fraction) -> int:
    n, d = value.numerator, value.denominator
    guess = n.bit_length() - d.bit_length()
    return guess if d << max(guess, 0) <= n << max(-guess, 0) else guess - 1


FORMATS = {"f16": Format(5, 10), "bf16": Format(8, 7), "f32": Format(8, 23), "f64": Format(11, 52)}


def finite(*values: float) -> bool:
    return all(math.isfinite(v) for v in values)


def _ieee(f: Callable[..., float], *values: float) -> float:
    try:
        return f(*values)
    except (ZeroDivisionError, OverflowError, ValueError):
        return math.nan


def add(a: float, b: float, mode: str) -> tuple[float | Fraction, bool]:
    """Exact sum and the sign of a zero."""
    if not finite(a, b):
        return a + b, False
    both = math.copysign(1, a) < 0 and math.copysign(1, b) < 0 and a == 0 and b == 0
    one_sign = math.copysign(1, a) == math.copysign(1, b)
    return Fraction(a) + Fraction(b), both or (mode == DOWN and not (a == 0 and b == 0 and one_sign))


def subtract(a: float, b: float, mode: str) -> tuple[float | Fraction, bool]:
    return add(a, -b, mode)


def multiply(a: float, b: float, mode: str) -> tuple[float | Fraction, bool]:
    negative = math.copysign(1, a) * math.copysign(1, b) < 0
    if not finite(a, b):
        return a * b, negative
    return Fraction(a) * Fraction(b), negative


def fma(a: float, b: float, c: float, mode: str) -> tuple[float | Fraction, bool]:
    if not finite(a, b, c):
        return (a * b + c if not finite(a, b) else c), False
    product, negative = multiply(a, b, mode)
    total = product + Fraction(c)
    if total == 0 and product == 0 and c == 0 and negative == (math.copysign(1, c) < 0):
        return total, negative
    return total, mode == DOWN


def divide(a: float, b: float, mode: str) -> tuple[float | Fraction, bool]:
    negative = math.copysign(1, a) * math.copysign(1, b) < 0
    if not finite(a, b):
        return _ieee(lambda: a / b) if b else math.copysign(a, -1 if negative else 1), negative
    if b == 0:
        return (math.nan if a == 0 else math.copysign(math.inf, -1 if negative else 1)), negative
    return Fraction(a) / Fraction(b), negative


def reciprocal(a: float, mode: str) -> tuple[float | Fraction, bool]:
    return divide(1.0, a, mode)


def square_root(a: float, mode: str) -> tuple[float | Fraction, bool]:
    if math.isnan(a) or a < 0:
        return math.nan, False
    if a == 0 or math.isinf(a):
        return a, math.copysign(1, a) < 0
    exact = Fraction(a)
    scale = 400 + exact.denominator.bit_length() * 2
    root = math.isqrt((exact.numerator << (2 * scale)) // exact.denominator)
    inexact = Fraction(root * root, 4**scale) != exact
    return Fraction(2 * root + inexact, 2 ** (scale + 1)), False  # one digit below all that any format keeps
