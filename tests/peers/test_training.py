"""Core and readout in training: the loss falls along the same curve as the peer's."""

import copy

import pytest
import torch
from assertions import assert_as_accurate
from neuralpredictors.layers import cores as peer_cores
from neuralpredictors.layers import readouts as peer_readouts
from peers import side_by_side
from torch import nn
from torch.nn import functional as F

from v1fast import models, readouts

pytestmark = side_by_side.QUIET

N, BATCH, STEPS = 30, 16, 20
CORE = {
    "input_channels": 1,
    "hidden_channels": 8,
    "input_kern": 5,
    "hidden_kern": 3,
    "layers": 3,
    "gamma_input": 1.0,
    "stack": -1,
    "pad_input": False,
    "depth_separable": True,
}
READOUTS = {
    "full": ("FullGaussian2d", {"init_mu_range": 0.3, "init_sigma": 0.2, "gamma_readout": 0.01}),
    "retinotopy": (
        "FullGaussian2d",
        {
            "init_sigma": 0.2,
            "gamma_readout": 0.01,
            "grid_mean_predictor": {"hidden_layers": 1, "hidden_features": 30, "final_tanh": True},
            "source_grid": torch.randn(N, 2, generator=torch.Generator().manual_seed(3)).double().numpy(),
        },
    ),
    "pooled": ("PointPooled2d", {"pool_steps": 2, "pool_kern": 2, "init_range": 0.3, "feature_reg_weight": 0.01}),
    "pyramid": (
        "PointPyramid2d",
        {
            "scale_n": 2,
            "positive": False,
            "init_range": 0.3,
            "downsample": True,
            "type": "gauss5x5",
            "feature_reg_weight": 0.01,
        },
    ),
    "factorized": ("FullFactorized2d", {"init_noise": 0.1, "gamma_readout": 1e-4}),
    "older": ("Gaussian2d", {"init_mu_range": 0.3, "init_sigma_range": 0.3, "gamma_readout": 0.01}),
}


class Model(nn.Module):
    """A core and one readout; rates by ELU + 1."""

    def __init__(self, core, readout):
        super().__init__()
        self.core, self.readout = core, readout

    def forward(self, images):
        return F.elu(self.readout(self.core(images))) + 1

    def regularizer(self):
        return self.core.regularizer() + self.readout.regularizer()


def models_of(readout, seed):
    name, options = READOUTS[readout]
    shape = (8, 16, 20)
    return side_by_side.twins(
        lambda: Model(
            models.Stacked2dCore(**CORE), getattr(readouts, name)(shape, N, bias=True, sampler="torch", **options)
        ),
        lambda: Model(peer_cores.Stacked2dCore(**CORE), getattr(peer_readouts, name)(shape, N, bias=True, **options)),
        seed,
    )


def data(seed):
    """Two batches of images, in turn, and responses that depend on them."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, BATCH, 1, 20, 24, generator=generator)
    drive = F.avg_pool2d(images[:, :, 0], 4).flatten(2)[..., :N]
    responses = torch.poisson(3 * torch.exp(4 * drive), generator=generator)
    return images.repeat(STEPS // 2, 1, 1, 1, 1), responses.repeat(STEPS // 2, 1, 1)


def train(model, optimizer, images, responses):
    """Loss of each step, in the precision of the model."""
    torch.manual_seed(0)
    losses = []
    for x, y in zip(images.to(next(model.parameters()).dtype), responses, strict=True):
        optimizer.zero_grad()
        rate = model(x)
        loss = (rate - y * torch.log(rate + 1e-8)).sum() + model.regularizer()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def adam(model, resumed=None):
    """Return an optimiser in the state of another one."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    if resumed is not None:
        optimizer.load_state_dict(copy.deepcopy(resumed.state_dict()))
    return optimizer


@pytest.mark.parametrize("readout", READOUTS)
def test_same_loss_curve(readout):
    curves = []
    for seed in range(3):
        ours, peer = models_of(readout, seed)
        exact = side_by_side.in_double(peer)
        curves.append(torch.stack([train(m, adam(m), *data(seed)).double() for m in (ours, peer, exact)]))
    got, own, want = torch.stack(curves, 1)
    assert (want[:, -1] < want[:, 0] - 1000).all(), "it learns"
    assert_as_accurate(got.float(), own.float(), want, "loss")


@pytest.mark.parametrize("readout", READOUTS)
def test_a_run_of_the_peer_is_taken_over(readout):
    """Training resumed from the peer's checkpoint of model and optimiser goes on as the peer's does."""
    curves = []
    for seed in range(3):
        ours, peer = models_of(readout, seed)
        first, second = zip(*(t.chunk(2) for t in data(seed)), strict=True)
        optimizer = adam(peer)
        train(peer, optimizer, *first)
        ours.load_state_dict(peer.state_dict())
        exact = side_by_side.in_double(peer)
        runs = ((ours, adam(ours, optimizer)), (exact, adam(exact, optimizer)), (peer, optimizer))
        curves.append(torch.stack([train(*run, *second).double() for run in runs]))
    got, want, own = torch.stack(curves, 1)
    assert_as_accurate(got.float(), own.float(), want, "loss")
