"""Conversion to and from half and bfloat16, exhaustively, and their arithmetic, against numpy and torch."""

import numpy as np
import pytest
import torch
from ptx_emulator.tests.expected.snippets import Case, run

ALL = np.arange(2**16, dtype=np.uint16)
TORCH = {"f16": torch.float16, "bf16": torch.bfloat16}


def as_floats(kind, codes):
    return torch.from_numpy(codes.view(np.int16)).view(TORCH[kind]).float().numpy()


def as_codes(kind, floats):
    """What torch rounds floats to."""
    return torch.from_numpy(np.ascontiguousarray(floats)).to(TORCH[kind]).view(torch.int16).numpy().view(np.uint16)


def machine(opcode, results, operands, *columns):
    case = Case(opcode, (results,), operands, lambda *_: 0)
    return np.array(run(case, [c.astype(np.uint64) for c in columns])[0], dtype=np.uint64)


def assert_same(kind, got, want):
    """Equal codes, or both NaN."""
    got, want = got.astype(np.uint16), want.astype(np.uint16)
    nan = np.isnan(as_floats(kind, want))
    assert np.array_equal(np.isnan(as_floats(kind, got)), nan)
    assert np.array_equal(got[~nan], want[~nan])


@pytest.mark.parametrize("kind", list(TORCH))
def test_every_half_to_a_float(kind):
    got = machine(f"cvt.f32.{kind}", "f32", (kind,), ALL).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(got, as_floats(kind, ALL))
    zero = got == 0
    assert np.array_equal(np.signbit(got[zero]), ALL[zero] >> 15 == 1)


@pytest.mark.parametrize("kind", list(TORCH))
def test_floats_at_and_around_every_half(kind):
    """Every half, every midpoint of two neighbours, and the floats just below and above of each."""
    values = as_floats(kind, ALL)
    finite = np.sort(values[np.isfinite(values)]).astype(np.float64)
    middle = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    largest = np.float32(finite[-1])
    overflow = np.array([largest * (1 + 2.0**-12), largest * (1 + 2.0**-11), largest * (1 + 2.0**-8)], np.float32)
    floats = np.concatenate([values, middle, overflow, -overflow])
    with np.errstate(invalid="ignore", over="ignore"):
        floats = np.concatenate(
            [floats, np.nextafter(floats, np.float32(np.inf)), np.nextafter(floats, np.float32(-np.inf))]
        )
    got = machine(f"cvt.rn.{kind}.f32", kind, ("f32",), floats.view(np.uint32))
    assert_same(kind, got, as_codes(kind, floats))


@pytest.mark.parametrize("kind", list(TORCH))
def test_random_floats_to_halves(kind):
    floats = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    got = machine(f"cvt.rn.{kind}.f32", kind, ("f32",), floats)
    assert_same(kind, got, as_codes(kind, floats.view(np.float32)))


@pytest.mark.parametrize("kind", list(TORCH))
@pytest.mark.parametrize("name", ["add", "sub", "mul"])
def test_arithmetic_of_halves(kind, name):
    random = np.random.default_rng(1)
    a, b = random.permutation(ALL), random.permutation(ALL)
    got = machine(f"{name}.{kind}", kind, (kind, kind), a, b)
    x, y = (torch.from_numpy(v.view(np.int16)).view(TORCH[kind]) for v in (a, b))
    want = getattr(torch, name)(x, y).view(torch.int16).numpy().view(np.uint16)
    assert_same(kind, got, want)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_a_half_is_rounded_once(mode):
    """Halfway in double only after a first rounding: what a conversion by way of float gets wrong."""
    double = np.array([1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-11 - 2.0**-40, -(1 + 2.0**-11 + 2.0**-40)])
    got = machine(f"cvt.{mode}.f16.f64", "f16", ("f64",), double.view(np.uint64))
    up, one = 0x3C01, 0x3C00
    want = {
        "rn": [up, one, up | 0x8000],
        "rz": [one, one, one | 0x8000],
        "rm": [one, one, up | 0x8000],
        "rp": [up, up, one | 0x8000],
    }
    assert got.tolist() == want[mode]
