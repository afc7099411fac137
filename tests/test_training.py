"""The fit of an encoder to a simulated population, at tiny sizes."""

import dataclasses

import numpy as np
import pytest
import torch

from v1fast.data import simulate
from v1fast.training.fit import LOSS, Epoch, Settings, evaluate, fit

pytest.importorskip("skimage")
pytest.importorskip("rich")

TINY = Settings(
    neurons=10, image_shape=(24, 30), train=48, validation=12, test=12, repeats=2, channels=4, epochs=4, batch=16
)


@pytest.fixture(scope="module")
def tiny():
    return simulate(10, (24, 30), train=48, validation=12, test=12, repeats=2)


def test_the_same_seed_gives_the_same_fit(tiny, console):
    histories = [
        [dataclasses.replace(epoch, seconds=0) for epoch in fit(tiny, TINY, console).history] for _ in range(2)
    ]
    assert histories[0] == histories[1]
    other = fit(tiny, dataclasses.replace(TINY, seed=1), console).history
    assert [epoch.train_loss for epoch in other] != [epoch.train_loss for epoch in histories[0]]


@pytest.fixture
def scripted(monkeypatch):
    """Gives each epoch a validation loss, or raises the exception in its place; keeps the weights of each epoch."""

    def script(*losses):
        weights, remaining = [], list(losses)

        def assess(model, simulation, train_loss, start):
            loss = remaining.pop(0)
            if isinstance(loss, BaseException):
                raise loss
            weights.append(model.readout.features.detach().clone())
            return Epoch(train_loss, loss, 0.0, 0.0, 0.0)

        monkeypatch.setattr("v1fast.training.fit._assess", assess)
        return weights

    return script


def test_the_best_epoch_is_kept(tiny, console, scripted):
    weights = scripted(3.0, 1.0, 2.0, 1.0)
    fitted = fit(tiny, TINY, console)
    assert fitted.best_epoch == 2
    assert torch.equal(fitted.model.readout.features, weights[1])
    assert not torch.equal(weights[1], weights[3])
    assert not fitted.interrupted
    assert not fitted.model.training


def test_ctrl_c_keeps_what_was_trained(tiny, console, scripted):
    weights = scripted(1.0, 2.0, KeyboardInterrupt())
    fitted = fit(tiny, TINY, console)
    assert fitted.interrupted
    assert len(fitted.history) == 2
    assert torch.equal(fitted.model.readout.features, weights[0])
    assert "Interrupted" in console.file.getvalue()
    assert evaluate(fitted, tiny)[0]["interrupted"]


def test_ctrl_c_before_anything_was_trained_ends_it(tiny, console, scripted):
    scripted(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        fit(tiny, TINY, console)


def test_the_summary_is_about_the_model_that_was_kept(tiny, console):
    fitted = fit(tiny, TINY, console)
    summary, tensors = evaluate(fitted, tiny)
    best = fitted.history[fitted.best_epoch - 1]
    loss = LOSS(fitted.model.predict(tiny.validation.images), tiny.validation.responses[0])
    assert loss.item() == pytest.approx(best.validation_loss, rel=1e-5)
    assert summary["position_error_median_px"] == pytest.approx(best.position_error, rel=1e-5)
    observed = tiny.test.responses.mean(0)
    r = [np.corrcoef(tensors["predicted"][:, n], observed[:, n])[0, 1] for n in range(10)]
    assert summary["correlation_mean"] == pytest.approx(np.mean(r), abs=1e-5)
    assert tensors["predicted"].min() >= 0
