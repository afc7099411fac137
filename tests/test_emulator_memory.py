"""Loads, stores, atomics and asynchronous copies, and the checks on their addresses."""

import itertools

import emulator
import numpy as np
import pytest
import torch
from emulator.exact import FORMATS
from emulator.opcodes import canonical
from emulator.snippets import HEADER, decode, encode, width

SPACES = ["global", "shared", "local", "param", ""]
LOADED = [f"{sign}{n}" for n in (8, 16, 32, 64) for sign in "bus"] + ["f32", "f64"]


def lanes_of(kind, space):
    """How many values one access may take: up to 16 bytes, 32 in global memory."""
    n = width(kind)
    return [1, 2, *([4] if n <= 32 or space == "global" else []), *([8] if n == 32 and space == "global" else [])]


ACCESSES = [(space, kind, lanes) for space in SPACES for kind in LOADED for lanes in lanes_of(kind, space)]


def dotted(*parts):
    return ".".join(part for part in parts if part)


def vector(lanes):
    return f"v{lanes}" if lanes > 1 else ""


def program(body, parameters="x y", declarations="", registers=""):
    """One thread block's code, with 64-bit parameters loaded into registers of their names."""
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


def launch(text, *args, block=1, grid=1, **options):
    emulator.PtxKernel(text).launch((grid,), (block,), args, **options)


# Where the bytes of `x` are put before they are loaded: 32 bytes, at an address in %at.
PLACES = {
    "global": ("", "mov.b64 %at, %x;"),
    "shared": (".shared .align 16 .b8 place[32];\n", "mov.b64 %at, place;"),
    "local": ("", ".local .align 16 .b8 place[32];\nmov.b64 %at, place;"),
    "": (".shared .align 16 .b8 place[32];\n", "mov.b64 %at, place;\ncvta.shared.u64 %at, %at;"),
}


def copied(space):
    return "" if space == "global" else "\n".join(
        f"ld.global.b64 %l{i}, [%x+{8 * i}];\nst.{dotted(space, 'b64')} [%at+{8 * i}], %l{i};" for i in range(4)
    )  # fmt: skip


@pytest.mark.parametrize(("space", "kind", "lanes"), ACCESSES, ids=lambda v: str(v) or "generic")
def test_load(space, kind, lanes):
    data = torch.randint(0, 256, (32,), dtype=torch.uint8)
    values = [int.from_bytes(bytes(data[i * width(kind) // 8 :][: width(kind) // 8].tolist()), "little") for i in range(lanes)]
    opcode = dotted("ld", space, vector(lanes), kind)
    registers = [f"%l{8 + i}" for i in range(lanes)]
    wide = "\n".join(f"st.global.b64 [%y+{8 * i}], {r};" for i, r in enumerate(registers))
    where = "[p_x]" if space == "param" else "[%at]"
    into = "{" + ", ".join(registers) + "}" if lanes > 1 else registers[0]
    out = torch.zeros(lanes, dtype=torch.int64)
    if space == "param":  # all have eight bytes, one behind the other
        words = data.view(torch.int64).tolist()
        launch(program(f"{opcode} {into}, {where};\n{wide}", "x x1 x2 x3 y"), *words, out)
    else:
        declaration, address = PLACES[space]
        text = program(f"{address}\n{copied(space)}\n{opcode} {into}, {where};\n{wide}", declarations=declaration)
        launch(text, data, out)
    # A register wider than the type gets the sign of a signed type and zeros otherwise.
    assert out.tolist() == [int(np.uint64(encode("s64", decode(kind if kind[0] == "s" else f"u{width(kind)}", v))).astype(np.int64)) for v in values]


@pytest.mark.parametrize(("space", "kind", "lanes"), [a for a in ACCESSES if a[0] != "param"], ids=lambda v: str(v) or "generic")
def test_store(space, kind, lanes):
    data = torch.randint(0, 256, (64,), dtype=torch.uint8)
    out = torch.full((32,), 0xAB, dtype=torch.uint8)
    registers = [f"%l{8 + i}" for i in range(lanes)]
    loads = "\n".join(f"ld.global.b64 {r}, [%x+{8 * i}];" for i, r in enumerate(registers))
    values = "{" + ", ".join(registers) + "}" if lanes > 1 else registers[0]
    declaration, address = PLACES[space]
    address = address.replace("%x", "%y")
    fill = copied(space).replace("%x", "%y")
    back = "" if space == "global" else "\n".join(
        f"ld.{dotted(space, 'b64')} %l{i}, [%at+{8 * i}];\nst.global.b64 [%y+{8 * i}], %l{i};" for i in range(4)
    )  # fmt: skip
    opcode = dotted("st", space, vector(lanes), kind)
    launch(program(f"{address}\n{fill}\n{loads}\n{opcode} [%at], {values};\n{back}", declarations=declaration), data, out)
    n = width(kind) // 8
    want = b"".join(bytes(data[8 * i :][:n].tolist()) for i in range(lanes))
    assert bytes(out.tolist()) == want + b"\xab" * (32 - len(want))


HALVES = {"f16": 1, "bf16": 1, "f16x2": 2, "bf16x2": 2}


def added(kind, a, b):
    """Codes of sums; packed halves are two."""
    base = kind.removesuffix("x2")
    if base not in FORMATS:
        return encode(kind, a + b)
    form, n = FORMATS[base], width(base)
    parts = [form.encode(form.decode(a >> s & (2**n - 1)) + form.decode(b >> s & (2**n - 1))) for s in range(0, width(kind), n)]
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
SMALL = {"f32": 0x3FC00000, "f64": 0x3FF8000000000000, "f16": 0x3E00, "bf16": 0x3FC0, "f16x2": 0x3E004200, "bf16x2": 0x3FC04040}


def codes(kind, lanes, seed):
    """Values that can be added without overflow to a NaN."""
    random = np.random.default_rng(seed)
    if kind.removesuffix("x2") in FORMATS:
        return [SMALL[kind] ^ (seed % 2) << (width(kind) - 1) for _ in range(lanes)]
    return [int.from_bytes(random.bytes(8), "little") & (2 ** width(kind) - 1) for _ in range(lanes)]


def as_memory(kind, values):
    data = b"".join(v.to_bytes(width(kind) // 8, "little") for v in values)
    return torch.tensor(list(data.ljust(32, b"\0")), dtype=torch.uint8)


def from_memory(kind, data, lanes):
    n = width(kind) // 8
    return [int.from_bytes(bytes(data[n * i :][:n].tolist()), "little") for i in range(lanes)]


@pytest.mark.parametrize(("space", "operation", "lanes", "kind", "returns"), BOTH, ids=lambda v: str(v) or "generic")
def test_atomic(space, operation, lanes, kind, returns):
    old, new = codes(kind, lanes, 0), codes(kind, lanes, 1)
    n = max(16, width(kind))
    name = dotted("atom" if returns else "red", "relaxed", "gpu", space, operation, vector(lanes))
    name += ".noftz" * (kind in HALVES) + "." + kind
    got, given = ([f"%{letter}{i}" for i in range(lanes)] for letter in "gv")
    group = (lambda names: "{" + ", ".join(names) + "}") if lanes > 1 else (lambda names: names[0])
    declaration, address = PLACES[space]
    loads = "\n".join(f"ld.global.b{width(kind)} {v}, [%z+{width(kind) // 8 * i}];" for i, v in enumerate(given))
    back = "" if space == "global" else "\n".join(
        f"ld.{dotted(space, 'b64')} %l{i}, [%at+{8 * i}];\nst.global.b64 [%x+{8 * i}], %l{i};" for i in range(4)
    )  # fmt: skip
    stores = "\n".join(f"st.global.b{width(kind)} [%y+{width(kind) // 8 * i}], {g};" for i, g in enumerate(got)) if returns else ""
    body = f"{address}\n{copied(space)}\n{loads}\n{name} {group(got) + ', ' if returns else ''}[%at], {group(given)};\n{back}\n{stores}"
    memory, out = as_memory(kind, old), torch.zeros(32, dtype=torch.uint8)
    registers = f".reg .b{n} %g<8>, %v<8>;"
    launch(program(body, "x y z", declaration, registers), memory, out, as_memory(kind, new))
    assert from_memory(kind, memory, lanes) == [updated(operation, kind, a, b) for a, b in zip(old, new, strict=True)]
    if returns:
        assert from_memory(kind, out, lanes) == old


SWAPS = [(space, n) for space in ("global", "shared", "") for n in (16, 32, 64)]


@pytest.mark.parametrize(("space", "n"), SWAPS, ids=str)
@pytest.mark.parametrize("matches", [True, False])
def test_compare_and_swap(space, n, matches):
    declaration, address = PLACES[space]
    back = "" if space == "global" else f"ld.{dotted(space, 'b64')} %l0, [%at];\nst.global.b64 [%x], %l0;"
    body = f"""{address}
{copied(space)}
atom.{dotted("acq_rel.gpu", space, "cas")}.b{n} %g, [%at], {77 if matches else 76}, 99;
st.global.b{n} [%y], %g;
{back}"""
    memory, out = as_memory(f"b{n}", [77]), torch.zeros(32, dtype=torch.uint8)
    launch(program(body, "x y", declaration, f".reg .b{n} %g;"), memory, out)
    assert from_memory(f"b{n}", memory, 1) == [99 if matches else 77]
    assert from_memory(f"b{n}", out, 1) == [77]


def test_atomics_of_many_threads_add_up():
    total = torch.zeros(1, dtype=torch.int32)
    for order in ("forward", "reverse", 3):
        launch(program("red.global.add.u32 [%x], 1;", "x"), total, block=96, grid=5, order=order)
    assert total.item() == 3 * 96 * 5


def copy_program(wait, before="", size="16", copies=1):
    lines = [
        f"mov.b64 %at, place;\nst.shared.b64 [%at], 7;\nst.shared.b64 [%at+8], 7;",
        *[f"cp.async.{'cg' if size.startswith('16') else 'ca'}.shared.global [%at+{16 * i}], [%x+{16 * i}], {size};\ncp.async.commit_group;" for i in range(copies)],
        wait,
        *[f"ld.shared.b64 %l{i}, [%at+{8 * i}];\nst.global.b64 [%y+{8 * i}], %l{i};" for i in range(2 * copies)],
    ]  # fmt: skip
    return program("\n".join([before, *lines]), declarations=".shared .align 16 .b8 place[64];\n")


@pytest.mark.parametrize(
    ("size", "want"),
    [("16", [1, 2]), ("8", [1, 7]), ("4", [1, 7]), ("16, 8", [1, 0]), ("16, 0", [0, 0]), ("8, 8", [1, 7])],
)
@pytest.mark.parametrize("wait", ["cp.async.wait_all;", "cp.async.wait_group 0;"])
def test_asynchronous_copy(size, want, wait):
    x, out = torch.tensor([1, 2]), torch.zeros(2, dtype=torch.int64)
    launch(copy_program(wait, size=size), x, out)
    assert out.tolist() == want


def test_a_copy_lands_when_it_is_waited_for():
    x, out = torch.tensor([1, 2]), torch.zeros(2, dtype=torch.int64)
    launch(copy_program(""), x, out)
    assert out.tolist() == [7, 7]
    x, out = torch.tensor([1, 2, 3, 4, 5, 6]), torch.zeros(6, dtype=torch.int64)
    launch(copy_program("cp.async.wait_group 1;", copies=3), x, out)
    assert out.tolist() == [1, 2, 3, 4, -1, -1], "the last of three groups may be pending"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("ld.global.b32 %w0, [%x+16];", emulator.OutOfBounds),
        ("ld.global.b32 %w0, [%x+-4];", emulator.OutOfBounds),
        ("ld.global.v4.b32 {%w0, %w1, %w2, %w3}, [%x+16];", emulator.OutOfBounds),
        ("st.global.b32 [%x+16], %w0;", emulator.OutOfBounds),
        ("red.global.add.u32 [%x+4096], 1;", emulator.OutOfBounds),
        ("ld.global.b32 %w0, [%l0];", emulator.OutOfBounds),
        ("ld.b32 %w0, [%l0];", emulator.OutOfBounds),
        ("ld.global.b32 %w0, [%x+2];", emulator.MisalignedAccess),
        ("ld.global.v2.b32 {%w0, %w1}, [%x+4];", emulator.MisalignedAccess),
        ("ld.global.v4.b32 {%w0, %w1, %w2, %w3}, [%x+8];", emulator.MisalignedAccess),
        ("st.global.v2.b64 [%x+8], {%l0, %l1};", emulator.MisalignedAccess),
        ("ld.shared.b32 %w0, [place+8];", emulator.OutOfBounds),
        ("ld.shared.b32 %w0, [place+2];", emulator.MisalignedAccess),
        ("st.shared.v2.b32 [place+4], {%w0, %w1};", emulator.MisalignedAccess),
        ("cp.async.ca.shared.global [place], [%x+14], 4;\ncp.async.wait_all;", emulator.MisalignedAccess),
        ("cp.async.ca.shared.global [place], [%x+16], 4;\ncp.async.wait_all;", emulator.OutOfBounds),
        ("cp.async.ca.shared.global [place+8], [%x], 4;\ncp.async.wait_all;", emulator.OutOfBounds),
        ("cp.async.ca.shared.global [place], [%x+12], 8;\ncp.async.wait_all;", emulator.MisalignedAccess),
    ],
)  # fmt: skip
def test_bad_addresses(body, error):
    text = program(body, "x", ".shared .align 16 .b8 place[8];\n")
    with pytest.raises(error, match=r"snippet, PTX line \d+: `[a-z]+.*thread 0 of block \(0, 0, 0\)"):
        launch(text, torch.zeros(4, dtype=torch.int32))


def test_no_tensor_is_reached_from_its_neighbour():
    storage = torch.zeros(8, dtype=torch.int32)
    apart = [torch.zeros(4, dtype=torch.int32) for _ in range(2)]
    distance = apart[1].data_ptr() - apart[0].data_ptr()
    read = program(f"ld.global.b32 %w0, [%x+{distance}];\nst.global.b32 [%y], %w0;")
    with pytest.raises(emulator.OutOfBounds, match="of the 16 bytes of p_x"):
        launch(read, *apart)
    views = program("ld.global.b32 %w0, [%x+16];\nst.global.b32 [%y], %w0;")
    launch(views, storage[:4], storage[4:])  # views of one storage


def test_alignment_is_that_of_the_tensor():
    data = torch.zeros(16, dtype=torch.int32)
    text = program("ld.global.v4.b32 {%w0, %w1, %w2, %w3}, [%x];", "x")
    launch(text, data[4:])
    with pytest.raises(emulator.MisalignedAccess):
        launch(text, data[1:])


def test_module_memory():
    declarations = ".global .align 4 .b32 table[3] = {5, 6, 7};\n.const .f32 half = 0f3F000000;\n.global .b8 zeros[4];\n"
    body = "ld.global.b32 %w0, [table+8];\nld.const.b32 %w1, [half];\nld.global.b32 %w2, [zeros];\n"
    body += "st.global.b32 [%x], %w0;\nst.global.b32 [%x+4], %w1;\nst.global.b32 [%x+8], %w2;"
    out = torch.full((3,), -1, dtype=torch.int32)
    launch(program(body, "x", declarations), out)
    assert out.tolist() == [7, 0x3F000000, 0]


HINTED = [
    ("ld.global.nc.L1::no_allocate.L2::128B.v4.b32", "ld.global.v4.b32"),
    ("ld.relaxed.gpu.global.b32", "ld.global.b32"),
    ("ld.volatile.shared::cta.b32", "ld.shared.b32"),
    ("ld.global.L1::evict_last.L2::cache_hint.b32", "ld.global.b32"),
    ("ld.const.f32", "ld.global.f32"),
    ("st.global.wt.L1::evict_first.L2::cache_hint.v4.b32", "st.global.v4.b32"),
    ("st.release.sys.global.b32", "st.global.b32"),
    ("atom.global.gpu.acq_rel.add.f32", "atom.global.add.f32"),
    ("atom.global.acq_rel.gpu.cas.b32", "atom.global.cas.b32"),
    ("red.global.gpu.relaxed.add.noftz.v4.bf16x2", "red.global.add.v4.bf16x2"),
    ("red.relaxed.gpu.global.v4.f32.add", None),
    ("red.global.v4.add.f32", "red.global.add.v4.f32"),
    ("cp.async.cg.shared.global.L2::128B", "cp.async"),
]


@pytest.mark.parametrize(("opcode", "want"), HINTED)
def test_hints_that_say_nothing_about_the_result(opcode, want):
    if want is None:
        assert (canonical(opcode)[0], 8) not in emulator.opcodes()
    else:
        assert canonical(opcode)[0] == want
        assert canonical(opcode)[1] == ("cache_hint" in opcode)


def test_a_cache_policy_is_not_an_operand_of_the_machine():
    out = torch.zeros(1, dtype=torch.int32)
    launch(program("st.global.L1::evict_last.L2::cache_hint.b32 [%x], 5, %l3;", "x"), out)
    assert out.item() == 5


UNKNOWN = [
    "ld.global.b128", "ld.global.nc.nc.b32", "ld.global.L1::evict_often.b32", "ld.shared.v8.b32", "ld.global.wt.b32",
    "st.global.nc.b32", "ld.global.shared.b32", "atom.global.add.noftz.f32", "red.global.exch.b32", "ld.tex.b32",
    "red.shared.add.v4.f32", "atom.global.inc.u32", "atom.global.add.s64", "atom.global.cas.b8", "ld.f16",
]  # fmt: skip


@pytest.mark.parametrize("opcode", UNKNOWN)
def test_unknown_modifiers_are_refused(opcode):
    lanes = int(opcode[opcode.index(".v") + 2]) if ".v" in opcode else 1
    values = "{" + ", ".join(["%w0"] * lanes) + "}" if lanes > 1 else "%w0"
    name = opcode.split(".")[0]
    operands = {"ld": f"{values}, [%x]", "st": f"[%x], {values}", "red": f"[%x], {values}", "atom": f"{values}, [%x], {values}"}
    with pytest.raises(emulator.UnsupportedPtx, match=r"PTX line \d+"):
        emulator.PtxKernel(program(f"{opcode} {operands[name]};", "x"))


def test_every_memory_opcode_is_tested():
    accesses = {(dotted(name, space, vector(lanes), kind), lanes + 2)
                for (space, kind, lanes), name in itertools.product(ACCESSES, ("ld", "st"))
                if not (name == "st" and space == "param")}  # fmt: skip
    atomics = {(dotted("atom", space, op, vector(lanes), kind), 2 * lanes + 2) for space, op, lanes, kind in UPDATES}
    atomics |= {(dotted("red", s, op, vector(lanes), k), lanes + 2) for s, op, lanes, k in UPDATES if op != "exch"}
    atomics |= {(dotted("atom", space, "cas", f"b{n}"), 5) for space, n in SWAPS}
    copies = {("cp.async", 5), ("cp.async", 6), ("cp.async.commit_group", 0), ("cp.async.wait_all", 0)}
    copies |= {("cp.async.wait_group", 1)}
    table = {key for key in emulator.opcodes() if key[0].startswith(("ld.", "st.", "atom.", "red.", "cp."))}
    assert table == accesses | atomics | copies

