"""Normative models: the course's numbers, the networks' dimensions, other tasks, and the comparison with V1."""

import dataclasses
import doctest
import importlib

import numpy as np
import pytest
import torch
from figures import texts
from torch import nn

from v1fast import functional, rsa
from v1fast.data import gratings, simulate_gratings
from v1fast.decoding import population_of
from v1fast.normative import (
    CNN,
    FC,
    ConvFC,
    ConvPoolFC,
    EncodingModel,
    NormativeSettings,
    compare_with_v1,
    fit_encoding,
    fourier,
    initial_filters,
    make_task,
    tilts,
    train,
    train_on_tilt,
    v1_of,
)

pytestmark = pytest.mark.once

PRINTED = {5: (4.10e-01, 0.01), 10: (5.17e-02, 0.01), 15: (1.32e-02, 0.01), 20: (2.27e-03, 0.05), 25: (8.15e-05, 0.05)}
"""Epoch -> the course's loss of the last batch, and how far another machine may be from it."""


@pytest.fixture(scope="module")
def trained():
    return train_on_tilt(seed=12)


@pytest.fixture(scope="module")
def population():
    return population_of(simulate_gratings(300, seed=1))


# The course's numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", PRINTED)
def test_the_course_s_losses(trained, epoch):
    printed, tolerance = PRINTED[epoch]
    assert trained.losses[epoch - 1] == pytest.approx(printed, rel=tolerance)


def test_the_course_s_accuracy(trained):
    assert trained.train_loss == pytest.approx(0.0056, abs=2e-4)
    assert trained.train_accuracy == pytest.approx(0.999, abs=1e-3)
    assert trained.test_accuracy >= 0.99


def test_the_course_s_matrices(trained):
    images = gratings(np.arange(-90, 91))
    layers = rsa.activations(trained.network, images, ["pool", "fc"])
    rdms = {name: functional.rdm(values).numpy() for name, values in {"pixels": images.flatten(1), **layers}.items()}
    above = np.triu_indices(181, 1)
    for layer, mean, largest in (("pool", 0.2642, 0.4610), ("fc", 0.4406, 1.2865)):
        assert rdms[layer][above].mean() == pytest.approx(mean, abs=1e-3)
        assert rdms[layer][above].max() == pytest.approx(largest, abs=2e-3)
    for one, other, similarity in (("pool", "fc", 0.698), ("pixels", "pool", 0.774), ("pixels", "fc", 0.217)):
        assert rsa.compare(rdms[one], rdms[other], "pearson") == pytest.approx(similarity, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_other_seeds(seed):
    assert train_on_tilt(seed=seed).test_accuracy >= 0.99


# Networks ---------------------------------------------------------------------------------------------------------


def test_the_initial_filters():
    filters = initial_filters()[:, 0].numpy()
    x, y = np.meshgrid(np.linspace(-3.5, 3.5, 7), np.linspace(-3.5, 3.5, 7), indexing="ij")
    r = np.sqrt(x**2 + y**2)
    centre = np.exp(-r / (2 * 1.1**2)) - 0.5 * np.exp(-r / (2 * 2.2**2))
    np.testing.assert_allclose(filters[0], centre / np.abs(centre).max(), atol=1e-6)
    np.testing.assert_allclose(filters[1], -filters[0])
    for number, angle in enumerate(np.deg2rad([0, 45, 90, 135])):
        wave = np.cos(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / 10 + np.pi / 2)
        wave *= np.exp(-r / (2 * 0.44**2))
        np.testing.assert_allclose(filters[2 + number], wave / np.abs(wave).max(), atol=2e-5)  # float32, twice
    assert initial_filters(8, 5).shape == (8, 1, 5, 5)
    for options, said in (({"count": 1}, "count: want >= 2, got 1"), ({"size": 1}, "size: want >= 2, got 1")):
        with pytest.raises(ValueError, match=said):
            initial_filters(**options)


@pytest.mark.parametrize(
    ("network", "inputs"),
    [(CNN, 288), (FC, 3072), (ConvFC, 6 * 48 * 64), (ConvPoolFC, 288), (lambda: CNN(filters=8, size=5), 8 * 6 * 8)],
)
def test_dimensions(network, inputs):
    made = network()
    assert made.fc.in_features == inputs
    assert made.fc.out_features == 10
    answers = made(gratings([-30.0, 30.0]))
    assert answers.shape == (2, 1)
    torch.testing.assert_close(made.probability(gratings([-30.0, 30.0])), torch.sigmoid(answers))


def test_pooling_cuts_what_is_left():
    network = CNN((50, 71))
    assert network.pool(torch.zeros(1, 6, 50, 71)).shape == (1, 6, 50 // 8, 71 // 8)
    assert network(torch.zeros(1, 1, 50, 71)).shape == (1, 1)
    with pytest.raises(ValueError, match="pool: want at most 6, got 8"):
        CNN((6, 40))
    with pytest.raises(ValueError, match="size: want an odd number, got 6"):
        CNN(size=6)


def test_modules_are_made_in_the_course_s_order():
    torch.manual_seed(12)
    nn.Conv2d(1, 6, 7, padding=3)
    fc, out = nn.Linear(288, 10), nn.Linear(10, 1)
    torch.manual_seed(12)
    network = CNN()
    assert torch.equal(network.fc.weight, fc.weight)
    assert torch.equal(network.out.weight, out.weight)
    assert torch.equal(network.conv.weight, initial_filters())
    assert not network.conv.bias.any()


def test_zero_is_left():
    assert tilts(np.array([-1.0, 0.0, 1.0])).flatten().tolist() == [0, 0, 1]


def test_training_mistakes():
    images, targets = gratings([-10.0, 10.0]), torch.tensor([[0.0], [1.0]])
    with pytest.raises(ValueError, match="epochs: want >= 1, got 0"):
        train(FC(), images, targets, epochs=0)
    with pytest.raises(ValueError, match="loss: want one of binary, classes, squared, got 'hinge'"):
        train(FC(), images, targets, loss="hinge")
    with pytest.raises(ValueError, match="rate: want one at which the loss stays finite"):
        train(FC(outputs=2), images, 1e4 * targets.repeat(1, 2), loss="squared", rate=10.0, epochs=50)


# Other tasks ------------------------------------------------------------------------------------------------------


def test_the_fourier_transform_knows_orientation():
    degrees = np.arange(-88.0, 90, 4)
    found, energy = fourier(gratings(degrees))
    assert energy.shape == (45, 36)
    away = np.abs((found - degrees + 90) % 180 - 90)
    assert away.max() < 1.5
    assert ((found > 0) == (degrees > 0))[np.abs(degrees) > 1].all()


@pytest.mark.parametrize("name", ["tilt", "orientation", "rotation", "objects"])
def test_tasks(name):
    pytest.importorskip("skimage")
    task = make_task(name, images=20, new=10)
    assert task.images.shape == (20, 1, 48, 64)
    assert task.new_images.shape == (10, 1, 48, 64)
    assert torch.equal(task.images, make_task(name, images=20, new=10).images)
    network = CNN(outputs=task.outputs)
    losses = train(network, task.images, task.targets, loss=task.loss, epochs=2, batch=10)
    assert np.isfinite(losses).all()
    with torch.no_grad():
        assert 0 <= task.score(network(task.new_images), task.new_targets) <= 90


def test_right_answers_score_best():
    task = make_task("orientation", images=5, new=5)
    assert task.score(3 * task.targets, task.targets) == pytest.approx(0, abs=1e-4)
    with pytest.raises(ValueError, match="task: want one of tilt, orientation, rotation, objects, got 'colour'"):
        make_task("colour")


def test_photographs_turn_to_the_right():
    pytest.importorskip("skimage")
    from v1fast.normative.tasks import rotated_photographs

    angles = np.array([0.0, 90.0, -90.0, 180.0])
    names = ("camera",)
    upright = rotated_photographs(names, np.zeros(4), (40, 40), seed=3)[:, 0]
    turned = rotated_photographs(names, angles, (40, 40), seed=3)[:, 0]
    for quarter, one, other in zip((0, -1, 1, 2), upright, turned, strict=True):
        torch.testing.assert_close(torch.rot90(one, quarter), other, atol=0.03, rtol=0)


def test_the_encoding_model():
    torch.manual_seed(0)
    model = EncodingModel(300)
    torch.testing.assert_close(model.conv.weight.mean((1, 2, 3)), torch.zeros(6), atol=1e-7, rtol=0)
    assert model.out.weight.std().item() == pytest.approx(0.01, rel=0.02)
    binned = population_of(simulate_gratings(300, seed=1), 6)
    found = fit_encoding(binned.responses, binned.degrees, held_out=np.arange(60) % 2 == 1)
    assert found.losses[-1] < 0.7 * found.losses[0]
    assert 0.1 < found.explained < 0.9


# The comparison ---------------------------------------------------------------------------------------------------


def test_what_is_compared_with(population):
    v1 = v1_of(population, 6)
    np.testing.assert_array_equal(v1.degrees, np.arange(-90, 91))
    assert v1.rdm.shape == (181, 181)
    assert np.bincount(v1.bins).tolist() == [6] * 29 + [7]
    assert v1.crossvalidated.shape == (30 * 29 // 2,)
    assert v1.undefined == 0
    # Noise makes the distances of single stimuli larger.
    assert v1.crossvalidated.mean() < v1.rdm[np.triu_indices(181, 1)].mean()
    assert 0 < v1.ceiling[0] < v1.ceiling[1] <= 1
    alone = v1_of(dataclasses.replace(population, responses=population.responses[::6], degrees=population.degrees[::6]))
    assert alone.crossvalidated is None
    with pytest.raises(ValueError, match="want at least 8 orientations up to 180, got 5"):
        v1_of(
            dataclasses.replace(population, responses=population.responses[::36], degrees=population.degrees[::36] + 5)
        )


def test_compare_with_v1(population):
    pytest.importorskip("skimage")
    from v1fast.normative import figures

    settings = NormativeSettings(
        seeds=2, epochs=1, images=40, image_shape=(24, 32), encoding_neurons=100, tasks=("tilt",)
    )
    found = compare_with_v1(population, settings, show=False)
    assert found.v1.responses.shape == (181, 200)  # those that the encoding model is not fitted to
    rows = {(row["system"], row["layer"], row["seed"]): row for row in found.rows}
    assert ("tilt: CNN", "fc", 13) in rows
    assert ("tilt: FC", "pool", 12) not in rows
    assert rows["encoding model", "predicted neurons", 12]["crossvalidated"] > 0.8
    assert rows["Fourier transform", "energy", ""]["similarity"] > rows["pixels", "pixels", ""]["similarity"]
    said = texts(figures.tasks(found.rows, found.v1.ceiling))
    assert "untrained CNN, pool" in said


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="tasks: want one of tilt, orientation, rotation, objects, got 'faces'"):
        NormativeSettings(tasks=("faces",))
    with pytest.raises(ValueError, match="seeds: want >= 1, got 0"):
        NormativeSettings(seeds=0)


@pytest.mark.parametrize("module", ["v1fast.normative.networks", "v1fast.normative.tasks"])
def test_the_examples_of_docstrings(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted
    assert not found.failed
