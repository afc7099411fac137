"""Dissimilarity matrices: v1fast::rdm, rdm_out, cross_rdm, and the functions made of them.

Results are held against float64 pair by pair (tests/rdm_data.py), which shares nothing with the library: with
V1FAST_KERNELS= the same tests hold the reference to the same standard.
"""

import importlib
import itertools
import os
import re

import numpy as np
import pytest
import rdm_checks as checks
import rdm_data as data
import torch
from assertions import largest
from rdm_checks import (
    ALL_METHODS,
    METHODS,
    SHAPES,
    as_good_as_equal,
    assert_errs_no_more_than_corrcoef,
    condense,
    high_errors,
    noise_and_folds,
)

from v1fast import functional, ops
from v1fast.reference import rdm as reference

f64, f32, bf16, f16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
NATIVE = ops.loaded["native"] == "loaded"
native = pytest.mark.skipif(not NATIVE, reason="the compiled kernels are not loaded")
beside_the_reference = pytest.mark.skipif(
    os.environ.get("V1FAST_KERNELS") == "", reason="it would be held against itself"
)
# The kernel sums a row in the same order wherever it lies; torch, for the reference, does not.
SAME = {"rtol": 0, "atol": 0} if NATIVE else {"rtol": 1e-5, "atol": 1e-6}


# Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [f32, f64], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_matches_float64(method, dtype, shape):
    checks.check_matches_float64(method, dtype, shape)


@beside_the_reference
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
@pytest.mark.parametrize("method", reference.METHODS)
@pytest.mark.parametrize("dtype", [f32, f64], ids=str)
@pytest.mark.parametrize("accuracy", reference.ACCURACIES)
def test_matches_reference(shape, method, dtype, accuracy):
    checks.check_matches_reference(shape, method, dtype, accuracy)


@pytest.mark.parametrize("dtype", [f32, f64], ids=str)
def test_mahalanobis_is_the_quadratic_form_of_differences(dtype):
    x = torch.randn(13, 20, dtype=dtype) + 5
    precision = noise_and_folds("mahalanobis", 13, 20, dtype)["noise"]
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == f32 else {"rtol": 1e-12, "atol": 1e-12}
    for noise in (precision, precision + torch.randn(20, 20, dtype=dtype).triu(1), precision.diagonal().clone()):
        got = functional.rdm(x, method="mahalanobis", noise=noise)
        want = data.quadratic(x, x, noise if noise.dim() == 2 else noise.diag())
        torch.testing.assert_close(got.double(), want, **tolerance)
    without = functional.rdm(x, method="mahalanobis")
    assert without.equal(functional.rdm(x, method="euclidean"))


@pytest.mark.parametrize("with_noise", [True, False])
def test_crossnobis_takes_each_difference_from_other_folds(with_noise):
    checks.check_crossnobis_takes_each_difference_from_other_folds(with_noise)


def unequal_repeats(dtype=f64, columns=8):
    """Trials of 5 stimuli in 3 folds, 1 to 4 of each in each, shuffled; a precision for each fold."""
    counts = torch.randint(1, 5, (3, 5))
    folds = torch.arange(3)[:, None].expand(3, 5).flatten().repeat_interleave(counts.flatten())
    stimuli = torch.arange(5).repeat(3).repeat_interleave(counts.flatten())
    order = torch.randperm(len(folds))
    roots = torch.randn(3, columns, columns, dtype=dtype)
    precisions = roots @ roots.mT / columns + torch.eye(columns, dtype=dtype)
    return torch.randn(len(folds), columns, dtype=dtype) + 3, folds[order], stimuli[order], precisions


@pytest.mark.parametrize("dtype", [f32, f64], ids=str)
@pytest.mark.parametrize("per_fold", [False, True])
def test_crossnobis_of_trials_with_unequal_repeats(per_fold, dtype):
    x, folds, stimuli, precisions = unequal_repeats(dtype)
    noise = precisions if per_fold else precisions[0]
    given = {"method": "crossnobis", "folds": folds, "stimuli": stimuli}
    want = data.crossnobis_of_trials(x.double(), folds, stimuli, noise)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == f32 else {"rtol": 1e-12, "atol": 1e-12}
    got = functional.rdm(x, noise=noise, **given)
    assert got.dtype == dtype
    assert got.equal(got.T)
    torch.testing.assert_close(got.double(), want, **tolerance)
    far = functional.rdm(x + 1e4, noise=noise, **given)  # no digits are lost in the means of folds or of trials
    torch.testing.assert_close(far.double(), want, rtol=0, atol=2e-2 if dtype == f32 else 1e-10)
    both = functional.rdm(torch.stack([x, x.flip(1)]), noise=noise, **given)
    torch.testing.assert_close(both[0], got)
    # The labels' names and the order of the rows mean nothing.
    words = np.array(["run c", "run d", "run e"])[folds], np.array(["v", "w", "x", "y", "z"])[stimuli]
    array = functional.rdm(
        x.numpy(), method="crossnobis", noise=noise.numpy(), folds=words[0], stimuli=words[1].tolist()
    )
    torch.testing.assert_close(torch.from_numpy(array), got)
    assert functional.rdm(x, method="crossnobis", noise=noise, folds=words[0].tolist(), stimuli=words[1]).equal(got)
    if dtype == f64:
        operands = x.requires_grad_(), noise.requires_grad_(per_fold)
        assert torch.autograd.gradcheck(lambda a, p: functional.rdm(a, noise=p, **given), operands, fast_mode=True)


@pytest.mark.parametrize("per_fold", [False, True])
def test_crossnobis_of_trials_agrees_with_rows_in_order(per_fold):
    """With equal repeats, labels of stimuli may be given or left out."""
    x = torch.randn(15, 8, dtype=f64)
    folds, stimuli = torch.arange(15) // 5, torch.arange(15) % 5
    noise = unequal_repeats()[3] if per_fold else None
    got = [functional.rdm(x, method="crossnobis", noise=noise, folds=folds, stimuli=s) for s in (None, stimuli)]
    torch.testing.assert_close(*got, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("method", ["mahalanobis", "crossnobis", "crossnobis of trials", "poisson"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_stays_in_its_row_and_column(method, bad):
    x = torch.rand(12, 20, dtype=f64)
    given = noise_and_folds(method.partition(" ")[0], 12, 20)
    rows = torch.arange(12) if len(given) < 2 else torch.arange(12) % 4
    if len(given) == 2:
        given["folds"] = torch.arange(12) // 4
    if method == "crossnobis of trials":
        given["stimuli"] = rows
    want = functional.rdm(x, method=method.partition(" ")[0], **given)
    x[1, 3] = bad
    got = functional.rdm(x, method=method.partition(" ")[0], **given)
    keep = torch.arange(len(want)) != 1
    assert got[1].isnan().all()
    assert got[:, 1].isnan().all()
    torch.testing.assert_close(got[keep][:, keep], want[keep][:, keep], rtol=1e-12, atol=1e-13)


def test_labels_are_of_any_kind_along_one_axis():
    x = np.random.default_rng(0).random((4, 3))
    mixed = np.array([0, None, 0, None], dtype=object)  # which cannot be sorted
    want = functional.rdm(x, method="crossnobis", folds=[0, 1, 0, 1])
    assert np.array_equal(functional.rdm(x, method="crossnobis", folds=mixed), want)
    with pytest.raises(ValueError, match=re.escape("folds: want one label for each row, got (2, 2)")):
        functional.rdm(x, method="crossnobis", folds=[[0, 1], [0, 1]])


def test_poisson_is_the_symmetrised_divergence():
    checks.check_poisson_is_the_symmetrised_divergence()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [f32, f64], ids=str)
def test_cross_rdm_matches_float64(method, dtype):
    for s, t, n in ((3, 50, 40), (50, 3, 40), (320, 40, 999)):
        x, y = torch.randn(s, n, dtype=dtype) + 0.5, torch.randn(t, n, dtype=dtype) + 0.5
        error = largest(functional.cross_rdm(x, y, method=method).double() - data.exact(x, method, y))
        assert error < (2e-6 if dtype == f32 else 1e-14)


# Accuracy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", data.HARD)
def test_errs_no_more_than_corrcoef(name):
    assert_errs_no_more_than_corrcoef(name, data.make(name), 1.1 if NATIVE else 2)


@pytest.mark.parametrize("name", data.HARD)
def test_high_accuracy(name):
    absolute, relative = high_errors(data.make(name))
    assert largest(absolute) <= 1e-7
    if NATIVE:
        assert largest(relative) <= 1e-5


@native
def test_high_accuracy_takes_differences_where_float64_cancels():
    _, relative = high_errors(as_good_as_equal(30, 8000))
    assert largest(relative) <= 1e-6


def test_bfloat16_accuracy():
    checks.check_bfloat16_accuracy()


def test_float64_at_the_ends_of_its_range():
    checks.check_float64_at_the_ends_of_its_range()


def test_a_power_of_two_changes_no_bit():
    checks.check_a_power_of_two_changes_no_bit()


# What holds exactly ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 5), (45, 300), (700, 50)], ids=str)
@pytest.mark.parametrize("accuracy", reference.ACCURACIES)
@pytest.mark.parametrize("method", ALL_METHODS)
def test_symmetric_zero_on_the_diagonal_and_in_range(method, accuracy, shape):
    checks.check_symmetric_zero_on_the_diagonal_and_in_range(method, accuracy, shape)


@native
@pytest.mark.parametrize("shape", [(45, 300), (360, 2000), (700, 50), (2000, 20)], ids=str)
def test_threads_give_the_same_bits(shape):
    x = torch.randn(*shape)
    other = torch.randn(shape[0] // 2, shape[1])
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([functional.rdm(x, method=method) for method in METHODS])
            results[-1] += [functional.rdm(x, accuracy="high"), functional.cross_rdm(x, other)]
            results[-1].append(functional.rdm(x[: shape[0] // 4 * 4].reshape(4, -1, shape[1])))
    finally:
        torch.set_num_threads(threads)
    for found in results[1:]:
        assert all(a.equal(b) for a, b in zip(found, results[0], strict=True))


@pytest.mark.parametrize("value", [0.0, 0.1, 1.81, -3.3e7, 1e-30])
@pytest.mark.parametrize("accuracy", ["float32", "high"])
@pytest.mark.parametrize("dtype", [f32, f64], ids=str)
def test_a_constant_row_is_nan_in_its_row_and_column_alone(value, accuracy, dtype):
    checks.check_a_constant_row_is_nan_in_its_row_and_column_alone(value, accuracy, dtype)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("column", [0, 300, -1])
def test_a_value_that_is_not_finite_spoils_its_own_row_alone(method, bad, column):
    checks.check_a_value_that_is_not_finite_spoils_its_own_row_alone(method, bad, column)


def test_cosine_of_a_zero_row_is_nan_and_of_a_constant_row_is_not():
    checks.check_cosine_of_a_zero_row_is_nan_and_of_a_constant_row_is_not()


@pytest.mark.parametrize("dtype", [f32, f64], ids=str)
@pytest.mark.parametrize("condensed", [True, False])
def test_pairwise_is_corrcoef_of_what_two_rows_share(dtype, condensed):
    x = 1e3 * torch.randn(12, 40, dtype=dtype) + 1e5
    x[torch.rand(x.shape) < 0.3] = torch.nan
    x[5, 2:] = torch.nan  # too few for any other
    x[6, x[7].isfinite()] = 1.81  # constant where the seventh row is
    got = functional.rdm(x, nan="pairwise", condensed=condensed)
    assert got.dtype == dtype
    want = torch.full((12, 12), torch.nan, dtype=f64)
    for i in range(12):
        for j in range(12):
            a, b = (x[k, (x[i].isfinite() & x[j].isfinite())].double().numpy() for k in (i, j))
            if len(a) and np.ptp(a) > 0 and np.ptp(b) > 0:
                want[i, j] = 1 - np.corrcoef(a, b)[0, 1] if i != j else 0
    assert want[6, 7].isnan()
    want = (condense(want) if condensed else want).clamp(0, 2).to(dtype)
    tolerance = 1e-12 if dtype == f64 else 2e-7
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance, equal_nan=True)


def test_pairwise_without_gaps_is_the_same_as_ever():
    x = torch.randn(3, 20, 50, dtype=f64)
    torch.testing.assert_close(functional.rdm(x, nan="pairwise"), functional.rdm(x), rtol=0, atol=1e-14)


# Operands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [f32, f64, bf16, f16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_layouts(dtype, method):
    x = checks.check_layouts(dtype, method, SAME)
    assert functional.rdm(x[:1].expand(5, -1)).max() <= 1e-12


def test_integers_and_bool_are_float32():
    x = torch.randint(0, 9, (7, 50))
    for dtype in (torch.int64, torch.int32, torch.uint8):
        assert functional.rdm(x.to(dtype)).equal(functional.rdm(x.float()))
    assert functional.rdm(x > 4).equal(functional.rdm((x > 4).float()))


def test_numpy_in_numpy_out():
    x = torch.randn(9, 40)
    for array in (x.numpy(), x.numpy()[::-1], np.asfortranarray(x.numpy()), x.double().numpy(), x.half().numpy()):
        got = functional.rdm(array)
        assert isinstance(got, np.ndarray)
        torch.testing.assert_close(torch.from_numpy(got), functional.rdm(torch.from_numpy(array.copy())), **SAME)
    read_only = x.numpy().copy()
    read_only.flags.writeable = False
    assert np.array_equal(functional.rdm(read_only), functional.rdm(x.numpy()))
    assert isinstance(functional.cross_rdm(x.numpy(), x.numpy()), np.ndarray)
    folds = np.arange(9) % 3
    got = functional.rdm(x.numpy(), method="crossnobis", folds=folds, noise=np.ones(40, np.float32))
    assert got.shape == (3, 3)


@pytest.mark.parametrize("method", ALL_METHODS)
@pytest.mark.parametrize("condensed", [True, False])
def test_leading_dimensions_are_matrices_of_their_own(method, condensed):
    x = torch.rand(3, 2, 12, 20, dtype=f64)
    options = {"method": method, "condensed": condensed, **noise_and_folds(method, 12, 20)}
    got = functional.rdm(x, **options)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(got[i, j], functional.rdm(x[i, j], **options))
    assert functional.rdm(x[:0], **options).shape == (0, *got.shape[1:])
    y = torch.rand(3, 2, 5, 20, dtype=f64)
    if method in METHODS:
        cross = functional.cross_rdm(x, y, method=method)
        torch.testing.assert_close(cross[2, 1], functional.cross_rdm(x[2, 1], y[2, 1], method=method))


def test_no_rows_and_one_row():
    checks.check_no_rows_and_one_row()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("condensed", [True, False])
def test_writing_into_memory_that_is_there(method, condensed):
    checks.check_writing_into_memory_that_is_there(method, condensed)


@native
def test_memory_beside_the_output_is_bounded():
    memory = importlib.import_module("v1fast.benchmarks.memory")
    for x in (torch.randn(2500, 3000), torch.randn(200, 100_000), torch.randn(1200, 3000, dtype=f64)):
        matrix, peak = memory.peak_of(lambda x=x: functional.rdm(x), "cpu")
        if peak is None:
            pytest.skip("this system does not let a process reset its high-water mark")
        assert peak <= matrix.nbytes + 32 * 2**20


# Derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condensed", [True, False])
@pytest.mark.parametrize("method", ALL_METHODS)
def test_gradcheck_and_gradgradcheck(method, condensed):
    checks.check_gradcheck_and_gradgradcheck(method, condensed)


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck_of_cross_rdm(method):
    checks.check_gradcheck_of_cross_rdm(method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_gradient_errs_no_more_than_torch(method, offset):
    checks.check_gradient_errs_no_more_than_torch(method, offset)


LARGEST = (333, 1900)
BACKWARD_SHAPES = [*(shape for shape in SHAPES[1:-1] if shape != LARGEST), (450, 30)]  # the last: two tiles of rows
BACKWARD = [*itertools.product([f32, f64, bf16], [True, False], BACKWARD_SHAPES)]
BACKWARD += [(f32, True, LARGEST), (f64, False, LARGEST), (bf16, True, LARGEST)]
OTHERS = [(f32, False, LARGEST), (f64, True, LARGEST), (bf16, False, LARGEST)]
BACKWARD += [pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS]


@native  # the reference would be held against itself
@pytest.mark.parametrize(("dtype", "condensed", "shape"), BACKWARD, ids=str)
@pytest.mark.parametrize("method", reference.METHODS)
def test_backward_matches_reference(shape, method, dtype, condensed):
    """The kernel and the reference agree to rounding on the same call, through the ops themselves."""
    members = 1 if shape == LARGEST else 2
    x, y = (torch.rand(2, members, *shape) + 0.1).to(dtype)
    x[0, 0] = torch.nan
    for accuracy, second in {("float32", None), ("high", None), ("float32", y if method == "euclidean" else None)}:
        matrix = reference.rdm(x, second, method, condensed, accuracy)
        given = (torch.randn_like(matrix), matrix, x, second, method, condensed, accuracy, [True, True])
        assert_agree(ops.rdm.rdm_backward(*given), reference.rdm_backward(*given), dtype)
    other = y[:, : max(1, shape[0] // 3)]
    for pair in ((x, other), (other, x)):
        matrix = reference.cross_rdm(*pair, method, "float32")
        for mask in ([True, True], [True, False], [False, True]):
            given = (torch.randn_like(matrix), matrix, *pair, method, "float32", mask)
            assert_agree(ops.rdm.cross_rdm_backward(*given), reference.cross_rdm_backward(*given), dtype)


def assert_agree(got, want, dtype):
    """Gradients agree to rounding; where none is wanted there is none."""
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype == dtype
        tolerance = {f32: 3e-6, f64: 1e-13, bf16: 1e-2}[dtype] * max(1, largest(b))
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [f32, f64, bf16, f16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_any_layout(dtype, method):
    checks.check_gradients_of_any_layout(dtype, method)


@pytest.mark.parametrize("condensed", [True, False])
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 1, 4), (2, 2, 1), (1, 3, 1)], ids=str)
def test_gradients_of_next_to_nothing(shape, condensed):
    """No matrices, no rows, one row, one column."""
    for method in METHODS:
        x = torch.randn(shape).requires_grad_()
        matrix = functional.rdm(x, method=method, condensed=condensed)
        (gradient,) = torch.autograd.grad(matrix, x, torch.ones_like(matrix))
        assert gradient.shape == x.shape
        if shape[1] < 2 or (shape[2] == 1 and method == "correlation"):
            assert gradient.eq(0).all()
        y = torch.randn(shape[0], 2, shape[2]).requires_grad_()
        cross = functional.cross_rdm(x, y, method=method)
        found = torch.autograd.grad(cross, (x, y), torch.ones_like(cross))
        assert all(g.shape == t.shape and g.isfinite().all() for g, t in zip(found, (x, y), strict=True))


@native
def test_a_gradient_that_is_not_needed_is_not_computed():
    x, y = torch.randn(2, 1, 6, 9)
    for mask in ([True, False], [False, True]):
        matrix = ops.rdm.cross_rdm(x, y, "cosine", "float32")
        found = ops.rdm.cross_rdm_backward(matrix, matrix, x, y, "cosine", "float32", mask)
        assert [g.numel() > 0 for g in found] == mask
        matrix = ops.rdm.rdm(x, y, "euclidean", False, "float32")
        found = ops.rdm.rdm_backward(matrix, None, x, y, "euclidean", False, "float32", mask)
        assert [g.numel() > 0 for g in found] == mask


@native
def test_threads_give_the_same_gradient():
    x, y = torch.randn(2, 500, 700)
    weight = torch.randn(500, 500)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found = []
            for method in METHODS:
                leaves = [t.clone().requires_grad_() for t in (x, y)]
                found += torch.autograd.grad(functional.rdm(leaves[0], method=method), leaves[0], weight)
                found += torch.autograd.grad(functional.cross_rdm(*leaves, method=method), leaves, weight)
            results.append(found)
    finally:
        torch.set_num_threads(threads)
    for found in results[1:]:
        assert all(a.equal(b) for a, b in zip(found, results[0], strict=True))


@native
def test_memory_of_a_gradient_is_bounded():
    memory = importlib.import_module("v1fast.benchmarks.memory")
    for rows, columns in ((2500, 3000), (200, 100_000)):
        x = torch.randn(rows, columns, requires_grad=True)
        matrix, grad = functional.rdm(x), torch.randn(rows, rows)
        (gradient,), peak = memory.peak_of(
            lambda m=matrix, x=x, g=grad: torch.autograd.grad(m, x, g, retain_graph=True), "cpu"
        )
        if peak is None:
            pytest.skip("this system does not let a process reset its high-water mark")
        assert peak <= gradient.nbytes + 48 * 2**20


def test_reference_backward_is_the_derivative_of_reference_forward():
    for method in reference.METHODS:
        x, y = torch.rand(2, 2, 5, 7, dtype=f64)
        second = y.requires_grad_() if method == "euclidean" else None
        for operands in [(x, None)] + ([(x, second)] if second is not None else []):
            leaves = [t.detach().requires_grad_() for t in operands if t is not None]
            given = (*leaves, None)[:2]
            out = reference.rdm(*given, method, False, "float32")
            grad = torch.randn_like(out)
            want = torch.autograd.grad(out, leaves, grad)
            got = reference.rdm_backward(grad, out.detach(), *given, method, False, "float32", [True, True])
            for a, b in zip(got, want, strict=False):
                torch.testing.assert_close(a.detach(), b)


@pytest.mark.parametrize("method", METHODS)
def test_an_invalid_row_gets_no_gradient_and_gives_none(method):
    checks.check_an_invalid_row_gets_no_gradient_and_gives_none(method)


def test_pairwise_has_a_derivative():
    x = torch.randn(5, 12, dtype=f64)
    x[torch.rand(x.shape) < 0.2] = torch.nan
    present = x.isfinite()

    def function(values):
        gaps = torch.full(x.shape, torch.nan, dtype=f64)
        return functional.rdm(gaps.masked_scatter(present, values), nan="pairwise", condensed=True)

    assert torch.autograd.gradcheck(function, (x[present].requires_grad_(),), atol=1e-5)


# torch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condensed", [True, False])
def test_opcheck(condensed):
    checks.check_opcheck(condensed)


@pytest.mark.parametrize("method", ["correlation", "poisson"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_fullgraph(method, dynamic):
    checks.check_compiles_fullgraph(method, dynamic)


def test_function_transforms():
    x = torch.rand(3, 5, 7, dtype=f64)
    want = torch.stack([functional.rdm(member) for member in x])
    assert torch.vmap(functional.rdm)(x).equal(want)
    jacobian = torch.func.jacrev(functional.rdm)(x[0])
    torch.testing.assert_close(jacobian, torch.autograd.functional.jacobian(functional.rdm, x[0]))
    torch.testing.assert_close(torch.func.jacfwd(functional.rdm)(x[0]), jacobian)


def test_autocast_casts_nothing():
    checks.check_autocast_casts_nothing()


# Bad input -------------------------------------------------------------------------------------------------------

BAD = {
    "responses: want [..., rows, neurons >= 1], got (5,)": {"responses": torch.ones(5)},
    "responses: want [..., rows, neurons >= 1], got (5, 0)": {"responses": torch.ones(5, 0)},
    "responses: want one of float64, float32, bfloat16, float16, got complex64": {
        "responses": torch.ones(5, 3, dtype=torch.complex64)
    },
    "method: want one of correlation, cosine, euclidean, mahalanobis, crossnobis, poisson, got 'spearman'": {
        "method": "spearman"
    },
    "accuracy: want one of float32, high, bfloat16, got 'low'": {"accuracy": "low"},
    "nan: want one of propagate, pairwise, got 'omit'": {"nan": "omit"},
    'nan: want "propagate" beside method \'cosine\', got "pairwise"': {"nan": "pairwise", "method": "cosine"},
    "noise: want None beside method 'correlation', got a tensor": {"noise": torch.ones(4)},
    "noise: want [N, N] or [N] with N = 4, got (5, 5)": {"noise": torch.ones(5, 5), "method": "mahalanobis"},
    "folds: want None beside method 'correlation', got a tensor": {"folds": torch.ones(6)},
    "folds: want [R] = (6,), the fold of each row of responses, got None": {"method": "crossnobis"},
    "folds: want [R] = (6,), the fold of each row of responses, got (5,)": {
        "method": "crossnobis",
        "folds": torch.ones(5),
    },
    "folds: want at least 2 with the same number of rows, or stimuli beside them, got [6] rows": {
        "method": "crossnobis",
        "folds": torch.zeros(6),
    },
    "folds: want at least 2 with the same number of rows, or stimuli beside them, got [2, 4] rows": {
        "method": "crossnobis",
        "folds": torch.tensor([0, 0, 1, 1, 1, 1]),
    },
    "stimuli: want None beside method 'poisson', got a tensor; average_repeats averages them": {
        "method": "poisson",
        "stimuli": torch.ones(6),
    },
    "stimuli: want [R] = (6,), the stimulus of each row of responses, got (5,)": {
        "method": "crossnobis",
        "folds": torch.tensor([0, 0, 0, 1, 1, 1]),
        "stimuli": torch.ones(5),
    },
    "stimuli: want each in every fold, got none of stimulus 2 in fold 1, counted from 0": {
        "method": "crossnobis",
        "folds": torch.tensor([0, 0, 0, 1, 1, 1]),
        "stimuli": torch.tensor([0, 1, 2, 1, 1, 0]),
    },
    "folds: want at least 2, got 1": {"method": "crossnobis", "folds": torch.ones(6), "stimuli": torch.ones(6)},
    "noise: want one for each fold, [F, N, N] = (2, 4, 4), got (3, 4, 4)": {
        "method": "crossnobis",
        "folds": torch.tensor([0, 0, 0, 1, 1, 1]),
        "noise": torch.ones(3, 4, 4),
    },
    "noise: want precision matrices that have an inverse, got a singular one for fold 1": {
        "method": "crossnobis",
        "folds": torch.tensor([0, 0, 0, 1, 1, 1]),
        "noise": torch.stack([torch.eye(4), torch.zeros(4, 4)]),
    },
    "noise: want device cpu, that of responses, got meta": {
        "method": "mahalanobis",
        "noise": torch.ones(4, 4, device="meta"),
    },
    "noise: want device meta, that of responses, got cpu": {
        "responses": torch.ones(6, 4, device="meta"),
        "method": "crossnobis",
        "folds": torch.tensor([0, 0, 0, 1, 1, 1]),
        "noise": torch.ones(2, 4, 4),
    },
    "folds: want labels, whose values count, got a tensor without values, on device meta": {
        "method": "crossnobis",
        "folds": torch.ones(6, device="meta"),
    },
}


@pytest.mark.parametrize("message", BAD)
def test_rejects_bad_operands(message):
    arguments = {"responses": torch.rand(6, 4), **BAD[message]}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        functional.rdm(arguments.pop("responses"), **arguments)


@pytest.mark.parametrize("method", ALL_METHODS)
def test_sizes_on_meta(method):
    x, noise = torch.ones(6, 4, device="meta"), torch.ones(2, 4, 4, device="meta")
    options = {"mahalanobis": [{"noise": noise[0]}, {"noise": noise[0, 0]}], "crossnobis": [{}, {"noise": noise}]}
    for given in options.get(method, [{}]):
        folds = torch.tensor([0, 0, 0, 1, 1, 1]) if method == "crossnobis" else None
        found = functional.rdm(x, method=method, folds=folds, **given)
        assert found.is_meta
        assert found.shape == ((6, 6) if folds is None else (3, 3))


def test_rejects_bad_operands_of_the_others():
    x = torch.rand(6, 4)
    for y in (torch.rand(6, 5), torch.rand(2, 6, 4)):
        with pytest.raises(ValueError, match=r"y: want \[..., T, N\] = \(6, 4\)|\(2, 6, 4\)|y: want"):
            functional.cross_rdm(x, y)
    for out in (torch.empty(6, 5), torch.empty(6, 6, dtype=f64), torch.empty(6, 12)[:, ::2], torch.empty(15)):
        with pytest.raises(ValueError, match="out: want"):
            functional.rdm_out(x, out)
    with pytest.raises(ValueError, match="method: want one of correlation, cosine, euclidean, got 'poisson'"):
        functional.rdm_out(x, torch.empty(6, 6), method="poisson")


@native
def test_the_op_itself_refuses_to_read_or_write_outside_a_tensor():
    x, m = torch.rand(1, 6, 4), torch.rand(1, 6, 6)
    for call in (
        lambda: torch.ops.v1fast.rdm(x, x[:, :5], "euclidean", False, "float32"),
        lambda: torch.ops.v1fast.rdm(x, x[..., :3], "euclidean", False, "float32"),
        lambda: torch.ops.v1fast.rdm(x[0], None, "cosine", False, "float32"),
        lambda: torch.ops.v1fast.rdm(x, None, "angle", False, "float32"),
        lambda: torch.ops.v1fast.cross_rdm(x, x[..., :3], "cosine", "float32"),
        lambda: torch.ops.v1fast.rdm_backward(x[..., :3], None, x, None, "euclidean", False, "float32", [True, True]),
        lambda: torch.ops.v1fast.rdm_backward(m, None, x, None, "cosine", False, "float32", [True, True]),
        lambda: torch.ops.v1fast.rdm_backward(m.double(), m, x, None, "cosine", False, "float32", [True, True]),
        lambda: torch.ops.v1fast.rdm_backward(m, m[:, 1:], x, None, "cosine", False, "float32", [True, True]),
        lambda: torch.ops.v1fast.cross_rdm_backward(m, m, x, x[:, 1:], "cosine", "float32", [True, True]),
        lambda: torch.ops.v1fast.cross_rdm_backward(m, m, x, x, "cosine", "float32", [True]),
        lambda: torch.ops.v1fast.rdm_out(x, None, "cosine", False, "float32", torch.empty(1, 6, 5)),
        lambda: torch.ops.v1fast.rdm_out(x, None, "cosine", True, "float32", torch.empty(1, 14)),
        lambda: torch.ops.v1fast.rdm_out(x, None, "cosine", False, "float32", torch.empty(1, 6, 6, dtype=f64)),
    ):
        with pytest.raises(RuntimeError):
            call()
