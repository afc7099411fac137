"""Readouts: one map from a core's features to the response of each neuron. Drop-in for neuralpredictors' layers."""

import sys
from types import ModuleType
from typing import Any

from v1fast.readouts import attention, base, factorized, gaussian, multi, pooled, pyramid
from v1fast.readouts.attention import AttentionReadout
from v1fast.readouts.base import ConfigurationError, Readout
from v1fast.readouts.channel_points import Gaussian3d, UltraSparse
from v1fast.readouts.dense import DenseReadout
from v1fast.readouts.factorized import FullFactorized2d, FullSXF, SpatialXFeatureLinear
from v1fast.readouts.factorized_softplus import FactorizedReadout, KlindtReadoutWrapper3D
from v1fast.readouts.gaussian import FullGaussian2d
from v1fast.readouts.gaussian_generalized import GeneralizedFullGaussianReadout2d
from v1fast.readouts.gaussian_masks import DeterministicGaussian2d, GaussianMaskReadout
from v1fast.readouts.gaussian_remapped import RemappedGaussian2d
from v1fast.readouts.gaussian_uncorrelated import Gaussian2d
from v1fast.readouts.gaussian_video import PointGaussianReadout
from v1fast.readouts.multi import ClonedReadout, MultiReadoutBase, MultiReadoutSharedParametersBase
from v1fast.readouts.pooled import (
    GeneralizedPointPooled2d,
    PointPooled2d,
    SpatialTransformerPooled2d,
    SpatialTransformerPooled3d,
)
from v1fast.readouts.pooled_full import FullPointPooled2d
from v1fast.readouts.pyramid import PointPyramid2d, SpatialTransformerPyramid2d
from v1fast.readouts.separable import SeparableReadout

__all__ = [
    "AttentionReadout",
    "ClonedReadout",
    "ConfigurationError",
    "DenseReadout",
    "DeterministicGaussian2d",
    "FactorizedReadout",
    "FullFactorized2d",
    "FullGaussian2d",
    "FullPointPooled2d",
    "FullSXF",
    "Gaussian2d",
    "Gaussian3d",
    "GaussianMaskReadout",
    "GeneralizedFullGaussianReadout2d",
    "GeneralizedPointPooled2d",
    "KlindtReadoutWrapper3D",
    "MultiReadoutBase",
    "MultiReadoutSharedParametersBase",
    "PointGaussianReadout",
    "PointPooled2d",
    "PointPyramid2d",
    "Readout",
    "RemappedGaussian2d",
    "SeparableReadout",
    "SpatialTransformerPooled2d",
    "SpatialTransformerPooled3d",
    "SpatialTransformerPyramid2d",
    "SpatialXFeatureLinear",
    "UltraSparse",
]


def _of_the_package(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"no readout {name!r} in v1fast.readouts")
    return globals()[name]


def _take_neuralpredictors_names(**modules: ModuleType) -> None:
    """Let what is imported from a submodule of its readouts be imported from one of the same name here."""
    for name, module in modules.items():
        sys.modules[f"{__name__}.{name}"] = globals()[name] = module
        module.__getattr__ = _of_the_package  # type: ignore[method-assign]


_take_neuralpredictors_names(
    attention=attention,
    base=base,
    factorized=factorized,
    gaussian=gaussian,
    multi_readout=multi,
    point_pooled=pooled,
    pyramid=pyramid,
)
