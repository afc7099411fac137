"""Callbacks of Lightning that :func:`v1fast.training.fit` uses; they work in any ``lightning.Trainer``."""

from __future__ import annotations

import csv
import io
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from v1fast import _files
from v1fast._progress import Bar, progress

if TYPE_CHECKING:
    from rich.console import Console


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints at once: after a kill, the file holds the old checkpoint or the new one, whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """See Lightning."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        _files.replace(Path(path), content.getvalue())


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` and ``metrics.csv`` at the end of each epoch, after it was judged.

    A later epoch's checkpoint replaces an earlier one. The table has a row for each epoch, those before a resumption
    too.

    Args:
        folder: to write to.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()
        self.folder = Path(folder)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write both."""
        trainer.save_checkpoint(self.folder / "last.ckpt")
        epochs: list[dict[str, float]] = getattr(pl_module, "epochs", [])
        if epochs and trainer.is_global_zero:
            table = io.StringIO()
            writer = csv.DictWriter(table, fieldnames=list(epochs[0]))
            writer.writeheader()
            writer.writerows(epochs)
            _files.replace(self.folder / "metrics.csv", table.getvalue().encode())


class EpochLines(Callback):
    """A progress bar over the steps, and a line for each epoch of an :class:`EncodingModule`.

    Args:
        console: of rich; default: stderr.
    """

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console

        self.console = console or Console(stderr=True, highlight=False)
        self._stack = ExitStack()
        self._bar = Bar()
        self._printed = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show the bar."""
        steps, done = int(trainer.estimated_stepping_batches), trainer.global_step
        self._bar = self._stack.enter_context(progress("fitting", steps, done, console=self.console))
        self._printed = len(self._epochs(pl_module))

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print the last epoch, which the module has judged by now, and take the time."""
        self._print(trainer, pl_module)
        self._start = time.perf_counter()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """A step is done."""
        self._bar.advance()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the time."""
        self._seconds = time.perf_counter() - self._start

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print the last epoch and take the bar away."""
        self._print(trainer, pl_module)
        self._stack.close()

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any) -> None:
        """Print the last epoch and take the bar away."""
        self._print(trainer, pl_module)
        self._stack.close()

    @staticmethod
    def _epochs(pl_module: lightning.LightningModule) -> list[dict[str, float]]:
        epochs: list[dict[str, float]] = getattr(pl_module, "epochs", [])
        return epochs

    def _print(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        done = self._epochs(pl_module)
        new, self._printed = done[self._printed :], len(done)  # first, so that Ctrl-C meanwhile repeats no line
        for epoch in new:
            words = [f"epoch {epoch['epoch']:3}/{trainer.max_epochs}", f"loss {epoch['train_loss']:.5g}"]
            if "val_correlation" in epoch:
                words.append(f"validation: loss {epoch['val_loss']:.4f}, correlation {epoch['val_correlation']:.4f}")
            words += [f"rate {epoch['learning_rate']:.2g}", f"{self._seconds:.1f} s"]
            self.console.print("  ".join(words), soft_wrap=True)
