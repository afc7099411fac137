"""``v1fast data show`` and ``simulate``; ``get`` is in test_download.py."""

import json

import numpy as np
import pytest
from recorded import recording, video

from v1fast.data import read, read_all, write

typer_testing = pytest.importorskip("typer.testing")
pytestmark = pytest.mark.once


def run(*words):
    from v1fast.cli import app

    return typer_testing.CliRunner().invoke(app, ["data", *map(str, words)])


def test_show(tmp_path):
    for number in range(2):
        write(recording(seed=number), tmp_path / f"static{number}-1-1.zip")
    write(video(), tmp_path / "movie.npz", "arrays")
    result = run("show", tmp_path)
    assert result.exit_code == 0
    names = ["movie", "0-1-1", "1-1-1"]
    assert [line.partition(":")[0] for line in result.output.splitlines()] == [f"Recording '{name}'" for name in names]
    shown = json.loads(run("show", tmp_path, "--json").output)
    assert shown["0-1-1"]["neurons"] == 6
    assert shown["movie"]["video"]
    assert json.loads(run("show", tmp_path / "static0-1-1.zip", "--json").output).keys() == {"0-1-1"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "nothing: No such file or directory"),
        (["."], "want a Sensorium folder"),
        (
            ["a.npz", "--format", "matlab"],
            "format: want one of sensorium, openretina, stringer, arrays, nwb, got 'matlab'",
        ),
        (["a.npz", "a.npz"], "want recordings of different names, got a for"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    if "a.npz" in words:
        write(recording(name="a"), "a.npz", "arrays")
    result = run("show", *words)
    assert result.exit_code == 2
    assert said in result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("format", ["sensorium", "openretina", "stringer", "arrays"])
def test_simulate(tmp_path, format):
    pytest.importorskip("skimage")
    if format == "openretina":
        pytest.importorskip("h5py")
    numbers = {"animals": 2, "neurons": 4, "train": 6, "validation": 2, "test": 2, "height": 20, "width": 24}
    sizes = [word for name, number in numbers.items() for word in (f"--{name}", number)]
    result = run("simulate", tmp_path / "out", *sizes, "--format", format)
    assert result.exit_code == 0, result.output
    found = read_all(tmp_path / "out")
    assert list(found) == ["animal0", "animal1"]
    assert all(one.images.shape[1:] == (1, 20, 24) and one.responses.shape[1] == 4 for one in found.values())
    if format != "stringer":
        assert found["animal0"].behavior.shape[1] == 1
        assert np.ptp(found["animal0"].trials["gaze"]) > 0
        assert found["animal1"].neurons["position"].shape == (4, 2)
    again = run("simulate", tmp_path / "out", *sizes, "--format", format)
    assert again.exit_code == 1
    assert "want a path where nothing is" in again.output or "File exists" in again.output
    assert run("simulate", tmp_path / "more", *sizes, "--format", format, "-q").output == ""


def test_simulate_says_what_is_wrong(tmp_path):
    pytest.importorskip("skimage")
    for words, said in (
        (["--neurons", 0], "neurons: want >= 1, got 0"),
        (["--noise", "white"], "noise: want 'poisson'"),
        (["--subfields", 4], "subfields: want at most 3, got 4"),
    ):
        result = run("simulate", tmp_path / "out", *words)
        assert result.exit_code == 2
        assert said in result.output
    assert not (tmp_path / "out").exists()


def test_what_simulate_writes_is_what_python_gives(tmp_path):
    pytest.importorskip("skimage")
    from v1fast.data import simulate_animals

    run("simulate", tmp_path, "--animals", 1, "--neurons", 3, "--train", 5, "--validation", 2, "--test", 2, "--seed", 4)
    (drawn,) = simulate_animals(1, 3, train=5, validation=2, test=2, seed=4)
    np.testing.assert_array_equal(read(tmp_path / "animal0").responses[:], drawn.to_recording().responses)
