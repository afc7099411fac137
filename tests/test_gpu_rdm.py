"""The Triton kernels of the dissimilarity matrices, compiled for NVIDIA GPUs and executed on CPU tensors.

As tests/test_gpu_gaussian_readout.py does it: while a test is ``on_gpu`` the launchers hold the CPU key of the
dispatcher, and the tests of the op are run as they are, few of them, as every compiled form costs a second or two.
Products of 16-bit planes run on sm_80 alone: what they become on later GPUs the emulator refuses.
"""

import math

import ptx_emulator as emulator
import pytest
import rdm_checks as checks
import rdm_data as data
import tie_checks
import torch
from assertions import assert_as_accurate, largest, rms

from v1fast import contracts, functional
from v1fast.reference import rdm as reference

pytest.importorskip("triton")

import triton
import triton.language as tl
from emulated import assert_launches, assert_no_host_reads, gpu
from v1fast.kernels import _launch, rdm_backward, rdm_rows
from v1fast.kernels import rdm as forward
from v1fast.kernels._specialisations import rdm_specialisations

from v1fast import kernels

f64, f32, bf16 = torch.float64, torch.float32, torch.bfloat16

BOTH = [True, True]  # gradients are wanted

pytestmark = pytest.mark.filterwarnings("ignore:.*Overriding a previously registered kernel")


@pytest.fixture
def on_gpu():
    with gpu(80):
        yield


def call(x, y=None, method="correlation", condensed=False, accuracy="float32", arch=80, **how):
    """The op's launcher on the emulated GPU."""
    with emulator.active(arch, **how):
        return kernels.CUDA["rdm"](x, y, method, condensed, accuracy)


# Tiles -----------------------------------------------------------------------------------------------------------


@triton.jit
def places_kernel(tiles, rows, columns, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = forward.triangle(tl.load(tiles + at, mask=at < count, other=0))
    tl.store(rows + at, row, mask=at < count)
    tl.store(columns + at, column, mask=at < count)


def test_place_of_a_tile_is_exact_below_2_to_the_31():
    """The first ones, and those around the end of a column, where a rounded root would be wrong."""
    ends = [c * (c + 1) // 2 for c in [*range(1, 65535, 97), *range(65400, 65536)]]
    tiles = sorted({*range(300), 2**31 - 1, *(t + d for t in ends for d in (-1, 0, 1))})
    columns = [(math.isqrt(8 * t + 1) - 1) // 2 for t in tiles]
    rows = [t - c * (c + 1) // 2 for t, c in zip(tiles, columns, strict=True)]
    got = torch.empty(2, len(tiles), dtype=torch.int32)
    with emulator.active(80):
        places_kernel[(triton.cdiv(len(tiles), 256),)](torch.tensor(tiles, dtype=torch.int32), *got, len(tiles), 256)
    assert got.tolist() == [rows, columns]


def test_columns_are_shared_until_there_are_programs_enough():
    assert forward.split_columns(6, 738, 8) == (19, 40)  # 360 x 23589: six tiles of 128 rows
    assert forward.split_columns(forward.PROGRAMS, 738, 8) == (1, 744)
    for tiles, blocks in ((1, 1), (1, 8), (1, 9), (1, 5000), (3, 1000), (65, 47), (131, 47), (500, 47)):
        splits, per_split = forward.split_columns(tiles, blocks, 8)
        assert per_split % 8 == 0
        assert (splits - 1) * per_split < blocks <= splits * per_split
        assert splits == 1 or tiles * splits <= forward.PROGRAMS
        assert splits <= forward.MOST_SPLITS


# Results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "dtype", "shape"),
    [
        ("correlation", f32, (70, 300)), ("cosine", f32, (5, 3)), ("euclidean", f32, (70, 300)),
        ("euclidean", f64, (66, 50)),
    ],
    ids=str,
)  # fmt: skip
def test_matches_float64(on_gpu, method, dtype, shape):
    with assert_launches():
        checks.check_matches_float64(method, dtype, shape)


@pytest.mark.parametrize(
    ("method", "dtype", "accuracy"),
    [
        ("correlation", f32, "bfloat16"), ("euclidean", f32, "float32"), ("correlation", f32, "high"),
    ],
    ids=str,
)  # fmt: skip
def test_matches_reference(on_gpu, method, dtype, accuracy):
    """With pairs of rows and between two sets of rows too; members of a batch differ."""
    with assert_launches():
        checks.check_matches_reference((17, 113), method, dtype, accuracy)


@pytest.mark.parametrize("name", data.HARD)
def test_errs_no_more_than_corrcoef(on_gpu, name):
    with assert_launches():
        checks.assert_errs_no_more_than_corrcoef(name, data.make(name, 30, 4000), 1.1)


@pytest.mark.parametrize("name", ["sparse, heavy-tailed", "offset 1e4", "near-identical, 1e-10", "outlier channel"])
def test_high_accuracy(on_gpu, name):
    with assert_launches():
        absolute, relative = checks.high_errors(data.make(name, 20, 2000))
        assert largest(absolute) <= 1e-7
        assert largest(relative) <= 1e-5


def test_high_accuracy_takes_differences_where_float64_cancels(on_gpu):
    with assert_launches():
        x = checks.as_good_as_equal(11, 4000)
        _, relative = checks.high_errors(x)
        assert largest(relative) <= 1e-6
        square = functional.rdm(x, accuracy="high")
        assert functional.rdm(x, accuracy="high", condensed=True).equal(checks.condense(square))
        cross = functional.cross_rdm(x, x[:5], accuracy="high")
        torch.testing.assert_close(cross, square[:, :5], rtol=1e-6, atol=0)


def test_bfloat16_accuracy(on_gpu):
    with assert_launches():
        x = data.make("gaussian", 30, 4000)
        error = functional.rdm(x, accuracy="bfloat16").double() - data.exact(x).fill_diagonal_(0)
        assert 1e-5 < largest(error) <= 1e-3


@pytest.mark.parametrize(
    ("method", "condensed"),
    [
        ("correlation", False),
        ("euclidean", True),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in (("correlation", True), ("euclidean", False))),
    ],
)
def test_large_tiles_give_the_same(monkeypatch, method, condensed):
    """The tiles of sm_90 and sm_100, executed on sm_80."""
    x = torch.randn(1, 200, 300) + 1
    want = call(x, None, method, condensed)
    monkeypatch.setattr(forward, "has_warpgroups", lambda: True)
    assert forward.tile_shape(200, torch.float16, True).side == 128
    got = call(x, None, method, condensed)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=5e-7)
    assert condensed or got.equal(got.mT)


@pytest.mark.parametrize(("dtype", "tolerance"), [(f32, 3e-7), (f64, 1e-14)], ids=str)
def test_shared_columns_give_the_same(monkeypatch, dtype, tolerance):
    """With the last program short of columns, in every form."""
    x = torch.randn(2, 20, 1100, dtype=dtype)
    found = {}
    for programs in (1, forward.PROGRAMS):
        monkeypatch.setattr(forward, "PROGRAMS", programs)
        before = emulator.launches()
        square, condensed = call(x), call(x, condensed=True)
        with emulator.active(80):
            cross = kernels.CUDA["cross_rdm"](x, x[:, :9], "correlation", "float32")
        found[programs] = square, condensed, cross, emulator.launches() - before
        assert square.equal(square.mT)
        assert condensed.equal(checks.condense(square))
    (*alone, few), (*shared, many) = found.values()
    assert many == few + 3
    torch.testing.assert_close(shared, alone, rtol=0, atol=tolerance)


def test_one_long_chain_of_additions_would_lose_more(monkeypatch):
    """The tensor cores sum a few hundred columns by themselves."""
    x = data.make("near-identical, 1e-6", 12, 4096)
    monkeypatch.setattr(forward, "PROGRAMS", 1)  # a program's own sums alone
    errors = []
    for promoted in (forward.PROMOTED, 4096):
        monkeypatch.setattr(forward, "PROMOTED", promoted)
        errors.append(rms(checks.off_diagonal(call(x[None])[0]).double() - checks.off_diagonal(data.exact(x))))
    assert errors[0] < errors[1] / 3


# What holds exactly ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "accuracy"),
    [("correlation", "float32"), ("cosine", "bfloat16"), ("correlation", "high"), ("euclidean", "float32")],
)
def test_symmetric_zero_on_the_diagonal_and_in_range(on_gpu, method, accuracy):
    with assert_launches():
        checks.check_symmetric_zero_on_the_diagonal_and_in_range(method, accuracy, (72, 90))


@pytest.mark.parametrize(
    ("value", "accuracy", "dtype"), [(0.1, "float32", f32), (-3.3e7, "high", f32), (1e-30, "float32", f64)], ids=str
)
def test_a_constant_row_is_nan_in_its_row_and_column_alone(on_gpu, value, accuracy, dtype):
    with assert_launches():
        checks.check_a_constant_row_is_nan_in_its_row_and_column_alone(value, accuracy, dtype)


@pytest.mark.parametrize(("method", "bad"), [("correlation", math.inf), ("cosine", math.nan), ("euclidean", -math.inf)])
@pytest.mark.parametrize("column", [0, -1])
def test_a_value_that_is_not_finite_spoils_its_own_row_alone(on_gpu, method, bad, column):
    with assert_launches():
        checks.check_a_value_that_is_not_finite_spoils_its_own_row_alone(method, bad, column)


def test_distances_of_all_scales():
    """Rows of very different size, squares beyond float32, and a row of x, or y, that spoils a pair."""
    x, y = torch.randn(2, 1, 9, 40, dtype=f64)
    sizes = 10.0 ** torch.arange(-24, 12, 4, dtype=f64)[:, None]
    for rows in (x * sizes, x * 1e-18, x * 1e18, x * 1e150):
        dtype = f64 if rows.abs().max() > 1e30 else f32
        rows = rows.to(dtype)
        want = data.exact(rows[0], "euclidean").to(dtype)
        got = call(rows, method="euclidean")[0]
        torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-7 * want.max().item())
    x[0, 2, 3], y[0, 5, 0] = math.nan, math.inf
    got = call(x, y, "euclidean")[0]
    spoilt = torch.zeros(9, 9, dtype=torch.bool)
    spoilt[[2, 5]] = True
    assert got.isnan().equal(spoilt | spoilt.T)
    assert got.diagonal()[[0, 1, 3]].eq(0).all()


@pytest.mark.parametrize(
    ("method", "dtype", "name", "change"),
    [
        ("correlation", f32, "ratings", "as they are"), ("correlation", f64, "one-hot", "thirds"),
        ("correlation", f32, "sparse and wide", "as they are"), ("cosine", f32, "ratings", "tenths, shifted"),
        ("cosine", f64, "counts", "shifted"), ("euclidean", f32, "ratings", "tenths"),
        ("euclidean", f32, "one-hot", "as they are"), ("euclidean", f64, "binary", "negative"),
    ],
    ids=str,
)  # fmt: skip
def test_equal_dissimilarities_come_out_equal(on_gpu, method, dtype, name, change):
    with assert_launches():
        tie_checks.check_ties(name, change, dtype, method)


def test_ties_of_a_batch_and_of_a_noise(on_gpu):
    with assert_launches():
        tie_checks.check_mahalanobis_of_a_diagonal_noise(f32, "ratings", "as they are")
        tie_checks.check_crossnobis_of_ratings(f64, 3)
        x = torch.stack([torch.randn(12, 40), tie_checks.one_hot(12, 4).repeat(1, 10).float()])
        got = functional.rdm(x, accuracy="high")
        assert len(got[1].unique()) == 2
        torch.testing.assert_close(got[0], functional.rdm(x[0], accuracy="high"), rtol=0, atol=0)


REUSED = [
    checks.check_cosine_of_a_zero_row_is_nan_and_of_a_constant_row_is_not,
    checks.check_a_power_of_two_changes_no_bit,
    checks.check_float64_at_the_ends_of_its_range,
    checks.check_no_rows_and_one_row,
    checks.check_crossnobis_takes_each_difference_from_other_folds,
    checks.check_poisson_is_the_symmetrised_divergence,
]


@pytest.mark.parametrize("test", REUSED, ids=lambda test: test.__name__.removeprefix("check_"))
def test_as_the_op(on_gpu, test):
    with assert_launches():
        test(True) if "crossnobis" in test.__name__ else test()


def test_the_order_of_blocks_does_not_matter():
    x, grad = torch.randn(1, 70, 300), torch.randn(1, 70, 70)  # two tiles of rows, and shared columns
    found = []
    for order in ("forward", "reverse", 7):
        with emulator.active(80, order=order):
            gradient, _ = kernels.CUDA["rdm_backward"](grad, grad, x, None, "correlation", False, "float32", BOTH)
        found.append((call(x, order=order), call(x, method="euclidean", order=order), gradient))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


# Memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [f32, bf16], ids=str)
def test_layouts_and_storage_at_any_address(dtype):
    """The order of a row's float64 sums depends on its layout: to rounding, not to the bit."""
    x = torch.randn(20, 300).to(dtype)
    want = call(x[None])
    for name, view in checks.layouts(x):
        torch.testing.assert_close(call(view[None]), want, rtol=0, atol=2e-7, msg=name)
    storage = torch.empty(x.numel() + 1, dtype=dtype)
    torch.testing.assert_close(call(storage[1:].view(1, 20, 300).copy_(x)), want, rtol=0, atol=2e-7)
    assert call(x[:1].expand(5, -1)[None]).max() <= 1e-12


@pytest.mark.parametrize("condensed", [False, True])
def test_writes_its_own_part_of_memory_alone(condensed):
    """At any address, and nothing beside it."""
    x = torch.randn(2, 70, 40)
    want = call(x, condensed=condensed)
    storage = torch.full((want.numel() + 200,), 7.0)
    out = storage[101 : 101 + want.numel()].view(want.shape)
    with emulator.active(80):
        kernels.CUDA["rdm_out"](x, None, "correlation", condensed, "float32", out)
    assert out.equal(want)
    assert storage[:101].eq(7).all()
    assert storage[101 + want.numel() :].eq(7).all()


def test_reads_nothing_on_the_host(on_gpu):
    x = torch.randn(2, 9, 20)
    with assert_no_host_reads():
        for method in reference.METHODS:
            for y in {None, x if method == "euclidean" else None}:
                out = kernels.CUDA["rdm"](x, y, method, False, "float32")
                kernels.CUDA["rdm_backward"](out, out, x, y, method, False, "float32", BOTH)


def forms():
    """How many forms of the kernels have been compiled in this process for sm_80."""
    modules = (forward, rdm_backward, rdm_rows)
    found = [v for m in modules for k, v in vars(m).items() if k.endswith("_kernel")]
    return sum(len(kernel.device_caches[80][0]) for kernel in found)


def test_sizes_need_no_forms_of_their_own():
    def run(batch, rows, columns):
        x = torch.randn(batch, rows, columns)
        out = call(x)
        with emulator.active(80):
            kernels.CUDA["cross_rdm"](x, x[:, : rows // 2 + 1], "correlation", "float32")
            kernels.CUDA["rdm_backward"](out, out, x, None, "correlation", False, "float32", BOTH)

    run(1, 3, 5)
    run(1, 3, 600)  # with shared columns
    before = forms()
    for sizes in ((2, 64, 256), (1, 1, 1), (3, 17, 16), (16, 2, 2), (1, 33, 777)):
        run(*sizes)
    assert forms() == before


# Derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", checks.METHODS)
def test_gradient_errs_no_more_than_torch(on_gpu, method):
    with assert_launches():
        checks.check_gradient_errs_no_more_than_torch(method, 100.0)


@pytest.mark.parametrize(
    ("method", "dtype", "paired", "condensed"),
    [
        ("correlation", f32, False, True), ("correlation", f64, False, False), ("euclidean", f32, False, False),
        ("euclidean", f32, True, False), ("euclidean", f64, True, True),
    ],
    ids=str,
)  # fmt: skip
def test_gradients_match_reference(method, dtype, paired, condensed):
    """With rows that are not valid; the reference in float64 is exact."""
    x, y = torch.randn(2, 2, 70, 90, dtype=dtype) + 0.5
    x[0, 3, 1], y[1, 66, 0] = math.nan, math.inf
    grad = torch.randn(2, *contracts.rdm.output_shape(2, 70, condensed)[1:], dtype=dtype)
    matrix = reference.rdm(x.double(), y.double() if paired else None, method, condensed, "float32").to(dtype)
    operands = (grad, matrix, x, y if paired else None)
    options = (method, condensed, "float32", BOTH)
    with emulator.active(80):
        got = kernels.CUDA["rdm_backward"](*operands, *options)
    exact = reference.rdm_backward(*(t if t is None else t.double() for t in operands), *options)
    own = reference.rdm_backward(*operands, *options)
    for name, *found in zip("xy", got, own, exact, strict=True):
        if dtype == f32:
            assert_as_accurate(*found, name)
        else:
            torch.testing.assert_close(found[0], found[2], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("method", "dtype"), [("cosine", f32), ("euclidean", f32), ("correlation", f64)], ids=str)
def test_gradients_of_cross_rdm_match_reference(method, dtype):
    x, y = torch.randn(2, 70, 90, dtype=dtype), torch.randn(2, 20, 90, dtype=dtype)
    x[0, 3, 1], y[1, 6, 0] = math.nan, math.inf
    grad = torch.randn(2, 70, 20, dtype=dtype)
    matrix = reference.cross_rdm(x.double(), y.double(), method, "float32")
    with emulator.active(80):
        got = kernels.CUDA["cross_rdm_backward"](grad, matrix.to(dtype), x, y, method, "float32", BOTH)
    exact = reference.cross_rdm_backward(grad.double(), matrix, x.double(), y.double(), method, "float32", BOTH)
    own = reference.cross_rdm_backward(grad, matrix.to(dtype), x, y, method, "float32", BOTH)
    for name, *found in zip("xy", got, own, exact, strict=True):
        if dtype == f32:
            assert_as_accurate(*found, name)
        else:
            torch.testing.assert_close(found[0], found[2], rtol=1e-12, atol=1e-13)


def test_gradients_of_half_rows_and_of_a_sum():
    """The gradient of a sum is one value, expanded over the matrix: it is read through its strides."""
    x = torch.randn(1, 20, 50).to(bf16)
    grad = torch.tensor(0.5).expand(1, 20, 20)
    given = (grad, reference.rdm(x, None, "correlation", False, "float32"), x, None, "correlation", False, "float32")
    with emulator.active(80):
        got, _ = kernels.CUDA["rdm_backward"](*given, BOTH)
    want, _ = reference.rdm_backward(*given, BOTH)
    torch.testing.assert_close(got, want)


def test_an_invalid_row_gets_no_gradient_and_gives_none(on_gpu):
    with assert_launches():
        checks.check_an_invalid_row_gets_no_gradient_and_gives_none("correlation")


# Through the dispatcher ------------------------------------------------------------------------------------------


def test_opcheck(on_gpu):
    with assert_launches():
        checks.check_opcheck(False)


def test_compiles_fullgraph(on_gpu):
    with assert_launches():
        checks.check_compiles_fullgraph("correlation", False)


def test_writing_into_memory_that_is_there(on_gpu):
    with assert_launches():
        checks.check_writing_into_memory_that_is_there("euclidean", True)


@pytest.mark.parametrize("arch", [pytest.param(90, marks=pytest.mark.slow), 100])
def test_float64_on_later_gpus(arch):
    x = torch.randn(1, 70, 90, dtype=f64)
    got, want = call(x, arch=arch), reference.rdm(x, None, "correlation", False, "float32")
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-14)


def test_later_tensor_cores_are_refused():
    """What the emulator cannot show; tests/test_cuda.py does, on such a GPU."""
    with pytest.raises(emulator.UnsupportedPtx, match="wgmma"):
        call(torch.randn(1, 70, 90), arch=90)


def test_shipped_forms_are_few_and_complete():
    shipped = rdm_specialisations(False)
    assert len({form.name for form in shipped}) == len(shipped) <= 36
    for form in shipped:
        assert list(form.signature) == form.kernel.arg_names, form.name
    kinds = {form.kernel for form in shipped}
    for module in (forward, rdm_backward, rdm_rows):
        assert {v for k, v in vars(module).items() if k.endswith("_kernel")} <= kinds
    assert [form.name for form in rdm_specialisations(True)] == [form.name for form in shipped]
    assert _launch.OPTIONS["enable_fp_fusion"] is False
