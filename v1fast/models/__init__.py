"""Models: cores, shifters, modulators, and the encoder that joins them with readouts."""

from v1fast.models._sessions import of_session
from v1fast.models.cores import (
    Basic3dCore,
    Factorized3dCore,
    LinearNonlinearCore,
    RotationEquivariant2dCore,
    SE2dCore,
    SimpleCoreWrapper,
    Stacked2dCore,
    TransferLearningCore,
    vgg16_features,
)
from v1fast.models.encoder import FiringRateEncoder
from v1fast.models.geometry import Positions, input_positions
from v1fast.models.ln import MultitaskLN
from v1fast.models.modulators import MLPModulator
from v1fast.models.normalization import DivisiveNormalization
from v1fast.models.shifters import MLPShifter, StaticAffine2dShifter

__all__ = [
    "Basic3dCore",
    "DivisiveNormalization",
    "Factorized3dCore",
    "FiringRateEncoder",
    "LinearNonlinearCore",
    "MLPModulator",
    "MLPShifter",
    "MultitaskLN",
    "Positions",
    "RotationEquivariant2dCore",
    "SE2dCore",
    "SimpleCoreWrapper",
    "Stacked2dCore",
    "StaticAffine2dShifter",
    "TransferLearningCore",
    "input_positions",
    "of_session",
    "vgg16_features",
]
