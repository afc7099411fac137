"""``v1fast rsa``: on files, and on the published recordings."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from v1fast import _files, functional, rsa
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
    matrices = [
        rsa.rdm_of_repeats(repeats, "correlation"),
        *(functional.rdm(x, condensed=True) for x in (model, pixels)),
    ]
    for name, matrix in zip(("v1", "model", "pixels"), matrices, strict=True):
        np.testing.assert_allclose(np.load(folder / "out" / f"{name}_rdm.npy"), matrix, atol=1e-6)
    about = summary["systems"]["v1"]
    reliable = rsa.reliability(repeats, crossvalidate=True)
    assert about["split_half"] == pytest.approx(reliable.of_half)
    assert about["reliability"] == pytest.approx(reliable.of_all)
    assert about["noise_ceiling"] == pytest.approx(reliable.ceiling)
    assert about["matrix"] == "cross-validated correlation of 6 repeats"
    assert "matrix cross-validated correlation of 6 repeats" in result.output
    assert summary["systems"]["model"] == {"stimuli": 20, "neurons": 30}
    found = summary["similarities"]["model"]
    assert found["similarity"] == pytest.approx(rsa.compare(matrices[0], matrices[1]), abs=1e-6)
    assert found["interval"][0] < found["similarity"] < found["interval"][1]
    # The entries of v1's matrix are not equally precise. All systems have the same test.
    tests = rsa.studentized_tests(matrices[0], np.stack(matrices[1:]))
    for k, name in enumerate(("model", "pixels")):
        each = summary["similarities"][name]
        assert [each[key] for key in ("p", "p_familywise", "p_fdr")] == [tests.p[k], tests.familywise[k], tests.fdr[k]]
        assert each["test"] == "studentized permutations"
    assert any("p are studentized" in note for note in summary["notes"])
    assert found["p_familywise"] < 0.01
    rows = list(csv.DictReader((folder / "out" / "similarities.csv").open(newline="")))
    assert [row["systems"] for row in rows] == ["v1 and model", "v1 and pixels"]
    assert [float(row["p_familywise"]) for row in rows] == tests.familywise.tolist()
    assert [row["test"] for row in rows] == ["studentized permutations"] * 2
    (row,) = csv.DictReader((folder / "out" / "differences.csv").open(newline=""))
    assert (row["model"], row["other"]) == ("model", "pixels")
    for said in ("familywise", "FDR", "p are studentized", "Differences"):
        assert said in result.output
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
    matrices = [rsa.rdm_of_repeats(repeats), functional.rdm(pixels, method="euclidean")]
    assert found["similarity"] == pytest.approx(rsa.compare(*matrices, similarity), abs=1e-6)
    assert ("p" in found) == (similarity == "spearman")


def test_noise_and_averages(run, files):
    """The options of noise; what is written, and what the report says of it."""
    pytest.importorskip("sklearn")
    folder, repeats, _, pixels = files
    other = folder / "other.npy"
    np.save(other, repeats[:3] + 1)

    def of(*options, dissimilarity="euclidean", similarity="pearson"):
        given = (folder / "v1.npy", other, folder / "pixels.mat")
        named = ("--dissimilarity", dissimilarity, "--similarity", similarity)
        result = run(*given, *named, *options, "--out", folder / "out")
        assert result.exit_code == 0, result.output
        summary = json.loads((folder / "out" / "summary.json").read_text())
        return summary["systems"], summary["similarities"], np.load(folder / "out" / "v1_rdm.npy")

    systems, similar, rdm = of()
    np.testing.assert_allclose(rdm, rsa.rdm_of_repeats(repeats), rtol=1e-5)
    assert systems["v1"]["matrix"] == "crossnobis of 6 repeats"
    assert systems["other"]["split_half_of"] == "mean responses"  # halves of three repeats cannot be cross-validated
    test = rsa.studentized_test(rdm, functional.rdm(pixels, method="euclidean"))
    assert similar["pixels"]["p"] == pytest.approx(test.p)
    for shrinkage in ("diagonal", "ledoit-wolf"):
        systems, _, rdm = of("--noise", shrinkage, dissimilarity="crossnobis")
        precision = rsa.noise_precision(repeats, shrinkage=shrinkage)
        np.testing.assert_allclose(rdm, rsa.rdm_of_repeats(repeats, "crossnobis", noise=precision), rtol=1e-4)
        assert systems["v1"]["matrix"] == f"crossnobis of 6 repeats; noise covariance: {shrinkage}"
        halves = rsa.split_half(repeats, dissimilarity="crossnobis", noise=precision)
        assert systems["v1"]["split_half"] == pytest.approx(halves.mean(), abs=1e-5)
        _, _, rdm = of("--noise", shrinkage, "--no-crossvalidate", dissimilarity="mahalanobis")
        want = functional.rdm(repeats.mean(0), method="mahalanobis", noise=precision, condensed=True)
        np.testing.assert_allclose(rdm, want, rtol=1e-4)
    systems, similar, rdm = of("--no-crossvalidate", dissimilarity="correlation")
    np.testing.assert_allclose(rdm, functional.rdm(repeats.mean(0), condensed=True), atol=1e-6)
    assert systems["v1"]["matrix"] == "correlation of the mean of 6 repeats, which noise biases"
    assert similar["pixels"]["p"] == rsa.permutation_test(rdm, functional.rdm(pixels)).p
    assert similar["pixels"]["test"] == "permutations"
    _, similar, rdm = of("--sigma-k", similarity="whitened-cosine")
    sigma = rsa.stimulus_noise(repeats)
    want = rsa.compare(rdm, functional.rdm(pixels, method="euclidean"), "cosine_cov", sigma_k=sigma)
    assert similar["pixels"]["similarity"] == pytest.approx(want, abs=1e-6)
    for message, options in {
        "noise: want one of none, diagonal, ledoit-wolf, got 'full'": ("--noise", "full"),
        "noise: want none beside dissimilarity 'correlation', got diagonal": ("--noise", "diagonal"),
        "sigma_k: want None beside method 'pearson'": ("--sigma-k",),
    }.items():
        result = run(folder / "v1.npy", other, *options, "--out", folder / "bad")
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())
    result = run(
        folder / "pixels.mat", folder / "pixels.mat", "--sigma-k", "--similarity", "cosine_cov", "--out", folder
    )
    assert "sigma_k: want repeats in one of two files, got none" in result.stderr


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


# What goes wrong, and what is the same name -----------------------------------------------------------------------


def one_line(result, name):
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("v1fast: ")
    assert name in lines[0]


def damaged(folder, kind):
    """A file that is not what its name says."""
    whole = folder / "whole"
    name = folder / f"bad.{kind.partition(' ')[0]}"
    content = b""
    if kind.endswith("cut"):
        if "npy" in kind:
            np.save(f"{whole}.npy", np.ones((12, 30)))
        elif "npz" in kind:
            np.savez(f"{whole}.npz", a=np.ones((12, 30)))
        else:
            scipy.io.savemat(f"{whole}.mat", {"a": np.ones((12, 30))})
        content = whole.with_suffix(name.suffix).read_bytes()[:200]
    elif kind.endswith("another's"):
        content = b"\x89HDF\r\n\x1a\n" + bytes(range(200))
    elif kind.endswith("damaged"):
        np.savez(f"{whole}.npz", a=np.random.default_rng(0).random((12, 30)))
        content = bytearray(whole.with_suffix(".npz").read_bytes())
        content[300:400] = bytes(100)
    elif kind.endswith("huge"):
        with name.open("wb") as file:
            header = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**6)}
            np.lib.format.write_array_header_1_0(file, header)
            content = None
    if kind.endswith("directory"):
        name.mkdir()
    elif kind.endswith("pipe"):
        os.mkfifo(name)
    elif kind.endswith("loop"):
        name.symlink_to(name)
    elif kind.endswith("objects"):
        np.save(name, np.array([[1, None], [2, 3]], dtype=object))
    elif kind.endswith("text"):
        np.save(name, np.array([["a", "b"], ["c", "d"]]))
    elif kind.endswith("complex"):
        np.save(name, np.ones((12, 30), complex))
    elif kind.endswith("large integers"):
        np.save(name, np.full((12, 30), (1 << 53) + 1))
    elif content is not None:
        name.write_bytes(content)
    return name


DAMAGES = [f"{kind} {how}" for kind in ("npy", "npz", "mat") for how in ("empty", "cut", "another's", "directory")]
DAMAGES += ["npz damaged", "npy huge", "npy objects", "npy text", "npy complex", "npy large integers"]
DAMAGES += ["npy pipe", "mat pipe", "npz loop"] if hasattr(os, "mkfifo") else []


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_file_that_cannot_be_read(run, tmp_path, kind):
    given = damaged(tmp_path, kind)
    np.save(tmp_path / "good.npy", np.ones((12, 30)))
    for files in ((given,), (tmp_path / "good.npy", given)):
        one_line(run(*files, "--out", tmp_path / "out"), given.name)
    assert not (tmp_path / "out").exists()


def test_a_file_that_may_not_be_read(run, tmp_path, monkeypatch):
    """Root may read every file, so NumPy is made to refuse."""
    np.save(tmp_path / "mine.npy", np.ones((12, 30)))

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(np, "load", refuse)
    one_line(run(tmp_path / "mine.npy", "--out", tmp_path / "out"), "mine.npy: cannot be read: Permission denied")

    def exhaust(path, **_):
        raise MemoryError("Unable to allocate 7 TiB")

    monkeypatch.setattr(np, "load", exhaust)
    one_line(
        run(tmp_path / "mine.npy", "--out", tmp_path / "out"), "mine.npy: cannot be read: Unable to allocate 7 TiB"
    )


def test_recordings_that_cannot_be_read(run, tmp_path):
    one_line(run("--real-data", tmp_path, "--out", tmp_path / "out"), "kriegeskorte_rdms")
    (tmp_path / "kriegeskorte_rdms").mkdir()
    path = tmp_path / "kriegeskorte_rdms" / "Kriegeskorte_Neuron2008_supplementalData.mat"
    path.write_bytes(b"cut")
    one_line(run("--real-data", tmp_path, "--out", tmp_path / "out"), path.name)


def test_out_is_no_folder(run, files):
    folder, *_ = files
    (folder / "taken").write_text("mine")
    for out in (folder / "taken", folder / "taken" / "below", "/dev/null"):
        result = run(folder / "v1.npy", "--out", out)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
        assert str(out).partition("/below")[0] in result.stderr
    assert (folder / "taken").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="wants links, pipes and devices")
def test_output_replaces_no_link_and_no_device(run, files):
    folder, *_ = files
    out, elsewhere = folder / "out", folder / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (elsewhere / "kept.json").write_text("old")
    for name, target in {
        "summary.json": elsewhere / "kept.json",
        "v1_rdm.npy": elsewhere / "new.npy",
        "rdms.png": elsewhere / "new.png",
    }.items():
        (out / name).symlink_to(target)
    assert run(folder / "v1.npy", "--out", out).exit_code == 0
    assert all((out / name).is_symlink() for name in ("summary.json", "v1_rdm.npy", "rdms.png"))
    assert sorted(path.name for path in elsewhere.iterdir()) == ["kept.json", "new.npy", "new.png"]
    assert "systems" in json.loads((elsewhere / "kept.json").read_text())
    assert len(np.load(elsewhere / "new.npy")) == 190
    for name in ("summary.json", "v1_rdm.npy"):
        for make in (
            os.mkfifo,
            lambda path: path.symlink_to("/dev/null"),
            Path.mkdir,
            lambda path: path.symlink_to(path),
        ):
            (out / name).unlink()
            make(out / name)
            before = (out / name).lstat()
            result = run(folder / "v1.npy", "--out", out)
            assert result.exit_code == 1
            assert name in result.stderr
            assert len(result.stderr.splitlines()) == 1
            assert (out / name).lstat().st_ino == before.st_ino
            if (out / name).is_dir():
                (out / name).rmdir()
                (out / name).touch()
        (out / name).unlink()
    assert Path("/dev/null").is_char_device()


def test_the_summary_is_written_before_anything_else_can_fail(run, files, monkeypatch):
    folder, *_ = files

    def fail(*_, **__):
        raise OSError(28, "No space left on device", "rdms.png")

    monkeypatch.setattr(report, "_pictures_of_files", fail)
    result = run(folder / "v1.npy", "--out", folder / "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert set(json.loads((folder / "out" / "summary.json").read_text())["systems"]) == {"v1"}


def test_a_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*summary\.json'"):
            _files.replace(path, b"new")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match=r"summary\.json"):
            _files.replace(path, b"new")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("summary.json", "old")]


@pytest.mark.parametrize(
    ("specs", "names"),
    [
        (["a.npy", "b.npy"], ["a", "b"]),
        (["x/a.npy", "y/a.npy"], ["x_a", "y_a"]),
        (["1/x/a.npy", "2/x/a.npy"], ["1_x_a", "2_x_a"]),
        (["1/x/a.npy", "2/x/a.npy", "x_a.npy"], None),
        (["a.npy", "a.npz", "a.mat"], None),
        (["x/a.npy", "x/a.npy"], None),
        (["m.npz:one", "m.npz:two"], ["m_one", "m_two"]),
        (["m.npz:one", "m.npz:two", "m_one.npy"], None),
        (["1/m.npz:one", "2/m.npz:one"], ["1_m_one", "2_m_one"]),
        (["m.npz:a/b", "m.npz:a:b", "m.npz:a_b"], None),
        (["A.npy", "a.npy"], None),
        (["a.npy", "x/a.npy", "x_a.npy", "y/x_a.npy"], None),
        (["[red].npy", "\n.npy", "\udcff.npy", f"{'é' * 120}.npy"], None),
    ],
)
def test_every_file_has_a_name_of_its_own(specs, names):
    found = report.names_of(specs)
    assert names in (None, found)
    assert len({name.casefold() for name in found}) == len(specs)
    for name in found:
        assert len(f".{name}_rdm.npy.partial".encode()) < 255
        assert not set(name) & set("/:[]\n")


def test_undefined_is_said_and_counted(run, tmp_path):
    draw = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", draw.normal(size=(12, 30)))
    silent = 2 * draw.normal(size=(12, 30)) + draw.normal(size=(8, 12, 30))
    silent[[0, 2, 5]] = np.nan  # some halves have a single repeat left
    np.save(tmp_path / "some.npy", silent)
    np.save(tmp_path / "none.npy", np.ones((12, 30)))
    few = np.zeros((12, 2))
    few[:1, 0] = few[1:, 1] = 1  # two categories, of which one has a single stimulus
    np.save(tmp_path / "few.npy", few)
    names = ("a", "some", "none", "few")
    given = [tmp_path / f"{name}.npy" for name in names]
    result = run(*given, "--out", tmp_path / "out", "--dissimilarity", "cosine", "--similarity", "pearson")
    assert result.exit_code == 0, result.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert 0 < summary["systems"]["some"]["undefined_splits"] < 100
    assert np.isfinite(summary["systems"]["some"]["split_half"])
    none = summary["similarities"]["none"]
    assert np.isnan([none["similarity"], none["p"], *none["interval"]]).all()
    assert none["undefined_resamplings"] == 1000
    # A resampling without the single stimulus (11 of 12 each time) has one category.
    assert 250 < summary["similarities"]["few"]["undefined_resamplings"] < 450
    assert "nan" in result.stdout
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    result = run(*given[:3], "--out", tmp_path / "two")
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["systems"]["none"]["undefined_pairs"] == 66


def test_integers_and_other_byte_orders_are_exact(tmp_path):
    x = np.random.default_rng(0).integers(0, 9, size=(12, 30))
    for name, given, dtype in (
        ("small", x, np.float32),
        ("large", x + (1 << 40), np.float64),
        ("swapped", (x / 3).astype(">f8"), np.float64),
    ):
        np.save(tmp_path / f"{name}.npy", given)
        found = report.load_responses(str(tmp_path / f"{name}.npy"))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, given)


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
