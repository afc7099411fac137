"""``v1fast fit --devices``: the command, over several processes."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("yaml")
pytest.importorskip("jinja2")
pytest.importorskip("lightning")
pytest.importorskip("torchmetrics")
pytest.importorskip("safetensors")

from commands import done
from fit_on_ranks import ended, started
from recorded import recording

from v1fast.data import write_sensorium

pytestmark = [pytest.mark.slow, pytest.mark.once]

EPOCHS = 12
OPTIONS = (
    *("--set", "core.layers=1", "--set", "core.hidden_channels=3", "--set", "core.input_kern=3"),
    *("--set", "core.batch_norm=false", "--set", "schedule.patience=4", "--set", "machine.workers=0"),
    *("--batch-size", "6", "--device", "cpu", "--epochs", str(EPOCHS)),
)
MODULE = (sys.executable, "-m", "v1fast")
SCRIPT = (Path(sys.executable).parent / "v1fast",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two recordings, and a run of one process."""
    folder = tmp_path_factory.mktemp("ranks")
    write_sensorium(recording(trials=90), folder / "one")
    write_sensorium(recording(trials=50, seed=1, neurons=4), folder / "two")
    assert ended(fit(folder, folder / "alone", MODULE))[0] == 0
    return folder


def fit(folder, out, how, *options):
    return started(*how, "fit", folder / "one", folder / "two", "--out", out, *OPTIONS, *options)


def numbers(tree):
    """All numbers in nested mappings and lists, in order."""
    if isinstance(tree, dict | list):
        return [number for part in (tree.values() if isinstance(tree, dict) else tree) for number in numbers(part)]
    return [tree] if isinstance(tree, int | float) else []


def assert_same_run(folder, out):
    """As of one process: the same files, states and, up to rounding in 32 bits (4e-7 was found), numbers."""
    alone = folder / "alone"
    names, wanted = ({path.name for path in run.iterdir() if "tfevents" not in path.name} for run in (out, alone))
    assert names == wanted
    run, one = (json.loads((path / "run.json").read_text()) for path in (out, alone))
    assert (run["state"], run["epochs"], run["best_epoch"]) == ("finished", one["epochs"], one["best_epoch"])
    assert run.keys() == one.keys()
    metrics, wanted = (json.loads((path / "metrics.json").read_text()) for path in (out, alone))
    assert numbers(metrics) == pytest.approx(numbers(wanted), rel=1e-5, abs=1e-5)
    rows = [(path / "metrics.csv").read_text().splitlines() for path in (out, alone)]
    assert rows[0][0] == rows[1][0]
    for row, other in zip(*(part[1:] for part in rows), strict=True):
        assert [*map(float, row.split(","))] == pytest.approx([*map(float, other.split(","))], rel=1e-5, abs=1e-5)
    assert json.loads(done("evaluate", out, "--json").stdout) == metrics


@pytest.mark.parametrize(("how", "devices"), [(SCRIPT, 2), (MODULE, 3)])
def test_a_run_over_ranks_is_that_of_one_process(folder, tmp_path, how, devices):
    """Whether it is started as a script or as a module; nothing is said twice."""
    process = fit(folder, tmp_path / "run", how, "--devices", devices)
    out, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert out.count("single trial") == 1
    lines = said.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["Recording 'one'", "Recording 'two'"]
    assert [line.split()[1] for line in lines[2:-1]] == [f"{epoch}/{EPOCHS}" for epoch in range(1, len(lines) - 2)]
    assert lines[-1] == f"Look at {tmp_path / 'run' / 'report.html'}"
    assert_same_run(folder, tmp_path / "run")
    again = fit(folder, tmp_path / "run", how, "--devices", devices)
    assert "this run is finished: nothing was done" in ended(again)[1]
    done("predict", tmp_path / "run", folder / "one", "--out", tmp_path / "predictions.npz")


def stopped(folder, out, number, *options):
    """A run whose rank 0, or all of whose processes, get a signal after the first epoch; (status, said)."""
    process = fit(folder, out, SCRIPT, "--devices", 2, *options)
    while not (out / "last.ckpt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    return ended(process)


def test_ctrl_c_leaves_a_model_and_other_numbers_of_ranks_go_on(folder, tmp_path):
    out = tmp_path / "stopped"
    status, said = stopped(folder, out, signal.SIGINT)
    assert status == 130, said
    assert said.splitlines()[-1] == (
        f"v1fast: interrupted; {out / 'model.safetensors'} holds the best so far; the same command goes on"
    )
    assert "Traceback" not in said
    assert json.loads((out / "run.json").read_text())["state"] == "interrupted"
    assert "single trial" in done("evaluate", out).stdout
    for devices in (1, 3):
        again = tmp_path / f"again{devices}"
        shutil.copytree(out, again)
        status, said = ended(fit(folder, again, MODULE, "--devices", devices))
        assert status == 0, said
        assert f"epoch   1/{EPOCHS}" not in said
        assert_same_run(folder, again)


def test_a_killed_rank_0_is_said_by_another_in_one_line(folder, tmp_path):
    out = tmp_path / "killed"
    status, said = stopped(folder, out, signal.SIGKILL, "-q")
    assert status == -signal.SIGKILL
    (line,) = said.splitlines()
    assert line.startswith("v1fast: rank 1: rank 0 of 2 (process ")
    assert line.endswith(f"ended; start it again, with any number of ranks: it goes on from {out / 'last.ckpt'}")
    assert ended(fit(folder, out, MODULE, "-q")) == (0, "")
    (out / ".lock").unlink(missing_ok=True)
    assert_same_run(folder, out)


SRUN = """#!/bin/sh
# Starts a command as often as a job on one machine has tasks.
while [ "${1#--}" != "$1" ]; do shift; done
export SLURM_NTASKS=$SLURM_NTASKS_PER_NODE SLURM_NNODES=1 SLURM_NODEID=0
rank=0
while [ $rank -lt $SLURM_NTASKS ]; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & tasks="$tasks $!"
    rank=$((rank + 1))
done
for task in $tasks; do wait $task || exit $?; done
"""


def test_the_example_for_slurm(folder, tmp_path):
    """With an imitation of srun."""
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    job = {"SLURM_JOB_ID": str(10000 + os.getpid() % 10000), "SLURM_JOB_NAME": "fit", "SLURM_NODELIST": "localhost"}
    job |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "2"}
    job["PATH"] = os.pathsep.join([str(tmp_path), str(SCRIPT[0].parent), os.environ["PATH"]])
    example = Path(__file__).parents[1] / "examples" / "fit_slurm.sh"
    process = started(example, folder / "one", folder / "two", "--out", tmp_path / "run", *OPTIONS, **job)
    status, said = ended(process)
    assert status == 0, said
    assert_same_run(folder, tmp_path / "run")


def test_mistakes_have_one_line(folder, tmp_path):
    """Also what only the others find out."""
    status, said = ended(fit(folder, tmp_path / "run", MODULE, "--devices", "7"))
    assert (status, said.count("\n")) == (2, 1)
    assert "training.batch_size: want at least 7, a trial for each of the 7 x 1 ranks, got 6" in said
    assert not (tmp_path / "run").exists()
