"""Simulated populations with known ground truth."""

from v1fast.data import simulated
from v1fast.data.simulated import *  # noqa: F403 - its list of names is the only one

__all__ = list(simulated.__all__)
