"""Cores (networks from images to feature maps), and the multitask linear-nonlinear model."""

from v1fast.models.cores import Stacked2dCore
from v1fast.models.geometry import Positions, input_positions
from v1fast.models.ln import MultitaskLN

__all__ = ["MultitaskLN", "Positions", "Stacked2dCore", "input_positions"]
