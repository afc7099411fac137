"""atom and red: what they leave in memory and what they return."""

import numpy as np
import ptx_emulator as emulator
import pytest
import torch
from ptx_emulator.tests.expected.exact import FORMATS
from ptx_emulator.tests.expected.programs import (
    PLACES,
    braced,
    copied_in,
    copied_out,
    dotted,
    from_memory,
    launch,
    vector,
    with_pointers,
)
from ptx_emulator.tests.expected.snippets import decode, encode, width

HALVES = {"f16": 1, "bf16": 1, "f16x2": 2, "bf16x2": 2}


def added(kind, a, b):
    """Codes of sums; packed halves are two."""
    base = kind.removesuffix("x2")
    if base not in FORMATS:
        return encode(kind, a + b)
    form, n = FORMATS[base], width(base)
    parts = [
        form.encode(form.decode(a >> s & (2**n - 1)) + form.decode(b >> s & (2**n - 1)))
        for s in range(0, width(kind), n)
    ]
    return sum(part << n * i for i, part in enumerate(parts))


def updated(operation, kind, old, value):
    if operation == "add":
        return added(kind, old, value)
    if operation in ("min", "max"):
        pick = min if operation == "min" else max
        return encode(kind, pick(decode(kind, old), decode(kind, value)))
    return {"and": old & value, "or": old | value, "xor": old ^ value, "exch": value}[operation]


def updates():
    for space in ("global", "shared", ""):
        for kind in ("u32", "s32", "u64", "s64"):
            yield from ((space, op, 1, kind) for op in ("add", "min", "max") if (op, kind) != ("add", "s64"))
        yield from ((space, op, 1, kind) for op in ("and", "or", "xor", "exch") for kind in ("b32", "b64"))
        yield from ((space, "add", 1, kind) for kind in ("f32", "f64", *HALVES))
    yield from (("global", "add", lanes, kind) for kind in ("f32", *HALVES) for lanes in (2, 4))
    yield from (("global", "add", 8, kind) for kind in ("f16", "bf16"))


UPDATES = list(updates())
# There is no red.exch.
BOTH = [(*update, returns) for update in UPDATES for returns in (True, False) if returns or update[1] != "exch"]
SMALL = {
    "f32": 0x3FC00000,
    "f64": 0x3FF8000000000000,
    "f16": 0x3E00,
    "bf16": 0x3FC0,
    "f16x2": 0x3E004200,
    "bf16x2": 0x3FC04040,
}


def codes(kind, lanes, seed):
    """Values that can be added without overflow to a NaN."""
    random = np.random.default_rng(seed)
    if kind.removesuffix("x2") in FORMATS:
        return [SMALL[kind] ^ (seed % 2) << (width(kind) - 1) for _ in range(lanes)]
    return [int.from_bytes(random.bytes(8), "little") & (2 ** width(kind) - 1) for _ in range(lanes)]


def as_memory(kind, values):
    data = b"".join(v.to_bytes(width(kind) // 8, "little") for v in values)
    return torch.tensor(list(data.ljust(32, b"\0")), dtype=torch.uint8)


@pytest.mark.parametrize(("space", "operation", "lanes", "kind", "returns"), BOTH, ids=lambda v: str(v) or "generic")
def test_atomic(space, operation, lanes, kind, returns):
    old, new = codes(kind, lanes, 0), codes(kind, lanes, 1)
    n = width(kind)
    name = dotted(
        "atom" if returns else "red", "relaxed.gpu", space, operation, vector(lanes), "noftz" * (kind in HALVES), kind
    )
    got, given = ([f"%{letter}{i}" for i in range(lanes)] for letter in "gv")
    declaration, address = PLACES[space]
    lines = [address, copied_in(space)]
    lines += [f"ld.global.b{n} {v}, [%z+{n // 8 * i}];" for i, v in enumerate(given)]
    lines += [f"{name} {braced(got) + ', ' if returns else ''}[%at], {braced(given)};", copied_out(space, "%x")]
    lines += [f"st.global.b{n} [%y+{n // 8 * i}], {g};" for i, g in enumerate(got) if returns]
    memory, out = as_memory(kind, old), torch.zeros(32, dtype=torch.uint8)
    text = with_pointers("\n".join(lines), "x y z", declaration, f".reg .b{n} %g<8>, %v<8>;")
    launch(text, memory, out, as_memory(kind, new))
    assert from_memory(kind, memory, lanes) == [updated(operation, kind, a, b) for a, b in zip(old, new, strict=True)]
    if returns:
        assert from_memory(kind, out, lanes) == old


SWAPS = [(space, n) for space in ("global", "shared", "") for n in (16, 32, 64)]


@pytest.mark.parametrize(("space", "n"), SWAPS, ids=str)
@pytest.mark.parametrize("matches", [True, False])
def test_compare_and_swap(space, n, matches):
    declaration, address = PLACES[space]
    body = f"""{address}
{copied_in(space)}
atom.{dotted("acq_rel.gpu", space, "cas")}.b{n} %g, [%at], {77 if matches else 76}, 99;
st.global.b{n} [%y], %g;
{copied_out(space, "%x")}"""
    memory, out = as_memory(f"b{n}", [77]), torch.zeros(32, dtype=torch.uint8)
    launch(with_pointers(body, "x y", declaration, f".reg .b{n} %g;"), memory, out)
    assert from_memory(f"b{n}", memory, 1) == [99 if matches else 77]
    assert from_memory(f"b{n}", out, 1) == [77]


def test_atomics_of_many_threads_add_up():
    total = torch.zeros(1, dtype=torch.int32)
    for order in ("forward", "reverse", 3):
        launch(with_pointers("red.global.add.u32 [%x], 1;", "x"), total, block=96, grid=5, order=order)
    assert total.item() == 3 * 96 * 5


def test_every_atomic_is_tested():
    tested = {(dotted("atom", space, op, vector(lanes), kind), 2 * lanes + 2) for space, op, lanes, kind in UPDATES}
    tested |= {(dotted("red", space, op, vector(n), kind), n + 2) for space, op, n, kind, back in BOTH if not back}
    tested |= {(dotted("atom", space, "cas", f"b{n}"), 5) for space, n in SWAPS}
    assert {key for key in emulator.opcodes() if key[0].startswith(("atom.", "red."))} == tested
