"""``v1fast rsa``: on files, and on the published recordings."""

import json

import numpy as np
import pytest
import scipy.io

from v1fast import functional, rsa
from v1fast.rsa import recordings, report

pytest.importorskip("matplotlib")
CliRunner = pytest.importorskip("typer.testing").CliRunner


@pytest.fixture
def run(monkeypatch):
    from v1fast.cli import app

    monkeypatch.delenv("V1FAST_REAL_DATA", raising=False)
    return lambda *arguments: CliRunner().invoke(app, ["rsa", *map(str, arguments)], prog_name="v1fast")


@pytest.fixture
def files(tmp_path):
    """Responses of three systems that have something in common, in three formats."""
    draw = np.random.default_rng(0)
    common = draw.normal(size=(20, 15))
    repeats = (common + draw.normal(size=(6, 20, 15))).astype(np.float32)
    model, pixels = common @ draw.normal(size=(15, 30)), common[:, :5] + draw.normal(size=(20, 5))
    np.save(tmp_path / "v1.npy", repeats)
    np.savez(tmp_path / "model.npz", layer1=model, layer2=pixels, names=np.array(["a"]))
    scipy.io.savemat(tmp_path / "pixels.mat", {"images": pixels, "about": "words"})
    return tmp_path, repeats, model, pixels


def test_files_are_compared_with_the_first(run, files):
    folder, repeats, model, pixels = files
    given = [folder / "v1.npy", f"{folder / 'model.npz'}:layer1", folder / "pixels.mat"]
    result = run(*given, "--out", folder / "out")
    assert result.exit_code == 0, result.output
    summary = json.loads((folder / "out" / "summary.json").read_text())
    matrices = [functional.rdm(x, condensed=True) for x in (repeats.mean(0), model, pixels)]
    for name, matrix in zip(("v1", "model", "pixels"), matrices, strict=True):
        np.testing.assert_allclose(np.load(folder / "out" / f"{name}_rdm.npy"), matrix, atol=1e-6)
    assert summary["systems"]["v1"]["split_half"] == pytest.approx(rsa.split_half(repeats).mean())
    assert summary["systems"]["model"] == {"stimuli": 20, "neurons": 30}
    found = summary["similarities"]["model"]
    assert found["similarity"] == pytest.approx(rsa.compare(matrices[0], matrices[1]), abs=1e-6)
    assert found["interval"][0] < found["similarity"] < found["interval"][1]
    assert found["p"] < 0.01
    for name in ("rdms", "similarity", "maps"):
        assert (folder / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "v1 and model" in result.output


@pytest.mark.parametrize("similarity", ["spearman", "tau-a", "cosine_cov"])
def test_other_measures(run, files, similarity):
    folder, repeats, _, pixels = files
    arguments = ("--similarity", similarity, "--dissimilarity", "euclidean", "--out", folder / "out")
    result = run(folder / "v1.npy", folder / "pixels.mat", *arguments)
    assert result.exit_code == 0, result.output
    found = json.loads((folder / "out" / "summary.json").read_text())["similarities"]["pixels"]
    matrices = [functional.rdm(x, method="euclidean") for x in (repeats.mean(0), pixels)]
    assert found["similarity"] == pytest.approx(rsa.compare(*matrices, similarity), abs=1e-6)
    assert ("p" in found) == (similarity == "spearman")


def test_matrices_that_do_not_fit_are_compared_from_the_responses(files, monkeypatch):
    folder, repeats, model, _ = files
    monkeypatch.setattr(report, "MOST_IN_MEMORY", 10)
    given = [str(folder / "v1.npy"), f"{folder / 'model.npz'}:layer1"]
    found = report.compare_files(given, folder / "out")["similarities"]["model"]
    matrices = [functional.rdm(x) for x in (repeats.mean(0), model)]
    assert found == {"similarity": pytest.approx(rsa.compare(*matrices), abs=1e-6)}
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["model_rdm.npy", "summary.json", "v1_rdm.npy"]


def test_one_file_and_files_of_the_same_name(run, files):
    folder, *_ = files
    other = folder / "other"
    other.mkdir()
    np.save(other / "v1.npy", np.random.default_rng(1).normal(size=(20, 4)))
    assert run(folder / "v1.npy", "--out", folder / "out").exit_code == 0
    result = run(folder / "v1.npy", other / "v1.npy", "--out", folder / "both")
    assert result.exit_code == 0, result.output
    assert (folder / "both" / "other_v1_rdm.npy").exists()
    layers = [f"{folder / 'model.npz'}:layer{k}" for k in (1, 2)]
    assert run(*layers, "--out", folder / "layers").exit_code == 0
    assert (folder / "layers" / "model_layer2_rdm.npy").exists()


def test_matlabs_newer_format(tmp_path):
    h5py = pytest.importorskip("h5py")
    x = np.random.default_rng(0).normal(size=(3, 5, 4))
    with h5py.File(tmp_path / "new.mat", "w", userblock_size=512) as file:
        file["responses"] = x.T
    with (tmp_path / "new.mat").open("r+b") as file:  # as MATLAB begins such a file
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    np.testing.assert_array_equal(report.load_responses(str(tmp_path / "new.mat")), x)


def test_says_what_is_wrong_with_a_file(run, files):
    folder, *_ = files
    np.save(folder / "short.npy", np.ones((4, 3)))
    for given, said in {
        (): "want files of responses, or V1FAST_REAL_DATA set",
        (folder / "nowhere.npy",): "nowhere.npy",
        (folder / "v1.txt",): "want a file of .npy, .npz, .mat, got .txt",
        (folder / "model.npz",): "want one array [S, N] or [repeats, S, N], got layer1, layer2",
        (f"{folder / 'model.npz'}:layer3",): "FILE:NAME picks one of several",
        (folder / "v1.npy", folder / "short.npy"): "files: want the same stimuli in all, got [20, 4]",
        (folder / "v1.npy", "--similarity", "kappa"): "method: want one of pearson",
        (folder / "v1.npy", "--dissimilarity", "angle"): "method: want one of correlation, cosine, euclidean",
    }.items():
        result = run(*given, "--out", folder / "out")
        assert result.exit_code == 2, given
        words = " ".join(result.stderr.replace("│", " ").split())
        assert said.replace(" ", "") in words.replace(" ", ""), (said, words)
    assert not (folder / "out").exists() or not (folder / "out" / "summary.json").exists()


# Published recordings --------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_monkey_and_human_inferotemporal_cortex(real_data):
    data = recordings.kriegeskorte(real_data)
    # Kriegeskorte et al. 2008, figure 3, prints .49.
    assert rsa.compare(data.monkey, data.human) == pytest.approx(0.4912, abs=5e-5)
    assert 1 - rsa.compare(data.subjects.mean(0), data.human) < 1e-12
    np.testing.assert_allclose(data.subjects.mean(0), data.human, atol=1e-7)
    test = rsa.permutation_test(data.monkey, data.human)
    assert test.p == 1 / 1001
    assert abs(test.null.mean()) < 0.01
    lower, upper = rsa.noise_ceiling(data.subjects)
    assert 0.3 < lower < upper < 0.6
    assert [data.groups.count(group) for group in dict.fromkeys(data.groups)] == [12, 12, 12, 12, 23, 21]


@pytest.mark.real_data
def test_mouse_v1_and_a_model_of_it(real_data):
    responses, images = recordings.antolik(real_data)
    assert rsa.split_half(responses, splits=200).mean() == pytest.approx(0.59, abs=0.02)
    v1 = functional.rdm(rsa.average_repeats(responses)[0], accuracy="high")
    pixels = functional.rdm(images.reshape(50, -1), accuracy="high")
    model = recordings.model_activations(real_data, images)
    assert model["neurons"].shape == (50, 7776)
    assert model["core"].shape == (50, 64 * 28 * 56)
    similar = {
        name: rsa.compare(v1, rdm)
        for name, rdm in {"pixels": pixels, **{name: functional.rdm(x) for name, x in model.items()}}.items()
    }
    print({name: round(float(value), 3) for name, value in similar.items()})
    # A model of other mice's neurons is nearer to these than the pixels are.
    assert 0.1 < similar["pixels"] < similar["neurons"] < 0.5


@pytest.mark.real_data
def test_report_on_the_recordings(real_data, run, tmp_path):
    result = run("--real-data", real_data, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "monkey and human: 0.4912" in result.output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) == {"inferotemporal", "mouse_v1", "macaque_v1"}
    assert summary["macaque_v1"]["split_half"] > 0.78
    assert len(list(tmp_path.glob("*.png"))) == 7
