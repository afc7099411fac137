"""Decoding: the course's numbers, gradients by formula, errors on a circle, and the figures of macaque V1."""

import doctest
import hashlib
import importlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from figures import drawn, texts

from v1fast.data import Recording, gratings, read, simulate_gratings
from v1fast.decoding import (
    DecodingSettings,
    DeepNet,
    DeepNetReLU,
    DeepNetSoftmax,
    across_repeats,
    board_losses,
    chance_error,
    circular_difference,
    classes_of,
    decode,
    descend,
    descend_safely,
    learn_board,
    mean_error,
    nearest_centroid,
    population_of,
    reduced_rank,
    ridge,
    span,
    split_stimuli,
    within,
    written_gradients,
)

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def population():
    return population_of(simulate_gratings(600, seed=1))


# The course's numbers ---------------------------------------------------------------------------------------------


def test_the_course_s_split_and_draws():
    """Seed 4 splits, seed 1 draws: the stimulus 139.00, and 20 stimuli whose mean square is 43003.25."""
    train, test = split_stimuli(360, seed=4)
    assert (len(train), len(test)) == (216, 144)
    assert sorted([*train, *test]) == list(range(360))
    degrees = np.arange(360.0)[train]
    draw = np.random.RandomState(1).choice(len(train), 1)
    assert draw.tolist() == [37]
    assert degrees[draw].tolist() == [139.0]
    assert np.mean(degrees[np.random.RandomState(1).choice(len(train), 20)] ** 2) == 43003.25


def recorded():
    """The user's file, where it is: W3D4_stringer_oribinned1.npz beside the other real data, or V1FAST_STRINGER."""
    places = [
        os.environ.get("V1FAST_STRINGER"),
        *[f"{os.environ.get('V1FAST_REAL_DATA')}/W3D4_stringer_oribinned1.npz"],
    ]
    path = next((Path(place) for place in places if place and Path(place).is_file()), None)
    if path is None:
        pytest.skip("W3D4_stringer_oribinned1.npz is not there: set V1FAST_STRINGER to its path")
    assert hashlib.md5(path.read_bytes()).hexdigest() == "436599dfd8ebe6019f066c38aed20580"
    return read(path)


@pytest.mark.real_data
def test_untrained_networks_on_the_recording():
    recording = recorded()
    train, _ = split_stimuli(360, seed=4)
    responses = torch.from_numpy(np.asarray(recording.responses[:], np.float32)[train])
    degrees = torch.from_numpy(np.asarray(recording.trials["orientation"], np.float32)[train])[:, None]
    assert responses.shape == (216, 23589)
    torch.manual_seed(1)
    network = DeepNet(23589, 200)
    one = np.random.RandomState(1).choice(216, 1)
    assert network(responses[one]).item() == pytest.approx(0.17, abs=0.006)
    torch.manual_seed(1)
    network = DeepNet(23589, 10)
    drawn_stimuli = np.random.RandomState(1).choice(216, 20)
    loss = torch.nn.functional.mse_loss(network(responses[drawn_stimuli]), degrees[drawn_stimuli])
    assert loss.item() == pytest.approx(42949.14, abs=0.01)


@pytest.mark.real_data
def test_a_linear_decoder_of_the_recording_errs_by_two_or_three_degrees():
    found = decode(population_of(recorded()), DecodingSettings(splits=1, widths=(5,), depths=(1,)), show=False)
    assert found.first["ridge, cosine and sine"].row(0)["circular_error"] < 3.5


# Networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["none", "relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_written_gradients_are_autograd_s(activation, depth):
    network = DeepNet(12, 7, outputs=2, depth=depth, activation=activation).double()
    responses, targets = torch.randn(9, 12, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    (network(responses) - targets).square().sum(1).mean().backward()
    written = written_gradients(network, responses, targets)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(written[name], parameter.grad, rtol=1e-12, atol=1e-14)


def test_written_gradients_of_the_softmax_network():
    network = DeepNetSoftmax(12, 7, outputs=5, activation="relu").double()
    responses, classes = torch.randn(9, 12, dtype=torch.float64), torch.arange(9) % 5
    torch.nn.functional.nll_loss(network(responses), classes).backward()
    written = written_gradients(network, responses, classes)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(written[name], parameter.grad, rtol=1e-12, atol=1e-14)


def test_layers_are_made_in_order():
    torch.manual_seed(1)
    first, last = torch.nn.Linear(30, 10), torch.nn.Linear(10, 1)
    torch.manual_seed(1)
    network = DeepNetReLU(30, 10)
    assert torch.equal(network.layers[0].weight, first.weight)
    assert torch.equal(network.layers[1].weight, last.weight)
    responses = torch.randn(4, 30)
    torch.testing.assert_close(network(responses), last(torch.relu(first(responses))))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 0}, "width: want >= 1, got 0"),
        ({"depth": -1}, "depth: want >= 0, got -1"),
        ({"activation": "step"}, "activation: want one of none, relu, tanh, sigmoid, got 'step'"),
    ],
)
def test_networks_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        DeepNet(5, **options)


def test_fewer_dimensions_change_nothing(population):
    """Fitted within the span of the responses, a network says the same of all of them."""
    responses, targets = torch.from_numpy(population.responses), torch.from_numpy(population.degrees).float()[:, None]
    responses, targets = responses[::6].double(), targets[::6].double() / 100
    scores, basis = span(responses)
    torch.testing.assert_close(scores @ basis, responses)
    torch.manual_seed(0)
    network = DeepNetReLU(600, 8).double()
    small = within(network, basis)
    options = {"iterations": 20, "rate": 1e-3, "batch": 9, "seed": 2, "l2": 0.0}
    one, other = (descend(net, x, targets, **options) for net, x in ((network, responses), (small, scores)))
    np.testing.assert_allclose(one.train, other.train, rtol=1e-9)
    torch.testing.assert_close(network(responses), small(scores), rtol=1e-9, atol=1e-9)


def test_descent_by_hand():
    """One linear unit: two steps of gradient descent with penalties."""
    network = DeepNet(1, depth=0)
    with torch.no_grad():
        network.layers[0].weight.fill_(1.0)
        network.layers[0].bias.fill_(0.0)
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]])
    found = descend(network, x, y, iterations=2, rate=0.1, l1=0.5, l2=0.25, held_out=(x, y))
    # weight: 2 mean(w x^2) + 0.5 + 2 * 0.25 w = 5 + 1; bias: 2 mean(w x) = 3
    weight, bias = 1 - 0.6, -0.3
    errors = np.array([weight + bias, 2 * weight + bias])
    np.testing.assert_allclose(found.train, [2.5, np.mean(errors**2)], rtol=1e-6)
    assert found.test[0] == pytest.approx(found.train[1], rel=1e-6)
    assert found.seen.tolist() == [2, 4]


def test_a_rate_that_diverges_is_said_and_halved():
    x, y = 100 * torch.ones(4, 1), torch.ones(4, 1)
    with pytest.raises(ValueError, match="rate: want one at which the loss stays finite"):
        descend(DeepNet(1, depth=0), x, y, iterations=200, rate=0.1)
    _, found, rate = descend_safely(lambda: DeepNet(1, depth=0), x, y, rate=0.1, iterations=50)
    assert rate < 0.1 / 2**5
    assert found.train[-1] < found.train[0]
    with pytest.raises(ValueError, match="12 halvings"):
        descend_safely(lambda: DeepNet(1, depth=0), 1000 * x, y, rate=1.0, iterations=50)


# Errors, chance, classes ------------------------------------------------------------------------------------------


def test_errors_on_a_circle():
    assert circular_difference(350, 10, 360) == -20
    assert circular_difference([170.0], [5.0], 180).tolist() == [-15.0]
    assert mean_error([359.0, 1.0], [1.0, 359.0]) == 358
    assert mean_error([359.0, 1.0], [1.0, 359.0], 360) == 2
    with pytest.raises(ValueError, match=r"decoded, true: want \[S >= 1\] both, got \(2,\) and \(1,\)"):
        mean_error([1.0, 2.0], [1.0])


def test_chance_is_the_mean_over_permutations():
    draw = np.random.default_rng(0)
    decoded, true = draw.uniform(0, 360, 60), draw.uniform(0, 360, 60)
    for period in (None, 360.0):
        permuted = np.mean([mean_error(decoded, draw.permutation(true), period) for _ in range(2000)])
        assert chance_error(decoded, true, period) == pytest.approx(permuted, rel=0.01)


def test_classes_include_the_end():
    assert classes_of([0, 89.9, 90, 359.9, 360], 4).tolist() == [0, 0, 1, 3, 3]
    with pytest.raises(ValueError, match="degrees: want 0 to 360, got 361"):
        classes_of([361], 4)


def test_linear_decoders(population):
    train, test = split_stimuli(360)
    responses, degrees = population.responses, population.degrees
    decoded = reduced_rank(responses[train], degrees[train], responses[test])
    assert mean_error(decoded, degrees[test], 360) < 6
    predicted = ridge(responses[train], degrees[train], responses[test])
    assert mean_error(predicted, degrees[test]) < chance_error(predicted, degrees[test]) / 2
    with pytest.raises(ValueError, match="rank: want 1 to 36, got 0"):
        reduced_rank(responses[train], degrees[train], responses[test], rank=0)


# XOR --------------------------------------------------------------------------------------------------------------


def test_xor_needs_a_nonlinearity():
    for depth in (0, 1, 2):
        assert learn_board(8, depth, activation="none", steps=150)[0] > 0.99
    assert min(learn_board(8, 2, seed=seed)[0] for seed in range(2)) < 0.1


@pytest.mark.slow
def test_depth_replaces_width():
    losses = board_losses((16, 32), (1, 3), squares=4)
    assert (losses[1] < losses[0]).all()


# The whole --------------------------------------------------------------------------------------------------------


def test_decode(population):
    from v1fast.decoding import figures

    settings = DecodingSettings(
        splits=2, iterations=30, class_iterations=40, widths=(2, 20), depths=(1, 2), tries=1, activation="tanh"
    )
    found = decode(population, settings, show=False)
    assert len(found.rows) == 2 * len(found.first) == 2 * 8
    errors = {row["decoder"]: row for row in found.rows}
    assert errors["ridge, cosine and sine"]["circular_error"] < 6
    for row in found.rows:
        assert row["circular_error"] < 0.8 * row["circular_chance"]
        assert row["circular_error"] <= row["plain_error"]
        assert row["circular_chance"] == pytest.approx(90, abs=4)
    assert found.class_rows[0]["accuracy"] > 5 * found.class_rows[0]["chance"]
    assert found.gradient_difference < 1e-12
    assert found.classified.weights.shape == (20, 600)
    said = texts(figures.decoded_against_true(found.first, found.rows, 20))
    assert "reduced rank" in said
    assert "mean and 95 % interval of 2 splits" in texts(figures.errors(found.rows, found.class_rows))


def test_orientations_have_a_circle_of_180_degrees(population):
    recording = small(population.responses[:180], population.degrees[:180])
    found = decode(
        population_of(recording, period=180),
        DecodingSettings(splits=1, iterations=5, class_iterations=2, widths=(2,), depths=(1,), tries=1),
        show=False,
    )
    row = found.first["ridge, cosine and sine"].row(0)
    assert row["circular_chance"] == pytest.approx(45, abs=2)
    assert row["circular_error"] < 8
    assert found.first["reduced rank"].decoded.max() < 180
    assert found.classified.true.max() == 19
    with pytest.raises(ValueError, match="want orientations of 0 to 180, got 0 to 359"):
        population_of(simulate_gratings(5), period=180)


def small(responses, degrees):
    return Recording(images=gratings(degrees, (6, 8)).numpy(), responses=responses, trials={"orientation": degrees})


def test_responses_that_are_not_z_scored_are():
    draw = np.random.default_rng(0)
    degrees = np.arange(0.0, 360, 12)
    responses = draw.gamma(2, 3, (30, 5))
    responses[:, 2] = 4.0  # silent: it stays at zero
    found = population_of(small(responses, degrees))
    assert found.z_scored_here
    np.testing.assert_allclose(found.responses.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found.responses.std(0), [1, 1, 0, 1, 1], atol=1e-6)
    assert population_of(small(responses, degrees), neurons=3).responses.shape == (30, 3)
    assert population_of(small(responses, degrees), 24).degrees.tolist() == [6.0 + 24 * k for k in range(15)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r, d: (r[:4], d[:4]), "want responses to at least 10 stimuli, got 4"),
        (lambda r, d: (np.where(r > 9, np.nan, r), d), "want finite responses, got"),
        (lambda r, d: (r, d - 90), "want orientations of 0 to 360, got -90"),
    ],
)
def test_populations_that_cannot_be_decoded(change, said):
    responses = np.random.default_rng(0).gamma(2, 3, (30, 5))
    with pytest.raises(ValueError, match=said):
        population_of(small(*change(responses, np.arange(0.0, 360, 12))))


def test_a_recording_without_orientations():
    with pytest.raises(ValueError, match="want orientations of the trials"):
        population_of(Recording(images=np.zeros((12, 1, 4, 4)), responses=np.ones((12, 3))))


# Macaque V1 -------------------------------------------------------------------------------------------------------


def test_across_repeats_leaves_the_tested_repeats_out():
    """A decoder that remembers single trials knows nothing of new ones."""
    counts = np.random.default_rng(0).uniform(0, 9, (6, 4, 3))

    def remember(responses, classes, new):
        assert not (responses[:, None] == new).all(2).any()
        return nearest_centroid(responses, classes, new)

    assert across_repeats(counts, remember).shape == (6, 4)
    assert across_repeats(counts, remember, folds=3).shape == (6, 4)
    with pytest.raises(ValueError, match=r"counts: want \[R >= 2, C, N\], got \(1, 4, 3\)"):
        across_repeats(counts[:1], remember)


@pytest.mark.real_data
def test_nearest_centroid_of_the_macaque_sessions(real_data):
    """Over the 17 sessions, .42 to .80 of the trials, by the data's own description."""
    from v1fast.rsa.recordings import ecker_conditions

    found = []
    for session in range(17):
        counts, contrasts, orientations = ecker_conditions(real_data, session)
        assert len(set(zip(contrasts, orientations, strict=True))) == counts.shape[1] in (14, 16)
        found.append((across_repeats(counts, nearest_centroid) == np.arange(counts.shape[1])).mean())
    assert round(min(found), 2) == 0.42
    assert round(max(found), 2) == 0.80


@pytest.mark.real_data
@pytest.mark.slow
def test_all_decoders_and_matrices_of_the_macaque_sessions(real_data):
    from v1fast.decoding import analyse_macaque, figures

    sessions = analyse_macaque(real_data, show=False)
    halves = [one.split_half for one in sessions]
    assert 0.75 < min(halves) < 0.82
    assert 0.96 < max(halves) < 1
    for one in sessions:
        best = one.accuracy["nearest centroid"]
        for name in ("logistic regression", "DeepNetReLU"):
            assert best - 0.15 < one.accuracy[name] < best + 0.05
            assert one.error[name] < 0.6 * 45
        # Noise makes distances larger; cross-validation takes that away.
        assert np.nanmean(one.crossvalidated) < one.rdm.mean()
    assert drawn(figures.macaque(sessions))
    assert drawn(figures.macaque_rdms(sessions))


@pytest.mark.real_data
def test_one_macaque_session(real_data):
    from v1fast.decoding import figures
    from v1fast.decoding.macaque import analyse_session

    found = analyse_session(real_data, 12)
    assert found.accuracy["nearest centroid"] == pytest.approx(0.76, abs=0.01)
    assert found.accuracy["DeepNetReLU"] == pytest.approx(0.72, abs=0.03)
    assert found.accuracy["logistic regression"] == pytest.approx(0.69, abs=0.03)
    assert found.split_half == pytest.approx(0.97, abs=0.01)
    assert drawn(figures.macaque_rdms([found]))


@pytest.mark.parametrize(
    "module",
    ["baselines", "depth", "fitting", "networks", "scores"],
)
def test_the_examples_of_docstrings(module):
    found = doctest.testmod(importlib.import_module(f"v1fast.decoding.{module}"))
    assert found.attempted
    assert not found.failed


def test_a_file_of_halves(tmp_path):
    """60 directions, for cross-validation: each is two trials, which are never on both sides of a split."""
    from v1fast.decoding.experiment import split_of
    from v1fast.normative import v1_of

    made = simulate_gratings(300, seed=1)
    halves = [np.stack([made.responses[6 * k + part : 6 * k + 6 : 2].mean(0) for k in range(60)]) for part in (0, 1)]
    path = tmp_path / "split.npz"
    np.savez(path, resp_train=halves[0], resp_test=halves[1], stimuli=6.0 * np.arange(60) + 2.5)
    recording = read(path)
    assert recording.responses.shape == (120, 300)
    assert (recording.tiers == np.repeat(["train", "test"], 60)).all()
    population = population_of(recording)
    split = split_of(population, DecodingSettings(), 0)
    assert (len(split.train), len(split.test)) == (72, 48)
    assert not set(population.degrees[split.train]) & set(population.degrees[split.test])
    v1 = v1_of(population)
    assert v1.crossvalidated.shape == (30 * 29 // 2,)
    assert not v1.undefined
    np.savez(path, resp_train=halves[0], resp_test=halves[1][:, :9], stimuli=6.0 * np.arange(60))
    with pytest.raises(ValueError, match=r"resp_test: want \[S, N\] = \(60, 300\), got \(60, 9\)"):
        read(path)
