"""The metrics and losses beside neuralpredictors' NumPy definitions."""

import numpy as np
import pytest
import torch
from neuralpredictors.measures import modules as peer_losses
from neuralpredictors.measures import np_functions as peer

from v1fast import losses, metrics

N = 12


def session(repeats, seed=0, images=50):
    draw = np.random.default_rng(seed)
    counts = np.full(images, repeats) if isinstance(repeats, int) else draw.integers(*repeats, images)
    rates = draw.gamma(2, 1.5, (images, N))
    responses = [draw.poisson(np.tile(rate, (n, 1))).astype(float) for rate, n in zip(rates, counts, strict=True)]
    predictions = [
        np.tile(0.8 * rate, (n, 1)) + draw.uniform(size=(n, N)) for rate, n in zip(rates, counts, strict=True)
    ]
    return responses, predictions, np.repeat(np.arange(images), counts)


SESSIONS = pytest.mark.parametrize("repeats", [10, (2, 15)], ids=["equal", "unequal"])


def close(result, want):
    np.testing.assert_allclose(result.per_neuron.numpy(), want, rtol=0, atol=1e-6)


@SESSIONS
def test_correlations(repeats):
    responses, predictions, ids = session(repeats)
    r, p = np.vstack(responses), np.vstack(predictions)
    close(metrics.single_trial_correlation(r, p), peer.corr(r, p, axis=0))
    a, b = (np.stack([image.mean(0) for image in images]) for images in (responses, predictions))
    close(metrics.correlation_to_average(r, p, ids), peer.corr(a, b, axis=0))
    close(metrics.oracle_correlation(r, ids), peer.oracle_corr_jackknife(responses))
    close(metrics.oracle_correlation(r, ids, method="conservative"), peer.oracle_corr_conservative(responses))


@SESSIONS
def test_fev_and_feve(repeats):
    responses, predictions, ids = session(repeats)
    r, p = np.vstack(responses), np.vstack(predictions)
    fev, feve = peer.fev(responses, predictions, return_exp_var=True)
    close(metrics.fev(r, ids, weighting="neuralpredictors"), fev)
    close(metrics.feve(r, p, ids, weighting="neuralpredictors", threshold=None), feve)
    if repeats == 10:
        close(metrics.fev(r, ids), peer.explainable_var(np.stack(responses)))
        close(metrics.feve(r, p, ids, threshold=None), feve)


@pytest.mark.filterwarnings("ignore:Poissonloss is averaged")
@pytest.mark.parametrize("options", [{}, {"avg": False}, {"per_neuron": True}, {"per_neuron": True, "avg": False}])
def test_poisson_loss(options):
    rates, y = torch.rand(30, 5) * 4, torch.poisson(torch.rand(30, 5) * 4)
    torch.testing.assert_close(losses.PoissonLoss(**options)(rates, y), peer_losses.PoissonLoss(**options)(rates, y))
