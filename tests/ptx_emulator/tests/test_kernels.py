"""Small Triton kernels through the whole of the emulator: JIT, PTX of each architecture, execution in three orders."""

import itertools
import re

import numpy as np
import ptx_emulator as emulator
import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

ARCHS = [80, 90, 100]
ORDERS = ["forward", "reverse", 7]


@pytest.fixture(params=ARCHS, ids=lambda arch: f"sm_{arch}")
def arch(request):
    return request.param


@pytest.fixture(params=ORDERS, ids=str)
def on_gpu(arch, request):
    """Everything in the test runs on the emulated device."""
    with emulator.active(arch, order=request.param):
        yield


def empty(*shape, dtype=torch.float32):
    return torch.full(shape, float("nan") if dtype.is_floating_point else -77, dtype=dtype)


@triton.jit
def gather_rows(table, index, out, rows, N: tl.constexpr, C: tl.constexpr):
    n = tl.program_id(0) * N + tl.arange(0, N)
    c = tl.arange(0, C)
    i = tl.load(index + n)
    inside = (i >= 0) & (i < rows)
    values = tl.load(table + i.to(tl.int64)[:, None] * C + c[None, :], mask=inside[:, None], other=0.0)
    tl.store(out + n[:, None] * C + c[None, :], values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gather(on_gpu, dtype):
    table, index = torch.randn(50, 32, dtype=dtype), torch.randint(-10, 60, (128,), dtype=torch.int32)
    out = empty(128, 32, dtype=dtype)
    gather_rows[(4,)](table, index, out, 50, 32, 32)
    inside = (index >= 0) & (index < 50)
    want = torch.where(inside[:, None], table[index.clamp(0, 49).long()], 0)
    assert torch.equal(out, want)


@triton.jit
def scatter_rows(rows, index, table, N: tl.constexpr, C: tl.constexpr):
    n = tl.program_id(0) * N + tl.arange(0, N)
    c = tl.arange(0, C)
    i = tl.load(index + n)
    values = tl.load(rows + n[:, None] * C + c[None, :])
    tl.atomic_add(table + i[:, None] * C + c[None, :], values, mask=(i >= 0)[:, None], sem="relaxed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scatter(on_gpu, dtype):
    rows = torch.randint(-4, 5, (128, 32)).to(dtype)  # sums are exact in any order
    index = torch.randint(-2, 9, (128,), dtype=torch.int32)
    table = torch.zeros(9, 32, dtype=dtype)
    scatter_rows[(4,)](rows, index, table, 32, 32)
    kept = index >= 0
    want = torch.zeros(9, 32).index_add_(0, index[kept].long(), rows[kept].float())
    assert torch.equal(table.float(), want)


def test_scatter_uses_the_vector_atomics_of_the_architecture(arch):
    with emulator.active(arch):
        compiled = scatter_rows[(1,)](
            torch.zeros(32, 32), torch.zeros(32, dtype=torch.int32), torch.zeros(9, 32), 32, 32
        )
    assert (".v4.f32" in next(line for line in emulator.ptx_of(compiled).split("\n") if "red." in line)) == (arch >= 90)


@triton.jit
def reductions(x, sums, largest, where, total, M: tl.constexpr, N: tl.constexpr):
    m, n = tl.arange(0, M), tl.arange(0, N)
    values = tl.load(x + m[:, None] * N + n[None, :]).to(tl.float32)
    tl.store(sums + m, tl.sum(values, 1))
    tl.store(largest + n, tl.max(values, 0))
    tl.store(where + n, tl.argmin(values, 0))
    tl.store(total, tl.sum(tl.sum(values, 1), 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "n"), [(16, 128), (128, 16)])
def test_reductions(on_gpu, dtype, m, n):
    x = torch.randn(m, n).to(dtype)
    sums, largest, where, total = empty(m), empty(n), empty(n, dtype=torch.int32), empty(1)
    reductions[(1,)](x, sums, largest, where, total, m, n)
    torch.testing.assert_close(sums, x.float().sum(1), rtol=1e-5, atol=1e-4)
    assert torch.equal(largest, x.float().amax(0))
    assert torch.equal(x.float().gather(0, where.long()[None]), x.float().amin(0)[None])
    torch.testing.assert_close(total[0], x.float().sum(), rtol=1e-5, atol=1e-3)


@triton.jit
def multiply(a, b, out, M, N, K, B: tl.constexpr, PRECISION: tl.constexpr):
    m, n = tl.program_id(0) * B + tl.arange(0, B), tl.program_id(1) * B + tl.arange(0, B)
    k = tl.arange(0, B)
    total = tl.zeros((B, B), tl.float32)
    for start in range(0, K, B):
        inside = start + k < K
        left = tl.load(a + m[:, None] * K + (start + k)[None, :], mask=(m < M)[:, None] & inside[None, :], other=0.0)
        right = tl.load(b + (start + k)[:, None] * N + n[None, :], mask=inside[:, None] & (n < N)[None, :], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    tl.store(out + m[:, None] * N + n[None, :], total, mask=(m < M)[:, None] & (n < N)[None, :])


def product(arch, dtype, precision, order):
    a, b, out = torch.randn(40, 72).to(dtype), torch.randn(72, 48).to(dtype), empty(40, 48)
    with emulator.active(arch, order):
        multiply[(2, 2)](a, b, out, 40, 48, 72, 32, precision)
    return out, a.double() @ b.double()


@pytest.mark.parametrize("order", ORDERS)
def test_dot_in_full_precision(arch, order):
    got, want = product(arch, torch.float32, "ieee", order)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("dtype", "precision", "tolerance"),
    [
        (torch.float32, "tf32", 2e-2), (torch.float32, "tf32x3", 2e-5), (torch.bfloat16, "ieee", 2e-5),
        (torch.float16, "ieee", 2e-5),
    ],
)  # fmt: skip
def test_dot_on_the_tensor_cores_of_sm_80(order, dtype, precision, tolerance):
    got, want = product(80, dtype, precision, order)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    if precision == "tf32":
        assert (got.double() - want).abs().max() > 1e-4, "as exact as float32: the rounding to tf32 is not there"


@pytest.mark.parametrize(("late", "what"), [(90, "wgmma"), (100, "tcgen05")])
def test_later_tensor_cores_are_refused(late, what):
    a = torch.randn(64, 64).bfloat16()
    with emulator.active(late), pytest.raises(emulator.UnsupportedPtx, match=what):
        multiply[(1, 1)](a, a, empty(64, 64), 64, 64, 64, 64, "ieee")


@triton.jit
def philox(out, words, normals, seed, N: tl.constexpr):
    n = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(out + n, tl.rand(seed, n))
    tl.store(words + n, tl.randint(seed, n.to(tl.int64) + 5_000_000_000))
    tl.store(normals + n, tl.randn(seed, n))


def philox_words(seed, counters):
    """Philox 4x32-10 of 64-bit counters, as Triton numbers them."""
    c = [counters & 0xFFFFFFFF, counters >> 32, np.zeros_like(counters), np.zeros_like(counters)]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        low, high = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(high >> 32) ^ c[1] ^ k[0], high & 0xFFFFFFFF, (low >> 32) ^ c[3] ^ k[1], low & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_philox(on_gpu):
    out, words, normals = empty(512), empty(512, dtype=torch.int32), empty(512)
    philox[(4,)](out, words, normals, 2**40 + 17, 128)
    counters = np.arange(512, dtype=np.uint64)
    first = philox_words(2**40 + 17, counters)
    want = philox_words(2**40 + 17, counters + np.uint64(5_000_000_000))[0]
    assert np.array_equal(words.numpy().astype(np.int64) & 0xFFFFFFFF, want.astype(np.int64))
    signed = first[0].astype(np.uint32).view(np.int32).astype(np.float64)
    uniform = np.where(signed < 0, -signed - 1, signed) * 4.6566127342e-10
    assert np.abs(out.numpy() - uniform).max() < 1e-6
    assert abs(normals.mean()) < 0.2
    assert 0.85 < normals.std() < 1.15


@triton.jit
def shapes(x, swapped, turned, running, ordered, flipped, N: tl.constexpr):
    n = tl.arange(0, N)
    values = tl.load(x + n)
    left, right = tl.split(values.reshape(N // 2, 2))
    tl.store(swapped + n, tl.join(right, left).reshape(N))
    tl.store(turned + n, tl.trans(values.reshape(16, N // 16)).reshape(N))
    tl.store(running + n, tl.cumsum(values, 0))
    tl.store(ordered + n, tl.sort(values))
    tl.store(flipped + n, tl.flip(values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_layouts_scan_and_sort(on_gpu, dtype):
    x = torch.randint(-50, 50, (512,)).to(dtype)
    outs = [empty(512, dtype=dtype) for _ in range(5)]
    shapes[(1,)](x, *outs, 512)
    assert torch.equal(outs[0], x.reshape(-1, 2).flip(1).reshape(-1))
    assert torch.equal(outs[1], x.reshape(16, 32).T.reshape(-1))
    assert torch.equal(outs[2].double(), x.double().cumsum(0))
    assert torch.equal(outs[3], x.sort().values)
    assert torch.equal(outs[4], x.flip(0))


@triton.jit
def linear(a0, b0, a1, b1):
    return a0 * a1, b0 * a1 + b1


@triton.jit
def recurrence(a, b, out, M: tl.constexpr, N: tl.constexpr):
    m, n = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    pair = tl.associative_scan((tl.load(a + m * N + n), tl.load(b + m * N + n)), 1, linear)
    tl.store(out + m * N + n, pair[1])


def test_associative_scan(on_gpu):
    a, b, out = torch.rand(8, 64), torch.randn(8, 64), empty(8, 64)
    recurrence[(1,)](a, b, out, 8, 64)
    state, want = torch.zeros(8), []
    for t in range(64):
        state = a[:, t] * state + b[:, t]
        want.append(state)
    torch.testing.assert_close(out, torch.stack(want, 1))


@triton.jit
def counting(x, counts, changed, locks, N: tl.constexpr, BINS: tl.constexpr):
    n = tl.program_id(0) * N + tl.arange(0, N)
    values = tl.load(x + n)
    tl.atomic_add(counts + tl.arange(0, BINS), tl.histogram(values, BINS))
    tl.atomic_max(changed + 0, tl.max(values))
    tl.atomic_min(changed + 1, tl.min(values))
    tl.atomic_or(changed + 2, tl.reduce_or(values, 0))
    tl.atomic_xor(changed + 3, tl.xor_sum(values))
    before = tl.atomic_cas(locks + n, values, values + 1000)
    tl.store(x + n, before + tl.atomic_xchg(locks + n, 1))


def test_histogram_and_integer_atomics(on_gpu):
    x = torch.randint(0, 16, (256,), dtype=torch.int32)
    values, counts, locks = x.clone(), torch.zeros(16, dtype=torch.int32), torch.full((256,), 3, dtype=torch.int32)
    changed = torch.tensor([-1, 100, 0, 0], dtype=torch.int32)
    counting[(2,)](x, counts, changed, locks, 128, 16)
    assert torch.equal(counts.long(), torch.bincount(values, minlength=16))
    xor = np.bitwise_xor.reduce(values.numpy())
    assert changed.tolist() == [values.max(), values.min(), np.bitwise_or.reduce(values.numpy()), xor]
    assert torch.equal(x, 3 + torch.where(values == 3, 1003, 3))
    assert bool((locks == 1).all())


@triton.jit
def functions(x, out, N: tl.constexpr):
    n = tl.arange(0, N)
    v = tl.load(x + n)
    r = [tl.exp(v), tl.log(v), tl.sqrt(v), tl.sqrt_rn(v), tl.sin(v), tl.cos(v), tl.rsqrt(v), tl.erf(v), tl.sigmoid(v)]
    r += [tl.div_rn(v, v + 1), v / (v + 2), tl.floor(v), tl.ceil(v), tl.clamp(v, 0.5, 1.5), tl.fma(v, v, v)]
    for i in tl.static_range(15):
        tl.store(out + i * N + n, r[i])


def test_functions(on_gpu):
    x, out = torch.rand(256) * 4 + 0.01, empty(15, 256)
    functions[(1,)](x, out, 256)
    v = x.double()
    want = [v.exp(), v.log(), v.sqrt(), v.sqrt(), v.sin(), v.cos(), v.rsqrt(), v.erf(), v.sigmoid(), v / (v + 1)]
    want += [v / (v + 2), v.floor(), v.ceil(), v.clamp(0.5, 1.5), v * v + v]
    torch.testing.assert_close(out.double(), torch.stack(want), rtol=1e-5, atol=1e-6)


def without_barrier(number):
    """A transform that takes the barrier of this number out."""

    def transform(text):
        barriers = itertools.count()
        return re.sub(r"bar\.sync[^;]*;", lambda match: "" if next(barriers) == number else match[0], text)

    return transform


def test_a_missing_barrier_is_found(arch):
    x, outs = torch.randn(512), [empty(512) for _ in range(5)]
    with emulator.active(arch):
        compiled = shapes[(1,)](x, *outs, 512)
    barriers = emulator.ptx_of(compiled).count("bar.sync")
    assert barriers > 10
    for number in range(barriers):
        with emulator.active(arch, transform=without_barrier(number)), pytest.raises(emulator.DataRace):
            shapes[(1,)](x, *outs, 512)


configurations = [triton.Config({"N": n}) for n in (64, 128)]


@triton.autotune(configs=configurations, key=["size"])
@triton.jit
def doubled(x, out, size, N: tl.constexpr):
    n = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(out + n, 2 * tl.load(x + n, mask=n < size), mask=n < size)


def test_autotuner(arch):
    x, out = torch.randn(300), empty(300)
    with emulator.active(arch):
        doubled[lambda meta: (triton.cdiv(300, meta["N"]),)](x, out, 300)
    assert torch.equal(out, 2 * x)
