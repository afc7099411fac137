"""Training: ``fit`` fits an encoder; ``EncodingModule`` is what it trains with any ``lightning.Trainer``."""

# ruff: noqa: E402  (what is missing is said first)

from importlib.util import find_spec

for _needed in ("lightning", "torchmetrics"):
    if find_spec(_needed) is None:
        raise ModuleNotFoundError(f'v1fast.training needs {_needed}: pip install "v1fast[train]"', name=_needed)

from v1fast.training.batches import SessionCycle, SessionSequence, TensorBatches
from v1fast.training.fitting import History, fit
from v1fast.training.frozen import CachedFeatures, TrialRows, cache_features, fit_readouts, without_core
from v1fast.training.module import EncodingModule, NonFiniteLossError
from v1fast.training.precision import bfloat16_weights
from v1fast.training.ranks import RankEndedError
from v1fast.training.schedule import EarlyStopping, OneCycle, Schedule

__all__ = [
    "CachedFeatures",
    "EarlyStopping",
    "EncodingModule",
    "History",
    "NonFiniteLossError",
    "OneCycle",
    "RankEndedError",
    "Schedule",
    "SessionCycle",
    "SessionSequence",
    "TensorBatches",
    "TrialRows",
    "bfloat16_weights",
    "cache_features",
    "fit",
    "fit_readouts",
    "without_core",
]
