"""Dissimilarities that are equal in exact arithmetic are equal in every bit: the rule in v1fast/reference/rdm.py.

The oracle counts in Python's integers and fractions: which pairs are equal, and what their dissimilarity is.
"""

import numpy as np
import pytest
import rdm_data as data
import torch
from tie_checks import (
    CHANGES,
    FEATURES,
    check_crossnobis_of_ratings,
    check_mahalanobis_of_a_diagonal_noise,
    check_ties,
    draw,
    made,
    one_hot,
)

from v1fast import functional, ops
from v1fast.reference import rdm as reference

f64, f32 = torch.float64, torch.float32
METHODS = ("euclidean", "correlation", "cosine")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("dtype", [f64, f32], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_equal_dissimilarities_come_out_equal(method, dtype, name, change):
    check_ties(name, change, dtype, method)


# The other methods: exact where rows and noise are whole numbers, or near multiples ------------------------------


@pytest.mark.parametrize("dtype", [f64, f32], ids=str)
@pytest.mark.parametrize("name", ["one-hot", "ratings", "binary", "repeated and permuted"])
@pytest.mark.parametrize("change", ["as they are", "shifted", "tenths"])
def test_mahalanobis_of_a_diagonal_noise(dtype, name, change):
    check_mahalanobis_of_a_diagonal_noise(dtype, name, change)


@pytest.mark.parametrize("dtype", [f64, f32], ids=str)
@pytest.mark.parametrize("folds", [2, 3, 4])
def test_crossnobis_of_ratings(dtype, folds):
    check_crossnobis_of_ratings(dtype, folds)


@pytest.mark.parametrize("dtype", [f64, f32], ids=str)
def test_poisson_of_equal_rows_is_zero(dtype):
    x = torch.poisson(torch.rand(6, 30) * 5).to(dtype).repeat(4, 1)
    got = functional.rdm(x, method="poisson")
    assert got.unflatten(0, (4, 6)).unflatten(2, (4, 6)).diagonal(dim1=1, dim2=3).abs().max() <= torch.finfo(dtype).eps


# What the rule leaves alone --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [f64, f32], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_separations_above_the_resolution_are_never_merged(method, dtype):
    """One value of a matrix of ratings is moved, by less and less, down to 8 times what counts as equal."""
    torch.manual_seed(3)
    ratings = (draw(5, 12, 6) + 1).to(dtype)
    ratings[1] = ratings[0]
    moved = 2 * torch.finfo(dtype).eps * 5  # as far as a value may be taken to its place
    # From products, not from differences, as the reference has all of them.
    smallest = 1e-4 if method == "euclidean" or ops.loaded["native"] != "loaded" else 64 * moved
    for size in (0.5, 0.1, 1 / 3, 1e-2, 1e-3, 1e-4, smallest):
        x = ratings.clone()
        x[1, 2] += size
        got = functional.rdm(x, method=method, accuracy="high", condensed=True)
        want = data.exact(x, method)[0, 1].item()
        assert got[0] > 0
        assert abs(got[0].item() / want - 1) <= 1e-5 + 4 * moved / size


@pytest.mark.parametrize("method", METHODS)
def test_near_identical_rows_keep_their_digits(method):
    x = data.make("near-identical, 1e-10", 20, 3000)
    x[0] = x[0].round()  # whole numbers among others
    got, want = functional.rdm(x, method=method, accuracy="high"), data.exact(x, method)
    others = ~torch.eye(20, dtype=torch.bool)
    assert ((got.double() - want) / want)[others].abs().max() <= 1e-4 or ops.loaded["native"] != "loaded"


@pytest.mark.parametrize("method", METHODS)
def test_few_values_have_the_gradient_of_any(method):
    x = (draw(4, 9, 7) + 1).double().requires_grad_()
    weights = torch.rand(36, dtype=f64)
    torch.autograd.gradcheck(
        lambda t: functional.rdm(t, method=method, condensed=True).dot(weights),
        (x + 0.1 * torch.rand(9, 7)).detach().requires_grad_(),
    )
    (got,) = torch.autograd.grad(functional.rdm(x, method=method, condensed=True).dot(weights), x)
    (want,) = torch.autograd.grad(
        reference.rdm(x[None], None, method, True, "float32")[0].dot(weights),
        x,
    )
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def test_members_of_a_batch_are_told_apart():
    torch.manual_seed(0)
    x = torch.stack([torch.randn(12, 40), one_hot(12, 4).repeat(1, 10).float(), 0.1 * draw(4, 12, 40)])
    for method in METHODS:
        together = functional.rdm(x, method=method)
        for member, alone in zip(x, together, strict=True):
            torch.testing.assert_close(
                functional.rdm(member, method=method),
                alone,
                rtol=0,
                atol=2e-6 if ops.loaded["native"] != "loaded" else 0,
            )
        assert len(together[1].unique()) == 2


def test_rows_that_are_not_finite_or_have_no_direction_stand_aside():
    x = one_hot(20, 4).double()
    x[3, 1], x[7] = float("nan"), 1 / 3 * 3
    for method in METHODS:
        got = functional.rdm(x, method=method)
        assert got[3].isnan().all()
        assert got[7].isnan().all() == (method == "correlation")
    x[7] = 0.1 + 0.2
    x[7, 0] = 0.3  # constant but for rounding
    assert functional.rdm(x)[7].isnan().all()


@pytest.mark.parametrize("size", [1e160, 1e-160])
def test_ends_of_the_range_of_float64(size):
    """Where the squares of responses leave it, angles stay right."""
    x = torch.randn(9, 30, dtype=f64)
    codes = one_hot(9, 3).double()
    for method in ("correlation", "cosine"):
        torch.testing.assert_close(
            functional.rdm(x * size, method=method), functional.rdm(x, method=method), rtol=1e-9, atol=1e-12
        )
        assert functional.rdm(codes * size, method=method).equal(functional.rdm(codes, method=method))
    got = functional.rdm(torch.cat((x, x[:2])) * size, method="euclidean")
    assert got.diagonal().eq(0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", ["as they are", "tenths"])
def test_tiles_have_the_bits_of_the_whole(method, change, tmp_path, monkeypatch):
    rsa = pytest.importorskip("v1fast.rsa")
    from v1fast.rsa import files, similarity

    monkeypatch.setattr(files, "SIDE", 16)
    monkeypatch.setattr(similarity, "SIDE", 16)
    _, x, _, _ = made("ratings", change, f32)
    want = functional.rdm(x, method=method, condensed=True).numpy()
    got = rsa.rdm_to_file(x, tmp_path / "rdm.npy", method=method, progress=False)
    np.testing.assert_array_equal(got, want)
    other = torch.randn(len(x), 9)
    alone = rsa.compare(want, functional.rdm(other, method=method, condensed=True).numpy())
    assert rsa.rdm_correlation(x, other, dissimilarity=method) == pytest.approx(alone, rel=1e-6)


# A noise that is learned -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradient_of_the_noise(symmetric):
    torch.manual_seed(1)
    x = torch.randn(7, 4, dtype=f64, requires_grad=True)
    root = torch.randn(4, 4, dtype=f64, requires_grad=True)
    weights = torch.rand(7, 7, dtype=f64)

    def precision(p):
        return p @ p.T if symmetric else p

    def plain(x, p):
        difference = x[:, None] - x[None]
        return torch.einsum("ijn,nm,ijm->ij", difference, p, difference) / 4

    got = torch.autograd.grad(
        (functional.rdm(x, method="mahalanobis", noise=precision(root)) * weights).sum(), (x, root)
    )
    want = torch.autograd.grad((plain(x, precision(root)) * weights).sum(), (x, root))
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    leaf = precision(root).detach().requires_grad_()
    (got,) = torch.autograd.grad((functional.rdm(x, method="mahalanobis", noise=leaf) * weights).sum(), leaf)
    (want,) = torch.autograd.grad((plain(x, leaf) * weights).sum(), leaf)
    torch.testing.assert_close(got, (want + want.T) / 2, rtol=1e-11, atol=1e-12)


def test_mahalanobis_compiles_fullgraph():
    noise = torch.rand(4, 4, dtype=f64)
    compiled = torch.compile(
        lambda x, p: functional.rdm(x, method="mahalanobis", noise=p), fullgraph=True, backend="aot_eager"
    )
    x = torch.randn(6, 4, dtype=f64)
    torch.testing.assert_close(compiled(x, noise), functional.rdm(x, method="mahalanobis", noise=noise))


def test_a_row_that_is_not_finite_spoils_its_own_alone_beside_a_noise():
    x = torch.randn(8, 5, dtype=f64)
    want = functional.rdm(x, method="mahalanobis", noise=torch.ones(5, dtype=f64))
    x[2, 3] = float("nan")
    got = functional.rdm(x, method="mahalanobis", noise=torch.ones(5, dtype=f64))
    others = torch.arange(8) != 2
    assert got[2].isnan().all()
    torch.testing.assert_close(got[others][:, others], want[others][:, others])
