"""Models with parameters: the fit is the best there is, and what it is tested on has not been seen."""

import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import squareform

from v1fast import rsa
from v1fast.rsa import weighted

LINEAR = ("pearson", "cosine", "whitened-pearson", "whitened-cosine")


def data(stimuli=14, models=4, subjects=5, seed=0, noise=0.3, weights=(1, 0, 2, 0)):
    """Subjects' matrices of a weighted sum; models and subjects have little in common otherwise."""
    draw = np.random.default_rng(seed)
    pairs = stimuli * (stimuli - 1) // 2
    matrices = draw.random((models, pairs))
    truth = np.asarray(weights[:models]) @ matrices
    return truth + noise * draw.normal(size=(subjects, pairs)), matrices


def mean_similarity(weights, subjects, models, method, sigma_k=None):
    return rsa.compare(weights @ models, subjects, method, sigma_k=sigma_k).mean()


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("sigma", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_no_other_weights_are_more_similar(method, sigma, seed):
    if sigma and not method.startswith("whitened"):
        pytest.skip("no sigma_k")
    draw = np.random.default_rng(seed)
    sigma_k = np.exp(draw.normal(size=14)) if sigma else None
    # As similar to the data as to each other, and in units far apart.
    subjects, models = data(seed=seed, noise=1, weights=(1, -1, 0.2, -0.1))
    models *= [[1], [1e-9], [1e6], [1]]
    found = rsa.fit_weights(subjects, models, method, sigma_k=sigma_k)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(1)
    best = mean_similarity(found, subjects, models, method, sigma_k)
    for size in (1e-3, 0.1, 1, 10):
        for _ in range(100):
            other = np.abs(
                found + size * draw.normal(size=4) * found.max() / np.abs(models).max(1) * (draw.random(4) < 0.5)
            )
            assert mean_similarity(other, subjects, models, method, sigma_k) <= best + 1e-9


@pytest.mark.parametrize("method", LINEAR)
def test_the_best_single_model_if_nothing_is_similar(method):
    subjects, models = data(weights=(-1, -2, -0.5, -2), noise=0.01)
    found = rsa.fit_weights(subjects, models, method) if method.endswith("pearson") else None
    if found is None:
        return
    single = [mean_similarity(one, subjects, models, method) for one in np.eye(4)]
    assert max(single) < 0
    assert found.tolist() == np.eye(4)[np.argmax(single)].tolist()


@pytest.mark.parametrize("method", weighted.METHODS)
def test_the_truth_is_found(method):
    subjects, models = data(stimuli=30, noise=0.1)
    found = rsa.fit_weights(subjects, models, method)
    np.testing.assert_allclose(found, [1 / 3, 0, 2 / 3, 0], atol=0.05)
    chosen = rsa.fit_weights(subjects, models, method, fit="select")
    assert chosen.tolist() == [0, 0, 1, 0]
    between = rsa.fit_weights(subjects, models[[0, 2, 1, 3]], method, fit="interpolate")
    np.testing.assert_allclose(between, [1 / 3, 2 / 3, 0, 0], atol=0.05)
    assert rsa.fit_weights(subjects, models[:1], method, fit="interpolate").tolist() == [1]


def test_models_that_are_sums_of_each_other_and_gaps():
    subjects, models = data(noise=0.01)
    twice = np.concatenate([models, models[:1], models[:1] + models[2:3], np.ones((1, 91))])
    found = rsa.fit_weights(subjects, twice)
    assert found[-1] == 0
    assert mean_similarity(found, subjects, twice, "pearson") == pytest.approx(
        mean_similarity(rsa.fit_weights(subjects, models), subjects, models, "pearson"), abs=1e-6
    )
    gaps = subjects.copy()
    gaps[0, :7] = np.nan
    gaps[3] = np.nan
    models[1, 9] = np.nan
    there = ~np.isnan(gaps[0]) & ~np.isnan(models[1])
    rest = [0, 1, 2, 4]
    x = models[:, there] - models[:, there].mean(1, keepdims=True)
    y = gaps[rest][:, there]
    y = y - y.mean(1, keepdims=True)
    target = (y / np.linalg.norm(y, axis=1, keepdims=True)).mean(0)
    import scipy.optimize

    want, _ = scipy.optimize.nnls(x.T, target)
    np.testing.assert_allclose(rsa.fit_weights(gaps, models), want / want.sum(), atol=1e-9)
    assert np.isnan(rsa.fit_weights(np.full(91, np.nan), models)).all()
    assert np.isnan(rsa.fit_weights(subjects, np.ones((2, 91)))).all()


@pytest.mark.parametrize(
    ("theirs", "ours"), [("corr", "pearson"), ("cosine", "cosine"), ("cosine_cov", "whitened-cosine")]
)
def test_rsatoolboxs_weights_and_cross_validation(theirs, ours):
    pytest.importorskip("rsatoolbox")
    from rsatoolbox.inference import crossval
    from rsatoolbox.model import ModelWeighted
    from rsatoolbox.model.fitter import Fitter, fit_regress_nn
    from rsatoolbox.rdm import RDMs

    subjects, models = data(stimuli=12, subjects=6, noise=1)
    model = ModelWeighted("w", RDMs(models))
    weights = fit_regress_nn(model, RDMs(subjects), method=theirs)
    np.testing.assert_allclose(
        rsa.fit_weights(RDMs(subjects), RDMs(models), theirs), weights / weights.sum(), atol=1e-5
    )
    of_stimuli, of_subjects = np.arange(12) % 3, np.arange(6) % 2
    train, test, ceil = [], [], []
    rdms = RDMs(subjects)
    for f in range(3):
        for g in range(2):
            inside, outside = np.flatnonzero(of_stimuli == f), np.flatnonzero(of_stimuli != f)
            others = rdms.subset("index", np.flatnonzero(of_subjects != g))
            own = rdms.subset("index", np.flatnonzero(of_subjects == g))
            train.append((others.subset_pattern("index", outside), outside))
            test.append((own.subset_pattern("index", inside), inside))
            ceil.append((others.subset_pattern("index", inside), inside))
    result = crossval(model, rdms, train, test, ceil_set=None, method=theirs, fitter=Fitter(fit_regress_nn))
    options = {"stimulus_folds": of_stimuli, "subject_folds": of_subjects}
    found = rsa.crossvalidate(subjects, models, ours, **options)
    assert found.similarity == pytest.approx(result.evaluations.mean(), abs=1e-5)


def test_each_part_by_hand():
    subjects, models = data(stimuli=9, subjects=4, noise=1)
    of_stimuli, of_subjects = np.array(list("aabbabccc")), np.array([7, 7, 3, 3])
    found = rsa.crossvalidate(subjects, models, stimulus_folds=of_stimuli, subject_folds=of_subjects)
    squares, model_squares = (np.stack([squareform(v) for v in vectors]) for vectors in (subjects, models))

    def part(matrices, stimuli):
        i, j = np.triu_indices(len(stimuli), 1)
        return matrices[:, stimuli[i], stimuli[j]]

    for f, label in enumerate("abc"):
        inside, outside = np.flatnonzero(of_stimuli == label), np.flatnonzero(of_stimuli != label)
        for g, subject in enumerate((3, 7)):
            own, others = of_subjects == subject, of_subjects != subject
            weights = rsa.fit_weights(part(squares[others], outside), part(model_squares, outside))
            np.testing.assert_allclose(found.fold_weights[f, g], weights)
            want = [rsa.compare(weights @ part(model_squares, inside), v) for v in part(squares[own], inside)]
            np.testing.assert_allclose(found.each[f, own], want)
    assert found.similarity == pytest.approx(found.each.mean())
    np.testing.assert_allclose(found.subjects, found.each.mean(0))
    alone = rsa.crossvalidate(subjects[0], models, stimulus_folds=2)
    assert alone.each.shape == (2, 1)
    assert np.isnan(alone.ceiling).all()
    over_subjects = rsa.crossvalidate(subjects, models, stimulus_folds=1)
    assert over_subjects.each.shape == (1, 4)


@pytest.mark.parametrize("fit", weighted.FITS)
@pytest.mark.parametrize("method", ["pearson", "spearman", "whitened-cosine"])
@pytest.mark.parametrize("data_sets", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_what_has_not_been_seen_is_not_fitted(fit, method, data_sets):
    """Without a relation, data of the fit are similar to the model, and others are not."""
    found = []
    for seed in range(data_sets):
        draw = np.random.default_rng(seed)
        rdms = rsa.rdm_of_repeats(draw.normal(size=(2, 20, 30)))
        subjects = np.stack([rsa.rdm_of_repeats(draw.normal(size=(2, 20, 30))) for _ in range(6)])
        models = np.stack([rdms, *(rsa.rdm_of_repeats(draw.normal(size=(2, 20, 30))) for _ in range(7))])
        result = rsa.crossvalidate(subjects, models, method, fit=fit, seed=seed)
        found.append([result.similarity, result.fitted])
    (unseen, fitted), error = np.mean(found, 0), np.std(found, 0) / np.sqrt(data_sets)
    assert abs(unseen) < 3.5 * error[0]
    assert fitted > 0.03
    assert fitted > 4 * error[1]


def test_a_true_model_reaches_the_ceiling():
    """Subjects share a weighted sum of the models: the fitted model is between the bounds, or a little below."""
    found = []
    for seed in range(30):
        subjects, models = data(stimuli=24, subjects=6, noise=1.5, seed=seed)
        result = rsa.crossvalidate(subjects, models, seed=seed)
        single = rsa.crossvalidate(subjects, models[2], seed=seed)
        found.append([result.similarity, *result.ceiling, single.similarity])
    similarity, lower, upper, single = np.mean(found, 0)
    assert lower < similarity < upper
    assert single < similarity - 0.02


def test_folds():
    subjects, models = data(stimuli=14, subjects=5)
    one, same, other = (rsa.crossvalidate(subjects, models, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.each, same.each)
    assert (one.each != other.each).any()
    assert one.each.shape == (3, 5)
    assert one.fold_weights.shape == (3, 2, 4)
    for message, options in {
        "fit: want one of weighted, select, interpolate": {"fit": "lasso"},
        "stimulus_folds: want 1 to 4 folds of 14, got 5": {"stimulus_folds": 5},
        r"stimulus_folds: want a number, or \[14\] labels": {"stimulus_folds": [0, 1]},
        "stimulus_folds: want at least 3 in each fold, got 2": {"stimulus_folds": [0] * 12 + [1] * 2},
        "subject_folds: want 1 to 5 folds of 5, got 0": {"subject_folds": 0},
        "stimulus_folds, subject_folds: want at least 2 folds of one": {"stimulus_folds": 1, "subject_folds": 1},
        "sigma_k: want None beside method": {"sigma_k": np.ones(14)},
    }.items():
        with pytest.raises(ValueError, match=message):
            rsa.crossvalidate(subjects, models, **options)
    with pytest.raises(ValueError, match="models: want 91 pairs of stimuli, as rdms have, got 6"):
        rsa.fit_weights(subjects, np.ones(6))
    assert scipy.stats.rankdata(one.weights).argmax() == 2
