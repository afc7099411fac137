"""Figures of models and populations, as ``matplotlib.figure.Figure``: no window, no global state."""

from v1fast.plots.images import exciting_inputs, receptive_fields
from v1fast.plots.populations import readout_weights, retinotopy, visual_field
from v1fast.plots.simulated import example_neurons, learning_curve, positions, speed_bars

__all__ = [
    "example_neurons",
    "exciting_inputs",
    "learning_curve",
    "positions",
    "readout_weights",
    "receptive_fields",
    "retinotopy",
    "speed_bars",
    "visual_field",
]
