"""Inference on dissimilarity matrices: in simulated data of known truth, by hand, and beside SciPy and rsatoolbox."""

import csv
import importlib
import itertools
import json
import warnings

import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import squareform

from v1fast import functional, rsa
from v1fast.rsa import _corrections, _leave_out, permutation, resampling, similarity

evidence = importlib.import_module("v1fast.benchmarks.rsa_inference")
STIMULI = 12


def rdms(count=None, stimuli=STIMULI, seed=0):
    shape = (stimuli, 20) if count is None else (count, stimuli, 20)
    return functional.rdm(np.random.default_rng(seed).normal(size=shape), condensed=True)


def related(subjects=6, models=3, stimuli=16, seed=0):
    """Subjects' matrices and models that have something in common."""
    draw = np.random.default_rng(seed)
    common = draw.normal(size=(stimuli, 25))
    return tuple(
        functional.rdm(common + draw.normal(size=(count, stimuli, 25)), condensed=True) for count in (subjects, models)
    )


# Intervals in simulated data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", evidence.OVERS)
def test_intervals_hold_what_they_should(over):
    """The simple bootstrap, in the same data: 82 % (subjects), 98 % and 99.6 % (both), errors of 0.8 to 1.6."""
    found = evidence.coverage(evidence.WORLDS["typical"], over, (5, 20), groups=10, each=20)
    assert 0.91 < found.models < 0.98
    assert 0.91 < found.difference < 0.985
    assert found.ratio == pytest.approx(1, abs=0.12)


@pytest.mark.slow
@pytest.mark.parametrize("world", evidence.WORLDS)
@pytest.mark.parametrize("size", evidence.SIZES)
@pytest.mark.parametrize("over", evidence.OVERS)
def test_intervals_hold_93_to_97_percent(world, over, size):
    found = evidence.coverage(evidence.WORLDS[world], over, size, groups=60, each=20)
    # Both models of 1200 data sets: a standard deviation of 0.5 %.
    assert 0.92 < found.models < 0.98
    assert 0.92 < found.difference < 0.98
    assert found.ratio == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("size", [(2, 12), (3, 8)])
def test_few_are_not_overconfident(size):
    for over in evidence.OVERS:
        found = evidence.coverage(evidence.WORLDS["typical"], over, size, groups=10, each=20)
        assert found.models > 0.9


def test_the_simulation_judges_compare_models():
    (group,) = evidence.data_sets(evidence.WORLDS["noisy"], "both", (4, 15), 1, 1, 0)
    for over in evidence.OVERS:
        values, errors, interval = evidence.by_v1fast(group[0], over)
        compared, found = rsa.compare_models(*group[0], over=over), rsa.bootstrap(*group[0], over=over, samples=2)
        np.testing.assert_allclose(values, [*compared.similarity, *compared.difference], atol=1e-12)
        np.testing.assert_allclose(interval[:, :2], compared.interval, atol=1e-12)
        np.testing.assert_allclose(interval[:, 2:], compared.difference_interval, atol=1e-12)
        np.testing.assert_allclose(interval[:, :2], found.confidence(), atol=1e-12)
        np.testing.assert_allclose(errors[:2], found.error, atol=1e-12)


def test_the_expected_value_is_that_of_as_many_stimuli():
    """Whitened cosines are biased upward with few stimuli: what an interval holds is that, not the limit."""
    found = evidence.whitened_by_size((10, 40, 160), count=15)
    assert found[10] > found[40] + 0.02 > found[160] + 0.02


# Intervals by hand -----------------------------------------------------------------------------------------------


def test_over_subjects_it_is_the_t_interval_of_their_similarities():
    a, b = related()
    each = rsa.compare(a, b)
    want = scipy.stats.t.interval(0.9, 5, each.mean(0), scipy.stats.sem(each))
    np.testing.assert_allclose(rsa.bootstrap(a, b, over="subjects", samples=2).confidence(0.9), want)
    differences = each[:, [0, 0, 1]] - each[:, [1, 2, 2]]
    found = rsa.compare_models(a, b, over="subjects")
    np.testing.assert_allclose(found.different.p, scipy.stats.ttest_1samp(differences, 0).pvalue, rtol=1e-9)
    np.testing.assert_allclose(
        found.above_zero.p, scipy.stats.ttest_1samp(each, 0, alternative="greater").pvalue, rtol=1e-9
    )


@pytest.mark.parametrize("method", ["pearson", "cosine", "spearman", "whitened-cosine"])
@pytest.mark.parametrize("grouped", [False, True])
def test_leaving_out_is_comparing_the_rest(method, grouped):
    a, b = related(stimuli=12)
    a[:, 5] = np.nan
    labels = np.repeat(np.arange(6), 2) if grouped else np.arange(12)
    found = _leave_out.leave_out(a, b, method, _leave_out.Groups(labels), 0)
    squares = [np.stack([squareform(v, checks=False) for v in vectors]) for vectors in (a, b)]
    for one, values in [(found.one[1], [1]), *zip(found.two[:4], found.twos[:4], strict=True)]:
        keep = ~np.isin(labels, one if np.ndim(one) == 0 else values)
        i, j = (np.flatnonzero(keep)[k] for k in np.triu_indices(keep.sum(), 1))
        want = rsa.compare(*(square[:, i, j] for square in squares), method)
        np.testing.assert_allclose(one, want, atol=1e-12)


def test_the_variance_of_pairs_alone_counts_once():
    """Matrices of independent pairs: samples of stimuli vary sqrt(3) times as much as similarities do."""
    draw = np.random.default_rng(0)
    found = [rsa.bootstrap(*draw.normal(size=(2, 190)), samples=100) for _ in range(100)]
    errors, spread = [each.error[0] for each in found], [each.samples[:, 0].std() for each in found]
    truth = 1 / np.sqrt(189)
    assert np.sqrt(np.mean(np.square(spread))) / truth > 1.5
    # No part is less than 0, so the mean is a little more than it should be.
    assert 0.95 < np.sqrt(np.mean(np.square(errors))) / truth < 1.25


def test_fewer_than_needed_is_nan_with_a_reason():
    subjects, models = rdms(1), rdms(2, seed=1)
    for given, over, said in (
        (subjects[0], "subjects", "over subjects: want at least 2 subjects, got 1"),
        (subjects, "both", "over subjects and stimuli: want at least 2 subjects, got 1"),
        (rdms(3, stimuli=4), "stimuli", "over stimuli: want at least 5 stimuli or categories, got 4"),
        (rdms(3, stimuli=4), "both", "want at least 5 stimuli or categories, got 4"),
    ):
        b = models if given.shape[-1] == models.shape[1] else rdms(2, stimuli=4, seed=1)
        with pytest.warns(RuntimeWarning, match=said):
            found = rsa.bootstrap(given, b, over=over, samples=20)
        assert said in found.reason
        assert np.isnan(found.confidence()).all()
        assert np.isfinite(found.similarity).all()
        if "subjects, got 1" in said:
            assert np.isnan(found.samples).all()
        with pytest.warns(RuntimeWarning, match=said):
            compared = rsa.compare_models(given, b, over=over)
        assert any(said in note for note in compared.notes)
        assert np.isnan([compared.interval, *[compared.difference_interval] * 0]).all()
        assert np.isnan([*compared.above_zero.p, *compared.different.p, *compared.below_ceiling.familywise]).all()
    # Two sessions of one subject are one subject.
    with pytest.warns(RuntimeWarning, match="want at least 2 subjects, got 1"):
        rsa.bootstrap(rdms(2), models, over="subjects", subjects=["a", "a"], samples=2)


def test_a_similarity_that_hangs_on_one_stimulus_has_no_interval():
    label = np.arange(STIMULI) == 3
    model = squareform((label[:, None] != label).astype(float))
    with pytest.warns(RuntimeWarning, match="undefined without one of the stimuli"):
        found = rsa.bootstrap(rdms(3), np.stack([model, rdms(seed=9)]), samples=300)
    assert np.isnan(found.confidence()).tolist() == [[True, False], [True, False]]
    assert 60 < found.undefined[0] < 150
    assert found.undefined[1] == 0


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_a_similarity_that_hangs_on_two_stimuli_says_so(method):
    label = np.arange(STIMULI) < 2
    model = squareform((label[:, None] != label).astype(float))
    found = rsa.bootstrap(rdms(3), np.stack([model, rdms(seed=9)]), method, samples=10)
    assert found.undefined_pairs.tolist() == [1, 0]
    assert np.isfinite(found.confidence()).all()
    compared = rsa.compare_models(rdms(3), {"categories": model}, method)
    assert compared.notes == [
        "categories: undefined without each of 1 pairs of stimuli; its standard error leaves these out"
    ]


@pytest.mark.parametrize("over", resampling.RESAMPLED)
@pytest.mark.parametrize("method", ["pearson", "cosine", "rho-a", "whitened-pearson"])
def test_a_matrix_and_itself(over, method):
    a = np.stack([rdms()] * 3)
    found = rsa.bootstrap(a, a[0], method, over=over, samples=10)
    np.testing.assert_allclose(found.confidence(), 1, atol=1e-6)
    same = rsa.compare_models(a, a[:2], method, over=over)
    assert same.difference.tolist() == [0]
    assert same.different.p.tolist() == [1]


def test_intervals_stay_within_the_range_of_the_measure():
    a, b = related(subjects=3, models=1, stimuli=7)
    for over in ("stimuli", "both"):
        low, high = rsa.bootstrap(a, 0.9 * b + 0.1 * a[:1], over=over, samples=2).confidence(0.9999)
        assert -1 < low < high < 1


# Groups ----------------------------------------------------------------------------------------------------------


def test_sessions_are_no_subjects():
    a, b = related(subjects=8)
    who = ["d", "d", "a", "a", "a", "c", "b", "b"]
    each = np.stack([rsa.compare(a[[k for k, w in enumerate(who) if w == name]], b).mean(0) for name in "abcd"])
    found = rsa.bootstrap(a, b, over="subjects", subjects=who, samples=50)
    np.testing.assert_allclose(found.similarity, each.mean(0))
    np.testing.assert_allclose(found.error, scipy.stats.sem(each))
    assert (found.freedom == 3).all()
    # The samples draw subjects with all their sessions.
    sums = {round(float(each[list(k), 0].mean()), 9) for k in np.ndindex(4, 4, 4, 4)}
    assert {round(float(value), 9) for value in found.samples[:, 0]} <= sums
    both = rsa.compare_models(a, b, over="both", subjects=who)
    np.testing.assert_allclose(both.similarity, each.mean(0))
    with pytest.raises(ValueError, match=r"subjects: want \[M\] = \(8,\), one for each matrix, got \(3,\)"):
        rsa.bootstrap(a, b, subjects=[1, 2, 3])


def test_copies_of_stimuli_are_no_stimuli():
    """Each stimulus shown as two very similar ones: as categories, they are half as many."""
    draw, ratios = np.random.default_rng(0), []
    twice = np.repeat(np.arange(20), 2)
    for _ in range(5):
        common = draw.normal(size=(20, 25)) * draw.gamma(1, size=(20, 1))
        x, y = (common + 0.5 * draw.normal(size=(2, 20, 25)))[:, twice] + 0.05 * draw.normal(size=(2, 40, 25))
        x, y = (functional.rdm(each, method="euclidean", condensed=True) for each in (x, y))
        apart, together = (rsa.bootstrap(x, y, categories=groups, samples=300) for groups in (None, twice))
        ratios.append([together.error[0] / apart.error[0], together.samples.std() / apart.samples.std()])
    print(ratios)
    assert (np.mean(ratios, 0) > 1.2).all()
    single = rsa.bootstrap(x, y, categories=[f"{k}" for k in range(40)], samples=2)
    np.testing.assert_allclose(single.error, apart.error)
    with pytest.raises(ValueError, match=r"categories: want \[S\] = \(40,\), one for each stimulus, got \(20,\)"):
        rsa.bootstrap(x, y, categories=range(20))


@pytest.mark.parametrize("method", ["pearson", "cosine", "spearman"])
def test_the_ceiling_of_subjects_with_sessions(method):
    draw = np.random.default_rng(0)
    own = rdms() + 0.3 * draw.normal(size=(4, 66))
    sessions = np.repeat(own, 2, 0) + 0.1 * draw.normal(size=(8, 66))
    who = np.repeat(np.arange(4), 2)
    lower, upper = rsa.noise_ceiling(sessions, method, subjects=who)
    naive = rsa.noise_ceiling(sessions, method)
    assert lower < naive[0] - 0.01  # that predicts a subject from itself
    assert upper == pytest.approx(naive[1])
    assert rsa.compare_models(sessions, own, method, subjects=who).ceiling == pytest.approx((lower, upper))
    toolbox = pytest.importorskip("rsatoolbox")
    name = {"pearson": "corr"}.get(method, method)
    theirs = toolbox.rdm.RDMs(sessions, rdm_descriptors={"subject": list(who)})
    np.testing.assert_allclose(
        (lower, upper), toolbox.inference.boot_noise_ceiling(theirs, name, "subject"), rtol=1e-10
    )
    assert np.isnan(rsa.noise_ceiling(sessions[:2], method, subjects=[0, 0])).all()


# Permutations ----------------------------------------------------------------------------------------------------

FACTORS = (1e-12, 1e-3, 1, 1e12)


@pytest.mark.parametrize("method", permutation.PERMUTED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scale_and_offset_never_change_a_p(method, dtype):
    draw = np.random.default_rng(3)
    x = draw.normal(size=(14, 20))
    a, b = (functional.rdm(x + 1.3 * draw.normal(size=(14, 20)), condensed=True) for _ in range(2))
    want = rsa.permutation_test(a, b, method).p
    assert 0.002 < want < 0.3
    for factor in FACTORS:
        for offset in (0, 3) if dtype == np.float32 else (0, 3, 3e4, 3e8):
            changed = (factor * (a + offset)).astype(dtype)
            assert rsa.permutation_test(changed, b, method).p == want
            assert rsa.permutation_test(b, changed, method).p == rsa.permutation_test(b, a, method).p


def test_many_neurons_take_no_power_from_the_cosine():
    """Dissimilarities that differ in the third digit, as of 30,000 noisy neurons: p was .47."""
    draw = np.random.default_rng(0)
    common = draw.normal(size=190)
    a, b = (1 + 1e-3 * (common + draw.normal(size=190)) for _ in range(2))
    cosine, pearson = (rsa.permutation_test(a, b, method) for method in ("cosine", "pearson"))
    assert cosine.p == pearson.p == 1 / 1001
    assert cosine.similarity == pytest.approx(rsa.compare(a, b, "cosine"), abs=1e-12)
    order = np.arange(20)[::-1]
    reversed_null = rsa.permutation_test(a, squareform(squareform(b)[order][:, order]), "cosine").similarity
    assert reversed_null == pytest.approx(rsa.compare(a, squareform(squareform(b)[order][:, order]), "cosine"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1, 1e-9, 1e9])
def test_what_no_shift_changes_stays_equal(dtype, scale):
    """An ideal matrix of a circular axis: its shifts differ by rounding alone, in float32 and what became of it."""
    angle = np.arange(36) * 2 * np.pi / 36
    ideal = np.abs(np.sin((angle[:, None] - angle) / 2)).astype(np.float32).astype(dtype) * dtype(scale)
    for method in permutation.PERMUTED:
        if method in ("spearman", "rho-a"):
            continue  # ranks take rounding for order
        assert rsa.permutation_test(rdms(stimuli=36), ideal, method, shifts=True).p == 1


def test_a_constant_matrix_has_one_cosine():
    found = rsa.permutation_test(np.full(66, 0.3), rdms(), "cosine", permutations=50)
    assert found.p == 1
    np.testing.assert_allclose(found.null, rsa.compare(np.full(66, 0.3), rdms(), "cosine"))


def test_exact_ties_are_found_in_float64():
    """A model of two categories: a permutation that keeps them has the same similarity, however it is rounded."""
    label = np.arange(6) < 3
    model = squareform((label[:, None] != label).astype(float))
    data = rdms(stimuli=6)
    found = rsa.permutation_test(data, model, permutations=4000)
    orders = itertools.permutations(range(6))
    square = squareform(model)
    i, j = np.triu_indices(6, 1)
    every = np.array([np.corrcoef(data, square[p, :][:, p][i, j])[0, 1] for p in map(list, orders)])
    want = (every >= found.similarity - 1e-9).mean()
    assert found.p == pytest.approx(want, abs=0.03)


# Many models -----------------------------------------------------------------------------------------------------


def test_corrected_p_of_many_models():
    data, models = rdms(), rdms(5, seed=4)
    models[2] = 0.6 * data + 0.4 * models[2]
    models[3] = 1  # undefined
    found = rsa.permutation_tests(data, models, permutations=300)
    for k, model in enumerate(models):
        one = rsa.permutation_test(data, model, permutations=300)
        np.testing.assert_array_equal(found.null[:, k], one.null)
        assert found.p[k] == one.p or k == 3
    there = [0, 1, 2, 4]
    null, observed = found.null[:, there], found.similarity[there]
    largest = ((null - null.mean(0)) / null.std(0)).max(1)
    want = [(1 + (largest >= z).sum()) / 301 for z in (observed - null.mean(0)) / null.std(0)]
    np.testing.assert_allclose(found.familywise[there], np.maximum(want, found.p[there]))
    np.testing.assert_allclose(found.fdr[there], scipy.stats.false_discovery_control(found.p[there]))
    assert np.isnan([found.p[3], found.familywise[3], found.fdr[3]]).all()
    assert found.familywise[2] == 1 / 301


def test_errors_of_eight_unrelated_systems():
    found = evidence.familywise(8, 60)
    assert found["plain"] > 0.2
    assert found["familywise"] < 0.12


def test_corrections_by_hand():
    np.testing.assert_allclose(_corrections.holm(np.array([0.01, np.nan, 0.04, 0.03])), [0.03, np.nan, 0.06, 0.06])
    np.testing.assert_allclose(_corrections.holm(np.array([0.6, 0.5])), [1, 1])
    assert np.isnan(_corrections.false_discovery(np.full(3, np.nan))).all()
    assert np.isnan(_corrections.maximum(np.full(2, np.nan), np.zeros((5, 2)))).all()
    np.testing.assert_allclose(
        _corrections.maximum(np.array([2.0, np.nan, 0]), np.array([[1, np.nan, 3], [0, 9, 0], [2, 0, -1.0]])),
        [3 / 4, np.nan, 1],
    )


def test_sign_flips_are_those_of_scipy():
    a, b = related(subjects=5)
    each = rsa.compare(a, b)
    found = rsa.compare_models(a, b, over="subjects", tests="sign-flip")
    differences = each[:, [0, 0, 1]] - each[:, [1, 2, 2]]
    for values, tests, alternative in (
        (each, found.above_zero, "greater"),
        (differences, found.different, "two-sided"),
    ):
        for k in range(3):
            want = scipy.stats.permutation_test(
                (values[:, k],), lambda x, axis: x.mean(axis), permutation_type="samples", alternative=alternative
            )
            assert tests.p[k] == pytest.approx(want.pvalue)
        assert (tests.familywise >= tests.p - 1e-12).all()
        assert tests.correction == "maximum"
    assert "sign flips of 5 subjects: no p is below 0.031" in found.notes[-1]
    many = rsa.compare_models(*related(subjects=16), over="subjects", tests="sign-flip", flips=500)
    assert many.above_zero.p.tolist() == [1 / 501] * 3
    with pytest.raises(ValueError, match="tests: want 't' over 'both', got 'sign-flip'"):
        rsa.compare_models(a, b, tests="sign-flip")


def test_equal_models_are_rarely_told_apart_and_others_are():
    worlds = {models: evidence.World(models=models, twins=True) for models in ((2.0, 2.0), (0.5, 4.0))}
    equal, different = (evidence.detected(world, "both", (8, 20), 80, peer=False) for world in worlds.values())
    assert equal["v1fast"] <= 0.1
    assert different["v1fast"] > 0.5


def test_models_by_name_and_as_tables(tmp_path):
    a, b = related()
    found = rsa.compare_models(a, {"core": b[0], "=pixels, raw": squareform(b[1])}, level=0.9)
    assert found.names == ["core", "=pixels, raw"]
    rows = found.models()
    assert [row["model"] for row in rows] == found.names
    assert rows[0]["low, 90 % over subjects and stimuli"] == found.interval[0, 0]
    assert rows[1]["familywise p above 0 (Holm)"] == found.above_zero.familywise[1]
    assert "p above 0, one-sided" in rows[0]
    assert "p difference, two-sided" in found.differences()[0]
    for suffix in ("csv", "json"):
        rsa.write_table(tmp_path / f"t.{suffix}", rows)
    with (tmp_path / "t.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["model"] for row in read] == found.names
    assert float(read[1]["similarity"]) == found.similarity[1]
    assert json.loads((tmp_path / "t.json").read_text()) == rows
    with pytest.raises(ValueError, match=r"suffix: want one of \.csv, \.json, got '\.txt'"):
        rsa.write_table(tmp_path / "t.txt", rows)
    for given, said in (
        ({"names": ["a"]}, "names: want 3, one for each model, got 1"),
        ({"models": {"a": b[0]}, "names": ["a"]}, "names: want None beside models that have names"),
        ({"models": {"a": b}}, "models: want one matrix for each name"),
        ({"models": {}}, "models: want one matrix for each name"),
        ({"tests": "z"}, "tests: want one of t, sign-flip"),
        ({"level": 1}, "level: want more than 0 and less than 1"),
        ({"flips": 0}, "flips: want at least 1"),
        ({"models": rdms(2, stimuli=5)}, "models: want 120 pairs"),
    ):
        with pytest.raises(ValueError, match=said):
            rsa.compare_models(**{"rdms": a, "models": b} | given)


@pytest.mark.parametrize("method", similarity.METHODS)
@pytest.mark.parametrize("over", resampling.RESAMPLED)
def test_every_measure_and_what_is_undefined(method, over):
    a, b = related(subjects=4, stimuli=8)
    b[1] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rsa.compare_models(a, b, method, over=over)
    for values in (found.similarity, found.interval[0], found.above_zero.familywise, found.below_ceiling.fdr):
        assert np.isnan(values).tolist() == [False, True, False]
    assert np.isnan(found.different.p).tolist() == [True, False, True]
    assert found.notes == ["model 2: its similarity is undefined"]
    two = rsa.compare_models(a, b[[0, 2]], method, over=over)
    np.testing.assert_allclose(two.above_zero.familywise, found.above_zero.familywise[[0, 2]], rtol=1e-6)
    a[1] = np.nan
    with pytest.warns(RuntimeWarning, match="rdms: 1 of 4 have no similarity"):
        fewer = rsa.compare_models(a, b[:1], method, over=over)
    np.testing.assert_allclose(fewer.interval, rsa.compare_models(a[[0, 2, 3]], b[:1], method, over=over).interval)
    assert fewer.notes == ["1 of 4 matrices have no similarity and are left out"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nothing = rsa.compare_models(np.full_like(a, np.nan), b, method, over=over)
    assert np.isnan([*nothing.similarity, *nothing.ceiling, *nothing.different.familywise]).all()


# Figures ---------------------------------------------------------------------------------------------------------


def test_bars_bear_the_tests():
    pytest.importorskip("matplotlib")
    from figures import drawn, texts

    from v1fast.rsa import plots

    a, b = related(subjects=8, models=4, stimuli=24)
    b[2], b[3] = rdms(stimuli=24, seed=8), 1
    found = rsa.compare_models(a, b, over="both", names=["core", "readout", "noise", "constant"])
    figure = plots.comparison_bars(found, title="four models")
    said = texts(figure)
    for expected in ("four models", "95 % over subjects and stimuli", "core *", "one-sided", "undefined", "familywise"):
        assert expected in said
    assert "noise *" not in said
    assert drawn(figure)
    many = rsa.compare_models(a, np.concatenate([b[:1] + 0.2 * k * rdms(stimuli=24, seed=k) for k in range(12)]))
    assert drawn(plots.comparison_bars(many, alpha=0.9))
    # The whole interval is seen.
    low = plots.similarity_bars({"a": 0.1}, intervals=[[-0.2], [0.4]]).axes[0].get_ylim()[0]
    assert low < -0.2


def test_brackets_do_not_touch():
    pytest.importorskip("matplotlib")
    from v1fast.rsa import plots

    brackets = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    levels = plots._levels(brackets)
    for k, (first, level) in enumerate(zip(brackets, levels, strict=True)):
        for second, other in list(zip(brackets, levels, strict=True))[:k]:
            if level == other:
                assert first[1] < second[0] or second[1] < first[0]
