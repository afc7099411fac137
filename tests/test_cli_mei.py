"""v1fast mei: what it writes, what it says, and each mistake of a user."""

import json
import shutil

import numpy as np
import pytest
import torch

for _module in ("yaml", "lightning", "torchmetrics", "safetensors"):
    pytest.importorskip(_module)

from commands import done, v1fast  # noqa: E402
from recorded import SHAPE, recording  # noqa: E402

from v1fast.data import write_arrays  # noqa: E402
from v1fast.models import FiringRateEncoder  # noqa: E402

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]
SETTINGS = ("core.layers=1", "core.hidden_channels=3", "core.input_kern=3", "data.behavior_as_channels=true")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of one recording and of two, with behaviour in the images, a shifter and a modulator; what they lack."""
    folder = tmp_path_factory.mktemp("mei")
    write_arrays(recording(name="one"), folder / "one.npz")
    write_arrays(recording(seed=1, neurons=4, name="two"), folder / "two.npz")
    write_arrays(recording(seed=2, name="one", neurons=3), folder / "fewer.npz")
    write_arrays(recording(name="one", tiers=["test"] * 24), folder / "untrained.npz")
    options = ["--epochs", "2", "--batch-size", "6", "--device", "cpu", "-q"]
    for text in (*SETTINGS, "shifter=MLPShifter", "modulator=MLPModulator"):
        options += ["--set", text]
    done("fit", folder / "one.npz", "--out", folder / "run", *options)
    done("fit", folder / "one.npz", folder / "two.npz", "--out", folder / "both", *options)
    shutil.copytree(folder / "run", folder / "tableless")
    (folder / "tableless" / "neurons.csv").unlink()
    shutil.copytree(folder / "run", folder / "modelless")
    (folder / "modelless" / "model.safetensors").unlink()
    shutil.copytree(folder / "run", folder / "damaged")
    (folder / "damaged" / "neurons.csv").write_text("session,unit\none,10\n")
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("no folder")
    return folder


def test_help_has_examples():
    assert "v1fast mei out/fit --neurons 0-23" in done("mei", "--help").output.partition("Examples")[2]
    assert "Find the images that excite a fitted model's neurons most" in done("--help").output


def test_a_run_gets_images_and_fields(folder, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "mei"
    arguments = (
        "mei",
        folder / "run",
        "--neurons",
        "4,0-1",
        "--steps",
        "5",
        "--norm",
        "3",
        "--fields",
        "7",
        "--out",
        out,
    )
    said = done(*arguments)
    files = [out / name for name in ("mei.npz", "mei.png", "fields.npz", "fields.png")]
    assert said.stdout == f"Most exciting inputs of 3 neurons: {', '.join(map(str, files))}\n"
    with np.load(files[0], allow_pickle=False) as arrays:
        assert set(arrays) == {"images", "rates", "background_rates", "neurons"}
        assert arrays["images"].shape == (3, *SHAPE)  # without the channels of behaviour
        assert arrays["neurons"].tolist() == [4, 0, 1]
        np.testing.assert_allclose(np.sqrt((arrays["images"] ** 2).sum((1, 2, 3))), 3, rtol=1e-5)
        assert (arrays["rates"] >= arrays["background_rates"]).all()
        images, rates = arrays["images"], arrays["rates"]
    with np.load(files[2], allow_pickle=False) as arrays:
        assert set(arrays) == {"mean", "rms", "neurons"}
        assert arrays["mean"].shape == (3, *SHAPE)
        assert (arrays["rms"] ** 2 >= arrays["mean"] ** 2 * (1 - 1e-5)).all()
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (files[1], files[3]))
    # the rates are those of the saved model, the animal in the mean state of its training trials
    encoder, trials = FiringRateEncoder.load(folder / "run" / "model.safetensors"), recording()
    by, chosen = encoder.normalization["one"], trials.in_tier("train")
    behavior = (trials.behavior[chosen] * np.asarray(by["behavior"]["factor"])).mean(0)
    pupil = ((trials.pupil_center[chosen] - by["pupil_center"]["mean"]) / by["pupil_center"]["std"]).mean(0)
    state = torch.tensor(np.broadcast_to(behavior, (3, 3)).copy()).float()
    inputs = torch.cat([torch.from_numpy(images), state[:, :, None, None].expand(-1, -1, *SHAPE[1:])], 1)
    eye = torch.tensor(np.broadcast_to(pupil, (3, 2)).copy()).float()
    with torch.no_grad():
        found = encoder(inputs, data_key="one", behavior=state, pupil_center=eye)
    np.testing.assert_allclose(found[[0, 1, 2], [4, 0, 1]].numpy(), rates, rtol=1e-4)
    before = files[0].read_bytes()
    done(*arguments)
    assert files[0].read_bytes() == before  # the same seed


def test_the_folder_is_the_runs_and_the_best_neurons_come_first(folder, tmp_path):
    run = shutil.copytree(folder / "both", tmp_path / "run")
    found = json.loads(done("mei", run, "--session", "two", "--neurons", "best:2", "--steps", "2", "--json").stdout)
    assert found["neurons"] == 2
    assert found["undefined"] == 0
    assert found["files"][0] == str(run / "mei" / "mei.npz")
    rows = [line.split(",") for line in (run / "neurons.csv").read_text().splitlines()]
    column = rows[0].index("single_trial_correlation")
    values = np.array([float(row[column]) for row in rows[1:] if row[0] == "two"])
    with np.load(run / "mei" / "mei.npz") as arrays:
        assert arrays["neurons"].tolist() == np.argsort(-values)[:2].tolist()
    assert done("mei", run, "--session", "one", "--neurons", "0", "--steps", "1", "-q").output == ""
    everyone = done("mei", run, "--session", "one", "--neurons", "all", "--steps", "1", "--range", "-1", "1").stdout
    assert everyone.startswith("Most exciting inputs of 6 neurons: ")
    with np.load(run / "mei" / "mei.npz") as arrays:
        assert np.abs(arrays["images"]).max() <= 1


def test_without_matplotlib_there_are_no_pictures(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("v1fast.runs.insilico.find_spec", lambda _: None)
    done("mei", folder / "run", "--neurons", "0", "--steps", "1", "--fields", "3", "--out", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["fields.npz", "mei.npz"]


NEURONS = "--neurons: want such as 0-9,12, all, or best:24, of 6 neurons, got "
MISTAKES = [
    (("nowhere",), "nowhere/run.json: No such file"),
    (("empty",), "empty/run.json: No such file"),
    (("text.txt",), "text.txt"),
    (("modelless",), "no model"),
    (("run", "nowhere.npz"), "nowhere.npz: No such file"),
    (("run", "two.npz"), "two.npz: want one of the model's sessions one, got two"),
    (("run", "fewer.npz", "--session", "one"), "want the 6 neurons of session one, got 3"),
    (("run", "untrained.npz", "--session", "one"), "want trials of the tier 'train', got none"),
    (("both",), "--session: want one of one, two, got none"),
    (("both", "--session", "three"), "--session: want one of one, two, got three"),
    (("run", "--session", "two"), "want one of the model's sessions one, got two"),
    (("run", "--neurons", "6"), f"{NEURONS}6"),
    (("run", "--neurons", "2-"), f"{NEURONS}2-"),
    (("run", "--neurons", "3-1"), f"{NEURONS}3-1"),
    (("run", "--neurons", "1,3-1"), f"{NEURONS}1,3-1"),
    (("run", "--neurons", ""), NEURONS.strip()),
    (("run", "--neurons", "-1"), f"{NEURONS}-1"),
    (("run", "--neurons", "best:0"), f"{NEURONS}best:0"),
    (("run", "--neurons", "worst:3"), f"{NEURONS}worst:3"),
    (("tableless",), "neurons.csv: No such file"),
    (("damaged",), "neurons.csv: "),
    (("run", "--norm", "0"), "norm: want > 0, got 0.0"),
    (("run", "--norm", "nan"), "norm: want > 0, got nan"),
    (("run", "--range", "0.5", "1"), "value_range: want lowest <= background (0.0) <= highest"),
    (("run", "--range", "1", "-1"), "value_range: want lowest <= background (0.0) <= highest"),
    (("run", "--device", "tpu"), "device: want one of auto, cpu, cuda, mps, got 'tpu'"),
    (("run", "--device", "cuda"), "device: cuda is not available to this torch"),
    (("run", "--steps", "1", "--out", "text.txt"), "text.txt"),
]


@pytest.mark.parametrize(
    ("arguments", "said"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, tuple) else None
)
def test_a_mistake_ends_in_one_line(folder, monkeypatch, arguments, said):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = v1fast("mei", *arguments)
    lines = result.stderr.splitlines()
    assert result.exit_code in (1, 2), (result.exit_code, result.stderr, result.exception)
    assert len(lines) == 1, lines
    assert lines[0].startswith("v1fast: ")
    assert said in lines[0]
    assert result.stdout == ""
    assert not (folder / "run" / "mei").exists()


@pytest.mark.parametrize("arguments", [("--steps", "0"), ("--restarts", "0"), ("--blur", "-1"), ()])
def test_usage_is_said_by_typer(folder, arguments):
    result = v1fast("mei", *([folder / "run", *arguments] if arguments else []))
    assert result.exit_code == 2
    assert "Usage: v1fast mei" in result.stderr
