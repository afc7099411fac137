"""What the demo fits, at tiny sizes."""

import dataclasses

import numpy as np
import pytest
import torch

for module in ("skimage", "rich", "lightning", "torchmetrics"):
    pytest.importorskip(module)

from v1fast.cli._simulated_fit import LOSS, Settings, centres, encoder, evaluate, fit_population, predict  # noqa: E402
from v1fast.data import simulate  # noqa: E402

TINY = Settings(
    neurons=10, image_shape=(24, 30), train=48, validation=12, test=12, repeats=2, channels=4, epochs=4, batch=16
)


@pytest.fixture(scope="module")
def tiny():
    return simulate(10, (24, 30), train=48, validation=12, test=12, repeats=2)


def test_the_same_seed_gives_the_same_fit(tiny, console):
    histories = [fit_population(tiny, TINY, console).epochs for _ in range(2)]
    assert histories[0] == histories[1]
    other = fit_population(tiny, dataclasses.replace(TINY, seed=1), console).epochs
    assert [epoch["train_loss"] for epoch in other] != [epoch["train_loss"] for epoch in histories[0]]


def test_the_summary_is_about_the_model_that_was_kept(tiny, console):
    fitted = fit_population(tiny, TINY, console)
    summary, tensors = evaluate(fitted, tiny)
    best = fitted.epochs[fitted.best_epoch - 1]
    loss = LOSS(predict(fitted.model, tiny.validation.images), tiny.validation.responses[0])
    assert loss.item() == pytest.approx(best["val_loss"], rel=1e-5)
    assert summary["position_error_median_px"] == pytest.approx(best["position_error"], rel=1e-5)
    observed = tiny.test.responses.mean(0)
    r = [np.corrcoef(tensors["predicted"][:, n], observed[:, n])[0, 1] for n in range(10)]
    assert summary["correlation_mean"] == pytest.approx(np.mean(r), abs=1e-5)
    assert tensors["predicted"].min() >= 0
    assert not fitted.model.training


@pytest.mark.parametrize(("mu", "pixels"), [((-1, -1), (4, 4)), ((1, 1), (25, 19)), ((1, -1), (25, 4))])
def test_learned_centres_are_in_pixels_of_the_image(mu, pixels):
    model = encoder(TINY, torch.ones(1)).eval()
    with torch.no_grad():
        model.readout.mu.copy_(torch.tensor(mu, dtype=torch.float32).view(1, 1, 1, 2))
    assert centres(model).tolist() == [list(pixels)]
    image = torch.randn(1, 1, 24, 30, requires_grad=True)
    model(image).sum().backward()
    # The pixels that the neuron sees: 9 + 3 - 1 around its centre, as far as the second layer's map goes.
    rows, columns = (image.grad[0, 0].abs().sum(axis).nonzero()[:, 0] for axis in (1, 0))
    for seen, centre, size in ((columns, pixels[0], 30), (rows, pixels[1], 24)):
        assert seen.min() == max(centre - 5, 0)
        assert seen.max() == min(centre + 5, size - 1)
