"""An oracle of ties, which counts in Python's integers and fractions: which pairs are equal, and their values."""

from fractions import Fraction

import numpy as np
import torch

from v1fast import functional

f64, f32 = torch.float64, torch.float32


def one_hot(rows, groups):
    return torch.eye(groups, dtype=torch.long)[torch.arange(rows) * groups // rows]


def draw(high, *shape):
    return torch.randint(0, high, shape)


FEATURES = {
    "one-hot": lambda: one_hot(30, 5),
    "each its own": lambda: torch.eye(20, dtype=torch.long),
    "two groups": lambda: one_hot(12, 2),
    "ratings": lambda: draw(5, 40, 3) + 1,
    "binary": lambda: draw(2, 24, 9),
    "sparse and wide": lambda: (torch.rand(24, 2000) < 0.003).long(),
    "ratings of many": lambda: draw(5, 12, 3000),
    "repeated and permuted": lambda: draw(3, 20, 4).repeat(1, 6)[:, torch.randperm(24)],
    "counts": lambda: torch.poisson(torch.full((25, 7), 6.0)).long(),
    "percent": lambda: draw(101, 20, 12),
}
"""Name -> whole numbers [S, K]."""

CHANGES = {
    "as they are": (Fraction(1), Fraction(0)),
    "shifted": (Fraction(1), Fraction(1000)),
    "negative": (Fraction(-1), Fraction(3)),
    "tripled": (Fraction(3), Fraction(0)),
    "thirds": (Fraction(1, 3), Fraction(0)),
    "tenths": (Fraction(1, 10), Fraction(0)),
    "tenths, shifted": (Fraction(1, 10), Fraction(7, 10)),
    "thousandths": (Fraction(1, 1024), Fraction(0)),
    "tiny": (Fraction(1, 2**60), Fraction(0)),
}
"""Name -> factor and summand."""


def made(name, change, dtype):
    """Whole numbers, their features, and the exact scale and offset of these."""
    torch.manual_seed(sum(map(ord, name)))
    m = FEATURES[name]()
    scale, offset = CHANGES[change]
    return m, ((m * scale.numerator).double() / scale.denominator + float(offset)).to(dtype), scale, offset


def exact_key(m, method, scale, offset, pairs):
    """For each pair (i, j) a key, equal where exact dissimilarities are equal, and the dissimilarity as float64."""
    m = m.numpy().astype(np.int64)
    columns = m.shape[1]
    gram, sums = (m @ m.T).tolist(), m.sum(1).tolist()
    o = offset / scale
    for i, j in pairs:
        if method == "euclidean":
            count = gram[i][i] + gram[j][j] - 2 * gram[i][j]
            yield count, float(count * scale * scale / columns)
            continue
        if method == "correlation":
            product, a, b = (columns * gram[p][q] - sums[p] * sums[q] for p, q in ((i, j), (i, i), (j, j)))
        else:
            product, a, b = (
                columns * o * o + o * (sums[p] + sums[q]) + gram[p][q] for p, q in ((i, j), (i, i), (j, j))
            )
        if a == 0 or b == 0:
            yield None, float("nan")
            continue
        square = Fraction(product * product) / (a * b)
        sign = -1 if product < 0 else 1
        near_one = (1 - square) / (1 + Fraction(float(square) ** 0.5))  # 1 - r without cancellation
        yield (sign, square), float(near_one) if sign > 0 else 1 + float(square) ** 0.5


def assert_ties(got, keys_and_values, dtype):
    """Values are right, equal where the keys are equal, and different where they are not."""
    keys, want = zip(*keys_and_values, strict=True)
    values = got.double().tolist()
    of_key, of_value = {}, {}
    for key, value in zip(keys, values, strict=True):
        if key is None:
            assert value != value
            continue
        assert of_key.setdefault(key, value) == value
    rounded = 1e-6 if dtype == f32 else 1e-13
    np.testing.assert_allclose(values, want, rtol=rounded, atol=rounded if dtype == f32 else 1e-15)
    for key, value in of_key.items():  # as far as float32 can tell values apart
        other = of_value.setdefault(value, key)
        assert other == key or dtype == f32


def check_ties(name, change, dtype, method, compute=None):
    m, x, scale, offset = made(name, change, dtype)
    i, j = torch.triu_indices(len(m), len(m), 1).tolist()
    got = (compute or functional.rdm)(x, method=method, condensed=True)
    assert_ties(got, list(exact_key(m, method, scale, offset, zip(i, j, strict=True))), dtype)
    square = functional.rdm(x, method=method)
    cross = functional.cross_rdm(x, x[:7], method=method)
    for other, same in ((square.T, square), (square[i, j], got), (cross, square[:, :7])):
        torch.testing.assert_close(other, same, rtol=0, atol=0, equal_nan=True)


def check_mahalanobis_of_a_diagonal_noise(dtype, name, change):
    m, x, scale, _ = made(name, change, dtype)
    weights = [Fraction(1 + k % 3, 4) for k in range(m.shape[1])]
    noise = torch.tensor([float(w) for w in weights], dtype=dtype)
    rows = m.tolist()
    i, j = torch.triu_indices(len(m), len(m), 1).tolist()
    counts = [
        sum(w * (a - b) ** 2 for w, a, b in zip(weights, rows[p], rows[q], strict=True))
        for p, q in zip(i, j, strict=True)
    ]
    keys = [(count, float(count * scale * scale / m.shape[1])) for count in counts]
    for given in (noise, noise.diag()):
        assert_ties(functional.rdm(x, method="mahalanobis", noise=given, condensed=True), keys, dtype)


def check_crossnobis_of_ratings(dtype, folds):
    torch.manual_seed(folds)
    m = draw(3, folds * 14, 5)
    labels = torch.arange(folds).repeat_interleave(14)
    parts = m.view(folds, 14, 5).tolist()
    i, j = torch.triu_indices(14, 14, 1).tolist()
    keys = []
    for p, q in zip(i, j, strict=True):
        difference = [[a - b for a, b in zip(part[p], part[q], strict=True)] for part in parts]
        total = [sum(column) for column in zip(*difference, strict=True)]
        count = sum(a * (t - a) for row in difference for a, t in zip(row, total, strict=True))
        keys.append((count, count / (folds - 1) / folds / 5))
    assert_ties(functional.rdm(m.to(dtype), method="crossnobis", folds=labels, condensed=True), keys, dtype)
