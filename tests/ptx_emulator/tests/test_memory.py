"""Loads, stores and asynchronous copies, and the checks on their addresses."""

import ptx_emulator as emulator
import pytest
import torch
from ptx_emulator.opcodes import canonical
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

SPACES = ["global", "shared", "local", "param", ""]
LOADED = [f"{sign}{n}" for n in (8, 16, 32, 64) for sign in "bus"] + ["f32", "f64"]


def lanes_of(kind, space):
    """How many values one access may take: up to 16 bytes, 32 in global memory."""
    n = width(kind)
    return [1, 2, *([4] if n <= 32 or space == "global" else []), *([8] if n == 32 and space == "global" else [])]


ACCESSES = [(space, kind, lanes) for space in SPACES for kind in LOADED for lanes in lanes_of(kind, space)]


@pytest.mark.parametrize(("space", "kind", "lanes"), ACCESSES, ids=lambda v: str(v) or "generic")
def test_load(space, kind, lanes):
    data = torch.randint(0, 256, (32,), dtype=torch.uint8)
    registers = [f"%l{8 + i}" for i in range(lanes)]
    into, opcode = braced(registers), dotted("ld", space, vector(lanes), kind)
    wide = "\n".join(f"st.global.b64 [%y+{8 * i}], {r};" for i, r in enumerate(registers))
    out = torch.zeros(8 * lanes, dtype=torch.uint8)
    if space == "param":  # all have eight bytes, one behind the other
        words = data.view(torch.int64).tolist()
        launch(with_pointers(f"{opcode} {into}, [p_x];\n{wide}", "x x1 x2 x3 y"), *words, out)
    else:
        declaration, address = PLACES[space]
        body = f"{address}\n{copied_in(space)}\n{opcode} {into}, [%at];\n{wide}"
        launch(with_pointers(body, declarations=declaration), data, out)
    # A register wider than the type gets the sign of a signed type and zeros otherwise.
    extends = kind if kind[0] == "s" else f"u{width(kind)}"
    want = [encode("u64", decode(extends, code)) for code in from_memory(kind, data, lanes)]
    assert from_memory("u64", out, lanes) == want


STORES = [access for access in ACCESSES if access[0] != "param"]


@pytest.mark.parametrize(("space", "kind", "lanes"), STORES, ids=lambda v: str(v) or "generic")
def test_store(space, kind, lanes):
    data = torch.randint(0, 256, (64,), dtype=torch.uint8)
    out = torch.full((32,), 0xAB, dtype=torch.uint8)
    registers = [f"%l{8 + i}" for i in range(lanes)]
    loads = "\n".join(f"ld.global.b64 {r}, [%x+{8 * i}];" for i, r in enumerate(registers))
    declaration, address = PLACES[space]
    store = f"{dotted('st', space, vector(lanes), kind)} [%at], {braced(registers)};"
    before = address.replace("%x", "%y") + "\n" + copied_in(space, "%y")
    launch(
        with_pointers("\n".join([before, loads, store, copied_out(space, "%y")]), declarations=declaration), data, out
    )
    assert from_memory(kind, out, lanes) == from_memory(kind, data, lanes, stride=8)
    assert bool((out[lanes * width(kind) // 8 :] == 0xAB).all())


def copy_program(wait, size="16", copies=1):
    """Asynchronous copies of 16 bytes each, into memory of which the first 16 bytes are sevens."""
    cache = "cg" if size.startswith("16") else "ca"
    lines = ["mov.b64 %at, place;\nst.shared.b64 [%at], 7;\nst.shared.b64 [%at+8], 7;"]
    for i in range(copies):
        lines.append(f"cp.async.{cache}.shared.global [%at+{16 * i}], [%x+{16 * i}], {size};\ncp.async.commit_group;")
    lines.append(wait)
    for i in range(2 * copies):
        lines.append(f"ld.shared.b64 %l{i}, [%at+{8 * i}];\nst.global.b64 [%y+{8 * i}], %l{i};")
    return with_pointers("\n".join(lines), declarations=".shared .align 16 .b8 place[64];\n")


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
    text = with_pointers(body, "x", ".shared .align 16 .b8 place[8];\n")
    with pytest.raises(error, match=r"snippet, PTX line \d+: `[a-z]+.*thread 0 of block \(0, 0, 0\)"):
        launch(text, torch.zeros(4, dtype=torch.int32))


def test_no_tensor_is_reached_from_its_neighbour():
    storage = torch.zeros(8, dtype=torch.int32)
    apart = [torch.zeros(4, dtype=torch.int32) for _ in range(2)]
    distance = apart[1].data_ptr() - apart[0].data_ptr()
    read = with_pointers(f"ld.global.b32 %w0, [%x+{distance}];\nst.global.b32 [%y], %w0;")
    with pytest.raises(emulator.OutOfBounds, match="of the 16 bytes of p_x"):
        launch(read, *apart)
    views = with_pointers("ld.global.b32 %w0, [%x+16];\nst.global.b32 [%y], %w0;")
    launch(views, storage[:4], storage[4:])  # views of one storage


def test_alignment_is_that_of_the_tensor():
    data = torch.zeros(16, dtype=torch.int32)
    text = with_pointers("ld.global.v4.b32 {%w0, %w1, %w2, %w3}, [%x];", "x")
    launch(text, data[4:])
    with pytest.raises(emulator.MisalignedAccess):
        launch(text, data[1:])


def test_module_memory():
    declarations = (
        ".global .align 4 .b32 table[3] = {5, 6, 7};\n.const .f32 half = 0f3F000000;\n.global .b8 zeros[4];\n"
    )
    body = "ld.global.b32 %w0, [table+8];\nld.const.b32 %w1, [half];\nld.global.b32 %w2, [zeros];\n"
    body += "st.global.b32 [%x], %w0;\nst.global.b32 [%x+4], %w1;\nst.global.b32 [%x+8], %w2;"
    out = torch.full((3,), -1, dtype=torch.int32)
    launch(with_pointers(body, "x", declarations), out)
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
    launch(with_pointers("st.global.L1::evict_last.L2::cache_hint.b32 [%x], 5, %l3;", "x"), out)
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
    operands = {
        "ld": f"{values}, [%x]",
        "st": f"[%x], {values}",
        "red": f"[%x], {values}",
        "atom": f"{values}, [%x], {values}",
    }
    with pytest.raises(emulator.UnsupportedPtx, match=r"PTX line \d+"):
        emulator.PtxKernel(with_pointers(f"{opcode} {operands[name]};", "x"))


def test_every_memory_opcode_is_tested():
    accesses = {(dotted("ld", space, vector(lanes), kind), lanes + 2) for space, kind, lanes in ACCESSES}
    accesses |= {(dotted("st", space, vector(lanes), kind), lanes + 2) for space, kind, lanes in STORES}
    copies = {("cp.async", 5), ("cp.async", 6), ("cp.async.commit_group", 0), ("cp.async.wait_all", 0)}
    copies |= {("cp.async.wait_group", 1)}
    table = {key for key in emulator.opcodes() if key[0].startswith(("ld.", "st.", "cp."))}
    assert table == accesses | copies
