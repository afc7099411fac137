"""The ops on a real GPU: ``make test-gpu``. Nothing here runs, and nothing here has run yet, without one."""

import cases
import point_ops
import pytest
import test_gaussian_readout as op_tests
import test_point_gather
import test_pooled_readout
import torch

from v1fast import _eager as eager
from v1fast import functional, ops
from v1fast.readouts import FullGaussian2d

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.skipif(ops.loaded["triton"] != "loaded", reason="the Triton kernels are not loaded"),
]
f32 = torch.float32


@pytest.fixture(autouse=True)
def on_cuda():
    with torch.device("cuda"):
        yield


@pytest.fixture(params=["gather", "scatter"])
def way(request):
    """How the gradient of the features is made; see v1fast.kernels._features."""
    torch.use_deterministic_algorithms(request.param == "gather", warn_only=True)
    return request.param


@pytest.mark.parametrize(("case", "dtypes"), op_tests.TABLE, ids=op_tests.label)
def test_matches_eager(case, dtypes, way):
    op_tests.assert_matches_eager(case, *cases.make(case, *dtypes))


POINT_OPS = pytest.mark.parametrize(
    "op",
    [test_pooled_readout.TestOneLevel(), test_pooled_readout.TestTwoLevels(), test_point_gather.TestPointGather()],
    ids=["one level", "two levels", "gather"],
)


@POINT_OPS
@pytest.mark.parametrize(("case", "dtypes"), point_ops.TABLE, ids=op_tests.label)
def test_given_points_match_eager(op, case, dtypes, way):
    op.assert_matches_eager(case, *dtypes)


@pytest.mark.parametrize(("case", "pooling"), test_pooled_readout.POOLED)
def test_pyramids_match_eager(case, pooling, way):
    test_pooled_readout.assert_matches_eager(case, pooling, f32, f32, f32)


@POINT_OPS
@pytest.mark.parametrize("layout", range(6))
def test_layouts_of_features(op, layout):
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
    operands = op_tests.cast(operands, f32)
    grad = torch.randn(case.B, case.N)
    got, gradients = op_tests.run(functional.gaussian_readout, operands, options, grad)
    exact, wanted = op_tests.eager_run(case, operands, options, torch.float64, grad)
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
    operands, options = op_tests.cast(operands, f32), options | {"pool_kernel": kernel, "pool_steps": 2}
    grad = torch.randn(case.B, case.N)
    got, gradients = op_tests.run(functional.pooled_readout, operands, options, grad)
    exact, wanted = op_tests.run(eager.pooled_readout, op_tests.cast(operands, torch.float64), options, grad.double())
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-4)
    for name in ("features", "weight", "bias"):  # as above
        torch.testing.assert_close(gradients[name].double(), wanted[name], rtol=1e-4, atol=1e-3, msg=name)


def test_gathered_gradients_are_bitwise_stable():
    torch.use_deterministic_algorithms(True, warn_only=True)
    operands, options = cases.make(cases.Case("stable", B=8, C=64, H=20, W=30, N=3000), f32, f32, f32)
    grad = torch.randn(8, 3000)
    _, first = op_tests.run(functional.gaussian_readout, operands, options, grad)
    for _ in range(5):
        _, again = op_tests.run(functional.gaussian_readout, operands, options, grad)
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
    test_pooled_readout.test_compiles_fullgraph(dynamic, "inductor")


def test_compiles_with_inductor():
    assert all(gradient.is_cuda for gradient in op_tests.assert_compiles_with_inductor())
