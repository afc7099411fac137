"""What runs where no kernel does: chosen at load, in little memory, and the reference's results at its own borders.

That it computes what the reference does is for the tests of the ops: ``make test`` runs them on the fallback, too.
"""

import importlib
import os

import new_processes
import pytest
import rdm_data as data
import torch
from assertions import largest, rms
from rdm_checks import naive

from v1fast import ops
from v1fast.fallback import (
    FALLBACK,
    cross_rdm,
    direct,
    few_values,
    matmul,
    philox_cpu,
    philox_normal,
    points,
    rdm,
    rdm_rows,
    small,
    small_pooled,
    small_rdm,
)
from v1fast.ops import _define
from v1fast.reference import philox, whole_numbers

INF, NAN = float("inf"), float("nan")


def assert_as_the_reference(name, *arguments):
    got, want = FALLBACK[name](*arguments), _define.references[name](*arguments)
    for a, b in zip(*((r,) if isinstance(r, torch.Tensor) else r for r in (got, want)), strict=True):
        assert a.dtype == b.dtype
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b, equal_nan=True)


def test_each_is_the_function_of_an_op():
    assert set(FALLBACK) <= set(_define.references)
    assert set(_define.defaults) == set(_define.references)
    left_out = ops.loaded["fallback"] != "loaded"
    for name in FALLBACK:
        assert (_define.defaults[name] is _define.references[name]) == left_out


@pytest.mark.parametrize(
    ("kernels", "cuda"), [("native,triton", False), ("fallback", True), ("", False), ("native,triton,fallback", True)]
)
def test_the_variable_chooses_what_holds_the_default_key(kernels, cuda):
    """The default is read off a tensor of a device that has no kernel."""
    code = """
import torch, v1fast
from v1fast.ops import _define
from v1fast.fallback import gaussian_readout
called = []
_positions = gaussian_readout._positions
gaussian_readout._positions = lambda *a: called.append(1) or _positions(*a)
x, mu, w = torch.zeros(1, 1, 2, 2), torch.zeros(1, 2), torch.ones(1, 1)
_define.defaults["gaussian_readout"](x, mu, None, w, None, None, None, None, None, 0, False, True)
print(bool(called))
"""
    assert new_processes.run([code], os.environ | {"V1FAST_KERNELS": kernels}) == [str(cuda)]


def test_it_refuses_what_the_check_of_the_op_refuses():
    x = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match=r"weight: want \[N, C\] = \(4, 2\), got \(4, 3\)"):
        _define.defaults["gaussian_readout"](
            x, torch.zeros(4, 2), None, torch.zeros(4, 3), None, None, None, None, None, 0, False, True
        )


# Points -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["small", "direct", "rows"])
def way(request, monkeypatch):
    """How points are read: all images at once, by torch's grid_sample, or by rows."""
    if request.param != "small":
        monkeypatch.setattr(small_pooled, "MOST", 0)
        monkeypatch.setattr(direct, "_is_faster", lambda *a: request.param == "direct")


@pytest.mark.parametrize("images", [2, points.MANY])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("align_corners", [True, False])
def test_a_pixel_that_is_not_read_spoils_nothing(value, align_corners, images, way):
    """A corner outside the map is zero, whatever the map holds, and so is its product."""
    torch.manual_seed(0)
    x = torch.randn(images, 3, 4, 5)
    x[:, :, 0] = x[:, :, -1, -1] = value
    edges = torch.tensor([-1.5, -1.0, -0.3, 0.0, 0.4, 1.0, 1.2, 1e30, NAN, INF])
    grid = torch.cartesian_prod(edges, edges)
    grad = torch.randn(images, len(grid))
    pooled = (x, grid, torch.randn(len(grid), 6), None, None, None, align_corners, 2, 1)
    assert_as_the_reference("pooled_readout", *pooled)
    assert_as_the_reference("pooled_readout_backward", grad, *pooled, [True] * 5)
    assert_as_the_reference("point_gather", x, grid, None, align_corners)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width"), [(4, 5), (1, 7), (16, 33)])
@pytest.mark.parametrize("shared", [True, False])
def test_each_way_is_the_reference(height, width, layout, shared, way):
    """Positions at the borders and beyond them among others; gradients laid out as their operands."""
    torch.manual_seed(0)
    x = torch.randn(5, 17, height, width).contiguous(memory_format=layout)
    grid = torch.cat([2.6 * torch.rand(40, 2) - 1.3, torch.cartesian_prod(*[torch.tensor([-1.0, 0, 1])] * 2)])
    shift = None if shared else 0.1 * torch.randn(5, 2)
    steps = 2 if height > 3 else 0
    columns = 17 * (steps + 1)
    for weight in (torch.randn(49, columns) / columns, torch.randn(columns, 49).t() / columns):
        call = (x, grid, weight, torch.randn(49), shift, None, True, 2, steps)
        assert_as_the_reference("pooled_readout", *call)
        mask = [True] * 4 + [not shared]
        assert_as_the_reference("pooled_readout_backward", torch.randn(5, 49) / 5, *call, mask)


def test_a_small_readout_is_the_op(monkeypatch):
    """Without the dispatcher: the same values, and derivatives of any order."""
    torch.manual_seed(0)
    shapes = ((2, 3, 6, 5), (4, 2), (4, 6), (4,), (2, 2))
    operands = [torch.rand(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    called = []
    forward, backward = (torch.ops.v1fast.pooled_readout, torch.ops.v1fast.pooled_readout_backward)
    readout = small_pooled.first(forward, backward, lambda *a: called.append(a), None, {})

    def function(read):
        return lambda *leaves: read(*leaves, None, True, 2, 1)

    assert torch.autograd.gradcheck(function(readout), operands, eps=1e-7, atol=1e-6)
    assert torch.autograd.gradgradcheck(function(readout), operands, eps=1e-7, atol=1e-5)
    torch.testing.assert_close(function(readout)(*operands), function(forward)(*operands))
    with torch.no_grad():
        torch.testing.assert_close(function(readout)(*operands), function(forward)(*operands))
    assert not called  # what computes a call that is not small


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("samples", "corners"), [(1, 2**16), (30, 22), (80, 1), (80, 40), (200, 70), (2**18, 2**16)])
def test_parts_of_any_size(samples, corners, shared, by_rows, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(small_pooled, "MOST", 0)
    if by_rows:
        monkeypatch.setattr(direct, "_is_faster", lambda *_: False)
    x = torch.randn(5, 4, 6, 7).contiguous(memory_format=torch.channels_last)
    grid = 3 * torch.rand(11, 2) - 1.5 if shared else 3 * torch.rand(5, 11, 2) - 1.5  # some outside the map
    call = (x, grid, torch.randn(11, 12), torch.randn(11), None, None, True, 2, 2)
    want = FALLBACK["pooled_readout"](*call)
    grad = torch.randn(5, 11)
    gradients = FALLBACK["pooled_readout_backward"](grad, *call, [True] * 5)
    monkeypatch.setattr(points, "SAMPLES", samples)
    monkeypatch.setattr(points, "POINTS", corners)
    torch.testing.assert_close(FALLBACK["pooled_readout"](*call), want)
    torch.testing.assert_close(FALLBACK["pooled_readout_backward"](grad, *call, [True] * 5), gradients)


def test_rows_without_an_embedding_bag():
    """Devices that may lack it, and float64, sum the rows by themselves."""
    torch.manual_seed(0)
    table, rows, weight = torch.randn(9, 5), torch.randint(0, 9, (7, 4), dtype=torch.int32), torch.randn(7, 4)
    torch.testing.assert_close(
        points.gather(table.double(), rows, weight.double()).float(), points.gather(table, rows, weight)
    )


# Noise ------------------------------------------------------------------------------------------------------------


DRAWS = {"torch": philox_normal.by_torch, "numpy and integers": philox_cpu.normals}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("offset", [0, 1, 2**40 + 3, 2**63 - 9])
@pytest.mark.parametrize("images", [0, 1, 2, 5])
def test_draws_are_those_of_the_reference(draw, offset, images, monkeypatch):
    monkeypatch.setattr(philox_normal, "BLOCKS", 8)
    monkeypatch.setattr(philox_cpu, "PART", 3)
    for index in (None, torch.tensor([2**32 - 1, 0, 3, 7, 2**31])):
        for seed in (0, -1, 2**63 - 1, -(2**63)):
            call = (torch.tensor([seed]), images, 5, index, offset)
            got, want = draw(*call), philox.philox_normal(*call)
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("images", "neurons"), [(1, 2**63 - 1), (2**40, 2**31 - 1), (2**62, 1)])
def test_more_draws_than_there_is_memory_for(images, neurons):
    """The error is torch's, as with every other kernel."""
    with pytest.raises(RuntimeError):
        philox_cpu.normals(torch.tensor([7]), images, neurons, None, 0)


@pytest.mark.parametrize("offset", [0, 1, 2**40 + 3])
@pytest.mark.parametrize("images", [1, 2, 5])
def test_few_draws_some_and_many_have_the_same_bits(images, offset, monkeypatch):
    call = (torch.tensor([7]), images, 11, None, offset)
    few = philox_cpu.normals(*call)
    monkeypatch.setattr(philox_cpu, "FEW", 0)
    some = philox_cpu.normals(*call)
    monkeypatch.setattr(philox_cpu, "SOME", 0)
    assert torch.equal(some, few)
    assert torch.equal(philox_cpu.normals(*call), few)


def test_no_float64_on_the_way(monkeypatch):
    """A device without it draws too. Every tensor that torch makes on the way is looked at."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for each in out if isinstance(out, (tuple, list)) else [out]:
                assert not isinstance(each, torch.Tensor) or each.dtype != torch.float64, function
            return out

    x, mu, w = torch.randn(3, 2, 4, 4), torch.rand(5, 2), torch.randn(5, 2)
    call = (x, mu, torch.rand(5, 2, 2), w, None, torch.rand(3, 2), None, torch.tensor([3]), None, 0, False, True)
    monkeypatch.setattr(philox_cpu, "normals", philox_normal.by_torch)  # as on another device
    with Watch():
        FALLBACK["gaussian_readout"](*call)
        FALLBACK["gaussian_readout_backward"](torch.randn(3, 5), *call, [True] * 4 + [False, True])


def test_one_neuron_at_one_position_in_many_images():
    """Its corners are the same in all images: a view of them would have a stride of 0."""
    torch.manual_seed(0)
    features, mu, weight = torch.randn(3, 4, 5, 6), torch.rand(1, 2) - 0.5, torch.randn(1, 4)
    assert_as_the_reference("gaussian_readout", features, mu, None, weight, *[None] * 5, 0, False, True)
    grad_output = torch.randn(3, 1)
    call = (grad_output, features, mu, None, weight, *[None] * 5, 0, False, True)
    mask = [True, True, False, True, False, False]
    backward = FALLBACK["gaussian_readout_backward"], _define.references["gaussian_readout_backward"]
    for got, want in zip(*(each(*call, mask) for each in backward), strict=True):  # a stride of one neuron is free
        torch.testing.assert_close(got, want)
    assert_as_the_reference("point_gather", features, mu, None, True)
    assert_as_the_reference("pooled_readout", features, mu, weight.repeat(1, 2), None, None, None, True, 2, 1)


def test_parts_of_a_huge_range_take_no_memory():
    parts = points.Slices(2**60, 2**20)
    assert len(parts) == 2**40
    assert parts[0].start == 0
    assert parts[2**40 - 1].stop == 2**60
    assert [(part.start, part.stop) for part in points.Slices(10, 4)] == [(0, 4), (4, 8), (8, 10)]
    assert list(points.Slices(0, 4)) == []


def refuse(*arguments):
    raise AssertionError("the op was called")


SMALL_FORMS = {
    "means": {"sigma": None},
    "means, with sigma": {},
    "noise": {"noise": (3, 5, 2)},
    "no bias, shift": {"noise": (3, 5, 2), "bias": None, "shift": (3, 2)},
    "shared noise": {"noise": (1, 5, 2), "share_noise": True, "sigma": (5, 2)},
    "uncorrelated": {"seed": torch.tensor([3]), "sigma": (5, 2), "image_offset": 3},
    "isotropic, one draw": {"seed": torch.tensor([3]), "sigma": (5, 1), "share_noise": True},
    "many neurons' indices": {"seed": torch.tensor([-3]), "neuron_index": torch.tensor([4, 1, 7, 2**32 - 1, 0])},
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("form", SMALL_FORMS.values(), ids=SMALL_FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_calls_of_every_form(dtype, form, align_corners, channels_last):
    torch.manual_seed(0)
    shapes = {"mu": (5, 2), "sigma": (5, 2, 2), "weight": (5, 4), "bias": (5,), "shift": None, "noise": None}
    given = {n: None if s is None else torch.randn(s, dtype=dtype) for n, s in (shapes | form).items() if n in shapes}
    features = torch.randn(3, 4, 6, 7, dtype=dtype)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    rest = [form.get(n) for n in ("seed", "neuron_index")]
    rest += [form.get("image_offset", 0), form.get("share_noise", False), align_corners]
    leaves = [t.requires_grad_() for name, t in given.items() if t is not None and name != "noise"]
    leaves.append(features.requires_grad_())
    found = []
    for read in (small.readout(refuse, refuse, {}), _define.references["gaussian_readout"]):
        out = read(features, *given.values(), *rest)
        found.append((out, torch.autograd.grad(out.sin().sum(), leaves, allow_unused=True, materialize_grads=True)))
    torch.testing.assert_close(found[0], found[1])
    for gradient, leaf in zip(found[0][1], leaves, strict=True):
        assert gradient.stride() == torch.empty_like(leaf).stride()


def test_small_calls_leave_all_else_to_the_op():
    """Calls that are large, illegal, of several dtypes, or that something besides autograd looks at."""
    called = []
    read = small.readout(lambda *a: called.append(1), refuse, {})
    x, mu, w = torch.zeros(1, 2, 3, 3), torch.zeros(4, 2), torch.zeros(4, 2)
    rest = [*[None] * 6, 0, False, True]
    for operands in (
        (x.expand(2**17, 2, 3, 3), mu, None, w),
        (x, mu, None, torch.zeros(4, 3)),
        (x, mu.double(), None, w),
        (x.bfloat16(), mu.bfloat16(), None, w.bfloat16()),
        (x[:0], mu, None, w),
        (x.to_mkldnn() if torch.backends.mkldnn.is_available() else x[:0], mu, None, w),
    ):
        read(*operands, *rest[1:])
    with torch.autocast("cpu", torch.bfloat16):
        read(x, mu, None, w, *rest[1:])
    read(x, mu, torch.zeros(4, 2), w, None, None, None, torch.tensor([1]), None, 2**63 - 1, False, True)
    assert len(called) == 8


# Matrices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["correlation", "cosine", "euclidean"])
@pytest.mark.parametrize("condensed", [True, False])
def test_blocks_of_any_size(method, condensed, monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(3, 40, 30)
    x[1] = torch.randint(0, 5, (40, 30))  # whole numbers among others
    x[0, 3], x[2, 5, 1], x[1, 7] = 2.0, NAN, 3.0
    for block, elements in ((128, 2**17), (7, 2**17), (16, 100), (1, 1)):
        monkeypatch.setattr(rdm, "BLOCK", block)
        monkeypatch.setattr(rdm_rows, "ELEMENTS", elements)
        assert_as_the_reference("rdm", x, None, method, condensed, "float32")


@pytest.mark.parametrize("columns", [300, 1000])
def test_products_of_rows(columns):
    """By oneDNN, where it is there: as accurate as MKL's, and alike for equal rows."""
    torch.manual_seed(0)
    few = torch.randn(3, columns)
    rows = few.repeat(44, 1)[:131]
    got = matmul.rows_by_rows(rows[None], rows[None])[0]
    assert largest(got.double() - rows.double() @ rows.double().T) <= columns * 5e-7
    if matmul.treats_rows_alike(rows[None], len(rows)):
        assert len(got.unique()) <= 6


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (3, 2), (17, 15), (100, 1000)], ids=str)
def test_products_of_bytes_are_exact(shape):
    if not matmul.multiplies_bytes():
        pytest.skip("torch has no fast product of bytes on this machine")
    torch.manual_seed(0)
    for rows in (torch.randint(-128, 128, shape), torch.full(shape, -128), torch.full(shape, 127)):
        few = rows[None].to(torch.int8)
        assert matmul.rows_by_rows(few, few[:, :9])[0].equal((rows @ rows[:9].T).int())


@pytest.mark.parametrize("method", ["correlation", "cosine"])
def test_long_sums_err_no_more_than_twice_as_much_as_those_of_torch(method):
    """Of responses of which the rounding errors of a sum do not cancel: sparse ones, and rows that share much."""
    torch.manual_seed(0)
    x = torch.randn(100, 1000)
    x = x.sub(2).relu() if method == "correlation" else x + torch.randn(1, 1000)
    exact = data.exact(x, method)
    got = FALLBACK["rdm"](x[None], None, method, False, "float32")[0]
    own = 1 - torch.corrcoef(x) if method == "correlation" else naive(x, method)
    assert rms(got - exact) <= 2 * rms(own - exact)


@pytest.mark.parametrize("method", ["correlation", "cosine"])
@pytest.mark.parametrize("rows", [20, 100, 140])
def test_small_counts(rows, method):
    torch.manual_seed(0)
    for least in (0, 2, -3):
        x = torch.poisson(torch.rand(1, rows, 300) * 3) + least
        assert_as_the_reference("rdm", x, None, method, False, "float32")
        assert_as_the_reference("rdm", x * 2.0**-70 + 0, None, method, True, "float32")


def integers(high, *shape):
    return torch.randint(0, high, shape).double()


def with_halves():
    """Whole numbers but for two values, whose parts behind the point add up to 0."""
    x = integers(7, 30, 300) - 3
    x[3, 4], x[5, 6] = 0.5, -0.5
    return x


FEW_VALUES = {
    "tenths": lambda: integers(90, 100, 300) / 10,
    "tenths about zero": lambda: (integers(90, 30, 300) - 40) / 10,
    "tenths far from zero": lambda: integers(50, 30, 300) / 10 + 1000,
    "sevenths from elsewhere": lambda: integers(30, 30, 300) / 7 + 0.1,
    "tiny": lambda: integers(9, 30, 300) * 2.0**-70,
    "counts far from zero": lambda: integers(9, 30, 300) + 3000,
    "more than a byte": lambda: integers(200, 30, 100) - 100,
    "hundreds": lambda: integers(240, 30, 100),
    "halves among whole numbers": with_halves,
    "rarely finer": lambda: torch.where(torch.rand(40, 300) < 1e-3, 0.25, integers(3, 40, 300)),
    "a value off its place": lambda: (integers(9, 40, 300) / 10).index_put(
        (torch.tensor(7),), torch.tensor(0.3).double() + 1e-5
    ),
    "near whole numbers": lambda: (integers(9, 40, 300) / 7).float().double() * 7,
    "four irregular": lambda: torch.tensor([0, 0.1, 0.25, 1.0]).double()[torch.randint(0, 4, (40, 300))],
    "five irregular": lambda: torch.rand(5).double()[torch.randint(0, 5, (40, 300))],
    "rectified": lambda: torch.randn(40, 300).double().relu(),
    "a row that is not finite": lambda: torch.cat((integers(9, 40, 300) / 10, torch.full((1, 300), NAN).double())),
    "repeated rows": lambda: (integers(9, 10, 300) / 10).repeat(3, 1),
}


@pytest.mark.parametrize("name", FEW_VALUES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_few_values_are_those_of_the_reference(dtype, name):
    """Their dissimilarities have its bits; where it finds none, there are none."""
    torch.manual_seed(0)
    x = FEW_VALUES[name]()[None].to(dtype)
    products = torch.float64 if dtype == torch.float64 else torch.float32
    places = whole_numbers.find([x], products)
    assert (few_values.find(x, products) is None) == (places is None)
    for method in ("correlation", "cosine", "euclidean"):
        call = (x, None, method, True, "float32")
        got, want = FALLBACK["rdm"](*call), _define.references["rdm"](*call)
        same = (
            {"rtol": 0, "atol": 0} if places is not None else {"rtol": 1e-5, "atol": 1e-5 * largest(want.nan_to_num())}
        )
        torch.testing.assert_close(got, want, equal_nan=True, **same)


def of_small(x, method="correlation", condensed=False):
    """Of [S, K] or [B, S, K], without the op."""
    shape = (1, *x.shape)[-3:]
    return small_rdm.compute_of(shape, x.dtype, method, condensed, "float32")(x)


@pytest.mark.parametrize(
    "shape", [(5, 3), (20, 100), (64, 256), (40, 500), (16, 2000), (100, 1000), (300, 200)], ids=str
)
@pytest.mark.parametrize("name", ["gaussian", "correlated", "sparse, heavy-tailed", "offset 1e2", "offset 1e4"])
def test_small_matrices_err_no_more_than_corrcoef(name, shape):
    x = data.make(name, *shape)
    if name.startswith("sparse"):
        x += 1e-3 * torch.randn(shape)
    got, exact = of_small(x), data.exact(x)
    assert got.equal(got.T)
    assert got.diagonal().eq(0).all()
    off = ~torch.eye(len(x), dtype=torch.bool)
    assert rms((got - exact)[off]) <= 2 * rms((1 - torch.corrcoef(x) - exact)[off])


def with_a(row, x):
    x[..., 2, :] = row
    return x


def with_one_not_finite(x):
    x[..., 2, 5], x[..., 4, 0] = NAN, INF
    return x


SMALL_MATRICES = {
    "normal": lambda x: x,
    "rectified": lambda x: x.relu(),
    "counts": lambda x: (x * 2).round(),
    "tenths": lambda x: (x * 20).round() / 10,
    "hundreds": lambda x: (x * 60).round(),
    "a constant row": lambda x: with_a(1.5, x),
    "a row of zeros": lambda x: with_a(0.0, x),
    "counts, a constant row": lambda x: with_a(3.0, (x * 2).round()),
    "counts, not finite": lambda x: with_one_not_finite((x * 2).round()),
    "not finite": with_one_not_finite,
    "tiny": lambda x: x * 1e-30,
    "huge": lambda x: x * 1e25,
    "far from zero": lambda x: x + 1000,
    "equal rows": lambda x: with_a(x[..., 1, :].clone(), x),
    "members of all kinds": lambda x: torch.cat(
        (x[:1], (x[1:2] * 2).round(), x[2:3].relu(), (x[3:] * 20).round() / 10)
    ),
}


@pytest.mark.once
@pytest.mark.parametrize("name", SMALL_MATRICES)
@pytest.mark.parametrize("shape", [(1, 70, 130), (4, 20, 50)], ids=str)
@pytest.mark.parametrize("method", ["correlation", "cosine", "euclidean"])
def test_small_matrices_are_those_of_the_reference(method, shape, name):
    """In the form for them, which refuses none of these, and of few values in every bit."""
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64)[: 1 if shape[0] == 1 else 2]:
        x = SMALL_MATRICES[name](torch.randn(shape, dtype=dtype))
        want = _define.references["rdm"](x, None, method, False, "float32")
        got = of_small(x[0] if len(x) == 1 else x, method)
        if got is None:  # a huge distance, a direction of nothing but rounding errors, or an undecided rounding
            assert method == "euclidean" or name.startswith(("counts", "members", "hundreds", "tenths"))
            continue
        got = got.view(want.shape)
        scale = 1 if method != "euclidean" else largest(want.nan_to_num(0, 0, 0))
        error = (2e-6 if name == "far from zero" else 5e-7) if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(got, want, rtol=0, atol=error * scale, equal_nan=True)
        if whole_numbers.find([x], dtype) is not None and len(x) == 1:
            assert got.equal(want) or "row" in name or "finite" in name
        condensed = of_small(x[0] if len(x) == 1 else x, method, True).view(len(x), -1)
        i, j = torch.triu_indices(*want.shape[1:], 1).unbind()
        torch.testing.assert_close(condensed, got[:, i, j], rtol=0, atol=0, equal_nan=True)


@pytest.mark.once
@pytest.mark.parametrize("name", [*SMALL_MATRICES])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("method", ["correlation", "cosine", "euclidean"])
def test_cross_rdm_of_every_kind(method, batch, name):
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64)[: 2 if batch == 1 else 1]:
        x = SMALL_MATRICES[name](torch.randn(4, 30, 150, dtype=dtype))[:batch]
        call = (x[:, :17], x[:, 17:], method, "float32")
        got, want = FALLBACK["cross_rdm"](*call), _define.references["cross_rdm"](*call)
        scale = 1 if method != "euclidean" else largest(want.nan_to_num(0, 0, 0))
        error = 1e-6 if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(got, want, rtol=0, atol=error * scale, equal_nan=True)
        if name in ("counts", "tenths"):
            assert got.equal(want)


@pytest.mark.once
@pytest.mark.parametrize("name", ["normal", "counts", "tiny", "a constant row", "not finite"])
@pytest.mark.parametrize("condensed", [True, False])
@pytest.mark.parametrize("method", ["correlation", "cosine", "euclidean"])
def test_gradients_of_small_matrices(method, condensed, name):
    backward = {n: _define.references[f"{n}_backward"] for n in ("rdm", "cross_rdm")}
    one = small_rdm.matrices(backward["rdm"], {})
    two = cross_rdm.pairs_of_sets(backward["cross_rdm"], {})
    torch.manual_seed(0)
    for shape in ((9, 40), (2, 3, 20, 100)):
        given = SMALL_MATRICES[name](torch.randn(shape))
        x, y = given.clone().requires_grad_(), given[..., 2:7, :].flip(-1).requires_grad_()

        def gradients(function, *leaves):
            out = function(*leaves)
            if out is None:  # tiny distances
                return ()
            torch.manual_seed(1)
            return torch.autograd.grad(out, leaves, torch.randn_like(out))

        def reference(x, *y):
            if y:
                found = _define.references["cross_rdm"](*map(small_rdm.by_batch, (x, *y)), method, "float32")
            else:
                found = _define.references["rdm"](small_rdm.by_batch(x), None, method, condensed, "float32")
            return found.view(*x.shape[:-2], *found.shape[1:])

        for call, leaves in (
            (lambda x: one(x, method, condensed, "float32"), (x,)),
            (lambda x, y: two(x, y, method, "float32"), (x, y)),
        ):
            for got, want in zip(gradients(call, *leaves), gradients(reference, *leaves), strict=False):
                torch.testing.assert_close(got, want, rtol=0, atol=3e-6 * largest(want.nan_to_num()), equal_nan=True)


def test_small_matrices_leave_all_else_to_the_op():
    """Calls that are large, illegal, of another dtype, or that something besides autograd looks at."""
    one, two = small_rdm.matrices(refuse, {}), cross_rdm.pairs_of_sets(refuse, {})
    x = torch.randn(5, 30)
    for given, method, accuracy in (
        (x.bfloat16(), "correlation", "float32"),
        (x, "poisson", "float32"),
        (x, "correlation", "high"),
        (x, "correlation", "low"),
        (x[0], "correlation", "float32"),
        (x[:, :0], "correlation", "float32"),
        (torch.randn(2000, 600), "correlation", "float32"),
        (x.numpy(), "correlation", "float32"),
        (x.to_sparse(), "correlation", "float32"),
        (torch.empty(5, 30, device="meta"), "correlation", "float32"),
    ):
        assert one(given, method, False, accuracy) is None
        assert two(given, given, method, accuracy) is None
    assert two(x, x[:, 1:], "correlation", "float32") is None
    assert two(x, x[None], "correlation", "float32") is None
    assert two(x, x.double(), "correlation", "float32") is None
    with torch.autocast("cpu", torch.bfloat16):
        assert one(x, "correlation", False, "float32") is None
        assert two(x, x, "correlation", "float32") is None
    assert small_rdm.matrices(refuse, {"cpu": refuse})(x, "correlation", False, "float32") is None


def test_a_far_larger_value_makes_others_equal():
    """Rectified responses are known from some of them to be of many values, unless there is such a value."""
    torch.manual_seed(0)
    x = torch.randn(20, 100).sub(0.5).relu()
    for size in (1.0, 1e3, 1e9):
        x[3, 4] = size
        found = whole_numbers.find([x[None]], torch.float32)
        assert (found is None) == (size < 1e9)
        got = FALLBACK["rdm"](x[None], None, "cosine", False, "float32")
        want = _define.references["rdm"](x[None], None, "cosine", False, "float32")
        torch.testing.assert_close(got, want, rtol=0, atol=3e-7, equal_nan=True)


@pytest.mark.parametrize("name", ["tenths", "counts far from zero", "rectified", "four irregular", "rarely finer"])
def test_common_matrices_are_not_searched_in_float64(name, monkeypatch):
    torch.manual_seed(0)
    x = FEW_VALUES[name]().float()[None]
    monkeypatch.setattr(whole_numbers, "find", None)
    for matrix in (x, torch.randn(1, 30, 300), torch.rand(1, 30, 300).bfloat16()):
        FALLBACK["rdm"](matrix, None, "correlation", False, "float32")


@pytest.mark.parametrize("method", ["correlation", "cosine", "euclidean"])
def test_memory_of_wide_rows_is_a_small_part_of_them(method):
    memory = importlib.import_module("v1fast.benchmarks.memory")
    for x in (torch.randn(1, 128, 2**17), torch.randint(0, 9, (1, 128, 2**17)).float()):
        FALLBACK["rdm"](x[..., :999], None, method, False, "float32")
        _, peak = memory.peak_of(lambda x=x: FALLBACK["rdm"](x, None, method, False, "float32"), "cpu")
        if peak is None:
            pytest.skip("this system does not let a process reset its high-water mark")
        assert peak <= x.nbytes / 2


def test_looking_at_some_rows_finds_the_places_of_all():
    torch.manual_seed(0)
    x = torch.randint(0, 90, (2, 50, 40)) / 10
    parts = [x[:, first : first + 7] for first in range(0, 50, 7)]
    for got, want in zip(*(whole_numbers.find(s, torch.float32) for s in (parts, [x])), strict=True):
        assert torch.equal(got, want)
