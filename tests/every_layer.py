"""One of each kind of readout, and of each option that keeps parameters in a range, with parameters out of it."""

import warnings
from functools import partial

import torch

from v1fast import readouts

IMAGE, VIDEO, N = (4, 6, 8), (4, 3, 6, 8), 5


def _made(name, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Gaussian2d's
        layer = getattr(readouts, name)(*args, **options)
    with torch.no_grad():
        for key in layer._ranges():
            if key != "feature_weights":  # drawn out of range; so small that a second norm shows
                getattr(layer, key).normal_(0, 3)
    return layer


def _gaussian(name="FullGaussian2d", shape=IMAGE, **options):
    return partial(_made, name, shape, N, **{"bias": True, "init_mu_range": 0.8} | options)


def _pooled(name="PointPooled2d", **options):
    return partial(_made, name, IMAGE, N, pool_steps=1, bias=True, pool_kern=2, init_range=0.9, **options)


_FACTORIZED = {"init_scales": ((0.0, 0.5), (0.0, 0.01)), "readout_bias": True}
_PREDICTOR = {
    "grid_mean_predictor": {"hidden_layers": 1},
    "source_grid": torch.arange(2.0 * N).view(N, 2).cos().numpy(),
}
_MATCHED = {"match_ids": [0, 1, 1, 0, 2]}


def _retina(**options):
    return partial(_made, "FactorizedReadout", VIDEO, N, 0.1, 0.1, 0.1, VIDEO[2:], **_FACTORIZED | options)


def _minimodel(**options):
    return partial(_made, "SeparableReadout", IMAGE, N, Wxy_init=0.5, Wc_coef=0.5, **options)


LAYERS = {
    "FullGaussian2d": _gaussian(),
    "FullGaussian2d, isotropic": _gaussian(gauss_type="isotropic", bias=False),
    "FullGaussian2d, predicted": _gaussian(**_PREDICTOR),
    "FullGaussian2d, shared": _gaussian(shared_grid=_MATCHED, shared_features=_MATCHED),
    "GeneralizedFullGaussianReadout2d": _gaussian("GeneralizedFullGaussianReadout2d", inferred_params_n=2),
    "RemappedGaussian2d": _gaussian("RemappedGaussian2d"),
    "PointGaussianReadout": _gaussian("PointGaussianReadout", VIDEO),
    "Gaussian2d": _gaussian("Gaussian2d"),
    "Gaussian3d": _gaussian("Gaussian3d"),
    "UltraSparse": _gaussian("UltraSparse", init_sigma_range=0.3, num_filters=2),
    "UltraSparse, shared": _gaussian("UltraSparse", init_sigma_range=0.3, num_filters=2, shared_mean=True),
    "PointPooled2d": _pooled(),
    "FullPointPooled2d": _pooled("FullPointPooled2d"),
    "FullPointPooled2d, predicted and shared": _pooled("FullPointPooled2d", **_PREDICTOR, shared_features=_MATCHED),
    "GeneralizedPointPooled2d": _pooled("GeneralizedPointPooled2d", inferred_params_n=2),
    "SpatialTransformerPooled3d": partial(_made, "SpatialTransformerPooled3d", VIDEO, N, positive=True),
    "PointPyramid2d": partial(
        _made, "PointPyramid2d", IMAGE, N, 1, positive=True, bias=True, init_range=0.9, downsample=True, type="gauss5x5"
    ),
    "FullFactorized2d": partial(_made, "FullFactorized2d", IMAGE, N, bias=True, init_noise=0.5, positive_weights=True),
    "FullFactorized2d, positive": partial(
        _made, "FullFactorized2d", IMAGE, N, bias=True, init_noise=0.5, constrain_pos=True, normalize=False
    ),
    "FullFactorized2d, shared": partial(
        _made, "FullFactorized2d", IMAGE, N, True, init_noise=0.5, constrain_pos=True, shared_features=_MATCHED
    ),
    "DeterministicGaussian2d": partial(_made, "DeterministicGaussian2d", IMAGE, N, bias=True, positive=True),
    "GaussianMaskReadout": partial(_made, "GaussianMaskReadout", VIDEO, N, positive=True),
    "FactorizedReadout": _retina(),
    "FactorizedReadout, abs": _retina(weights_constraint="abs", mask_constraint="abs"),
    "FactorizedReadout, norm": _retina(weights_constraint="norm"),
    "FactorizedReadout, absnorm": _retina(weights_constraint="absnorm", mask_constraint="abs"),
    "SeparableReadout": _minimodel(positive=True, rank=2),
    "SeparableReadout, not separable": _minimodel(positive=True, yx_separable=False),
    "DenseReadout": partial(_made, "DenseReadout", IMAGE, N, bias=True, init_noise=0.5),
    "DenseReadout, shared": partial(_made, "DenseReadout", IMAGE, N, True, init_noise=0.5, shared_features=_MATCHED),
    "AttentionReadout": partial(_made, "AttentionReadout", IMAGE, N, bias=True, init_noise=0.5),
}
IN_RANGE = [name for name, make in LAYERS.items() if make()._ranges()]
"""Names of layers that keep a parameter in a range."""
DRAWING = [name for name in LAYERS if any(word in name for word in ("Gaussian2d", "FullGaussian", "PointGauss"))]
DRAWING = [name for name in DRAWING if not name.startswith("Deterministic")]
DRAWING += ["Gaussian3d", "UltraSparse", "UltraSparse, shared"]
"""Names of layers that draw positions."""


def inputs(layer, batch=2):
    """Features that the layer reads."""
    video = isinstance(layer, (readouts.SpatialTransformerPooled3d,))
    return torch.randn(batch, *(VIDEO if video else IMAGE))
