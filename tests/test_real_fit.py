"""A real recording through the command line: 103 neurons of mouse V1, 50 photographs (Antolik et al. 2016)."""

import json

import numpy as np
import pytest

CliRunner = pytest.importorskip("typer.testing").CliRunner
app = pytest.importorskip("v1fast.cli").app
for _module in ("yaml", "lightning", "torchmetrics", "safetensors"):
    pytest.importorskip(_module)

from v1fast.data import read_arrays, write_arrays  # noqa: E402

pytestmark = [pytest.mark.once, pytest.mark.real_data, pytest.mark.usefixtures("one_thread")]


def v1fast(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="v1fast")
    assert result.exit_code == 0, result.stderr or result.exception
    return result


def test_a_real_recording_is_fitted_judged_and_predicted(real_data, tmp_path):
    folder = real_data / "antolik_mouse_v1"
    responses = np.load(folder / "region1_raw_validation_set.npy")  # [10 repeats, 50 images, 103 neurons]
    images = np.load(folder / "region1_validation_inputs.npy").reshape(-1, 31, 31)
    order, tiers = np.random.default_rng(0).permutation(50), np.empty(50, "U10")
    tiers[order[:35]], tiers[order[35:40]], tiers[order[40:]] = "train", "validation", "test"
    recording = read_arrays({"images": images, "responses": responses, "tiers": tiers}, name="antolik")
    write_arrays(recording, tmp_path / "antolik.npz")
    run = tmp_path / "run"
    said = v1fast(
        "fit", tmp_path / "antolik.npz", "--preset", "small", "--device", "cpu", "--out", run, "--epochs", "12"
    )
    assert "Note: no cortex in antolik: each neuron's position is learned by itself" in said.stderr
    found = json.loads((run / "metrics.json").read_text())["sessions"]["antolik"]
    assert (found["trials"], found["repeated_images"], found["neurons"]) == (100, 10, 103)
    # Of 35 images a model learns little, and that little is not nothing; the oracle reaches 0.285.
    assert 0.04 < found["single_trial_correlation"]["mean"] < 0.285
    assert found["oracle_correlation"]["mean"] == pytest.approx(0.285, abs=5e-4)
    v1fast("predict", run, tmp_path / "antolik.npz", "--tier", "test", "--out", tmp_path / "predictions.npz", "-q")
    with np.load(tmp_path / "predictions.npz") as arrays:
        np.testing.assert_allclose(arrays["responses"], np.asarray(recording.responses)[arrays["trials"]], rtol=1e-5)
        r = [np.corrcoef(a, b)[0, 1] for a, b in zip(arrays["predictions"].T, arrays["responses"].T, strict=True)]
    assert np.nanmean(r) == pytest.approx(found["single_trial_correlation"]["mean"], abs=1e-4)
