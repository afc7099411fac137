"""accelerate() on the peers' layers and on their models of several sessions: same results, same loss curve."""

import copy
import itertools
from functools import partial

import numpy as np
import pytest
import torch
from assertions import assert_as_accurate
from neuralpredictors.layers import cores, encoders, readouts, shifters
from openretina.modules.core.base_core import SimpleCoreWrapper
from openretina.modules.losses import PoissonLoss3d
from openretina.modules.readout import factorized, factorized_gaussian
from openretina.modules.readout import multi_readout as openretina
from peers import side_by_side
from peers.test_readouts import LAYOUTS, SHAPE
from peers.test_training import BATCH, CORE, READOUTS, STEPS, N, adam, data
from torch import nn

import v1fast
from v1fast.accelerate import LEFT, REPLACEABLE

pytestmark = side_by_side.QUIET

POOLED = {"bias": True, "pool_steps": 2, "pool_kern": 2, "init_range": 0.8}
PYRAMID = {"bias": True, "scale_n": 2, "positive": True, "init_range": 0.8, "downsample": True, "type": "gauss5x5"}
GAUSSIAN = {"bias": True, "init_mu_range": 0.7, "init_sigma": 0.25}
LAYERS = {
    **{f"FullGaussian2d, {layout}": ("FullGaussian2d", GAUSSIAN | options) for layout, options in LAYOUTS.items()},
    "FullGaussian2d, one draw for a batch": ("FullGaussian2d", GAUSSIAN | {"batch_sample": False}),
    "FullGaussian2d, isotropic": ("FullGaussian2d", GAUSSIAN | {"gauss_type": "isotropic", "align_corners": False}),
    "Gaussian2d": ("Gaussian2d", {"bias": True, "init_mu_range": 0.7, "init_sigma_range": 0.2}),
    "PointPooled2d": ("PointPooled2d", POOLED),
    "PointPyramid2d": ("PointPyramid2d", PYRAMID),
}


def pair(peer):
    """The peer, its values moved apart, and an accelerated copy."""
    peer = peer.train()
    side_by_side.move(peer, peer)
    ours = copy.deepcopy(peer)
    assert len(v1fast.accelerate(ours).replaced) == 1
    return ours, peer


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    kind, options = LAYERS[name]
    ours, peer = pair(getattr(readouts, kind)(SHAPE, 60, **options))
    inputs = torch.randn(side_by_side.DRAWS, BATCH, *SHAPE)
    shift = 0.2 * torch.randn(BATCH, 2)
    for training in (True, False):
        ours.train(training), peer.train(training)
        for more in ({}, {"shift": shift, "out_idx": np.array([5, 1, -1, 5])}):
            side_by_side.assert_same_results(ours, peer, inputs, images=None, **more)
    side_by_side.assert_same_state(ours, peer)
    if "grid_mean_predictor" in options:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert peer.mu.dtype == torch.bfloat16
            assert ours.mu.dtype == torch.float32


def test_videos():
    ours, peer = pair(readouts.SpatialTransformerPooled3d((8, 3, 9, 13), 60, init_range=0.8, kernel_size=3, stride=2))
    inputs = torch.randn(side_by_side.DRAWS, 2, 8, 3, 9, 13)
    shift = 0.2 * torch.randn(2, 3, 2)
    for more in ({}, {"shift": shift}, {"shift": shift, "subs_idx": [5, 1]}):
        side_by_side.assert_same_results(ours, peer, inputs, **more)
    layer = readouts.SpatialTransformerPooled3d((8, 3, 9, 13), 60, kernel_size=(2, 2))
    assert "not square" in str(v1fast.accelerate(layer))


@pytest.mark.parametrize("layout", ["plain", "retinotopy", "shared features"])
def test_openretinas_point_readout(layout):
    options = {"bias": True, "init_mu_range": 0.7, "init_sigma_range": 0.25} | LAYOUTS[layout]
    ours, peer = pair(openretina.PointGaussianReadout((8, 1, 9, 13), 60, **options))
    inputs = torch.randn(side_by_side.DRAWS, BATCH, *SHAPE)
    for training in (True, False):
        ours.train(training), peer.train(training)
        side_by_side.assert_same_results(ours, peer, inputs, shift=0.2 * torch.randn(BATCH, 2), out_idx=[5, 1])


FACTORIZED = {
    "default": {"bias": True},
    "without bias, another class": {"bias": False, "kind": "FullSXF"},
    "not normalized": {"bias": True, "normalize": False, "positive_weights": True},
    "positive": {"bias": True, "constrain_pos": True, "normalize": False},
    "positive, normalized": {"bias": True, "constrain_pos": True},
    "shared features": {"bias": True, "shared_features": {"match_ids": np.arange(60) % 20}},
    "positive, shared features": {
        "bias": True,
        "constrain_pos": True,
        "shared_features": {"match_ids": np.arange(60) % 20},
    },
}


@pytest.mark.parametrize("batch", [BATCH, 200])
@pytest.mark.parametrize("options", FACTORIZED)
def test_factorized(options, batch):
    """Few images, and more images than pixels: the sums are made in another order."""
    options = {"kind": "FullFactorized2d", "init_noise": 0.3} | FACTORIZED[options]
    ours, peer = pair(getattr(readouts, options.pop("kind"))(SHAPE, 60, **options))
    inputs = torch.randn(side_by_side.DRAWS, batch, *SHAPE)
    side_by_side.assert_same_results(ours, peer, inputs, out_idx=[5, 1])  # which it ignores
    side_by_side.assert_same_state(ours, peer)
    for layer in (ours, peer):
        with pytest.raises(NotImplementedError, match="shift"):
            layer(inputs[0], shift=torch.zeros(batch, 2))


@pytest.mark.parametrize("layers", [1, 2])
def test_attention(layers):
    layer = readouts.AttentionReadout(SHAPE, 60, True, init_noise=0.3, attention_layers=layers)
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            module.padding = 0  # False is what torch no longer takes
    layer.attention[-1].bias.requires_grad_(False)  # a softmax over the map does not change with it
    ours, peer = pair(layer)
    for size in (SHAPE, (8, 5, 6)):
        side_by_side.assert_same_results(ours, peer, torch.randn(side_by_side.DRAWS, BATCH, *size))
    side_by_side.assert_same_state(ours, peer)
    x = torch.randn(BATCH, *SHAPE)
    assert ours.eval()(x, torch.ones(BATCH, 2)).equal(ours(x))


def retinal_masks(kind=factorized.FactorizedReadout, **options):
    scales = {"init_scales": [(0.0, 0.3), (0.1, 0.3)]}
    return kind((8, 3, 9, 13), 60, 0.3, 0.7, 0.2, (9, 13), **scales, **options)


def retinal_gaussians(**options):
    return factorized_gaussian.GaussianMaskReadout((8, 3, 9, 13), 60, **options)


OF_VIDEOS = {
    "factorized": retinal_masks,
    "factorized, older name": partial(retinal_masks, kind=factorized.KlindtReadoutWrapper3D, readout_bias=True),
    "factorized, abs": partial(retinal_masks, weights_constraint="abs", mask_constraint="abs"),
    "factorized, norm": partial(retinal_masks, weights_constraint="norm", readout_bias=True),
    "factorized, absnorm": partial(retinal_masks, weights_constraint="absnorm"),
    "masks": retinal_gaussians,
    "masks, scaled": partial(retinal_gaussians, scale=True, gaussian_mean_scale=2.0, gaussian_var_scale=3.0),
    "masks, positive": partial(retinal_gaussians, positive=True, bias=False, nonlinearity_function=nn.ELU()),
}


@pytest.mark.parametrize("batch", [2, 50])
@pytest.mark.parametrize("name", OF_VIDEOS)
def test_openretinas_masks(name, batch):
    """Few frames, and more frames than pixels."""
    ours, peer = pair(OF_VIDEOS[name]())
    side_by_side.assert_same_results(ours, peer, torch.randn(side_by_side.DRAWS, batch, 8, 3, 9, 13))
    side_by_side.assert_same_state(ours, peer)


def test_every_class_in_the_tables_is_theirs():
    theirs = [
        *vars(readouts).values(),
        *(openretina.PointGaussianReadout, openretina.FactorizedReadout, openretina.GaussianMaskReadout),
    ]
    known = {f"{c.__module__}.{c.__qualname__}" for c in theirs if isinstance(c, type)}
    only_in_later_releases = {
        "neuralpredictors.layers.readouts.gaussian.GeneralizedFullGaussianReadout2d",
        "neuralpredictors.layers.readouts.point_pooled.GeneralizedPointPooled2d",
    }
    assert REPLACEABLE.keys() - only_in_later_releases | LEFT.keys() <= known


def test_what_is_left():
    remapped = readouts.RemappedGaussian2d.__new__(readouts.RemappedGaussian2d)  # its constructor fails
    nn.Module.__init__(remapped)
    model = nn.ModuleDict({"remapped": remapped})
    model["clone"] = readouts.ClonedReadout(readouts.FullGaussian2d(SHAPE, 5, bias=True))
    report = v1fast.accelerate(model)
    assert [outcome.names for outcome in report.replaced] == [("clone._source",)]
    remapped, clone = report.left
    path = "neuralpredictors.layers.readouts.gaussian.RemappedGaussian2d"
    assert str(remapped) == "remapped: RemappedGaussian2d of neuralpredictors; " + LEFT[path]
    assert "clones" in clone.why


KEYS = ("a", "b")
IDS = {key: np.random.default_rng(seed).permutation(np.arange(N) % 20) for seed, key in enumerate(KEYS)}
SESSIONS = {
    **{name: (readouts.MultiReadoutBase, kind, options) for name, (kind, options) in READOUTS.items()},
    "shared features and grid": (
        readouts.MultiReadoutSharedParametersBase,
        "FullGaussian2d",
        READOUTS["full"][1] | {"share_features": True, "share_grid": True, "shared_match_ids": IDS},
    ),
}


class Retina(nn.Module):
    """A core and the readouts of several sessions, combined as openretina's ``BaseCoreReadout`` does."""

    def __init__(self):
        super().__init__()
        self.core = SimpleCoreWrapper(
            channels=(1, 6, 8),
            temporal_kernel_sizes=(3, 3),
            spatial_kernel_sizes=(5, 3),
            gamma_input=0.1,
            gamma_temporal=0.1,
            gamma_in_sparse=0.1,
            gamma_hidden=0.1,
            cut_first_n_frames=0,
        )
        self.readout = openretina.MultiSampledGaussianReadout(
            (8, 4, 16, 20), dict.fromkeys(KEYS, N), bias=True, init_mu_range=0.3, init_sigma_range=0.2, gamma=0.01
        )
        self.loss = PoissonLoss3d()

    def step(self, images, responses, pupil, data_key):
        movie = images.unflatten(0, (2, -1)).transpose(1, 2)  # half of the images are frames of another movie
        rates = self.readout(self.core(movie), data_key=data_key)
        loss = self.loss(rates, responses.unflatten(0, (2, -1)))
        return loss + self.core.regularizer() + self.readout.regularizer(data_key)


class Cortex(encoders.FiringRateEncoder):
    """neuralpredictors' model, with its shifter where the readout takes a shift."""

    def __init__(self, sessions):
        multi, kind, options = SESSIONS[sessions]
        super().__init__(
            cores.Stacked2dCore(**CORE),
            multi(
                dict.fromkeys(KEYS, (8, 16, 20)),
                dict.fromkeys(KEYS, N),
                base_readout=getattr(readouts, kind),
                bias=True,
                **options,
            ),
            shifter=None if sessions == "factorized" else shifters.MLPShifter(KEYS, shift_layers=2),
        )
        self.loss = nn.PoissonNLLLoss(log_input=False, reduction="sum")

    def step(self, images, responses, pupil, data_key):
        rates = self(images, data_key=data_key, pupil_center=pupil)
        penalty = self.core.regularizer() + self.readout.regularizer(data_key)
        return self.loss(rates, responses) + penalty


def train(model, seed, between=lambda step, model: None):
    """Loss of each step, in the precision of the model; the sessions take turns."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    optimizer = adam(model)
    batches = zip(*data(seed), itertools.cycle(KEYS), strict=False)
    torch.manual_seed(0)
    losses = []
    for step, (images, responses, data_key) in enumerate(batches):
        between(step, model)
        pupil = 0.5 * torch.randn(BATCH, 2, generator=generator)
        optimizer.zero_grad()
        loss = model.step(images.to(dtype), responses.to(dtype), pupil.to(dtype), data_key)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def in_turns(step, model):
    """Accelerated and restored in the middle of a run."""
    if step in (5, 11):
        assert v1fast.accelerate(model).replaced
    if step in (8, 16):
        assert v1fast.restore(model)


def assert_same_curves(make):
    curves = []
    for seed in range(3):
        torch.manual_seed(seed)
        peer = make()
        ours, turning, exact = copy.deepcopy(peer), copy.deepcopy(peer), side_by_side.in_double(peer)
        assert len(v1fast.accelerate(ours).replaced) == len(KEYS)
        runs = [train(ours, seed), train(turning, seed, in_turns), train(peer, seed), train(exact, seed)]
        assert len(runs[0]) == STEPS
        curves.append(torch.stack([run.double() for run in runs]))
    got, turning, own, want = torch.stack(curves, 1)
    assert (want[:, -2:].sum(1) < want[:, :2].sum(1) - 100).all(), "it learns"
    assert not got.equal(own), "by other kernels"
    assert_as_accurate(got.float(), own.float(), want, "loss")
    assert_as_accurate(turning.float(), own.float(), want, "loss of a run that is changed on the way")


@pytest.mark.parametrize("sessions", SESSIONS)
def test_same_loss_curve_of_neuralpredictors(sessions):
    assert_same_curves(lambda: Cortex(sessions))


def test_same_loss_curve_of_openretina():
    assert_same_curves(Retina)
