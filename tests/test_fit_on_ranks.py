"""Fits over several ranks: one optimisation, whatever their number; and what happens when one ends.

What is compared has no batch norm and 64 bits, so that all but the last digits are those of one process.
"""

import json
import os
import re
import shutil
import signal
import socket
import sys

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchmetrics")

import fit_on_ranks
from fit_on_ranks import SCRIPT, encoder, ended, run, started
from lightning.fabric.utilities.rank_zero import rank_zero_only

from v1fast._batches import SHARE, ReadBatches
from v1fast.training import NonFiniteLossError, TensorBatches, fit, ranks

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.once]


def script(out, **options):
    out.mkdir(exist_ok=True)
    return started(sys.executable, SCRIPT, json.dumps({"out": str(out), **options}))


def assert_same_fit(epochs, state, want_epochs, want_state):
    assert len(epochs) == len(want_epochs)
    for one, other in zip(epochs, want_epochs, strict=True):
        assert one == pytest.approx(other, rel=1e-10, abs=1e-12)
    for name, value in want_state.items():
        torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-10, msg=name)


@pytest.fixture(scope="module")
def undisturbed():
    """Epochs and values of one process that nothing has stopped."""
    model = encoder()
    return run(model).epochs, model.state_dict()


# what ranks share


def batches(trials, size, reading=False, **options):
    index = torch.arange(trials)
    if reading:
        return ReadBatches(lambda chosen: {"index": index[chosen]}, trials, size, **options)
    return TensorBatches({"index": index}, size, **options)


@pytest.mark.parametrize("reading", [False, True])
@pytest.mark.parametrize(("trials", "number"), [(23, 2), (23, 3), (17, 4), (3, 4)])
def test_parts_of_ranks_are_the_batches_of_one_process(trials, number, reading):
    """In their order, also where the last batch has fewer trials than there are ranks."""
    whole = [batch["index"] for batch in batches(trials, 4)]
    parts = []
    for rank in range(number):
        shared = batches(trials, 4, reading)
        shared.share(rank, number)
        parts.append(list(shared))
        assert len(shared) == len(whole) == len(parts[-1])
    for step, expected in enumerate(whole):
        counted = []
        for rank in range(number):
            batch = parts[rank][step]
            share = batch[SHARE]
            assert (share.first, share.whole) == (sum(map(len, counted)), len(expected))
            assert len(batch["index"]) == max(share.trials, 1)
            counted.append(batch["index"][: share.trials])
        assert torch.cat(counted).equal(expected)
    shared.share(0, 1)
    assert SHARE not in next(iter(shared))


def test_what_ranks_cannot_share_is_said_before_they_are_started():
    with pytest.raises(ValueError, match=r"^batch_size: want at least 3, a trial for each rank, got 2$"):
        run(encoder(), devices=3, batch_size=2)
    loader = [next(iter(TensorBatches(fit_on_ranks.data()["a"], 8)))]
    with pytest.raises(ValueError, match=r"^session a: want tensors, .* for 2 ranks, got list$"):
        fit(encoder(), {"a": loader}, devices=2, accelerator="cpu", show=False)
    torch_sampler = encoder()
    torch_sampler.readout["a"].sampler = "torch"
    with pytest.raises(ValueError, match=r'^sampler: want "philox"'):
        run(torch_sampler, devices=2)


def test_processes_that_cannot_be_started_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-c"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(ValueError, match=r"^devices: want a script that can be started again for each rank, got pyth"):
        run(encoder(), devices=2)
    monkeypatch.setattr(sys, "ps1", ">>>", raising=False)
    with pytest.raises(ValueError, match=r"^devices: want 1 in a notebook"):
        run(encoder(), devices=2)


def of_slurm(rank, number):
    """The variables that srun would set, on one machine."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "fit",
        "SLURM_NODELIST": "localhost",
        "SLURM_NTASKS": str(number),
        "SLURM_NTASKS_PER_NODE": str(number),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
    }


@pytest.mark.parametrize("devices", [1, 3])
def test_as_many_devices_as_processes_were_started(monkeypatch, devices):
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # a trainer sets it for the process: rank 1 writes no logs
    variables = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "GROUP_RANK": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"^devices: want 2 in all, as many as were started, got "):
        run(encoder(), devices=devices)
    assert ranks.this_rank({"accelerator": "cpu", "devices": 2}) == (1, 2, torch.device("cpu"))
    for name in variables:
        monkeypatch.delenv(name)
    for name, value in of_slurm(1, 2).items():
        monkeypatch.setenv(name, value)
    assert ranks.this_rank({"accelerator": "cpu", "devices": 2}) == (1, 2, torch.device("cpu"))
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    with pytest.raises(ValueError, match="number of tasks per node"):
        run(encoder(), devices=2)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ValueError, match=r"^devices: .*--ntasks-per-node"):
        run(encoder(), devices=2)


# when one ends


def test_errors_that_say_that_another_is_gone():
    """As gloo words it; not one of this rank's own that has the word in a path."""
    gloo = RuntimeError("[/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1")
    wrapped = ValueError("a step failed")
    wrapped.__cause__ = gloo
    assert ranks._is_about_others(gloo)
    assert ranks._is_about_others(wrapped)
    assert ranks._is_about_others(torch.distributed.DistBackendError("NCCL error"))
    assert not ranks._is_about_others(FileNotFoundError(2, "No such file", "recordings/gloo/transport/one"))
    assert not ranks._is_about_others(RuntimeError("shapes do not fit"))


def test_a_killed_rank_is_named_and_one_process_goes_on(tmp_path, undisturbed):
    """Its epochs are those of a fit by one process; so are they after the kill."""
    status, said = ended(script(tmp_path, devices=2, at=[(1, 10, "SIGKILL")]))
    *_, last = said.splitlines()
    assert "RankEndedError: rank 1 of 2 (process" in last
    assert last.endswith(
        ") was ended by SIGKILL, as where memory runs out; "
        f"start it again, with any number of ranks: it goes on from {tmp_path / 'last.ckpt'}"
    )
    assert status == 1
    before = torch.load(tmp_path / "last.ckpt", weights_only=False)["v1fast"]["epochs"]
    assert len(before) == 2
    for one, other in zip(before, undisturbed[0], strict=False):
        assert one == pytest.approx(other, rel=1e-10, abs=1e-12)
    resumed = encoder(seed=9)
    assert_same_fit(run(resumed, out=tmp_path).epochs, resumed.state_dict(), *undisturbed)


def results(out, number):
    return [torch.load(out / f"rank{rank}.pth", weights_only=False) for rank in range(number)]


@pytest.mark.slow
def test_any_number_of_ranks_goes_on_where_rank_0_was_killed(tmp_path, undisturbed):
    first = tmp_path / "first"
    status, said = ended(script(first, devices=3, at=[(0, 6, "SIGKILL")]))
    assert status == -signal.SIGKILL
    (last,) = [line for line in said.splitlines() if "RankEndedError: " in line]  # of its neighbour alone
    assert "rank 0 of 3 (process" in last
    assert "ended; start it again, with any number of ranks: it goes on from" in last
    for number in (3, 2, 1):
        again = tmp_path / str(number)
        shutil.copytree(first, again)
        assert ended(script(again, devices=number)) == (0, "")
        for result in results(again, number):
            assert_same_fit(result["epochs"], result["state"], *undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("events", "status", "says"),
    [
        ([(1, 6, "SIGTERM")], 1, r"rank 1 of 2 \(process \d+\) was ended by SIGTERM; start it again, with any"),
        ([(1, 6, "exit")], 1, r"rank 1 of 2 \(process \d+\) ended with status 7; start it again, with any"),
        ([(1, 6, "error")], 1, r"RuntimeError: this rank's own[^$]*rank 1 of 2 \(process \d+\) ended with status 1; "),
        (
            [(1, 2, "SIGKILL")],
            1,
            r"was ended by SIGKILL, as where memory runs out; start it again$",
        ),  # no epoch is done
        ([(0, 6, "error")], 1, r"RuntimeError: this rank's own$"),
        ([(0, 6, "SIGTERM")], 128 + signal.SIGTERM, r"^$"),
        ([(0, 6, "wait"), (1, 6, "SIGKILL")], 1, r"^v1fast: rank 1 of 2 \(process \d+\) was ended by SIGKILL"),
        ([(1, 6, "SIGINT"), (0, 6, "SIGINT")], 0, r"^$"),  # as Ctrl-C
    ],
    ids=lambda value: "-".join(f"{rank} {what}" for rank, _, what in value) if isinstance(value, list) else "",
)
def test_whatever_ends_a_rank_ends_the_others_and_is_said(tmp_path, undisturbed, events, status, says):
    process = script(tmp_path, devices=2, at=events)
    found, said = ended(process)
    assert found == status, said
    assert re.search(says, said.strip()), said
    with pytest.raises(ProcessLookupError):  # nothing of its group is left
        os.killpg(process.pid, 0)
    if "SIGINT" in events[0]:
        (result,) = results(tmp_path, 1)
        assert result["interrupted"]
        assert len(result["epochs"]) == 1
    resumed = encoder(seed=9 if (tmp_path / "last.ckpt").exists() else 0)
    assert_same_fit(run(resumed, out=tmp_path).epochs, resumed.state_dict(), *undisturbed)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_found_on_every_rank(tmp_path):
    with pytest.raises(NonFiniteLossError) as one:
        run(encoder(), undefined=20)
    status, said = ended(script(tmp_path, devices=3, undefined=20))
    assert status == 1
    (last,) = [line for line in said.splitlines() if "NonFiniteLossError: " in line]
    assert last.endswith(f"NonFiniteLossError: {one.value}")


@pytest.mark.slow
def test_any_trainer_with_ddp_will_do(tmp_path, undisturbed):
    status, said = ended(script(tmp_path, devices=3, by_trainer=True))
    assert status == 0, said
    for result in results(tmp_path, 3):
        assert_same_fit(result["epochs"], result["state"], *undisturbed)


@pytest.mark.slow
def test_ranks_end_with_the_same_batch_norm(tmp_path):
    assert ended(script(tmp_path, devices=2, batch_norm=True, max_epochs=2)) == (0, "")
    one, other = results(tmp_path, 2)
    assert one["epochs"] == other["epochs"]
    assert any("running_var" in name for name in one["state"])
    for name, value in one["state"].items():
        assert value.equal(other["state"][name]), name


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.mark.slow
def test_ranks_that_torchrun_or_slurm_has_started(tmp_path, undisturbed):
    """Of SLURM there are but its variables; no job has run."""
    options = json.dumps({"devices": 2, "out": str(tmp_path)})
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    status, said = ended(started(*torchrun, SCRIPT, options))
    assert status == 0, said
    for result in results(tmp_path, 2):
        assert_same_fit(result["epochs"], result["state"], *undisturbed)
    options = json.dumps({"devices": 2, "out": str(tmp_path / "slurm"), "at": [(1, 6, "SIGKILL")]})
    (tmp_path / "slurm").mkdir()
    port = free_port()
    both = [started(sys.executable, SCRIPT, options, MASTER_PORT=port, **of_slurm(rank, 2)) for rank in range(2)]
    (status, said), (killed, _) = map(ended, both)
    assert (status, killed) == (1, -signal.SIGKILL)
    assert (
        "RankEndedError: another of the 2 ranks has ended or cannot be reached; start it again, with any number"
        in said.splitlines()[-1]
    )
    resumed = encoder(seed=9)
    assert_same_fit(run(resumed, out=tmp_path / "slurm").epochs, resumed.state_dict(), *undisturbed)
