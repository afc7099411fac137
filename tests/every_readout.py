"""One layer of every class of v1fast.readouts, and of each way to share or to derive parameters."""

import warnings

import numpy as np
import torch
from torch import nn

from v1fast import readouts

MAP, N = (5, 6, 9), 12
VIDEO = (5, 3, 6, 9)  # C, T, H, W
IDS = [3, 1, 3, 8, 1, 0, 0, 8, 3, 1, 2, 2]
CORTEX = np.random.default_rng(0).normal(size=(N, 2))
GAUSSIAN = {"bias": True, "init_mu_range": 0.8, "init_sigma": 0.3}
FACTORIZED = {
    **dict.fromkeys(("mask_l1_reg", "weights_l1_reg", "laplace_mask_reg"), 0.1),
    "mask_size": MAP[1:],
    "readout_bias": True,
    "init_scales": [(0, 1), (0, 1)],
}
PREDICTED = {"grid_mean_predictor": {"hidden_layers": 1}, "source_grid": CORTEX}
POOLED = {"pool_steps": 1, "bias": True, "pool_kern": 2, "init_range": 0.8}
PYRAMID = {"scale_n": 2, "positive": False, "bias": True, "init_range": 0.8, "downsample": True, "type": "gauss5x5"}
POINTS_3D = {"bias": True, "init_mu_range": 0.8, "init_sigma_range": 0.3}


class OfOneSession(nn.Module):
    """A readout of several sessions, read at the last of them."""

    def __init__(self, cls, base, **options):
        super().__init__()
        self.sessions = cls({"a": MAP, "b": MAP}, {"a": N, "b": N}, base_readout=base, **options)

    def forward(self, x, **options):
        return self.sessions(x, data_key="b", **options)


def _with_more_poolings():
    layer = readouts.PointPooled2d(MAP, N, **POOLED | {"pool_steps": 0})
    layer.pool_steps = 1
    return layer


def _features_of_another():
    shared = {"match_ids": IDS}
    own = readouts.FullGaussian2d(MAP, N, **GAUSSIAN, shared_features=shared)
    return readouts.FullGaussian2d(
        MAP, N, **GAUSSIAN, shared_features=shared | {"shared_features": own.shared_features}
    )


def _old(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return readouts.Gaussian2d(*args, **options)


MAKERS = {
    "AttentionReadout": lambda: readouts.AttentionReadout(MAP, N, bias=True),
    "ClonedReadout": lambda: OfOneSession(
        readouts.MultiReadoutBase, readouts.FullGaussian2d, clone_readout=True, **GAUSSIAN
    ),
    "DenseReadout": lambda: readouts.DenseReadout(MAP, N, bias=True),
    "DenseReadout, shared": lambda: readouts.DenseReadout(MAP, N, bias=True, shared_features={"match_ids": IDS}),
    "DeterministicGaussian2d": lambda: readouts.DeterministicGaussian2d(MAP, N, bias=True),
    "FactorizedReadout": lambda: readouts.FactorizedReadout(VIDEO, N, **FACTORIZED),
    "FullFactorized2d": lambda: readouts.FullFactorized2d(MAP, N, bias=True),
    "FullFactorized2d, shared features": lambda: readouts.FullFactorized2d(
        MAP, N, bias=True, shared_features={"match_ids": IDS, "shared_features": None}
    ),
    "FullGaussian2d": lambda: readouts.FullGaussian2d(MAP, N, **GAUSSIAN),
    "FullGaussian2d, uncorrelated": lambda: readouts.FullGaussian2d(MAP, N, **GAUSSIAN, gauss_type="uncorrelated"),
    "FullGaussian2d, isotropic": lambda: readouts.FullGaussian2d(MAP, N, **GAUSSIAN, gauss_type="isotropic"),
    "FullGaussian2d, predicted grid": lambda: readouts.FullGaussian2d(MAP, N, **GAUSSIAN, **PREDICTED),
    "FullGaussian2d, predicted grid with residuals": lambda: readouts.FullGaussian2d(
        MAP, N, **GAUSSIAN, **PREDICTED, residual_reg_weight=0.5
    ),
    "FullGaussian2d, shared grid": lambda: readouts.FullGaussian2d(
        MAP, N, **GAUSSIAN, shared_grid={"match_ids": IDS, "shared_grid": None}
    ),
    "FullGaussian2d, shared features": lambda: readouts.FullGaussian2d(
        MAP, N, **GAUSSIAN, shared_features={"match_ids": IDS}
    ),
    "FullGaussian2d, features of another": _features_of_another,
    "FullPointPooled2d": lambda: readouts.FullPointPooled2d(MAP, N, **POOLED),
    "FullPointPooled2d, predicted grid with residuals": lambda: readouts.FullPointPooled2d(
        MAP, N, **POOLED, **PREDICTED, residual_reg_weight=0.5
    ),
    "FullPointPooled2d, shared features": lambda: readouts.FullPointPooled2d(
        MAP, N, **POOLED, shared_features={"match_ids": IDS}
    ),
    "Gaussian2d": lambda: _old(MAP, N, bias=True, init_mu_range=0.8),
    "Gaussian3d": lambda: readouts.Gaussian3d(MAP, N, **POINTS_3D),
    "GaussianMaskReadout": lambda: readouts.GaussianMaskReadout(VIDEO, N, scale=True),
    "GeneralizedFullGaussianReadout2d, 1 output": lambda: readouts.GeneralizedFullGaussianReadout2d(MAP, N, **GAUSSIAN),
    "GeneralizedFullGaussianReadout2d": lambda: readouts.GeneralizedFullGaussianReadout2d(
        MAP, N, inferred_params_n=3, **GAUSSIAN
    ),
    "GeneralizedFullGaussianReadout2d, shared features": lambda: readouts.GeneralizedFullGaussianReadout2d(
        MAP, N, inferred_params_n=3, shared_features={"match_ids": IDS}, **GAUSSIAN
    ),
    "GeneralizedPointPooled2d, 1 output": lambda: readouts.GeneralizedPointPooled2d(MAP, N, **POOLED),
    "GeneralizedPointPooled2d": lambda: readouts.GeneralizedPointPooled2d(MAP, N, inferred_params_n=3, **POOLED),
    "KlindtReadoutWrapper3D": lambda: readouts.KlindtReadoutWrapper3D(VIDEO, N, **FACTORIZED),
    "MultiReadoutBase": lambda: OfOneSession(readouts.MultiReadoutBase, readouts.FullGaussian2d, **GAUSSIAN),
    "MultiReadoutSharedParametersBase": lambda: OfOneSession(
        readouts.MultiReadoutSharedParametersBase,
        readouts.FullGaussian2d,
        shared_match_ids={"a": IDS, "b": IDS},
        share_features=True,
        share_grid=True,
        **GAUSSIAN,
    ),
    "PointGaussianReadout": lambda: readouts.PointGaussianReadout(VIDEO, N, bias=True),
    "PointPooled2d": lambda: readouts.PointPooled2d(MAP, N, **POOLED),
    "PointPooled2d, poolings changed": _with_more_poolings,
    "PointPyramid2d": lambda: readouts.PointPyramid2d(MAP, N, **PYRAMID),
    "RemappedGaussian2d": lambda: readouts.RemappedGaussian2d(MAP, N, **GAUSSIAN),
    "SeparableReadout": lambda: readouts.SeparableReadout(MAP, N),
    "SeparableReadout, rank 2": lambda: readouts.SeparableReadout(MAP, N, rank=2),
    "SpatialTransformerPooled3d": lambda: readouts.SpatialTransformerPooled3d(VIDEO, N),
    "UltraSparse": lambda: readouts.UltraSparse(MAP, N, num_filters=2, **POINTS_3D),
}
"""A class's name comes first, what is special after a comma."""


def features(layer):
    """Return features of two images, or of two videos if the layer takes videos."""
    shape = getattr(layer, "in_shape", MAP)
    return torch.randn(2, *shape)
