"""The op behind the metrics: sums over the trials of each image."""

import pytest
import torch

from v1fast import ops
from v1fast.contracts.trial_sums import SETS, which
from v1fast.ops.trial_sums import trial_products, trial_sums
from v1fast.reference.trial_sums import BITS

f32, f64 = torch.float32, torch.float64
native = pytest.mark.skipif(ops.loaded["native"] != "loaded", reason="the compiled kernels are not loaded")
T = 57
ORDER, COUNTS = torch.randperm(T, generator=torch.Generator().manual_seed(0))[:50], torch.tensor([1, 0, 23, 9, 17])


def operands(neurons, dtype=f64):
    x, y = torch.randn(2, T, neurons, dtype=dtype) + 5
    return x, y, torch.randn(2, neurons, dtype=f64), ORDER, COUNTS


def written_out(x, y, center):
    x, y = x.double(), y.double()
    a, b = x - center[0], y - center[1]
    terms = {"x": a, "y": b, "xx": a * a, "yy": b * b, "xy": a * b, "error": (x - y) ** 2}
    return {
        name: torch.stack([part.sum(0) for part in term[ORDER].split(COUNTS.tolist())]) for name, term in terms.items()
    }


NEURONS = pytest.mark.parametrize("neurons", [0, 1, 7, 16, 2047, 2055, 4101])  # around a vector, and blocks
FACTORS = torch.tensor([[0, 0], [0, 1], [2, 0], [1, 2], [2, 2]])
WEIGHTS = torch.randn(len(FACTORS), len(COUNTS), dtype=f64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [f32, f64], ids=str)
@NEURONS
def test_the_sums_are_those_of_the_trials(neurons, dtype):
    x, y, center, *groups = operands(neurons, dtype)
    want = written_out(x, y, center)
    wide = torch.randn(2 * T, 2 * neurons + 3, dtype=dtype)
    part = wide[::2, 2 : 2 + neurons]  # rows that are apart
    part.copy_(x)
    for names in SETS:
        mask, order = which(names)
        for given in (x, part, x.T.contiguous().T):
            got = trial_sums(given, y, center, *groups, mask)
            assert got.dtype == f64
            torch.testing.assert_close(got, torch.stack([want[name] for name in order]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [f32, f64], ids=str)
@NEURONS
def test_the_products_are_those_of_the_sums(neurons, dtype):
    x, y, center, *groups = operands(neurons, dtype)
    want = written_out(x, y, center)
    for names in SETS:
        mask, order = which(names)
        found = [torch.ones(len(COUNTS), neurons, dtype=f64), *(want[name] for name in order)]
        products = torch.stack([found[left] * found[right] for left, right in FACTORS.tolist()])
        expected = (WEIGHTS[:, :, None] * products).sum(1)
        got = trial_products(x, y, center, *groups, FACTORS, WEIGHTS, mask)
        scale = (WEIGHTS[:, :, None] * products).abs().sum(1)  # sums of different signs cancel
        assert got.dtype == f64
        assert ((got - expected).abs() <= 1e-12 * scale + 1e-12).all()


def test_the_smallest_set_is_chosen():
    assert which(("x",)) == (BITS["x"] | BITS["y"], ("x", "y"))
    assert which(("xx", "x"))[1] == ("x", "xx")
    assert which(("error", "yy"))[1] == SETS[-1]


@native
def test_threads_give_the_same_bits():
    arguments = operands(5000, f32)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append((trial_sums(*arguments, 63), trial_products(*arguments, FACTORS, WEIGHTS, 63)))
    finally:
        torch.set_num_threads(threads)
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


def test_nan_stays_in_its_neuron_and_image():
    x, y, *rest = operands(20)
    x[ORDER[5], 3] = torch.nan
    bad = trial_sums(x, y, *rest, 5).isnan()
    assert bad.sum() == 2
    assert bad[:, 2, 3].all()


def test_opcheck():
    torch.library.opcheck(torch.ops.v1fast.trial_sums, (*operands(4), 31))
    torch.library.opcheck(torch.ops.v1fast.trial_products, (*operands(4), FACTORS, WEIGHTS, 31))


@native
@pytest.mark.parametrize(
    "change",
    [
        {"y": torch.zeros(T, 5)},
        {"center": torch.zeros(2, 5, dtype=f64)},
        {"order": torch.tensor([0] * 49 + [T])},
        {"order": torch.tensor([0] * 49 + [-1])},
        {"counts": torch.tensor([51])},
        {"counts": torch.tensor([49])},
        {"counts": torch.tensor([51, -1])},
        {"counts": torch.tensor([2**62, 2**62, 2**62, 2**62, 50])},
        {"which": 64},
        {"which": 2},
    ],
)
def test_the_op_refuses_to_read_outside_a_tensor(change):
    names = ("x", "y", "center", "order", "counts", "which")
    arguments = dict(zip(names, (*operands(6, f32), 5), strict=True)) | change
    with pytest.raises((RuntimeError, ValueError)):
        trial_sums(*arguments.values())


@pytest.mark.parametrize(
    "change",
    [
        {"factors": torch.tensor([[0, 3]] * 5)},
        {"factors": torch.tensor([[-1, 0]] * 5)},
        {"factors": torch.zeros(5, 3, dtype=torch.int64)},
        {"factors": torch.zeros(5, 2)},
        {"factors": torch.zeros(4, 2, dtype=torch.int64)},
        {"weights": torch.zeros(5, 4, dtype=f64)},
        {"weights": torch.zeros(5, 5)},
        {"order": torch.tensor([0] * 49 + [T])},
        {"counts": torch.tensor([51])},
        {"which": 64},
    ],
)
def test_products_of_what_is_not_there_are_refused(change):
    names = ("x", "y", "center", "order", "counts", "factors", "weights", "which")
    arguments = dict(zip(names, (*operands(6, f32), FACTORS, WEIGHTS, 3), strict=True)) | change
    with pytest.raises((RuntimeError, ValueError)):
        trial_products(*arguments.values())


def test_nan_stays_in_the_totals_of_its_neuron():
    x, y, *rest = operands(20)
    x[ORDER[5], 3] = torch.nan
    bad = trial_products(x, y, *rest, FACTORS, WEIGHTS, 3).isnan()
    assert bad.nonzero().tolist() == [[1, 3], [3, 3]]
