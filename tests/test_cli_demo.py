"""``v1fast demo`` at tiny sizes."""

import contextlib
import io
import json
import math
import os

import pytest
import torch

from v1fast import ops
from v1fast.models.pretrained import MOUSE_V1
from v1fast.models.reproduction import Comparison, MismatchError

pytest.importorskip("skimage")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
demonstration = pytest.importorskip("v1fast.cli._demonstration")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One quick run: the folder, what it returned, what it printed, and whether torch's random numbers went on."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    printed, before = io.StringIO(), torch.random.get_rng_state()
    with contextlib.redirect_stdout(printed):
        summary = demonstration.demonstrate(out, None, quick=True)
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
    assert f"correlation {simulated['history'][-1]['val_correlation']:.4f}" in lines[-1]


def test_the_quick_run_times_the_same_function(quick):
    for timed in quick[1]["speed"].values():
        assert timed["largest_difference"] < 1e-4
        assert timed["ratio"] == timed["eager_ms"] / timed["v1fast_ms"] > 0
        assert set(timed["shape"]) == set("BCHWN")


def test_the_callers_random_numbers_are_left_alone(quick):
    assert quick[3]


def test_a_folder_that_is_not_there_is_left_out(tmp_path, console):
    assert "nowhere" in demonstration._trained_model(tmp_path / "nowhere", console)["skipped"]


def test_a_folder_without_the_model_is_an_error(tmp_path, console):
    with pytest.raises(FileNotFoundError, match=MOUSE_V1.name):
        demonstration._trained_model(tmp_path, console)


def test_a_model_that_does_not_match_ends_the_demo(tmp_path, console, monkeypatch):
    wrong = Comparison("y_sampled", math.nan, 1.0, math.nan, 1e-5)
    monkeypatch.setattr(demonstration, "check_trained_model", lambda folder: [wrong])
    with pytest.raises(MismatchError, match="y_sampled"):
        demonstration._trained_model(tmp_path, console)
    assert "y_sampled" in console.file.getvalue()  # the table is printed before
