"""Simulated populations with known ground truth."""

from v1fast.data.simulated import (
    PHOTOGRAPHS,
    CorePopulation,
    Neurons,
    Population,
    SimulatedRecording,
    Simulation,
    Statistics,
    Tier,
    Trials,
    photograph_crops,
    response_statistics,
    simulate,
    simulate_animals,
    statistics,
)

__all__ = [
    "PHOTOGRAPHS",
    "CorePopulation",
    "Neurons",
    "Population",
    "SimulatedRecording",
    "Simulation",
    "Statistics",
    "Tier",
    "Trials",
    "photograph_crops",
    "response_statistics",
    "simulate",
    "simulate_animals",
    "statistics",
]
