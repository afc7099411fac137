"""The ops behind the comparison of dissimilarity matrices: ranks, sums of rows, products under relabelling."""

import functools

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.spatial.distance import squareform

from v1fast import ops
from v1fast.ops.condensed_row_sums import condensed_row_sums
from v1fast.ops.permuted_products import permuted_products
from v1fast.ops.random_permutations import random_permutations
from v1fast.ops.ranks import average_ranks, rank_sums
from v1fast.reference.random_permutations import random_permutations as reference

f32, f64 = torch.float32, torch.float64
NATIVE = ops.loaded["native"] == "loaded"
native = pytest.mark.skipif(not NATIVE, reason="the compiled kernels are not loaded")
DTYPES = pytest.mark.parametrize("dtype", [f32, f64], ids=str)
VALUES = {
    "normal": lambda: torch.randn(3, 5000, dtype=f64),
    "many ties": lambda: torch.randint(-5, 5, (2, 4000)).to(f64),
    "more than a region": lambda: torch.randn(1, 70_000, dtype=f64).exp(),
    "as float32 of a narrow range": lambda: (1 + 1e-3 * torch.rand(2, 9000, dtype=f64)).float().double(),
    "the ends of the range": lambda: torch.tensor([[-3e38, 3e38, 1e-45, -1e-45, 0.0, -0.0, 0.0, 1.0]], dtype=f64),
    "all the same": lambda: torch.full((2, 50), 0.1, dtype=f64),
    "one": lambda: torch.ones(2, 1, dtype=f64),
    "infinite": lambda: torch.tensor([[1.0, float("inf"), -float("inf"), 2.0]], dtype=f64),
    "no rows": lambda: torch.ones(0, 7, dtype=f64),
    "no columns": lambda: torch.ones(3, 0, dtype=f64),
}


# SciPy 1.11 takes infinities of both signs for a NaN unless it is told to leave NaNs out.
ranks = functools.partial(scipy.stats.rankdata, nan_policy="omit")


@DTYPES
@pytest.mark.parametrize("name", VALUES)
def test_ranks_are_scipys(name, dtype):
    x = VALUES[name]().to(dtype)
    want = ranks(x.numpy(), axis=1) if x.numel() else np.zeros(x.shape)
    for given in (x, x.T.contiguous().T):
        got = average_ranks(given)
        assert got.dtype == f64
        np.testing.assert_array_equal(got.numpy(), want)


@DTYPES
@pytest.mark.parametrize("name", VALUES)
def test_rank_sums_are_those_of_scipys_ranks(name, dtype):
    a = VALUES[name]().to(dtype).flatten()
    b = a[torch.randperm(len(a))] + (a if name == "normal" else 0)
    got = rank_sums(a, b).numpy()
    if not len(a):
        assert (got == 0).all()
        return
    r, s = (ranks(v.numpy()) - (len(a) + 1) / 2 for v in (a, b))
    np.testing.assert_allclose(got, [r @ s, r @ r, s @ s], rtol=1e-12, atol=1e-12 * len(a) ** 3)


@DTYPES
@pytest.mark.parametrize("stimuli", [1, 2, 3, 17, 40, 101])
def test_row_sums_are_those_of_the_square(stimuli, dtype):
    x = torch.randn(3, stimuli * (stimuli - 1) // 2, dtype=dtype)
    want = [squareform(row.double().numpy()).sum(0) if stimuli > 1 else np.zeros(1) for row in x]
    for given in (x, x.T.contiguous().T):
        np.testing.assert_allclose(condensed_row_sums(given, stimuli).numpy(), want, rtol=1e-14, atol=1e-12)
    assert condensed_row_sums(x[:0], stimuli).shape == (0, stimuli)


# Around a group of four rows, and a vector of columns in each instruction set; more than a chain.
@pytest.mark.parametrize("stimuli", [1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 33, 92, 600])
def test_permuted_products_are_those_of_the_permuted_matrix(stimuli):
    a, b = torch.randn(2, stimuli, stimuli)
    orders = torch.stack([torch.randperm(stimuli) for _ in range(5)]).int()
    i, j = torch.triu_indices(stimuli, stimuli, 1).unbind()
    want = torch.stack([(a[i, j].double() * b[p][:, p][i, j]).sum() for p in orders.long()])
    got = permuted_products(a, b, orders)
    assert got.dtype == f64
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6 * stimuli)
    for given in ((a.T.contiguous().T, b, orders), (a, b.repeat_interleave(2, 1)[:, ::2], orders.T.contiguous().T)):
        torch.testing.assert_close(permuted_products(*given), got, rtol=0, atol=1e-9 * stimuli)
    assert permuted_products(a, b, orders[:0]).shape == (0,)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 6, 92])
@pytest.mark.parametrize("seed", [0, -3, 2**40 + 5])
def test_random_permutations_are_the_references(size, seed):
    got = random_permutations(torch.tensor([seed]), 70, size)
    assert got.equal(reference(torch.tensor([seed]), 70, size))
    assert got.sort(1).values.equal(torch.arange(size, dtype=torch.int32).repeat(70, 1))
    # The first ones do not depend on how many there are.
    assert got[:3].equal(random_permutations(torch.tensor([seed]), 3, size))


def test_random_permutations_are_all_as_frequent():
    found = random_permutations(torch.tensor([1]), 48_000, 4)
    _, counts = found.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 0.001
    pairs = torch.stack([found[:-1, 0], found[1:, 0]]).T.unique(dim=0, return_counts=True)[1]
    assert scipy.stats.chisquare(pairs.numpy()).pvalue > 0.001


@native
def test_threads_give_the_same_bits():
    x, matrix = torch.randn(3, 1225), torch.randn(50, 50)
    orders = torch.stack([torch.randperm(50) for _ in range(9)]).int()
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            products = permuted_products(matrix, matrix, orders)
            found.append((average_ranks(x), rank_sums(x[0], x[1]), condensed_row_sums(x, 50), products))
            found[-1] += (random_permutations(torch.tensor([0]), 200, 9),)
    finally:
        torch.set_num_threads(threads)
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


def test_opcheck():
    x = torch.randn(2, 10)
    torch.library.opcheck(torch.ops.v1fast.average_ranks, (x,))
    torch.library.opcheck(torch.ops.v1fast.rank_sums, (x[0], x[1]))
    torch.library.opcheck(torch.ops.v1fast.condensed_row_sums, (x, 5))
    torch.library.opcheck(torch.ops.v1fast.random_permutations, (torch.tensor([3]), 4, 5))
    torch.library.opcheck(
        torch.ops.v1fast.permuted_products, (torch.randn(5, 5), torch.randn(5, 5), torch.arange(5)[None].int())
    )


@native
def test_the_ops_refuse_to_read_or_write_outside_a_tensor():
    x, order = torch.randn(2, 10), torch.arange(5)[None].int()
    for call in (
        lambda: torch.ops.v1fast.random_permutations(torch.tensor([3, 4]), 4, 5),
        lambda: torch.ops.v1fast.random_permutations(torch.tensor([3]), 4, -5),
        lambda: torch.ops.v1fast.average_ranks(x[0]),
        lambda: torch.ops.v1fast.average_ranks(x.half()),
        lambda: torch.ops.v1fast.rank_sums(x[0], x[1, :9]),
        lambda: torch.ops.v1fast.rank_sums(x[0], x[1].double()),
        lambda: torch.ops.v1fast.condensed_row_sums(x, 6),
        lambda: torch.ops.v1fast.condensed_row_sums(x.long(), 5),
        lambda: torch.ops.v1fast.permuted_products(torch.randn(5, 5), torch.randn(5, 4), order),
        lambda: torch.ops.v1fast.permuted_products(torch.randn(5, 5), torch.randn(5, 5), order + 1),
        lambda: torch.ops.v1fast.permuted_products(torch.randn(5, 5), torch.randn(5, 5), order - 1),
        lambda: torch.ops.v1fast.permuted_products(torch.randn(5, 5), torch.randn(5, 5), order.long()),
        lambda: torch.ops.v1fast.permuted_products(torch.randn(5, 5).double(), torch.randn(5, 5), order),
    ):
        with pytest.raises(RuntimeError):
            call()
