"""Noise: its covariance, cross-validation, whitening, reliability and ceilings, each against a simulation."""

import numpy as np
import pytest
import scipy.stats
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


# Cross-validated dissimilarities ---------------------------------------------------------------------------------


def repeated(repeats=4, stimuli=7, neurons=6, seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(stimuli, neurons)) + 1 + draw.normal(size=(repeats, stimuli, neurons))


def as_trials(x):
    repeats, stimuli, neurons = x.shape
    return x.reshape(-1, neurons), np.tile(np.arange(stimuli), repeats), np.repeat(np.arange(repeats), stimuli)


def pair_by_pair(values, stimulus, fold, method, precision=None):
    """The definition: means over pairs of trials from different folds, in loops."""
    neurons, stimuli = values.shape[1], stimulus.max() + 1
    precision = np.eye(neurons) if precision is None else precision
    precision = np.diag(precision) if precision.ndim == 1 else precision
    if method == "correlation":
        values = values - values.mean(1, keepdims=True)
    if method not in ("correlation", "cosine"):
        values = values - values.mean(0)
    products = np.full((stimuli, stimuli), np.nan)
    for i, j in np.ndindex(products.shape):
        of_both = [
            values[a] @ precision @ values[b] / neurons
            for a in np.flatnonzero(stimulus == i)
            for b in np.flatnonzero(stimulus == j)
            if fold[a] != fold[b]
        ]
        products[i, j] = np.mean(of_both) if of_both else np.nan
    i, j = np.triu_indices(stimuli, 1)
    own = np.diag(products)
    if method not in ("correlation", "cosine"):
        return own[i] + own[j] - 2 * products[i, j]
    own = np.where(own > 0, own, np.nan)
    return 1 - products[i, j] / np.sqrt(own[i] * own[j])


def precisions():
    factor = np.random.default_rng(5).normal(size=(6, 6))
    return {"none": None, "diagonal": np.arange(1.0, 7), "full": factor @ factor.T + np.eye(6)}


CASES = [("euclidean", "none"), ("correlation", "none"), ("cosine", "none")]
CASES += [("mahalanobis", "diagonal"), ("crossnobis", "full"), ("crossnobis", "none")]


@pytest.mark.parametrize(("method", "precision"), CASES)
@pytest.mark.parametrize("part", [1 << 23, 40])
def test_rdm_of_repeats_pair_by_pair(monkeypatch, method, precision, part):
    from v1fast.rsa import noise

    monkeypatch.setattr(noise, "PART", part)  # blocks of neurons
    precision, x = precisions()[precision], repeated()
    values, stimulus, fold = as_trials(x)
    got = rsa.rdm_of_repeats(x, method, noise=precision)
    np.testing.assert_allclose(got, pair_by_pair(values, stimulus, fold, method, precision), rtol=1e-9)
    kept = np.random.default_rng(1).permutation(len(values))[:20]  # unequal numbers; folds without some stimuli
    want = pair_by_pair(values[kept], stimulus[kept], fold[kept], method, precision)
    labels = {"stimuli": np.array(list("abcdefg"))[stimulus[kept]], "folds": fold[kept], "noise": precision}
    np.testing.assert_allclose(rsa.rdm_of_repeats(values[kept], method, **labels), want, rtol=1e-9)
    gone = values.copy()
    gone[np.setdiff1d(np.arange(28), kept)] = np.nan
    np.testing.assert_allclose(rsa.rdm_of_repeats(gone.reshape(x.shape), method, noise=precision), want, rtol=1e-9)
    narrow = rsa.rdm_of_repeats(x.astype(np.float32), method, noise=precision)
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, got, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["euclidean", "correlation", "cosine"])
def test_single_neurons_that_are_nan(method):
    from v1fast.rsa import noise

    values, stimulus, fold = as_trials(repeated())
    kept = np.random.default_rng(1).permutation(len(values))[:20]
    trials = noise.trials_of(values[kept], stimulus[kept], fold[kept])
    want = rsa.rdm_of_repeats(values[kept], method, stimuli=stimulus[kept], folds=fold[kept])
    np.testing.assert_allclose(noise._by_neurons(trials, method, None), want, rtol=1e-9)
    # A neuron that a stimulus does not have is as if it were not there for its pairs; for the others it is.
    gaps = values.copy()
    gaps[stimulus == 2, 3] = np.nan
    found = squareform(rsa.rdm_of_repeats(gaps, method, stimuli=stimulus, folds=fold), checks=False)
    if method == "correlation":
        gaps = gaps - np.nanmean(gaps, 1, keepdims=True)
        method = "cosine"
    others = np.arange(6) != 3
    without = squareform(pair_by_pair(gaps[:, others], stimulus, fold, method), checks=False)
    np.testing.assert_allclose(found[2], without[2], rtol=1e-9)
    rest = stimulus != 2
    labels = stimulus[rest] - (stimulus[rest] > 2)
    left = np.arange(7) != 2
    of_rest = squareform(pair_by_pair(gaps[rest], labels, fold[rest], method), checks=False)
    np.testing.assert_allclose(found[left][:, left], of_rest, rtol=1e-9)
    with pytest.raises(ValueError, match=r"noise: want None or \[N\] where single neurons are NaN"):
        rsa.rdm_of_repeats(gaps, "crossnobis", stimuli=stimulus, folds=fold, noise=np.eye(6))


def test_unequal_folds_of_rsatoolbox():
    pytest.importorskip("rsatoolbox")
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm, calc_rdm_unbalanced

    x = repeated()
    values, stimulus, fold = as_trials(x)
    trials = Dataset(values, obs_descriptors={"s": stimulus, "f": fold})
    equal = calc_rdm(trials, "crossnobis", "s", cv_descriptor="f").get_vectors()[0]
    np.testing.assert_allclose(rsa.rdm_of_repeats(x), equal, rtol=1e-9)
    kept = np.random.default_rng(1).permutation(len(values))[:20]
    values, stimulus, fold = values[kept] - values[kept].mean(0), stimulus[kept], fold[kept]
    trials = Dataset(values, obs_descriptors={"s": stimulus, "f": fold})
    theirs = calc_rdm_unbalanced(trials, "crossnobis", "s", cv_descriptor="f")
    order = np.argsort(theirs.pattern_descriptors["s"])
    want = theirs.get_matrices()[0][order][:, order]
    got = rsa.rdm_of_repeats(values, stimuli=stimulus, folds=fold)
    np.testing.assert_allclose(squareform(got), want, rtol=1e-9)


@pytest.mark.parametrize("repeats", [2, 3, 8])
def test_noise_does_not_bias_distances(repeats):
    """Stimuli of unequal noise: the mean over data sets is the distance without noise, averages are not."""
    draw = np.random.default_rng(repeats)
    signal = draw.normal(size=(6, 40))
    truth = rsa.rdm_of_repeats(signal[None], crossvalidate=False)
    scale = np.linspace(0.5, 3, 6)[:, None]
    noisy = [signal + scale * draw.normal(size=(repeats, 6, 40)) for _ in range(400)]
    unbiased, averaged = (np.array([rsa.rdm_of_repeats(x, crossvalidate=c) for x in noisy]) for c in (True, False))
    error = unbiased.std(0) / 20
    assert (np.abs(unbiased.mean(0) - truth) < 4 * error).all()
    i, j = np.triu_indices(6, 1)
    expected = (scale[i, 0] ** 2 + scale[j, 0] ** 2) / repeats
    np.testing.assert_allclose(averaged.mean(0) - truth, expected, rtol=0.2, atol=0.02)


def test_noise_does_not_weaken_correlations():
    draw = np.random.default_rng(0)
    signal = draw.normal(size=(6, 200)) + draw.normal(size=200)
    truth = rsa.rdm_of_repeats(signal[None], "correlation", crossvalidate=False)
    noisy = [signal + draw.normal(size=(4, 6, 200)) for _ in range(200)]
    found, averaged = (
        np.mean([rsa.rdm_of_repeats(x, "correlation", crossvalidate=c) for x in noisy], 0) for c in (True, False)
    )
    assert np.abs(found - truth).max() < 0.015
    assert np.abs(averaged - truth).max() > 0.04
    silent = signal.copy()
    silent[3] = 0
    undefined = np.isnan([rsa.rdm_of_repeats(silent + draw.normal(size=(4, 6, 200)), "correlation") for _ in range(40)])
    row = squareform(np.arange(15))[3][np.arange(6) != 3].astype(int)
    assert 0.2 < undefined[:, row].mean() < 0.8  # its variance is as often below zero as above
    assert not undefined[:, np.setdiff1d(np.arange(15), row)].any()


def test_rdm_of_repeats_rejects():
    x = repeated()
    values, stimulus, fold = as_trials(x)
    for message, (given, options) in {
        "method: want one of euclidean, mahalanobis, crossnobis, correlation, cosine": (x, {"method": "poisson"}),
        "noise: want None beside method 'euclidean'": (x, {"noise": np.ones(6)}),
        r"noise: want \[N\] or \[N, N\] with N = 6": (x, {"noise": np.ones(5), "method": "crossnobis"}),
        r"responses: want \[repeats, S, N\], or \[T, N\] with stimuli": (values, {}),
        "folds: want None beside responses": (x, {"folds": fold}),
        r"stimuli, folds: want \[T\] and \[T\]": (values, {"stimuli": stimulus[1:]}),
        "responses: want a stimulus with trials in 2 folds": (x[:1], {}),
        "responses: want at least 2 stimuli, got 1": (x[:, :1], {}),
    }.items():
        with pytest.raises(ValueError, match=message):
            rsa.rdm_of_repeats(given, **options)
    lone = np.isnan(squareform(rsa.rdm_of_repeats(values, stimuli=np.r_[7, stimulus[1:]], folds=fold), checks=False))
    assert lone[7].sum() == 7  # one trial alone
    assert lone.sum() == 14


# The covariance of noise -----------------------------------------------------------------------------------------


def test_noise_covariance_of_rsatoolbox():
    noise = pytest.importorskip("rsatoolbox.data.noise")
    from rsatoolbox.data import Dataset

    pytest.importorskip("sklearn")
    x = repeated(neurons=12)
    values, stimulus, _ = as_trials(x)
    trials = Dataset(values, obs_descriptors={"s": stimulus})
    residuals, dof = (x - x.mean(0)).reshape(values.shape), 7 * 3
    full = rsa.noise_covariance(x, shrinkage="none")
    np.testing.assert_allclose(full, noise.cov_from_unbalanced(trials, "s", method="full"), rtol=1e-9)
    np.testing.assert_allclose(np.diag(full), rsa.noise_covariance(values, stimulus, shrinkage="diagonal"))
    theirs = noise.cov_from_unbalanced(trials, "s", method="shrinkage_eye")
    np.testing.assert_allclose(rsa.noise_covariance(residuals, residuals=True, dof=dof), theirs, rtol=1e-9)
    # Deviations from a mean are not independent. Taken as if, rsatoolbox shrinks too little.
    ours = rsa.noise_covariance(x)
    apart = ~np.eye(12, dtype=bool)
    assert np.abs(ours[apart]).sum() < np.abs(theirs[apart]).sum() < np.abs(full[apart]).sum()
    np.testing.assert_allclose(rsa.noise_precision(x), np.linalg.inv(ours), rtol=1e-9)


def test_shrinkage_is_best_where_repeats_are_few():
    """The expected squared error of the estimates, two repeats: ours below rsatoolbox's way, below the sample's."""
    pytest.importorskip("sklearn")
    draw = np.random.default_rng(0)
    root = np.diag(np.sqrt(np.linspace(0.5, 2, 30)))
    errors = {"ours": 0.0, "theirs": 0.0, "none": 0.0}
    for _ in range(40):
        x = draw.normal(size=(25, 30)) + draw.normal(size=(2, 25, 30)) @ root
        residuals = (x - x.mean(0)).reshape(50, 30)
        for name, found in {
            "ours": rsa.noise_covariance(x),
            "theirs": rsa.noise_covariance(residuals, residuals=True, dof=25),
            "none": rsa.noise_covariance(x, shrinkage="none"),
        }.items():
            errors[name] += np.sum((found - root**2) ** 2) / 40
    assert errors["ours"] < 0.8 * errors["theirs"] < 0.8 * errors["none"]


def test_noise_covariance_leaves_out_nan():
    x = repeated(repeats=5)
    x[1, 2, 3] = np.nan
    found = rsa.noise_covariance(x, shrinkage="diagonal")
    want = np.nansum((x - np.nanmean(x, 0)) ** 2, (0, 1)) / (28 - (np.arange(6) == 3))
    np.testing.assert_allclose(found, want)
    dropped = x.copy()
    dropped[1, 2] = np.nan
    np.testing.assert_allclose(*(rsa.noise_covariance(y, shrinkage="none") for y in (x, dropped)))
    np.testing.assert_allclose(rsa.noise_precision(x, shrinkage="diagonal"), 1 / want)


def test_noise_covariance_rejects():
    x = repeated()
    for message, (given, options) in {
        "shrinkage: want one of ledoit-wolf, diagonal, none, got 'full'": (x, {"shrinkage": "full"}),
        "dof: want None beside repeats": (x, {"dof": 3}),
        "responses: want residuals": (x, {"residuals": True}),
        "dof: want a positive number, got 0": (x[0], {"residuals": True, "dof": 0, "shrinkage": "none"}),
        "responses: want a stimulus with 2 trials that have no NaN": (x[:1], {}),
    }.items():
        with pytest.raises(ValueError, match=message):
            rsa.noise_covariance(given, **options)
    with pytest.raises(ValueError, match="shrinkage: want a covariance that has an inverse"):
        rsa.noise_precision(repeated(repeats=2, stimuli=3), shrinkage="none")
    x[..., 2] = 1
    with pytest.raises(ValueError, match="responses: want noise in each neuron, got none, or no two trials, in 1"):
        rsa.noise_precision(x, shrinkage="diagonal")


def test_stimulus_noise():
    x = repeated()
    np.testing.assert_allclose(rsa.stimulus_noise(x), x.var(0, ddof=1).mean(1) / 4)
    values, stimulus, _ = as_trials(x)
    np.testing.assert_allclose(rsa.stimulus_noise(values[:-7], stimulus[:-7]), x[:3].var(0, ddof=1).mean(1) / 3)
    scale = np.arange(1.0, 7)
    np.testing.assert_allclose(rsa.stimulus_noise(x, noise=scale**2), (x * scale).var(0, ddof=1).mean(1) / 4)
    np.testing.assert_allclose(rsa.stimulus_noise(x, noise=np.diag(scale**2)), rsa.stimulus_noise(x * scale))
    assert np.isnan(rsa.stimulus_noise(x[:1])).all()
    draw = np.random.default_rng(0)
    deviation = np.array([1.0, 2.0, 3.0])[:, None]
    found = np.mean([rsa.stimulus_noise(deviation * draw.normal(size=(3, 3, 50))) for _ in range(400)], 0)
    np.testing.assert_allclose(found, [1 / 3, 4 / 3, 3], rtol=0.03)


# Two systems that have nothing in common but the noise of their stimuli -----------------------------------------------


def noise_alone_in_common(seed, stimuli=20, neurons=50, repeats=2, spread=5.0, common=0.0, profile=True):
    """Responses of two unrelated systems. Noise differs ``spread``-fold between stimuli, alike in both systems."""
    draw = np.random.default_rng(seed)
    deviation = np.exp(draw.uniform(0, np.log(spread), size=(2, stimuli, 1)))
    for k in range(2):
        signal = draw.normal(size=(stimuli, neurons)) + common * draw.normal(size=neurons)
        noise = draw.normal(size=(repeats, stimuli, neurons))
        yield signal + deviation[0 if profile else k] * noise


DESIGNS = {
    "euclidean, 2 repeats": ("euclidean", {}),
    "euclidean, 6 repeats": ("euclidean", {"repeats": 6}),
    "correlation, a common mean response": ("correlation", {"common": 2.0, "repeats": 4, "spread": 3.0}),
    "correlation": ("correlation", {"repeats": 4, "spread": 3.0}),
    "cosine, a common mean response": ("cosine", {"common": 2.0, "repeats": 4, "spread": 3.0}),
}


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("data_sets", "most"), [(60, 0.15), pytest.param(600, 0.08, marks=pytest.mark.slow)])
def test_a_common_profile_of_noise_is_no_similarity(design, data_sets, most):
    """The rate of false positives at 5 %: with cross-validation and a studentized test that of chance.

    60 tests at a rate of .055 have up to 15 % in 99.9 % of cases.
    """
    dissimilarity, options = DESIGNS[design]
    found = {"default": [], "averaged": []}
    for seed in range(data_sets):
        pair = list(noise_alone_in_common(seed, **options))
        rdms = [rsa.rdm_of_repeats(x, dissimilarity) for x in pair]
        found["default"].append(rsa.studentized_test(*rdms, permutations=199, seed=seed).p)
        averaged = [rsa.rdm_of_repeats(x, dissimilarity, crossvalidate=False) for x in pair]
        found["averaged"].append(rsa.permutation_test(*averaged, permutations=199, seed=seed).p)
    rates = {name: np.mean(np.array(p) <= 0.05) for name, p in found.items()}
    assert rates["default"] <= most
    if design != "correlation":  # without a mean response, correlations are 0, and noise does not change that
        assert rates["averaged"] > 0.5


def test_the_command_calls_them_similar_at_the_nominal_rate(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from v1fast.rsa import report

    monkeypatch.setattr(report, "_pictures_of_files", lambda *_: {})
    monkeypatch.setattr(report, "_reliability", lambda *_: {})
    p = []
    for seed in range(20):
        for name, x in zip("ab", noise_alone_in_common(seed, common=2.0, repeats=4, spread=3.0), strict=True):
            np.save(tmp_path / f"{name}.npy", x)
        found = report.compare_files([str(tmp_path / f"{name}.npy") for name in "ab"], tmp_path / "out")
        p.append(found["similarities"]["b"]["p"])
    assert np.mean(np.array(p) <= 0.05) <= 0.2  # of averages 19 or 20 of 20


@pytest.mark.parametrize("method", ["pearson", "spearman", "rho-a", "cosine"])
def test_studentized_test_by_hand(method):
    from scipy.stats import rankdata

    a, b = np.random.default_rng(0).random((2, PAIRS)) + 3
    found = rsa.studentized_test(a, b, method, permutations=30, seed=4)
    assert found.similarity == rsa.compare(a, b, method)
    ranked = method in ("spearman", "rho-a")
    first, second = (rankdata(v) if ranked else v for v in (a, b))
    first, second = squareform(first - first.mean()), squareform(second - second.mean())

    def statistic(order):
        other = second[order][:, order]
        rows = (first * other).sum(1)
        leverage = (first**2).sum(1) * (other**2).sum(1)
        leverage = leverage / leverage.sum()
        return rows.sum() / np.sqrt(((rows / (1 - leverage)) ** 2).sum())

    assert found.t == pytest.approx(statistic(np.arange(STIMULI)))
    draw = np.random.default_rng(4)
    null = [statistic(draw.permutation(STIMULI)) for _ in range(30)]
    np.testing.assert_allclose(found.null, null)
    assert found.p == (1 + np.sum(np.array(null) >= found.t)) / 31
    for scale, offset in ((1e-200, 0), (1e3, 1e5), (1, 40)):
        assert rsa.studentized_test(scale * a + offset, b, method, permutations=30, seed=4).p == found.p


def test_studentized_test_leaves_out_what_is_absent():
    a, b = np.random.default_rng(0).random((2, PAIRS))
    left = np.arange(STIMULI) != 4
    square = squareform(a)
    without = [squareform(m[left][:, left]) for m in (square, squareform(b))]
    square[4] = square[:, 4] = np.nan
    a[:] = square[UPPER]
    found, want = rsa.studentized_test(a, b, seed=1), rsa.studentized_test(*without, seed=1)
    assert (found.t, found.p) == (pytest.approx(want.t), want.p)
    a[0] = np.nan
    found = rsa.studentized_test(a, b)
    assert np.isfinite(found.similarity)
    assert np.isnan([found.t, found.p]).all()
    for first in (np.ones(PAIRS), np.full(PAIRS, np.nan)):
        assert np.isnan(rsa.studentized_test(first, b).p)
    assert np.isnan(rsa.studentized_test([1.0, 2, 3], [1.0, 2, 4]).p)
    for message, given in {
        "rdm2: want 9 stimuli, as rdm1 has, got 3": {"rdm2": [1.0, 2, 3]},
        "rdm1: want one matrix, got 2": {"rdm1": np.ones((2, PAIRS))},
        "method: want one of pearson, spearman, rho-a, cosine": {"method": "tau-a"},
        "permutations: want 1 to": {"permutations": 0},
    }.items():
        with pytest.raises(ValueError, match=message):
            rsa.studentized_test(**{"rdm1": b, "rdm2": b, **given})


def test_studentized_tests_of_many_models():
    draw = np.random.default_rng(0)
    data, models = draw.random(PAIRS), draw.random((5, PAIRS))
    models[2] = 0.6 * data + 0.4 * models[2]
    models[3] = 1  # undefined
    found = rsa.studentized_tests(data, models, permutations=300, seed=2)
    for k, model in enumerate(models):
        one = rsa.studentized_test(data, model, permutations=300, seed=2)
        np.testing.assert_array_equal(found.null[:, k], one.null)
        np.testing.assert_array_equal([found.similarity[k], found.t[k], found.p[k]], [one.similarity, one.t, one.p])
    there = [0, 1, 2, 4]
    null, observed = found.null[:, there], found.t[there]
    largest = ((null - null.mean(0)) / null.std(0)).max(1)
    want = [(1 + (largest >= z).sum()) / 301 for z in (observed - null.mean(0)) / null.std(0)]
    np.testing.assert_allclose(found.familywise[there], np.maximum(want, found.p[there]))
    np.testing.assert_allclose(found.fdr[there], scipy.stats.false_discovery_control(found.p[there]))
    assert np.isnan([found.p[3], found.familywise[3], found.fdr[3]]).all()
    assert found.familywise[2] == 1 / 301
    with pytest.raises(ValueError, match="rdm2: want 9 stimuli"):
        rsa.studentized_tests(data, models[:, :3])


@pytest.mark.parametrize(("data_sets", "most"), [(40, 0.2), pytest.param(400, 0.1, marks=pytest.mark.slow)])
def test_one_of_many_systems_with_the_same_profile_of_noise(data_sets, most):
    """The familywise rate at 5 %, of 6 unrelated systems. 40 at a rate of .07 have up to 20 % in 99.8 % of cases."""
    found = {"studentized": [], "plain": [], "uncorrected": []}
    for seed in range(data_sets):
        draw = np.random.default_rng(seed)
        deviation = np.exp(draw.uniform(0, np.log(5), size=(20, 1)))
        systems = (draw.normal(size=(20, 50)) + deviation * draw.normal(size=(2, 20, 50)) for _ in range(7))
        data, *models = (rsa.rdm_of_repeats(x) for x in systems)
        tests = rsa.studentized_tests(data, np.stack(models), permutations=199, seed=seed)
        found["studentized"].append(tests.familywise.min())
        found["uncorrected"].append(tests.p.min())
        found["plain"].append(rsa.permutation_tests(data, np.stack(models), permutations=199).familywise.min())
    rates = {name: np.mean(np.array(p) <= 0.05) for name, p in found.items()}
    print(rates)
    assert rates["studentized"] <= most
    assert rates["uncorrected"] > rates["studentized"] + 0.05
    assert rates["plain"] > rates["studentized"] + 0.05


def test_related_systems_are_found():
    """Power: what is related is found about as often as by plain permutations where noise is equal."""
    hits = {"studentized": 0, "plain": 0}
    for seed in range(40):
        draw = np.random.default_rng(seed)
        signal = draw.normal(size=(20, 50))
        pair = [rsa.rdm_of_repeats(signal + 1.5 * draw.normal(size=(4, 20, 50))) for _ in range(2)]
        hits["studentized"] += rsa.studentized_test(*pair, permutations=199).p <= 0.05
        hits["plain"] += rsa.permutation_test(*pair, permutations=199).p <= 0.05
    assert hits["plain"] > 30
    assert hits["studentized"] >= 0.85 * hits["plain"]


# Reliability and ceilings of repeats -------------------------------------------------------------------------------


def measured(draw, signal, repeats, spread):
    deviation = np.exp(draw.uniform(0, np.log(spread), size=(len(signal), 1)))
    return signal + deviation * draw.normal(size=(repeats, *signal.shape))


# Dissimilarity, repeats, size of the signal, range of noise, size of the common response, method.
RELIABILITIES = [
    ("euclidean", 2, 1.0, 1.0, 0.0, "pearson"),
    ("euclidean", 3, 1.0, 1.0, 0.0, "pearson"),
    ("euclidean", 5, 0.5, 1.0, 0.0, "spearman"),
    ("correlation", 3, 1.0, 1.0, 0.0, "rho-a"),
    ("correlation", 5, 0.6, 1.0, 0.0, "whitened-pearson"),
    ("crossnobis", 8, 1.0, 3.0, 2.0, "pearson"),
    ("crossnobis", 5, 1.0, 1.0, 0.0, "pearson"),
]


@pytest.mark.parametrize(("dissimilarity", "repeats", "size", "spread", "common", "method"), RELIABILITIES)
@pytest.mark.parametrize("data_sets", [120, pytest.param(1000, marks=pytest.mark.slow)])
def test_bounds_of_reliability_and_ceiling(dissimilarity, repeats, size, spread, common, method, data_sets):
    """The similarity of two measurements, and of a true model, from other repeats, are between the bounds."""
    draw, plain = np.random.default_rng(0), {"crossnobis": "euclidean"}.get(dissimilarity, dissimilarity)
    crossvalidated = dissimilarity == "crossnobis"
    halves, again, true = [], [], []
    for _ in range(data_sets):
        signal = size * draw.normal(size=(16, 40)) + common * draw.normal(size=40)
        both = measured(draw, signal, 2 * repeats, spread)
        truth = rsa.rdm_of_repeats(signal[None], plain, crossvalidate=False)
        one, two = (
            rsa.rdm_of_repeats(x, plain, crossvalidate=crossvalidated) for x in (both[:repeats], both[repeats:])
        )
        halves.append(rsa.reliability(both[:repeats], method, dissimilarity=dissimilarity, splits=2).of_half)
        again.append(rsa.compare(one, two, method))
        true.append(rsa.compare(one, truth, method))
    found = rsa.Reliability(np.array(halves), repeats, repeats // 2, crossvalidated, method)
    slack = 3 * np.std(again) / np.sqrt(data_sets)
    assert found.of_all[0] - slack < np.mean(again) < found.of_all[1] + slack
    assert found.ceiling[0] - slack < np.mean(true) < found.ceiling[1] + slack
    assert 2 * found.of_half / (1 + found.of_half) < np.mean(true)  # a reliability is no ceiling


def test_a_bias_that_halves_share_is_no_reliability():
    """What is warned of: averages of repeats with unequal noise. Cross-validated, the bounds are right."""
    draw, found = np.random.default_rng(0), {True: [], False: []}
    for _ in range(100):
        signal = draw.normal(size=(16, 40)) + 2 * draw.normal(size=40)
        x, truth = measured(draw, signal, 8, 3.0), rsa.rdm_of_repeats(signal[None], "correlation", crossvalidate=False)
        for crossvalidate, each in found.items():
            reliable = rsa.reliability(x, crossvalidate=crossvalidate, splits=2)
            rdm = rsa.rdm_of_repeats(x, "correlation", crossvalidate=crossvalidate)
            each.append([reliable.of_half, rsa.compare(rdm, truth)])
    for crossvalidate, each in found.items():
        half, true = np.mean(each, 0)
        low, high = rsa.Reliability(np.array([half]), 8, 4, crossvalidate, "pearson").ceiling
        assert (low - 0.03 < true < high + 0.03) == crossvalidate
        if not crossvalidate:
            assert true < low - 0.1


def test_split_half_options():
    x = repeated(repeats=5, stimuli=9)
    plain = rsa.split_half(x, splits=4, seed=3)
    np.testing.assert_array_equal(plain, rsa.reliability(x, splits=4, seed=3).halves)
    found = rsa.reliability(x, splits=7)
    assert (found.repeats, found.half, found.undefined) == (5, 2, 0)
    factors = [2.5 * found.of_half / (1 + 1.5 * found.of_half), 6.25 * found.of_half / (1 + 5.25 * found.of_half)]
    assert found.of_all == pytest.approx(sorted(factors))
    whitened = rsa.split_half(x, "whitened-cosine", splits=3, sigma_k=rsa.stimulus_noise(x))
    assert (whitened != rsa.split_half(x, "whitened-cosine", splits=3)).all()
    order = np.random.default_rng(6).permutation(5)
    precision = rsa.noise_precision(x, shrinkage="diagonal")
    one, two = (rsa.rdm_of_repeats(x[part], "crossnobis", noise=precision) for part in (order[:2], order[2:4]))
    got = rsa.split_half(x, dissimilarity="crossnobis", noise=precision, splits=1, seed=6)
    assert got[0] == pytest.approx(rsa.compare(one, two))
    plain = rsa.split_half(x, dissimilarity="mahalanobis", noise=precision, splits=1, seed=6)
    scaled = rsa.split_half(x * np.sqrt(precision), dissimilarity="euclidean", splits=1, seed=6)
    assert plain[0] == pytest.approx(scaled[0])
    assert np.isnan(rsa.reliability(x, "tau-a", splits=2).ceiling).all()
    negative = rsa.Reliability(np.array([-0.2]), 2, 1, False, "pearson")
    assert negative.of_all[0] < negative.of_all[1] < 0
    assert np.isnan(negative.ceiling).all()
    empty = rsa.Reliability(np.array([np.nan]), 2, 1, False, "pearson")
    assert np.isnan([empty.of_half, *empty.of_all, *empty.ceiling]).all()
    assert empty.undefined == 1
    for message, options in {
        "splits: want at least 1, got 0": {"splits": 0},
        "method: want one of": {"method": "kappa"},
        "dissimilarity: want one of euclidean": {"dissimilarity": "poisson", "crossvalidate": True},
        "noise: want None beside dissimilarity 'correlation'": {"noise": precision},
    }.items():
        with pytest.raises(ValueError, match=message):
            rsa.reliability(x, **options)
    with pytest.raises(ValueError, match="responses: want at least 4 repeats to cross-validate halves, got 3"):
        rsa.reliability(x[:3], crossvalidate=True)
