"""Shuffles, votes, reductions and barriers: what threads do together, and what they must not do apart."""

import numpy as np
import ptx_emulator as emulator
import pytest
import torch
from ptx_emulator.tests.expected.programs import launch_per_thread, per_thread, words

ORDERS = ["forward", "reverse", 5]


def shuffled(mode, values, b, clamp):
    """The PTX manual's pseudo-code."""
    result, valid = [], []
    for lane in range(32):
        segments, bound = clamp >> 8 & 31, clamp & 31
        last, first = (lane & segments) | (bound & ~segments & 31), lane & segments
        match mode:
            case "up":
                source, inside = lane - b, lane - b >= last
            case "down":
                source, inside = lane + b, lane + b <= last
            case "bfly":
                source, inside = lane ^ b, (lane ^ b) <= last
            case "idx":
                source = first | (b & ~segments & 31)
                inside = source <= last
        result.append(values[source if inside else lane])
        valid.append(inside)
    return result, valid


# What CUDA's __shfl functions pass for widths 32, 16 and 8, and a bound in the middle.
CLAMPS = {
    "up": [0, 0x1000, 0x1800],
    "down": [31, 0x101F, 0x181F, 20],
    "bfly": [31, 0x101F, 20],
    "idx": [31, 0x101F, 0x181F],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", list(CLAMPS))
def test_shuffle(mode, order):
    x = words(32)
    for clamp in CLAMPS[mode]:
        for b in (0, 1, 2, 5, 16, 31):
            want, valid = shuffled(mode, x.tolist(), b, clamp)
            body = f"ld.global.b32 %w0, [%from];\nshfl.sync.{mode}.b32 %w1|%p, %w0, {b}, {clamp}, -1;\n"
            body += f"shfl.sync.{mode}.b32 %w2, %w0, {b}, {clamp}, 0xffffffff;\nselp.b32 %w3, 1, 0, %p;\n"
            body += "st.global.v4.b32 [%at], {%w0, %w1, %w2, %w3};"
            out = launch_per_thread(
                per_thread(body, out_bytes=16), torch.zeros(32, 4, dtype=torch.int32), x, order=order
            )
            assert out[:, 1].tolist() == want, (mode, b, clamp)
            assert out[:, 2].tolist() == want
            assert out[:, 3].tolist() == [int(v) for v in valid]


def test_shuffle_among_half_of_a_warp():
    body = """ld.global.b32 %w0, [%from];
setp.lt.u32 %p, %t, 16;
mov.b32 %w1, 7;
@%p shfl.sync.bfly.b32 %w1, %w0, 3, 31, 0xffff;
st.global.b32 [%at], %w1;"""
    out = launch_per_thread(per_thread(body), torch.zeros(32, dtype=torch.int32), torch.arange(32, dtype=torch.int32))
    assert out.tolist() == [i ^ 3 for i in range(16)] + [7] * 16


REDUCTIONS = {
    **{f"add.{kind}": lambda v: np.add.reduce(v) for kind in ("u32", "s32")},
    "min.u32": lambda v: v.view(np.uint32).min().view(np.int32),
    "max.u32": lambda v: v.view(np.uint32).max().view(np.int32),
    "min.s32": np.min, "max.s32": np.max, "and.b32": np.bitwise_and.reduce, "or.b32": np.bitwise_or.reduce,
    "xor.b32": np.bitwise_xor.reduce,
}  # fmt: skip


@pytest.mark.parametrize("name", list(REDUCTIONS))
def test_integer_reduction(name):
    x = words(32, 3)
    body = f"ld.global.b32 %w0, [%from];\nredux.sync.{name} %w1, %w0, -1;\nst.global.b32 [%at], %w1;"
    out = launch_per_thread(per_thread(body), torch.zeros(32, dtype=torch.int32), x)
    with np.errstate(over="ignore"):
        want = int(REDUCTIONS[name](x.numpy()))
    assert out.tolist() == [(want + 2**31) % 2**32 - 2**31] * 32


@pytest.mark.parametrize("nan", ["", ".NaN"])
@pytest.mark.parametrize("name", ["min", "max"])
def test_float_reduction(name, nan):
    x = torch.randn(32)
    x[5] = float("nan")
    body = f"ld.global.b32 %w0, [%from];\nredux.sync.{name}{nan}.f32 %w1, %w0, -1;\nst.global.b32 [%at], %w1;"
    out = launch_per_thread(per_thread(body), torch.zeros(32), x)
    want = float("nan") if nan else float(getattr(np, f"nan{name}")(x.numpy()))
    np.testing.assert_array_equal(out.numpy(), np.full(32, want, np.float32))


@pytest.mark.parametrize("votes", [0, 2**32 - 1, 0x00010000, 0xFFFEFFFF])
def test_votes(votes):
    x = torch.tensor([votes >> i & 1 for i in range(32)], dtype=torch.int32)
    body = "ld.global.b32 %w0, [%from];\nsetp.ne.b32 %p, %w0, 0;\n"
    for i, mode in enumerate(("any", "all", "uni")):
        body += f"vote.sync.{mode}.pred %q, %p, -1;\nselp.b32 %w{i + 1}, 1, 0, %q;\n"
    body += "vote.sync.ballot.b32 %w4, %p, -1;\nst.global.v4.b32 [%at], {%w1, %w2, %w3, %w4};"
    out = launch_per_thread(per_thread(body, out_bytes=16), torch.zeros(32, 4, dtype=torch.int32), x)
    every = votes == 2**32 - 1
    want = [votes != 0, every, every or votes == 0, votes if votes < 2**31 else votes - 2**32]
    assert out.tolist() == [[int(w) for w in want]] * 32


def test_elect():
    body = "mov.b32 %w0, 9;\nsetp.gt.u32 %q, %t, 3;\n@%q elect.sync %w0|%p, 0xfffffff0;\n@!%q setp.ne.b32 %p, 0, 0;\n"
    body += "selp.b32 %w1, 1, 0, %p;\nst.global.v2.b32 [%at], {%w0, %w1};"
    out = launch_per_thread(per_thread(body, out_bytes=8), torch.zeros(32, 2, dtype=torch.int32), words(32))
    assert out.tolist() == [[9, 0]] * 4 + [[4, 1]] + [[4, 0]] * 27


BLOCK_BARRIERS = [
    "bar.sync",
    "barrier.sync",
    "barrier.sync.aligned",
    "barrier.cta.sync",
    "barrier.cta.sync.aligned",
    "bar.cta.sync",
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "barrier", [f"{name} 0" for name in BLOCK_BARRIERS] + [f"{name} 1, 96" for name in BLOCK_BARRIERS]
)
def test_block_barrier(barrier, order):
    """Every thread reads what the opposite thread has written."""
    body = f"""mov.b64 %l1, place;
mul.wide.u32 %l2, %t, 4;
add.s64 %l3, %l1, %l2;
ld.global.b32 %w0, [%from];
st.shared.b32 [%l3], %w0;
{barrier};
sub.s64 %l3, %l1, %l2;
ld.shared.b32 %w1, [%l3+380];
st.global.b32 [%at], %w1;"""
    x = words(192)
    text = per_thread(body, ".shared .align 4 .b8 place[384];\n")
    options = {"threads": 96, "blocks": 2, "order": order}
    out = launch_per_thread(text, torch.zeros(192, dtype=torch.int32), x, **options)
    assert torch.equal(out, x.reshape(2, 96).flip(1).reshape(-1))
    text = text.replace(f"{barrier};", "")
    with pytest.raises(emulator.DataRace, match="no barrier since thread"):
        launch_per_thread(text, torch.zeros(192, dtype=torch.int32), x, **options)
    missing = launch_per_thread(text, torch.zeros(192, dtype=torch.int32), x, races=False, **options)
    assert not torch.equal(missing, out), "a missing barrier shows without a look for races"
    assert (missing == -1).any(), "what has not been written is poison"


def test_warp_barrier():
    body = """mov.b64 %l1, place;
mul.wide.u32 %l2, %t, 4;
add.s64 %l3, %l1, %l2;
st.shared.b32 [%l3], %t;
bar.warp.sync -1;
sub.s64 %l3, %l1, %l2;
ld.shared.b32 %w1, [%l3+124];
st.global.b32 [%at], %w1;"""
    text = per_thread(body, ".shared .align 4 .b8 place[128];\n")
    for order in ORDERS:
        out = launch_per_thread(text, torch.zeros(32, dtype=torch.int32), words(32), order=order)
        assert out.tolist() == list(range(31, -1, -1))
    text = text.replace("bar.warp.sync -1;", "")
    with pytest.raises(emulator.DataRace):
        launch_per_thread(text, torch.zeros(32, dtype=torch.int32), words(32))
    out = launch_per_thread(text, torch.zeros(32, dtype=torch.int32), words(32), races=False)
    assert out.tolist() != list(range(31, -1, -1))


BARRIER = "bar.sync 0;\n"
COPY = "cp.async.ca.shared.global [place], [%x], 4;"
STORE = "st.shared.b32 [place], %t;"
THREAD_3 = "setp.eq.u32 %p, %t, 3;\n"
FIRST_32 = "setp.lt.u32 %p, %t, 32;\n"
RACES = {  # what threads do with one place in shared memory: without and with a barrier where | is
    "write, then read": "@%p st.shared.b32 [place], %t;\n|@!%p ld.shared.b32 %w0, [place];",
    "read, then write": "@%p ld.shared.b32 %w0, [place];\n|@%q st.shared.b32 [place], %t;",
    "write, then write": "st.shared.b32 [place], 7;\n|@%q st.shared.b32 [place], %t;",
    "write the same, then read": "st.shared.b32 [place], 7;\n|@%p ld.shared.b32 %w0, [place];",
    "read, then write the same": "@%p ld.shared.b32 %w0, [place];\n|st.shared.b32 [place], 7;",
    "a barrier of either warp": f"@%q {STORE}\nbar.warp.sync -1;\n|{THREAD_3}@%p ld.shared.b32 %w0, [place];",
    "update, then read": "red.shared.add.u32 [place], 1;\n|@%p ld.shared.b32 %w0, [place];",
    "part of a word": "@%p st.shared.v2.b32 [place], {%t, %t};\n|@!%p ld.shared.b8 %w0, [place+7];",
    "copy, then read": f"@%p {COPY}\ncp.async.wait_all;\n|ld.shared.b32 %w0, [place];",
    "read, then copy": f"ld.shared.b32 %w0, [place];\n|@%p {COPY}",
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", list(RACES))
def test_races_in_shared_memory(name, order):
    """Thread 40 (%p) against the others, or thread 41 (%q), which writes a different value."""
    body = "setp.eq.u32 %p, %t, 40;\nsetp.eq.u32 %q, %t, 41;\n" + RACES[name]
    options = {"threads": 64, "order": order}
    out, declaration = torch.zeros(64, dtype=torch.int32), ".shared .align 8 .b8 place[8];\n"
    launch_per_thread(per_thread(body.replace("|", BARRIER), declaration), out, words(64), **options)
    with pytest.raises(emulator.DataRace):
        launch_per_thread(per_thread(body.replace("|", ""), declaration), out, words(64), **options)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("st.shared.b32 [place], 7;", 7),  # all the same value
        ("red.shared.add.u32 [place], 1;", 65),
        ("ld.shared.b32 %w0, [place];", 1),
        ("setp.eq.u32 %p, %t, 9;\n@%p st.shared.b32 [place], %t;\n@%p ld.shared.b32 %w0, [place];", 9),
        (f"{FIRST_32}@%p st.shared.b32 [place], 5;\nbar.warp.sync -1;\n@%p ld.shared.b32 %w0, [place];", 5),
    ],
)
def test_what_is_no_race(body, left, order):
    """The accesses run between barriers on a value of 1. Every thread must read ``left`` afterwards."""
    before = f"st.shared.b32 [place], 1;\n{BARRIER}"
    after = f"\n{BARRIER}ld.shared.b32 %w1, [place];\nst.global.b32 [%at], %w1;"
    out, declaration = torch.zeros(64, dtype=torch.int32), ".shared .align 8 .b8 place[8];\n"
    launch_per_thread(per_thread(before + body + after, declaration), out, words(64), threads=64, order=order)
    assert out.eq(left).all()


FIRST_16 = "setp.lt.u32 %p, %t, 16;\n"
TO_ALL = "shfl.sync.bfly.b32 %w0, %t, 1, 31, -1;"


@pytest.mark.parametrize(
    ("body", "threads", "what"),
    [
        (f"{FIRST_16}@%p bar.sync 0;", 64, "thread 16 has exited"),
        (f"{FIRST_16}@%p bra $low;\nbar.sync 0;\nret;\n$low:\nbar.sync 0;", 64, "another barrier"),
        (f"{FIRST_16}@%p ret;\n{TO_ALL}", 32, "has exited"),
        (f"{FIRST_16}@!%p {TO_ALL}\nbar.sync 0;", 32, r"thread \d+ waits at line"),
        (f"{FIRST_16}@%p shfl.sync.idx.b32 %w0, %t, 20, 31, 0xffff;", 32, "lane 20, which is not in the mask"),
        ("shfl.sync.idx.b32 %w0, %t, 0, 31, 0xffff;", 32, "a lane that its own mask leaves out"),
        (f"{FIRST_16}@%p bra $low;\nbar.warp.sync -1;\nret;\n$low:\nbar.warp.sync -1;", 32, "not all threads come"),
        ("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%w0}, [%l0];", 16, "fewer than 32 threads"),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_divergence_is_an_error(body, threads, what, order):
    with pytest.raises(emulator.Divergence, match=what):
        launch_per_thread(per_thread(body), torch.zeros(64, dtype=torch.int32), words(64), threads, order=order)


def test_part_of_a_block_at_a_barrier_is_not_supported():
    with pytest.raises(emulator.UnsupportedPtx, match="part of a block"):
        launch_per_thread(per_thread("bar.sync 1, 64;"), torch.zeros(96, dtype=torch.int32), words(96), 96)


def test_endless_loop_is_an_error():
    with pytest.raises(emulator.Deadlock, match="endless loop"):
        launch_per_thread(per_thread("$again:\nbra.uni $again;"), torch.zeros(1, dtype=torch.int32), words(1), 1)


def test_trap():
    body = "setp.eq.u32 %p, %t, 5;\n@%p trap;"
    with pytest.raises(emulator.Trap, match="thread 5"):
        launch_per_thread(per_thread(body), torch.zeros(32, dtype=torch.int32), words(32))


WITHOUT_EFFECT = [
    "membar.cta", "membar.gl", "membar.sys", "griddepcontrol.wait", "griddepcontrol.launch_dependents",
    "fence.proxy.async", "fence.proxy.async.shared::cta", "nanosleep.u32 5",
    *(f"fence.{sem}{scope}" for sem in ("", "sc.", "acq_rel.") for scope in ("cta", "gpu", "sys")),
]  # fmt: skip


@pytest.mark.parametrize("instruction", WITHOUT_EFFECT)
def test_what_has_no_effect_here(instruction):
    out = launch_per_thread(
        per_thread(f"{instruction};\nst.global.b32 [%at], %t;"), torch.zeros(32, dtype=torch.int32), words(32)
    )
    assert out.tolist() == list(range(32))


def test_branches_and_exits():
    body = """mov.b32 %w0, 0;
$loop:
add.s32 %w0, %w0, 3;
setp.lt.u32 %p, %w0, %t;
@%p bra $loop;
setp.gt.u32 %q, %t, 20;
@!%q bra.uni $store;
setp.gt.u32 %q, %t, 25;
@%q exit;
mov.b32 %w0, 100;
$store:
st.global.b32 [%at], %w0;
bra $end;
st.global.b32 [%at], 55;
$end:"""
    out = launch_per_thread(per_thread(body), torch.full((32,), -5, dtype=torch.int32), words(32))
    assert out.tolist() == [max(3, -(-t // 3) * 3) for t in range(21)] + [100] * 5 + [-5] * 6


def test_special_registers():
    names = [f"{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"] + ["laneid", "warpid"]
    body = """mad.lo.u32 %a, %tid.z, 5, %tid.y;
mad.lo.u32 %a, %a, 4, %tid.x;
mad.lo.u32 %w0, %ctaid.y, 2, %ctaid.x;
mad.lo.u32 %a, %w0, 40, %a;
mul.wide.u32 %l0, %a, 56;
add.s64 %at, %out, %l0;
"""
    body += "\n".join(f"mov.u32 %w1, %{name};\nst.global.b32 [%at+{4 * i}], %w1;" for i, name in enumerate(names))
    out = torch.zeros(6 * 40, 14, dtype=torch.int32)
    emulator.PtxKernel(per_thread(body)).launch((2, 3), (4, 5, 2), [out, words(1)])
    for block in range(6):
        for thread in range(40):
            position = [thread % 4, thread // 4 % 5, thread // 20, 4, 5, 2, block % 2, block // 2, 0, 2, 3, 1]
            assert out[block * 40 + thread].tolist() == [*position, thread % 32, thread // 32]


def test_every_opcode_is_tested():
    shuffles = {(f"shfl.sync.{mode}.b32", n) for mode in CLAMPS for n in (5, 6)}
    reductions = {(f"redux.sync.{name}", 3) for name in REDUCTIONS}
    reductions |= {(f"redux.sync.{name}{nan}.f32", 3) for name in ("min", "max") for nan in ("", ".NaN")}
    votes = {(f"vote.sync.{mode}", 3) for mode in ("any.pred", "all.pred", "uni.pred", "ballot.b32")}
    barriers = {(name, n) for name in BLOCK_BARRIERS for n in (1, 2)} | {("bar.warp.sync", 1), ("elect.sync", 3)}
    control = {("bra", 1), ("bra.uni", 1), ("bra.if", 2), ("bra.unless", 2), ("ret", 0), ("exit", 0), ("trap", 0)}
    control |= {(text.split()[0], len(text.split()) - 1) for text in WITHOUT_EFFECT}
    groups = ("shfl.", "redux.", "vote.", "bar", "elect.", "bra", "ret", "exit", "trap", "membar.", "fence.")
    groups += ("griddepcontrol.", "nanosleep.")
    table = {key for key in emulator.opcodes() if key[0].startswith(groups)}
    assert table == shuffles | reductions | votes | barriers | control
