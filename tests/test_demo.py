"""The demo at tiny sizes, and that its checks can fail."""

import contextlib
import dataclasses
import io
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch

from v1fast import _files, demo, ops
from v1fast.data import simulate
from v1fast.demo import fitting
from v1fast.demo.fitting import LOSS, Encoder, Settings, evaluate, fit
from v1fast.demo.trained import EXPECTED, Comparison, MismatchError, check_trained_model, require_match
from v1fast.models.pretrained import MOUSE_V1

pytest.importorskip("skimage")
pytest.importorskip("matplotlib")
Console = pytest.importorskip("rich.console").Console

TINY = Settings(
    neurons=10, image_shape=(24, 30), train=48, validation=12, test=12, repeats=2, channels=4, epochs=4, batch=16
)


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="module")
def tiny():
    return simulate(10, (24, 30), train=48, validation=12, test=12, repeats=2)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One quick run: the folder, what it returned, what it printed, and whether torch's random numbers went on."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    printed, before = io.StringIO(), torch.random.get_rng_state()
    with contextlib.redirect_stdout(printed):
        summary = demo.main(out, None, quick=True)
    return out, summary, printed.getvalue(), torch.equal(before, torch.random.get_rng_state())


def test_the_quick_run_writes_summary_and_pictures(quick):
    out, summary, printed, _ = quick
    assert sorted(os.listdir(out)) == ["learning.png", "neurons.png", "positions.png", "speed.png", "summary.json"]
    for picture in out.glob("*.png"):
        content = picture.read_bytes()
        assert content.startswith(b"\x89PNG\r\n")
        assert len(content) > 10_000
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert str(out) in printed.replace("\n", "")


def test_the_quick_run_says_what_it_ran_on_and_left_out(quick):
    _, summary, printed, _ = quick
    assert summary["about"]["kernels"] == ops.loaded
    assert summary["about"]["threads"] == torch.get_num_threads()
    assert "V1FAST_REAL_DATA is not set" in summary["trained_model"]["skipped"]
    assert "V1FAST_REAL_DATA is not set" in printed
    assert ("compiled kernels;" in printed) == (ops.loaded.get("native") == "loaded")


def test_the_quick_run_learns(quick):
    _, summary, printed, _ = quick
    simulated = summary["simulated"]
    assert simulated["correlation_median"] > 0.5
    assert simulated["correlation_median"] < simulated["ceiling_median"] < 1
    assert simulated["position_error_median_px"] < 0.5 * simulated["history"][0]["position_error"]
    epochs = summary["settings"]["epochs"]
    assert len(simulated["history"]) == epochs
    lines = [line for line in printed.splitlines() if line.startswith("epoch")]
    assert len(lines) == epochs
    assert f"correlation {simulated['history'][-1]['correlation']:.3f}" in lines[-1]


def test_the_quick_run_times_the_same_function(quick):
    for timed in quick[1]["speed"].values():
        assert timed["largest_difference"] < 1e-4
        assert timed["ratio"] == timed["eager_ms"] / timed["v1fast_ms"] > 0
        assert set(timed["shape"]) == set("BCHWN")


def test_the_callers_random_numbers_are_left_alone(quick):
    assert quick[3]


def test_the_same_seed_gives_the_same_fit(tiny, console):
    histories = [
        [dataclasses.replace(epoch, seconds=0) for epoch in fit(tiny, TINY, console).history] for _ in range(2)
    ]
    assert histories[0] == histories[1]
    other = fit(tiny, dataclasses.replace(TINY, seed=1), console).history
    assert [epoch.train_loss for epoch in other] != [epoch.train_loss for epoch in histories[0]]


@pytest.fixture
def scripted(monkeypatch):
    """Gives the epochs these validation losses, an exception in place of one is raised; keeps the weights of each."""

    def script(*losses):
        weights, remaining = [], list(losses)

        def assess(model, simulation, train_loss, start):
            loss = remaining.pop(0)
            if isinstance(loss, BaseException):
                raise loss
            weights.append(model.readout.features.detach().clone())
            return fitting.Epoch(train_loss, loss, 0.0, 0.0, 0.0)

        monkeypatch.setattr(fitting, "_assess", assess)
        return weights

    return script


def test_the_best_epoch_is_kept(tiny, console, scripted):
    weights = scripted(3.0, 1.0, 2.0, 1.0)
    fitted = fit(tiny, TINY, console)
    assert fitted.best_epoch == 2
    assert torch.equal(fitted.model.readout.features, weights[1])
    assert not torch.equal(weights[1], weights[3])
    assert not fitted.interrupted
    assert not fitted.model.training


def test_ctrl_c_keeps_what_was_trained(tiny, console, scripted):
    weights = scripted(1.0, 2.0, KeyboardInterrupt())
    fitted = fit(tiny, TINY, console)
    assert fitted.interrupted
    assert len(fitted.history) == 2
    assert torch.equal(fitted.model.readout.features, weights[0])
    assert "Interrupted" in console.file.getvalue()
    assert evaluate(fitted, tiny)[0]["interrupted"]


def test_ctrl_c_before_anything_was_trained_ends_it(tiny, console, scripted):
    scripted(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        fit(tiny, TINY, console)


def test_the_summary_is_about_the_model_that_was_kept(tiny, console):
    fitted = fit(tiny, TINY, console)
    summary, tensors = evaluate(fitted, tiny)
    best = fitted.history[fitted.best_epoch - 1]
    loss = LOSS(fitted.model.predict(tiny.validation.images), tiny.validation.responses[0])
    assert loss.item() == pytest.approx(best.validation_loss, rel=1e-5)
    assert summary["position_error_median_px"] == pytest.approx(best.position_error, rel=1e-5)
    observed = tiny.test.responses.mean(0)
    r = [np.corrcoef(tensors["predicted"][:, n], observed[:, n])[0, 1] for n in range(10)]
    assert summary["correlation_mean"] == pytest.approx(np.mean(r), abs=1e-5)
    assert tensors["predicted"].min() >= 0


@pytest.mark.parametrize(("mu", "pixels"), [((-1, -1), (4, 4)), ((1, 1), (25, 19)), ((1, -1), (25, 4))])
def test_learned_centres_are_in_pixels_of_the_image(mu, pixels):
    model = Encoder(TINY, torch.ones(1)).eval()
    with torch.no_grad():
        model.readout.mu.copy_(torch.tensor(mu, dtype=torch.float32).view(1, 1, 1, 2))
    assert model.centres().tolist() == [list(pixels)]
    image = torch.randn(1, 1, 24, 30, requires_grad=True)
    model(image).sum().backward()
    # The pixels that the neuron sees: 9 + 3 - 1 around its centre, as far as the second layer's map goes.
    rows, columns = (image.grad[0, 0].abs().sum(axis).nonzero()[:, 0] for axis in (1, 0))
    for seen, centre, size in ((columns, pixels[0], 30), (rows, pixels[1], 24)):
        assert seen.min() == max(centre - 5, 0)
        assert seen.max() == min(centre + 5, size - 1)


def test_a_folder_that_is_not_there_is_left_out(tmp_path, console):
    assert "nowhere" in demo._trained_model(tmp_path / "nowhere", console)["skipped"]


def test_a_folder_without_the_model_is_an_error(tmp_path, console):
    with pytest.raises(FileNotFoundError, match=MOUSE_V1.name):
        demo._trained_model(tmp_path, console)


@pytest.mark.parametrize("error", [2e-5, math.nan])
def test_an_error_beyond_its_bound_raises(error):
    good = Comparison("y", 1e-6, 1.0, 1e-6, 1e-5)
    require_match([good])
    with pytest.raises(MismatchError, match=r"d_x: want relative error <= 1e-05, got"):
        require_match([good, dataclasses.replace(good, quantity="d_x", relative_error=error)])


@pytest.mark.real_data
def test_the_trained_model_matches_its_original(real_data):
    comparisons = check_trained_model(real_data)
    require_match(comparisons)
    names = {c.quantity for c in comparisons}
    with np.load(real_data / EXPECTED) as arrays:
        assert names == set(arrays.files) - {"x", "noise", "sigma_scale", "grad_output"}


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("key", "noticed"),
    [
        ("core.features.layer2.ds_conv.spatial_conv.weight", {"core_mean", "y", "d_x"}),
        ("readout.26872-17-20._features", {"y", "y_sampled"}),
        ("readout.26872-17-20.sigma", {"y_sampled"}),
        ("readout.26872-17-20.mu_transform.2.weight", {"y", "d_mu_transform_0_weight"}),
    ],
)
def test_one_wrong_weight_is_noticed(real_data, tmp_path, console, key, noticed):
    (tmp_path / MOUSE_V1).parent.mkdir()
    shutil.copy(real_data / EXPECTED, tmp_path / EXPECTED)
    state = torch.load(real_data / MOUSE_V1, map_location="cpu", weights_only=True)
    state[key].view(-1)[5] += 0.01 * state[key].abs().max()
    torch.save(state, tmp_path / MOUSE_V1)
    failed = {c.quantity for c in check_trained_model(tmp_path) if not c.holds}
    assert noticed <= failed
    with pytest.raises(MismatchError, match="y_sampled"):
        demo._trained_model(tmp_path, console)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    _files.replace(path, b"old")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        _files.replace(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
    assert path.read_bytes() == b"old"
