"""Training: ``fit`` fits an encoder; ``EncodingModule`` is what it trains with any ``lightning.Trainer``."""

from v1fast.training.batches import SessionCycle, SessionSequence, TensorBatches
from v1fast.training.fitting import History, fit
from v1fast.training.module import EncodingModule, NonFiniteLossError
from v1fast.training.schedule import EarlyStopping, OneCycle, Schedule

__all__ = [
    "EarlyStopping",
    "EncodingModule",
    "History",
    "NonFiniteLossError",
    "OneCycle",
    "Schedule",
    "SessionCycle",
    "SessionSequence",
    "TensorBatches",
    "fit",
]
