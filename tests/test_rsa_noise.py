"""Noise: its covariance, cross-validation, whitening, reliability and ceilings, each against a simulation."""

import numpy as np
import pytest
from scipy.spatial.distance import squareform

from v1fast import rsa

STIMULI = 9
PAIRS = STIMULI * (STIMULI - 1) // 2
UPPER = np.triu_indices(STIMULI, 1)


# sigma_k ---------------------------------------------------------------------------------------------------------


def covariances(kind):
    draw = np.random.default_rng(3)
    if kind == "diagonal":
        return np.exp(draw.normal(size=STIMULI))
    factor = draw.normal(size=(STIMULI, STIMULI))
    return factor @ factor.T + np.eye(STIMULI)


def by_the_inverse(a, b, sigma, centred):
    """Diedrichsen et al. 2021, equation 13, written out over the positions that both have."""
    contrasts = np.eye(STIMULI)[UPPER[0]] - np.eye(STIMULI)[UPPER[1]]
    sigma = np.diag(sigma) if sigma.ndim == 1 else sigma
    there = ~np.isnan(a + b)
    inverse = np.linalg.inv(((contrasts @ sigma @ contrasts.T) ** 2)[np.ix_(there, there)])
    a, b = (v[there] - centred * v[there].mean() for v in (a, b))
    return a @ inverse @ b / np.sqrt((a @ inverse @ a) * (b @ inverse @ b))


@pytest.mark.parametrize("kind", ["diagonal", "full"])
@pytest.mark.parametrize("method", ["whitened-pearson", "whitened-cosine"])
@pytest.mark.parametrize("absent", ["none", "a pair", "a stimulus", "a stimulus and pairs"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigma_k_by_the_book(kind, method, absent, dtype):
    sigma, (a, b) = covariances(kind), np.random.default_rng(0).random((2, PAIRS)).astype(dtype)
    if "stimulus" in absent:
        square = squareform(a)
        square[4] = square[:, 4] = np.nan
        a = square[UPPER]
    if "pair" in absent:
        a[3] = b[-1] = np.nan
    got = rsa.compare(a, b, method, sigma_k=sigma)
    want = by_the_inverse(a.astype(float), b.astype(float), sigma, method == "whitened-pearson")
    assert got == pytest.approx(want, abs=1e-12)
    assert rsa.compare(1e30 * a.astype(float), b, method, sigma_k=1e-8 * sigma) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("method", ["whitened-pearson", "whitened-cosine"])
def test_equal_independent_noise_is_the_default(method):
    a, b = np.random.default_rng(0).random((2, 3, PAIRS))
    a[1] = np.nan
    want = rsa.compare(a, b, method)
    for sigma in (np.full(STIMULI, 7.0), 7 * np.eye(STIMULI)):
        np.testing.assert_allclose(rsa.compare(a, b, method, sigma_k=sigma), want, atol=1e-13)
    sigma = np.arange(1, 1 + STIMULI)
    constant = rsa.compare(np.ones(PAIRS), b[0], method, sigma_k=sigma)
    assert np.isnan(constant) == (method == "whitened-pearson")
    assert np.isnan(rsa.compare(np.zeros(PAIRS), b[0], method, sigma_k=sigma))


@pytest.mark.parametrize("kind", ["diagonal", "full"])
@pytest.mark.parametrize(("theirs", "ours"), [("corr_cov", "whitened-pearson"), ("cosine_cov", "whitened-cosine")])
def test_sigma_k_of_rsatoolbox(kind, theirs, ours):
    toolbox = pytest.importorskip("rsatoolbox.rdm")
    sigma, (a, b) = covariances(kind), np.random.default_rng(0).random((2, PAIRS))
    full = np.diag(sigma) if sigma.ndim == 1 else sigma
    of_full = toolbox.compare(toolbox.RDMs(a[None]), toolbox.RDMs(b[None]), theirs, sigma_k=full)[0, 0]
    assert rsa.compare(a, b, ours, sigma_k=sigma) == pytest.approx(of_full, abs=1e-5)  # its solver's tolerance
    if sigma.ndim == 1:  # rsatoolbox 0.3.2 centres as if noise were equal: the same numbers as a matrix give another
        of_diagonal = toolbox.compare(toolbox.RDMs(a[None]), toolbox.RDMs(b[None]), theirs, sigma_k=sigma)[0, 0]
        assert abs(of_diagonal - of_full) > 0.01


def test_sigma_k_rejects():
    a = np.arange(float(PAIRS))
    one = np.ones(STIMULI)
    lopsided = np.eye(STIMULI)
    lopsided[0, 1] = 0.5
    for message, given in {
        "sigma_k: want None beside method 'pearson', got an array": {"method": "pearson", "sigma_k": one},
        r"sigma_k: want \[S\] or \[S, S\] with S = 9, got \(8,\)": {"sigma_k": one[1:]},
        "sigma_k: want a symmetric, positive definite": {"sigma_k": lopsided},
        "sigma_k: want a symmetric, positive": {"sigma_k": np.ones((STIMULI, STIMULI))},
        "sigma_k: want a symmetric, positive definite covariance": {"sigma_k": -one},
        "sigma_k: want a symmetric, positive definite covariance, got": {"sigma_k": np.nan * one},
    }.items():
        with pytest.raises(ValueError, match=message):
            rsa.compare(a, a[::-1], **{"method": "cosine_cov", **given})
