"""Lightning without what it says about devices, loaders with workers, and itself."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_NOT_OURS = (
    ".*does not have many workers.*",
    ".*Checkpoint directory.*exists and is not empty.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*You defined a .validation_step. but have no.*",
    ".*in eval mode at the start of training.*",  # a frozen core
    ".*The `srun` command is available.*",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, Lightning says nothing of that."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _NOT_OURS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
