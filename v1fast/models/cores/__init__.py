"""Cores: networks from images or videos to the feature maps that a readout reads."""

from v1fast.models.cores.rotation import RotationEquivariant2dCore
from v1fast.models.cores.stacked import LinearNonlinearCore, SE2dCore, Stacked2dCore
from v1fast.models.cores.transfer import TransferLearningCore, vgg16_features
from v1fast.models.cores.video import Basic3dCore, Factorized3dCore, SimpleCoreWrapper

__all__ = [
    "Basic3dCore",
    "Factorized3dCore",
    "LinearNonlinearCore",
    "RotationEquivariant2dCore",
    "SE2dCore",
    "SimpleCoreWrapper",
    "Stacked2dCore",
    "TransferLearningCore",
    "vgg16_features",
]
