"""Training: batches, schedule, one step, stopping and going on."""

import collections
import copy
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

lightning = pytest.importorskip("lightning")
pytest.importorskip("torchmetrics")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.utilities import CombinedLoader  # noqa: E402

from v1fast.losses import GaussianLoss, PoissonLoss  # noqa: E402
from v1fast.metrics import single_trial_correlation  # noqa: E402
from v1fast.models import FiringRateEncoder, MLPModulator, MLPShifter, Stacked2dCore  # noqa: E402
from v1fast.readouts import FullGaussian2d, MultiReadoutBase  # noqa: E402
from v1fast.training import (  # noqa: E402
    EarlyStopping,
    EncodingModule,
    NonFiniteLossError,
    OneCycle,
    SessionCycle,
    SessionSequence,
    TensorBatches,
    fit,
)
from v1fast.training.batches import as_fields  # noqa: E402
from v1fast.training.callbacks import AtomicCheckpointIO  # noqa: E402
from v1fast.training.schedule import parameter_groups  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

NEURONS, SHAPE = {"a": 6, "b": 4}, (4, 10, 12)


def encoder(seed=0, shifter=False, **options):
    torch.manual_seed(seed)
    core = Stacked2dCore(1, 4, 5, 3, layers=2, stack=-1, gamma_input=0.1)
    readout = MultiReadoutBase(dict.fromkeys(NEURONS, SHAPE), NEURONS, FullGaussian2d, bias=True, init_sigma=0.1)
    return FiringRateEncoder(core, readout, shifter=MLPShifter(NEURONS) if shifter else None, **options)


def trials(count, neurons, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, *SHAPE[1:], generator=generator)
    rates = images[:, 0, 2:7, 3:8].mean((1, 2))[:, None] * torch.linspace(1, 3, neurons) + 1
    return {"images": images, "responses": torch.poisson(rates.clamp(min=0.1), generator=generator)}


def data(seed=0):
    return {"a": trials(40, 6, seed), "b": trials(24, 4, seed + 1)}


def quick(model, **options):
    """Three epochs, without a word."""
    return fit(model, data(), data(5), **{"max_epochs": 3, "batch_size": 16, "show": False, **options})


# batches


def test_order_is_a_function_of_seed_epoch_and_pass():
    def orders(batches):
        return [torch.cat([batch["index"] for batch in batches]) for _ in range(2)]

    fields = {"index": torch.arange(23), "images": torch.randn(23, 1, 2, 2)}
    batches = TensorBatches(fields, batch_size=5, seed=3)
    assert len(batches) == 5
    assert len(batches.dataset) == 23
    first, second = orders(batches)
    assert not first.equal(second)
    assert first.sort().values.equal(torch.arange(23))
    batches.set_epoch(1)
    later = orders(batches)
    assert not later[0].equal(first)
    again = TensorBatches(fields, batch_size=5, seed=3)
    torch.manual_seed(99)  # no other generator matters
    again.set_epoch(1)
    assert all(one.equal(other) for one, other in zip(orders(again), later, strict=True))
    assert not orders(TensorBatches(fields, batch_size=5, seed=4))[0].equal(first)
    assert orders(TensorBatches(fields, 5, shuffle=False))[0].equal(torch.arange(23))
    for batch in batches:
        assert batch["images"].equal(fields["images"][batch["index"]])


def test_fields_have_to_fit():
    with pytest.raises(ValueError, match=r"fields: want the same number of trials in each.*images 3, responses 4"):
        TensorBatches({"images": torch.zeros(3, 1, 2, 2), "responses": torch.zeros(4, 2)})
    with pytest.raises(ValueError, match="got images 0"):
        TensorBatches({"images": torch.zeros(0, 1, 2, 2)})
    with pytest.raises(ValueError, match="batch_size: want at least 1, got 0"):
        TensorBatches({"images": torch.zeros(3, 1, 2, 2)}, batch_size=0)


def test_a_shorter_session_starts_again():
    index = {"a": {"i": torch.arange(10)}, "b": {"i": torch.arange(4)}}
    cycle = SessionCycle({name: TensorBatches(fields, batch_size=3) for name, fields in index.items()})
    steps = list(cycle)
    assert len(steps) == len(cycle) == 4
    assert torch.cat([step["a"]["i"] for step in steps]).sort().values.equal(torch.arange(10))
    seen = torch.cat([step["b"]["i"] for step in steps])
    assert seen[:4].sort().values.equal(seen[4:].sort().values)
    cycle.set_epoch(2)
    again = list(cycle)
    assert not torch.cat([step["a"]["i"] for step in again]).equal(torch.cat([step["a"]["i"] for step in steps]))
    sequence = SessionSequence({name: TensorBatches(fields, 3, shuffle=False) for name, fields in index.items()})
    assert len(sequence) == 6
    assert [next(iter(batch)) for batch in sequence] == ["a", "a", "a", "a", "b", "b"]


def test_batches_of_other_libraries():
    images, responses, pupil = torch.zeros(2, 1, 4, 4), torch.zeros(2, 3), torch.zeros(2, 2)
    named = collections.namedtuple("Batch", "images responses pupil_center")(images, responses, pupil)
    for batch in (named, {"inputs": images, "targets": responses, "pupil_center": pupil}):
        found = as_fields(batch)
        assert found[0] is images
        assert found[1] is responses
        assert found[2] == {"pupil_center": pupil}
    assert as_fields((images, responses))[2] == {}
    with pytest.raises(ValueError, match="batch: want responses under one of responses, targets, got mask"):
        as_fields({"images": images, "mask": pupil})


# the schedule


def test_patience_decay_and_stop():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    schedule = EarlyStopping(patience=2, lr_decay_steps=3, factor=0.1, min_lr=0.005)
    schedule.begin(optimizer, 100)
    objectives = [0.1, 0.2, 0.2, float("nan"), 0.3, 0.1, 0.3, 0.2, 0.2]
    verdicts = [schedule.after_epoch(objective) for objective in objectives[:4]]
    assert verdicts == ["better", "better", "worse", "decay"]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    resumed = EarlyStopping(patience=2, lr_decay_steps=3, factor=0.1, min_lr=0.005)
    resumed.begin(optimizer, 100)
    resumed.load_state_dict(schedule.state_dict())
    assert [resumed.after_epoch(objective) for objective in objectives[4:]] == [
        *("better", "worse", "decay", "worse", "stop"),
    ]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.005)
    for name, value in (("patience", 0), ("lr_decay_steps", 0), ("factor", 0.0)):
        with pytest.raises(ValueError, match=f"{name}: want"):
            EarlyStopping(**{name: value})


def test_rates_by_name():
    model = encoder()
    groups = parameter_groups(model, 0.1, {"sigma": 0.2, "readout.a.sigma": 0.3, "_mu": 0.4})
    assert [group["lr"] for group in groups] == [0.1, 0.2, 0.3, 0.4]
    assert groups[1]["params"][0] is model.readout["b"].sigma
    assert groups[2]["params"][0] is model.readout["a"].sigma
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    with pytest.raises(ValueError, match="learning_rates: want ends of the names of trained parameters, got mu"):
        parameter_groups(model, 0.1, {"mu": 0.2})


def test_one_cycle_rises_and_falls():
    optimizer = torch.optim.Adam([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (0.1, 0.2)])
    schedule, rates = OneCycle(rise=0.25), []
    schedule.begin(optimizer, 40)
    for _ in range(40):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.after_step()
    assert rates[0][0] < 0.01
    assert max(rates) == pytest.approx([0.1, 0.2])
    assert rates[-1][1] < 1e-4
    assert [schedule.after_epoch(x) for x in (0.1, 0.3, 0.2)] == ["better", "better", "worse"]


# a step


def test_steps_are_those_of_a_plain_loop():
    """One backward per session, the loss scaled by sqrt(trials / batch), each penalty once a session."""
    model = encoder(shifter=True).double()
    twin = copy.deepcopy(model)
    sessions = {
        name: {key: values.double() for key, values in fields.items()}
        | {"pupil_center": torch.rand(len(fields["images"]), 2).double()}
        for name, fields in data().items()
    }
    options = {"learning_rate": 0.01, "gamma_dispersion": 3.0}
    fit(model, sessions, max_epochs=2, batch_size=16, seed=7, show=False, **options)
    torch.manual_seed(7)
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.01)
    cycle = SessionCycle({name: TensorBatches(fields, 16, seed=7) for name, fields in sessions.items()})
    twin.train()
    for epoch in range(2):
        cycle.set_epoch(epoch)
        for step in cycle:
            optimizer.zero_grad()
            for name, batch in step.items():
                rates = twin(batch["images"], data_key=name, pupil_center=batch["pupil_center"])
                loss = PoissonLoss(avg=False)(rates, batch["responses"])
                scale = (len(sessions[name]["images"]) / len(rates)) ** 0.5
                spread = twin.readout[name]._mu[0, :, 0].std(0).sum()
                (loss * scale + twin.regularizer(name) + 3.0 * spread).backward()
            optimizer.step()
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=name)


def test_one_session_at_a_time_holds_memory(monkeypatch):
    events = []
    module = EncodingModule(encoder())
    forward = FiringRateEncoder.forward

    def noted(self, *args, data_key=None, **kwargs):
        events.append(f"forward {data_key}") if self.training else None
        return forward(self, *args, data_key=data_key, **kwargs)

    monkeypatch.setattr(FiringRateEncoder, "forward", noted)
    monkeypatch.setattr(
        EncodingModule, "manual_backward", lambda self, loss: (events.append("backward"), loss.backward())
    )
    cycle = SessionCycle({name: TensorBatches(fields, 16) for name, fields in data().items()})
    trainer(max_steps=1).fit(module, cycle)
    assert events == ["forward a", "backward", "forward b", "backward"]


def trainer(**options):
    defaults = {"max_epochs": 2, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(**{"accelerator": "cpu", "enable_checkpointing": False, **defaults, **options})


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_any_trainer_of_lightning_will_do(tmp_path):
    """With its callbacks, and with its own way to combine loaders."""

    class Trials(torch.utils.data.Dataset):
        def __init__(self, fields):
            self.fields = fields

        def __len__(self):
            return len(self.fields["images"])

        def __getitem__(self, index):
            return {name: values[index] for name, values in self.fields.items()}

    loaders = {name: torch.utils.data.DataLoader(Trials(fields), 16, shuffle=True) for name, fields in data().items()}
    best = ModelCheckpoint(tmp_path, monitor="val_correlation", mode="max", filename="best")
    validation = SessionSequence({name: TensorBatches(fields, 16) for name, fields in data(5).items()})
    module = EncodingModule(encoder())
    trainer(callbacks=[best], enable_checkpointing=True).fit(
        module, CombinedLoader(loaders, "max_size_cycle"), validation
    )
    assert len(module.epochs) == 2
    assert float(best.best_model_score) == pytest.approx(max(e["val_correlation"] for e in module.epochs))
    again = EncodingModule.load_from_checkpoint(best.best_model_path, encoder=encoder(1), weights_only=False)
    assert set(again.state_dict()) == set(module.state_dict())


def test_a_loader_without_length_needs_no_scale():
    cycle = SessionCycle({"a": [next(iter(TensorBatches(data()["a"], 8)))]})
    with pytest.raises(ValueError, match="scale_loss: want a loader of session a with a dataset that has a length"):
        trainer(max_steps=1).fit(EncodingModule(encoder()), cycle)
    trainer(max_steps=1).fit(EncodingModule(encoder(), scale_loss=False), cycle)


# the history and the best weights


def test_history_and_best_weights():
    model = encoder()
    history = quick(model, max_epochs=6, learning_rate=0.05)
    assert [epoch["epoch"] for epoch in history.epochs] == [1, 2, 3, 4, 5, 6]
    correlations = [epoch["val_correlation"] for epoch in history.epochs]
    assert history.best_epoch == 1 + max(range(6), key=correlations.__getitem__)
    assert not model.training
    values, losses, count = [], 0.0, 0
    with torch.no_grad():
        for name, fields in data(5).items():
            rates = model(fields["images"], data_key=name)
            values.append(single_trial_correlation(fields["responses"], rates).per_neuron)
            losses += PoissonLoss(avg=False)(rates, fields["responses"]).item()
            count += rates.numel()
    best = history.epochs[history.best_epoch - 1]
    assert torch.cat(values).nanmean().item() == pytest.approx(best["val_correlation"], abs=1e-6)
    assert losses / count == pytest.approx(best["val_loss"], rel=1e-5)
    assert max(correlations) > 0.2
    assert not history.interrupted


def test_the_weights_of_a_round_come_back(monkeypatch):
    """After ``patience`` epochs without improvement the best weights return, with a lower rate; then it ends."""
    model, seen = encoder(), []
    scripted = iter([0.1, 0.4, 0.2, 0.3, 0.1, 0.2])
    judge = EarlyStopping.after_epoch
    monkeypatch.setattr(EarlyStopping, "after_epoch", lambda self, _: judge(self, next(scripted)))

    class Note(lightning.Callback):
        def on_train_epoch_start(self, *args):
            seen.append(model.core.features.layer0.conv.weight.detach().clone())

    history = quick(model, max_epochs=20, schedule=EarlyStopping(patience=2, lr_decay_steps=2), callbacks=[Note()])
    assert len(history.epochs) == 6
    rates = [epoch["learning_rate"] for epoch in history.epochs]
    assert rates == pytest.approx([0.005] * 4 + [0.0015] * 2)
    assert seen[4].equal(seen[2])  # the fifth epoch begins where the second ended
    assert model.core.features.layer0.conv.weight.equal(seen[2])


def test_frozen_core_stays_frozen_in_a_fit():
    model = encoder().freeze_core()
    before = {name: value.clone() for name, value in model.core.state_dict().items()}
    readout = model.readout["a"]._features.detach().clone()
    quick(model)
    for name, value in model.core.state_dict().items():
        assert value.equal(before[name]), name
    assert not model.readout["a"]._features.equal(readout)


def test_bfloat16_trains():
    model = encoder()
    history = quick(model, precision="bf16-mixed")
    assert history.epochs[-1]["train_loss"] < history.epochs[0]["train_loss"]
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_lines_and_logs(tmp_path):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200)
    history = quick(encoder(), out=tmp_path, show=True, console=console)
    lines = [line for line in console.file.getvalue().splitlines() if line.startswith("epoch")]
    assert len(lines) == 3
    assert f"correlation {history.epochs[-1]['val_correlation']:.4f}" in lines[-1]
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert rows[0] == "epoch,train_loss,learning_rate,val_loss,val_correlation"
    assert [float(row.split(",")[4]) for row in rows[1:]] == [epoch["val_correlation"] for epoch in history.epochs]
    assert any(path.name.startswith("events.out.tfevents") for path in tmp_path.iterdir())
    assert history.checkpoint == tmp_path / "last.ckpt"


def test_impossible_responses_are_refused_before_the_first_step():
    bad = data()
    bad["b"]["responses"][3, 2] = -1
    with pytest.raises(ValueError, match="responses of session b: want finite values >= 0, got 1 of 96"):
        fit(encoder(), bad, show=False)
    bad["b"]["responses"][3, 2] = float("nan")
    with pytest.raises(ValueError, match=r"responses of session b: want finite values, .*at \(3, 2\): nan"):
        fit(encoder(), bad, loss=GaussianLoss(avg=False), show=False)


# a loss that is not finite


@pytest.mark.parametrize("what", ["images", "responses", "rate", "weights"])
def test_a_loss_that_is_not_finite_ends_it(what):
    sessions = {name: TensorBatches(fields, 8, shuffle=False) for name, fields in data().items()}
    model, options = encoder(), {}
    blame = {
        "images": "the images hold NaN",
        "responses": "the responses hold NaN",
        "rate": r"the parameter core.features.layer0.conv.weight .and \d+ others. is not finite: the learning rate may",
        "weights": "the parameter readout.b.bias is not finite",
    }[what]
    if what in ("images", "responses"):
        sessions["b"].fields[what] = sessions["b"].fields[what].clone()
        sessions["b"].fields[what][9] = torch.nan
        if what == "responses":
            sessions["b"] = [*sessions["b"]]
            options["scale_loss"] = False
    elif what == "rate":
        options |= {"learning_rate": 1e38, "optimizer": torch.optim.SGD}
    else:
        model.readout["b"].bias.data[2] = torch.nan
    step = {"images": 1, "responses": 1, "rate": 1, "weights": 0}[what]
    session = "a" if what == "rate" else "b"
    with pytest.raises(
        NonFiniteLossError, match=f"the loss of session {session} is not finite at step {step}: {blame}"
    ):
        fit(model, sessions, max_epochs=3, show=False, check_every=2, **options)


@pytest.mark.parametrize("field", ["pupil_center", "behavior"])
def test_a_field_that_is_not_finite_is_named(field):
    model, sessions = encoder(shifter=True), data()
    model.modulator = MLPModulator(NEURONS, input_channels=2)
    for fields in sessions.values():
        for name in ("pupil_center", "behavior"):
            fields[name] = torch.rand(len(fields["images"]), 2)
    sessions["b"][field][:] = torch.nan
    with pytest.raises(NonFiniteLossError, match=f"session b is not finite at step 0: {field} holds NaN or infinite"):
        fit(model, sessions, max_epochs=1, show=False)


# stopping and going on


class _StopAt(lightning.Callback):
    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            raise self.error


def states(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("step", [4, 5, 8, 16])
@pytest.mark.parametrize("schedule", [lambda: EarlyStopping(patience=1, lr_decay_steps=4), OneCycle])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, step, schedule):
    whole = encoder()
    options = {"max_epochs": 6, "seed": 3, "learning_rate": 0.03}
    history = quick(whole, schedule=schedule(), **options)
    stopped = encoder()
    with pytest.raises(RuntimeError, match="power cut"):
        quick(
            stopped, schedule=schedule(), out=tmp_path, callbacks=[_StopAt(step, RuntimeError("power cut"))], **options
        )
    resumed = encoder(seed=9)  # nothing of it counts
    torch.manual_seed(1)
    again = quick(resumed, schedule=schedule(), out=tmp_path, **options)
    assert again.epochs == history.epochs
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 7  # no epoch is lost
    for name, value in states(whole).items():
        assert value.equal(resumed.state_dict()[name]), name


@pytest.mark.parametrize("patience", [100, 2])
def test_a_finished_run_stays_finished(tmp_path, patience):
    """One that took all its epochs, and one that ended early; of neither is the last epoch the best."""

    def again(model):
        schedule = EarlyStopping(patience=patience, lr_decay_steps=1)
        return quick(model, out=tmp_path, schedule=schedule, max_epochs=30 if patience == 2 else 4, learning_rate=0.1)

    first, second = encoder(), encoder(seed=1)
    history = again(first)
    assert history.best_epoch < len(history.epochs) < 30
    assert again(second).epochs == history.epochs
    for name, value in states(first).items():
        assert value.equal(second.state_dict()[name]), name


def test_ctrl_c_keeps_the_best_and_says_where(tmp_path):
    from rich.console import Console

    console, model = Console(file=io.StringIO(), width=200), encoder()
    handler = signal.getsignal(signal.SIGINT)
    stop = _StopAt(7, KeyboardInterrupt())
    history = quick(model, max_epochs=6, out=tmp_path, show=True, console=console, callbacks=[stop])
    assert history.interrupted
    assert len(history.epochs) == 2
    assert signal.getsignal(signal.SIGINT) is handler
    said = console.file.getvalue()
    assert "Interrupted: going on with the best of 2 epochs" in said
    assert f"{tmp_path / 'last.ckpt'} holds the last epoch: the same call goes on from it" in said
    twin = encoder()
    quick(twin, max_epochs=2)
    for name, value in states(twin).items():
        assert value.equal(model.state_dict()[name]), name
    assert not quick(encoder(1), max_epochs=6, out=tmp_path).interrupted
    with pytest.raises(KeyboardInterrupt):
        quick(encoder(), callbacks=[_StopAt(1, KeyboardInterrupt())])


class _SignalAt(_StopAt):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.error)


@pytest.mark.parametrize(
    ("stop", "status"), [(_StopAt(7, SystemExit(3)), 3), (_SignalAt(7, signal.SIGTERM), 128 + signal.SIGTERM)]
)
def test_what_ends_the_process_is_not_ctrl_c(tmp_path, stop, status):
    with pytest.raises(SystemExit) as end:
        quick(encoder(), max_epochs=6, out=tmp_path, callbacks=[stop])
    assert end.value.code == status
    whole, resumed = encoder(), encoder(1)
    assert quick(resumed, max_epochs=6, out=tmp_path).epochs == quick(whole, max_epochs=6).epochs
    for name, value in states(whole).items():
        assert value.equal(resumed.state_dict()[name]), name


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


CHILD = """
import sys, time, torch
sys.path[:0] = [{tests!r}]
import test_training as t
torch.set_num_threads(1)
class Slow(t.lightning.Callback):
    def on_train_batch_end(self, *args): time.sleep(0.02)
model = t.encoder()
t.quick(model, max_epochs=8, seed=3, learning_rate=0.03, out={out!r}, callbacks=[Slow()],
        schedule=t.EarlyStopping(patience=1, lr_decay_steps=9))
torch.save(model.state_dict(), {out!r} + "/done.pth")
"""


def killed_run(out: Path, delays) -> None:
    """Start a run, kill it so many seconds after it has begun an epoch, and start it again; let the last one finish."""
    out.mkdir()
    code = CHILD.format(tests=str(Path(__file__).parent), out=str(out))
    for delay in (*delays, None):
        child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
        if delay is None:
            assert child.wait(300) == 0, child.stderr.read().decode()
            return
        before = (out / "last.ckpt").stat().st_mtime_ns if (out / "last.ckpt").exists() else 0
        while child.poll() is None and not (out / "last.ckpt").exists():
            time.sleep(0.01)
        while child.poll() is None and (out / "last.ckpt").stat().st_mtime_ns == before:
            time.sleep(0.005)
        time.sleep(delay)
        child.kill()
        child.wait()


def unkilled():
    model = encoder()
    quick(model, max_epochs=8, seed=3, learning_rate=0.03, schedule=EarlyStopping(patience=1, lr_decay_steps=9))
    return states(model)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills processes")
@pytest.mark.parametrize("seed", range(4))
def test_twenty_kills_change_no_bit(tmp_path, seed):
    generator = torch.Generator().manual_seed(seed)
    killed_run(tmp_path / "run", (0.2 * torch.rand(5, generator=generator)).tolist())
    done = torch.load(tmp_path / "run" / "done.pth")
    for name, value in unkilled().items():
        assert value.equal(done[name]), name
