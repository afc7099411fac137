"""The Triton kernels of the pooled readout and of the gather of points, as those of the Gaussian readout are tested.

They are the same kernels: what is tested here is what differs, positions that are not clamped and may be each image's
own, several levels, and channels that are not summed. Results and regimes are those of the ops' own tests.
"""

import dataclasses

import cases
import every_point_op
import pooled_checks as checks
import ptx_emulator as emulator
import pytest
import torch
from op_checks import assert_as_accurate_as_eager, bf16, cast, f16, f32, f64, label, layouts, run

pytest.importorskip("triton")

from emulated import ATOMICS, SeenOps, assert_launches, gpu, kernel_name, with_programs
from v1fast.kernels import _launch

from v1fast import _eager as eager
from v1fast import functional, kernels, ops
from v1fast.readouts import PointPooled2d

NATIVE = ops.loaded["native"] == "loaded"

pytestmark = pytest.mark.filterwarnings("ignore:.*Overriding a previously registered kernel")

POOLED, GATHER = every_point_op.TwoLevels(), every_point_op.PointGather()
OPS = pytest.mark.parametrize("op", [POOLED, GATHER], ids=["pooled", "gather"])
WAYS = pytest.mark.parametrize("way", ["scatter", "gather"])
SINGLE = (f32, f32, f32)
POINTS = {case.why: case for case in cases.POINTS}


def plain_call(op, case=cases.PLAIN, dtypes=SINGLE):
    """Gradient of the output and tensors of one call."""
    operands, _ = op.make(case, *dtypes)
    return op.grad_output(operands), list(operands.values())


def launchers(op):
    """Launcher and that of the backward: called with tensors, align_corners and, the latter, a mask."""
    if op is GATHER:
        return kernels.CUDA["point_gather"], kernels.CUDA["point_gather_backward"]
    return op.pooled(kernels.CUDA["pooled_readout"]), op.pooled(kernels.CUDA["pooled_readout_backward"])


def backward(op, grad, tensors, mask=None):
    return launchers(op)[1](grad, *tensors, True, [True] * len(op.names) if mask is None else mask)


def assert_same_bits(op, got, want, but=()):
    for name, a, b in zip(op.names, got, want, strict=True):
        if name in but:
            torch.testing.assert_close(a, b, msg=name)
        else:
            torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


# Results ---------------------------------------------------------------------------------------------------------

LARGE = cases.Case("many of everything", B=34, N=130)  # several parts of every sum, several blocks of neurons
# Compiling a form takes seconds: several of its properties in one case.
CHUNKS = cases.Case("chunks of channels", C=96, N=5, bias=False, shift=False, align_corners=False)
EDGES = cases.Case("one channel, many positions outside the edges", C=1, spread=1.5, align_corners=False)
LARGE_PER_IMAGE = dataclasses.replace(LARGE, per_image=True)
SMALL = [POINTS[why] for why in ("one row", "one column", "no neuron", "no image", "one neuron", "one image")]
BOTH = (
    (90, "scatter", cases.PLAIN, SINGLE),
    (90, "gather", POINTS["shifted outside"], SINGLE),
    *((90, way, case, SINGLE) for way, case in zip(("scatter", "gather") * 3, SMALL, strict=True)),
    (90, "scatter", LARGE, SINGLE),
    (90, "gather", LARGE, SINGLE),
    (90, "gather", LARGE_PER_IMAGE, SINGLE),
)
RESULTS = [(arch, way, op, case, dtypes) for arch, way, case, dtypes in BOTH for op in (POOLED, GATHER)]
RESULTS += [
    (90, "scatter", POOLED, CHUNKS, SINGLE),
    (80, "scatter", POOLED, POINTS["many neurons and images"], SINGLE),  # weights of a level that are not aligned
    (90, "gather", POOLED, cases.PLAIN, (bf16, bf16, f32)),
    (90, "gather", GATHER, EDGES, SINGLE),
    (80, "scatter", GATHER, CHUNKS, (f16, f16, f32)),
]
LATER = [  # kernels that differ from one above in the architecture, in a dtype or in few properties of the form
    *((80, "scatter", op, cases.PLAIN, SINGLE) for op in (POOLED, GATHER)),
    (90, "scatter", POOLED, cases.PLAIN, (f32, f32, f64)),
    (90, "gather", GATHER, cases.PLAIN, (bf16, bf16, f32)),
    (90, "scatter", POOLED, POINTS["positions per image, nothing else"], SINGLE),
    (90, "scatter", GATHER, CHUNKS, SINGLE),
]
RESULTS += [pytest.param(*later, marks=pytest.mark.slow) for later in LATER]


def ids(value):
    return {POOLED: "pooled", GATHER: "gather"}[value] if value in (POOLED, GATHER) else label(value)


@pytest.mark.parametrize(("on_gpu", "way", "op", "case", "dtypes"), RESULTS, ids=ids, indirect=["on_gpu"])
def test_matches_eager(on_gpu, how_features, way, op, case, dtypes):
    how_features(way)
    op.assert_matches_eager(case, *dtypes)


PYRAMIDS = {case.why: (case, pooling) for case, pooling in checks.POOLED}


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("gather", "pooled"),
        ("gather", "pooled to one pixel"),
        pytest.param("scatter", "pooled by three", marks=pytest.mark.slow),  # two levels at pixel edges
    ],
)
def test_pyramids_match_eager(on_gpu, how_features, way, why):
    how_features(way)
    with assert_launches():
        checks.assert_matches_eager(*PYRAMIDS[why], *SINGLE)


def test_one_level_is_scattered_and_another_gathered(on_gpu):
    """Both rules apply at once: many neurons for the pixels of the pooled map, few for those of the whole one."""
    torch.use_deterministic_algorithms(False)
    case = cases.Case("dense", H=4, W=5, N=200)  # of 640 that may be scattered to the map, of 160 to its pooling
    with assert_launches():
        POOLED.assert_matches_eager(case, *SINGLE)
    grad, tensors = plain_call(POOLED, case)
    _, programs = with_programs(lambda: backward(POOLED, grad, tensors, [True, *[False] * 4]))
    assert len([text for text in programs if ATOMICS.search(text)]) == 1
    assert len([text for text in programs if kernel_name(text) == "pixels_kernel"]) == 1


@OPS
@WAYS
def test_the_order_of_blocks_does_not_matter(how_features, op, way):
    """Only what atomics add depends on it, in the last bits."""
    how_features(way)
    grad, tensors = plain_call(op, cases.Case("ordered", B=5, N=300))
    results = []
    for order in ("forward", "reverse", 7):
        with gpu(90, order=order):
            results.append((launchers(op)[0](*tensors, True), *backward(op, grad, tensors)))
    for out, *gradients in results[1:]:
        assert out.equal(results[0][0])
        assert_same_bits(op, gradients, results[0][1:], but=("features",) if way == "scatter" else ())


@pytest.mark.parametrize(
    ("op", "way", "align_corners"), [(POOLED, "scatter", True), (GATHER, "gather", False)], ids=ids
)
@pytest.mark.parametrize("through_shift", [True, False])
def test_conventions_of_torch_at_special_positions(on_gpu, how_features, op, way, align_corners, through_shift):
    how_features(way)
    with assert_launches():
        op.test_conventions_of_torch_at_special_positions(align_corners, through_shift)


@OPS
@WAYS
def test_a_nan_gradient_reaches_its_own_cell_only(on_gpu, how_features, op, way):
    how_features(way)
    grad, tensors = plain_call(op, cases.Case("nan", B=1, N=3))
    tensors[op.names.index("grid")] = torch.tensor([[-0.95, -0.95], [0.6, 0.6], [-0.95, -0.95]])
    tensors[-1].zero_()  # shift
    grad[:, 1] = float("nan")
    reached = backward(op, grad, tensors, [name == "features" for name in op.names])[0].isnan().any(1)
    # of two levels, the four pixels of the second are squares of four of the first
    assert reached.sum() == (16 if op is POOLED else 4)
    assert not reached[..., :2, :2].any()


REUSED = (
    "test_expanded_operands",
    "test_low_precision_positions_are_read_as_they_are",
    "test_positions_per_image_are_those_of_each_neuron",
    "test_absent_operands_get_no_gradient",
)


@OPS
@pytest.mark.parametrize("name", REUSED, ids=lambda name: name.removeprefix("test_"))
def test_as_the_op(on_gpu, op, name):
    with assert_launches():
        getattr(op, name)()


# Memory ----------------------------------------------------------------------------------------------------------


@OPS
@pytest.mark.parametrize("layout", range(6))
def test_layouts_of_features(on_gpu, op, layout):
    with assert_launches():
        op.test_layouts_of_features(layout, SINGLE)


@OPS
def test_layouts_of_the_gradient_when_scattered(on_gpu, how_features, op):
    """A buffer of its own where the gradient's rows cannot be added to: channels-first, and as wide as a window's."""
    how_features("scatter")
    grad, (features, *rest) = plain_call(op)
    want = backward(op, grad, [features, *rest])
    for name, other in layouts(features):
        got = backward(op, grad, [other, *rest])
        assert_same_bits(op, got, want, but=("features",))
        assert got[0].stride() == torch.empty_like(other).stride(), name


@OPS
def test_operands_of_any_strides(on_gpu, op):
    with assert_launches():
        op.test_operands_of_any_strides(False)


def test_weights_of_any_layout(on_gpu):
    with assert_launches():
        POOLED.test_weights_of_any_layout(cases.PLAIN, SINGLE)


def test_storage_at_any_address(on_gpu):
    """No vector access at an address that is not aligned for it: the emulator would refuse it."""
    grad, tensors = plain_call(GATHER)
    want = launchers(GATHER)[0](*tensors, True), *backward(GATHER, grad, tensors)

    def moved(tensor):
        dense = tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor.contiguous()
        storage = torch.empty(dense.numel() + 1, dtype=dense.dtype)
        return storage[1:].as_strided(dense.shape, dense.stride(), 1).copy_(dense)

    tensors = [moved(tensor) for tensor in tensors]
    got = launchers(GATHER)[0](*tensors, True), *backward(GATHER, moved(grad), tensors)
    torch.testing.assert_close(got, want)


def test_offsets_of_64_bits_give_the_same(on_gpu, how_features, monkeypatch):
    how_features("scatter")
    grad, tensors = plain_call(GATHER)
    out, want = launchers(GATHER)[0](*tensors, True), backward(GATHER, grad, tensors)
    monkeypatch.setattr(_launch.Rows, "wide", True)
    _launch.plans.clear()
    assert launchers(GATHER)[0](*tensors, True).equal(out)
    assert_same_bits(GATHER, backward(GATHER, grad, tensors), want, but=("features",))


def test_no_tensor_of_images_neurons_and_channels(on_gpu, how_features):
    """The launchers allocate levels, their gradients and sums for each neuron, and nothing larger."""
    how_features("scatter")
    case = cases.Case("large", B=6, N=3000)
    grad, tensors = plain_call(POOLED, case)
    with SeenOps() as seen:
        launchers(POOLED)[0](*tensors, True)
        backward(POOLED, grad, tensors)
    assert seen.most_elements == tensors[2].numel()  # d_weight's
    assert seen.most_elements < case.B * case.N * case.C / 2


# What is not asked for, and how much is compiled -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "wanted"), [*((POOLED, name) for name in POOLED.names), (GATHER, "features"), (GATHER, "grid")], ids=ids
)
def test_a_gradient_that_is_not_asked_for_costs_nothing(how_features, op, wanted):
    how_features("scatter")
    grad, tensors = plain_call(op)
    everything, _ = with_programs(lambda: backward(op, grad, tensors))
    mask = [name == wanted for name in op.names]
    gradients, programs = with_programs(lambda: backward(op, grad, tensors, mask))
    empty = [torch.empty(0) if not m else g for m, g in zip(mask, everything, strict=True)]
    assert_same_bits(op, gradients, empty, but=("features",))
    levels = 2 if op is POOLED else 1
    passes = [text for text in programs if kernel_name(text) == "backward_kernel"]
    assert len(passes) == (0 if wanted == "bias" else levels)
    assert len(programs) == len(passes) + (levels > 1 and wanted in ("grid", "shift")) + (wanted == "bias")
    assert [bool(ATOMICS.search(text)) for text in programs] == [wanted == "features"] * len(programs)


@OPS
def test_nothing_is_launched_for_no_gradient_and_no_sample(on_gpu, op):
    grad, tensors = plain_call(op)
    before = emulator.launches()
    assert all(g.shape == (0,) for g in backward(op, grad, tensors, [False] * len(op.names)))
    for why in ("no neuron", "no image"):
        grad, tensors = plain_call(op, POINTS[why])
        assert launchers(op)[0](*tensors, True).shape == grad.shape
        for tensor, gradient in zip(tensors, backward(op, grad, tensors), strict=True):
            assert gradient.equal(torch.zeros(tensor.shape))
    assert emulator.launches() == before


def test_sizes_and_levels_ask_for_no_other_kernel():
    """Two forms of the forward pass, for the first level and all others, one of the backward, two of the sums."""
    seen = {}
    for case in (cases.PLAIN, LARGE, cases.Case("other sizes", B=16, H=12, W=32, N=48)):
        operands, _ = checks.make(dataclasses.replace(case, H=4 * case.H, W=4 * case.W), 2, *SINGLE)
        operands["features"] = operands["features"].contiguous(memory_format=torch.channels_last)
        arguments = (*operands.values(), None, True, 2, 2)
        grad = torch.randn(case.B, case.N)
        programs = with_programs(lambda a=arguments: kernels.CUDA["pooled_readout"](*a))[1]
        programs += with_programs(
            lambda g=grad, a=arguments: kernels.CUDA["pooled_readout_backward"](g, *a, [True] * 5)
        )[1]
        for text in programs:
            seen.setdefault(kernel_name(text), set()).add(text)
    once = dict.fromkeys(("backward_kernel", "cells_kernel", "pixels_kernel"), 1)
    assert {name: len(texts) for name, texts in seen.items()} == {"forward_kernel": 2, "sums_kernel": 2, **once}


@OPS
def test_reads_nothing_on_the_host(on_gpu, how_features, op):
    for way in ("scatter", "gather"):
        how_features(way)
        grad, tensors = plain_call(op)
        with SeenOps() as seen, assert_launches():
            launchers(op)[0](*tensors, True)
            backward(op, grad, tensors)
        assert seen.ops, "the launchers call torch's ops at least for their outputs"
        assert not seen.host_reads


# Through the dispatcher ------------------------------------------------------------------------------------------


def test_opcheck(on_gpu):
    with assert_launches():
        POOLED.check_op(SINGLE)
        GATHER.test_opcheck(cases.PLAIN, SINGLE)


@OPS
def test_compiles_fullgraph(on_gpu, op):
    with assert_launches():
        op.test_compiles_fullgraph(False)


def test_levels_of_different_sizes(on_gpu):
    """A level each is a call of its own."""
    operands = {f"level{i}": v for i, v in enumerate(checks.levels_of((20, 20), ((7, 9), (12, 5)), (f32, f32)))}
    operands |= checks.points(channels=40)
    grad = torch.randn(3, 11)
    with assert_launches():
        results = run(checks.by_levels(functional.levels_readout), operands, {}, grad)

    def eager_run(dtype):
        return run(checks.by_levels(eager.levels_readout), cast(operands, dtype), {}, grad.to(dtype))

    assert_as_accurate_as_eager(results, operands, eager_run)


@pytest.mark.skipif(not NATIVE, reason="compared with the compiled CPU kernels")
def test_layer_trains_as_on_the_cpu():
    features, grad = torch.randn(3, 20, 12, 18), torch.randn(3, 11)
    layer = PointPooled2d(in_shape=(20, 12, 18), outdims=11, bias=True, pool_steps=1, pool_kern=2, init_range=0.5)

    def step():
        out = layer(features, shift=torch.full((3, 2), 0.05))
        return out, *torch.autograd.grad(out, list(layer.parameters()), grad)

    want = step()
    with gpu(90), assert_launches():
        got = step()
    torch.testing.assert_close(got, want)
