"""Responses worth measuring errors on, each for a reason, and dissimilarities by the book: in float64, pair by pair."""

import torch

f64 = torch.float64


def _normal(*shape):
    return torch.randn(*shape, dtype=f64)


def _sparse(rows, columns):
    return (2 * _normal(rows, columns)).exp() * (torch.rand(rows, columns) < 0.05)


def _outlier_channel(rows, columns):
    x = _normal(rows, columns)
    x[:, columns // 3] += 1e6
    return x


HARD = {
    "gaussian": _normal,
    "correlated": lambda s, n: _normal(s, n) + _normal(1, n),
    "sparse, heavy-tailed": _sparse,
    "offset 1e2": lambda s, n: _normal(s, n) + 1e2,
    "offset 1e4": lambda s, n: _normal(s, n) + 1e4,
    "scale 1e-38": lambda s, n: 1e-38 * _normal(s, n),
    "scale 1e-24": lambda s, n: 1e-24 * _normal(s, n),
    "scale 1e-20": lambda s, n: 1e-20 * _normal(s, n),
    "scale 1e18": lambda s, n: 1e18 * _normal(s, n),
    "scale 1e37": lambda s, n: 1e37 * _normal(s, n),
    "near-identical, 1e-6": lambda s, n: _normal(1, n) + 1e-3 * _normal(s, n),
    "near-identical, 1e-10": lambda s, n: _normal(1, n) + 1e-5 * _normal(s, n),
    "outlier channel": _outlier_channel,
}
"""Name -> what makes float64 responses [S, N] from torch's generator."""


def make(name, rows=100, columns=8000, dtype=torch.float32):
    torch.manual_seed(sum(map(ord, name)))
    return HARD[name](rows, columns).to(dtype)


def squared_distances(a, b=None):
    """Between all rows, from their differences."""
    return torch.cdist(a, a if b is None else b, compute_mode="donot_use_mm_for_euclid_dist").square()


def directions(x, centred):
    """Unit rows, centred and normalised twice: what the first time leaves is removed by the second."""
    x = x.double()
    x = x / x.abs().amax(-1, keepdim=True)
    for _ in range(2):
        x = x - x.mean(-1, keepdim=True) if centred else x
        x = x / x.norm(dim=-1, keepdim=True)
    return x


def exact(x, method="correlation", y=None):
    """Correlation, cosine or euclidean of the rows of x, or with those of y, without cancellation."""
    if method == "euclidean":
        return squared_distances(x.double(), None if y is None else y.double()) / x.shape[-1]
    u = directions(x, method == "correlation")
    return squared_distances(u, None if y is None else directions(y, method == "correlation")) / 2


def quadratic(x, y, precision):
    """(xi - xj) P (yi - yj) / N."""
    dx, dy = (t.double().unsqueeze(-2) - t.double().unsqueeze(-3) for t in (x, y))
    return torch.einsum("ijn,nm,ijm->ij", dx, precision.double(), dy) / x.shape[-1]


def crossnobis(x, folds, precision):
    labels = folds.unique().tolist()
    parts = {label: x[folds == label] for label in labels}
    found = []
    for label in labels:
        others = torch.stack([parts[other] for other in labels if other != label]).mean(0)
        found.append(quadratic(parts[label], others, precision))
    return torch.stack(found).mean(0)


def crossnobis_of_trials(x, folds, stimuli, precision):
    """Each fold against all rows of the others; or, with a precision for each fold, each pair of folds."""
    labels, names = folds.unique(), stimuli.unique()

    def means(rows):
        return torch.stack([x[rows & (stimuli == name)].mean(0) for name in names])

    if precision.dim() == 2:
        found = [quadratic(means(folds == f), means(folds != f), precision) for f in labels]
        return torch.stack([(each + each.T) / 2 for each in found]).mean(0)
    covariance, count, found = precision.double().inverse(), len(labels), []
    for f in range(count):
        for g in range(f + 1, count):
            between = ((covariance[f] + covariance[g]) / 2).inverse()
            found.append(quadratic(means(folds == labels[f]), means(folds == labels[g]), between))
    return torch.stack(found).mean(0)


def poisson(x, prior_lambda=1.0, prior_weight=0.1):
    rates = (x.double() + prior_lambda * prior_weight) / (1 + prior_weight)
    logs = rates.log()
    rows = [((r - rates) * (log - logs)).mean(-1) for r, log in zip(rates, logs, strict=True)]
    return torch.stack(rows)
