"""What is undefined is NaN, in every function of v1fast.rsa; what only looks undefined has its right value."""

import warnings

import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import squareform

from v1fast import functional, rsa
from v1fast.rsa import _defined, permutation, resampling, similarity

STIMULI = 10
PAIRS = STIMULI * (STIMULI - 1) // 2
OF_DEVIATIONS = [method for method in similarity.METHODS if not method.endswith("cosine")]
DRAW = np.random.default_rng(0)


def rdms(count=None, stimuli=STIMULI):
    shape = (stimuli, 20) if count is None else (count, stimuli, 20)
    return functional.rdm(DRAW.normal(size=shape), condensed=True)


def jittered(value, dtype):
    """Values that differ in the last bit alone, as equal values do after rounding."""
    found = np.full(PAIRS, value, dtype)
    found[::3] = np.nextafter(found[::3], dtype(10))
    return found


# Comparison ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", OF_DEVIATIONS)
@pytest.mark.parametrize("value", [0.1, 0.3, 1.81, 1 / 3, 0.0, -1 / 7, 1e160, 1e-200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_matrix_has_no_similarity(method, value, dtype):
    if dtype == np.float32 and value == 1e160:
        pytest.skip("float32 has no such value")
    constant = np.full(PAIRS, value).astype(dtype)
    other = rdms()
    for a, b in ((constant, other), (other, constant), (constant, constant)):
        assert np.isnan(rsa.compare(a, b, method))
    found = rsa.compare(np.stack([other, constant]), np.stack([constant, other]), method)
    assert np.isnan(found).tolist() == [[True, False], [True, True]]
    gaps = np.where(np.arange(PAIRS) % 9 == 2, np.nan, constant)
    assert np.isnan(rsa.compare(gaps, other, method))


@pytest.mark.parametrize("method", OF_DEVIATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_means_equal_up_to_rounding(method, dtype):
    assert np.isnan(rsa.compare(jittered(0.7, dtype), rdms(), method))
    # A few units in the last place more are values.
    some = np.full(PAIRS, 0.7, dtype)
    some[::3] += dtype(3 * _defined.CONSTANT * np.finfo(dtype).eps)
    assert rsa.compare(some, -some, method) == pytest.approx(-1, abs=0.6 if method.endswith("a") else 1e-6)


@pytest.mark.parametrize("method", ["cosine", "whitened-cosine"])
def test_cosines_are_undefined_for_zero_alone(method):
    other = rdms()
    assert np.isnan(rsa.compare(np.zeros(PAIRS), other, method))
    assert np.isfinite(rsa.compare(np.full(PAIRS, 0.1), other, method))
    assert rsa.compare(np.full(PAIRS, 1e-300), np.full(PAIRS, 1e300), method) == pytest.approx(1)


@pytest.mark.parametrize("method", similarity.METHODS)
@pytest.mark.parametrize("factors", [(1e160, 1), (1e-200, 1), (1e-200, 1e300), (1e-310, 1), (1e160, 1e160)])
def test_orders_of_magnitude_do_not_matter(method, factors):
    a, b = rdms(2), rdms(2)
    got = rsa.compare(factors[0] * a, factors[1] * b, method)
    # Of numbers below 1e-308 some digits are gone.
    np.testing.assert_allclose(got, rsa.compare(a, b, method), atol=1e-12 if min(factors) > 1e-308 else 1e-9)
    if method in permutation.PERMUTED:
        one, other = (rsa.permutation_test(f * a[0], b[0], method, permutations=50) for f in (factors[0], 1))
        assert one.similarity == pytest.approx(other.similarity, abs=1e-9)
        np.testing.assert_allclose(one.null, other.null, atol=1e-6)


def test_deviations_beside_the_mean_are_not_lost_in_whitening():
    a, b = rdms(), rdms()
    want = rsa.compare(a, b, "whitened-pearson")
    for scale in (1e-3, 1e-6, 1e-9):
        assert rsa.compare(1 + scale * a, 1 + scale * b, "whitened-pearson") == pytest.approx(
            want, abs=1e-14 / scale + 1e-11
        )


@pytest.mark.parametrize("method", similarity.METHODS)
def test_infinite_entries(method):
    a, b = rdms(), rdms()
    a[3] = np.inf
    found = rsa.compare(np.stack([a, b]), b, method)
    # Ranks are defined for infinite values too.
    ranked = method in ("spearman", "rho-a", "tau-a", "tau-b")
    assert np.isnan(found[0]) != ranked
    if ranked:
        assert found[0] == rsa.compare(np.where(np.isinf(a), 99, a), b, method)
    assert np.isfinite(found[1])


@pytest.mark.parametrize("method", similarity.METHODS)
def test_a_matrix_of_nan_leaves_the_others_what_they_have(method):
    a, b = rdms(3), rdms(2)
    want = rsa.compare(a, b, method)
    a[1], b[0] = np.nan, np.nan
    got = rsa.compare(a, b, method)
    assert np.isnan(got[1]).all()
    assert np.isnan(got[:, 0]).all()
    np.testing.assert_allclose(got[[0, 2], 1], want[[0, 2], 1], rtol=1e-12)
    nothing = np.full(PAIRS, np.nan)
    assert np.isnan(rsa.compare(nothing, nothing, method))
    odd = np.arange(PAIRS) % 2 == 1  # no position is in both
    assert np.isnan(rsa.compare(np.where(odd, np.nan, a[0]), np.where(odd, b[1], np.nan), method))


@pytest.mark.parametrize("method", similarity.STREAMED)
@pytest.mark.parametrize("dissimilarity", ["correlation", "cosine", "euclidean"])
@pytest.mark.parametrize("factor", [1, 1e160, 1e-170, 1e25])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_straight_from_responses(monkeypatch, method, dissimilarity, factor, dtype):
    if dtype == np.float32 and not 1e-30 < factor < 1e30:
        pytest.skip("float32 has no such value")
    monkeypatch.setattr(similarity, "SIDE", 5)
    x, y = DRAW.normal(size=(2, 12, 30)).astype(dtype)
    want = rsa.rdm_correlation(x, y, method, dissimilarity=dissimilarity)
    got = rsa.rdm_correlation(dtype(factor) * x, y, method, dissimilarity=dissimilarity)
    assert got == pytest.approx(want, abs=1e-5 if dtype == np.float32 else 1e-12)
    one_hot = np.eye(12, dtype=dtype)  # all stimuli are as far from each other
    assert np.isnan(rsa.rdm_correlation(one_hot, y, method, dissimilarity=dissimilarity)) == (method == "pearson")
    for nothing in (np.ones((12, 3), dtype), np.full((12, 3), np.nan, dtype)):
        # Between equal rows a cosine of 1 is rounded; what their dissimilarities are is for functional.rdm to say.
        if dissimilarity != "cosine" or np.isnan(nothing).all():
            assert np.isnan(rsa.rdm_correlation(nothing, y, method, dissimilarity=dissimilarity))


# Inference -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", permutation.PERMUTED)
@pytest.mark.parametrize("shifts", [False, True])
def test_no_p_without_a_similarity(method, shifts):
    other = rdms()
    one = squareform(rdms())
    one[1:, 1:] = np.nan  # no stimulus but the first has a pair with a third
    np.fill_diagonal(one, 0)
    cases = [np.zeros(PAIRS), np.full(PAIRS, np.nan)]
    if method != "cosine":
        cases += [np.full(PAIRS, 0.1), np.full(PAIRS, 1e160), jittered(0.7, np.float64)]
    for undefined in cases:
        for a, b in ((undefined, other), (other, undefined)):
            found = rsa.permutation_test(a, b, method, permutations=9, shifts=shifts)
            assert np.isnan([found.similarity, found.p]).all()
            assert np.isnan(found.null).all()
    if method in ("pearson", "cosine"):
        infinite = other.copy()
        infinite[4] = np.inf
        assert np.isnan(rsa.permutation_test(infinite, other, method, permutations=9).p)
    if method != "cosine":
        assert np.isnan(rsa.permutation_test(np.array([1, np.nan, np.nan]), DRAW.random(3), method).p)


def categories(stimuli=STIMULI):
    """0 within two categories, one of them of two stimuli, and 0.1 between them."""
    label = np.arange(stimuli) < 2
    return 0.1 * squareform((label[:, None] != label).astype(float))


@pytest.mark.parametrize("method", OF_DEVIATIONS)
@pytest.mark.parametrize("data", [categories() + 0.3, np.float32(0.3) + categories().astype(np.float32)])
def test_resamplings_that_lost_a_category_are_nan_and_counted(method, data):
    other = rdms()
    found = rsa.bootstrap(other, data, method, samples=100)
    drawn = np.random.default_rng(0).integers(STIMULI, size=(100, STIMULI))
    lost = np.array([(order < 2).all() or not (order < 2).any() for order in drawn])
    # One stimulus alone of each category: its repeats are left out, and all other pairs are 0.1 apart.
    alone = np.array([len(set(order[order < 2])) < 2 and len(set(order[order >= 2])) < 2 for order in drawn])
    assert lost.sum() > 5
    assert np.isnan(found.samples[:, 0]).tolist() == (lost | alone).tolist()
    assert found.undefined.tolist() == [(lost | alone).sum()]
    there = found.samples[~(lost | alone), 0]
    np.testing.assert_allclose(found.percentiles()[:, 0], np.quantile(there, [0.025, 0.975]))


@pytest.mark.parametrize("method", ["pearson", "cosine"])
@pytest.mark.parametrize("factor", [1, 1e160, 1e-200])
def test_bootstrap_by_weights_at_any_magnitude(method, factor):
    a, b = factor * rdms(3), categories()[None]
    counts = DRAW.multinomial(STIMULI, np.full(STIMULI, 1 / STIMULI), size=40)
    got = resampling.resample_by_weights(a, b, method, counts)
    np.testing.assert_allclose(got, resampling.resample_one_by_one(a, b, method, counts), atol=1e-11)
    assert np.isfinite(got).any()
    assert np.isnan(got).any()
    a[1] = np.nan
    with pytest.warns(RuntimeWarning, match="rdms: 1 of 3 have no similarity"):
        whole = rsa.bootstrap(a, b, method, samples=40).samples
    np.testing.assert_array_equal(whole, rsa.bootstrap(a[[0, 2]], b, method, samples=40).samples)


@pytest.mark.parametrize("method", similarity.METHODS)
@pytest.mark.parametrize("over", resampling.RESAMPLED)
@pytest.mark.parametrize("absent", [np.nan, 0.0, 0.1])
def test_a_subject_without_a_similarity_is_left_out_and_counted(method, over, absent):
    if absent and method.endswith("cosine") and not np.isnan(absent):
        pytest.skip("cosines have constant matrices")
    subjects, models = rdms(4), rdms(2)
    subjects[2] = absent
    others = subjects[[0, 1, 3]]
    with pytest.warns(RuntimeWarning, match="rdms: 1 of 4 have no similarity"):
        found = rsa.bootstrap(subjects, models, method, over=over, samples=30)
    np.testing.assert_allclose(found.similarity, rsa.compare(others, models, method).mean(0), rtol=1e-12)
    assert found.left_out.tolist() == [1, 1]
    assert np.isfinite(found.confidence()).all()
    with pytest.warns(RuntimeWarning, match="rdms: 1 of 4 have no similarity"):
        ceiling = rsa.noise_ceiling(subjects, method)
    np.testing.assert_allclose(ceiling, rsa.noise_ceiling(others, method), rtol=1e-12)
    subjects[:2] = absent
    with pytest.warns(RuntimeWarning, match="rdms: 3 of 4"):
        ceiling = rsa.noise_ceiling(subjects, method)
    assert np.isnan(ceiling).all()


@pytest.mark.parametrize("method", similarity.METHODS)
def test_subjects_with_gaps_in_different_places(method):
    subjects, model = rdms(3), rdms()
    for k in range(3):
        subjects[k, k::9] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(rsa.noise_ceiling(subjects, method)).all()
        assert np.isfinite(rsa.bootstrap(subjects, model, method, samples=20).similarity).all()
        for k in range(3):
            subjects[k, k::3] = np.nan  # now no position is in all
        assert np.isnan(rsa.noise_ceiling(subjects, method)).all()
        found = rsa.bootstrap(subjects, model, method, samples=20)
        assert np.isnan(found.similarity).all()
        assert np.isnan(found.confidence()).all()
        assert found.undefined.tolist() == [20]


def test_an_undefined_model_is_nan_and_not_a_subject_less():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rsa.bootstrap(rdms(3), np.stack([rdms(), np.ones(PAIRS)]), samples=20)
    assert np.isnan(found.similarity).tolist() == [False, True]
    assert found.left_out.tolist() == [0, 0]
    assert found.undefined.tolist() == [0, 20]


def test_halves_of_nothing():
    x = DRAW.normal(size=(4, STIMULI, 20))
    x[[0, 2]] = np.nan
    found = rsa.split_half(x, splits=30)
    assert 0 < np.isnan(found).sum() < 30  # those in which one half has no repeat that is there
    assert np.isnan(rsa.split_half(np.ones((4, 5, 6)), splits=3)).all()


def test_searchlight_of_silent_neighbourhoods():
    x = DRAW.normal(size=(STIMULI, 30)).astype(np.float32)
    x[:, :10] = 1.81
    x[:, 10] = np.nan
    neighbours = [np.arange(5), np.arange(10, 15), np.arange(15, 30)]
    found = rsa.searchlight(x, neighbours, rdms(2))
    assert np.isnan(found).tolist() == [[True] * 2, [True] * 2, [False] * 2]


# Maps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1e160, 1e-170, 1e25])
def test_maps_at_any_magnitude(factor):
    x = DRAW.normal(size=(12, 8))
    want, got = rsa.pca(x, 3), rsa.pca(factor * x, 3)
    np.testing.assert_allclose(got.scores / factor, want.scores, atol=1e-9)
    np.testing.assert_allclose(got.explained, want.explained, rtol=1e-9)
    rdm = rdms()
    want, got = rsa.mds(rdm), rsa.mds(factor * rdm)
    np.testing.assert_allclose(got.scores / np.sqrt(factor), want.scores, atol=1e-9)
    narrow = x.astype(np.float32) * np.float32(min(factor, 1e25))
    assert np.isfinite(rsa.pca(narrow, 3).scores).all()


def test_maps_of_stimuli_that_are_all_the_same():
    for found in (rsa.pca(np.full((5, 4), 1.81), 2), rsa.mds(np.zeros(10))):
        assert np.isnan(found.explained).all()
        assert np.abs(found.scores).max() < 1e-12
    pytest.importorskip("sklearn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(rsa.tsne(np.full((8, 4), 2.0), perplexity=2)).all()
    x = DRAW.normal(size=(12, 5))
    near = rsa.tsne(1e160 * x, perplexity=3)
    assert np.isfinite(near).all()


def test_maps_reject_what_is_not_there():
    with pytest.raises(
        ValueError, match="rdm: want one matrix without NaN or infinity, got 1, with some for 3 stimuli"
    ):
        rsa.mds(np.array([np.nan, np.inf, 1.0]))
    for call in (
        lambda: rsa.rows_nearest(np.arange(6.0), [0, np.nan, 2, 3], [1]),
        lambda: rsa.rows_nearest(np.arange(6.0), [0, 1, 2, 3], [np.nan]),
        lambda: rsa.tuning_curves(np.ones((3, 2)), [0, 1, 2], [0, np.nan, 2]),
        lambda: rsa.neighbourhoods([[0.0], [np.nan]], count=1),
    ):
        with pytest.raises(ValueError, match="want"):
            call()


# Figures ---------------------------------------------------------------------------------------------------------


def test_figures_say_what_is_undefined():
    pytest.importorskip("matplotlib")
    from figures import drawn, texts

    from v1fast.rsa import plots

    nothing, some = np.full(PAIRS, np.nan), rdms()
    some[:4] = np.nan
    for percentiles in (False, True):
        figure = plots.rdm_heatmaps({"a": nothing, "b": some, "c": rdms()}, percentiles=percentiles)
        assert f"({PAIRS} pairs undefined)" in texts(figure)
        assert "(4 pairs undefined)" in texts(figure)
        assert drawn(figure)
    assert drawn(plots.rdm_heatmaps({"a": nothing}))
    values = {"a": np.nan, "b": 0.3}
    for intervals in (None, [[np.nan, 0.1], [np.nan, 0.4]]):
        figure = plots.similarity_bars(values, intervals=intervals, ceiling=(np.nan, np.nan))
        assert "undefined" in texts(figure)
        assert drawn(figure)
    assert drawn(plots.similarity_bars({"a": np.nan}))
    assert drawn(plots.rdm_rows(np.arange(5), {"a": np.full((1, 5), np.nan)}, [2.0]))
    tuning = rsa.tuning_curves(np.stack([np.full(6, np.nan), np.arange(6.0)], 1), [0, 0, 1, 1, 2, 2])
    assert drawn(plots.tuning_curves(tuning))
    assert drawn(plots.low_dimensional_map({"a": np.full((5, 2), np.nan)}, np.arange(5)))


def test_constant_is_a_matter_of_the_values():
    eps = np.finfo(np.float64).eps
    for values, constant in {
        (1.0, 1.0): True,
        (1.0, 1 + 4 * eps): True,
        (1.0, 1 + 8 * eps): False,
        (0.0, -0.0): True,
        (0.0, 5e-324): False,
        (5e-324, 5e-324): True,
        (np.inf, 1.0): False,
        (-np.inf, np.inf): False,
        (1.7e308, -1.7e308): False,
        (-1.0, -1.0): True,
    }.items():
        assert _defined.is_constant(np.array([values])).tolist() == [constant], values
    assert _defined.is_constant(np.zeros((2, 0))).tolist() == [True, True]


def test_by_the_book_beside_undefined_ones():
    a, b = rdms(4), rdms(3)
    a[2] = 0.1
    got = rsa.compare(a, b, "spearman")
    want = [[scipy.stats.spearmanr(x, y).statistic for y in b] for x in a[[0, 1, 3]]]
    np.testing.assert_allclose(got[[0, 1, 3]], want, rtol=1e-10)
