"""Representational similarity analysis: comparison, inference, searchlights, maps, activations."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.spatial.distance import squareform

from v1fast import functional, ops, rsa
from v1fast.rsa import _sums, _tiles, permutation, resampling, similarity

STIMULI = 14


def rdms(count=1, stimuli=STIMULI, shared=0.0, seed=0):
    """Correlation RDMs of responses that have a part in common."""
    draw = np.random.default_rng(seed)
    common = draw.normal(size=(stimuli, 30))
    found = functional.rdm(shared * common + draw.normal(size=(count, stimuli, 30)), condensed=True)
    return found[0] if count == 1 else found


def whitened(a, b, centred=False):
    """By the covariance of distances under independent noise, written out (Diedrichsen et al. 2021, eq. 13)."""
    if centred:
        a, b = a - np.nanmean(a), b - np.nanmean(b)
    stimuli = round((1 + np.sqrt(1 + 8 * len(a))) / 2)
    i, j = np.triu_indices(stimuli, 1)
    contrasts = np.eye(stimuli)[i] - np.eye(stimuli)[j]
    covariance = (contrasts @ contrasts.T) ** 2
    present = ~np.isnan(a) & ~np.isnan(b)
    inverse = np.linalg.inv(covariance[present][:, present])
    a, b = a[present], b[present]
    return a @ inverse @ b / np.sqrt((a @ inverse @ a) * (b @ inverse @ b))


def tau_a(a, b):
    signs = np.sign(np.subtract.outer(a, a)) * np.sign(np.subtract.outer(b, b))
    return signs.sum() / (len(a) * (len(a) - 1))


def rho_a(a, b):
    r, s = (scipy.stats.rankdata(v) - (len(v) + 1) / 2 for v in (a, b))
    return 12 * (r @ s) / (len(a) ** 3 - len(a))


BY_THE_BOOK = {
    "pearson": lambda a, b: np.corrcoef(a, b)[0, 1],
    "spearman": lambda a, b: scipy.stats.spearmanr(a, b).statistic,
    "rho-a": rho_a,
    "tau-a": tau_a,
    "tau-b": lambda a, b: scipy.stats.kendalltau(a, b).statistic,
    "cosine": lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b),
    "whitened-pearson": lambda a, b: whitened(a, b, centred=True),
    "whitened-cosine": whitened,
}


# Comparison ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", similarity.METHODS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compare_by_the_book(method, dtype, ties):
    a, b = rdms(3, shared=1).astype(dtype), rdms(2, shared=1, seed=1).astype(dtype)
    if ties:
        a, b = np.round(a, 1), np.round(b, 1)
    got = rsa.compare(a, b, method)
    want = [[BY_THE_BOOK[method](x.astype(float), y.astype(float)) for y in b] for x in a]
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
    assert rsa.compare(a[0], b[1], method) == pytest.approx(want[0][1], abs=1e-12)
    assert isinstance(rsa.compare(a[0], b[1], method), float)


@pytest.mark.parametrize("method", similarity.METHODS)
def test_positions_that_are_nan_in_any_are_left_out(method):
    a, b = rdms(2, shared=1), rdms(2, shared=1, seed=1)
    a[0, 3] = a[1, 20] = b[1, 50] = np.nan
    present = ~np.isnan(a).any(0) & ~np.isnan(b).any(0)
    if method.startswith("whitened"):
        x, y = (np.where(present, v, np.nan) for v in (a[1], b[0]))
        want = whitened(x, y, centred=method.endswith("pearson"))
    else:
        want = BY_THE_BOOK[method](a[1][present], b[0][present])
    got = rsa.compare(a, b, method)
    assert got.shape == (2, 2)
    assert got[1, 0] == pytest.approx(want, abs=1e-11)


@pytest.mark.parametrize("method", ["pearson", "cosine", "whitened-cosine", "spearman"])
def test_a_stimulus_without_responses_is_as_if_it_were_not_there(method):
    x, y = torch.randn(2, STIMULI, 20, dtype=torch.float64)
    others = torch.arange(STIMULI) != 4
    want = rsa.compare(functional.rdm(x[others]), functional.rdm(y[others]), method)
    x[4] = 1.81
    assert rsa.compare(functional.rdm(x), functional.rdm(y), method) == pytest.approx(want, abs=1e-12)


def test_forms_of_a_matrix():
    a, b = rdms(3), rdms(seed=1)
    squares = np.stack([squareform(v) for v in a])
    want = rsa.compare(a, b)
    assert want.shape == (3,)
    for first, second in (
        (squares, squareform(b)),
        (torch.from_numpy(squares), torch.from_numpy(b)),
        (a.tolist(), b.tolist()),
        (a, b[None]),
    ):
        got = rsa.compare(first, second)
        assert got.shape == ((3,) if np.ndim(second) != 2 or np.shape(second)[0] != 1 else (3, 1))
        np.testing.assert_allclose(got.ravel(), want, rtol=1e-14)
    assert rsa.compare(squares[0], squares[1]) == pytest.approx(rsa.compare(a[0], a[1]))
    # As many RDMs as pairs: rows, not a matrix.
    assert rsa.compare(rdms(6, stimuli=4), rdms(stimuli=4)).shape == (6,)
    assert rsa.compare(np.arange(6, dtype=np.int64), np.arange(6, 0, -1)) == pytest.approx(-1)
    assert rsa.compare(rdms().astype(np.float16), rdms().astype(np.float16)) == 1


def test_rsatoolboxs_names():
    a, b = rdms(), rdms(seed=1)
    for theirs, ours in similarity.RSATOOLBOX_NAMES.items():
        assert rsa.compare(a, b, theirs) == rsa.compare(a, b, ours)


def test_constant_matrices_have_no_correlation():
    a, ones, zeros = rdms(), np.ones_like(rdms()), np.zeros_like(rdms())
    for method in ("pearson", "spearman", "whitened-pearson"):
        assert np.isnan(rsa.compare(a, ones, method))
    assert rsa.compare(ones, ones, "cosine") == pytest.approx(1)
    assert np.isnan(rsa.compare(a, zeros, "cosine"))
    assert np.isnan(rsa.compare(a, np.full_like(a, np.nan)))


def test_deviations_that_are_small_beside_the_mean():
    a, b = rdms(shared=1), rdms(shared=1, seed=1)
    want = rsa.compare(a, b)
    for scale in (1e-3, 1e-6, 1e-9):
        # The rounded deviations are taken as exact: this tests the sums.
        x, y = 1 + scale * a, 1 + scale * b
        exact = scipy.stats.pearsonr((x - 1) / scale, (y - 1) / scale).statistic
        assert rsa.compare(x, y) == pytest.approx(exact, abs=1e-9)
        assert rsa.compare(x, y) == pytest.approx(want, abs=1e-15 / scale + 1e-9)


def test_more_than_a_piece_at_a_time(monkeypatch):
    a, b = rdms(2, shared=1), rdms(3, shared=1, seed=1)
    want = {method: rsa.compare(a, b, method) for method in similarity.METHODS}
    monkeypatch.setattr(_sums, "PIECE", 16)
    for method, values in want.items():
        np.testing.assert_allclose(rsa.compare(a, b, method), values, rtol=0, atol=1e-12)


BAD = {
    "method: want one of pearson, spearman,": {"method": "kappa"},
    "rdm: want the S (S - 1) / 2 pairs of S stimuli, got 4": {"rdm1": np.ones(4)},
    "rdm2: want 91 pairs of stimuli, as rdm1 has, got 6": {"rdm2": np.ones(6)},
    "rdm1: want [S, S], [P], [M, S, S] or [M, P], got (1, 1, 2, 2)": {"rdm1": np.ones((1, 1, 2, 2))},
    "rdm1: want [M, S, S], got (2, 3, 4)": {"rdm1": np.ones((2, 3, 4))},
    "rdm1: want numbers, got <U1": {"rdm1": np.array(["a"])},
}


@pytest.mark.parametrize("message", BAD)
def test_compare_rejects(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        rsa.compare(**{"rdm1": rdms(), "rdm2": rdms(), **BAD[message]})


# Straight from the responses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", similarity.STREAMED)
@pytest.mark.parametrize("dissimilarity", _tiles.METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rdm_correlation_is_that_of_the_matrices(monkeypatch, method, dissimilarity, dtype):
    monkeypatch.setattr(similarity, "SIDE", 40)
    common = torch.randn(130, 20, dtype=dtype)
    x, y = torch.cat([common, torch.randn(130, 30, dtype=dtype)], 1) + 0.2, common + torch.randn(130, 20, dtype=dtype)
    x[9], y[77, 2] = 0, torch.nan  # constant; a gap
    matrices = [functional.rdm(v, method=dissimilarity, condensed=True) for v in (x, y)]
    want = rsa.compare(*matrices, method)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    got = rsa.rdm_correlation(x, y, method, dissimilarity=dissimilarity)
    assert got == pytest.approx(want, abs=tolerance)
    assert rsa.rdm_correlation(x.numpy(), y, method, dissimilarity=dissimilarity) == got
    assert abs(got) > 0.1


def test_rdm_correlation_rejects():
    x = torch.randn(5, 4)
    for message, given in {
        "method: want one of pearson, cosine, got 'spearman'": {"method": "spearman"},
        "dissimilarity: want one of correlation, cosine, euclidean, got 'poisson'": {"dissimilarity": "poisson"},
        "y: want [S, M] with S = 5, that of x, got (4, 4)": {"y": x[:4]},
        "x: want [S, N], got (1, 5, 4)": {"x": x[None]},
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            rsa.rdm_correlation(**{"x": x, "y": x, **given})


@pytest.mark.skipif(ops.loaded["native"] != "loaded", reason="the reference's tiles take more")
def test_rdm_correlation_keeps_no_matrix():
    import importlib

    memory = importlib.import_module("v1fast.benchmarks.memory")
    x, y = torch.randn(2, 12_000, 20)
    _, peak = memory.peak_of(lambda: rsa.rdm_correlation(x, y), "cpu")
    if peak is None:
        pytest.skip("this system does not let a process reset its high-water mark")
    # Each matrix has 549 MiB; a tile of each, which are there at the same time, 46, and what products take beside.
    assert peak < 200 * 2**20


OTHER_THREADS = """
import time
import torch
from v1fast import rsa
torch.set_num_threads(1)
x = torch.randn(1500, 20)
rsa.rdm_correlation(x, x)
everywhere, here = time.process_time(), time.thread_time()
for _ in range(5):
    rsa.rdm_correlation(x, x)
everywhere, here = time.process_time() - everywhere, time.thread_time() - here
print((everywhere - here) / here)
"""


@pytest.mark.once
def test_rdm_correlation_works_on_no_other_threads_than_torchs():
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "4"}
    options = {"env": environment, "check": True, "capture_output": True, "text": True}
    assert float(subprocess.run([sys.executable, "-c", OTHER_THREADS], **options).stdout) < 0.1


# Inference -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", permutation.PERMUTED)
def test_permutations_are_comparisons_of_relabelled_matrices(method):
    a, b = rdms(shared=1), rdms(shared=1, seed=1)
    found = rsa.permutation_test(a, b, method, permutations=20, seed=4)
    square = squareform(b)
    orders = ops.random_permutations.random_permutations(torch.tensor([4]), 20, STIMULI).numpy()
    want = [rsa.compare(a, squareform(square[p][:, p], checks=False), method) for p in orders]
    np.testing.assert_allclose(found.null, want, atol=1e-6)
    assert found.similarity == pytest.approx(rsa.compare(a, b, method), abs=1e-12)
    assert found.p == (1 + sum(value >= found.similarity for value in want)) / 21


def test_permutation_test_tells_chance_from_more():
    p = [rsa.permutation_test(rdms(seed=s), rdms(seed=s + 100), permutations=199).p for s in range(40)]
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    assert rsa.permutation_test(rdms(shared=2), rdms(2, shared=2)[1]).p == 1 / 1001


def test_shifts_keep_neighbours_together():
    """Two unrelated systems, each smooth along the axis: a permutation of labels finds them related, shifts do not."""
    angle = np.arange(36) * 2 * np.pi / 36
    distance = np.abs(np.sin((angle[:, None] - angle) / 2))
    draw = np.random.default_rng(0)
    waves = np.stack([np.cos(k * angle[:, None] + draw.uniform(0, 6, 30)) for k in (2, 3)])
    other = functional.rdm(draw.normal(size=(30,)) * waves[0] + draw.normal(size=(30,)) * waves[1])
    other = other + 3 * distance
    found = rsa.permutation_test(distance, other, shifts=True)
    assert len(found.null) == 35
    square = other
    for shift in (1, 7, 35):
        order = (np.arange(36) + shift) % 36
        assert found.null[shift - 1] == pytest.approx(rsa.compare(distance, square[order][:, order]), abs=1e-6)
    assert rsa.permutation_test(distance, other).p < 0.01
    assert found.p > 0.1


def test_permutation_leaves_out_stimuli_without_responses():
    a, b = squareform(rdms(shared=1)), squareform(rdms(shared=1, seed=1))
    others = np.arange(STIMULI) != 3
    want = rsa.permutation_test(a[others][:, others], b[others][:, others])
    a[3], a[:, 3] = np.nan, np.nan
    found = rsa.permutation_test(a, b)
    assert (found.similarity, found.p) == (pytest.approx(want.similarity), want.p)
    b[1, 2] = b[2, 1] = np.nan
    with pytest.raises(ValueError, match="want NaN in whole rows alone"):
        rsa.permutation_test(a, b)
    with pytest.raises(ValueError, match="rdm2: want one matrix, got 2"):
        rsa.permutation_test(rdms(), rdms(2))
    with pytest.raises(ValueError, match="method: want one of pearson, spearman, rho-a, cosine"):
        rsa.permutation_test(rdms(), rdms(), "tau-a")


def test_average_repeats():
    x = np.random.default_rng(0).normal(size=(4, 5, 3))
    x[0, 1, 2] = np.nan
    means, labels = rsa.average_repeats(x)
    np.testing.assert_allclose(means, np.nanmean(x, 0))
    assert labels.tolist() == [0, 1, 2, 3, 4]
    trials, order = x.reshape(20, 3), np.tile(list("badce"), 4)
    found, names = rsa.average_repeats(torch.from_numpy(trials), order)
    assert names.tolist() == list("abcde")
    np.testing.assert_allclose(found, means[[1, 0, 3, 2, 4]])
    with pytest.raises(ValueError, match=r"stimuli: want \[T\] for responses \[T, N\]"):
        rsa.average_repeats(trials, order[1:])
    with pytest.raises(ValueError, match=r"responses: want \[repeats, S, N\]"):
        rsa.average_repeats(trials)


def test_split_half_is_the_similarity_of_halves():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(STIMULI, 40)) + draw.normal(size=(5, STIMULI, 40))
    got = rsa.split_half(x, "spearman", dissimilarity="euclidean", splits=3, seed=2)
    draw = np.random.default_rng(2)
    for value in got:
        order = draw.permutation(5)
        halves = [functional.rdm(x[order[k : k + 2]].mean(0), method="euclidean", condensed=True) for k in (0, 2)]
        assert value == rsa.compare(*halves, "spearman")
    assert rsa.split_half(x, splits=50).mean() > rsa.split_half(x[:2], splits=50).mean() > 0.1
    with pytest.raises(ValueError, match=r"responses: want \[repeats >= 2, S, N\]"):
        rsa.split_half(x[:1])


@pytest.mark.parametrize("method", similarity.METHODS)
def test_noise_ceiling_bounds_the_truth(method):
    truth = rdms(shared=2)
    draw = np.random.default_rng(3)
    subjects = truth + 0.2 * draw.normal(size=(6, len(truth)))
    lower, upper = rsa.noise_ceiling(subjects, method)
    assert 0 < lower < upper < 1
    if method == "pearson":
        z = scipy.stats.zscore(subjects, axis=1)
        want = np.mean([np.corrcoef(s, np.delete(z, m, 0).mean(0))[0, 1] for m, s in enumerate(subjects)])
        assert lower == pytest.approx(want)
    subjects[2, 5] = np.nan
    assert 0 < rsa.noise_ceiling(subjects, method)[0] < 1
    with pytest.raises(ValueError, match="rdms: want a set of at least 2 matrices, got 1"):
        rsa.noise_ceiling(truth, method)


@pytest.mark.parametrize("method", ["pearson", "cosine"])
def test_bootstrap_by_weights_is_bootstrap_one_by_one(method):
    a, b = rdms(3, shared=1), rdms(2, shared=1, seed=1)
    a[1, 7] = np.nan
    counts = np.random.default_rng(0).multinomial(STIMULI, np.full(STIMULI, 1 / STIMULI), size=6)
    np.testing.assert_allclose(
        resampling.resample_by_weights(a, b, method, counts),
        resampling.resample_one_by_one(a, b, method, counts),
        atol=1e-12,
    )


@pytest.mark.parametrize("method", ["pearson", "spearman", "whitened-cosine"])
def test_bootstrap_over_what(method):
    a, b = rdms(4, shared=1), rdms(2, shared=1, seed=1)
    spread = {}
    for over in resampling.RESAMPLED:
        found = rsa.bootstrap(a, b, method, over=over, samples=60)
        np.testing.assert_allclose(found.similarity, rsa.compare(a, b, method).mean(0))
        assert found.samples.shape == (60, 2)
        low, high = found.confidence(0.9)
        assert (low < high).all()
        np.testing.assert_allclose(found.percentiles(0.9)[:, 0], np.quantile(found.samples[:, 0], [0.05, 0.95]))
        assert found.reason == ""
        spread[over] = found.samples.std(0).mean()
    assert spread["both"] > max(spread["subjects"], 0.7 * spread["stimuli"])
    again = rsa.bootstrap(a, b, method, over="both", samples=60)
    assert np.array_equal(again.samples, found.samples)
    with pytest.raises(ValueError, match="over: want one of stimuli, subjects, both, got 'repeats'"):
        rsa.bootstrap(a, b, over="repeats")
    with pytest.raises(ValueError, match="models: want 91 pairs of stimuli"):
        rsa.bootstrap(a, np.ones(6))


# Searchlight -----------------------------------------------------------------------------------------------------


def test_searchlight_is_the_matrix_of_each_neighbourhood():
    draw = np.random.default_rng(0)
    responses, positions = draw.normal(size=(9, 60)).astype(np.float32), draw.uniform(size=(60, 2))
    responses[:, 13] = 0
    neighbours = [*rsa.neighbourhoods(positions, radius=0.2), np.array([], dtype=np.int64), np.array([13, 13])]
    assert len({len(each) for each in neighbours}) > 5
    got = rsa.searchlight_rdms(responses, neighbours, batch=300)
    assert got.dtype == np.float32
    for each, found in zip(neighbours[:-2], got, strict=False):
        np.testing.assert_allclose(found, functional.rdm(responses[:, each], condensed=True), atol=1e-6)
    assert np.isnan(got[-2:]).all()
    models = functional.rdm(draw.normal(size=(2, 9, 5)), condensed=True)
    for batch in (300, 1 << 24):
        similar = rsa.searchlight(torch.from_numpy(responses), neighbours, models, "spearman", batch=batch)
        assert similar.shape == (62, 2)
        for each, found in zip(got[:-2], similar, strict=False):
            np.testing.assert_allclose(found, rsa.compare(each, models, "spearman"), atol=1e-12)
        assert np.isnan(similar[-2:]).all()
    with pytest.raises(ValueError, match="models: want 36 pairs of stimuli"):
        rsa.searchlight(responses, neighbours, np.ones(6))


def test_neighbourhoods():
    positions = np.array([[0.0], [1.0], [2.5], [9.0]])
    assert [found.tolist() for found in rsa.neighbourhoods(positions, radius=1.5)] == [[0, 1], [0, 1, 2], [1, 2], [3]]
    assert [found.tolist() for found in rsa.neighbourhoods(positions, count=2)] == [[0, 1], [0, 1], [1, 2], [2, 3]]
    assert [found.tolist() for found in rsa.neighbourhoods(positions, count=1)] == [[0], [1], [2], [3]]
    for bad in ({}, {"radius": 1, "count": 1}, {"count": 5}, {"count": 0}):
        with pytest.raises(ValueError, match="count: want"):
            rsa.neighbourhoods(positions, **bad)


# Maps and tuning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stimuli", "neurons"), [(30, 200), (200, 30)])
def test_pca_is_that_of_the_singular_values(monkeypatch, stimuli, neurons):
    x = 3 + np.random.default_rng(0).normal(size=(stimuli, neurons)) @ np.diag(np.linspace(3, 0.1, neurons))
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    for dense in (1000, 10):
        from v1fast.rsa import embedding

        monkeypatch.setattr(embedding, "DENSE", dense)
        found = rsa.pca(x, 5)
        np.testing.assert_allclose(np.abs(found.scores), np.abs(u * s)[:, :5], atol=1e-9)
        np.testing.assert_allclose(found.explained, (s**2 / (s**2).sum())[:5], rtol=1e-10)
        assert (found.scores[np.abs(found.scores).argmax(0), range(5)] > 0).all()
    assert np.abs(rsa.pca(x.astype(np.float32), 5).scores - found.scores).max() < 1e-3
    for message, given in {
        "components: want 1 .. 30": (x, 31),
        "responses: want finite values": (np.full((3, 2), np.nan), 1),
        "responses: want [S >= 2, N]": (x[0], 1),
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            rsa.pca(*given)


def test_mds_gives_points_at_the_distances():
    points = np.random.default_rng(0).normal(size=(12, 3))
    rdm = functional.rdm(points, method="euclidean") * 3
    found = rsa.mds(rdm, 3)
    np.testing.assert_allclose(functional.rdm(found.scores, method="euclidean") * 3, rdm, atol=1e-9)
    assert found.explained.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="rdm: want one matrix without NaN"):
        rsa.mds(np.full(6, np.nan))
    with pytest.raises(ValueError, match=r"components: want 1 \.\. 11, got 12"):
        rsa.mds(rdm, 12)


def test_tsne_keeps_neighbours():
    pytest.importorskip("sklearn")
    angle = np.arange(40) * 2 * np.pi / 40
    draw = np.random.default_rng(0)
    x = np.cos(angle[:, None] - draw.uniform(0, 2 * np.pi, 30)) + 0.01 * draw.normal(size=(40, 30))
    found = rsa.tsne(x, perplexity=6)
    assert found.shape == (40, 2)
    nearest = np.argsort(np.linalg.norm(found[:, None] - found, axis=2), axis=1)[:, 1:3]
    steps = np.abs((nearest - np.arange(40)[:, None] + 20) % 40 - 20)
    assert (steps <= 2).mean() > 0.9
    with pytest.raises(ValueError, match="perplexity: want more than 0 and less than S = 40, got 40"):
        rsa.tsne(x, perplexity=40)


def test_tuning_curves_by_hand():
    stimuli = np.array([0.0, 1, 1, 2, 4, 5, 9.0])
    responses = np.arange(14.0).reshape(7, 2)
    each = rsa.tuning_curves(responses, stimuli)
    assert each.centre.tolist() == [0, 1, 2, 4, 5, 9]
    assert each.count.tolist() == [1, 2, 1, 1, 1, 1]
    np.testing.assert_allclose(each.mean[1], [3, 4])
    np.testing.assert_allclose(each.error[1], [1, 1])
    assert np.isnan(each.error[0]).all()
    binned = rsa.tuning_curves(torch.from_numpy(responses), stimuli, 3)  # 0-3, 3-6, 6-9
    np.testing.assert_allclose(binned.centre, [1, 4.5, 9])
    np.testing.assert_allclose(binned.mean[:, 0], [3, 9, 12])
    edges = rsa.tuning_curves(responses[:, 0], stimuli, [1, 4, 5])  # 9 and 0 in none; 5 in the last
    assert edges.count.tolist() == [3, 2]
    circle = rsa.tuning_curves(responses, stimuli, 2, period=4)  # 0 1 1 2 0 1 1
    assert circle.count.tolist() == [6, 1]
    for bad in ({"bins": 0}, {"bins": [2, 1]}, {"stimuli": stimuli[1:]}):
        with pytest.raises(ValueError, match=r"(bins|stimuli): want"):
            rsa.tuning_curves(**{"responses": responses, "stimuli": stimuli, **bad})


def test_rows_nearest():
    rdm = squareform(np.arange(6.0))
    places, rows = rsa.rows_nearest(rdm, [0, 10, 20, 30], [12, -5])
    assert places.tolist() == [10, 0]
    np.testing.assert_array_equal(rows, rdm[[1, 0]])
    with pytest.raises(ValueError, match=r"stimuli: want \[S\] = \(4,\)"):
        rsa.rows_nearest(rdm, [0, 10], [1])


# Activations -----------------------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 3, 3)
        self.relu = torch.nn.ReLU(inplace=True)
        self.dropout = torch.nn.Dropout(0.5)
        self.fc = torch.nn.Linear(48, 5)
        self.extra = torch.nn.Linear(1, 1)

    def forward(self, x):
        return self.fc(self.dropout(self.relu(self.conv(x)).flatten(1)))


def test_activations_are_the_layers_outputs():
    model = Model()
    model.conv.eval()
    stimuli = torch.randn(7, 1, 6, 6)
    found = rsa.activations(model, stimuli, ["conv", "fc", ""], batch=3)
    with torch.no_grad():
        conv = model.conv(stimuli)
        fc = model.fc(conv.relu().flatten(1))
    # Before the ReLU, though that writes over it; without dropout.
    torch.testing.assert_close(found["conv"], conv.flatten(1))
    torch.testing.assert_close(found["fc"], fc)
    torch.testing.assert_close(found[""], fc)
    assert model.training
    assert not model.conv.training
    assert not any(value.requires_grad for value in found.values())
    again = rsa.activations(model.double(), stimuli.numpy(), ["fc"])
    assert again["fc"].dtype == torch.float64
    torch.testing.assert_close(again["fc"].float(), fc)


def test_hooks_are_gone_whatever_happens():
    model = Model()
    stimuli = torch.randn(2, 1, 6, 6)

    def hooks():
        return [hook for module in model.modules() for hook in module._forward_hooks]

    rsa.activations(model, stimuli, ["conv"])
    assert hooks() == []
    with pytest.raises(RuntimeError):
        rsa.activations(model, stimuli[:, :, :2], ["conv"])
    assert hooks() == []
    assert model.training
    with rsa.recording(model, ["fc"]) as found:
        model(stimuli)
        assert found["fc"].shape == (2, 5)
        with pytest.raises(ValueError, match="want layers that run once in a pass, got fc"):
            model(stimuli)
        assert len(hooks()) == 1
    assert hooks() == []


def test_activations_reject():
    model, stimuli = Model(), torch.randn(2, 1, 6, 6)
    with pytest.raises(ValueError, match="layers: want names of conv, relu, dropout, fc, extra, got fc2"):
        rsa.activations(model, stimuli, ["fc", "fc2"])
    with pytest.raises(ValueError, match=r"want \[batch, \.\.\.\] with 2 stimuli from extra, got none"):
        rsa.activations(model, stimuli, ["extra"])
    with pytest.raises(ValueError, match="want layers that return a tensor, got 0: tuple"):
        rsa.activations(torch.nn.Sequential(torch.nn.LSTM(3, 3)), torch.randn(2, 3), ["0"])
