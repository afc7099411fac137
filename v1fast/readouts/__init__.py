"""Readouts: one map from a core's features to the response of each neuron. Drop-in for neuralpredictors' layers."""

from v1fast.readouts.base import ConfigurationError, Readout
from v1fast.readouts.gaussian import FullGaussian2d
from v1fast.readouts.gaussian_legacy import Gaussian2d

__all__ = ["ConfigurationError", "FullGaussian2d", "Gaussian2d", "Readout"]
