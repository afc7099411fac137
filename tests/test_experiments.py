"""Experiments: which data each condition uses, that a run which was stopped goes on, and that it is repeatable."""

import copy
import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchmetrics")

from typer.testing import CliRunner

from v1fast.cli import app
from v1fast.experiments import (
    TINY,
    ComparisonSettings,
    Session,
    TransferSettings,
    Variant,
    band,
    compare_readouts,
    compared,
    curves,
    published,
    split_neurons,
    summarise,
    transfer,
)
from v1fast.experiments import models as experiment_models
from v1fast.experiments import transfer as transfer_call
from v1fast.experiments.comparison import Comparison
from v1fast.experiments.figures import bars_figure, curves_figure
from v1fast.experiments.jobs import Results, run_jobs, seed_of
from v1fast.experiments.models import calibrate, make_core, make_readouts, make_vgg, parameters_per_neuron
from v1fast.experiments.sessions import draw_images, draw_neurons
from v1fast.experiments.transfer import Transfer

pytestmark = pytest.mark.usefixtures("one_thread")

assert transfer_call is transfer
MODEL = dataclasses.replace(TINY, channels=4, max_epochs=1, least_steps=1, input_kern=5)
SHAPE = (1, 12, 16)


def session(name, number=0, neurons=6, train=20, units=None):
    """Images are marked: the first pixel tells session, tier and trial."""
    rng = np.random.default_rng(number)

    def tier(mark, count):
        images = torch.from_numpy(rng.normal(size=(count, *SHAPE)).astype(np.float32))
        images[:, 0, 0, 0] = 1000 * number + 100 * mark + torch.arange(count)
        fields = {"images": images, "responses": torch.from_numpy(rng.gamma(2, 1, (count, neurons))).float()}
        return fields | {
            "pupil_center": torch.from_numpy(rng.normal(size=(count, 2))).float(),
            "behavior": torch.from_numpy(rng.normal(size=(count, 1))).float(),
        }

    test = tier(7, 8)
    ids = torch.arange(4).repeat(2)
    return Session(
        name, tier(1, train), tier(5, 6), test, ids, np.arange(neurons) if units is None else units,
        rng.normal(size=(neurons, 2)),
    )  # fmt: skip


def sessions(*names, **options):
    return {name: session(name, number, **options) for number, name in enumerate(names, 1)}


def settings(**options):
    return TransferSettings(
        **{"images": (8, 16), "subsets": 2, "readouts": ("gaussian",), "untrained": (), "model": MODEL, **options}
    )


def marks(fields):
    return {int(mark) for mark in fields["images"][torch.arange(len(fields["images"]))][:, 0, 0, 0]}


class Watched:
    """What every fit and every cache was given."""

    def __init__(self, monkeypatch):
        self.fits, self.cached = [], []
        fit, cache = experiment_models.fit, experiment_models.cache_features

        def fit_too(encoder, train, validation, **options):
            self.fits.append((encoder, {name: loader.fields for name, loader in train.items()}, validation))
            return fit(encoder, train, validation, **options)

        def cache_too(encoder, fields, **options):
            self.cached.append(marks(fields))
            return cache(encoder, fields, **options)

        monkeypatch.setattr(experiment_models, "fit", fit_too)
        monkeypatch.setattr(experiment_models, "cache_features", cache_too)

    def cores(self):
        """Marks of the training images of each fit that had a core."""
        return [
            {mark for fields in train.values() for mark in marks(fields)}
            for encoder, train, _ in self.fits
            if list(encoder.core.parameters())
        ]


def of(source):
    return {1000 * source + 100 + trial for trial in range(20)}


def test_direct_trains_core_and_readout_on_images_of_the_target_alone(monkeypatch):
    seen = Watched(monkeypatch)
    transfer(sessions("a"), {"t": session("t", 9)}, settings(conditions=("direct",)), show=False)
    assert [len(images) for images in seen.cores()] == [8, 16, 8, 16]
    assert all(images < of(9) for images in seen.cores())
    first, more = seen.cores()[:2]
    assert first < more, "more images contain the fewer"
    assert not seen.cached


def test_best_core_sees_all_images_of_the_source_and_none_of_the_target(monkeypatch):
    seen = Watched(monkeypatch)
    conditions = ("best-core/diff-readout",)
    transfer(sessions("a", "b"), {"t": session("t", 9)}, settings(conditions=conditions, scans=(1, 2)), show=False)
    assert seen.cores() == [of(1), of(1) | of(2)]
    readouts = [fields["t"] for encoder, fields, _ in seen.fits if not list(encoder.core.parameters())]
    assert [len(fields["images"]) for fields in readouts] == [8, 16] * 4
    # Training, validation and test images of the target, once for each core.
    assert len(seen.cached) == 6
    assert seen.cached[0] == of(9)


def test_diff_core_sees_n_images_of_the_source_and_its_readouts_all_of_the_target(monkeypatch):
    seen = Watched(monkeypatch)
    conditions = ("diff-core/best-readout",)
    transfer(sessions("a", "b"), {"t": session("t", 9)}, settings(conditions=conditions), show=False)
    assert [len(images) for images in seen.cores()] == [8, 16, 8, 16]
    assert all(len(images & of(1)) == len(images & of(2)) for images in seen.cores())
    readouts = [fields["t"] for encoder, fields, _ in seen.fits if not list(encoder.core.parameters())]
    assert [len(fields["images"]) for fields in readouts] == [20] * 4


def test_no_fit_sees_a_test_image(monkeypatch):
    seen = Watched(monkeypatch)
    transfer(None, {"t": session("t", 9)}, settings(untrained=("random",)), show=False)
    test = {9700 + trial for trial in range(8)}
    assert not any(images & test for images in seen.cores())
    assert all("responses" in fields["t"] for _, fields, _ in seen.fits)


def test_within_an_animal_source_and_target_have_no_neuron_in_common():
    whole = session("t", 9, neurons=7)
    (source,), (target,) = (half.values() for half in split_neurons({"t": whole}, 3))
    assert (source.neurons, target.neurons) == (4, 3)
    assert set(source.unit_ids) | set(target.unit_ids) == set(range(7))
    assert not set(source.unit_ids) & set(target.unit_ids)
    column = list(whole.unit_ids).index(target.unit_ids[1])
    assert target.test["responses"][:, 1].equal(whole.test["responses"][:, column])
    assert np.array_equal(target.cortex[1], whole.cortex[column])


def test_a_neuron_of_several_sessions_is_source_or_target_in_all_of_them():
    orders = {"a": np.arange(8), "b": np.array([7, 2, 5, 0, 1, 6, 3, 4]), "c": np.array([20, 21, 3, 4, 22])}
    group = {name: session(name, 1, neurons=len(units), units=units) for name, units in orders.items()}
    source, target = split_neurons(group)
    sides = [{unit for one in half.values() for unit in one.unit_ids} for half in (source, target)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == {*range(8), 20, 21, 22}
    assert [(source[name].neurons, target[name].neurons) for name in "ab"] == [(4, 4), (4, 4)]
    assert {source["c"].neurons, target["c"].neurons} == {2, 3}
    with pytest.raises(ValueError, match="t: want neurons for two halves, got 1"):
        split_neurons({"t": session("t", 9, neurons=1)})


def test_a_frozen_core_is_unchanged_bit_for_bit():
    experiment = Transfer(sessions("a"), {"t": session("t", 9)}, settings())
    jobs = [job for job in experiment.jobs() if job.condition == "best-core/diff-readout"]
    core = experiment.core(jobs[0])
    before = copy.deepcopy(core.state_dict())
    for job in jobs[:2]:
        experiment.work(job)
    assert experiment.core(jobs[1]) is core
    assert all(value.equal(before[name]) for name, value in core.state_dict().items())
    assert not core.training


def test_subsets_differ_and_conditions_have_the_same():
    experiment = Transfer(sessions("a"), {"t": session("t", 9)}, settings(neurons=3))
    jobs = experiment.jobs()
    units = {(job.condition, job.subset): tuple(experiment.subset(job)["t"].unit_ids) for job in jobs}
    for subset in (0, 1):
        assert len({units[condition, subset] for condition, other in units if other == subset}) == 1
    assert units["direct", 0] != units["direct", 1]


def without_times(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def same(one, other):
    return json.dumps(without_times(one)) == json.dumps(without_times(other))


def test_jobs_are_a_function_of_the_seed_whatever_ran_before():
    source, target = sessions("a"), {"t": session("t", 9)}
    chosen = settings(images=(8,), untrained=("random",))
    want = transfer(source, target, chosen, show=False)
    torch.manual_seed(99)
    experiment = Transfer(source, target, chosen)
    for job, row in zip(reversed(experiment.jobs()), reversed(want), strict=True):
        got = experiment.work(job)
        assert got["correlation"] == pytest.approx(row["correlation"], nan_ok=True, abs=0), str(job)
    other = transfer(source, target, dataclasses.replace(chosen, seed=1), show=False)
    assert not same(want, other)


def test_the_callers_random_numbers_stay_as_they_were():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    transfer(sessions("a"), {"t": session("t", 9)}, settings(images=(8,), subsets=1), show=False)
    assert torch.rand(3).equal(want)


def test_an_experiment_that_was_stopped_goes_on(tmp_path, monkeypatch):
    source, target = sessions("a"), {"t": session("t", 9)}
    want = transfer(source, target, settings(), out=tmp_path / "whole", show=False)
    done = []
    work = Transfer.work

    def stopped(self, job):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(str(job))
        return work(self, job)

    monkeypatch.setattr(Transfer, "work", stopped)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        transfer(source, target, settings(), out=tmp_path / "part", show=False)
    assert "5 of 12 results" in interrupt.value.__notes__[0]
    results = tmp_path / "part" / "results.jsonl"
    with results.open("ab") as file:  # a kill in the middle of a line
        file.write(b'{"job": "direct, own')
    again = []
    monkeypatch.setattr(Transfer, "work", lambda self, job: again.append(str(job)) or work(self, job))
    got = transfer(source, target, settings(), out=tmp_path / "part", show=False)
    assert len(again) == 7
    assert not set(again) & set(done)
    assert same(want, got)
    assert len(results.read_text().splitlines()) == 12
    trained = list((tmp_path / "part" / "cores").iterdir())
    assert [path.suffix for path in trained] == [".pt"]


def test_a_core_whose_training_was_stopped_goes_on(tmp_path, monkeypatch):
    """Not from the first epoch: the core on all images is what takes long."""
    from lightning import Callback

    chosen = settings(
        images=(8,), subsets=1, conditions=("best-core/diff-readout",), model=dataclasses.replace(MODEL, max_epochs=4)
    )
    source, target, begun = sessions("a"), {"t": session("t", 9)}, []
    want = transfer(source, target, chosen, out=tmp_path / "whole", show=False)

    class Stop(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 2 and 2 not in begun:
                begun.append("stopped")
                raise KeyboardInterrupt
            begun.append(trainer.current_epoch)

    fit = experiment_models.fit
    monkeypatch.setattr(
        experiment_models,
        "fit",
        lambda *given, out=None, **options: fit(*given, out=out, callbacks=[Stop()] if out else [], **options),
    )
    with pytest.raises(KeyboardInterrupt) as interrupt:
        transfer(source, target, chosen, out=tmp_path / "part", show=False)
    assert "0 of 1 results" in interrupt.value.__notes__[0]
    begun.append(2)  # not again
    got = transfer(source, target, chosen, out=tmp_path / "part", show=False)
    assert begun == [0, 1, "stopped", 2, 2, 3]
    assert same(want, got)
    cores = [torch.load(next((tmp_path / name / "cores").glob("*.pt"))) for name in ("whole", "part")]
    assert all(value.equal(cores[1][name]) for name, value in cores[0].items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "stop", "code"),
    [("transfer", signal.SIGKILL, -signal.SIGKILL), ("transfer", signal.SIGINT, 130), ("readouts", signal.SIGINT, 130)],
)
def test_the_same_command_goes_on_after_a_stop(tmp_path, command, stop, code):
    arguments = [sys.executable, "-m", "v1fast", command, "--simulate", "--quick", "--out", str(tmp_path / "x")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        arguments,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background are started with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    results = tmp_path / "x" / "results.jsonl"
    while not (results.exists() and len(results.read_text().splitlines()) >= 3):
        assert process.poll() is None
    process.send_signal(stop)
    said = process.communicate()[1]
    assert process.returncode == code
    if stop == signal.SIGINT:
        assert "results are in" in said
        assert "the same command goes on" in said
        assert "Traceback" not in said
    kept = results.read_text().splitlines()[:3]
    subprocess.run(arguments, check=True, env=environment)
    assert results.read_text().splitlines()[:3] == kept


def test_results_of_other_settings_or_data_are_refused(tmp_path):
    chosen = settings(images=(8,), subsets=1, conditions=("direct",))
    transfer(sessions("a"), {"t": session("t", 9)}, chosen, out=tmp_path, show=False)
    other = dataclasses.replace(chosen, model=dataclasses.replace(MODEL, learning_rate=0.5))
    with pytest.raises(ValueError, match=r"settings\.model\.learning_rate was 0\.015, now 0\.5; choose another folder"):
        transfer(sessions("a"), {"t": session("t", 9)}, other, out=tmp_path, show=False)
    with pytest.raises(ValueError, match=r"data\.target\.t\.responses was"):
        transfer(sessions("a"), {"t": session("t", 8)}, chosen, out=tmp_path, show=False)


def test_damaged_results_are_named(tmp_path):
    (tmp_path / "results.jsonl").write_text("no json\n")
    with pytest.raises(ValueError, match=r"results\.jsonl: cannot be read"):
        Results(tmp_path, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scans": (3,)}, r"scans: want 1 to 2, the number of source sessions, got 3"),
        ({"subsets": 0}, r"subsets: want at least 1, got 0"),
        ({"conditions": ("both",)}, r"conditions: want one of direct, .*, got 'both'"),
        ({"untrained": ("vgg16",)}, r"vgg_weights: want a file with the weights of VGG-16"),
        ({"images": (0,)}, r"images: want numbers of at least 1, got 0"),
        ({"readouts": ("sparse",)}, r"readout: want one of dense, .*, got 'sparse'"),
        (
            {"model": dataclasses.replace(MODEL, input_kern=13)},
            "images: want larger ones for the core, got 12 x 16 pix",
        ),
        ({"untrained": ("vgg16",), "vgg_weights": __file__}, r"test_experiments.py: cannot be read"),
        ({"seed": -1}, r"seed: want at least 0, got -1"),
        ({"readouts": ()}, r"readouts: want at least one, got none"),
        ({"retinotopy": ()}, r"retinotopy: want at least one, got none"),
        ({"retinotopy": ("some",)}, r"retinotopy: want one of none, .*, got 'some'"),
        ({"conditions": ()}, r"conditions: want some of direct, .*, got none"),
        ({"neurons": 7}, r"neurons: want at most 6, as many as t has, got 7"),
        ({"images": (8, 41)}, r"images: want 2 to 40, got 41"),
        ({"images": (1,)}, r"images: want 2 to 40, got 1"),
        ({"sharing": (True,), "scans": (1,)}, r"sharing: want source or target to be several sessions of the same neu"),
    ],
)
def test_bad_settings_are_named_before_anything_is_fitted(options, message, monkeypatch):
    monkeypatch.setattr(experiment_models, "fit", None)
    with pytest.raises(ValueError, match=message):
        transfer(sessions("a", "b"), {"t": session("t", 9)}, settings(**options), show=False)


def test_source_and_target_are_different():
    with pytest.raises(ValueError, match="want different sessions, got a in both"):
        transfer(sessions("a"), sessions("a"), settings(), show=False)


def test_a_loss_that_is_nan_is_a_mistake_that_is_named():
    one = session("a", 1)
    broken = {"a": dataclasses.replace(one, train={**one.train, "images": one.train["images"] * math.inf})}
    with pytest.raises(ValueError, match="session a"):
        experiment_models.fit_model(make_core(broken, MODEL), broken, Variant(), MODEL, 0)


# cores that nobody trained


def test_vgg_takes_weights_of_a_file_in_either_naming(tmp_path):
    from v1fast.models import vgg16_features

    source = sessions("a")
    model = dataclasses.replace(MODEL, vgg_layers=2)
    torch.manual_seed(1)
    state = vgg16_features().state_dict()
    for name, kept in (("bare.pt", state), ("full.pt", {f"features.{key}": value for key, value in state.items()})):
        torch.save(kept, tmp_path / name)
        core = make_vgg(source, model, tmp_path / name)
        assert core.state_dict()["features.TransferLearning.0.weight"].equal(state["0.weight"])
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: want the weights of VGG-16, got none of 0\.weight"):
        make_vgg(source, model, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("x")
    with pytest.raises(ValueError, match=r"text\.pt: cannot be read: it holds no plain tensors, as torch.save writes"):
        make_vgg(source, model, tmp_path / "text.pt")


def test_statistics_of_an_untrained_core_are_those_of_its_features():
    source = sessions("a", train=64)
    torch.manual_seed(0)
    core = calibrate(make_core(source, MODEL), source)
    norm = next(module for module in core.modules() if isinstance(module, torch.nn.BatchNorm2d))
    first = core.features[0].conv(source["a"].train["images"])
    torch.testing.assert_close(norm.running_mean, first.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(norm.running_var, first.var((0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert norm.momentum == 0.1
    assert not core.training


def test_random_cores_and_vgg_are_compared():
    rows = transfer(
        sessions("a"),
        {"t": session("t", 9)},
        settings(
            images=(8,), subsets=1, untrained=("random", "random vgg16"), model=dataclasses.replace(MODEL, vgg_layers=2)
        ),
        show=False,
    )
    arms = [row["arm"] for row in curves(rows)]
    assert arms == ["direct", "core of 1 scan", "random", "random vgg16", "core of 1 scan, n images for the core"]


# readouts


def test_parameters_per_neuron_are_the_published_ones():
    """Lurz et al.: 64 channels and a map of 36 x 64."""
    one = sessions("a")
    model = dataclasses.replace(MODEL, pool_steps=4)

    def count(*arguments, given=one):
        return parameters_per_neuron(make_readouts(Variant(*arguments), given, (64, 36, 64), model))

    assert count("gaussian") == 70
    assert count("gaussian", False, "predicted") == 68
    assert count("gaussian", False, "residual") == 70
    assert count("factorized") == 2368
    assert count("pooled") == 64 * 5 + 2
    assert count("dense") == 147_456
    assert count("pooled", False, "predicted") == 64 * 5
    assert count("pooled", False, "residual") == 64 * 5 + 2
    # What two sessions share counts half for a neuron of each; the factors and places are of each.
    assert count("pooled", True, given=sessions("a", "b")) == 64 * 5 / 2 + 1 + 2
    assert count("dense", True, given=sessions("a", "b")) == 147_456 / 2 + 1
    assert count("factorized", True, given=sessions("a", "b")) == 64 / 2 + 1 + 36 * 64
    # Features once for two sessions; a factor, a position and its covariance for each.
    assert count("gaussian", True, given=sessions("a", "b")) == 64 / 2 + 1 + 6


def test_biases_start_where_the_rates_are_the_mean_responses():
    one = sessions("a")
    readout = make_readouts(Variant("factorized"), one, (4, 5, 6), MODEL)["a"]
    rates = torch.nn.functional.elu(readout.bias) + 1
    torch.testing.assert_close(rates, one["a"].train["responses"].mean(0))


def test_comparison_has_each_kind_with_what_it_can_do():
    matched = sessions("a", "b")
    chosen = ComparisonSettings(
        images=(8,), neurons=(3,), subsets=1, sharing=(False, True), retinotopy=("none", "predicted"), behavior=True,
        model=MODEL,
    )  # fmt: skip
    rows = compared(compare_readouts(matched, chosen, show=False))
    assert [row["readout"] for row in rows] == [
        "dense",
        "dense, shared features",
        "factorized",
        "factorized, shared features",
        "pooled",
        "pooled, retinotopy",
        "pooled, shared features",
        "pooled, shared features, retinotopy",
        "gaussian",
        "gaussian, retinotopy",
        "gaussian, shared features",
        "gaussian, shared features, retinotopy",
        "gaussian, shifter",
        "gaussian, modulator",
        "gaussian, shifter, modulator",
    ]
    assert not any(math.isnan(row["correlation"]) for row in rows)


@pytest.mark.parametrize("kind", ["dense", "factorized", "pooled", "gaussian"])
def test_matched_neurons_share_features_while_they_are_fitted(kind):
    both = {"a": session("a", 1), "b": session("b", 2)}
    core = make_core(both, MODEL)
    readouts = experiment_models.fit_model(core, both, Variant(kind, sharing=True), MODEL, 0).encoder.readout
    assert readouts["a"].shared_features is readouts["b"].shared_features
    torch.manual_seed(0)
    start = make_readouts(Variant(kind, sharing=True), both, readouts["a"].in_shape, MODEL)
    for name in "ab":  # each session has trained what is its own
        assert not readouts[name].scales.equal(start[name].scales)
    if kind == "dense":  # at a rate of its own
        moved = (readouts["a"].weight - start["a"].weight).abs().max()
        assert moved < 10 * MODEL.dense_learning_rate + 6 * 1e-3


@pytest.mark.parametrize("kind", ["pooled", "gaussian"])
def test_residuals_are_trained_beside_the_map(kind):
    one = sessions("a")
    fitted = experiment_models.fit_model(make_core(one, MODEL), one, Variant(kind, retinotopy="residual"), MODEL, 0)
    readout = fitted.encoder.readout["a"]
    assert readout.mu_residual.abs().sum() > 0
    placed, offset = readout.place(one["a"].cortex), readout.mu_residual[0, :, 0]
    points = readout.mu if kind == "gaussian" else readout.grid
    torch.testing.assert_close((placed + offset).clamp(-1, 1), points[0, :, 0].clamp(-1, 1))


def test_readouts_without_positions_are_compared_without_retinotopy():
    found = experiment_models.variants_of(("dense", "pooled"), (False,), ("predicted", "residual"))
    assert [str(one) for one in found] == ["dense", "pooled, retinotopy", "pooled, retinotopy + residual"]
    with pytest.raises(ValueError, match="retinotopy: want a readout of gaussian, pooled, got factorized"):
        Variant("factorized", retinotopy="predicted")


def test_transfer_shares_features_where_neurons_are_matched():
    """Of one session there is nothing to share: that arm would be the one without, under another name."""
    target = {"t": session("t", 9, units=np.arange(50, 56))}
    rows = transfer(
        sessions("a", "b"), target, settings(images=(8,), subsets=1, sharing=(False, True), scans=(1, 2)), show=False
    )
    shared = [(row["condition"], row["scans"]) for row in rows if row["readout"]["sharing"]]
    assert shared == [("best-core/diff-readout", 2), ("diff-core/best-readout", 2)]
    matched = {name: session(name, number, units=np.arange(50, 56)) for number, name in enumerate("tu", 8)}
    experiment = Transfer(sessions("a"), matched, settings(sharing=(False, True)))
    keys = {experiment.core_key(job) for job in experiment.jobs() if job.condition == "best-core/diff-readout"}
    assert keys == {"1 scans, gaussian, all images, seed 0"}, "of one session the core is the same"
    rows = transfer(
        sessions("a"), matched, settings(images=(8,), subsets=1, sharing=(True,), untrained=("random",)), show=False
    )
    assert [row["core"] for row in rows] == ["own", "1 scans", "random", "1 scans"]


def test_neurons_of_other_animals_are_never_matched():
    from v1fast.experiments import simulated_sessions
    from v1fast.experiments.presets import Simulated
    from v1fast.experiments.sessions import are_matched

    drawn = simulated_sessions(
        Simulated(animals=2, neurons=3, train=60, validation=3, test=3, repeats=2, sessions=2, image_shape=(20, 24))
    )
    assert list(drawn) == ["animal0", "animal0_1", "animal1", "animal1_1"]
    pairs = {(one, other): are_matched({one: drawn[one], other: drawn[other]}) for one in drawn for other in drawn}
    assert {pair for pair, matched in pairs.items() if matched} == {
        ("animal0", "animal0_1"), ("animal0_1", "animal0"), ("animal1", "animal1_1"), ("animal1_1", "animal1")
    }  # fmt: skip


def test_features_that_memory_does_not_hold_lie_in_the_folder_of_the_results(tmp_path, monkeypatch):
    kept = []
    cache = experiment_models.cache_features

    def cache_too(*arguments, **options):
        kept.append((options["folder"], fields := cache(*arguments, **options)))
        return fields

    monkeypatch.setattr(experiment_models, "cache_features", cache_too)
    chosen = settings(images=(8,), subsets=1, conditions=("best-core/diff-readout",))
    target = {"t": session("t", 9)}
    want = transfer(sessions("a"), target, chosen, out=tmp_path / "memory", show=False)
    small = dataclasses.replace(chosen, model=dataclasses.replace(MODEL, memory=0))
    got = transfer(sessions("a"), target, small, out=tmp_path / "file", show=False)
    assert [fields["images"].mapped for _, fields in kept] == [False] * 3 + [True] * 3
    assert kept[-1][0] == tmp_path / "file"
    assert same(want, got)


def test_behaviour_as_channels_is_kept_for_each_trial():
    from v1fast.experiments import simulated_sessions
    from v1fast.experiments.presets import Simulated

    sizes = Simulated(animals=1, neurons=3, train=6, validation=3, test=2, repeats=2, image_shape=(20, 24))
    plain = next(iter(simulated_sessions(sizes).values()))
    channels = next(iter(simulated_sessions(dataclasses.replace(sizes, channels=True)).values()))
    core = experiment_models.calibrate(make_core({"a": channels}, MODEL), {"a": channels})
    assert experiment_models.image_shape({"a": channels}) == (4, 20, 24)
    kept = experiment_models.with_features(core, channels, MODEL).test["images"]
    assert (len(kept), len(kept.values)) == (4, 4)
    torch.testing.assert_close(kept[torch.arange(4)], core(channels.test["images"]))
    core = experiment_models.calibrate(make_core({"a": plain}, MODEL), {"a": plain})
    kept = experiment_models.with_features(core, plain, MODEL).test["images"]
    assert (len(kept), len(kept.values)) == (4, 2)


def test_comparison_draws_neurons_and_images():
    experiment = Comparison(sessions("a", "b"), ComparisonSettings(images=(9,), neurons=(2,), subsets=2, model=MODEL))
    first, second = (experiment.data(job) for job in experiment.jobs()[:2])
    assert sorted(one.images for one in first.values()) == [4, 5]
    assert np.array_equal(first["a"].unit_ids, first["b"].unit_ids), "matched neurons stay matched"
    assert not np.array_equal(first["a"].unit_ids, second["a"].unit_ids)


def test_what_a_recording_lacks_is_named():
    one = sessions("a")
    with pytest.raises(ValueError, match="sharing: want several sessions of the same neurons"):
        compare_readouts(one, ComparisonSettings(sharing=(True,), model=MODEL), show=False)
    bare = {"a": dataclasses.replace(one["a"], cortex=None)}
    with pytest.raises(ValueError, match="want cortical positions, got session a without them"):
        compare_readouts(bare, ComparisonSettings(retinotopy=("predicted",), model=MODEL), show=False)
    with pytest.raises(ValueError, match="want cortical positions, got session a without them"):
        transfer(bare, {"t": session("t", 9)}, settings(retinotopy=("predicted",)), show=False)
    large = {"model": dataclasses.replace(MODEL, input_kern=13)}
    with pytest.raises(ValueError, match="images: want larger ones for the core, got 12 x 16 pixels"):
        compare_readouts(one, ComparisonSettings(**large), show=False)
    for options, message in (({"images": (21,)}, "want 1 to 20, got 21"), ({"neurons": (7,)}, "want at most 6, got 7")):
        with pytest.raises(ValueError, match=message):
            compare_readouts(one, ComparisonSettings(**options, model=MODEL), show=False)


# sessions


def test_images_are_shared_out_evenly_as_far_as_sessions_have_them():
    three = {**sessions("a", "b"), "c": session("c", 3, train=5)}
    counts = [one.images for one in draw_images(three, 31, np.random.default_rng(0)).values()]
    assert counts == [13, 13, 5]
    with pytest.raises(ValueError, match="images: want 3 to 45, got 46"):
        draw_images(three, 46, np.random.default_rng(0))


def test_neurons_of_different_animals_are_drawn_apart():
    pair = {"a": session("a", 1), "b": session("b", 2, units=np.arange(10, 16))}
    drawn = draw_neurons(pair, 3, np.random.default_rng(0))
    assert [one.neurons for one in drawn.values()] == [3, 3]
    assert drawn["a"].train["responses"].equal(pair["a"].train["responses"][:, torch.from_numpy(drawn["a"].unit_ids)])


def test_recordings_become_sessions():
    from v1fast.data import Recording
    from v1fast.experiments import as_session

    rng = np.random.default_rng(0)
    recording = Recording(
        rng.normal(size=(7, 1, 12, 16)),
        rng.gamma(2, 1, (10, 5)),
        image_index=[0, 1, 2, 3, 4, 5, 6, 5, 6, 6],
        tiers=["train"] * 4 + ["validation"] + ["test"] * 5,
        cortex=rng.normal(size=(5, 3)),
    )
    made = as_session(recording)
    assert (made.images, made.neurons, made.cortex.shape) == (4, 5, (5, 2))
    assert len(made.test["images"]) == 5
    assert len(made.test["images"].values) == 2
    assert made.test_images.tolist() == [5, 6, 5, 6, 6]
    tiers = ["train"] * 7 + ["validation"] + ["test"] * 2
    unseen = dataclasses.replace(recording, tiers=tiers, image_ids=np.arange(10))
    with pytest.raises(ValueError, match="want images shown more than once"):
        as_session(unseen)


# tables, figures, command line


def test_bands():
    from scipy import stats

    values = [0.2, 0.5, 0.4, 0.45]
    low, high = band(values)
    want = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (low, high) == pytest.approx(want)
    assert band([*values, math.nan]) == pytest.approx(want)
    low, high = band(values, "bootstrap")
    assert min(values) < low < np.mean(values) < high < max(values)
    assert all(math.isnan(end) for end in band([0.3]))
    with pytest.raises(ValueError, match="method: want one of t, bootstrap"):
        band(values, "normal")


def test_subsets_without_a_value_are_counted():
    rows = [{"arm": "a", "fraction_oracle": value} for value in (0.5, math.nan, 0.7)]
    (row,) = summarise(rows, ("arm",))
    assert row["mean"] == pytest.approx(0.6)
    assert (row["subsets"], row["undefined"]) == (2, 1)


def test_seeds_are_the_same_in_every_process():
    assert seed_of(0, "a") == zlib.crc32(b'[0, "a"]')
    assert seed_of(0, "a") != seed_of(1, "a")


def test_a_result_is_on_the_disk_before_the_next_job(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Job:
        number: int

        def __str__(self):
            return f"job {self.number}"

    def work(job):
        path = tmp_path / "results.jsonl"
        assert len(path.read_text().splitlines() if path.exists() else []) == job.number
        return {"value": math.nan}

    rows = run_jobs([Job(0), Job(1)], work, Results(tmp_path, {}), what="x", show=False)
    assert [row["number"] for row in rows] == [0, 1]


def rows_of(columns, **more):
    """Results of made-up runs, of each combination of the columns' values."""
    cases = [dict(zip(columns, values, strict=True)) for values in itertools.product(*columns.values())]
    return [
        {**case, **more, "images": images, "fraction_oracle": value + images / 100}
        for case in cases
        for images in (8, 16)
        for value in (0.1, 0.2)
    ]


def drawn_at(panel, images):
    """Heights of what is drawn at a number of images, alone."""
    return {line.get_ydata()[0] for line in panel.lines if np.array_equal(line.get_xdata(), [images])}


def test_ctrl_c_between_two_jobs_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    job = dataclasses.make_dataclass("Job", ["number"], frozen=True)(0)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        run_jobs([job], lambda job: {"value": 1}, Results(tmp_path, {}), what="x", show=False)
    assert "the same command goes on" in interrupt.value.__notes__[0]


def test_figures_show_every_curve_and_the_published_values():
    pytest.importorskip("matplotlib")
    readouts = [("gaussian", "plain"), ("gaussian", "other"), ("factorized", "plain")]
    rows = [
        {**row, "readout": f"{kind}, {variant}", "kind": kind, "variant": variant}
        for kind, variant in readouts
        for row in rows_of({"arm": ["direct", "core of 4 scans", "random", "core of 2 scans"]})
    ]
    options = {"panels": "kind", "down": "variant", "curves": "arm", "crossing": 2300}
    figure = curves_figure(rows, **options, beside=published.beside_transfer(rows))
    titles = ["gaussian\nplain", "factorized\nplain", "gaussian\nother"]
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == titles, "where there are no results there is no panel"
    assert [drawn_at(axes, 4472) for axes in shown] == [{0.75, 0.82, 0.44, 0.385}, set(), {0.75, 0.82, 0.44, 0.385}]
    assert [sum(np.array_equal(line.get_xdata(), [2300, 2300]) for line in axes.lines) for axes in shown] == [1, 0, 1]
    assert bars_figure(rows, groups="arm").axes[0].get_ylabel() == "fraction oracle"


def test_published_values_of_readouts_stand_beside_the_same_numbers_of_neurons():
    readouts = [{"kind": "gaussian"}, {"kind": "gaussian", "sharing": True}, {"kind": "dense"}]
    rows = compared(
        [{"readout": one, "neurons": size, "parameters_per_neuron": 7} for one in readouts for size in (50, 500, 900)]
    )
    found = {(row["readout"], row["size"]): row["fraction_oracle"] for row in published.beside_comparison(rows)}
    assert found == {
        ("gaussian", "500 neurons"): 0.85,
        ("gaussian, shared features", "50 neurons"): 0.815,
        ("gaussian, shared features", "500 neurons"): 0.87,
        ("gaussian, shared features", "900 neurons"): 0.885,
    }


def test_panels_show_the_number_of_each_curve():
    pytest.importorskip("matplotlib")
    rows = rows_of({"kind": ["pooled"], "arm": ["a", "b"]}, number=1234)
    (panel,) = curves_figure(rows, panels="kind", curves="arm", numbers="number").axes
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["1,234", "1,234"]
    assert len(panel.collections) == 2, "two bands"


@pytest.mark.parametrize("command", ["transfer", "readouts"])
def test_help_has_examples(command):
    said = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "160"}).output
    assert f"v1fast {command} --simulate --quick" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["transfer"], "want recordings, or --simulate"),
        (["readouts"], "want recordings, or --simulate"),
        (["transfer", "--images", "a,b"], "--images: want whole numbers separated by commas, got a,b"),
        (["transfer", "--bands", "normal"], "--bands: want one of t, bootstrap, got 'normal'"),
        (["readouts", "--bands", "normal"], "--bands: want one of t, bootstrap, got 'normal'"),
        (["transfer", "--retinotopy", "some", "x"], "retinotopy: want one of none, predicted, residual, got 'some'"),
        (["readouts", "--kinds", "sparse", "x"], "readout: want one of dense, factorized, pooled, gaussian, got"),
        (["readouts", "--kinds", ",", "x"], "readouts: want at least one, got none"),
        (["transfer", "--within", "--source", "a"], "--within: want no --source beside it"),
        (["readouts", "missing"], "missing"),
    ],
)
def test_mistakes_of_a_user_are_one_line(arguments, said):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert "Traceback" not in result.output


def test_commands_write_tables_and_pictures(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from v1fast.cli import _experiments

    monkeypatch.setattr(_experiments, "sessions_of", lambda *arguments: sessions("one", "two"))
    monkeypatch.setattr(_experiments, "model_of", lambda *arguments: MODEL)
    options = ["x", "--images", "8", "--subsets", "2", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["transfer", *options, "--source", "one", "--readouts", "gaussian"])
    assert result.exit_code == 0, result.output
    assert {"results.jsonl", "results.csv", "table.csv", "transfer.png", "settings.json"} <= set(os.listdir(tmp_path))
    header, *lines = (tmp_path / "table.csv").read_text().splitlines()
    assert header == "readout,arm,images,mean,low,high,subsets,undefined"
    assert len(lines) == 4
    result = CliRunner().invoke(app, ["transfer", *options, "--source", "three"])
    assert "--source: want one of one, two, got 'three', which fits none of them" in result.output


def test_readouts_draws_what_sharing_and_retinotopy_add(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from v1fast.cli import _experiments

    drawn = {}
    monkeypatch.setattr(_experiments, "sessions_of", lambda *arguments: sessions("one", "two"))
    monkeypatch.setattr(_experiments, "model_of", lambda *arguments: MODEL)
    finish = _experiments.finish
    monkeypatch.setattr(_experiments, "finish", lambda *given: drawn.update(given[-1]) or finish(*given))
    options = ["--share-features", "--retinotopy", "none,predicted", "--kinds", "dense,pooled", "--behavior"]
    common = ["x", "--images", "8", "--neurons", "3", "--subsets", "2", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["readouts", *common, *options])
    assert result.exit_code == 0, result.output
    assert "without retinotopy: dense (each neuron weights all pixels" in result.output
    assert {"readouts.png", "arms.png", "behavior.png", "table.csv"} <= set(os.listdir(tmp_path))
    assert [axes.get_title() for axes in drawn["arms"].axes] == ["dense\n3 neurons", "pooled\n3 neurons"]
    numbers = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in drawn["arms"].axes]
    assert [len(shown) for shown in numbers] == [2, 4]
    (plain,) = drawn["readouts"].axes
    assert len(plain.get_legend_handles_labels()[1]) == 2, "the plain readouts alone"
