"""The emulator as Triton's device: installing, orders, transforms, resources, refusals, and its cache."""

import os
import subprocess
import sys
from pathlib import Path

import ptx_emulator as emulator
import pytest
import torch
from ptx_emulator.tests.expected.snippets import HEADER

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")


@triton.jit
def scale(x, out, size, factor, N: tl.constexpr):
    n = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(out + n, tl.load(x + n, mask=n < size) + factor, mask=n < size)


@triton.jit
def last_wins(out):
    tl.store(out, tl.program_id(0))


def run(x, factor=2.0, out=None, size=None):
    out = torch.full_like(x, float("nan")) if out is None else out
    compiled = scale[(triton.cdiv(x.numel(), 64),)](x, out, size or x.numel(), factor, 64)
    return out, compiled


def test_active_restores_what_was_there():
    before = triton.runtime.driver._active
    with emulator.active(80):
        outer = triton.runtime.driver.active
        with emulator.active(90, order="reverse"):
            assert triton.runtime.driver.active.get_current_target().arch == 90
        assert triton.runtime.driver.active is outer
        assert outer.get_device_capability() == (8, 0)
    assert triton.runtime.driver._active is before


def test_install_and_uninstall():
    before = triton.runtime.driver._active
    try:
        emulator.install(100)
        assert torch.equal(run(torch.ones(5))[0], torch.full((5,), 3.0))
        emulator.uninstall()
        assert triton.runtime.driver._active is None
    finally:
        triton.runtime.driver._active = before


def test_each_architecture_gets_its_own_code():
    for arch, name in ((80, "sm_80"), (90, "sm_90a"), (100, "sm_100a"), (80, "sm_80")):
        with emulator.active(arch):
            assert f".target {name}" in emulator.ptx_of(run(torch.ones(5))[1])


def test_launches_are_counted():
    before = emulator.launches()
    with emulator.active(80):
        for _ in range(3):
            run(torch.ones(5))
    assert emulator.launches() == before + 3


@pytest.mark.parametrize(("order", "last"), [("forward", 6), ("reverse", 0)])
def test_a_race_between_blocks_shows_in_another_order(order, last):
    out = torch.zeros(1, dtype=torch.int32)
    with emulator.active(80, order=order):
        last_wins[(7,)](out)
    assert out.item() == last


def test_a_seed_shuffles():
    results = set()
    for seed in range(12):
        out = torch.zeros(1, dtype=torch.int32)
        with emulator.active(80, order=seed):
            last_wins[(7,)](out)
        results.add(out.item())
    assert len(results) > 3


@pytest.mark.parametrize("bad", ["sideways", "Forward"])
def test_bad_order(bad):
    with emulator.active(80, order=bad), pytest.raises(ValueError, match="order: want"):
        run(torch.ones(5))


def test_bad_architecture():
    with pytest.raises(ValueError, match="arch: want one of"):
        emulator.install(70)


def test_transform_changes_what_runs_and_nothing_else():
    def subtract(text):
        assert "add.f32" in text
        return text.replace("add.f32", "sub.f32")

    x = torch.full((5,), 5.0)
    with emulator.active(80):
        with emulator.active(80, transform=subtract):
            assert torch.equal(run(x)[0].abs(), torch.full((5,), 3.0))
        assert torch.equal(run(x)[0], torch.full((5,), 7.0))


def test_ptx_of_a_compiled_kernel_runs_by_itself():
    x, out = torch.randn(64), torch.zeros(64)
    with emulator.active(80):
        compiled = run(x)[1]
    kernel = emulator.PtxKernel(emulator.ptx_of(compiled))
    kernel.launch((1,), (128,), [x, out, 64, 0.5])
    assert torch.equal(out, x + 0.5)
    with pytest.raises(emulator.OutOfResources, match="64 threads, want 128"):
        kernel.launch((1,), (64,), [x, out, 64, 0.5])
    with pytest.raises(emulator.EmulatorError, match="a tensor for parameter"):
        kernel.launch((1,), (128,), [x, out, x, 0.5])


def test_an_overrun_names_the_kernel_the_argument_and_the_line():
    with emulator.active(80), pytest.raises(emulator.OutOfBounds) as error:
        run(torch.ones(100), size=128)
    assert "scale, PTX line" in str(error.value)
    assert "of the 400 bytes of x" in str(error.value)
    assert "test_driver.py:" in str(error.value)


def test_a_tensor_without_elements():
    with emulator.active(80):
        out, _ = run(torch.ones(0), out=torch.ones(0))
        scale[(1,)](torch.ones(0), out, 0, 1.0, 64)
        with pytest.raises(emulator.OutOfBounds):
            scale[(1,)](torch.ones(0), out, 1, 1.0, 64)


def test_views_are_addressed_where_they_are():
    storage = torch.arange(40, dtype=torch.float32)
    out = torch.zeros(10)
    with emulator.active(80):
        run(storage[7:17], out=out)
    assert torch.equal(out, storage[7:17] + 2)


@triton.jit
def all_kinds(out, a, b, c, d, e, pair, nothing, N: tl.constexpr):
    total = a.to(tl.float32) + b.to(tl.float32) + c + tl.where(d, 0.5, 0.0) + e.to(tl.float32) + pair[0] + pair[1]
    if nothing is not None:
        total += 1000.0
    tl.store(out, total)


def test_every_kind_of_argument(recwarn):
    out = torch.zeros(1)
    with emulator.active(90):
        all_kinds[(1,)](out, -3, 2**40, 0.25, True, 2**63 + 5, (7, 1.5), None, 16)
    want = torch.tensor(-3.0) + 2.0**40 + 0.25 + 0.5 + 2.0**63 + 7 + 1.5
    assert out.item() == want.item()


@triton.jit
def big(x, N: tl.constexpr):
    n = tl.arange(0, N)
    tl.store(x + n, tl.sort(tl.load(x + n)))


def test_shared_memory_of_each_architecture():
    body = "\n.extern .shared .align 16 .b8 buffer[];\n.visible .entry empty()\n{\nret;\n}\n"
    for target, limit in (("sm_80", 166912), ("sm_90a", 232448), ("sm_100a", 232448)):
        kernel = emulator.PtxKernel(HEADER.replace("sm_100a", target) + body)
        kernel.launch((1,), (32,), [], shared=limit)
        with pytest.raises(emulator.OutOfResources, match=f"{limit + 1} bytes of shared memory, {target[:5]}"):
            kernel.launch((1,), (32,), [], shared=limit + 1)
    with pytest.raises(emulator.OutOfResources, match="1056 threads"):
        kernel.launch((1,), (1056,), [])


def test_more_shared_memory_than_was_asked_for():
    declared = (
        ".extern .shared .align 16 .b8 buffer[];\n.visible .entry stores()\n{\nst.shared.b32 [buffer+64], 0;\n}\n"
    )
    emulator.PtxKernel(HEADER + declared).launch((1,), (1,), [], shared=68)
    with pytest.raises(emulator.OutOfBounds, match="of 64 bytes of shared memory"):
        emulator.PtxKernel(HEADER + declared).launch((1,), (1,), [], shared=64)


def body(text, declarations=""):
    return (
        f"{HEADER}{declarations}.visible .entry k(.param .u64 p)\n"
        f"{{\n.reg .pred %p;\n.reg .b32 %r<9>;\n{text}\nret;\n}}\n"
    )


REFUSED = [
    "frobnicate.b32 %r0, %r1;", "add.rn.s32 %r0, %r1, %r2;", "add.f8 %r0, %r1, %r2;", "mul.s32 %r0, %r1, %r2;",
    "add.ftz.rn.f32 %r0, %r1, %r2;", "fma.f32 %r0, %r1, %r2, %r3;", "cvt.f32.f64 %r0, %r1;",
    "setp.lt.b32 %p, %r0, %r1;",
    "shl.s32 %r0, %r1, 2;", "selp.pred %p, %p, %p, %p;", "prmt.b32.f4e %r0, %r1, %r2, %r3;", "add.s32 %r0, %r1;",
    "add.s32 %r0, %r1, %r2, %r3;", "mov.b32 %r0, %r99;", "mov.b32 %r0, nowhere;", "call.uni (%r0), f, (%r1);",
    "wgmma.fence.sync.aligned;", "tcgen05.wait::ld.sync.aligned;", "mbarrier.init.shared::cta.b64 [%r0], 1;",
    "cp.async.bulk.commit_group;", "activemask.b32 %r0;", "barrier.cluster.arrive.aligned;", "mov.u32 %r0, %clock;",
    "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r0, %r1}, {%r2, %r3, %r4, %r5}, {%r6, %r7}, {%r0, %r1};",
    "shfl.bfly.b32 %r0, %r1, 1, 31;", "min.NaN.ftz.f32 %r0, %r1, %r2;", ".branchtargets a, b;",
    "mov.f32 %r0, 1e5;", "ld.global.b32 %r0, [%r1+%r2];",
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_unknown_is_refused(text):
    with pytest.raises(emulator.UnsupportedPtx, match=r"kernel k, PTX line 8: `.*not supported"):
        emulator.PtxKernel(body(text))


@pytest.mark.parametrize(
    "text",
    [
        HEADER + ".func f()\n{\nret;\n}\n" + body("").removeprefix(HEADER),
        HEADER + ".visible .entry k(.param .align 64 .b8 p[128])\n{\nret;\n}\n",
        HEADER + ".visible .entry k()\n.reqnctapercluster 2\n{\nret;\n}\n",
    ],
)
def test_unknown_constructs_are_refused(text):
    with pytest.raises(emulator.UnsupportedPtx):
        emulator.PtxKernel(text)


def test_a_module_holds_one_kernel_or_says_which():
    two = body("") + body("").removeprefix(HEADER).replace("entry k(", "entry m(")
    assert emulator.PtxKernel(two, "m").name == "m"
    with pytest.raises(emulator.EmulatorError, match="2 kernels"):
        emulator.PtxKernel(two)


def test_registers_and_local_memory_start_as_poison():
    text = f"""{HEADER}.visible .entry k(.param .u64 p)
{{
.local .align 4 .b8 depot[8];
.reg .b32 %f<4>;
.reg .b64 %a;
ld.param.u64 %a, [p];
add.f32 %f0, %f1, 0f3F800000;
ld.local.b32 %f2, [depot+4];
st.global.v2.b32 [%a], {{%f0, %f2}};
}}
"""
    out = torch.zeros(2)
    emulator.PtxKernel(text).launch((1,), (1,), [out])
    assert bool(out.isnan().all())


def test_scopes_hide_registers():
    text = f"""{HEADER}.visible .entry k(.param .u64 p)
{{
.reg .b32 %r;
.reg .b64 %a;
mov.b32 %r, 1;
{{ .reg .b32 %r; mov.b32 %r, 2; }}
ld.param.u64 %a, [p];
st.global.b32 [%a], %r;
}}
"""
    out = torch.zeros(1, dtype=torch.int32)
    emulator.PtxKernel(text).launch((1,), (1,), [out])
    assert out.item() == 1


STORE_EACH = """.reg .b64 %a, %b;
ld.param.u64 %a, [p];
mov.u32 %r1, %tid.x;
mul.wide.u32 %b, %r1, 4;
add.s64 %a, %a, %b;
st.global.b32 [%a], %r0;
"""


@pytest.mark.parametrize(("negate", "want"), [("", [1, 7]), ("!", [7, 1])])
def test_predicated_instructions(negate, want):
    predicated = f"mov.u32 %r1, %tid.x;\nsetp.eq.u32 %p, %r1, 0;\nmov.b32 %r0, 7;\n@{negate}%p mov.b32 %r0, 1;\n"
    out = torch.zeros(2, dtype=torch.int32)
    emulator.PtxKernel(body(predicated + STORE_EACH)).launch((1,), (2,), [out])
    assert out.tolist() == want


def test_negated_operands():
    negated = "setp.eq.b32 %p, 1, 1;\nsetp.eq.and.u32 %p, 1, 1, !%p;\nselp.b32 %r0, 5, 6, %p;\n"
    out = torch.zeros(1, dtype=torch.int32)
    emulator.PtxKernel(body(negated + STORE_EACH)).launch((1,), (1,), [out])
    assert out.item() == 6


COUNTING = """
import ptx_emulator as emulator, ptx_emulator.native as native
builds = []
build = native._build
native._build = lambda *args: (builds.append(args), build(*args))
assert len(emulator.opcodes()) > 1000
print(len(builds))
"""


def test_the_machine_is_built_once_per_version_of_its_sources(tmp_path):
    tests = str(Path(emulator.__file__).parent.parent)
    target = Path(emulator.native.library()._name)
    environment = {**os.environ, "V1FAST_EMULATOR_CACHE": str(tmp_path), "PYTHONPATH": tests}
    (tmp_path / target.name).write_bytes(target.read_bytes())

    def builds(changes=""):
        done = subprocess.run(
            [sys.executable, "-c", changes + COUNTING], env=environment, capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert builds() == 0
    other = "import ptx_emulator.native as n; n._FLAGS = (*n._FLAGS, '-DANOTHER')\n"
    fake = f"n._build = lambda c, s, t: t.write_bytes(open({str(target)!r}, 'rb').read())\n"
    assert builds(other + fake) == 1
