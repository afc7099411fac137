"""The Triton kernels of the Gaussian readout, compiled for NVIDIA GPUs and executed on CPU tensors: ``ptx_emulator``.

While a test is ``on_gpu`` the launchers hold the CPU key of the dispatcher, in place of the C++ kernels: the public
functions, autograd, opcheck and torch.compile reach them as they would on a GPU, and the tests of the op are run as
they are. Every compiled form costs seconds: the architectures share the cases between them.
"""

import dataclasses
import itertools
import weakref

import cases
import gaussian_checks as checks
import ptx_emulator as emulator
import pytest
import torch
from op_checks import DTYPES, bf16, f16, f32, f64, label, layouts, opcheck, run

from v1fast import _eager as eager
from v1fast import functional, ops
from v1fast.contracts._forms import Seen
from v1fast.readouts import FullGaussian2d
from v1fast.reference.gaussian_readout import compute_dtype

pytest.importorskip("triton")

from emulated import ATOMICS, assert_launches, assert_no_host_reads, gpu, with_programs
from v1fast.kernels import _backward as backward
from v1fast.kernels import _features as gathering
from v1fast.kernels import _forward as forward
from v1fast.kernels import _launch
from v1fast.kernels import _sums as sums
from v1fast.kernels._specialisations import points_specialisations

from v1fast import kernels

NATIVE = ops.loaded["native"] == "loaded"

pytestmark = pytest.mark.filterwarnings("ignore:.*Overriding a previously registered kernel")


def arguments_of(case, operands, options):
    names = ("noise", "seed", "neuron_index")
    return [
        *operands.values(), *(options.get(name) for name in names), case.image_offset, case.share_noise,
        case.align_corners,
    ]  # fmt: skip


def plain_call(dtype=f32, case=cases.PLAIN):
    """Gradient of the output and arguments of one call of the ops."""
    operands, options = cases.make(case, dtype, dtype, f64 if dtype == f64 else f32)
    return torch.randn(case.B, case.N, dtype=dtype), arguments_of(case, operands, options)


def assert_same_bits(got, want, but=()):
    for name, a, b in zip(checks.NAMES, got, want, strict=True):
        if name in but:
            torch.testing.assert_close(a, b, msg=name)
        else:
            torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


# The noise -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not NATIVE, reason="the bits are those of the compiled CPU kernel")
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_normals_have_the_bits_of_the_cpu_kernel(arch):
    index = torch.tensor([0, 1, 5, 2**31, 2**32 - 1]).repeat(12)
    for seed, offset, neuron_index in ((0, 0, None), (-1, 3, index), (2**63 - 12345, 2**33 + 5, index)):
        call = (seed, 6, len(index))
        options = {"neuron_index": neuron_index, "image_offset": offset}
        want = functional.philox_normal(*call, **options)
        with gpu(arch):
            got = functional.philox_normal(*call, **options)
        assert got.equal(want)


# Results ---------------------------------------------------------------------------------------------------------

WAYS = ("scatter", "gather")
PAIRS = list(itertools.product((80, 90), WAYS))  # of an architecture and a way
SINGLE = (f32, f32, f32)
REGIME = {case.why: case for case in cases.REGIMES}
NOTHING_OPTIONAL, GIVEN_NOISE = REGIME["nothing optional"], REGIME["explicit noise"]
JOINED = (  # regimes of several forms in one: compiling a form takes seconds
    (80, "scatter", cases.Case("many images at pixel edges", B=40, C=2, N=2, align_corners=False)),
    (80, "scatter", cases.Case("one pixel of two channels", C=2, H=1, W=1, align_corners=False)),
    (80, "gather", REGIME["many neurons and images"]),
    (90, "scatter", REGIME["many neurons and given noise"]),
    (
        90,
        "scatter",
        cases.Case("many channels and shared noise", C=131, N=3, noise="tensor", share_noise=True, bias=False),
    ),
    (90, "scatter", NOTHING_OPTIONAL),
    (90, "gather", REGIME["many neurons at their means"]),
    (90, "gather", cases.Case("isotropic and clamped", C=16, sigma="isotropic", shift=False, spread=1.5)),
    (90, "gather", cases.Case("shared seed at edges", C=1, share_noise=True, image_offset=5, align_corners=False)),
)
DRAWN = ((f64, f64, f64), (bf16, bf16, f32))  # to the others noise is given, and half as much is compiled
LATER = [(f16, f32, f32), (bf16, f16, f32), (f32, f32, f64)]  # each operand has these dtypes in other combinations too


def form_of(case):
    """What the kernels are compiled for. Sizes other than C ask for no other form."""
    noise = (case.noise, case.sigma, case.share_noise, case.neuron_index) if case.noise else None
    return noise, case.bias, case.shift, case.align_corners, case.C


PLAIN_FORM = [case for case in cases.REGIMES if form_of(case) == form_of(cases.PLAIN)]


def quick_results():
    """The plain form, and its sizes; every other property of a form once; dtypes. On all architectures."""
    for pair, case in itertools.product(((90, "scatter"), (90, "gather")), PLAIN_FORM):
        yield *pair, case, SINGLE
    yield from ((*joined, SINGLE) for joined in JOINED)
    yield 100, "scatter", GIVEN_NOISE, SINGLE
    for i, dtypes in enumerate(DTYPES):
        if dtypes != SINGLE and dtypes not in LATER:
            case = cases.PLAIN if dtypes in DRAWN else GIVEN_NOISE
            yield 80 + i % 2 * 10, WAYS[i // 2 % 2], case, dtypes


def all_results():
    for case, pair in itertools.product(cases.REGIMES, PAIRS):
        yield *pair, case, SINGLE
    for case in (cases.PLAIN, REGIME["many channels"]):
        yield 100, "scatter", case, SINGLE
    for i, dtypes in enumerate(DTYPES):
        yield 80 + i % 2 * 10, WAYS[i // 2 % 2], cases.PLAIN, dtypes


QUICK = list(quick_results())
RESULTS = [*QUICK, *(pytest.param(*one, marks=pytest.mark.slow) for one in all_results() if one not in QUICK)]


def properties_of(cases):
    """Of the forms: (which, value), those of the noise apart."""
    forms = [form_of(case) for case in cases]
    return {
        (i, value)
        for noise, *others in forms
        for i, value in (*enumerate(others), *enumerate(noise or (None,), len(others)))
    }


def test_each_property_of_a_form_is_compiled():
    """And each way meets noise that is drawn, given and absent."""
    assert properties_of(cases.REGIMES) <= properties_of(case for *_, case, dtypes in QUICK if dtypes == SINGLE)
    for way in WAYS:
        assert {case.noise for _, one, case, _ in QUICK if one == way} == {None, "seed", "tensor"}


@pytest.mark.parametrize(("on_gpu", "way", "case", "dtypes"), RESULTS, ids=label, indirect=["on_gpu"])
def test_matches_eager(on_gpu, how_features, way, case, dtypes):
    how_features(way)
    checks.assert_matches_eager(case, *cases.make(case, *dtypes))


IMAGES = cases.Case("very many images", B=1000, N=60, C=4, H=3, W=4, noise="tensor")
NEURONS = cases.Case("very many neurons", B=8, N=3000, C=4, H=12, W=16, noise="tensor")
LONG = [
    ("scatter", IMAGES, SINGLE),
    ("scatter", NEURONS, SINGLE),
    ("gather", NEURONS, SINGLE),
    ("scatter", IMAGES, (bf16, bf16, f32)),
    *(
        pytest.param(way, case, dtypes, marks=pytest.mark.slow)
        for way, case, dtypes in (
            ("scatter", IMAGES, (f64, f64, f64)),
            *itertools.product(WAYS, [NEURONS], [(f64, f64, f64), (bf16, bf16, f32)]),
        )
    ),
]


@pytest.mark.parametrize("programs", [1, _launch.PROGRAMS], ids="at least {} programs".format)
@pytest.mark.parametrize(("way", "case", "dtypes"), LONG, ids=label)
def test_long_sums_are_as_accurate_as_torch(monkeypatch, how_features, way, case, dtypes, programs):
    """Torch adds in a tree. One program: where the neurons alone fill a GPU, each program takes more images."""
    how_features(way)
    monkeypatch.setattr(_launch, "PROGRAMS", programs)
    with gpu(80):
        checks.assert_matches_eager(case, *cases.make(case, *dtypes))


@pytest.mark.parametrize("slabs", [3, 31, 1000, 20000])
def test_sums_of_slabs_keep_what_an_addition_rounds_away(on_gpu, slabs):
    """A sum that is infinite or NaN stays so."""
    parts = torch.randn(slabs, 40)
    parts[0, 0] = parts[2, 1] = float("inf")
    parts[1, 2], parts[2, 2] = float("inf"), -float("inf")
    parts[1, 3] = float("nan")
    got, want = sums.sum_slabs(parts, parts[0], f32), parts.double().sum(0)
    torch.testing.assert_close(got[:4], want[:4].float(), equal_nan=True)
    assert (got - want)[4:].abs().max() <= torch.finfo(f32).eps * want[4:].abs().max()


@pytest.mark.parametrize("way", ["scatter", "gather"])
def test_the_order_of_blocks_does_not_matter(how_features, way):
    """Only what atomics add depends on it, in the last bits."""
    how_features(way)
    grad, arguments = plain_call(case=cases.Case("many neurons and images", B=5, N=300, image_offset=1))
    results = []
    for order in ("forward", "reverse", 7):
        with gpu(90, order=order):
            results.append(kernels.CUDA["gaussian_readout_backward"](grad, *arguments, [True] * 6))
            out = kernels.CUDA["gaussian_readout"](*arguments)
            assert not out.isnan().any()
    for other in results[1:]:
        assert_same_bits(other, results[0], but=("features",) if way == "scatter" else ())


def special_positions():
    nan, inf = float("nan"), float("inf")
    values = (-inf, -1e30, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.25, 3e9, inf, nan)
    return torch.tensor(list(itertools.product(values, values)), dtype=f64)


@pytest.mark.parametrize(("way", "align_corners"), [("scatter", True), ("gather", False)])
@pytest.mark.parametrize("through_shift", [True, False])
def test_conventions_of_torch_at_special_positions(on_gpu, how_features, align_corners, through_shift, way):
    """At exactly +-1, on pixels, outside, at infinity and NaN: value and every gradient as torch's, NaN for NaN."""
    how_features(way)
    positions = special_positions()
    many, one = positions.shape[0], torch.zeros(1, 2, dtype=f64)
    images, mu, shift = (many, one, positions) if through_shift else (1, positions, one)
    operands = {
        "features": torch.randn(images, 3, 5, 9, dtype=f64), "mu": mu, "sigma": None,
        "weight": torch.ones(mu.shape[0], 3, dtype=f64), "bias": None, "shift": shift,
    }  # fmt: skip
    grad = torch.randn(images, mu.shape[0], dtype=f64)
    got = run(functional.gaussian_readout, operands, {"align_corners": align_corners}, grad)
    want = run(eager.gaussian_readout, operands, {"align_corners": align_corners}, grad)
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", ["scatter", "gather"])
def test_a_nan_gradient_reaches_its_own_cell_only(on_gpu, how_features, way):
    how_features(way)
    mu = torch.tensor([[-0.9, -0.9], [0.6, 0.6], [-0.88, -0.88]])
    operands = [torch.randn(1, 20, 6, 9), mu, None, torch.randn(3, 20), None, None]
    grad = torch.tensor([[1.0, float("nan"), 1.0]])
    d_features = kernels.CUDA["gaussian_readout_backward"](
        grad, *operands, None, None, None, 0, False, True, [True, *[False] * 5]
    )[0]
    assert d_features.isnan().any(1).sum() == 4
    assert d_features[..., :2, :2].isfinite().all()


@pytest.mark.parametrize("way", ["scatter", "gather"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_weight_that_is_not_finite_reaches_what_depends_on_it_only(on_gpu, how_features, way, value):
    """No other neuron's results, and no other pixel: what is read in excess is not multiplied by zero, but left out."""
    how_features(way)
    case = cases.Case("not finite", B=5, N=70, H=12, W=15)
    operands, options = cases.make(case, f32, f32, f32)
    broken = torch.zeros(case.N, dtype=torch.bool)
    broken[[0, 33, 69]] = True
    channel = torch.arange(case.C) == 7
    bad = operands | {"weight": operands["weight"].masked_fill(broken[:, None] & channel, value)}
    grad = torch.randn(case.B, case.N)
    want_out, want = run(functional.gaussian_readout, operands, options, grad)
    out, got = run(functional.gaussian_readout, bad, options, grad)
    _, eager_grads = checks.eager_run(case, bad, options, f64, grad)
    assert not out[:, broken].isfinite().any()
    assert out[:, ~broken].equal(want_out[:, ~broken])
    for name in ("mu", "sigma"):
        assert not got[name][broken].isfinite().any()
        assert got[name][~broken].equal(want[name][~broken])
    for name in ("weight", "bias"):
        assert got[name].equal(want[name])
    reached = ~got["features"].isfinite()
    assert reached.equal(~eager_grads["features"].isfinite())
    torch.testing.assert_close(got["features"][~reached], want["features"][~reached])
    assert not got["shift"].isfinite().any()


REUSED = [
    checks.check_a_nan_position_gives_nan_and_touches_no_feature,
    checks.check_a_nan_outside_the_cell_does_not_reach_it,
    checks.check_clamped_coordinates_get_no_gradient_and_shift_still_does,
    checks.check_sigma_gets_zeros_in_evaluation,
    checks.check_noise_does_not_depend_on_the_split_of_batch_or_neurons,
    checks.check_int_seeds_and_tensor_seeds_are_the_same,
    checks.check_expanded_operands,
    checks.check_low_precision_positions_are_read_as_they_are,
    checks.check_vmap_over_an_ensemble_and_its_gradient,
]


@pytest.mark.parametrize("test", REUSED, ids=lambda test: test.__name__.removeprefix("check_"))
def test_as_the_op(test):
    # the architecture whose kernels for 16 bits are compiled anyway
    arch = 80 if test is checks.check_low_precision_positions_are_read_as_they_are else 90
    with gpu(arch), assert_launches():
        test()


# Memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", range(6))
def test_layouts_of_features(on_gpu, layout):
    with assert_launches():
        checks.check_layouts_of_features(layout, (f32, f32, f32))


@pytest.mark.parametrize("way", ["scatter", "gather"])
def test_layouts_of_the_gradient_when_scattered(on_gpu, how_features, way):
    """A buffer of its own where the gradient's rows cannot be added to: channels-first, and as wide as a window's."""
    how_features(way)
    grad, (features, *rest) = plain_call()
    want = kernels.CUDA["gaussian_readout_backward"](grad, features, *rest, [True] * 6)
    for name, other in layouts(features):
        got = kernels.CUDA["gaussian_readout_backward"](grad, other, *rest, [True] * 6)
        assert_same_bits(got, want, but=("features",) if way == "scatter" else ())
        assert got[0].stride() == torch.empty_like(other).stride(), name


def test_weights_of_any_layout(on_gpu):
    with assert_launches():
        checks.check_weights_of_any_layout(cases.PLAIN, (f32, f32, f32))


@pytest.mark.parametrize("offset", [1, 4])
def test_storage_at_any_address(on_gpu, offset):
    """No vector access at an address that is not aligned for it: the emulator would refuse it.

    Without vectors the channels are spread over the threads in another way, and sums have another order.
    """
    grad, arguments = plain_call()
    want = kernels.CUDA["gaussian_readout_backward"](grad, *arguments, [True] * 6)

    def moved(tensor):
        dense = tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor.contiguous()
        storage = torch.empty(dense.numel() + offset, dtype=dense.dtype)
        return storage[offset:].as_strided(dense.shape, dense.stride(), offset).copy_(dense)

    arguments[:6] = map(moved, arguments[:6])
    got = kernels.CUDA["gaussian_readout_backward"](moved(grad), *arguments, [True] * 6)
    torch.testing.assert_close(got, want)


def test_offsets_of_64_bits_give_the_same(on_gpu, how_features, monkeypatch):
    """Of the features, whatever else a form has."""
    how_features("scatter")
    grad, arguments = plain_call(case=NOTHING_OPTIONAL)
    want = kernels.CUDA["gaussian_readout_backward"](grad, *arguments, [True] * 6)
    out = kernels.CUDA["gaussian_readout"](*arguments)
    monkeypatch.setattr(_launch.Rows, "wide", True)
    _launch.plans.clear()
    assert kernels.CUDA["gaussian_readout"](*arguments).equal(out)
    assert_same_bits(kernels.CUDA["gaussian_readout_backward"](grad, *arguments, [True] * 6), want, but=("features",))


def test_images_of_2_to_the_31_elements_need_offsets_of_64_bits():
    large = torch.empty(1, 64, 8192, 4096, dtype=bf16, device="meta", memory_format=torch.channels_last)
    assert _launch.as_rows(large).wide
    assert not _launch.as_rows(large[:, :, :4000, :4000]).wide


# What is not asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", checks.NAMES)
def test_a_gradient_that_is_not_asked_for_costs_nothing(how_features, wanted):
    how_features("scatter")
    grad, arguments = plain_call(case=dataclasses.replace(REGIME["many neurons and given noise"], B=3, N=11))
    backward_of = kernels.CUDA["gaussian_readout_backward"]
    everything, _ = with_programs(lambda: backward_of(grad, *arguments, [True] * 6))
    mask = [name == wanted for name in checks.NAMES]
    gradients, programs = with_programs(lambda: backward_of(grad, *arguments, mask))
    empty = [torch.empty(0) if not m else g for m, g in zip(mask, everything, strict=True)]
    assert_same_bits(gradients, empty, but=("features",))
    assert len(programs) == 1  # one part of each: nothing is added up
    assert bool(ATOMICS.search(programs[0])) == (wanted == "features")


def test_nothing_is_launched_for_no_gradient_and_no_sample(on_gpu):
    grad, arguments = plain_call()
    before = emulator.launches()
    assert all(g.shape == (0,) for g in kernels.CUDA["gaussian_readout_backward"](grad, *arguments, [False] * 6))
    for case in (cases.Case("no neuron", N=0), cases.Case("no image", B=0)):
        grad, arguments = plain_call(case=case)
        assert kernels.CUDA["gaussian_readout"](*arguments).shape == grad.shape
        for gradient in kernels.CUDA["gaussian_readout_backward"](grad, *arguments, [True] * 6):
            assert gradient.eq(0).all()
    assert emulator.launches() == before


# What is worked out once ------------------------------------------------------------------------------------------


def test_a_form_that_was_seen_gives_the_same(on_gpu):
    """Other values, and another number of the first image. What is kept holds no tensor."""
    for offset in (0, 6, 2**33 + 6):
        case = cases.Case("seen before", B=5, noise="seed", image_offset=offset)
        grad, arguments = plain_call(case=case)
        calls = (("gaussian_readout", arguments), ("gaussian_readout_backward", (grad, *arguments, [True] * 6)))
        got = [kernels.CUDA[name](*call) for name, call in calls]
        _launch.plans.clear()
        want = [kernels.CUDA[name](*call) for name, call in calls]
        assert got[0].equal(want[0])
        assert_same_bits(got[1], want[1], but=("features",))
        held = weakref.ref(arguments[0])
        del grad, arguments, calls
        assert held() is None


def test_a_step_launches_three_kernels(on_gpu, how_features):
    """The forward pass, the gradients, and the sums of all their parts."""
    how_features("scatter")
    case = cases.Case("parts to add", B=70)
    operands, options = cases.make(case, f32, f32, f32)
    for _ in range(2):
        before = emulator.launches()
        run(functional.gaussian_readout, operands, options, torch.randn(case.B, case.N))
        assert emulator.launches() - before == 3


def test_a_profiler_is_told_of_every_launch(on_gpu, monkeypatch):
    """By the launch that Triton makes itself."""
    _, arguments = plain_call()
    hook, told = _launch.triton.knobs.runtime.launch_enter_hook, []
    if not hasattr(hook, "add"):
        pytest.skip("Triton 3.4 keeps one hook, not a chain")
    monkeypatch.setattr(emulator.driver.Launcher, "__call__", lambda self, *launch: told.append(launch[7] is hook))
    kernels.CUDA["gaussian_readout"](*arguments)
    kernels.CUDA["gaussian_readout"](*arguments)
    hook.add(print)
    try:
        kernels.CUDA["gaussian_readout"](*arguments)
    finally:
        hook.remove(print)
    assert told == [True, False, True]


def test_an_unknown_triton_launches_as_it_does(on_gpu, monkeypatch):
    _, arguments = plain_call()
    want = kernels.CUDA["gaussian_readout"](*arguments)
    monkeypatch.setattr(_launch, "_IS_KNOWN", False)
    _launch.plans.clear()
    for _ in range(2):
        assert kernels.CUDA["gaussian_readout"](*arguments).equal(want)


# The choice of d_features' kernel, and of configurations -----------------------------------------------------------


def operands_of(case):
    operands, options = cases.make(case, f32, f32, f32)
    arguments = arguments_of(case, operands, options)
    return _launch.prepare(compute_dtype(*operands.values()), *arguments)


def test_gathers_when_deterministic_or_dense():
    few, many = cases.Case("few", N=3), cases.Case("dense", N=500)
    assert gathering.is_gathered(operands_of(few))
    torch.use_deterministic_algorithms(False)
    assert not gathering.is_gathered(operands_of(few))
    assert gathering.is_gathered(operands_of(many))


def test_samples_are_sorted_in_chunks(on_gpu, monkeypatch):
    """A chunk holds as many images as the workspace allows; the result does not depend on it."""
    o = operands_of(cases.Case("chunks", B=5, image_offset=1))
    grad = torch.randn(5, 11)
    want, got = torch.empty_like(o.rows.data), torch.empty_like(o.rows.data)
    gathering.gather(o, grad, want)
    for records in (1, 2 * 7 * 10):  # one image at a time; two
        monkeypatch.setattr(gathering, "RECORDS", records)
        gathering.gather(o, grad, got.fill_(float("nan")))
        assert got.equal(want)
    assert gathering.images_per_sort(11, 70) == 2


def test_chunks_of_channels_fit():
    assert [_launch.channel_chunk(c, 128) for c in (1, 5, 20, 64, 96, 100, 131, 320)] == [4, 8, 32, 64, 32, 128, 32, 64]
    assert _launch.channel_chunk(256, 64) == 64


def test_a_program_adds_no_more_images_than_it_may():
    assert _launch.images_per_program(1000, 2048, 2) == 1000
    for images in (1, 31, 32, 33, 1000, 1001):
        assert _launch.images_per_program(images, 2048, 2, most=32) <= 32
    assert _launch.images_per_program(33, 2048, 2, most=32) == 18  # two of much the same length
    assert _launch.images_per_program(5_000_000, 1, 2, most=32) * 65535 >= 5_000_000  # a grid's third axis ends there


def test_autotunes_only_when_asked_to(monkeypatch):
    """Each candidate runs on its own outputs, the fastest is kept."""
    monkeypatch.setattr(_launch, "_best", {})
    configs = _launch.forward_configs(20, f32)[:2]
    ran = []

    def run(config):
        ran.append(config)
        return config

    with emulator.active(90):
        assert _launch.choose(("key",), configs, run, torch.device("cpu")) == configs[0]
        assert not ran
        monkeypatch.setenv("V1FAST_AUTOTUNE", "1")
        times = iter([2.0, 1.0])

        def benchmark(function, quantiles):
            function()
            return [next(times)] * 3

        monkeypatch.setattr(type(_launch.triton.runtime.driver.active), "get_benchmarker", lambda self: benchmark)
        assert _launch.choose(("key",), configs, run, torch.device("cpu")) == configs[1]
        assert _launch.choose(("key",), configs, run, torch.device("cpu")) == configs[1]
    assert ran == configs


@pytest.mark.parametrize("way", ["scatter", "gather"])
def test_reads_nothing_on_the_host(on_gpu, how_features, way):
    how_features(way)
    grad, arguments = plain_call()
    with assert_no_host_reads():
        kernels.CUDA["gaussian_readout"](*arguments)
        kernels.CUDA["gaussian_readout_backward"](grad, *arguments, [True] * 6)
        kernels.CUDA["philox_normal"](arguments[7], 6, 72, None, 0)


def test_shipped_forms_are_few_and_complete():
    forms = points_specialisations()
    assert len({form.name for form in forms}) == len(forms) <= 40
    for form in forms:
        assert list(form.signature) == form.kernel.arg_names, form.name
    kinds = {form.kernel for form in forms}
    for module in (forward, backward, gathering, sums):
        assert {v for k, v in vars(module).items() if k.endswith("_kernel")} <= kinds


# Through the dispatcher ------------------------------------------------------------------------------------------


def test_opcheck(on_gpu):
    grad, arguments = plain_call()
    leaves = [v.clone().requires_grad_() for v in arguments[:6]]
    opcheck(torch.ops.v1fast.gaussian_readout, (*leaves, *arguments[6:]))
    for mask in ([True] * 6, [False, *[True] * 5]):
        opcheck(torch.ops.v1fast.gaussian_readout_backward, (grad, *arguments, mask), traced=all(mask))
    opcheck(torch.ops.v1fast.philox_normal, (arguments[7], 6, 72, None, 1))


def test_compiles_fullgraph(on_gpu):
    torch.compiler.reset()
    operands, options = cases.make(cases.PLAIN, f32, f32, f32)
    leaves = {k: v.requires_grad_() for k, v in operands.items()}

    def step(leaves, options):
        return functional.gaussian_readout(**leaves, **options).square().sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    got, want = (torch.autograd.grad(f(leaves, options), list(leaves.values())) for f in (compiled, step))
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.usefixtures("on_gpu")
def test_a_plan_is_remembered_of_a_form_as_long_as_it_is_kept():
    plans, seen = _launch.Plans(), Seen()
    assert plans.recall(None) is None
    assert plans.recall(seen) is None
    plans.remember(seen, "plan")
    plans.remember(seen, "exact plan", True)
    assert (plans.recall(seen), plans.recall(seen, True), plans.recall(seen, False)) == ("plan", "exact plan", None)
    plans.clear()
    assert plans.recall(seen) is None
    plans.remember(seen, "new", True)
    assert (plans.recall(seen), plans.recall(seen, True)) == (None, "new")
    with gpu(80):  # another driver
        assert plans.recall(seen, True) is None


@pytest.mark.skipif(not NATIVE, reason="compared with the compiled CPU kernels")
def test_layer_trains_as_on_the_cpu(monkeypatch):
    features, shift, grad = torch.randn(3, 20, 6, 9), torch.full((3, 2), 0.05, requires_grad=True), torch.randn(3, 11)
    layer = FullGaussian2d(in_shape=(20, 6, 9), outdims=11, bias=True)

    def step():
        torch.manual_seed(5)
        out = layer(features, shift=shift)
        return out, *torch.autograd.grad(out, [*layer.parameters(), shift], grad)

    want = step()
    with gpu(90):
        before = emulator.launches()
        got = step()
        assert emulator.launches() > before
        monkeypatch.setattr(functional, "suits_stored", lambda *tensors: False)
        in_several_steps = step()
    torch.testing.assert_close(got, want)
    for one, several in zip(got, in_several_steps, strict=True):
        assert one.equal(several)
        assert one.stride() == several.stride()
    launches = emulator.launches()
    step()
    assert emulator.launches() == launches, "the C++ kernels were expected back"
