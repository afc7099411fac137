"""Readouts of several sessions against neuralpredictors'."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from neuralpredictors.layers import readouts as neuralpredictors
from openretina.modules.readout import base
from openretina.modules.readout import multi_readout as openretina
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


CONTAINERS = {
    "MultiGaussianMaskReadout": (
        "GaussianMaskReadout",
        {"scale": True, "bias": True, "gaussian_mean_scale": 1.0, "gaussian_var_scale": 1.0, "positive": False},
    ),
    "MultiSampledGaussianReadout": (
        "PointGaussianReadout",
        {"bias": True, "init_mu_range": 0.3, "init_sigma_range": 0.2},
    ),
    "MultiFactorizedReadout": (
        "FactorizedReadout",
        {"mask_l1_reg": 0.1, "weights_l1_reg": 0.1, "laplace_mask_reg": 0.1, "init_scales": [(0.0, 0.1), (0.0, 0.1)]},
    ),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_openretinas_containers_take_these_readouts(container):
    name, options = CONTAINERS[container]
    parent = getattr(openretina, container)
    cls = type(container, (parent,), {"_base_readout_cls": getattr(readouts, name)})
    shape, neurons = (8, 5, 9, 13), {"a": 4, "b": 3}
    torch.manual_seed(0)
    peer = parent(shape, neurons, **options)
    torch.manual_seed(0)
    mine = cls(shape, neurons, **options)
    mine.load_state_dict(peer.state_dict())
    x = torch.randn(2, *shape)
    for data_key in (None, "b"):
        got, want = (layer.eval()(x, data_key=data_key) for layer in (mine, peer))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    if container != "MultiFactorizedReadout":  # whose Laplacian takes pixels and neurons in wrong order
        torch.testing.assert_close(mine.regularizer("a"), peer.regularizer("a"))
    mine.add_sessions({"c": 6})
    mine["d"] = getattr(readouts, name)(shape, 5, **mine._readout_kwargs)
    assert mine.readout_keys() == ["a", "b", "c", "d"]
    clone = base.ClonedReadout(mine["a"])
    assert clone.eval()(x).equal(mine["a"](x))


@pytest.mark.parametrize("imports", ["import openretina.modules.readout.base", "import v1fast", ""])
def test_these_are_openretinas_readouts_whatever_is_imported_first(imports):
    """And v1fast imports neither library."""
    code = f"""
import sys; sys.path.append({os.environ["V1FAST_PEERS"]!r})
{imports}
before = set(sys.modules)
from v1fast import readouts
assert not [name for name in {{*sys.modules}} - before if name.startswith(("openretina", "neuralpredictors"))]
from openretina.modules.readout.base import Readout
assert isinstance(readouts.FullFactorized2d((4, 5, 5), 3, True), Readout)
assert issubclass(readouts.PointGaussianReadout, Readout)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["FullGaussian2d", "PointPooled2d", "Gaussian2d"])
def test_one_shift_for_a_batch(name):
    """As neuralpredictors' shifter gives where a session has no eye position of its own."""
    options = {"FullGaussian2d": GAUSSIAN, "PointPooled2d": CASES["pooled"][2], "Gaussian2d": {"bias": True}}[name]
    peer = getattr(neuralpredictors, name)(SHAPES["a"], 5, **options).eval()
    mine = getattr(readouts, name)(SHAPES["a"], 5, **options).eval()
    mine.load_state_dict(peer.state_dict())
    x, shift = torch.randn(3, *SHAPES["a"]), torch.tensor([[0.1, -0.2]])
    torch.testing.assert_close(mine(x, shift=shift), peer(x, shift=shift), rtol=1e-4, atol=1e-5)
