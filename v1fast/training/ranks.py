"""Ranks: the processes that fit one encoder. How they are started, what they tell each other, and when one ends.

Lightning starts them, or finds that ``torchrun`` or SLURM did. What it leaves open is said here: which rank ended, and
that the others end then, too.
"""

from __future__ import annotations

import copy
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar, cast

import lightning
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric

from v1fast.training.quiet import quiet

T = TypeVar("T")
M = TypeVar("M", bound=Metric)

STARTER = "V1FAST_STARTED_BY"
"""Environment variable: of a rank that another one started, the process id of that one."""

POLL, MOMENT, PATIENCE = 0.2, 2.0, 10.0
"""Seconds: between two looks at the other ranks; that one waits for another to say it; for an end to become known."""

_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False  # its name before torch 2.13
}
"""Of DistributedDataParallel: buffers are brought together after each epoch, by the module."""

_started: dict[int, subprocess.Popen[bytes]] = {}
"""The ranks that this process has started."""


class RankEndedError(ConnectionError):
    """A rank ended in the midst of the work. The message says which, how it ended, and how to go on."""


# What ranks tell each other


def gathered(value: T) -> list[T]:
    """The values of all ranks, on each of them."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def joined(metric: M) -> M:
    """A metric whose states are lists of rows, with the rows of all ranks; each rank calls it."""
    states = gathered({name: [row.cpu() for row in rows] for name, rows in metric.metric_state.items()})
    for name in states[0]:
        setattr(metric, name, [row.to(metric.device) for state in states for row in state[name]])
    return metric


# How they are started


class Rank(NamedTuple):
    """Which of the ranks this process is.

    Attributes:
        number: from 0; 0 writes and shows progress.
        of: how many there are, or will be.
        device: that it computes on, where there are several; else None.
    """

    number: int = 0
    of: int = 1
    device: torch.device | None = None


def this_rank(options: Mapping[str, Any]) -> Rank:
    """Which rank this process is, or will be.

    Args:
        options: of ``lightning.Trainer``: accelerator, devices, num_nodes, strategy; others do not matter.

    Raises:
        ValueError: ``torchrun`` or SLURM started another number of processes; a process that cannot be started again,
            as of a notebook.
    """
    kept = {name: options[name] for name in ("accelerator", "devices", "num_nodes", "strategy") if name in options}
    if kept.get("devices", 1) == kept.get("num_nodes", 1) == 1 and "strategy" not in kept:
        if TorchElasticEnvironment.detect() and int(os.environ["WORLD_SIZE"]) > 1:
            raise ValueError(f"devices: want {os.environ['WORLD_SIZE']} in all, as many as were started, got 1")
        return Rank()
    if hasattr(sys, "ps1") and "strategy" not in kept:
        raise ValueError("devices: want 1 in a notebook or an interactive session: several need a script")
    kept = copy.deepcopy(kept)  # a strategy serves one trainer
    try:
        with quiet():
            trainer = lightning.Trainer(logger=False, enable_checkpointing=False, enable_model_summary=False, **kept)
    except RuntimeError as error:  # as of a job of SLURM with --ntasks, where Lightning wants --ntasks-per-node
        raise ValueError(f"devices: {error}") from error
    strategy: Any = trainer.strategy
    if trainer.world_size == 1 and trainer.num_nodes * trainer.num_devices == 1:
        return Rank()
    environment = getattr(strategy, "cluster_environment", None)
    if environment is not None and not environment.creates_processes_externally:
        _check_script()
    elif environment is not None:
        if trainer.world_size != trainer.num_devices * trainer.num_nodes:
            got = f"{trainer.num_devices} on each of {trainer.num_nodes} machines"
            raise ValueError(f"devices: want {trainer.world_size} in all, as many as were started, got {got}")
        environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
    return Rank(trainer.global_rank, trainer.world_size, strategy.root_device)


def _check_script() -> None:
    import __main__

    if __main__.__spec__ is None and not os.path.isfile(sys.argv[0]):
        raise ValueError(f"devices: want a script that can be started again for each rank, got python {sys.argv[0]}")


def prepare(options: dict[str, Any], sessions: int) -> None:
    """Add to arguments of ``lightning.Trainer`` what several ranks need that fit an encoder of so many sessions."""
    # In each pass only the parameters of one session get a gradient.
    options.setdefault("strategy", _Strategy(find_unused_parameters=sessions > 1, **_BUFFERS))
    options["callbacks"] = [*options["callbacks"], _Signals()]
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        # Of a job that is requeued, the run's own checkpoint goes on, not one that Lightning leaves in this directory.
        options["plugins"] = [*options["plugins"], SLURMEnvironment(auto_requeue=False)]


class _Launcher(_SubprocessScriptLauncher):
    """Starts the other ranks of this machine so that Ctrl-C reaches this one alone, which then ends them."""

    def launch(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if not self.cluster_environment.creates_processes_externally:
            os.environ[STARTER] = str(os.getpid())
            try:
                with _on_interrupt(signal.SIG_IGN):
                    self._call_children_scripts()
            finally:
                del os.environ[STARTER]
            first = self.cluster_environment.global_rank()
            _started.update({first + number: process for number, process in enumerate(self.procs, 1)})
        return super().launch(function, *args, **options)


class _Strategy(DDPStrategy):
    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)


class _Signals(lightning.Callback):
    """SIGTERM ends a rank at once. Lightning's handler would have the ranks talk in the midst of a step."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Set the handler; Lightning brings back the one before."""
        if _in_main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL if trainer.global_rank else _leave)


def _leave(signum: int, _: Any) -> None:
    raise SystemExit(128 + signum)


def prepared_by_first(rank: Rank, work: Callable[[], T], how_to_go_on: Callable[[], str]) -> T:
    """What ``work`` gives on rank 0, while the others wait for it.

    Raises:
        RankEndedError: on another rank: rank 0 ended.
    """
    if rank.of == 1:
        return work()
    made: list[Any] = [None]
    if rank.number:
        with together(rank, how_to_go_on):
            dist.broadcast_object_list(made)
        found: T = made[0]
        return found
    try:
        made[0] = work()
    except BaseException:
        end_started()
        raise
    with suppress(RuntimeError):  # one that has ended has no need of it
        dist.broadcast_object_list(made)
    return cast("T", made[0])


# When one ends


def end_started() -> None:
    """End the ranks that this process has started."""
    for process in _started.values():
        process.kill()
    for process in _started.values():
        process.wait()


def _ended(rank: Rank) -> str | None:
    """Which rank has ended too early, and how, as far as this process knows."""
    ends = {number: process.poll() for number, process in _started.items()}
    bad = sorted((code, number) for number, code in ends.items() if code)  # those that a signal ended come first
    if bad:
        code, number = bad[0]
        return f"rank {number} of {rank.of} (process {_started[number].pid}) {_how(code)}"
    # On Windows the parent may be one that the environment of packages puts between.
    if STARTER in os.environ and os.name == "posix" and os.getppid() != int(os.environ[STARTER]):
        return f"rank {rank.number - _place()} of {rank.of} (process {os.environ[STARTER]}) ended"
    return None


def _how(code: int) -> str:
    if code > 0:
        return f"ended with status {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (", as where memory runs out" if name == "SIGKILL" else "")


def _place() -> int:
    """Number of this rank among those that one process has started; 0 of that one, and of others."""
    return int(os.environ["LOCAL_RANK"]) if STARTER in os.environ else 0


def _is_about_others(error: BaseException | None) -> bool:
    """Whether an error says that the connection to another rank is lost."""
    while error is not None:  # gloo has no type of errors of its own
        if isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo/transport" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def together(rank: Rank, how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Within it, ranks work together. Where one ends, all do, and one line says so.

    Ctrl-C is for rank 0. Whatever ends a rank before its time ends those that it has started.

    Args:
        rank: of this process; nothing happens where it is the only one.
        how_to_go_on: end of the message.

    Raises:
        RankEndedError: another rank ended.
    """
    if rank.of == 1:
        yield
        return
    done, interrupted = threading.Event(), threading.Event()
    watch = threading.Thread(target=_watch, args=(rank, done, how_to_go_on), daemon=True, name="v1fast-ranks")
    watch.start()
    handler = (lambda *_: interrupted.set()) if rank.number else signal.getsignal(signal.SIGINT)
    finished = False
    try:
        with _on_interrupt(handler):
            yield
        finished = True
    except Exception as error:
        if interrupted.is_set():
            raise SystemExit(128 + signal.SIGINT) from error
        ended = _cause(error, rank)
        if ended is None:
            raise
        raise RankEndedError(f"{ended}; {how_to_go_on()}") from None
    finally:
        done.set()
        if not finished:
            end_started()


@contextmanager
def _on_interrupt(handler: Any) -> Iterator[None]:
    """Within it, Ctrl-C has another handler."""
    if not _in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _cause(error: Exception, rank: Rank) -> str | None:
    """Which rank ended, if that is what an error of this one comes from."""
    about_others, was_started = _is_about_others(error), STARTER in os.environ
    wait = PATIENCE if about_others and (_started or was_started) else 0.0
    if was_started:  # it leaves the word to the one that started it, and is ended by that
        wait += MOMENT
    end = time.monotonic() + wait
    while (ended := _ended(rank)) is None and time.monotonic() < end:
        time.sleep(POLL)
    if ended is None and about_others:
        return f"another of the {rank.of} ranks has ended or cannot be reached"
    if ended is not None and _place() > 1:
        raise SystemExit(1) from error  # its neighbour says it
    return ended


def _watch(rank: Rank, done: threading.Event, how_to_go_on: Callable[[], str]) -> None:
    """End this process where another rank has ended and the main thread does not notice: it waits for that one."""
    while not done.wait(POLL):
        ended = _ended(rank)
        if ended is not None and not done.wait(PATIENCE):
            if _place() < 2:
                print(f"v1fast: {ended}; {how_to_go_on()}", file=sys.stderr, flush=True)
            end_started()
            os._exit(1)
