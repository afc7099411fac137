"""Runs: configuration, building, the folder, evaluation, report."""

import base64
import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("lightning")
pytest.importorskip("torchmetrics")
pytest.importorskip("safetensors")

from recorded import recording, video

from v1fast import metrics
from v1fast.models import Factorized3dCore, FiringRateEncoder, MLPShifter, SE2dCore
from v1fast.models.geometry import input_grid, lost_frames
from v1fast.readouts import FullFactorized2d, FullGaussian2d
from v1fast.runs import FAMILIES, PRESETS, RunFolder, building, configure, fit_recordings, judge_all, summary
from v1fast.runs.configuration import ConfigurationErrors, difference, options_of, write_yaml
from v1fast.runs.insilico import experiment
from v1fast.runs.prediction import predict_images, predict_recording
from v1fast.training import EncodingModule

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = (
    *("core.layers=1", "core.hidden_channels=3", "core.input_kern=3"),
    *("training.epochs=3", "training.batch_size=6", "machine.device=cpu", "schedule.patience=9"),
)


def tiny(*settings, preset="sensorium"):
    return configure(preset, settings=[*TINY, *settings])


def recordings(**others):
    return {"a": recording(name="a", **others), "b": recording(name="b", seed=1, neurons=4, **others)}


def run(out, configuration=None, data=None):
    return fit_recordings(data or recordings(), configuration or tiny(), out, show=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that nothing changes."""
    return run(tmp_path_factory.mktemp("run") / "tiny").folder


@pytest.fixture
def copied(finished, tmp_path):
    return RunFolder(shutil.copytree(finished.path, tmp_path / "run"))


def sessions(image_shape=(1, 36, 64), neurons=5, **others):
    cortex = np.random.default_rng(0).uniform(0, 800, (neurons, 2))
    fields = {"cortex": cortex, "inputs": {"behavior": 3, "pupil_center": 2}, **others}
    return {"a": building.Session(image_shape, torch.ones(neurons), **fields)}


# configuration


@pytest.mark.parametrize("preset", PRESETS)
def test_a_written_configuration_is_read_again(preset, tmp_path):
    made = configure(preset, settings=["training.learning_rates={sigma: 1e-3}", "core.elu_shift=[0, 1]"])
    (tmp_path / "run.yaml").write_text(str(made))
    assert configure(file=tmp_path / "run.yaml") == made
    assert yaml.safe_load(str(made)) == made.tree()
    assert made.training.learning_rates == {"sigma": 0.001}
    assert made.core.options["elu_shift"] == (0.0, 1.0)


def test_settings_lie_on_the_file_and_that_on_the_preset(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "preset: lurz2020\ntraining: {epochs: 7, batch_size: 32}\nreadout: PointPooled2d\n"
    )
    made = configure(file=tmp_path / "run.yaml", settings=["training.batch_size=16"], overrides={"seed": 3})
    assert (made.preset, made.seed, made.training.epochs, made.training.batch_size) == ("lurz2020", 3, 7, 16)
    assert made.training.learning_rate == 0.005  # the preset's
    assert made.readout.name == "PointPooled2d"


def test_of_another_class_the_preset_says_what_both_have():
    readout = configure(settings=["readout=FullFactorized2d"]).readout
    assert readout.options == {"bias": True}
    core = configure(settings=["core=SE2dCore", "core.n_se_blocks=2"]).core
    assert core.options["hidden_channels"] == 64
    assert core.options["n_se_blocks"] == 2


def test_what_is_wrong_is_said_line_by_line(tmp_path):
    """Of a file, every mistake at once: where it stands, the key, what was wanted."""
    path = tmp_path / "run.yaml"
    path.write_text(
        "core: {layrs: 3, input_kern: big}\ntraning: {epochs: 3}\nreadout: {name: FullGausian2d}\nseed: 1.5\n"
    )
    with pytest.raises(ConfigurationErrors) as caught:
        configure(file=path)
    assert sorted(caught.value.problems) == [
        f"{path}: core.input_kern: want a whole number or a list (2 of them: a whole number), got 'big'",
        f"{path}: core.layrs: Stacked2dCore has no argument 'layrs'; the nearest is layers",
        f"{path}: readout.name: there is no readout 'FullGausian2d'; the nearest is FullGaussian2d",
        f"{path}: seed: want a whole number, got 1.5",
        f"{path}: traning: there is no key 'traning'; the nearest is training",
    ]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("core.layers=many", "core.layers=many: want a whole number, got 'many'"),
        ("core.layers=true", "want a whole number, got True"),
        ("training.epochs=1e3", "want a whole number, got 1000.0"),
        ("training.epochs=0", "want at least 1, got 0"),
        ("training.learning_rate=-1", "want a number above 0, got -1"),
        ("training.learnin_rate=1", "there is no key 'learnin_rate'; the nearest is learning_rate"),
        ("training.precision=half", "want one of 32-true, 64-true, bf16-mixed, 16-mixed, got 'half'"),
        ("training.learning_rates={sigma: x}", "want a number, got 'x'"),
        ("training=3", "want a section of keys and values, got 3"),
        ("readout.gauss_type=ful", "want one of full, uncorrelated, isotropic, got 'ful'"),
        ("readout.grid_mean_predictor.hiden_layers=1", "'hiden_layers'; the nearest is hidden_layers"),
        ("readout.grid_mean_predictor={final_tanh: 3}", "want true or false, got 3"),
        ("readout.source_grid=[1]", "FullGaussian2d has no argument 'source_grid'"),
        ("readout=Pooled", "there is no readout 'Pooled'; the nearest is"),
        ("readout=GaussianMaskReadout", "there is no readout 'GaussianMaskReadout'"),  # of videos
        ("core=null", "want one of Stacked2dCore"),
        ("core=TransferLearningCore", "core.tl_model_name: TransferLearningCore needs it: want text"),
        ("shifter.layers=3", "MLPShifter has no argument 'layers'; the nearest is shift_layers"),
        ("optimizer=Adan", "there is no optimizer 'Adan'; the nearest is Adam"),
        ("schedule.patence=2", "EarlyStopping has no argument 'patence'; the nearest is patience"),
        ("schedule._best=2", "EarlyStopping has no argument '_best'"),
        ("data.normalize=[image]", "there is no field 'image'; the nearest is images"),
        ("data.scale=2", "want a number in (0, 1], got 2"),
        ("seed=-1", "want at least 0, got -1"),
        ("machine.workers=-1", "want at least 0, got -1"),
        ("machine.devices=0", "want at least 1, got 0"),
        ("machine.devices=auto", "want a whole number, got 'auto'"),
        ("machine.num_nodes=0", "want at least 1, got 0"),
        (
            "machine.devices=129",
            "training.batch_size: want at least 129, a trial for each of the 129 x 1 ranks, got 128",
        ),
        ("preset=small2", "there is no preset 'small2'; the nearest is small"),
        ("nonsense", "nonsense: want key=value, such as core.layers=3"),
        ("=3", "want key=value"),
        ("core.layers=[1", "want a value of YAML"),
        ("zzz=1", "there is no key 'zzz'; there are core, data, encoder"),
    ],
)
def test_mistakes_in_a_setting(setting, said):
    with pytest.raises(ConfigurationErrors, match=re.escape(said)):
        configure(settings=[setting])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("core: {layers: 3\n", "run.yaml: cannot be read"),
        ("seed: 1\nseed: 2\n", "seed stands twice"),
        ("- 1\n", "want keys and values, got list"),
        ("!!python/object:os.system {}\n", "cannot be read"),
        ("\x00", "cannot be read"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, text, said):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)):
        configure(file=tmp_path / "run.yaml")


def test_the_first_difference_is_named():
    assert difference(tiny(), tiny("training.epochs=4")) == ("training.epochs", 3, 4)
    assert difference(tiny(), tiny("readout=PointPooled2d"))[0] == "readout.name"
    assert difference(tiny(), tiny("machine.workers=0", "machine.devices=2", "machine.num_nodes=3")) is None


# building

OTHERS = ("TransferLearningCore", *building.VIDEO_CORES)


@pytest.mark.parametrize("name", FAMILIES["readout"])
@pytest.mark.filterwarnings("ignore:Gaussian2d is deprecated")
def test_every_readout_can_be_built_from_its_name(name):
    made = building.build(tiny(f"readout={name}"), sessions((1, 16, 20)))
    assert type(made.readout["a"]) is FAMILIES["readout"][name]
    rates = made.eval()(torch.randn(2, 1, 16, 20), data_key="a")
    assert rates.shape == (2, 5)
    assert rates.isfinite().all()


@pytest.mark.parametrize("name", [name for name in FAMILIES["core"] if name not in OTHERS])
def test_every_core_can_be_built_from_its_name(name):
    settings = [text for text in TINY if name != "LinearNonlinearCore" or text != "core.layers=1"]
    made = building.build(configure("sensorium", settings=[*settings, f"core={name}"]), sessions((2, 16, 20)))
    assert type(made.core) is FAMILIES["core"][name]
    assert made.eval()(torch.randn(2, 2, 16, 20), data_key="a").isfinite().all()


def test_the_default_is_the_sensorium_baseline():
    """Maps, kernels, penalties, predictor and schedule as published (Willeke et al., arXiv:2206.08666)."""
    configuration = configure()
    made = building.build(configuration, sessions())
    readout = made.readout["a"]
    assert readout.in_shape == (64, 28, 56)
    assert [tuple(p.shape) for p in readout.mu_transform.parameters()] == [(30, 2), (30,), (2, 30), (2,)]
    assert (made.core.gamma_input, readout.feature_reg_weight) == (6.3831, 0.0076)
    assert made.shifter is None
    training, schedule = configuration.training, building.schedule_of(configuration)
    assert (training.batch_size, training.learning_rate, training.epochs) == (128, 0.009, 200)
    assert (schedule.patience, schedule.lr_decay_steps, schedule.factor, schedule.min_lr) == (5, 4, 0.3, 1e-4)
    plus = building.build(configure("sensorium+"), sessions((4, 36, 64)))
    assert isinstance(plus.shifter, MLPShifter)
    assert [tuple(p.shape) for p in plus.shifter["a"].parameters()] == [(5, 2), (5,), (5, 5), (5,), (2, 5), (2,)]
    assert building.build(configure("lurz2020"), sessions()).readout["a"].in_shape == (64, 22, 50)


@pytest.mark.real_data
def test_the_released_baseline_is_read_by_the_default(real_data):
    state = torch.load(real_data / "sensorium_mouse_v1/sensorium_sota_model.pth", map_location="cpu", weights_only=True)
    name = "26872-17-20"
    made = building.build(configure(), {name: sessions(neurons=7776)["a"]})
    made.load_state_dict(state)


def test_sensorium_images_are_read_at_a_quarter():
    data = {"a": recording(images=np.zeros((20, 1, 144, 256), np.uint8))}
    assert building.preparation_of(configure(), data).scale == 0.25
    assert building.preparation_of(configure(settings=["data.scale=.5"]), data).scale == 0.5
    assert building.preparation_of(configure(), recordings()).scale == 1


def test_what_a_recording_lacks_is_left_out_of_a_preset_and_said():
    data = {"a": recording(name="a", cortex=None, pupil_center=None, behavior=None), "b": recording(name="b")}
    made, notes = building.adapted(configure("sensorium+"), data)
    assert made.readout.options["grid_mean_predictor"] is None
    assert made.shifter is None
    assert not made.data.behavior_as_channels
    assert [note.partition(":")[0] for note in notes] == [
        f"no {w} in a" for w in ("cortex", "pupil_center", "behavior")
    ]
    made, notes = building.adapted(configure("sensorium+"), {"b": data["b"]})
    assert made == configure("sensorium+")
    assert notes == []


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("readout.grid_mean_predictor.hidden_layers=2", "cortex"),
        ("shifter=MLPShifter", "pupil_center"),
        ("modulator=MLPModulator", "behavior"),
        ("data.behavior_as_channels=true", "behavior"),
        ("data.pupil_as_channels=true", "pupil_center"),
    ],
)
def test_what_is_asked_for_by_name_has_to_be_there(setting, field):
    data = {"a": recording(name="a", **{field: None})}
    with pytest.raises(ValueError, match=f"want {field} in each recording, got none in a"):
        building.adapted(configure(settings=[setting]), data)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["core.input_kern=99"], "core: its kernels do not fit images of 8 x 12 pixels"),
        (["core.hidden_channels=[3, 3]"], "core: Stacked2dCore: hidden_channels: want one value or a list of 1"),
        (["readout.init_sigma=-1"], "readout: FullGaussian2d: init_sigma: want a positive value, got -1"),
        (["readout.share_transform=true", "readout.grid_mean_predictor=null"], "readout.share_transform"),
        (["optimizer.weight_decay=-1"], "optimizer: Adam: Invalid weight_decay value: -1"),
        (["schedule.patience=0"], "schedule: EarlyStopping: patience: want at least 1, got 0"),
        (
            ["training.learning_rates={sgma: .1}"],
            "learning_rates: want ends of the names of trained parameters, got sgma",
        ),
    ],
)
def test_arguments_out_of_range(tmp_path, settings, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        run(tmp_path / "out", tiny(*settings))


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    several = building.trainer_options(tiny("machine.device=cuda", "machine.devices=2", "machine.num_nodes=3"))
    assert several == {"accelerator": "cuda", "devices": 2, "num_nodes": 3}
    with pytest.raises(ValueError, match=r"^machine\.devices: want at most 2 of cuda, as there are, got 4$"):
        building.trainer_options(tiny("machine.device=cuda", "machine.devices=4"))


# a run


FILES = {"config.yaml", "run.json", "metrics.json", "metrics.csv", "neurons.csv", "model.safetensors", "report.html"}


def test_a_run_leaves_all_that_it_did(finished):
    names = {path.name for path in finished.path.iterdir()}
    assert names >= FILES | {"last.ckpt"}
    assert not [name for name in names if name.startswith(".")]
    kept = finished.read()
    assert kept["state"] == "finished"
    assert (kept["epochs"], kept["seed"], kept["notes"]) == (3, 0, [])
    assert kept["sessions"]["b"]["trials"] == {"train": 12, "validation": 4, "test": 8}
    assert {"v1fast", "torch", "python"} <= set(kept["versions"])
    assert difference(finished.configuration(), tiny()) is None
    lines = (finished.path / "neurons.csv").read_text().splitlines()
    assert len(lines) == 1 + 6 + 4
    assert lines[0].startswith("session,unit,area,layer,single_trial_correlation")
    assert lines[7].startswith("b,10,V1,L2/3,")


def test_metrics_are_those_of_the_model_that_was_saved(finished):
    """By the loaded encoder, and by hand from normalised images and responses."""
    encoder = FiringRateEncoder.load(finished.model)
    kept = json.loads((finished.path / "metrics.json").read_text())
    again = summary(judge_all(encoder, recordings(), finished.preparation()))
    assert json.loads(json.dumps(kept)) == json.loads(json.dumps(again))
    one, by = recordings()["a"], encoder.normalization["a"]
    trials = one.in_tier("test")
    images = (one.images[one.image_index[trials]] - by["images"]["mean"]) / by["images"]["std"]
    with torch.no_grad():
        rates = encoder(torch.tensor(images, dtype=torch.float32), data_key="a")
    responses = torch.tensor(one.responses[trials] * np.asarray(by["responses"]["factor"]))
    want = metrics.feve(responses, rates, one.image_numbers[trials]).mean
    assert kept["sessions"]["a"]["feve"]["mean"] == pytest.approx(want, rel=1e-4)
    assert kept["sessions"]["a"]["repeated_images"] == 4


def test_predictions_are_in_the_units_of_the_responses(finished, tmp_path):
    encoder, one = finished.encoder(), recordings()["a"]
    got = predict_recording(encoder, one, finished.preparation())
    np.testing.assert_allclose(got["responses"], one.responses, rtol=1e-5)
    assert got["predictions"].shape == one.responses.shape
    np.testing.assert_array_equal(got["tiers"], one.tiers)
    test = predict_recording(encoder, one, finished.preparation(), tier="test")
    np.testing.assert_array_equal(test["predictions"], got["predictions"][test["trials"]])
    np.save(tmp_path / "images.npy", one.images[one.image_index, 0])
    alone = predict_images(encoder, tmp_path / "images.npy", finished.preparation(), "a")
    np.testing.assert_array_equal(alone["predictions"], got["predictions"])


class _Stop:
    """Ctrl-C, or a power cut, at a step of training."""

    def __init__(self, monkeypatch, step, error):
        real = EncodingModule.training_step

        def training_step(module, *arguments):
            if module.global_step == step and not self.stopped:
                self.stopped = True
                raise error
            return real(module, *arguments)

        self.stopped = False
        monkeypatch.setattr(EncodingModule, "training_step", training_step)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("power cut")], ids=repr)
def test_a_run_goes_on_where_it_was_stopped(finished, tmp_path, monkeypatch, error):
    stop = _Stop(monkeypatch, 5, error)
    if isinstance(error, KeyboardInterrupt):
        stopped = run(tmp_path / "out")
        assert stopped.state == "interrupted"
        assert stopped.folder.read()["state"] == "interrupted"
        FiringRateEncoder.load(stopped.folder.model)  # the best so far
    else:
        with pytest.raises(RuntimeError, match="power cut"):
            run(tmp_path / "out")
        with pytest.raises(FileNotFoundError, match="no model yet: the same command of v1fast fit goes on"):
            RunFolder(tmp_path / "out").encoder()
    assert stop.stopped
    outcome = run(tmp_path / "out")
    assert outcome.state == "finished"
    for name in ("model.safetensors", "metrics.json", "metrics.csv", "neurons.csv", "config.yaml"):
        assert (tmp_path / "out" / name).read_bytes() == (finished.path / name).read_bytes(), name


def test_a_finished_run_is_left_alone(copied):
    before = {path.name: path.stat().st_mtime_ns for path in copied.path.iterdir()}
    outcome = run(copied.path)
    assert outcome.state == "unchanged"
    assert outcome.metrics == json.loads((copied.path / "metrics.json").read_text())
    assert {path.name: path.stat().st_mtime_ns for path in copied.path.iterdir()} == before


@pytest.mark.parametrize(
    ("settings", "change", "said"),
    [
        (["training.epochs=4"], {}, "this run has training.epochs = 3, and 4 is asked for"),
        (["readout=DenseReadout"], {}, 'this run has readout.name = "FullGaussian2d", and "DenseReadout" is asked for'),
        (["shifter=MLPShifter"], {}, 'this run has shifter.name = nothing, and "MLPShifter" is asked for'),
        ([], {"seed": 7}, "a had responses sha256"),
        ([], {"trials": 26}, "a had trials {'train': 12"),
    ],
)
def test_another_run_in_the_folder_is_refused(finished, settings, change, said):
    before = (finished.path / "run.json").read_bytes()
    data = {"a": recording(name="a", **change), "b": recordings()["b"]}
    with pytest.raises(ValueError, match=re.escape(said)):
        run(finished.path, tiny(*settings), data)
    with pytest.raises(ValueError, match="this run is of a, b, got a: choose another folder by --out"):
        run(finished.path, data={"a": recordings()["a"]})
    assert (finished.path / "run.json").read_bytes() == before


def test_files_of_others_are_not_overwritten(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"holds last\.ckpt that v1fast fit did not write: choose another folder"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_fails_before_it_begins_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="kernels do not fit"):
        run(tmp_path / "out", tiny("core.input_kern=99"))
    assert not (tmp_path / "out").exists()


def test_two_processes_do_not_fit_in_one_folder(tmp_path):
    with RunFolder(tmp_path).alone(), pytest.raises(BlockingIOError, match="another process fits in this folder"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"a": recording(tiers=["test"] * 24)}, "want training trials to normalise by, got none"),
        ({"a": recording(responses=-np.ones((24, 6)))}, "does not vary"),
        ({"a": recording(responses=np.random.default_rng(0).normal(size=(24, 6)))}, "want finite values >= 0"),
        ({"a": video()}, "want a recording of images for Stacked2dCore, got a video: core=Factorized3dCore is for it"),
        (
            {"a": recording(), "b": recording(images=np.random.default_rng(0).random((20, 2, 8, 12)))},
            "same number of channels",
        ),
    ],
)
def test_recordings_that_cannot_be_fitted(tmp_path, data, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        run(tmp_path / "out", data=data)


def test_trials_with_missing_responses_can_be_left_out(tmp_path):
    responses = recording().responses.copy()
    responses[3, 1] = np.nan
    data = {"a": recording(responses=responses)}
    with pytest.raises(ValueError, match="want finite values >= 0"):
        run(tmp_path / "out", data=data)
    assert run(tmp_path / "out2", tiny("data.drop_undefined=true"), data).state == "finished"


def test_behaviour_and_eye_position_take_part(tmp_path):
    outcome = run(tmp_path / "out", tiny("modulator=MLPModulator", preset="sensorium+"))
    encoder = outcome.folder.encoder()
    assert encoder.core.input_channels == 4
    assert set(encoder.normalization["a"]) == {"images", "responses", "behavior", "pupil_center"}
    np.save(tmp_path / "images.npy", np.zeros((2, 8, 12)))
    with pytest.raises(ValueError, match="needs eye position or behaviour"):
        predict_images(encoder, tmp_path / "images.npy", outcome.folder.preparation(), "a")


# the report


def test_the_report_is_one_file_that_says_all(finished):
    text = (finished.path / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    images = re.findall(r"data:image/png;base64,([^\"]+)", text)
    assert len(images) == 3
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)
    for words in (
        "Fitted in 3 epochs",
        "FullGaussian2d",
        "8 \N{MULTIPLICATION SIGN} 12",
        "train 12, validation 4, test 8",
        "Where they look",
    ):
        assert words in text
    kept = json.loads((finished.path / "metrics.json").read_text())
    assert f"<td>{kept['sessions']['a']['single_trial_correlation']['mean']:.3f}</td>" in text


def test_a_report_without_positions_and_repeats(tmp_path):
    names = {"a<b>": recording(name="a<b>", image_ids=np.arange(24), cortex=None)}
    outcome = run(tmp_path / "out", tiny("readout=FullFactorized2d"), names)
    text = (tmp_path / "out" / "report.html").read_text()
    assert "Where they look" not in text
    assert "<b>" not in text
    assert "a&lt;b&gt;" in text
    assert "feve" not in outcome.metrics["sessions"]["a<b>"]


def test_a_report_without_matplotlib_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("v1fast.runs.report.find_spec", lambda _: None)
    run(tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert "No pictures: matplotlib is not installed." in text
    assert "<img" not in text


def test_yaml_is_written_as_it_is_read():
    assert yaml.safe_load(write_yaml({"a": [1, 2.5, None], "b": {"c": "é"}})) == {"a": [1, 2.5, None], "b": {"c": "é"}}
    assert "gamma" not in options_of("shifter", "MLPShifter")
    assert FullGaussian2d is FAMILIES["readout"]["FullGaussian2d"]
    assert SE2dCore is FAMILIES["core"]["SE2dCore"]
    assert FullFactorized2d is FAMILIES["readout"]["FullFactorized2d"]


# videos, and neurons in several recordings


VIDEO = (
    *("core=Factorized3dCore", "core.layers=2", "core.hidden_channels=3", "core.temporal_input_kernel=3"),
    *("core.temporal_hidden_kernel=2", "core.spatial_input_kernel=3", "core.spatial_hidden_kernel=3", "data.frames=6"),
    *TINY[3:],
)


def test_videos_are_fitted_and_predicted_frame_by_frame(tmp_path):
    movie = video(frames=(40, 12, 16))
    outcome = run(tmp_path / "out", configure(settings=VIDEO), {"movie": movie})
    assert outcome.metrics["sessions"]["movie"]["trials"] == 16 - 3  # three frames fill the filters
    encoder = outcome.folder.encoder()
    got = predict_recording(encoder, movie, outcome.folder.preparation())
    np.testing.assert_array_equal(got["trials"], [*range(3, 40), *range(43, 52), *range(55, 68)])
    np.testing.assert_allclose(got["responses"], np.asarray(movie.responses)[got["trials"]], rtol=1e-5)
    by = encoder.normalization["movie"]
    frames = (movie.images[movie.image_index[52:68]] - by["images"]["mean"]) / by["images"]["std"]
    clip = torch.tensor(frames, dtype=torch.float32).transpose(0, 1)[None]
    with torch.no_grad():
        rates = encoder(clip, data_key="movie")[0].numpy()
    np.testing.assert_allclose(got["predictions"][-13:] * by["responses"]["factor"], rates, rtol=1e-4)
    with pytest.raises(ValueError, match="want a model of images, got one of videos"):
        experiment(encoder, {"movie": movie}, outcome.folder.preparation())


def test_a_long_video_is_predicted_in_pieces(tmp_path, monkeypatch):
    outcome = run(
        tmp_path / "out", configure(settings=[*VIDEO, "training.epochs=1"]), {"movie": video(frames=(40, 12, 16))}
    )
    whole = predict_recording(outcome.folder.encoder(), video(), outcome.folder.preparation())
    monkeypatch.setattr("v1fast.runs.evaluation.FRAMES", 5)
    pieces = predict_recording(outcome.folder.encoder(), video(), outcome.folder.preparation())
    np.testing.assert_array_equal(pieces["trials"], whole["trials"])
    np.testing.assert_allclose(pieces["predictions"], whole["predictions"], rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "data", "said"),
    [
        (["data.frames=3"], video, "data.frames: want more than the 3 that the core's filters take up, got 3"),
        (["data.frames=30"], video, "data.frames: want at most 20, as the longest training video of a, got 30"),
        ([], recording, "a: want a recording of videos for Factorized3dCore, got images"),
    ],
)
def test_videos_that_cannot_be_fitted(tmp_path, settings, data, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        run(tmp_path / "out", configure(settings=[*VIDEO, *settings]), {"a": data()})


def test_positions_of_a_core_of_videos_are_in_pixels():
    core = Factorized3dCore(1, 3, 7, 5, 5, 3, final_nonlin=True, layers=2)
    assert input_grid(core) == ((5.0, 1.0), (5.0, 1.0))
    assert lost_frames(core) == 6
    assert core(torch.zeros(1, 1, 9, 16, 16)).shape[2] == 3
    assert lost_frames(SE2dCore(1, 4, 3, 3, layers=2)) is None


@pytest.mark.parametrize("name", FAMILIES["readout"])
@pytest.mark.filterwarnings("ignore:Gaussian2d is deprecated")
def test_every_readout_reads_videos(name):
    made = building.build(configure(settings=[*VIDEO, f"readout={name}"]), sessions((1, 16, 20)))
    assert made.eval()(torch.randn(2, 1, 6, 16, 20), data_key="a").shape == (2, 3, 5)


@pytest.mark.parametrize("readout", ["FullGaussian2d", "FullFactorized2d"])
def test_matched_neurons_share_features(tmp_path, readout):
    units = np.array([7, 3, 9, 5, 1, 2])
    data = {"a": recording(unit_ids=units), "b": recording(seed=1, unit_ids=units[::-1])}
    outcome = run(tmp_path / "out", tiny(f"readout={readout}", "readout.share_features=true"), data)
    one, other = outcome.folder.encoder().readout.values()
    assert one._features is other._features
    assert one.feature_sharing_index.tolist() == other.feature_sharing_index.tolist()[::-1] == [4, 2, 5, 3, 0, 1]
    assert not one.scales.equal(other.scales)


def test_neurons_that_are_not_matched_cannot_share(tmp_path):
    data = {"a": recording(unit_ids=5 + np.arange(6)), "b": recording(seed=1, unit_ids=np.arange(6))}
    with pytest.raises(ValueError, match="got 6 in b and 6 in a, with 1 in common"):
        run(tmp_path / "out", tiny("readout.share_features=true"), data)
    assert "share_features" not in options_of("readout", "PointPooled2d")


def test_a_shifter_begins_by_moving_nothing():
    for name in FAMILIES["shifter"]:
        made = building.build(tiny(f"shifter={name}"), sessions((1, 16, 20)))
        assert not made.shifter["a"](torch.randn(3, 2)).any()
