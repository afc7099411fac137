"""The ops on a real GPU: ``make test-gpu``. Without one, nothing here runs."""

import contextlib

import cases
import every_point_op
import gaussian_checks as checks
import point_ops
import pooled_checks
import pytest
import rdm_checks
import rdm_data
import torch
from assertions import largest
from op_checks import cast, label, run
from torch.utils._python_dispatch import TorchDispatchMode

from v1fast import _eager as eager
from v1fast import functional, ops
from v1fast.ops import _gpu_check
from v1fast.readouts import FullGaussian2d
from v1fast.reference import rdm as reference

_launch = pytest.importorskip("v1fast.kernels._launch")

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.skipif(not ops.loaded["triton"].startswith("loaded"), reason="the Triton kernels are not loaded"),
]
f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def on_cuda():
    """On the device, and by the kernels: where one does not compile, the reference would be held against itself."""
    with torch.device("cuda"):
        yield
    assert not _gpu_check.failures


class _OnCuda(TorchDispatchMode):
    """Records v1fast's ops that were called with CUDA tensors alone."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "v1fast" and all(a.is_cuda for a in args if isinstance(a, torch.Tensor)):
            self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def assert_on_cuda(*ops):
    """These ops run in the block, on CUDA tensors."""
    with _OnCuda() as seen:
        yield
    assert {f"v1fast::{op}" for op in ops} <= seen.names


def test_every_op_with_a_launcher_has_it_on_cuda():
    """Else the reference would run, and be held against itself."""
    from v1fast.kernels import CUDA

    for op in CUDA:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"v1fast::{op}", "CUDA"), op


@pytest.fixture(params=["gather", "scatter"])
def way(request):
    """How the gradient of the features is made; see v1fast.kernels._features."""
    torch.use_deterministic_algorithms(request.param == "gather", warn_only=True)
    return request.param


@pytest.mark.parametrize(("case", "dtypes"), checks.TABLE, ids=label)
def test_matches_eager(case, dtypes, way):
    checks.assert_matches_eager(case, *cases.make(case, *dtypes))


POINT_OPS = pytest.mark.parametrize(
    "op",
    [every_point_op.OneLevel(), every_point_op.TwoLevels(), every_point_op.PointGather()],
    ids=["one level", "two levels", "gather"],
)


@POINT_OPS
@pytest.mark.parametrize(("case", "dtypes"), point_ops.TABLE, ids=label)
def test_given_points_match_eager(op, case, dtypes, way):
    op.assert_matches_eager(case, *dtypes)


@pytest.mark.parametrize(("case", "pooling"), pooled_checks.POOLED)
@pytest.mark.parametrize("dtypes", [(f32, f32, f32), (bf16, bf16, f32), (bf16, f32, f32), (f16, f16, f32)], ids=label)
def test_pyramids_match_eager(case, pooling, dtypes, way):
    pooled_checks.assert_matches_eager(case, pooling, *dtypes)


@POINT_OPS
@pytest.mark.parametrize("layout", range(6))
def test_layouts_of_features(op, layout):
    name = "pooled_readout" if "weight" in op.names else "point_gather"
    with assert_on_cuda(name, f"{name}_backward"):
        op.test_layouts_of_features(layout, (f32, f32, f32))


def test_normals_have_the_bits_of_the_cpu():
    for seed in (0, -1, 2**63 - 12345):
        got = functional.philox_normal(torch.tensor([seed]), 6, 1000, image_offset=3)
        want = functional.philox_normal(torch.tensor([seed], device="cpu"), 6, 1000, image_offset=3)
        if ops.loaded["native"] == "loaded":
            assert got.cpu().equal(want)
        else:  # the reference is exact to rounding
            torch.testing.assert_close(got.cpu(), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", ["sensorium", "lurz"])
def test_population_sizes(shape, way):
    """As large as in use: many blocks of neurons, several programs for each."""
    sizes = {"sensorium": (16, 64, 28, 56, 7776), "lurz": (16, 64, 22, 50, 5335)}[shape]
    case = cases.Case(shape, **dict(zip("BCHWN", sizes, strict=True)), shift=False)
    operands, options = cases.draw(case)
    operands = cast(operands, f32)
    grad = torch.randn(case.B, case.N)
    got, gradients = run(functional.gaussian_readout, operands, options, grad)
    exact, wanted = checks.eager_run(case, operands, options, torch.float64, grad)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-4)
    # the gradient of a position jumps at the border of a pixel, where two right results may differ
    for name in ("features", "weight", "bias"):
        torch.testing.assert_close(gradients[name].double(), wanted[name], rtol=1e-4, atol=1e-3, msg=name)


@pytest.mark.parametrize("shape", ["mouse", "macaque"])
def test_population_sizes_of_the_pooled_readout(shape, way):
    sizes, kernel = {"mouse": ((16, 64, 28, 56, 7776), 2), "macaque": ((16, 32, 70, 70, 458), 3)}[shape]
    case = cases.Case(shape, **dict(zip("BCHWN", sizes, strict=True)), shift=False)
    operands, options = cases.draw_points(case)
    operands["weight"] = torch.randn(case.N, 3 * case.C) / (3 * case.C) ** 0.5
    operands, options = cast(operands, f32), options | {"pool_kernel": kernel, "pool_steps": 2}
    grad = torch.randn(case.B, case.N)
    got, gradients = run(functional.pooled_readout, operands, options, grad)
    exact, wanted = run(eager.pooled_readout, cast(operands, torch.float64), options, grad.double())
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-4)
    for name in ("features", "weight", "bias"):  # as above
        torch.testing.assert_close(gradients[name].double(), wanted[name], rtol=1e-4, atol=1e-3, msg=name)


STABLE = {
    "gaussian": lambda dtype: (functional.gaussian_readout, *cases.make(LARGE, dtype, dtype, f32)),
    "one level": lambda dtype: (
        every_point_op.OneLevel().op,
        *every_point_op.OneLevel().make(LARGE, dtype, dtype, f32),
    ),
    "two levels": lambda dtype: (
        every_point_op.TwoLevels().op,
        *every_point_op.TwoLevels().make(LARGE, dtype, dtype, f32),
    ),
    "gather": lambda dtype: (
        every_point_op.PointGather().op,
        *every_point_op.PointGather().make(LARGE, dtype, dtype, f32),
    ),
}
LARGE = cases.Case("stable", B=8, C=64, H=20, W=30, N=3000)


@pytest.mark.parametrize("dtype", [f32, bf16], ids=str)
@pytest.mark.parametrize("op", STABLE)
def test_gradients_are_bitwise_stable(op, dtype, way):
    """All of them if that of the features is gathered, else the others."""
    function, operands, options = STABLE[op](dtype)
    grad = torch.randn(function(**operands, **options).shape)
    want = run(function, operands, options, grad)
    for _ in range(5):
        got = run(function, operands, options, grad)
        if way == "scatter":
            got[1]["features"] = want[1]["features"]
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_a_cuda_graph_draws_anew_in_each_replay():
    """No host reads and no allocation from values: a captured step replays, with fresh noise."""
    torch.use_deterministic_algorithms(False)
    layer = FullGaussian2d((20, 6, 9), 50, bias=True, mean_activity=torch.zeros(50)).cuda()
    x = torch.randn(4, 20, 6, 9)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            layer(x).sum().backward()
    torch.cuda.current_stream().wait_stream(stream)
    layer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(x)
        out.sum().backward()
    graph.replay()
    one = out.clone()
    graph.replay()
    assert one.isfinite().all()
    assert not one.equal(out)


@pytest.mark.parametrize("dynamic", [False, True])
def test_pooled_readout_compiles_with_inductor(dynamic):
    gradients = pooled_checks.assert_compiles_fullgraph(dynamic, "inductor")
    assert all(gradient.is_cuda for gradient in gradients)


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_with_inductor(dynamic):
    assert all(gradient.is_cuda for gradient in checks.assert_compiles_with_inductor(dynamic))


@pytest.mark.parametrize("case", [cases.PLAIN, cases.Case("explicit noise", noise="tensor", share_noise=True)], ids=str)
@pytest.mark.parametrize("dtypes", [(f32, f32, f32), (bf16, f32, f32)], ids=label)
def test_opcheck(case, dtypes):
    checks.check_opcheck(case, dtypes)


@POINT_OPS
@pytest.mark.parametrize("dtypes", [(f32, f32, f32), (bf16, f32, f32)], ids=label)
def test_opcheck_of_given_points(op, dtypes):
    op.test_opcheck(dtypes) if "weight" in op.names else op.test_opcheck(cases.PLAIN, dtypes)


def test_autocast_casts_nothing():
    checks.check_autocast_casts_nothing()
    rdm_checks.check_autocast_casts_nothing()


@POINT_OPS
def test_autocast_casts_no_given_points(op):
    op.test_autocast_casts_nothing()


# Streams and devices ---------------------------------------------------------------------------------------------


def every_call(device="cuda", scale=1.0):
    """Name -> a call of each op that computes output and gradients, and the tensor that it reads."""
    calls = {}
    operands, options = cases.make(cases.Case("streams", B=5, C=64, H=9, W=11, N=300), f32, f32, f32)
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    for name, operation in (("gaussian", functional.gaussian_readout), ("pooled", _pooled), ("gather", _gathered)):
        given = {k: v.detach().to(device) for k, v in operands.items()}
        given = given if name == "gaussian" else {k: v for k, v in given.items() if k != "sigma"}
        calls[name] = given["features"], _with_gradients(operation, given, options if name == "gaussian" else {})
    x = torch.randn(300, 500).to(device)
    for name in ("correlation", "euclidean"):
        calls[name] = x, _with_gradients(functional.rdm, {"responses": x}, {"method": name})
    calls["cross"] = x, _with_gradients(lambda responses: functional.cross_rdm(responses, x[:7]), {"responses": x}, {})
    return calls


def _pooled(features, mu, weight, bias, shift):
    return functional.pooled_readout(features, mu, weight.repeat(1, 2), bias, shift, pool_kernel=2, pool_steps=1)


def _gathered(features, mu, weight, bias, shift):
    return torch.ops.v1fast.point_gather(features, mu, shift, True)


def _with_gradients(operation, given, options):
    def call():
        leaves = {k: v.detach().requires_grad_() for k, v in given.items()}
        out = operation(**leaves, **options)
        gradients = torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out), allow_unused=True)
        return [out.detach(), *(g for g in gradients if g is not None)]

    return call


@pytest.mark.parametrize("name", ["gaussian", "pooled", "gather", "correlation", "euclidean", "cross"])
def test_runs_on_the_current_stream(name):
    """On a side stream the operand arrives late: a kernel on any other stream would read what was there before."""
    read, call = every_call()[name]
    late, want = read.clone(), call()
    read.zero_()
    call()  # with another operand, nothing is compiled later
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        read.copy_(late)
        got = call()
    stream.synchronize()
    torch.testing.assert_close(got, want, rtol=0, atol=0)


two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")


@two_devices
@pytest.mark.parametrize("name", ["gaussian", "pooled", "gather", "correlation", "euclidean", "cross"])
def test_runs_on_the_device_of_its_operands(name):
    """While another is the current one."""
    torch.manual_seed(0)
    _, on_first = every_call("cuda:0")[name]
    torch.manual_seed(0)
    _, on_second = every_call("cuda:1")[name]
    want, got = on_first(), on_second()
    assert all(t.device.index == 1 for t in got)
    torch.testing.assert_close([t.to("cuda:0") for t in got], want, rtol=0, atol=0)


@two_devices
def test_operands_of_two_devices_are_refused():
    features = torch.randn(2, 4, 5, 6)
    mu, weight = torch.zeros(3, 2), torch.ones(3, 4)
    with pytest.raises((RuntimeError, ValueError)):
        functional.gaussian_readout(features, mu.to("cuda:1"), None, weight)


def test_operands_of_the_cpu_are_refused():
    features = torch.randn(2, 4, 5, 6)
    mu, weight = torch.zeros(3, 2), torch.ones(3, 4)
    with pytest.raises((RuntimeError, ValueError)):
        functional.gaussian_readout(features, mu.cpu(), None, weight)


# More than 2^31 elements -----------------------------------------------------------------------------------------


def needs(gib):
    """Skip the test where the device has not so much free memory."""
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gib:
        pytest.skip(f"needs {gib} GiB of free memory")


def test_a_map_of_more_than_2_to_the_31_elements(way):
    """The last image, and its gradient, lie beyond."""
    needs(30)
    features = torch.zeros(17, 1024, 360, 360, dtype=bf16).to(memory_format=torch.channels_last)
    assert features[:-1].numel() < 2**31 < features.numel()
    features[-1].normal_()
    mu, weight = 1.8 * torch.rand(50, 2) - 0.9, torch.randn(50, 1024)
    last = features[-1:].float()
    grad = torch.randn(17, 50)

    def call(features, grad):
        leaf = features.detach().requires_grad_()
        out = functional.gaussian_readout(leaf, mu, None, weight)
        return out.detach(), torch.autograd.grad(out, leaf, grad.to(out.dtype))[0]

    got, gradient = call(features, grad)
    want, wanted = call(last, grad[-1:])
    torch.testing.assert_close(got[-1:].float(), want, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(gradient[-1:].float(), wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("rows", "columns", "condensed"), [(47_000, 64, False), (66_000, 64, True), (2_100, 1_100_000, False)], ids=str
)
def test_dissimilarities_beyond_2_to_the_31_elements(rows, columns, condensed):
    """A matrix, a condensed one, and responses. The last rows lie beyond."""
    needs(30)
    count = rows * (rows - 1) // 2 if condensed else rows**2
    assert max(count, rows * columns) > 2**31
    x = torch.randn(rows, columns)
    matrix = functional.rdm(x, condensed=condensed)
    last = torch.arange(rows - 40, rows)
    small = functional.rdm(x[last])
    if condensed:
        i, j = torch.triu_indices(40, 40, 1).unbind()
        first, second = last[i], last[j]
        got, want = matrix[first * (2 * rows - first - 1) // 2 + second - first - 1], small[i, j]
    else:
        got, want = matrix[last][:, last], small
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


# Configurations --------------------------------------------------------------------------------------------------


def test_autotuning_keeps_a_configuration_and_changes_no_result(monkeypatch, way):
    monkeypatch.setattr(_launch, "_best", {})
    monkeypatch.setenv("V1FAST_AUTOTUNE", "1")
    _launch.plans.clear()  # what is known of a form of a call holds its configuration
    case = cases.Case("tuned", B=40, N=700)
    for _ in range(2):
        checks.assert_matches_eager(case, *cases.make(case, f32, f32, f32))
    _launch.plans.clear()
    assert {key[0] for key in _launch._best} >= {"forward", "backward"}


# Dissimilarity matrices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [*rdm_checks.SHAPES, (360, 23589), (1000, 8000)], ids=str)
@pytest.mark.parametrize("method", rdm_checks.METHODS)
def test_rdm_matches_float64(method, shape):
    with assert_on_cuda("rdm"):
        rdm_checks.check_matches_float64(method, f32, shape)


@pytest.mark.parametrize("shape", [(17, 113), (300, 200)], ids=str)
@pytest.mark.parametrize("method", reference.METHODS)
@pytest.mark.parametrize("dtype", [f32, torch.float64], ids=str)
@pytest.mark.parametrize("accuracy", reference.ACCURACIES)
def test_rdm_matches_reference(shape, method, dtype, accuracy):
    with assert_on_cuda("rdm", "cross_rdm"):
        rdm_checks.check_matches_reference(shape, method, dtype, accuracy)


TRUNCATED = ("correlated", "near-identical, 1e-10")
"""Sets whose bounds a tensor core that cuts digits off could miss without being wrong.

Its sums lose up to a unit in the last place, those of the emulator half of one.
"""


@pytest.mark.parametrize("name", rdm_data.HARD)
def test_rdm_errs_no_more_than_corrcoef(name):
    x = rdm_data.make(name)
    if name in TRUNCATED:  # a wrong result would still show
        assert rdm_checks.largest_error(x) <= 1e-6
    else:
        rdm_checks.assert_errs_no_more_than_corrcoef(name, x, 1.1)


@pytest.mark.parametrize("name", TRUNCATED)
def test_rdm_bounds_that_truncation_may_miss(name):
    """If these fail alone, the kernels are right and docs/gpu.md promises too much."""
    rdm_checks.assert_errs_no_more_than_corrcoef(name, rdm_data.make(name), 1.1)


@pytest.mark.parametrize("name", rdm_data.HARD)
def test_rdm_high_accuracy(name):
    absolute, relative = rdm_checks.high_errors(rdm_data.make(name))
    assert largest(absolute) <= 1e-7
    assert largest(relative) <= 1e-5


def test_rdm_bfloat16_accuracy():
    with assert_on_cuda("rdm"):
        rdm_checks.check_bfloat16_accuracy()


@pytest.mark.parametrize("shape", [(2, 5), (45, 300), (700, 50)], ids=str)
@pytest.mark.parametrize("accuracy", reference.ACCURACIES)
@pytest.mark.parametrize("method", rdm_checks.ALL_METHODS)
def test_rdm_symmetric_zero_on_the_diagonal_and_in_range(method, accuracy, shape):
    with assert_on_cuda("rdm"):
        rdm_checks.check_symmetric_zero_on_the_diagonal_and_in_range(method, accuracy, shape)


@pytest.mark.parametrize("dtype", [f32, torch.float64], ids=str)
def test_rdm_of_a_constant_row(dtype):
    with assert_on_cuda("rdm", "cross_rdm"):
        rdm_checks.check_a_constant_row_is_nan_in_its_row_and_column_alone(0.1, "float32", dtype)


@pytest.mark.parametrize("method", rdm_checks.METHODS)
def test_rdm_gradients(method):
    with assert_on_cuda("rdm", "rdm_backward", "cross_rdm", "cross_rdm_backward"):
        rdm_checks.check_gradient_errs_no_more_than_torch(method, 100.0)
        rdm_checks.check_an_invalid_row_gets_no_gradient_and_gives_none(method)
        rdm_checks.check_gradcheck_of_cross_rdm(method)


@pytest.mark.parametrize("method", rdm_checks.ALL_METHODS)
@pytest.mark.parametrize("condensed", [True, False])
def test_rdm_gradcheck(method, condensed):
    rdm_checks.check_gradcheck_and_gradgradcheck(method, condensed)


@pytest.mark.parametrize("shape", [(360, 23589), (1000, 3000)], ids=str)
@pytest.mark.parametrize("method", rdm_checks.METHODS)
def test_rdm_is_bitwise_stable(method, shape):
    """With shared columns and without; both passes, also between two sets of rows."""
    x, y = torch.randn(shape, requires_grad=True), torch.randn(70, shape[1], requires_grad=True)
    grad, between = torch.randn(shape[0], shape[0]), torch.randn(shape[0], 70)

    def both():
        matrix, cross = functional.rdm(x, method=method), functional.cross_rdm(x, y, method=method)
        gradients = (*torch.autograd.grad(matrix, x, grad), *torch.autograd.grad(cross, (x, y), between))
        return [matrix.detach(), cross.detach(), *gradients]

    want = both()
    for _ in range(5):
        torch.testing.assert_close(both(), want, rtol=0, atol=0)


@pytest.mark.parametrize("method", rdm_checks.ALL_METHODS[:3])
@pytest.mark.parametrize("condensed", [True, False])
def test_rdm_out(method, condensed):
    with assert_on_cuda("rdm_out"):
        rdm_checks.check_writing_into_a_tensor(method, condensed)


@pytest.mark.parametrize("dtype", [bf16, f16], ids=str)
@pytest.mark.parametrize("method", rdm_checks.METHODS)
def test_rdm_of_16_bits(method, dtype):
    """A gradient that is stored otherwise is added up by another form of the kernel: the last bit may differ."""
    rdm_checks.check_layouts(dtype, method, rdm_checks.EXACT)
    rdm_checks.check_gradients_of_any_layout(dtype, method, {"rtol": torch.finfo(dtype).eps, "atol": 1e-6})


@pytest.mark.parametrize("condensed", [True, False])
def test_rdm_opcheck(condensed):
    rdm_checks.check_opcheck(condensed)


def test_rdm_in_a_cuda_graph():
    """No host reads: a captured call follows what its operand becomes."""
    torch.use_deterministic_algorithms(False)
    x = torch.randn(70, 400, requires_grad=True)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(functional.rdm(x).square().sum(), x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = functional.rdm(x)
        (gradient,) = torch.autograd.grad(out.square().sum(), x)
    with torch.no_grad():
        x.normal_()
    graph.replay()
    want = functional.rdm(x)
    assert out.equal(want)
    torch.testing.assert_close(gradient, torch.autograd.grad(want.square().sum(), x)[0])


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("method", ["correlation", "poisson"])
def test_rdm_compiles_with_inductor_in_any_shape(method, dynamic):
    rdm_checks.check_compiles_fullgraph(method, dynamic, "inductor")


def test_rdm_compiles_with_inductor():
    x = torch.randn(50, 300, requires_grad=True)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: functional.rdm(x).square().sum(), fullgraph=True)
    got, want = (torch.autograd.grad(f(x), x)[0] for f in (compiled, lambda x: functional.rdm(x).square().sum()))
    assert got.is_cuda
    torch.testing.assert_close(got, want)
