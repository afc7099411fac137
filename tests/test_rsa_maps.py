"""Maps and tuning: what is explained, where t-SNE begins, circular axes, gaps."""

import numpy as np
import pytest
import scipy.linalg

from v1fast import functional, rsa
from v1fast.rsa import embedding


def positive_fractions(rdm, components):
    """All eigenvalues of the doubly centred matrix, written out."""
    centre = np.eye(len(rdm)) - 1 / len(rdm)
    values = np.sort(scipy.linalg.eigvalsh(-centre @ rdm @ centre / 2))[::-1]
    return np.clip(values[:components], 0, None) / np.clip(values, 0, None).sum()


def not_euclidean(size, seed=0):
    """Dissimilarities at random: half of the eigenvalues are negative, and the trace is small beside them."""
    draw = np.random.default_rng(seed).random((size, size))
    rdm = (draw + draw.T) / 2
    np.fill_diagonal(rdm, 0)
    return rdm


@pytest.mark.parametrize("dense", [1000, 20])
@pytest.mark.parametrize("kind", ["euclidean", "random", "signed", "negative"])
def test_mds_explains_a_fraction_of_the_positive_eigenvalues(monkeypatch, dense, kind):
    monkeypatch.setattr(embedding, "DENSE", dense)
    x = np.random.default_rng(1).normal(size=(60, 4))
    rdm = {
        "euclidean": functional.rdm(x, method="euclidean"),
        "random": not_euclidean(60),
        "signed": not_euclidean(60) - 0.5,  # as cross-validated distances of noise
        "negative": -functional.rdm(x, method="euclidean"),
    }[kind]
    np.fill_diagonal(rdm, 0)
    found = rsa.mds(rdm, 3)
    if kind == "negative":
        assert (found.scores == 0).all() or np.abs(found.scores).max() < 1e-6
        return
    np.testing.assert_allclose(found.explained, positive_fractions(rdm, 3), rtol=1e-6)
    assert (found.explained >= 0).all()
    assert found.explained.sum() <= 1


def test_mds_of_more_than_a_thousand_stimuli():
    rdm = not_euclidean(1100)
    found = rsa.mds(rdm, 2)
    np.testing.assert_allclose(found.explained, positive_fractions(rdm, 2), rtol=1e-9)


def test_tsne_begins_with_the_components_or_at_random():
    pytest.importorskip("sklearn")
    x = np.random.default_rng(0).normal(size=(30, 8))
    always, again = rsa.tsne(x, perplexity=5), rsa.tsne(x, perplexity=5)
    np.testing.assert_array_equal(always, again)
    one, same, other = (rsa.tsne(x, perplexity=5, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1
    assert np.abs(one - always).max() > 1


@pytest.mark.parametrize("period", [180, 360.0, 2 * np.pi])
def test_nearest_on_a_circle(period):
    stimuli = np.arange(12) * period / 12 + 5 * period  # as if turned five times
    rdm = np.arange(66.0)
    wanted = np.linspace(-2, 3, 41) * period + 0.01 * period
    places, rows = rsa.rows_nearest(rdm, stimuli, wanted, period=period)
    angles = 2 * np.pi * (stimuli[:, None] - wanted) / period
    np.testing.assert_array_equal(places, stimuli[np.cos(angles).argmax(0)])
    assert rows.shape == (41, 12)
    line, _ = rsa.rows_nearest(rdm, stimuli, wanted)
    assert (line == stimuli[0]).all()


@pytest.mark.parametrize("period", [0, -180, np.nan, np.inf])
def test_a_period_is_positive(period):
    for call in (
        lambda: rsa.rows_nearest(np.arange(6.0), range(4), [1], period=period),
        lambda: rsa.tuning_curves(np.ones((4, 2)), range(4), 2, period=period),
    ):
        with pytest.raises(ValueError, match="period: want a positive number, got"):
            call()


def test_tuning_and_average_of_repeats_leave_out_the_same():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(5, 6, 4))
    x[draw.random(x.shape) < 0.3] = np.nan
    x[:, 2, 1] = np.nan
    trials, labels = x.reshape(30, 4), np.tile(np.arange(6), 5)
    found = rsa.tuning_curves(trials, labels)
    np.testing.assert_allclose(found.mean, rsa.average_repeats(trials, labels)[0])
    np.testing.assert_allclose(found.mean, rsa.average_repeats(x)[0])
    present = (~np.isnan(x)).sum(0)
    np.testing.assert_array_equal(found.present, present)
    assert found.count.tolist() == [5] * 6
    assert np.isnan(found.mean[2, 1])
    few = present < 2
    want = np.nanstd(np.where(few, 0, x), axis=0, ddof=1) / np.sqrt(present.clip(1))
    np.testing.assert_allclose(found.error[~few], want[~few])
    assert np.isnan(found.error[few]).all()
    just_below = rsa.tuning_curves([1.0, 2.0], [-1e-20, 90.0], 2, period=180)
    assert just_below.mean[:, 0].tolist() == [1, 2]
