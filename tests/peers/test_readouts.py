"""The readouts against neuralpredictors', and FullGaussian2d against openretina's."""

import numpy as np
import pytest
import torch
from neuralpredictors.layers import readouts as neuralpredictors
from openretina.modules.readout import gaussian as openretina
from peers import side_by_side
from torch import nn

from v1fast import readouts

pytestmark = side_by_side.QUIET

SHAPE, N, BATCH = (8, 9, 13), 60, 8
MATCH_IDS = np.random.default_rng(0).integers(0, 20, N)
CORTEX = np.random.default_rng(1).normal(size=(N, 3))
ONE_LAYER = {"hidden_layers": 1, "hidden_features": 30, "final_tanh": True}
GAUSS_TYPES = ("full", "uncorrelated", "isotropic")
LAYOUTS = {
    "plain": {},
    "linear retinotopy": {"grid_mean_predictor": {"hidden_layers": 0}, "source_grid": CORTEX},
    "retinotopy": {"grid_mean_predictor": ONE_LAYER, "source_grid": CORTEX, "bias": False},
    "deep retinotopy": {"grid_mean_predictor": {"hidden_layers": 3}, "source_grid": CORTEX},
    "shared features": {"shared_features": {"match_ids": MATCH_IDS, "shared_features": None}},
    "shared grid": {"shared_grid": {"match_ids": MATCH_IDS, "shared_grid": None}},
}
OPTIONS = {
    "without bias": {"bias": False},
    "one draw for a batch": {"batch_sample": False},
    "pixel edges": {"align_corners": False},
    "mean activity": {"mean_activity": torch.linspace(0, 3, N)},
}


def of_openretina(shape, outdims, init_sigma=1.0, **options):
    channels, height, width = shape
    return openretina.FullGaussian2d((channels, 1, height, width), outdims, init_sigma_range=init_sigma, **options)


FULL_GAUSSIAN = {"neuralpredictors": neuralpredictors.FullGaussian2d, "openretina": of_openretina}


def full_gaussians(peer, **options):
    options = {"bias": True, "init_mu_range": 0.7, "init_sigma": 0.25} | options
    return side_by_side.twins(
        lambda: readouts.FullGaussian2d(SHAPE, N, sampler="torch", **options),
        lambda: FULL_GAUSSIAN[peer](SHAPE, N, **options),
    )


def older_gaussians(**options):
    options = {"bias": True, "init_mu_range": 0.7, "init_sigma_range": 0.2} | options
    return side_by_side.twins(
        lambda: readouts.Gaussian2d(SHAPE, N, sampler="torch", **options),
        lambda: neuralpredictors.Gaussian2d(SHAPE, N, **options),
    )


def pooled(kind="PointPooled2d", **options):
    options = {"pool_steps": 2, "bias": True, "pool_kern": 2, "init_range": 0.8} | options
    return both(kind, SHAPE, **options)


def pyramids(**options):
    options = {"scale_n": 2, "positive": False, "bias": True, "init_range": 0.8, "downsample": True} | options
    return both("PointPyramid2d", SHAPE, **{"type": "gauss5x5"} | options)


def both(kind, shape, **options):
    ours, theirs = getattr(readouts, kind), getattr(neuralpredictors, kind)
    return side_by_side.twins(lambda: ours(shape, N, **options), lambda: theirs(shape, N, **options))


def assert_same(ours, peer):
    """In training and evaluation, with and without a shift and a choice of neurons."""
    inputs = torch.randn(side_by_side.DRAWS, BATCH, *SHAPE)
    shift = 0.2 * torch.randn(BATCH, 2)
    some = np.arange(N) % 3 == 0
    for training, options in (
        (True, {}),
        (True, {"shift": shift, "out_idx": np.array([5, 1, -1, 5])}),
        (True, {"sample": False, "images": None}),
        (False, {}),
        (False, {"shift": shift, "out_idx": some}),
        (False, {"sample": True, "data_key": "a"}),
    ):
        ours.train(training), peer.train(training)
        side_by_side.assert_same_results(ours, peer, inputs, **options)
    assert ours.grid.equal(peer.grid)
    side_by_side.assert_same_state(ours, peer)


@pytest.mark.parametrize("gauss_type", GAUSS_TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("peer", FULL_GAUSSIAN)
def test_full_gaussian(peer, layout, gauss_type):
    ours, theirs = full_gaussians(peer, gauss_type=gauss_type, **LAYOUTS[layout])
    side_by_side.move(ours, theirs)
    assert_same(ours, theirs)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("peer", FULL_GAUSSIAN)
def test_full_gaussian_with(peer, options):
    ours, theirs = full_gaussians(peer, **OPTIONS[options])
    side_by_side.move(ours, theirs)
    assert_same(ours, theirs)


@pytest.mark.parametrize("options", [*OPTIONS, "fixed sigma"])
def test_older_gaussian(options):
    ours, theirs = older_gaussians(
        **{"fixed sigma": {"fixed_sigma": True, "init_sigma_range": 0.1}, **OPTIONS}[options]
    )
    side_by_side.move(ours, theirs)
    assert (theirs.sigma < 0).any(), "so that the clamp is at work"
    assert_same(ours, theirs)
    assert (ours.sigma == 0).any()


@pytest.mark.parametrize("peer", FULL_GAUSSIAN)
def test_two_readouts_that_share_features_and_grid(peer):
    """As for two sessions of one animal. The state is copied first: the peer's second readout resets what it shares."""

    def pair(make, **options):
        def session(**shared):
            layout = {k: {"match_ids": MATCH_IDS, k: v} for k, v in shared.items()}
            return make(SHAPE, N, bias=True, init_mu_range=0.7, init_sigma=0.25, **layout, **options)

        first = session(shared_features=None, shared_grid=None)
        second = session(shared_features=first.shared_features, shared_grid=first.shared_grid)
        return nn.ModuleList([first, second])

    ours, theirs = pair(readouts.FullGaussian2d, sampler="torch"), pair(FULL_GAUSSIAN[peer])
    side_by_side.move(ours, theirs)
    assert ours[1]._features is ours[0]._features
    for mine, other in zip(ours, theirs, strict=True):
        assert_same(mine, other)


@pytest.mark.parametrize("options", [{}, {"feature_reg_weight": 0.3}, {"gamma_readout": 0.7}])
def test_weight_of_the_penalty(options):
    for ours, theirs in (full_gaussians("neuralpredictors", **options), older_gaussians(**options)):
        assert ours.feature_reg_weight == theirs.feature_reg_weight
        torch.testing.assert_close(ours.regularizer(), theirs.regularizer())
        torch.testing.assert_close(ours.regularizer(reduction="mean"), theirs.regularizer(reduction="mean"))


POOLED = {
    "default": {},
    "one map": {"pool_steps": 0, "bias": False},
    "down to one row": {"pool_steps": 3},
    "pooled by three": {"pool_kern": 3, "pool_steps": 1},
    "pixel edges": {"align_corners": False},
    "mean activity": {"mean_activity": torch.linspace(0, 3, N)},
    "penalty": {"feature_reg_weight": 0.3},
}
PYRAMIDS = {
    "default": {},
    "small Gaussian": {"type": "gauss3x3", "bias": False},
    "binomial": {"type": "laplace5x5", "align_corners": False},
    "at full size": {"downsample": False},
    "deep": {"scale_n": 5},
    "positive": {"positive": True, "mean_activity": torch.linspace(0, 3, N)},
}


def assert_same_points(ours, theirs, *choices):
    """With and without a shift, and with choices of neurons by those who take them."""
    inputs = torch.randn(side_by_side.DRAWS, BATCH, *SHAPE)
    shift = 0.2 * torch.randn(BATCH, 2)
    for options in ({}, {"shift": shift}, *({"shift": shift, "out_idx": choice} for choice in choices)):
        side_by_side.assert_same_results(ours, theirs, inputs, images=None, **options)
    side_by_side.assert_same_state(ours, theirs)
    assert (ours.grid.abs() == 1).any(), "so that the clamp is at work"


@pytest.mark.parametrize("options", POOLED)
def test_point_pooled(options):
    ours, theirs = pooled(**POOLED[options])
    side_by_side.move(ours, theirs)
    assert_same_points(ours, theirs, np.array([5, 1, -1, 5]), np.arange(N) % 3 == 0, [7])


def test_point_pooled_with_other_pool_steps():
    ours, theirs = pooled()
    for steps in (1, 1, 3):
        ours.pool_steps = theirs.pool_steps = steps
        side_by_side.assert_same_state(ours, theirs)
        side_by_side.move(ours, theirs)
        assert_same_points(ours, theirs)


@pytest.mark.parametrize("options", PYRAMIDS)
def test_point_pyramid(options):
    ours, theirs = pyramids(**PYRAMIDS[options])
    side_by_side.move(ours, theirs)
    assert_same_points(ours, theirs)
    assert ours.group_sparsity(SHAPE[0]).item() == pytest.approx(theirs.group_sparsity(SHAPE[0]).item(), rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"positive": True, "pool_steps": 2}, {"kernel_size": 3, "bias": False}])
def test_pooled_videos(options):
    channels, *size = SHAPE
    ours, theirs = both("SpatialTransformerPooled3d", (channels, 3, *size), init_range=0.8, **options)
    side_by_side.move(ours, theirs)
    inputs = torch.randn(side_by_side.DRAWS, 2, channels, 3, *size)
    shift = 0.2 * torch.randn(2, 3, 2)
    for more in ({}, {"shift": shift}, {"shift": shift, "subs_idx": [5, 1]}):
        side_by_side.assert_same_results(ours, theirs, inputs, **more)
    for layer in (ours, theirs):
        layer.reset_fisher_prune_scores()
        side_by_side.results(layer, inputs[:1])
        layer.update_fisher_prune_scores()
        layer.prune()
    assert (ours.mask == 0).sum() == N
    assert ours.mask.equal(theirs.mask)
    side_by_side.assert_same_results(ours, theirs, inputs)


def test_stopped_gradient_of_videos():
    ours, theirs = both("SpatialTransformerPooled3d", (8, 3, 9, 13), stop_grad=True)
    x = torch.randn(2, 8, 3, 9, 13, requires_grad=True)
    for layer in (ours, theirs):
        layer(x).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(ours.grid.grad, theirs.grid.grad)
