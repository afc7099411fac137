"""Cores: networks from images to the feature maps that a readout reads."""

from v1fast.models.cores import Stacked2dCore

__all__ = ["Stacked2dCore"]
