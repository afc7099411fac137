"""Models: cores, shifters, modulators, and the encoder that joins them with readouts."""

from v1fast.models.cores import SE2dCore, Stacked2dCore
from v1fast.models.encoder import FiringRateEncoder
from v1fast.models.geometry import Positions, input_positions
from v1fast.models.ln import MultitaskLN
from v1fast.models.modulators import MLPModulator
from v1fast.models.shifters import MLPShifter, StaticAffine2dShifter

__all__ = [
    "FiringRateEncoder",
    "MLPModulator",
    "MLPShifter",
    "MultitaskLN",
    "Positions",
    "SE2dCore",
    "Stacked2dCore",
    "StaticAffine2dShifter",
    "input_positions",
]
