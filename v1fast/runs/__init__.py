"""Runs: from recordings and a configuration to a folder with a fitted model, its metrics and a report.

``configure``       a configuration, from a preset, a file of YAML and single settings
``fit_recordings``  fits, judges and reports; what ``v1fast fit`` calls
``RunFolder``       what a run left
``judge``, ``predict``  a model on recordings
"""

from v1fast.runs.configuration import FAMILIES, PRESETS, Configuration, ConfigurationErrors, Part, configure
from v1fast.runs.evaluation import Judgement, Predictions, joined, judge, predict
from v1fast.runs.fitting import Outcome, fit_recordings, judge_all, rank_of, summary
from v1fast.runs.folder import RunFolder

__all__ = [
    "FAMILIES",
    "PRESETS",
    "Configuration",
    "ConfigurationErrors",
    "Judgement",
    "Outcome",
    "Part",
    "Predictions",
    "RunFolder",
    "configure",
    "fit_recordings",
    "joined",
    "judge",
    "judge_all",
    "predict",
    "rank_of",
    "summary",
]
