"""``v1fast decode`` and ``v1fast normative``: what they write, and what they say of mistakes."""

import importlib
import json

import numpy as np
import pytest

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("sklearn")
pytestmark = pytest.mark.once


def run(*words):
    from v1fast.cli import app

    return typer_testing.CliRunner().invoke(app, [*map(str, words)], env={"V1FAST_REAL_DATA": ""})


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A file of Stringer's format: 72 directions, 150 neurons, not z-scored."""
    from v1fast.data import simulate_gratings

    path = tmp_path_factory.mktemp("gratings") / "gratings.npz"
    made = simulate_gratings(150, 72)
    np.savez(path, resp=3 + 2 * made.responses, stimuli=made.trials["orientation"])
    return path


def test_decode(recording, tmp_path):
    result = run("decode", recording, "--quick", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for text in ("reduced rank", "softmax network", "were not z-scored", "errors.csv"):
        assert text in result.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"data", "tuning", "losses", "decoded", "errors", "weights", "sizes", "xor"}
    assert names == {"errors.csv", "classes.csv", "sizes.csv", *(f"{name}.png" for name in pictures)}
    lines = (tmp_path / "out" / "errors.csv").read_text().splitlines()
    assert lines[0].startswith("decoder,split,rate,circular_error,circular_chance,plain_error")
    assert len(lines) == 1 + 2 * 7


def test_decode_prints_json(recording, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("v1fast.cli.decode"), "_pictures", lambda *found: {})
    result = run("decode", recording, "--quick", "--json", "--splits", 1, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {row["decoder"] for row in found["decoders"]} >= {"linear", "DeepNetReLU", "ridge, cosine and sine"}
    assert found["macaque"] == []


def test_normative(recording, tmp_path):
    words = ("--quick", "--tasks", "orientation", "--images", 50, "--epochs", 1, "--out", tmp_path)
    result = run("normative", recording, *words, "--bin-degrees", 20)
    assert result.exit_code == 0, result.output
    for text in ("75 neurons of V1", "encoding model", "orientation: CNN"):
        assert text in result.output
    pictures = {"stimuli", "filters", "losses", "rdms", "rows", "tuning", "maps", "layers", "tasks"}
    assert {path.name for path in tmp_path.iterdir()} == {"similarity.csv", *(f"{name}.png" for name in pictures)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["decode", "nothing.npz"], "nothing.npz: No such file or directory"),
        (["decode", "{}", "--activation", "step"], "activation: want one of none, relu, tanh, sigmoid, got 'step'"),
        (["decode", "{}", "--bin-degrees", "-1"], "bin_degrees: want a number > 0, got -1.0"),
        (["decode", "{}", "--bin-degrees", "90"], "want responses to at least 10 stimuli, got 4"),
        (["decode", "{}", "--rate", "-1"], "rate: want > 0, got -"),
        (["normative", "{}", "--tasks", "faces"], "tasks: want one of tilt, orientation, rotation, objects"),
        (["normative", "{}", "--size", "6"], "size: want an odd number, got 6"),
        (["normative", "{}", "--bin-degrees", "0"], "bin_degrees: want > 0, got 0.0"),
    ],
)
def test_mistakes_are_one_line(recording, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    result = run(*[word.format(recording) for word in words], "--quiet")
    assert result.exit_code == 2
    assert said in result.output
    assert result.output.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["decode", "normative"])
def test_a_file_where_the_folder_should_be_is_said_at_once(recording, tmp_path, command):
    (tmp_path / "file").write_text("")
    result = run(command, recording, "--out", tmp_path / "file" / "out")
    assert result.exit_code == 1
    assert result.output.endswith("file: Not a directory\n")
    assert result.output.count("\n") == 1


def test_images_without_orientations(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, resp=np.ones((12, 3)), istim=np.arange(12), images=np.zeros((12, 4, 4)))
    result = run("decode", path)
    assert result.exit_code == 2
    assert "want orientations of the trials (stimuli), got none" in result.output
