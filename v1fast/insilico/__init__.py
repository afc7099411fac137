"""Experiments in silico: what a fitted model's neurons respond to most, and what they read of images."""

from v1fast.insilico.exciting import ExcitingInputs, most_exciting_inputs
from v1fast.insilico.fields import ReceptiveFields, receptive_fields

__all__ = ["ExcitingInputs", "ReceptiveFields", "most_exciting_inputs", "receptive_fields"]
