"""Cores: networks from images to the feature maps that a readout reads; and a model of another kind."""

from v1fast.models.cores import Stacked2dCore
from v1fast.models.geometry import Positions, input_positions
from v1fast.models.ln import MultitaskLN

__all__ = ["MultitaskLN", "Positions", "Stacked2dCore", "input_positions"]
