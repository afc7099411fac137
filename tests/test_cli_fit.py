"""v1fast fit, evaluate, predict, accelerate: what they print and write, exit codes, and each mistake of a user."""

import json
import shutil

import numpy as np
import pytest
import torch

for _module in ("yaml", "lightning", "torchmetrics", "safetensors"):
    pytest.importorskip(_module)

from commands import done, v1fast  # noqa: E402
from recorded import recording, video  # noqa: E402

from v1fast.data import write_arrays, write_sensorium  # noqa: E402
from v1fast.models import FiringRateEncoder, Stacked2dCore  # noqa: E402
from v1fast.readouts import FullGaussian2d, MultiReadoutBase, PointPooled2d  # noqa: E402
from v1fast.training import EncodingModule  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = (
    *(
        "--preset",
        "sensorium",
        "--set",
        "core.layers=1",
        "--set",
        "core.hidden_channels=3",
        "--set",
        "core.input_kern=3",
    ),
    *("--batch-size", "6", "--device", "cpu", "--epochs", "2"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two recordings as folders of Sensorium, one as .npz, one of videos; a state_dict; a run."""
    folder = tmp_path_factory.mktemp("cli")
    write_sensorium(recording(), folder / "one")
    write_sensorium(recording(seed=1, neurons=4), folder / "two.zip")
    write_arrays(recording(seed=2), folder / "three.npz")
    write_arrays(video(), folder / "movie.npz")
    write_arrays(recording(tiers=["test"] * 24), folder / "untrained.npz")
    write_arrays(recording(neurons=3), folder / "fewer.npz")
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("no recording")
    core = Stacked2dCore(1, 4, 5, 3, layers=2, stack=-1, pad_input=False, conv_bias=False)
    encoder = FiringRateEncoder(core, MultiReadoutBase({"a": (4, 32, 60)}, {"a": 7}, FullGaussian2d, bias=True))
    torch.save(encoder.state_dict(), folder / "released.pth")
    pooled = MultiReadoutBase(
        {"a": (4, 32, 60)}, {"a": 7}, PointPooled2d, bias=True, pool_steps=1, pool_kern=3, init_range=0.1
    )
    torch.save(FiringRateEncoder(core, pooled).state_dict(), folder / "pooled.pth")
    torch.save(encoder, folder / "pickled.pth")
    done("fit", folder / "one", folder / "two.zip", "--out", folder / "run", "-q", *TINY)
    return folder


# what they do


def test_help_has_examples():
    for command in ("fit", "evaluate", "predict", "accelerate"):
        assert f"v1fast {command} " in done(command, "--help").output.partition("Examples")[2]
        assert command in done("--help").output


def test_fit_says_what_it_does_and_then_that_it_is_done(folder, tmp_path):
    arguments = ("fit", folder / "one", "--out", tmp_path / "run", *TINY)
    first = done(*arguments)
    for words in ("Recording 'one': 24 trials", "epoch   2/2", f"Look at {tmp_path / 'run' / 'report.html'}"):
        assert words in first.stderr
    assert "one" in first.stdout
    assert "single trial" in first.stdout
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["state"] == "finished"
    assert run["sessions"]["one"]["source"] == str(folder / "one")
    second = done(*arguments)
    assert "this run is finished: nothing was done; another --out begins a new one" in second.stderr
    assert second.stdout == first.stdout
    assert "epoch" not in second.stderr


def test_quiet_prints_nothing_and_json_only_json(folder, tmp_path):
    quiet = done("fit", folder / "one", "--out", tmp_path / "run", "-q", *TINY)
    assert quiet.output == ""
    found = json.loads(done("fit", folder / "one", "--out", tmp_path / "run", "--json", *TINY).stdout)
    assert found["state"] == "unchanged"
    assert found["sessions"]["one"]["trials"] == 8
    assert done("evaluate", folder / "run", "-q").output == ""


def test_print_config_is_a_file_to_begin_with(tmp_path):
    text = done("fit", "--preset", "small", "--print-config", "--epochs", "4").stdout
    (tmp_path / "run.yaml").write_text(text)
    assert "epochs: 4" in text
    assert done("fit", "--config", tmp_path / "run.yaml", "--print-config").stdout == text


def test_without_an_option_it_is_the_baseline():
    text = done("fit", "--print-config").stdout
    assert "preset: sensorium\n" in text
    assert "hidden_channels: 64" in text


def test_a_note_says_what_is_left_out(folder, tmp_path):
    write_arrays(recording(cortex=None), tmp_path / "flat.npz")
    result = done("fit", tmp_path / "flat.npz", "--out", tmp_path / "run", *TINY)
    assert "Note: no cortex in flat: each neuron's position is learned by itself" in result.stderr


def test_evaluate_finds_the_recordings_of_the_run(folder, tmp_path):
    found = json.loads(done("evaluate", folder / "run", "--json").stdout)
    assert found == json.loads((folder / "run" / "metrics.json").read_text())
    table = done("evaluate", folder / "run", "--table", tmp_path / "neurons.csv")
    assert [line.split()[0] for line in table.stdout.splitlines()[3:6]] == ["one", "two", "all"]
    assert (tmp_path / "neurons.csv").read_bytes() == (folder / "run" / "neurons.csv").read_bytes()


def test_evaluate_other_data_and_tiers(folder):
    one = json.loads(done("evaluate", folder / "run", folder / "three.npz", "--session", "one", "--json").stdout)
    assert list(one["sessions"]) == ["three"]
    found = json.loads(done("evaluate", folder / "run", folder / "one", "--tier", "validation", "--json").stdout)
    assert found["sessions"]["one"]["tier"] == "validation"
    found = json.loads(
        done("evaluate", folder / "run", folder / "one", "--tier", "train", "--interval", "--json").stdout
    )
    low, high = found["sessions"]["one"]["single_trial_correlation"]["interval"]
    assert low < high


def test_predict_writes_an_archive(folder, tmp_path):
    out = tmp_path / "new" / "predictions.npz"
    said = done("predict", folder / "run", folder / "one", "--out", out).stdout
    assert said == f"{out}: predictions of 24 trials x 6 neurons\n"
    with np.load(out, allow_pickle=False) as arrays:
        assert set(arrays) == {"predictions", "responses", "trials", "image_ids", "tiers", "unit_ids"}
        whole = arrays["predictions"]
    np.save(tmp_path / "images.npy", recording().images[:5])
    done("predict", folder / "run", tmp_path / "images.npy", "--session", "one", "--out", out, "-q")
    with np.load(out) as arrays:
        np.testing.assert_array_equal(arrays["predictions"], whole[:5])
    found = json.loads(done("predict", folder / "run", folder / "one", "--tier", "test", "--out", out, "--json").stdout)
    assert (found["trials"], found["neurons"]) == (8, 6)


def test_accelerate_says_what_it_read_and_writes_it(folder, tmp_path):
    out = tmp_path / "new" / "model.safetensors"
    said = done("accelerate", folder / "released.pth", "--out", out).stdout
    for words in (
        "Stacked2dCore and FullGaussian2d",
        "neurons: a 7",
        "read off the checkpoint:",
        "image_shape: (36, 64)",
    ):
        assert words in said
    state = torch.load(folder / "released.pth")
    for name, value in FiringRateEncoder.load(out).state_dict().items():
        assert value.equal(state[name])
    again = done("accelerate", out).stdout
    assert "saved by v1fast: nothing is assumed" in again
    found = json.loads(done("accelerate", folder / "pooled.pth", "--readout", "pool_kern=3", "--json").stdout)
    assert found["assumed"]["readout pool_kern"] == 3
    assert found["neurons"] == {"a": 7}


def test_accelerate_times_a_step(folder):
    found = json.loads(done("accelerate", folder / "released.pth", "--speed", "--json").stdout)
    assert found["speed"]["shape"] == {"B": 32, "C": 4, "H": 32, "W": 60, "N": 7}
    assert found["speed"]["ratio"] > 0
    assert "only FullGaussian2d is timed here" in done("accelerate", folder / "pooled.pth", "--speed").stdout


# what goes wrong


def test_ctrl_c_leaves_a_model_and_says_how_to_go_on(folder, tmp_path, monkeypatch):
    real = EncodingModule.training_step

    def training_step(module, *arguments):
        if module.global_step == 3:
            raise KeyboardInterrupt
        return real(module, *arguments)

    arguments = ("fit", folder / "one", "--out", tmp_path / "run", *TINY)
    with monkeypatch.context() as patched:
        patched.setattr(EncodingModule, "training_step", training_step)
        result = v1fast(*arguments)
    assert result.exit_code == 130
    *_, last = result.stderr.splitlines()
    model = tmp_path / "run" / "model.safetensors"
    assert last == f"v1fast: interrupted; {model} holds the best so far; the same command goes on"
    assert "single trial" in done("evaluate", tmp_path / "run").stdout
    result = done(*arguments)
    assert "epoch   1/2" not in result.stderr
    assert "epoch   2/2" in result.stderr


def test_ctrl_c_before_the_first_epoch(folder, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(EncodingModule, "training_step", interrupt)
    result = v1fast("fit", folder / "one", "--out", tmp_path / "run", *TINY)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "v1fast: interrupted; the same command begins again"
    result = v1fast("evaluate", tmp_path / "run")
    assert result.exit_code == 2
    assert "no model" in result.stderr


FIT, EVALUATE, PREDICT, ACCELERATE = "fit", "evaluate", "predict", "accelerate"
MISTAKES = [
    ((FIT,), "DATA: want at least one recording, got none"),
    ((FIT, "nowhere"), "nowhere: No such file"),
    ((FIT, "empty"), "empty: want a Sensorium folder"),
    ((FIT, "text.txt"), "text.txt: want a Sensorium folder"),
    ((FIT, "one", "one"), "want recordings of different names"),
    ((FIT, "movie.npz"), "movie: want a recording of images for Stacked2dCore, got a video: core=Factorized3dCore is"),
    ((FIT, "untrained.npz"), "want training trials to normalise by"),
    ((FIT, "one", "--preset", "smal"), "there is no preset 'smal'; the nearest is small"),
    ((FIT, "one", "--config", "nowhere.yaml"), "nowhere.yaml: No such file"),
    ((FIT, "one", "--config", "one"), "one: cannot be read: it is a directory"),
    (
        (FIT, "one", "--set", "core.layrs=3"),
        "--set core.layrs=3: Stacked2dCore has no argument 'layrs'; the nearest is",
    ),
    ((FIT, "one", "--set", "core.layers"), "core.layers: want key=value"),
    ((FIT, "one", "--epochs", "0"), "training.epochs: want at least 1, got 0"),
    ((FIT, "one", "--devices", "0"), "machine.devices: want at least 1, got 0"),
    ((FIT, "one", "--num-nodes", "0"), "machine.num_nodes: want at least 1, got 0"),
    (
        (FIT, "one", "--devices", "4", "--num-nodes", "2", "--batch-size", "6"),
        "training.batch_size: want at least 8, a trial for each of the 4 x 2 ranks, got 6",
    ),
    ((FIT, "one", "--device", "tpu"), "machine.device: want one of auto, cpu, cuda, mps, got 'tpu'"),
    ((FIT, "one", "--device", "cuda"), "device: cuda is not available to this torch"),
    ((EVALUATE, "run", "--device", "tpu"), "device: want one of auto, cpu, cuda, mps, got 'tpu'"),
    ((FIT, "one", "--set", "data.format=mat"), "format: want one of sensorium"),
    ((FIT, "one", "--set", "core.input_kern=99"), "kernels do not fit images of 8 x 12 pixels"),
    ((FIT, "one", "--out", "run", "--preset", "small"), "this run has core.layers = 1, and 2 is asked for"),
    ((FIT, "one", "--out", "text.txt"), "text.txt: want a folder, got a file"),
    ((EVALUATE, "nowhere"), "nowhere/run.json: No such file"),
    ((EVALUATE, "empty"), "empty/run.json: No such file"),
    ((EVALUATE, "run", "nowhere"), "nowhere: No such file"),
    ((EVALUATE, "run", "three.npz"), "want one of the model's sessions one, two, got three; --session NAME"),
    ((EVALUATE, "run", "three.npz", "--session", "four"), "want one of the model's sessions one, two, got four"),
    ((EVALUATE, "run", "one", "two.zip", "--session", "one"), "--session: want it with one recording, got 2"),
    ((EVALUATE, "run", "fewer.npz", "--session", "one"), "want the 6 neurons of session one, got 3"),
    ((EVALUATE, "run", "--tier", "final"), "want trials of the tier 'final', got test, train, validation"),
    ((EVALUATE, "run", "--table", "neurons.xls"), "want a name that ends in .csv or .parquet"),
    ((PREDICT, "run", "one", "--out", "x.npy"), "--out: want a name that ends in .npz"),
    ((PREDICT, "run", "images.npy"), "images.npy: want --session, one of one, two"),
    ((PREDICT, "run", "images.npy", "--session", "four"), "--session: want one of one, two, got four"),
    ((PREDICT, "run", "flat.npy", "--session", "one"), "want images [T, H, W] or [T, C, H, W], got (5,)"),
    ((PREDICT, "run", "objects.npy", "--session", "one"), "objects.npy: cannot be read"),
    ((ACCELERATE, "nowhere.pth"), "nowhere.pth: No such file"),
    ((ACCELERATE, "text.txt"), "text.txt: cannot be read"),
    ((ACCELERATE, "pickled.pth"), "is a pickled object, which runs code when it is read: save its state_dict"),
    ((ACCELERATE, "released.pth", "--out", "x.pth"), "--out: want a name that ends in .safetensors"),
    ((ACCELERATE, "released.pth", "--core", "pad_inptu=true"), "'pad_inptu'; the nearest is pad_input"),
    ((ACCELERATE, "released.pth", "--core", "pad_input"), "pad_input: want key=value"),
    ((ACCELERATE, "released.pth", "--core", "hidden_channels=5"), "released.pth: does not fit"),
    ((ACCELERATE, "released.pth", "--image-shape", "4", "4"), "image_shape: want images that the core can read"),
    (
        (FIT, "one", *TINY, *("--set", "readout.grid_mean_predictor=null", "--set", "readout.residual_reg_weight=1")),
        "residual_reg_weight: want it beside grid_mean_predictor",
    ),
    ((ACCELERATE, "released.pth", "--readout", "residual_reg_weight=1"), "residual_reg_weight: want it beside grid"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=lambda value: value if isinstance(value, str) else None)
def test_a_mistake_ends_in_one_line(folder, monkeypatch, arguments, said):
    monkeypatch.chdir(folder)
    np.save("images.npy", recording().images[:2])
    np.save("flat.npy", np.zeros(5))
    np.save("objects.npy", np.array([{}, None]), allow_pickle=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = (folder / "run" / "run.json").read_bytes()
    result = v1fast(*arguments)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Recording ")]
    assert result.exit_code == 2, (result.exit_code, result.stderr, result.exception)
    assert len(lines) == 1, lines
    assert lines[0].startswith("v1fast: ")
    assert said in lines[0]
    assert result.stdout == ""
    assert (folder / "run" / "run.json").read_bytes() == before
    assert not (folder / "out" / "fit").exists()


def test_a_loss_that_is_not_finite_ends_in_one_line(folder, tmp_path):
    result = v1fast("fit", folder / "one", "--out", tmp_path, *TINY, "-q", "--learning-rate", "1e30")
    assert result.exit_code == 2, result.exception
    (line,) = result.stderr.splitlines()
    assert line.startswith("v1fast: the loss of session one is not finite at step ")
    assert line.endswith(": the learning rate may be too high: begin anew with a lower one")


def test_mistakes_of_a_file_have_a_line_each(folder, tmp_path):
    (tmp_path / "run.yaml").write_text("core: {layrs: 3}\nseed: no\nloss: Poisson\n")
    result = v1fast("fit", folder / "one", "--config", tmp_path / "run.yaml")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 3
    assert all(line.startswith(f"v1fast: {tmp_path / 'run.yaml'}: ") for line in result.stderr.splitlines())


def test_damage_in_a_run_is_named(folder, tmp_path):
    run = tmp_path / "run"
    for name, content in (("run.json", "{"), ("config.yaml", "core: {layers: x}"), ("model.safetensors", "cut")):
        shutil.copytree(folder / "run", run)
        (run / name).write_text(content)
        result = v1fast("evaluate", run)
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert f"v1fast: {run / name}" in result.stderr
        shutil.rmtree(run)
    shutil.copytree(folder / "run", run)
    kept = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(kept | {"format": 99}))
    assert "want format 1 or less, got 99" in v1fast("evaluate", run).stderr


@pytest.mark.parametrize("module", ["yaml", "lightning", "torchmetrics", "safetensors", "jinja2"])
def test_without_its_extra(monkeypatch, module):
    import importlib.util

    from v1fast.cli import _common

    real = importlib.util.find_spec
    monkeypatch.setattr(_common, "find_spec", lambda name: None if name == module else real(name))
    result = v1fast("fit", "one")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert module in result.stderr
    assert 'pip install "v1fast[fit]"' in result.stderr
