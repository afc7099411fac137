"""How dissimilarity matrices are held against float64 and torch.corrcoef, on whatever device."""

import numpy as np
import pytest
import rdm_data as data
import torch
from assertions import assert_as_accurate, largest
from op_checks import opcheck

from v1fast import functional, ops
from v1fast.reference import rdm as reference

f64, f32 = torch.float64, torch.float32

METHODS = ("correlation", "cosine", "euclidean")
ALL_METHODS = (*METHODS, "mahalanobis", "crossnobis", "poisson")
# Around a panel of rows, a chain and a block of columns, a tile and a group of tiles.
SHAPES = ((1, 3), (2, 1), (5, 3), (16, 112), (17, 113), (40, 897), (300, 200), (333, 1900), (1800, 30))


def off_diagonal(matrix):
    return matrix[..., ~torch.eye(matrix.shape[-1], dtype=torch.bool)]


def condense(matrix):
    i, j = torch.triu_indices(*matrix.shape[-2:], 1).unbind()
    return matrix[..., i, j]


def layouts(x):
    rows, columns = x.shape
    yield "column after column", x.T.contiguous().T
    yield "every other column", x.repeat_interleave(2, 1)[:, ::2]
    yield "every third row", x.repeat_interleave(3, 0)[::3]
    yield "a window", torch.nn.functional.pad(x, (3, 2, 1, 4))[1 : 1 + rows, 3 : 3 + columns]


def assert_errs_no_more_than_corrcoef(name, x, share):
    """On hard data, errors are at most ``share`` times corrcoef's, and no more than the kernels promise."""
    check_error_beside_corrcoef(x, share)
    check_promised_error(name, x)


def largest_error(x):
    return largest(off_diagonal(functional.rdm(x)).double() - off_diagonal(data.exact(x)))


def check_error_beside_corrcoef(x, share):
    exact = off_diagonal(data.exact(x))
    theirs = largest(off_diagonal(1 - torch.corrcoef(x)).double() - exact)
    unit = torch.finfo(f32).eps * exact.max().item()
    if theirs == theirs:  # it gives NaN where squares leave the range of float32
        assert largest_error(x) <= share * theirs + unit


def check_promised_error(name, x):
    if name.startswith(("gaussian", "correlated", "scale")):
        assert largest_error(x) <= 3e-7
    if name == "offset 1e4":
        assert largest_error(x) <= 1e-7


def high_errors(x):
    """Absolute and relative errors of every pair."""
    exact = off_diagonal(data.exact(x))
    error = off_diagonal(functional.rdm(x, accuracy="high")).double() - exact
    return error, error / exact


def as_good_as_equal(rows, columns):
    """Rows so near each other that the float64 product cancels."""
    x = (torch.randn(1, columns, dtype=f64) + 1e-6 * torch.randn(rows, columns, dtype=f64)).float()
    assert data.exact(x).max() < 1e-11
    return x


def naive(x, method):
    """What torch makes of the definition in the dtype of x."""
    if method == "euclidean":
        x = x - x.mean(0)
        own = x.square().sum(-1)
        return (own[:, None] + own - 2 * x @ x.T) / x.shape[-1]
    if method == "correlation":
        x = x - x.mean(-1, keepdim=True)
    u = x / x.norm(dim=-1, keepdim=True)
    return 1 - u @ u.T


def noise_and_folds(method, rows, columns, dtype=f64):
    """Keyword arguments of functional.rdm."""
    root = torch.randn(columns, columns, dtype=dtype)
    precision = root @ root.T / columns + torch.eye(columns, dtype=dtype)
    if method == "mahalanobis":
        return {"noise": precision}
    if method == "crossnobis":
        return {
            "noise": precision,
            "folds": torch.arange(3).repeat_interleave(rows // 3)[torch.arange(rows) * 5 % rows],
        }
    return {}


def check_matches_float64(method, dtype, shape):
    x = torch.randn(*shape, dtype=dtype) + (0.3 if shape[1] > 1 else 0)
    if shape[1] == 1 and method == "correlation":
        assert functional.rdm(x).isnan().all()  # a row of one value is constant
        return
    want = data.exact(x, method)
    got = functional.rdm(x, method=method)
    assert got.dtype == dtype
    if dtype == f32:
        assert_as_accurate(got, naive(x, method), want, method)
    else:
        assert largest(got - want) <= 1e-14 * max(1, largest(want))
    assert functional.rdm(x, method=method, condensed=True).equal(condense(got))


def check_matches_reference(shape, method, dtype, accuracy):
    """The kernel and the reference agree to rounding on the same call, through the ops themselves."""
    x = torch.rand(2, *shape, dtype=dtype)
    x[0] += 1
    y = torch.rand(2, *shape, dtype=dtype) if method == "euclidean" else None
    tolerance = 1e-2 if accuracy == "bfloat16" else 2e-6 if dtype == f32 else 1e-13
    for second in {None, y}:
        got = ops.rdm.rdm(x, second, method, False, accuracy)
        want = reference.rdm(x, second, method, False, accuracy)
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)
    other = torch.rand(2, max(1, shape[0] // 3), shape[1], dtype=dtype)
    for pair in ((x, other), (other, x)):
        got, want = (f(*pair, method, accuracy) for f in (ops.rdm.cross_rdm, reference.cross_rdm))
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)


def check_crossnobis_takes_each_difference_from_other_folds(with_noise):
    x = torch.randn(15, 8, dtype=f64) + 3
    given = noise_and_folds("crossnobis", 15, 8)
    precision = given["noise"] if with_noise else torch.eye(8, dtype=f64)
    got = functional.rdm(x, method="crossnobis", folds=given["folds"], noise=precision if with_noise else None)
    torch.testing.assert_close(got, data.crossnobis(x, given["folds"], precision), rtol=1e-12, atol=1e-12)
    assert got.shape == (5, 5)
    assert (got < 0).any()


def check_poisson_is_the_symmetrised_divergence():
    x = torch.poisson(4 * torch.rand(12, 30, dtype=f64))
    got = functional.rdm(x, method="poisson")
    torch.testing.assert_close(got, data.poisson(x), rtol=1e-12, atol=1e-13)
    got = functional.rdm(x, method="poisson", prior_lambda=2.0, prior_weight=0.5)
    torch.testing.assert_close(got, data.poisson(x, 2.0, 0.5), rtol=1e-12, atol=1e-13)


def check_bfloat16_accuracy():
    x = data.make("gaussian")
    error = largest(off_diagonal(functional.rdm(x, accuracy="bfloat16")).double() - off_diagonal(data.exact(x)))
    assert error <= 1e-3


def check_float64_at_the_ends_of_its_range():
    x = torch.randn(20, 300, dtype=f64)
    for scale in (2.0**-1000, 2.0**900):
        for method in ("correlation", "cosine"):
            torch.testing.assert_close(functional.rdm(scale * x, method=method), functional.rdm(x, method=method))


def check_a_power_of_two_changes_no_bit():
    x = torch.randn(50, 300)
    for method in ("correlation", "cosine"):
        want = functional.rdm(x, method=method)
        for exponent in (-60, -3, 5, 60):
            assert functional.rdm(x * 2.0**exponent, method=method).equal(want)
    assert functional.rdm(x * 2.0**10, method="euclidean").equal(functional.rdm(x, method="euclidean") * 2.0**20)


def check_symmetric_zero_on_the_diagonal_and_in_range(method, accuracy, shape):
    rows = shape[0] // 3 * 3 or 3
    x = torch.rand(rows, shape[1]) + 0.1
    if rows > 4:
        x[4], x[3] = -x[1], x[1] + 1e-6 * x[2]  # opposite, and nearly equal
    x = x.abs() if method == "poisson" else x
    m = functional.rdm(x, method=method, accuracy=accuracy, **noise_and_folds(method, rows, shape[1], f32))
    assert m.equal(m.T)
    assert m.diagonal().eq(0).all()
    assert not m.isnan().any()
    if method in ("correlation", "cosine"):
        assert ((m >= 0) & (m <= 2)).all()
    if method == "euclidean":
        assert (m >= 0).all()


def check_a_constant_row_is_nan_in_its_row_and_column_alone(value, accuracy, dtype):
    x = torch.randn(40, 777, dtype=dtype)
    x[7] = value
    m = functional.rdm(x, accuracy=accuracy)
    want = torch.zeros(40, 40, dtype=torch.bool)
    want[7], want[:, 7] = True, True
    assert m.isnan().equal(want)
    others = torch.arange(40) != 7
    torch.testing.assert_close(m[others][:, others], functional.rdm(x[others], accuracy=accuracy))
    assert functional.rdm(x, condensed=True).isnan().equal(condense(want))
    assert functional.cross_rdm(x, x[:9]).isnan().equal(want[:, :9])


def check_a_value_that_is_not_finite_spoils_its_own_row_alone(method, bad, column):
    x = torch.randn(20, 777)
    x[3, column] = bad
    m = functional.rdm(x, method=method)
    others = torch.arange(20) != 3
    assert m[3].isnan().all()
    assert m[:, 3].isnan().all()
    torch.testing.assert_close(m[others][:, others], functional.rdm(x[others], method=method))


def check_cosine_of_a_zero_row_is_nan_and_of_a_constant_row_is_not():
    x = torch.randn(6, 30)
    x[1], x[2] = 0, 4
    m = functional.rdm(x, method="cosine")
    assert m[1].isnan().all()
    assert m[[0, 2, 3, 4, 5]][:, [0, 2, 3, 4, 5]].isfinite().all()


def check_no_rows_and_one_row():
    assert functional.rdm(torch.ones(0, 5)).shape == (0, 0)
    assert functional.rdm(torch.ones(0, 5), condensed=True).shape == (0,)
    assert functional.rdm(torch.randn(1, 5)).equal(torch.zeros(1, 1))
    assert functional.rdm(torch.randn(1, 5), condensed=True).shape == (0,)
    assert functional.cross_rdm(torch.ones(0, 5), torch.ones(3, 5)).shape == (0, 3)


def check_writing_into_a_tensor(method, condensed):
    """Returns the responses and the dissimilarities."""
    x = torch.randn(4, 30, 50, requires_grad=True)
    want = functional.rdm(x.detach(), method=method, condensed=condensed)
    out = torch.full_like(want, torch.nan)
    with torch.no_grad():
        assert functional.rdm_out(x, out, method=method, condensed=condensed) is out
    assert out.equal(want)
    with pytest.raises(ValueError, match="use rdm, or torch"):
        functional.rdm_out(x, out, method=method, condensed=condensed)
    return x, want


def check_writing_into_memory_that_is_there(method, condensed):
    x, want = check_writing_into_a_tensor(method, condensed)
    array = np.full(tuple(want.shape), np.nan, np.float32)
    assert functional.rdm_out(x.detach().numpy(), array, method=method, condensed=condensed) is array
    assert np.array_equal(array, want.numpy())


def check_gradcheck_and_gradgradcheck(method, condensed):
    x = (torch.rand(6, 3, dtype=f64) + 0.2).requires_grad_()
    options = {"method": method, "condensed": condensed, **noise_and_folds(method, 6, 3)}
    leaves = [x]
    if "noise" in options:
        leaves.append(options.pop("noise").requires_grad_())

    def function(x, noise=None):
        return functional.rdm(x, noise=noise, **options)

    # In the fast mode along a random direction of all matrices; in the other each entry by itself.
    assert torch.autograd.gradcheck(function, leaves, atol=1e-5, fast_mode=not condensed)
    assert torch.autograd.gradgradcheck(function, leaves, atol=1e-4, fast_mode=True)


def check_gradcheck_of_cross_rdm(method):
    x = (torch.rand(4, 3, dtype=f64) + 0.2).requires_grad_()
    y = (torch.rand(3, 3, dtype=f64) + 0.2).requires_grad_()

    def function(x, y):
        return functional.cross_rdm(x, y, method=method)

    assert torch.autograd.gradcheck(function, (x, y), atol=1e-5)
    assert torch.autograd.gradgradcheck(function, (x, y), atol=1e-4, fast_mode=True)


def check_gradient_errs_no_more_than_torch(method, offset):
    x = torch.randn(50, 900) + offset
    weight = torch.randn(50, 50).fill_diagonal_(0)

    def gradient(function, x):
        x = x.detach().requires_grad_()
        (found,) = torch.autograd.grad((function(x) * weight.to(x.dtype)).sum(), x)
        return found

    got = gradient(lambda x: functional.rdm(x, method=method), x)
    own, want = (gradient(lambda x: naive(x, method), x.to(dtype)) for dtype in (f32, f64))
    assert_as_accurate(got, own, want, method)


def check_an_invalid_row_gets_no_gradient_and_gives_none(method):
    x = torch.randn(8, 20, dtype=f64)
    x[2] = 0
    x[5, 3] = torch.nan
    others = torch.tensor([0, 1, 3, 4, 6, 7] if method != "euclidean" else [0, 1, 2, 3, 4, 6, 7])
    leaf = x.clone().requires_grad_()
    weight = torch.randn(8, 8, dtype=f64)
    (got,) = torch.autograd.grad(functional.rdm(leaf, method=method), leaf, weight)
    small = x[others].requires_grad_()
    (want,) = torch.autograd.grad(functional.rdm(small, method=method), small, weight[others][:, others])
    torch.testing.assert_close(got[others], want)
    assert got[5].eq(0).all()


def check_opcheck(condensed):
    x, y = torch.rand(2, 2, 6, 9)
    x.requires_grad_(), y.requires_grad_()
    for operands, method in (((x, None), "correlation"), ((x, None), "euclidean"), ((x, y), "euclidean")):
        options, new = (method, condensed, "float32"), method == "correlation" or operands[1] is not None
        opcheck(torch.ops.v1fast.rdm, (*operands, *options), traced=new)
        shape = (2, 15) if condensed else (2, 6, 6)
        detached = [t if t is None else t.detach() for t in operands]
        given = (torch.randn(shape), ops.rdm.rdm(*detached, *options), *detached, *options, [True, True])
        opcheck(torch.ops.v1fast.rdm_backward, given, traced=new)
        opcheck(torch.ops.v1fast.rdm_out, (*detached, *options, torch.zeros(shape)), traced=new)
    opcheck(torch.ops.v1fast.cross_rdm, (x, y[:, :4], "cosine", "float32"))
    given = (torch.randn(2, 6, 4), None, x.detach(), y.detach()[:, :4], "euclidean", "float32", [True, False])
    opcheck(torch.ops.v1fast.cross_rdm_backward, given)


def check_compiles_fullgraph(method, dynamic, backend="aot_eager"):
    torch.compiler.reset()

    @torch.compile(backend=backend, fullgraph=True, dynamic=dynamic)
    def step(x):
        return functional.rdm(x, method=method).square().sum()

    for rows in (5, 8):
        x = torch.rand(rows, 11).requires_grad_()
        (got,) = torch.autograd.grad(step(x), x)
        (want,) = torch.autograd.grad(functional.rdm(x, method=method).square().sum(), x)
        torch.testing.assert_close(got, want)


def check_autocast_casts_nothing():
    x = torch.randn(9, 70)
    want = functional.rdm(x)
    with torch.autocast(want.device.type, dtype=torch.bfloat16):
        assert functional.rdm(x).equal(want)


def check_layouts(dtype, method, same):
    """Returns the responses."""
    x = torch.randn(37, 600).to(dtype)
    want = functional.rdm(x, method=method)
    assert want.dtype == (f64 if dtype == f64 else f32)
    torch.testing.assert_close(functional.rdm(x if dtype == f64 else x.float(), method=method), want, **same)
    for name, view in layouts(x):
        torch.testing.assert_close(functional.rdm(view, method=method), want, **same, msg=name)
    return x


EXACT = {"rtol": 0, "atol": 0}


def check_gradients_of_any_layout(dtype, method, same=EXACT):
    """Of the responses, and of the matrix's gradient: expanded, transposed, in steps.

    ``same`` is how much the layout of the matrix's gradient may change.
    """
    x = torch.randn(37, 600).to(dtype)
    upstream = torch.randn(37, 37, dtype=f64 if dtype == f64 else f32)

    def gradient(x, upstream):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(functional.rdm(leaf, method=method), leaf, upstream)[0]

    tolerance = {f32: 3e-6, f64: 1e-13, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    want = gradient(x, upstream)
    assert want.dtype == dtype
    assert want.isfinite().all()
    exact = gradient(x.double(), upstream.double())
    torch.testing.assert_close(want.double(), exact, rtol=tolerance, atol=tolerance * largest(exact))
    for name, view in layouts(x):
        torch.testing.assert_close(gradient(view, upstream), want, rtol=tolerance, atol=1e-6, msg=name)
    wide = upstream.repeat_interleave(2, 1)[:, ::2]
    for other in (upstream.T.contiguous().T, wide):
        torch.testing.assert_close(gradient(x, other), want, **same)
    expanded = upstream.new_tensor(0.5).expand(37, 37)
    torch.testing.assert_close(gradient(x, expanded), gradient(x, expanded.contiguous()), **same)
