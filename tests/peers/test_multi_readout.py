"""Readouts of several sessions against neuralpredictors'."""

import numpy as np
import pytest
import torch
from neuralpredictors.layers import readouts as neuralpredictors
from peers import side_by_side
from torch import nn

from v1fast import readouts

pytestmark = side_by_side.QUIET

SHAPES = {"a": (8, 9, 13), "b": (8, 7, 11)}
NEURONS = {"a": 40, "b": 30}
GAUSSIAN = {"bias": True, "init_mu_range": 0.7, "init_sigma": 0.25}
IDS = {key: np.random.default_rng(seed).permutation(np.arange(n) % 20) for seed, (key, n) in enumerate(NEURONS.items())}
RETINOTOPY = {
    "grid_mean_predictor": {"hidden_layers": 1, "hidden_features": 30, "final_tanh": True},
    "grid_mean_predictor_type": "cortex",
    "source_grids": {key: np.random.default_rng(1).normal(size=(n, 2)) for key, n in NEURONS.items()},
}
SHARED = "MultiReadoutSharedParametersBase"
CASES = {
    "separate": ("MultiReadoutBase", "FullGaussian2d", GAUSSIAN),
    "mean activity": (
        "MultiReadoutBase",
        "FullGaussian2d",
        GAUSSIAN | {"mean_activity_dict": {key: torch.linspace(0, 3, n) for key, n in NEURONS.items()}},
    ),
    "pooled": ("MultiReadoutBase", "PointPooled2d", {"bias": True, "pool_steps": 2, "pool_kern": 2, "init_range": 0.8}),
    "nothing shared": (SHARED, "FullGaussian2d", GAUSSIAN),
    "features": (SHARED, "FullGaussian2d", GAUSSIAN | {"share_features": True, "shared_match_ids": IDS}),
    "retinotopy": (SHARED, "FullGaussian2d", GAUSSIAN | RETINOTOPY),
}


class Session(nn.Module):
    """One session of several."""

    def __init__(self, multi, data_key):
        super().__init__()
        self.multi, self.data_key = multi, data_key

    def forward(self, x, **options):
        return self.multi(x, data_key=self.data_key, **options)

    def regularizer(self):
        return self.multi.regularizer(self.data_key)


def multi(library, cls, kind, options):
    ours = {"sampler": "torch"} if library is readouts and kind == "FullGaussian2d" else {}
    return getattr(library, cls)(SHAPES, NEURONS, base_readout=getattr(library, kind), **ours, **options)


def assert_same(ours, peer):
    side_by_side.move(ours, peer)
    for key in NEURONS:
        inputs = torch.randn(side_by_side.DRAWS, 8, *SHAPES[key])
        shift = 0.2 * torch.randn(8, 2)
        for more in ({}, {"shift": shift, "out_idx": [5, 1]}):
            side_by_side.assert_same_results(Session(ours, key), Session(peer, key), inputs, images=None, **more)


@pytest.mark.parametrize("case", CASES)
def test_multi_readout(case):
    assert_same(
        *side_by_side.twins(lambda: multi(readouts, *CASES[case]), lambda: multi(neuralpredictors, *CASES[case]))
    )


def test_shared_grid():
    """The peer draws the shared grid anew for each session, so that the same seed gives other values."""
    options = GAUSSIAN | {"share_grid": True, "share_features": True, "shared_match_ids": IDS}
    case = (SHARED, "FullGaussian2d", options)
    assert_same(multi(readouts, *case), multi(neuralpredictors, *case))


def test_a_clone_has_the_peers_keys_and_output():
    ours = readouts.ClonedReadout(readouts.FullGaussian2d(SHAPES["a"], 40, sampler="torch", **GAUSSIAN))
    peer = neuralpredictors.ClonedReadout(neuralpredictors.FullGaussian2d(SHAPES["a"], 40, **GAUSSIAN))
    ours.load_state_dict(peer.state_dict())
    side_by_side.move(ours, peer)
    x = torch.randn(8, *SHAPES["a"])
    for layer in (ours, peer):
        torch.manual_seed(0)
        layer.out = layer(x)
    torch.testing.assert_close(ours.out, peer.out)
    assert ours.feature_l1().item() == pytest.approx(peer.feature_l1().item(), rel=1e-6)
    assert ours.feature_l1(average=False).item() == pytest.approx(peer.feature_l1(average=False).item(), rel=1e-6)
