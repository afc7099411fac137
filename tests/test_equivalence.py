"""The statistics by which trained models are called equivalent, the readouts on real data, and the pages of both."""

import importlib
import math

import numpy as np
import pytest
import torch
from scipy import stats

from v1fast.data import simulate_animals
from v1fast.models import FiringRateEncoder

trained = importlib.import_module("v1fast.benchmarks.equivalence_trained")
pages = importlib.import_module("v1fast.benchmarks.pages")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# two one-sided tests


def test_two_one_sided_tests_by_hand():
    differences = np.array([0.001, -0.001, 0.002, 0.0])
    # Mean 0.0005, deviation 0.00129099: the nearer margin is (0.005 - 0.0005) / (0.00129099 / 2) = 6.9714 errors away.
    want = stats.t.sf(6.9714, 3)
    assert trained.tost(differences, 0.005) == pytest.approx(want, rel=1e-4)
    assert trained.tost(-differences, 0.005) == pytest.approx(want, rel=1e-4)


def test_two_one_sided_tests_agree_with_the_interval():
    differences = np.array([0.004, 0.001, 0.003, 0.002, 0.003])
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.9)
    assert low > 0  # so the nearer margin is the upper one
    assert trained.tost(differences, high) == pytest.approx(0.05)
    assert trained.tost(differences, high * 1.1) < 0.05 < trained.tost(differences, high * 0.9)


def test_a_mean_beyond_the_margin_is_never_equivalent():
    assert trained.tost([0.006, 0.0060001, 0.0059999], 0.005) > 0.99


# features up to the basis of their channels


def test_cka_ignores_basis_order_scale_and_mean(rng):
    x = rng.normal(size=(500, 8)) * np.arange(1, 9)
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    for same in (x @ rotation, x[:, rng.permutation(8)], 3 * x + rng.normal(size=8)):
        assert trained.linear_cka(x, same) == pytest.approx(1)
    assert trained.linear_cka(x, x * np.arange(8, 0, -1)) < 0.95  # not any linear map


def test_cka_of_unrelated_features_is_about_zero(rng):
    assert trained.linear_cka(rng.normal(size=(5000, 8)), rng.normal(size=(5000, 6))) < 0.01


def test_cka_is_that_of_centred_gram_matrices(rng):
    x = rng.normal(size=(40, 5))
    y = x[:, :3] + rng.normal(size=(40, 3))
    centring = np.eye(40) - 1 / 40
    k, m = (centring @ z @ z.T @ centring for z in (x, y))
    want = (k * m).sum() / math.sqrt((k * k).sum() * (m * m).sum())
    assert trained.linear_cka(x, y) == pytest.approx(want)


# what is compared


@pytest.fixture
def models(rng):
    def one():
        return trained.Trained(rng.random((30, 6)), rng.normal(size=(6, 2)), rng.normal(size=(90, 4)), rng.random(50))

    return {kind: [one() for _ in range(3)] for kind in trained.KINDS}


def test_a_model_agrees_with_itself(models):
    one, other = models["v1fast"][:2]
    assert trained.agreement(one, one) == pytest.approx((1, 0, 1))
    rdms, distance, cka = trained.agreement(one, other)
    assert abs(rdms) < 0.3
    assert distance == pytest.approx(np.median(np.hypot(*(one.position - other.position).T)))
    assert cka < 0.3


def test_pairs_of_seeds(models):
    models["published again"] = models["published"]
    rows = [line.split(" | ") for line in trained.agreements(models)][2:]
    assert [int(row[1]) for row in rows] == [3, 3, 6, 3]
    assert rows[1][2] == "1.000 (1.000 to 1.000)"
    assert "1.000" not in rows[0][2] + rows[2][2] + rows[3][2]


def test_verdicts():
    near = [0.5, 0.51, 0.52, 0.49, 0.5]
    scores = {"m": {"published": near, "v1fast": [x + 1e-4 * i for i, x in enumerate(near)], "published again": near}}
    scores["m"]["published again"] = [x + 0.006 * (-1) ** i for i, x in enumerate(near[:4])]
    ours, again = list(trained.equivalences(scores))[2:]
    assert "| 5 |" in ours
    assert "| 4 |" in again
    assert ours.endswith("| equivalent |")
    assert "+0.0002" in ours
    assert again.endswith("| inconclusive |")


def test_held_out_correlations_of_the_true_rates():
    (animal,) = simulate_animals(1, 5, (24, 36), train=1, validation=1, test=8, repeats=(2, 2))
    perfect = trained.Trained(animal.test.rates_at_rest.numpy(), None, None, None)
    found = trained.held_out(perfect, animal)
    assert found["to the true rates"] == pytest.approx(1)
    assert 0 < found["to the mean of 10 repeats"] < 1
    with pytest.raises(ValueError, match="undefined"):
        trained.held_out(trained.Trained(np.ones((8, 5), np.float32), None, None, None), animal)


def test_the_figure_is_drawn(models):
    pytest.importorskip("matplotlib")
    figure = trained.figure({kind: [0.5, 0.6, 0.55] for kind in trained.KINDS}, models)
    left, right = figure.axes
    assert len(left.lines) == len(right.lines) == 2


# an interrupted study goes on


def test_what_is_trained_is_kept(tmp_path, models, monkeypatch):
    want = models["v1fast"][0]
    trained.kept(tmp_path, "published again", 3, lambda: want)
    found = trained.kept(tmp_path, "published again", 3, lambda: pytest.fail("trained again"))
    for name, values in vars(want).items():
        np.testing.assert_array_equal(getattr(found, name), values)
    monkeypatch.setattr(trained, "SETTINGS", "others")
    with pytest.raises(ValueError, match=r"published-again-3\.npz: want a model of the settings"):
        trained.kept(tmp_path, "published again", 3, lambda: want)


# pages


def test_a_part_of_a_page_is_filled(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n\n<!-- x -->\nold\n<!-- end of x -->\n\n<!-- y -->\nkept\n<!-- end of y -->\nb\n")
    pages.fill(page, "x", ["| new |"])
    want = "a\n\n<!-- x -->\n\n| new |\n\n<!-- end of x -->\n\n<!-- y -->\nkept\n<!-- end of y -->\nb\n"
    assert page.read_text() == want
    pages.fill(page, "x", ["| new |"])
    assert page.read_text() == want


@pytest.mark.parametrize("text", ["nothing", "<!-- x -->\nnever closed", "<!-- end of x -->"])
def test_a_page_without_markers_stays_as_it_is(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=r"page\.md: want the markers <!-- x --> and <!-- end of x -->"):
        pages.fill(page, "x", ["| new |"])
    assert page.read_text() == text


# readouts on a trained core


@pytest.fixture
def real():
    for needed in ("sklearn", "lightning", "torchmetrics"):
        pytest.importorskip(needed)
    return importlib.import_module("v1fast.benchmarks.real_data")


@pytest.fixture
def small(real, rng):
    maps = torch.randn(20, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    return real.Recording(rng.poisson(2, (4, 20, 6)).astype(float), rng.normal(size=(20, 5, 5)), maps)


def test_every_image_is_predicted_by_a_model_that_has_not_seen_it(real):
    def predict(train, test):
        assert not set(train) & set(test)
        assert len(train) + len(test) == 23
        return np.stack([test, np.full(len(test), len(train))], 1)

    found = real.cross_validated(predict, 23)
    np.testing.assert_array_equal(found[:, 0], np.arange(23))
    assert set(found[:, 1]) == {20, 21}


def test_choices_are_made_among_the_images_that_are_fitted(real, small, monkeypatch):
    monkeypatch.setattr(real, "EPOCHS", 3)
    seen = set()

    class Spied(real.GaussianReadouts):
        def trials(self, images):
            seen.update(images.tolist())
            return super().trials(images)

    readouts = Spied(small)
    rates = readouts(np.arange(14), np.arange(14, 20))
    assert seen == set(range(14))
    assert rates.shape == (6, 6)
    ((penalty, epochs),) = readouts.chosen
    assert penalty in real.PENALTIES
    assert 1 <= epochs <= 3


def test_the_best_point_of_the_inner_curves_is_chosen(real, small, monkeypatch):
    curves = {0.3: [0.1, 0.2, 0.1], 1.0: [0.1, math.nan, 0.3], 3.0: [0.2, 0.2, 0.2]}
    monkeypatch.setattr(real.GaussianReadouts, "curve", lambda self, train, penalty: np.array(curves[penalty]))
    assert real.GaussianReadouts(small).choose(np.arange(14)) == (1.0, 3)


def test_readouts_start_at_the_mean_rates(real, small):
    readouts = real.GaussianReadouts(small)
    model = readouts.model(np.arange(14), 1.0).eval()
    with torch.no_grad():
        model.readout._features.zero_()
        rates = model(small.maps[:1])[0].numpy()
    np.testing.assert_allclose(rates, small.averages[:14].mean(0), rtol=1e-5)


def test_undefined_neurons_are_counted(real, small):
    responses = small.responses.copy()
    responses[:, :, 2] = 1
    silent = real.Recording(responses, small.images, small.maps)
    row = real.row("name", small.averages, silent)
    assert row.startswith("| name | ")
    assert row.count("1 undefined") == 4
    constant = real.row("name", np.ones_like(small.averages), small)
    assert constant.count("nan [nan, nan], 6 undefined") == 3


@pytest.mark.real_data
def test_readouts_of_the_frozen_core(real, real_data, monkeypatch):
    from v1fast.rsa.recordings import MouseV1, on_sensorium_screen

    data = real.recording(real_data)
    assert data.responses.shape == (10, 50, 103)
    assert data.maps.shape == (50, 64, 28, 56)
    assert data.maps.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(real, "EPOCHS", 2)
    monkeypatch.setattr(real, "PENALTIES", (1.0,))
    readouts = real.GaussianReadouts(data)
    train, test = np.arange(45), np.arange(45, 50)
    assert readouts(train, test).shape == (5, 103)
    # A readout of maps that were kept says what the encoder with the frozen core says.
    kept = readouts.model(train, 1.0).eval()
    whole = FiringRateEncoder(MouseV1(real_data).core, kept.readout).freeze_core().eval()
    with torch.no_grad():
        images = on_sensorium_screen(data.images)[test]
        torch.testing.assert_close(whole(images), kept(data.maps[test]), rtol=1e-5, atol=1e-6)
