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
from v1fast.readouts import FullGaussian2d
from v1fast.reference import rdm as reference

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.skipif(not ops.loaded["triton"].startswith("loaded"), reason="the Triton kernels are not loaded"),
]
f32 = torch.float32


@pytest.fixture(autouse=True)
def on_cuda():
    with torch.device("cuda"):
        yield


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
def test_pyramids_match_eager(case, pooling, way):
    pooled_checks.assert_matches_eager(case, pooling, f32, f32, f32)


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


def test_gathered_gradients_are_bitwise_stable():
    torch.use_deterministic_algorithms(True, warn_only=True)
    operands, options = cases.make(cases.Case("stable", B=8, C=64, H=20, W=30, N=3000), f32, f32, f32)
    grad = torch.randn(8, 3000)
    _, first = run(functional.gaussian_readout, operands, options, grad)
    for _ in range(5):
        _, again = run(functional.gaussian_readout, operands, options, grad)
        torch.testing.assert_close(again, first, rtol=0, atol=0)


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


def test_compiles_with_inductor():
    assert all(gradient.is_cuda for gradient in checks.assert_compiles_with_inductor())


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


@pytest.mark.parametrize("name", rdm_data.HARD)
def test_rdm_errs_no_more_than_corrcoef(name):
    """Tensor cores cut digits off where the emulator rounds."""
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
def test_rdm_is_bitwise_stable(shape):
    """With shared columns and without."""
    x = torch.randn(shape)
    want = functional.rdm(x)
    for _ in range(5):
        assert functional.rdm(x).equal(want)


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


def test_rdm_compiles_with_inductor():
    x = torch.randn(50, 300, requires_grad=True)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: functional.rdm(x).square().sum(), fullgraph=True)
    got, want = (torch.autograd.grad(f(x), x)[0] for f in (compiled, lambda x: functional.rdm(x).square().sum()))
    assert got.is_cuda
    torch.testing.assert_close(got, want)
