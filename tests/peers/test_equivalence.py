"""The models of the study of equivalence: what a pair shares, and what it does not."""

import importlib

import numpy as np
import pytest

trained = importlib.import_module("v1fast.benchmarks.equivalence_trained")


@pytest.fixture
def models(monkeypatch):
    pytest.importorskip("skimage")
    monkeypatch.setitem(trained.TRAINING, "steps", 3)
    monkeypatch.setattr(trained, "ANIMAL", {**trained.ANIMAL, "train": 20, "test": 12, "repeats": (2, 2)})
    recording = trained.animal()
    return {kind: trained.made(kind, 0, recording) for kind in trained.KINDS}, recording


def test_models_of_a_seed_differ_by_their_random_positions_alone(models):
    found, recording = models
    first = {kind: one.losses[0] for kind, one in found.items()}
    assert len(set(first.values())) == 3
    assert np.ptp(list(first.values())) < 0.01 * first["published"]
    for one in found.values():
        assert one.predictions.shape == (12, trained.NEURONS)
        assert one.position.shape == (trained.NEURONS, 2)
        assert (one.position >= 4).all()  # what the core cuts off
        assert (one.position <= np.array(trained.IMAGE[::-1]) - 5).all()
        assert one.features.shape == (2 * trained.MAP[1] * trained.MAP[2], trained.MAP[0])
    again = trained.made("published", 0, recording)
    np.testing.assert_array_equal(again.predictions, found["published"].predictions)
