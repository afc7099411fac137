"""How dissimilarity matrices are held against float64 and torch.corrcoef, on whatever device."""

import rdm_data as data
import torch
from assertions import largest

from v1fast import functional

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
    """At most ``share`` times as much, on hard data, and no more than the kernels promise."""
    exact = off_diagonal(data.exact(x))
    error = largest(off_diagonal(functional.rdm(x)).double() - exact)
    theirs = largest(off_diagonal(1 - torch.corrcoef(x)).double() - exact)
    unit = torch.finfo(f32).eps * exact.max().item()
    if theirs == theirs:  # it gives NaN where squares leave the range of float32
        assert error <= share * theirs + unit
    if name.startswith(("gaussian", "correlated", "scale")):
        assert error <= 3e-7
    if name == "offset 1e4":
        assert error <= 1e-7


def high_errors(x):
    """Absolute and relative, of every pair."""
    exact = off_diagonal(data.exact(x))
    error = off_diagonal(functional.rdm(x, accuracy="high")).double() - exact
    return error, error / exact


def as_good_as_equal(rows, columns):
    """Rows so near each other that the float64 product cancels."""
    x = (torch.randn(1, columns, dtype=f64) + 1e-6 * torch.randn(rows, columns, dtype=f64)).float()
    assert data.exact(x).max() < 1e-11
    return x
