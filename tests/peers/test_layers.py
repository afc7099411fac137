"""The other layers against those of neuralpredictors and openretina, where the peer's works.

Published neuralpredictors has no GeneralizedFullGaussianReadout2d; its RemappedGaussian2d cannot run at all, nor its
DeterministicGaussian2d with a gradient of the means, UltraSparse with its penalty, AttentionReadout with kernels beyond
one pixel, and openretina's PointGaussianReadout with videos.
"""

import numpy as np
import pytest
import torch
from neuralpredictors.layers import readouts as neuralpredictors
from openretina.modules.readout import factorized as openretina_factorized
from openretina.modules.readout import factorized_gaussian as openretina_mask
from openretina.modules.readout import gaussian as openretina_point
from peers import side_by_side

from v1fast import readouts

pytestmark = side_by_side.QUIET

SHAPE, N, BATCH, FRAMES = (8, 9, 13), 60, 8, 3
VIDEO = (SHAPE[0], FRAMES, *SHAPE[1:])
MATCH_IDS = np.random.default_rng(0).integers(0, 20, N)
MEAN = torch.linspace(0, 3, N)


def images(*, batch=BATCH):
    return torch.randn(side_by_side.DRAWS, batch, *SHAPE)


def videos():
    return torch.randn(side_by_side.DRAWS, 2, *VIDEO)


def without_penalty(layer):
    """Where the peer's raises."""
    layer.regularizer = lambda: torch.zeros(())
    return layer


def pair(ours, theirs, *arguments, change=lambda layer: layer, **options):
    """Made from the same seed, then moved away from what they start with."""
    mine, peer = side_by_side.twins(lambda: ours(*arguments, **options), lambda: theirs(*arguments, **options))
    mine, peer = change(mine), change(peer)
    side_by_side.move(mine, peer)
    return mine, peer


FACTORIZED = {
    "default": {"bias": True},
    "without bias": {"bias": False, "gamma_readout": 0.3},
    "not normalized": {"bias": True, "normalize": False},
    "positive": {"bias": True, "constrain_pos": True, "normalize": False},
    "positive, normalized": {"bias": True, "constrain_pos": True},
    "shared features": {"bias": True, "shared_features": {"match_ids": MATCH_IDS, "shared_features": None}},
    "mean activity": {"bias": True, "mean_activity": MEAN},
}


@pytest.mark.parametrize("batch", [BATCH, 200])
@pytest.mark.parametrize("options", FACTORIZED)
def test_full_factorized(options, batch):
    """Few images, and more images than pixels: the sums are made in another order."""
    mine, peer = pair(
        readouts.FullFactorized2d,
        neuralpredictors.FullFactorized2d,
        SHAPE,
        N,
        init_noise=0.3,
        **FACTORIZED[options],
    )
    side_by_side.assert_same_results(mine, peer, images(batch=batch), images=None, data_key="a")
    side_by_side.assert_same_state(mine, peer)
    torch.testing.assert_close(mine.regularizer(reduction="mean"), peer.regularizer(reduction="mean"))


@pytest.mark.parametrize("name", ["SpatialXFeatureLinear", "FullSXF"])
def test_older_names_of_the_factorized_readout(name):
    mine, peer = pair(getattr(readouts, name), getattr(neuralpredictors, name), SHAPE, N, True, init_noise=0.3)
    side_by_side.assert_same_results(mine, peer, images())


@pytest.mark.parametrize(
    "options",
    [
        {"bias": True},
        {"bias": False, "init_sigma": 0.3},
        {"bias": True, "positive": True},
        {"bias": True, "positive": True, "constrain_mode": "abs"},
        {"bias": True, "positive": True, "constrain_mode": "elu", "mean_activity": MEAN},
    ],
)
def test_deterministic_gaussian(options):
    """Without a gradient of the means, which the peer clamps as autograd forbids."""

    def fix_means(layer):
        layer.mu.requires_grad_(False)
        return layer

    mine, peer = pair(
        readouts.DeterministicGaussian2d,
        neuralpredictors.DeterministicGaussian2d,
        SHAPE,
        N,
        init_mu_range=1.0,
        change=fix_means,
        **options,
    )
    side_by_side.assert_same_results(mine, peer, images())
    side_by_side.assert_same_state(mine, peer)


@pytest.mark.parametrize(
    "options",
    [
        {"bias": True},
        {"bias": False, "attention_layers": 2, "attention_kernel": 3},
        {"bias": True, "gamma_readout": 0.3, "attention_layers": 3},
    ],
)
def test_attention(options):
    """With the peer's padding made the number that it stands for: torch no longer takes True and False."""

    def fix(layer):
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Conv2d):
                module.padding = module.padding if isinstance(module.padding, str) else tuple(map(int, module.padding))
            if name.endswith(f"conv{options.get('attention_layers', 1)}"):
                module.bias.requires_grad_(False)  # a softmax over the map does not change with it
        return layer

    mine, peer = pair(
        readouts.AttentionReadout,
        neuralpredictors.AttentionReadout,
        SHAPE,
        N,
        init_noise=0.3,
        change=fix,
        **options,
    )
    side_by_side.assert_same_results(mine, peer, images())


@pytest.mark.parametrize(
    "options", [{"bias": True}, {"bias": False, "fixed_sigma": True}, {"bias": True, "align_corners": False}]
)
def test_gaussian3d(options):
    mine, peer = pair(readouts.Gaussian3d, neuralpredictors.Gaussian3d, SHAPE, N, change=without_penalty, **options)
    for more in ({}, {"out_idx": np.array([5, 1, -1])}, {"sample": False, "out_idx": np.arange(N) % 3 == 0}):
        side_by_side.assert_same_results(mine, peer, images(), **more)
    mine.eval(), peer.eval()
    side_by_side.assert_same_results(mine, peer, images())
    side_by_side.assert_same_state(mine, peer)


@pytest.mark.parametrize(
    "options",
    [
        {"bias": True},
        {"bias": False, "num_filters": 3},
        {"bias": True, "num_filters": 3, "batch_sample": False},
        {"bias": True, "num_filters": 2, "shared_mean": True},
        {"bias": True, "num_filters": 2, "shared_mean": True, "fixed_sigma": True, "align_corners": False},
    ],
)
def test_ultra_sparse(options):
    mine, peer = pair(
        readouts.UltraSparse,
        neuralpredictors.UltraSparse,
        SHAPE,
        N,
        init_mu_range=0.8,
        init_sigma_range=0.4,
        change=without_penalty,
        **options,
    )
    for more in ({}, {"sample": True}, {"sample": False}):
        for made_by_forward in ("mu", "sigma"):
            peer.__dict__.pop(made_by_forward, None)  # where the mean is shared; it could not be copied
        side_by_side.assert_same_results(mine, peer, images(), **more)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"readout_bias": True, "mean_activity": MEAN},
        {"weights_constraint": "abs", "mask_constraint": "abs"},
        {"weights_constraint": "norm"},
        {"weights_constraint": "absnorm", "readout_bias": True},
        {"init_mask": torch.randn(N, 1, 12, 13), "init_weights": torch.randn(SHAPE[0], N), "init_scales": None},
    ],
)
def test_openretinas_factorized_readout(options):
    """Without the penalty on masks that are not smooth: the peer takes it of pixels and neurons in wrong order."""
    mine, peer = pair(
        readouts.FactorizedReadout,
        openretina_factorized.FactorizedReadout,
        VIDEO,
        N,
        0.3,
        0.7,
        0.0,
        SHAPE[1:],
        **{"init_scales": [(0.0, 0.3), (0.1, 0.3)]} | options,
    )
    side_by_side.assert_same_results(mine, peer, videos(), data_key="a")
    side_by_side.assert_same_state(mine, peer)


def test_smoothness_of_one_mask():
    mine, peer = pair(
        readouts.KlindtReadoutWrapper3D,
        openretina_factorized.KlindtReadoutWrapper3D,
        VIDEO,
        1,
        0.3,
        0.7,
        0.2,
        SHAPE[1:],
        init_scales=[(0.0, 0.3), (0.1, 0.3)],
    )
    side_by_side.assert_same_results(mine, peer, videos())
    torch.testing.assert_close(mine.regularizer("mean"), peer.regularizer("mean"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": True, "mean_activity": MEAN},
        {"bias": False, "mean_activity": MEAN, "positive": True},
        {"gaussian_mean_scale": 2.0, "gaussian_var_scale": 3.0, "mask_l1_reg": 0.3, "feature_weights_l1_reg": 0.7},
        {"nonlinearity_function": torch.nn.functional.elu},
    ],
)
def test_openretinas_gaussian_mask(options):
    mine, peer = pair(readouts.GaussianMaskReadout, openretina_mask.GaussianMaskReadout, VIDEO, N, **options)
    side_by_side.assert_same_results(mine, peer, videos())
    side_by_side.assert_same_state(mine, peer)
    torch.testing.assert_close(mine.regularizer("mean"), peer.regularizer("mean"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gauss_type": "isotropic", "gamma_readout": 0.3, "batch_sample": False},
        {"gauss_type": "uncorrelated", "mean_activity": MEAN},
    ],
)
def test_openretinas_point_readout(options):
    mine, peer = side_by_side.twins(
        lambda: readouts.PointGaussianReadout(VIDEO, N, True, init_mu_range=0.7, sampler="torch", **options),
        lambda: openretina_point.PointGaussianReadout(VIDEO, N, True, init_mu_range=0.7, **options),
    )
    side_by_side.move(mine, peer)
    shift = 0.2 * torch.randn(BATCH, 2)
    for training, more in ((True, {}), (True, {"shift": shift, "out_idx": np.array([5, 1])}), (False, {})):
        mine.train(training), peer.train(training)
        side_by_side.assert_same_results(mine, peer, images(), **more)
    side_by_side.assert_same_state(mine, peer)
