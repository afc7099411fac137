"""ldmatrix, stmatrix and mma.sync, by the fragment layouts of the PTX manual."""

import ptx_emulator as emulator
import pytest
import torch
from ptx_emulator.tests.expected.programs import launch_per_thread, per_thread, words


def matrix_program(instruction, matrices):
    """Eight rows of eight halves each, `matrices` times, between x, shared memory and four registers of each lane."""
    given = ", ".join(f"%w{i}" for i in range(matrices))
    load = instruction.startswith("ldmatrix")
    operands = f"{{{given}}}, [%l3]" if load else f"[%l3], {{{given}}}"
    return per_thread(
        f"""mov.b64 %l1, place;
mul.wide.u32 %l2, %t, 16;
add.s64 %l3, %l1, %l2;
mul.lo.s32 %a, %t, 16;
cvt.u64.u32 %l4, %a;
add.s64 %l5, %x, %l4;
ld.global.v4.b32 {{%w0, %w1, %w2, %w3}}, [%l5];
{"st.shared.v4.b32 [%l3], {%w0, %w1, %w2, %w3};" if load else ""}
bar.sync 0;
{instruction} {operands};
bar.sync 0;
{"" if load else "ld.shared.v4.b32 {%w0, %w1, %w2, %w3}, [%l3];"}
st.global.v4.b32 [%at], {{%w0, %w1, %w2, %w3}};""",
        ".shared .align 16 .b8 place[512];\n",
        16,
    )


MATRICES = [(n, trans) for n in (1, 2, 4) for trans in ("", ".trans")]


@pytest.mark.parametrize(("n", "trans"), MATRICES)
def test_matrix_load(n, trans):
    rows = torch.arange(32 * 8, dtype=torch.int16).reshape(32, 8)  # matrix i is rows 8 i to 8 i + 7
    out = torch.zeros(32, 4, 2, dtype=torch.int16)
    launch_per_thread(matrix_program(f"ldmatrix.sync.aligned.m8n8.x{n}{trans}.shared.b16", n), out, rows)
    for i in range(n):
        matrix = rows[8 * i : 8 * i + 8]
        fragment = (matrix.T if trans else matrix).reshape(32, 2)  # lane l: elements 2 l and 2 l + 1, row by row
        assert torch.equal(out[:, i], fragment)


@pytest.mark.parametrize(("n", "trans"), MATRICES)
def test_matrix_store(n, trans):
    given = torch.arange(32 * 8, dtype=torch.int16).reshape(32, 4, 2)
    out = torch.zeros(32, 8, dtype=torch.int16)
    launch_per_thread(matrix_program(f"stmatrix.sync.aligned.m8n8.x{n}{trans}.shared.b16", n), out, given)
    for i in range(n):
        matrix = given[:, i].reshape(8, 8)
        assert torch.equal(out[8 * i : 8 * i + 8], matrix.T if trans else matrix)
    assert bool((out[8 * n :] == -1).all())


@pytest.mark.parametrize(
    "instruction",
    [
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%w0}, [%l3+2]",
        "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%l3+8], {%w0}",
    ],
)
def test_matrix_rows_are_aligned(instruction):
    body = f"mov.b64 %l3, place;\n{instruction};"
    with pytest.raises(emulator.MisalignedAccess):
        launch_per_thread(per_thread(body, ".shared .align 16 .b8 place[512];\n"), torch.zeros(32), words(32))


MMA = {
    "m16n8k8.row.col.f32.tf32.tf32.f32": (8, torch.float32),
    "m16n8k16.row.col.f32.f16.f16.f32": (16, torch.float16),
    "m16n8k16.row.col.f32.bf16.bf16.f32": (16, torch.bfloat16),
}

MMA_OF_DOUBLES = "m8n8k4.row.col.f64.f64.f64.f64"


@pytest.mark.parametrize("shape", list(MMA))
def test_tensor_core(shape):
    """A warp's product, its operands loaded element by element where the PTX manual puts them."""
    depth, dtype = MMA[shape]
    each = depth // 8  # elements in one 32-bit register
    a, b, c = torch.randn(16, depth), torch.randn(depth, 8), torch.randn(16, 8)
    registers = torch.zeros(32, 10, dtype=torch.int32)
    if dtype == torch.float32:  # only ten bits of mantissa are read
        a, b = (((m.view(torch.int32) >> 13) << 13).view(torch.float32) for m in (a, b))
    else:
        a, b = a.to(dtype), b.to(dtype)
    for lane in range(32):
        group, within = lane // 4, lane % 4
        columns = [depth // 2 * half + each * within for half in (0, 1)]
        parts = [a[group + 8 * (i % 2), columns[i // 2] :][:each] for i in range(4)]
        parts += [b[columns[i] :, group][:each] for i in range(2)]
        parts += [c[group + 8 * (i // 2), 2 * within + i % 2].reshape(1) for i in range(4)]
        registers[lane] = torch.cat([p.contiguous().view(torch.int32) for p in parts])
    loads = "\n".join(f"ld.global.b32 %w{i + 4}, [%l5+{4 * i}];" for i in range(10))
    body = f"""mul.wide.u32 %l4, %t, 40;
add.s64 %l5, %x, %l4;
{loads}
mma.sync.aligned.{shape} {{%w0, %w1, %w2, %w3}}, {{%w4, %w5, %w6, %w7}}, {{%w8, %w9}}, {{%w10, %w11, %w12, %w13}};
st.global.v4.b32 [%at], {{%w0, %w1, %w2, %w3}};"""
    out = launch_per_thread(per_thread(body, out_bytes=16), torch.zeros(32, 4), registers)
    product = (a.double() @ b.double() + c.double()).float()
    got = torch.empty(16, 8)
    for lane in range(32):
        for i in range(4):
            got[lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2] = out[lane, i]
    torch.testing.assert_close(got, product, rtol=1e-6, atol=1e-6)


def test_tensor_core_of_doubles():
    """8 x 4 times 4 x 8: a lane's own element of each, and two neighbours of the sums."""
    a, b, c = torch.randn(8, 4).double(), torch.randn(4, 8).double(), torch.randn(8, 8).double()
    registers = torch.zeros(32, 4, dtype=torch.float64)
    for lane in range(32):
        row, within = lane // 4, lane % 4
        sums = c[row, 2 * within : 2 * within + 2]
        registers[lane] = torch.cat([a[row, within].reshape(1), b[within, row].reshape(1), sums])
    loads = "\n".join(f"ld.global.b64 %l{i + 1}, [%l5+{8 * i}];" for i in range(4))
    body = f"""mul.wide.u32 %l4, %t, 32;
add.s64 %l5, %x, %l4;
{loads.replace("%l4,", "%l6,")}
mma.sync.aligned.{MMA_OF_DOUBLES} {{%l1, %l2}}, {{%l1}}, {{%l2}}, {{%l3, %l6}};
st.global.v2.b64 [%at], {{%l1, %l2}};"""
    out = launch_per_thread(per_thread(body, out_bytes=16), torch.zeros(32, 2, dtype=torch.float64), registers)
    torch.testing.assert_close(out.reshape(8, 8), a @ b + c, rtol=1e-14, atol=1e-14)


def test_a_tensor_core_ignores_what_tf32_has_no_room_for():
    text = per_thread(
        """mov.b32 %w0, 0f3F801FFF;
mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%w1, %w2, %w3, %w4}, {%w0, %w0, %w0, %w0}, {%w0, %w0}, {0, 0, 0, 0};
st.global.b32 [%at], %w1;""".replace("{0, 0, 0, 0}", "{%w5, %w5, %w5, %w5}").replace("mma", "mov.b32 %w5, 0;\nmma")
    )
    out = launch_per_thread(text, torch.zeros(32), words(32))
    assert out.tolist() == [8.0] * 32


def test_every_matrix_opcode_is_tested():
    names = [f"{name}.sync.aligned.m8n8" for name in ("ldmatrix", "stmatrix")]
    tested = {(f"{name}.x{n}{trans}.shared.b16", n + 2) for name in names for n, trans in MATRICES}
    tested |= {(f"mma.sync.aligned.{shape}", 14) for shape in MMA} | {(f"mma.sync.aligned.{MMA_OF_DOUBLES}", 6)}
    assert {key for key in emulator.opcodes() if key[0].startswith(("ldmatrix.", "stmatrix.", "mma."))} == tested
