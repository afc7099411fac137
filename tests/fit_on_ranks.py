"""A fit over several ranks, as a script: ``python fit_on_ranks.py '{"devices": 2, "out": "folder"}'``.

Tests start it, for Lightning starts a script again for each rank, and call its functions in their own process.
"""

import json
import os
import signal
import subprocess
import sys
import time

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy

from v1fast.models import FiringRateEncoder, Stacked2dCore
from v1fast.readouts import FullGaussian2d, MultiReadoutBase
from v1fast.training import EarlyStopping, EncodingModule, History, SessionCycle, SessionSequence, TensorBatches, fit

NEURONS, SHAPE = {"a": 5, "b": 3}, (3, 8, 10)
TRIALS = {"a": 27, "b": 9}
"""In batches of 8, session a has a last batch of 3 trials, b of 1: fewer than ranks."""


def encoder(seed=0, batch_norm=False):
    torch.manual_seed(seed)
    core = Stacked2dCore(1, 3, 3, 3, layers=2, stack=-1, gamma_input=0.1, batch_norm=batch_norm)
    readout = MultiReadoutBase(
        dict.fromkeys(NEURONS, SHAPE), NEURONS, FullGaussian2d, bias=True, init_sigma=0.3, feature_reg_weight=0.1
    )
    return FiringRateEncoder(core, readout).double()


def trials(count, neurons, seed):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, *SHAPE[1:], generator=draw)
    rates = 1 + images[:, 0, 2:5, 3:6].mean((1, 2))[:, None] * torch.linspace(1, 3, neurons)
    responses = torch.poisson(rates.clamp(min=0.1), generator=draw)
    return {"images": images.double(), "responses": responses.double()}


def data(seed=0, **counts):
    counts = counts or TRIALS
    return {name: trials(counts[name], neurons, seed + neurons) for name, neurons in NEURONS.items()}


class _At(lightning.Callback):
    """On one rank, after a step."""

    def __init__(self, rank, step, what):
        self.rank, self.step, self.what = rank, step, what

    def on_train_batch_end(self, trainer, *_):
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.step):
            if self.what == "wait":
                time.sleep(1000)
            if self.what in ("error", "exit"):
                raise {"error": RuntimeError("this rank's own"), "exit": SystemExit(7)}[self.what]
            os.kill(os.getpid(), getattr(signal, self.what))


def run(model, devices=1, at=(), undefined=None, **options):
    """Fit; each of ``at`` is (rank, step, what happens), ``undefined`` a trial of session a without an image."""
    training = data()
    if undefined is not None:
        training["a"]["images"][undefined] = torch.nan
    given = {"batch_size": 8, "seed": 3, "learning_rate": 0.03, "max_epochs": 4, "show": False, "check_every": 1}
    schedule = EarlyStopping(patience=1, lr_decay_steps=9)
    options = {**given, "schedule": schedule, "callbacks": [_At(*event) for event in at], **options}
    return fit(model, training, data(50, a=11, b=1), accelerator="cpu", devices=devices, **options)


def run_by_trainer(model, devices, **_):
    """The same fit by a Trainer and strategy of Lightning."""
    torch.manual_seed(3)
    module = EncodingModule(model, learning_rate=0.03, schedule=EarlyStopping(patience=1, lr_decay_steps=9))
    training, validation = (
        {name: TensorBatches(fields, 8, shuffle, seed=3) for name, fields in sessions.items()}
        for sessions, shuffle in ((data(), True), (data(50, a=11, b=1), False))
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    strategy = DDPStrategy(find_unused_parameters=True)
    trainer = lightning.Trainer(accelerator="cpu", devices=devices, strategy=strategy, max_epochs=4, **quiet)
    trainer.fit(module, SessionCycle(training), SessionSequence(validation))
    return History(module.epochs, False, None)


# processes that tests start

SCRIPT = __file__
_OF_RANKS = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started(*command, **environment):
    """A process that is the first of its group, and none of several ranks."""
    kept = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
    return subprocess.Popen(
        [str(part) for part in command],
        env=kept | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process):
    """(status, what it said on stderr)."""
    said = process.communicate(timeout=300)[1]
    return process.returncode, said


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = json.loads(sys.argv[1])
    rank = int(os.environ.get("LOCAL_RANK", 0))
    model = encoder(seed=rank, batch_norm=given.pop("batch_norm", False))  # rank 0's values count
    history = (run_by_trainer if given.pop("by_trainer", False) else run)(model, **given)
    result = {"epochs": history.epochs, "interrupted": history.interrupted, "state": model.state_dict()}
    torch.save(result, f"{given['out']}/rank{rank}.pth")
