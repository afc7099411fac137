"""Files that are wrong, cut or do not fit together: one line says which file, which array, what was wanted, what came.

Nothing is unpickled on the way: a file that would do something if it were is among them.
"""

import contextlib
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from recorded import recording

from v1fast.data import loaders, read, write

pytestmark = pytest.mark.once


class Bomb:
    """Fails the test when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("something was unpickled",)


def cut(path, size=-20):
    content = path.read_bytes()
    path.write_bytes(content[:size])


def rewrite(path, **arrays):
    """Replace or, by None, remove arrays of an .npz."""
    with np.load(path) as found:
        kept = {**{name: found[name] for name in found.files}, **arrays}
    np.savez(path, **{name: values for name, values in kept.items() if values is not None})


def flip(path, where):
    """Change one byte of a file's content in an archive, as a bad disk would."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(where)
    content[info.header_offset + 30 + len(where) + info.compress_size // 2] ^= 255
    path.write_bytes(bytes(content))


def without(path, name):
    """An archive without one of its files."""
    with zipfile.ZipFile(path) as archive:
        kept = {each: archive.read(each) for each in archive.namelist() if each != name}
    with zipfile.ZipFile(path, "w") as archive:
        for each, content in kept.items():
            archive.writestr(each, content)


def in_scan(name, values):
    return lambda scan: np.save(scan / name, values, allow_pickle=True)


def in_h5(name, values=None):
    def change(path):
        import h5py

        with h5py.File(path, "r+") as file:
            if name in file:
                del file[name]
            if values is not None:
                file[name] = values

    return change


def put(path, content):
    path.write_bytes(content)


SCAN = [
    (
        lambda s: (s / "data/responses/5.npy").unlink(),
        r"responses: want 0.npy to 22.npy, got 23 files, 5.npy is missing",
    ),
    (lambda s: (s / "data/images/23.npy").unlink(), r"data/images: want 24 files, one for each of .*responses, got 23"),
    (lambda s: shutil.rmtree(s / "data/images"), r"scan/data/images: want 0.npy, 1.npy, ..., got no such file"),
    (lambda s: shutil.rmtree(s / "data/responses"), r"want a Sensorium folder .* got a folder with data, meta"),
    (lambda s: shutil.rmtree(s / "meta"), r"scan/meta/trials: want tiers.npy, got none"),
    (lambda s: (s / "meta/trials/tiers.npy").unlink(), r"scan/meta/trials: want tiers.npy, got none"),
    (in_scan("meta/trials/tiers.npy", ["train"] * 23), r"trials/tiers.npy: want \[T, ...\], T = 24, got \(23,\)"),
    (in_scan("meta/trials/tiers.npy", np.zeros(24)), r"scan: tiers: want text, got float64"),
    (in_scan("meta/trials/tiers.npy", np.array([Bomb()] * 24)), r"trials/tiers.npy: cannot be read: .*pickled objects"),
    (
        lambda s: cut(s / "data/responses/7.npy"),
        r"responses/7.npy: want 176 bytes for float64 \(6,\), got 156: it is cut",
    ),
    (
        lambda s: cut(s / "data/images/0.npy"),
        r"images/\d+.npy: want 512 bytes for float32 \(1, 8, 12\), got 492: it is cut",
    ),
    (lambda s: put(s / "data/images/3.npy", b""), r"data/images/3.npy: cannot be read: it is empty"),
    (lambda s: put(s / "data/images/3.npy", b"<html>"), r"data/images/3.npy: cannot be read: it is no .npy file"),
    (
        in_scan("data/responses/4.npy", np.ones(7)),
        r"responses/4.npy: want \[N\] = \(6,\) as in 0.npy, got float64 \(7,\)",
    ),
    (
        in_scan("data/images/9.npy", np.ones((1, 12, 8), "f")),
        r"images/9.npy: want \[C, H, W\] = \(1, 8, 12\) as in 0.npy",
    ),
    (in_scan("data/responses/0.npy", np.ones((6, 1))), r"responses/0.npy: want numbers \[N\], got float64 \(6, 1\)"),
    (in_scan("data/behavior/0.npy", np.array(["a", "b", "c"])), r"behavior/0.npy: want numbers \[K\], got <U1 \(3,\)"),
    (in_scan("data/responses/2.npy", np.array([Bomb()] * 6)), r"responses/2.npy: cannot be read: .*pickled objects"),
    (in_scan("data/pupil_center/1.npy", np.ones(3)), r"pupil_center/1.npy: want \[2\] = \(2,\) as in 0.npy, got"),
    (
        in_scan("meta/neurons/cell_motor_coordinates.npy", np.ones((5, 3))),
        r"coordinates.npy: want \[N, ...\], N = 6, got \(5",
    ),
    (
        in_scan("meta/neurons/cell_motor_coordinates.npy", np.ones((6, 4))),
        r"cortex: want \[N, 2\] or \[N, 3\], N = 6, got",
    ),
    (in_scan("meta/neurons/unit_ids.npy", np.arange(9)), r"neurons/unit_ids.npy: want \[N, ...\], N = 6, got \(9,\)"),
    (lambda s: (s / "meta/statistics/images/all/std.npy").unlink(), r"images/all: want std.npy, got none"),
    (
        in_scan("meta/statistics/responses/all/std.npy", np.ones(5)),
        r"statistics of responses: want std \(6,\), got \(5,\)",
    ),
    (
        in_scan("meta/statistics/images/all/std.npy", 0.0),
        r"statistics of images: want a std > 0, got 0: it does not vary",
    ),
    (in_scan("meta/statistics/images/all/mean.npy", np.nan), r"images/all/mean.npy: want finite numbers"),
    (
        in_scan("meta/statistics/behavior/all/std.npy", np.r_[1, 0, 1.0]),
        r"statistics of behavior: want a std > 0, got 0",
    ),
    (
        lambda s: cut(s / "meta/trials/frame_image_id.npy"),
        r"frame_image_id.npy: cannot be read: it is cut: want 320 bytes",
    ),
]
ZIP = [
    (lambda p: cut(p, 2000), r"scan.zip: cannot be read: File is not a zip file"),
    (lambda p: put(p, b"<html>404</html>"), r"scan.zip: cannot be read: File is not a zip file"),
    (lambda p: put(p, b""), r"scan.zip: cannot be read: File is not a zip file"),
    (lambda p: flip(p, "scan/data/responses/11.npy"), r"scan.zip/scan/data/responses/11.npy: cannot be read: "),
    (lambda p: without(p, "scan/data/images/12.npy"), r"images: want 0.npy to 22.npy, got 23 files, 12.npy is missing"),
    (lambda p: without(p, "scan/meta/trials/tiers.npy"), r"scan.zip/scan/meta/trials: want tiers.npy, got none"),
]
NPZ = [
    (lambda p: rewrite(p, responses=None), r"a.npz: want an array responses, got image"),
    (lambda p: rewrite(p, images=np.ones((24, 8, 12, 3))), r"a.npz: images: want \[I, C, H, W\], got .* channels last"),
    (lambda p: rewrite(p, responses=np.ones((23, 6))), r"a.npz: behavior: want \[T, ...\], T = 23, got \(24, 3\)"),
    (lambda p: rewrite(p, image_index=np.full(24, 99)), r"a.npz: image_index: want 0 to 19, got 99"),
    (lambda p: rewrite(p, pupil_centre=np.ones((24, 2))), r"a.npz: pupil_centre: want names of images, responses"),
    (
        lambda p: rewrite(p, responses=np.array([[Bomb()] * 6] * 24)),
        r"responses.npy: cannot be read: .*pickled objects",
    ),
    (lambda p: cut(p), r"a.npz: cannot be read: File is not a zip file"),
    (lambda p: p.write_bytes(pickle.dumps({"images": Bomb()})), r"a.npz: cannot be read: File is not a zip file"),
]
OPENRETINA = [
    (lambda p: cut(p, 900), r"a.h5: cannot be read: .*truncated"),
    (lambda p: put(p, b"nothing of the kind"), r"a.h5: cannot be read: "),
    (
        in_h5("responses_train_a", np.ones((6, 11))),
        r"a.h5: responses_train_a: want numbers \[N, T\], T = 12 .* \(6, 11\)",
    ),
    (
        in_h5("responses_train_a", np.ones((5, 12))),
        r"a.h5: responses_train_a: want \[N, T\], N = 6 as in responses_test",
    ),
    (
        in_h5("responses_noise", np.ones((6, 9))),
        r"a.h5: responses_noise: want its stimulus .*stimuli/noise.npy, got none",
    ),
    (in_h5("stimulus_test_a", np.ones((8, 8, 12))), r"a.h5: stimulus_test_a: want \[C, T, H, W\], got \(8, 8, 12\)"),
    (in_h5("stimulus_test_a", np.ones((1, 8, 9, 12))), r"a.h5: stimuli: want \[C, H, W\] = .* in all, got"),
    (in_h5("trials_test_a/behavior", np.ones((3, 3))), r"trials_test_a/behavior: want \[T, ...\], T = 8, got \(3, 3\)"),
    (lambda p: cut(p.parent / "stimuli/train_a.npy"), r"stimuli/train_a.npy: cannot be read: it is cut"),
    (
        lambda p: [in_h5(f"responses_{t}_a")(p) for t in ("train", "test", "validation")],
        r"want datasets responses_<stim",
    ),
]
STRINGER = [
    (lambda p: rewrite(p, istim=np.arange(23)), r"s.npz/istim: want \[S\], S = 24 as in resp, got \(23,\)"),
    (lambda p: rewrite(p, istim=np.full(24, 20)), r"s.npz: image_index: want 0 to 19, got 20"),
    (lambda p: rewrite(p, resp=np.ones(24)), r"s.npz/resp.npy: want numbers \[S, N\], got float64 \(24,\)"),
    (lambda p: rewrite(p, images=None), r"s.npz: want images \[I, H, W\] that istim counts"),
    (lambda p: rewrite(p, istim=None, stimuli=np.full(24, np.nan)), r"stimuli.npy: want finite numbers, got nan"),
    (lambda p: rewrite(p, istim=None), r"s.npz: want an array responses, got resp, images, tiers"),
]
EVERY = [
    (name, format, damage, said)
    for name, format, damages in (
        ("scan", "sensorium", SCAN),
        ("scan.zip", "sensorium", ZIP),
        ("a.npz", "arrays", NPZ),
        ("a.h5", "openretina", OPENRETINA),
        ("s.npz", "stringer", STRINGER),
    )
    for damage, said in damages
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole one of each."""
    folder = tmp_path_factory.mktemp("whole")
    made = recording(name="a")
    for name, format in (("scan", "sensorium"), ("scan.zip", "sensorium"), ("a.npz", "arrays"), ("s.npz", "stringer")):
        write(made, folder / name, format)
    with contextlib.suppress(ModuleNotFoundError):
        write(made, folder / "openretina", "openretina")
    return folder


@pytest.mark.parametrize(("name", "format", "damage", "said"), EVERY, ids=range(len(EVERY)))
def test_damage_is_named_in_one_line(tmp_path, whole, name, format, damage, said):
    if format == "openretina":
        pytest.importorskip("h5py")
        shutil.copytree(whole / "openretina", tmp_path, dirs_exist_ok=True)
    elif (whole / name).is_dir():
        shutil.copytree(whole / name, tmp_path / name)
    else:
        shutil.copy(whole / name, tmp_path / name)
    damage(tmp_path / name)
    with pytest.raises(ValueError, match=said) as raised:
        use(read(tmp_path / name))
    message = str(raised.value)
    assert "\n" not in message
    assert "allow_pickle" not in message
    assert message.startswith(str(tmp_path)), "the file is named"


def use(found):
    """All of a recording: what is read late is damaged late."""
    made = loaders(found, tiers=["train", "validation", "test"])
    for tier in made.values():
        for batches in tier.values():
            for batch in batches:
                assert batch


def test_these_are_enough_and_all_files_are_whole_before(whole):
    assert len(EVERY) >= 30
    for name in ("scan", "scan.zip", "a.npz", "s.npz"):
        use(read(whole / name))


def test_a_command_says_it_in_one_line(tmp_path, whole):
    from v1fast.cli import app

    runner = pytest.importorskip("typer.testing").CliRunner()
    shutil.copytree(whole / "scan", tmp_path / "scan")
    (tmp_path / "scan/data/responses/5.npy").unlink()
    result = runner.invoke(app, ["data", "show", str(tmp_path / "scan")])
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "5.npy is missing" in result.output
