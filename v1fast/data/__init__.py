"""Simulated populations with known ground truth."""

from v1fast.data.simulated import PHOTOGRAPHS, Population, Simulation, Tier, photograph_crops, simulate

__all__ = ["PHOTOGRAPHS", "Population", "Simulation", "Tier", "photograph_crops", "simulate"]
