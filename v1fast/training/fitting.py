"""Fitting an encoder: a ``lightning.Trainer`` with defaults that suit encoding models."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import Tensor, nn

from v1fast.losses import Loss
from v1fast.training import ranks
from v1fast.training.batches import RESPONSES, Loader, SessionCycle, SessionSequence, TensorBatches, share_batches
from v1fast.training.callbacks import AtomicCheckpointIO, EpochLines, LastCheckpoint
from v1fast.training.module import EncodingModule
from v1fast.training.quiet import quiet

if TYPE_CHECKING:
    from rich.console import Console

Data = Mapping[str, "Loader | Mapping[str, Tensor]"]


@dataclass(frozen=True)
class History:
    """What a fit did.

    Attributes:
        epochs: of each epoch "epoch" (from 1), "train_loss", "learning_rate", and with validation "val_loss" and
            "val_correlation".
        interrupted: whether Ctrl-C ended it.
        checkpoint: the last complete checkpoint, from which the same call goes on; None if nothing was written.
    """

    epochs: list[dict[str, float]]
    interrupted: bool
    checkpoint: Path | None

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights the encoder has, counted from 1: that of the highest validation correlation."""
        judged = [(epoch.get("val_correlation", float(epoch["epoch"])), -epoch["epoch"]) for epoch in self.epochs]
        return int(-max(judged)[1])


def fit(
    encoder: nn.Module,
    train: Data,
    validation: Data | None = None,
    *,
    out: str | Path | None = None,
    loss: Loss | None = None,
    max_epochs: int = 200,
    batch_size: int = 64,
    seed: int = 0,
    precision: Any = "32-true",
    accelerator: str = "auto",
    devices: Any = 1,
    num_nodes: int = 1,
    show: bool = True,
    console: Console | None = None,
    callbacks: Sequence[lightning.Callback] = (),
    trainer_options: Mapping[str, Any] | None = None,
    **module_options: Any,
) -> History:
    """Fit an encoder to the responses of one session or several; it then has the weights of the best epoch.

    With ``out``, a checkpoint is written at the end of each epoch. The same call goes on from it. Its
    parameters are in the end, bit for bit, those of a run that was never stopped (same versions, device and number of
    threads). Ctrl-C ends training with the best weights so far.

    With several devices, each is a rank: a process of its own, which runs the same script. Each batch is shared among
    them: ``batch_size`` counts the trials of all ranks. Whatever their number, losses, gradients and rates are those of
    one process, up to rounding and batch norm, and a run may go on with another number. Every rank returns the history,
    and its encoder has the weights; rank 0 writes and shows progress. See docs/scale.md.

    Args:
        encoder: see :class:`EncodingModule`.
        train: name of each session -> a loader, or a mapping of tensors ("images" [T, C, H, W], "responses" [T, N],
            ...) from which batches are drawn in random order, see :class:`TensorBatches`.
        validation: likewise; None: no early end, and the last weights are kept.
        out: folder for ``last.ckpt``, ``metrics.csv`` (a row per epoch) and logs for TensorBoard, if that or
            tensorboardX is installed; None writes nothing.
        loss: of :mod:`v1fast.losses` with ``avg=False``; default Poisson.
        max_epochs: the most epochs.
        batch_size: of each session, where tensors are given.
        seed: of the order of the trials and of the sampled positions.
        precision: as in ``lightning.Trainer``, e.g. "bf16-mixed".
        accelerator, devices, num_nodes: as in ``lightning.Trainer``; of CPUs, ``devices`` are processes.
        show: whether to show a progress bar and print a line for each epoch.
        console: of rich, to print on; default stderr.
        callbacks: further callbacks of Lightning.
        trainer_options: further arguments of ``lightning.Trainer``.
        **module_options: of :class:`EncodingModule`: ``learning_rate``, ``learning_rates``, ``optimizer``,
            ``schedule``, ``gamma_dispersion``, ``scale_loss``, ``check_every``.

    Returns:
        The history; ``encoder`` itself is changed.

    Raises:
        ValueError: responses that the loss has no likelihood for; data of unequal lengths; batches that ranks cannot
            share; more than one device in a notebook.
        RankEndedError: another rank ended, as by ``kill -9``; ``out`` holds the last complete epoch.
        NonFiniteLossError: the loss became NaN or infinite.
        KeyboardInterrupt: Ctrl-C before the first epoch was done.
        SystemExit: SIGTERM, as of ``kill`` or a scheduler, of status 143; ``out`` holds the last complete epoch.

    >>> import torch
    >>> from v1fast.models import FiringRateEncoder, Stacked2dCore
    >>> from v1fast.readouts import FullGaussian2d, MultiReadoutBase
    >>> core = Stacked2dCore(1, 8, 5, 3, layers=2, stack=-1)
    >>> readout = MultiReadoutBase({"mouse": (8, 16, 16)}, {"mouse": 20}, FullGaussian2d, bias=True)
    >>> trials = {"images": torch.randn(64, 1, 16, 16), "responses": torch.rand(64, 20)}
    >>> encoder = FiringRateEncoder(core, readout)
    >>> history = fit(encoder, {"mouse": trials}, {"mouse": trials}, max_epochs=2, show=False)
    >>> len(history.epochs)
    2
    """
    module = EncodingModule(encoder, loss=loss, **module_options)
    loaders = {name: _loader(module.loss, name, data, batch_size, True, seed) for name, data in train.items()}
    validating = {
        name: _loader(module.loss, name, data, batch_size, False, seed) for name, data in (validation or {}).items()
    }
    checkpoint = None if out is None else Path(out) / "last.ckpt"
    where = {"accelerator": accelerator, "devices": devices, "num_nodes": num_nodes, **(trainer_options or {})}
    rank = ranks.this_rank(where)
    if rank.of > 1:  # a mistake is said before the others are started
        from v1fast.distributed.images import that_count_images

        that_count_images(encoder)
        for sessions in (loaders, validating):
            share_batches(sessions, rank.number, rank.of)
    lines = EpochLines(console) if show and rank.number == 0 else None
    writing = [LastCheckpoint(checkpoint.parent)] if checkpoint else []
    options: dict[str, Any] = {
        "max_epochs": max_epochs,
        "precision": precision,
        "logger": [] if out is None else _loggers(Path(out)),
        "callbacks": [*([lines] if lines else []), *callbacks, *writing],
        "plugins": [AtomicCheckpointIO()],
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": checkpoint is not None,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        **where,
    }
    if rank.of > 1:
        ranks.prepare(options, len(loaders))
    torch.manual_seed(seed)
    with ranks.together(rank, lambda: how_to_go_on(checkpoint)):
        interrupted = _run(options, module, loaders, validating, checkpoint)
    if interrupted:
        if not module.epochs:
            raise KeyboardInterrupt
        if lines:
            said = "" if checkpoint is None else f"; {checkpoint} holds the last epoch: the same call goes on from it"
            lines.console.print(f"Interrupted: going on with the best of {len(module.epochs)} epochs{said}.")
    module.restore_best()  # Lightning ends no training that it did not begin, as of a run that was complete
    encoder.eval()
    return History(module.epochs, interrupted, checkpoint if checkpoint and checkpoint.exists() else None)


def how_to_go_on(checkpoint: Path | None) -> str:
    """After ranks have ended."""
    if checkpoint is None or not checkpoint.exists():
        return "start it again"
    return f"start it again, with any number of ranks: it goes on from {checkpoint}"


def _loader(loss: Loss, name: str, data: Any, batch_size: int, shuffle: bool, seed: int) -> Loader:
    if isinstance(data, Mapping):
        data = TensorBatches(data, batch_size, shuffle, seed)
    fields = getattr(data, "fields", {})
    for key in RESPONSES:
        if key in fields:
            loss.check_responses(fields[key], name)
    loader: Loader = data
    return loader


def _loggers(out: Path) -> list[Logger]:
    out.mkdir(parents=True, exist_ok=True)
    loggers: list[Logger] = []
    with suppress(ModuleNotFoundError):
        loggers.append(TensorBoardLogger(out, name="", version=""))
    return loggers


def _run(
    options: Mapping[str, Any],
    module: EncodingModule,
    train: Mapping[str, Loader],
    validation: Mapping[str, Loader],
    checkpoint: Path | None,
) -> bool:
    """Train; whether Ctrl-C ended it."""
    handler = signal.getsignal(signal.SIGINT)
    path = str(checkpoint) if checkpoint is not None and checkpoint.exists() else None
    sequence = SessionSequence(validation) if validation else None
    with quiet():
        trainer = lightning.Trainer(**options)
        try:
            trainer.fit(module, SessionCycle(train), sequence, ckpt_path=path, weights_only=False)
        except SystemExit as end:
            if isinstance(end.__context__, KeyboardInterrupt):  # how Lightning ends after Ctrl-C
                return True
            if trainer.received_sigterm:  # Lightning's own exception would end the process with status 0
                end.code = 128 + signal.SIGTERM
            raise
        finally:
            signal.signal(signal.SIGINT, handler)
            for sessions in (train, validation):  # they may be used again, by one process
                share_batches(sessions, 0, 1)
            module.count_images_from(0)
    return False
