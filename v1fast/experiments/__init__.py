"""Experiments on encoding models: transfer of cores, comparison of readouts, each by one call that can be resumed."""

from v1fast._tables import band, summarise, write_csv
from v1fast.experiments.comparison import ComparisonSettings, compare_readouts, compared
from v1fast.experiments.models import ModelSettings, Variant
from v1fast.experiments.presets import QUICK, SMALL, TINY, Simulated, simulated_sessions
from v1fast.experiments.sessions import Session, as_session
from v1fast.experiments.transfer import TransferSettings, curves, split_neurons, transfer
from v1fast.training import cache_features, without_core

__all__ = [
    "QUICK",
    "SMALL",
    "TINY",
    "ComparisonSettings",
    "ModelSettings",
    "Session",
    "Simulated",
    "TransferSettings",
    "Variant",
    "as_session",
    "band",
    "cache_features",
    "compare_readouts",
    "compared",
    "curves",
    "simulated_sessions",
    "split_neurons",
    "summarise",
    "transfer",
    "without_core",
    "write_csv",
]
