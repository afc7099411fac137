"""Cores: networks from images or videos to the feature maps that a readout reads."""

from v1fast.models.cores.rotation import RotationEquivariant2dCore
from v1fast.models.cores.stacked import SE2dCore, Stacked2dCore

__all__ = ["RotationEquivariant2dCore", "SE2dCore", "Stacked2dCore"]
