"""Readers and writers of recordings: what is written is read, what is published is understood, nothing is touched."""

import hashlib
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from recorded import assert_same, recording, video

from v1fast.data import (
    Recording,
    read,
    read_all,
    read_arrays,
    read_openretina,
    read_sensorium,
    read_stringer,
    write,
    write_arrays,
    write_sensorium,
)
from v1fast.data.rows import Reader
from v1fast.data.stringer import binned, split_tiers

pytestmark = pytest.mark.once


def content(folder):
    """Everything in a folder: names, sizes, times, sums."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.is_file() and hashlib.md5(path.read_bytes()).digest())
        for path in sorted(folder.rglob("*"))
    }


# Every format ----------------------------------------------------------------------------------------------------

PLACES = {
    "sensorium folder": ("sensorium", "static1-2-3-preproc0", ()),
    "sensorium zip": ("sensorium", "static1-2-3-preproc0.zip", ()),
    "npz": ("arrays", "1-2-3.npz", ()),
    "folder of npy": ("arrays", "1-2-3", ()),
    "openretina": ("openretina", "1-2-3.h5", ()),
    "stringer": ("stringer", "1-2-3.npz", ("pupil_center", "behavior", "cortex", "unit_ids", "neurons", "trials")),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_written_is_read(tmp_path, place):
    format, name, without = PLACES[place]
    if format == "openretina":
        pytest.importorskip("h5py")
    whole = recording()
    write(whole, tmp_path if format == "openretina" else tmp_path / name, format)
    before = content(tmp_path)
    for found in (read(tmp_path / name), read(tmp_path / name, format)):
        order = np.lexsort([np.arange(len(found)), [("train", "validation", "test").index(t) for t in found.tiers]])
        assert_same(whole, found.select(trials=order), without)
        assert found.source == str(tmp_path / name)
    assert content(tmp_path) == before, "reading leaves everything as it was"
    with pytest.raises(FileExistsError):
        write(whole, tmp_path if format == "openretina" else tmp_path / name, format)
    assert content(tmp_path) == before, "and so does writing to where something is"


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be_written_to_is_read(tmp_path, place):
    format, name, _ = PLACES[place]
    if format == "openretina":
        pytest.importorskip("h5py")
    write(recording(), tmp_path if format == "openretina" else tmp_path / name, format)
    every = [tmp_path, *tmp_path.rglob("*")]
    for path in every:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert read(tmp_path / name).responses[:].shape == (24, 6)
    finally:
        for path in every:
            path.chmod(0o755)


@pytest.mark.parametrize("format", ["sensorium", "arrays", "openretina"])
def test_a_write_that_fails_leaves_nothing(tmp_path, format):
    if format == "openretina":
        pytest.importorskip("h5py")

    class Broken(Reader):
        shape, dtype = (24, 6), np.dtype(np.float64)

        def read(self, rows):
            raise OSError(5, "Input/output error")

    broken = recording(responses=Broken())
    with pytest.raises(OSError, match="Input/output error"):
        write(broken, tmp_path / "scan", format)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".npy"]
    assert not left and not list(tmp_path.rglob(".*"))


def test_formats_are_recognised_or_the_message_says_what_is(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"notes.txt: want a Sensorium folder .* got a file .txt"):
        read(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"want a Sensorium folder .* got a folder with notes.txt"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing")
    with pytest.raises(ValueError, match="format: want one of sensorium, .* got 'matlab'"):
        read(tmp_path, "matlab")
    write_arrays(recording(), tmp_path / "a.npz")
    write_arrays(recording(name="b"), tmp_path / "b.npz")
    with pytest.raises(ValueError, match=r"got 2 recordings: .*a.npz, .*b.npz"):
        read(tmp_path)


def test_all_recordings_of_a_folder(tmp_path):
    for number in range(3):
        write_sensorium(recording(seed=number), tmp_path / f"static{number}-1-1-x.zip")
    shutil.unpack_archive(tmp_path / "static1-1-1-x.zip", tmp_path)  # as neuralpredictors leaves it
    (tmp_path / "README.md").write_text("")
    np.savez(tmp_path / "other.npz", a=1)
    found = read_all(tmp_path)
    assert list(found) == ["0-1-1", "1-1-1", "2-1-1"]
    assert found["1-1-1"].source.endswith("static1-1-1-x")
    (tmp_path / "above").mkdir()
    shutil.move(tmp_path / "static1-1-1-x", tmp_path / "above")
    assert read(tmp_path / "above").name == "1-1-1"
    with pytest.raises(ValueError, match=r"want recordings of different names, got 2-1-1 for .*x.zip and .*x.zip"):
        read_all(tmp_path, tmp_path / "static2-1-1-x.zip")


# Sensorium -------------------------------------------------------------------------------------------------------


def test_a_scan_in_an_archive_of_a_repository(tmp_path):
    """As GIN gives Lurz2020-master.zip: folders above the scan."""
    write_sensorium(recording(), tmp_path / "static20457-5-9-preproc0")
    with zipfile.ZipFile(tmp_path / "Lurz2020-master.zip", "w") as archive:
        archive.writestr("lurz2020/README.md", "")
        for path in (tmp_path / "static20457-5-9-preproc0").rglob("*.npy"):
            archive.write(path, Path("lurz2020") / path.relative_to(tmp_path))
    found = read(tmp_path / "Lurz2020-master.zip")
    assert found.name == "20457-5-9"
    assert_same(recording(name="20457-5-9"), found)


def test_an_archive_of_several_scans(tmp_path):
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        for number in range(2):
            folder = tmp_path / f"static{number}-1-1"
            write_sensorium(recording(seed=number), folder)
            for path in folder.rglob("*.npy"):
                archive.write(path, path.relative_to(tmp_path))
    with pytest.raises(ValueError, match="want a scan .* got static0-1-1, static1-1-1"):
        read_sensorium(tmp_path / "both.zip")
    assert_same(recording(seed=1, name="1-1-1"), read_sensorium(tmp_path / "both.zip", scan="1-1-1"))
    assert list(read_all(tmp_path / "both.zip")) == ["0-1-1", "1-1-1"]


def test_images_of_two_classes_with_one_number_are_two_images(tmp_path):
    write_sensorium(recording(trials=12), tmp_path / "scan")
    trials = tmp_path / "scan" / "meta" / "trials"
    np.save(trials / "frame_image_id.npy", np.repeat([7, 8], 6))
    np.save(trials / "frame_image_class.npy", np.tile(["imagenet", "mei"], 6))
    assert len(set(read_sensorium(tmp_path / "scan").image_ids)) == 4


def test_other_statistics(tmp_path):
    write_sensorium(recording(), tmp_path / "scan")
    for field in ("images", "responses", "behavior", "pupil_center"):
        folder = tmp_path / "scan" / "meta" / "statistics" / field
        shutil.copytree(folder / "all", folder / "stimulus_frame")
    np.save(tmp_path / "scan/meta/statistics/images/stimulus_frame/mean.npy", 5.0)
    assert read_sensorium(tmp_path / "scan", statistics="stimulus_frame").statistics["images"]["mean"] == 5
    with pytest.raises(ValueError, match="images/other: want mean.npy and std.npy"):
        read_sensorium(tmp_path / "scan", statistics="other")


def test_texts_that_are_pickled_are_left_out(tmp_path):
    write_sensorium(recording(), tmp_path / "scan")
    np.save(tmp_path / "scan/meta/trials/condition_hash.npy", np.array(["a"] * 24, object))
    assert "condition_hash" not in read_sensorium(tmp_path / "scan").trials


def test_trials_of_mixed_precision(tmp_path):
    whole = recording()
    write_sensorium(whole, tmp_path / "scan")
    np.save(tmp_path / "scan/data/responses/3.npy", whole.responses[3].astype(np.float32))
    found = read_sensorium(tmp_path / "scan").responses
    np.testing.assert_array_equal(found[3], whole.responses[3].astype(np.float32))
    np.testing.assert_array_equal(found[2:5][[0, 2]], whole.responses[[2, 4]])


def test_trials_are_read_one_by_one(tmp_path, monkeypatch):
    write_sensorium(recording(), tmp_path / "scan.zip")
    opened = []
    original = zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, name: opened.append(name) or original(self, name))
    found = read_sensorium(tmp_path / "scan.zip")
    assert not [name for name in opened if "/data/" in name]
    found.images[[5, 2]], found.responses[-1]
    assert [name.partition("/data/")[2] for name in opened if "/data/" in name] == [
        "images/5.npy",
        "images/2.npy",
        "responses/23.npy",
    ]


# Arrays ----------------------------------------------------------------------------------------------------------


def mapped(values):
    while values is not None and not isinstance(values, np.memmap):
        values = getattr(values, "base", None)
    return values is not None


@pytest.mark.parametrize("name", ["large.npz", "large"])
def test_large_arrays_are_mapped(tmp_path, name):
    whole = Recording(np.random.default_rng(0).random((40, 1, 64, 64)), np.ones((40, 3)))
    write_arrays(whole, tmp_path / name)
    found = read(tmp_path / name)
    assert mapped(found.images) and not mapped(whole.images)
    np.testing.assert_array_equal(found.images, whole.images)
    np.savez_compressed(tmp_path / "compressed.npz", images=whole.images, responses=whole.responses)
    np.testing.assert_array_equal(read(tmp_path / "compressed.npz").images, whole.images)


def test_repeats_by_image():
    responses = np.arange(24.0).reshape(2, 4, 3)
    responses[1, 2] = np.nan
    made = read_arrays({"images": np.zeros((4, 8, 8)), "responses": responses, "tiers": ["train", "train", "test", "test"]})
    assert made.images.shape == (4, 1, 8, 8)
    np.testing.assert_array_equal(made.image_index, [0, 1, 2, 3, 0, 1, 3])
    np.testing.assert_array_equal(made.responses[:], responses.reshape(8, 3)[[0, 1, 2, 3, 4, 5, 7]])
    assert made.tiers.tolist() == ["train", "train", "test", "test", "train", "train", "test"]


def test_real_repeats(real_data):
    folder = real_data / "antolik_mouse_v1"
    responses = np.load(folder / "region1_raw_validation_set.npy")
    images = np.load(folder / "region1_validation_inputs.npy").reshape(-1, 31, 31)
    made = read_arrays({"images": images, "responses": responses, "tiers": ["test"] * 50}, name="antolik")
    assert repr(made) == "Recording 'antolik': 500 trials (test 500 of 50 images), 103 neurons, images 1 x 31 x 31"


def test_names_of_the_source(tmp_path):
    np.savez(tmp_path / "mine.npz", stim=np.zeros((4, 8, 8)), spikes=np.ones((4, 3)), notes=np.zeros(2))
    made = read_arrays(tmp_path / "mine.npz", images="stim", responses="spikes", ignore=["notes"])
    assert made.name == "mine" and made.responses.shape == (4, 3)
    with pytest.raises(ValueError, match=r"mine.npz: notes: want names of images, .* or ignore=\['notes'\]"):
        read_arrays(tmp_path / "mine.npz", images="stim", responses="spikes")
    with pytest.raises(ValueError, match=r"mine.npz: spike: want such an array, got stim, spikes, notes"):
        read_arrays(tmp_path / "mine.npz", images="stim", responses="spike")
    with pytest.raises(ValueError, match=r"want names of images, .* got 'stimuli'"):
        read_arrays(tmp_path / "mine.npz", stimuli="stim")


def test_groups_of_a_mapping():
    whole = recording()
    given = {"images": whole.images, "responses": whole.responses, "image_index": whole.image_index}
    nested = read_arrays({**given, "neurons": {"area": whole.neurons["area"]}})
    flat = read_arrays({**given, "neurons/area": whole.neurons["area"]})
    for made in (nested, flat):
        np.testing.assert_array_equal(made.neurons["area"], whole.neurons["area"])


def test_statistics_are_kept(tmp_path):
    statistics = {"images": {"mean": np.float64(1), "std": np.float64(2)}}
    write_arrays(recording(statistics=statistics), tmp_path / "a.npz")
    assert read(tmp_path / "a.npz").statistics == statistics


# openretina ------------------------------------------------------------------------------------------------------


def test_videos(tmp_path):
    pytest.importorskip("h5py")
    write(video(), tmp_path, "openretina")
    found = read(tmp_path)
    assert len(np.unique(found.sequences)) == 3
    for tier in ("train", "validation", "test"):
        mine, theirs = (one.select(trials=one.in_tier(tier)) for one in (video(), found))
        np.testing.assert_array_equal(mine.images[mine.image_index], theirs.images[theirs.image_index])
        np.testing.assert_array_equal(mine.responses[:], theirs.responses[:])


def test_a_session_of_openretina(tmp_path):
    """Stimuli that sessions share, one of a session's own, and what is known of neurons."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    shared, own = rng.random((2, 30, 6, 5)), rng.random((2, 12, 6, 5))
    (tmp_path / "stimuli").mkdir()
    np.save(tmp_path / "stimuli" / "noise.npy", shared)
    responses = {"noise": rng.random((4, 30)), "natural": rng.random((4, 12))}
    for session in ("a", "b"):
        with h5py.File(tmp_path / f"{session}.hdf5", "w") as file:
            for name, values in responses.items():
                file[f"responses_{name}"] = values
            file["stimulus_natural"] = own
            file["session_info/celltypes"] = np.arange(4)
            file["session_info/remarks"] = "of one length"
    with pytest.raises(ValueError, match=r"want one session, or its name, got a.hdf5, b.hdf5"):
        read_openretina(tmp_path)
    found = read_openretina(tmp_path, session="b", tiers={"natural": "test"})
    np.testing.assert_array_equal(found.images[:], np.moveaxis(np.concatenate([own, shared], 1), 1, 0))
    np.testing.assert_array_equal(found.images[[40, 3, 3]], np.moveaxis(np.concatenate([own, shared], 1)[:, [40, 3, 3]], 1, 0))
    np.testing.assert_array_equal(found.responses[:], np.concatenate([responses["natural"], responses["noise"]], 1).T)
    assert found.tiers.tolist() == ["test"] * 12 + ["train"] * 30
    assert list(found.neurons) == ["celltypes"]
    assert list(read_all(tmp_path)) == ["a", "b"]


# Stringer --------------------------------------------------------------------------------------------------------


@pytest.fixture
def gratings(tmp_path):
    rng = np.random.default_rng(0)
    degrees = rng.permutation(360).astype(float)
    np.savez(tmp_path / "gratings.npz", resp=rng.normal(size=(360, 7)).astype(np.float32), stimuli=degrees)
    return tmp_path / "gratings.npz"


def test_gratings(gratings):
    found = read(gratings)
    given = np.load(gratings)
    np.testing.assert_array_equal(found.responses[:], given["resp"])
    np.testing.assert_array_equal(found.trials["orientation"], given["stimuli"])
    assert [len(found.in_tier(tier)) for tier in ("train", "validation", "test")] == [216, 72, 72]
    np.testing.assert_array_equal(found.tiers, read(gratings).tiers)
    assert (read_stringer(gratings, seed=1).tiers != found.tiers).any()
    upright = found.images[found.image_index[given["stimuli"] == 0]][0, 0]
    assert upright.shape == (48, 64)
    assert (upright == upright[0]).all() and set(upright[0]) == {0, 1}, "0 degrees: bars are upright"
    flips = np.flatnonzero(np.diff(upright[0]))
    assert np.diff(flips).mean() == pytest.approx(np.pi * 28 / 10, abs=0.5), "half a period, in pixels of ten"


def test_binned_gratings(gratings):
    found = read_stringer(gratings, bin_degrees=6)
    given = np.load(gratings)
    assert len(found) == 60
    np.testing.assert_allclose(found.trials["orientation"], np.arange(2.5, 360, 6))
    inside = (given["stimuli"] >= 12) & (given["stimuli"] < 18)
    np.testing.assert_allclose(found.responses[2], given["resp"][inside].mean(0), rtol=1e-6)
    with pytest.raises(ValueError, match="bin_degrees: want a number > 0, got 0"):
        read_stringer(gratings, bin_degrees=0)


def test_bins_that_are_empty_are_left_out():
    means, degrees = binned(np.array([[1.0], [3.0], [8.0]]), np.array([1.0, 2.0, 95.0]), 10)
    assert means.tolist() == [[2], [8]] and degrees.tolist() == [1.5, 95]


def test_natural_images_counted_from_one(tmp_path):
    rng = np.random.default_rng(0)
    images, counts = rng.random((5, 8, 9)), np.array([1, 2, 3, 4, 5, 1, 2, 3, 4, 5])
    np.savez(tmp_path / "natural.npz", resp=rng.random((10, 3)), istim=counts)
    np.save(tmp_path / "images.npy", images)
    for given in (images, tmp_path / "images.npy"):
        found = read_stringer(tmp_path / "natural.npz", images=given, first_image=1)
        np.testing.assert_array_equal(found.images[found.image_index[6]][0], images[1])
        assert len({*zip(found.image_ids.tolist(), found.tiers.tolist(), strict=True)}) == 5, "no image is in two tiers"


def test_shares_of_a_split():
    tiers = split_tiers(np.repeat(np.arange(10), 3), (0.5, 0.5, 0), 0)
    assert {tier: (tiers == tier).sum() for tier in ("train", "validation", "test")} == {
        "train": 15,
        "validation": 15,
        "test": 0,
    }
    with pytest.raises(ValueError, match="split: want 3 shares >= 0 of sum 1"):
        split_tiers(np.arange(3), (0.5, 0.5, 0.5), 0)


# NWB -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nwb(tmp_path):
    """Series of fluorescence, units, a pupil, a table of trials; image i is constant i."""
    pynwb = pytest.importorskip("pynwb")
    import datetime

    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    file = pynwb.NWBFile(session_description="d", identifier="i", session_start_time=start)
    rng = np.random.default_rng(0)
    module = file.create_processing_module("behavior", "d")
    module.add(pynwb.TimeSeries(name="pupil", data=rng.random((120, 2)), unit="m", rate=10.0))
    module.add(pynwb.TimeSeries(name="speed", data=rng.random(120), unit="m", timestamps=np.arange(120) / 10))
    file.add_acquisition(pynwb.TimeSeries(name="activity", data=rng.random((120, 5)), unit="n", rate=10.0))
    images = np.arange(4.0)[:, None, None] * np.ones((4, 8, 9))
    file.add_stimulus_template(pynwb.image.ImageSeries(name="photos", data=images, unit="n", rate=1.0, format="raw"))
    file.add_trial_column(name="image", description="d")
    file.add_trial_column(name="tier", description="d")
    file.add_trial_column(name="counts", description="d")
    for trial in range(10):
        tier = "train" if trial < 6 else "test"
        file.add_trial(start_time=trial + 0.0, stop_time=trial + 0.45, image=trial % 4, tier=tier, counts=[trial, 1.0])
    file.add_unit(spike_times=[0.1, 0.2, 0.5, 1.3])
    file.add_unit(spike_times=[9.4])
    path = tmp_path / "session.nwb"
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(file)
    return path, rng


WHERE = {"images": "stimulus/templates/photos", "tier": "tier"}


def test_nwb(nwb):
    path, _ = nwb
    before = content(path.parent)
    found = read(
        path,
        responses="acquisition/activity",
        pupil="processing/behavior/pupil",
        behavior=["processing/behavior/speed"],
        **WHERE,
    )
    rng = np.random.default_rng(0)
    pupil, speed, activity = rng.random((120, 2)), rng.random(120), rng.random((120, 5))
    np.testing.assert_allclose(found.responses[3], activity[30:35].mean(0))
    np.testing.assert_allclose(found.pupil_center[3], pupil[30:35].mean(0))
    np.testing.assert_allclose(found.behavior[3], speed[30:35].mean())
    np.testing.assert_array_equal(found.images[found.image_index][:, 0, 0, 0], np.arange(10) % 4)
    assert found.tiers.tolist() == ["train"] * 6 + ["test"] * 4
    assert content(path.parent) == before
    counted = read(path, responses="units", **WHERE)
    np.testing.assert_array_equal(counted.responses[:], [[2, 0], [1, 0], *[[0, 0]] * 7, [0, 1]])
    wide = read(path, responses="units", window=(0.0, 0.6), **WHERE)
    assert wide.responses[0].tolist() == [3, 0]
    np.testing.assert_array_equal(read(path, responses="intervals/trials/counts", **WHERE).responses[:, 0], np.arange(10))
    split = read(path, responses="units", images=WHERE["images"], split=(0.5, 0.25, 0.25))
    assert len({*zip(split.image_ids.tolist(), split.tiers.tolist(), strict=True)}) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"responses": "acquisition/x"}, "acquisition/x: want something at this path, got activity beside it"),
        ({"responses": "stimulus"}, "stimulus: want an object of NWB, got a part of one"),
        ({"responses": "intervals/trials/x"}, "intervals/trials: want a column x, got start_time, stop_time, image"),
        ({"responses": "units", "images": "units"}, "units: want an ImageSeries or Images, got Units"),
        ({"responses": "units", "trials": "acquisition/activity"}, "acquisition/activity: want a table, got TimeSeries"),
        ({"responses": "units", "image": "id"}, "intervals/trials: want a column id"),
        ({"responses": "units", "window": (0.5, None)}, "intervals/trials: want windows that end after they begin, got .* in trial"),
        ({"responses": "units", "first_image": 1}, "image_index: want 0 to 3, got -1"),
        ({"responses": "units", "cortex": "units"}, "units: want a dataset, got a group"),
    ],
)
def test_nwb_paths_that_are_wrong(nwb, arguments, said):
    with pytest.raises(ValueError, match=rf"session.nwb: {said}"):
        read(nwb[0], **{**WHERE, **arguments})

