"""Loaders: prepared trials in an order that seed and epoch decide, as ``fit`` takes them."""

import sys
import threading

import numpy as np
import pytest
import torch
from recorded import recording, video

from v1fast._batches import ReadBatches
from v1fast.data import Preparation, Recording, loaders, normalization, write_sensorium
from v1fast.data.preparation import Prepared
from v1fast.data.rows import Reader

pytestmark = pytest.mark.once
BOTH = pytest.mark.parametrize("memory", [2**30, 0], ids=["resident", "read"])


def passes(loader, epochs=(0, 0, 1)):
    """Batches of several epochs; two passes of the first."""
    seen = []
    for number, epoch in enumerate(epochs):
        if number == 0 or epoch != epochs[number - 1]:
            loader.set_epoch(epoch)
        seen.append(list(loader))
    return seen


def assert_equal(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_order_is_the_same_wherever_trials_lie(workers):
    whole = recording(trials=40)
    resident = loaders(whole, 5, seed=3)["train"]["1-2-3"]
    read = loaders(whole, 5, seed=3, memory=0, workers=workers)["train"]["1-2-3"]
    assert isinstance(read, ReadBatches)
    assert not isinstance(resident, ReadBatches)
    assert len(read) == len(resident) == 6
    assert len(read.dataset) == len(resident.dataset) == 28
    mine, theirs = passes(resident), passes(read)
    for first, second in zip(mine, theirs, strict=True):
        assert_equal(first, second)
    assert not mine[0][0]["responses"].equal(mine[1][0]["responses"]), "each pass has an order of its own"
    assert not mine[0][0]["responses"].equal(mine[2][0]["responses"]), "and each epoch"
    assert_equal(passes(loaders(whole, 5, seed=3)["train"]["1-2-3"], (1,))[0], mine[2])
    other = passes(loaders(whole, 5, seed=4)["train"]["1-2-3"])
    assert not other[0][0]["responses"].equal(mine[0][0]["responses"])


@BOTH
def test_other_tiers_keep_the_order_of_the_recording(memory):
    whole = recording()
    made = loaders({"a": whole, "b": recording(seed=1)}, 5, memory=memory)
    assert {tier: list(found) for tier, found in made.items()} == {
        key: ["a", "b"] for key in ("train", "validation", "test")
    }
    got = torch.cat([batch["behavior"] for batch in made["test"]["a"]])
    by = normalization(whole)["behavior"]["factor"]
    np.testing.assert_array_equal(got, (whole.behavior[whole.in_tier("test")] * by).astype(np.float32))


def test_normalization_by_training_trials():
    whole = recording(neurons=5)
    whole.responses[:, 2] *= 1e-6
    train = whole.in_tier("train")
    found = normalization(whole)
    std = whole.responses[train].std(0)
    np.testing.assert_allclose(found["responses"]["factor"], 1 / np.maximum(std, 0.01 * std.mean()))
    np.testing.assert_allclose(found["images"]["mean"], whole.images[train].mean(dtype=np.float64))
    np.testing.assert_allclose(found["images"]["std"], whole.images[train].std(dtype=np.float64))
    np.testing.assert_allclose(found["pupil_center"]["mean"], whole.pupil_center[train].mean(0))
    np.testing.assert_allclose(found["pupil_center"]["std"], whole.pupil_center[train].std(0))
    np.testing.assert_allclose(found["behavior"]["factor"], 1 / whole.behavior[train].std(0))


def test_statistics_of_many_trials_are_those_of_all(monkeypatch):
    monkeypatch.setattr(sys.modules["v1fast.data.preparation"], "ROWS", 5)
    monkeypatch.setattr(sys.modules["v1fast.data.loaders"], "ROWS", 7)
    whole = recording(trials=60)
    train = whole.in_tier("train")
    np.testing.assert_allclose(normalization(whole)["responses"]["factor"], 1 / whole.responses[train].std(0))
    np.testing.assert_allclose(normalization(whole)["images"]["std"], whole.images[train].std(dtype=np.float64))
    one, other = (loaders(whole, 9, memory=memory)["test"]["1-2-3"] for memory in (2**30, 0))
    assert_equal(list(one), list(other))


def test_a_session_that_does_not_fit_is_read():
    small, large = recording(), recording(trials=200, seed=1)
    size = 4 * (96 + 6 + 3 + 2) * 24
    made = loaders({"large": large, "small": small}, memory=size)
    assert [isinstance(one, ReadBatches) for one in made["train"].values()] == [True, False]
    made = loaders({"large": large, "small": small}, memory=size - 1)
    assert [isinstance(one, ReadBatches) for one in made["train"].values()] == [True, True]


def test_trials_that_are_not_defined_can_be_left_out():
    whole = recording()
    whole.responses[3, 1], whole.pupil_center[20] = np.nan, np.nan
    made = loaders(whole, 100, drop_undefined=True)
    assert [len(made[tier]["1-2-3"].dataset) for tier in ("train", "validation", "test")] == [11, 4, 7]
    assert len(loaders(whole)["train"]["1-2-3"].dataset) == 12
    without = Preparation(fields=("behavior",))
    assert len(loaders(whole, drop_undefined=True, preparation=without)["test"]["1-2-3"].dataset) == 8


def test_normalization_of_a_model_for_other_files():
    first, second = recording(), recording(seed=1, tiers=["test"] * 24)
    with pytest.raises(ValueError, match="1-2-3: images: want training trials to normalise by, got none"):
        loaders(second, tiers=["test"])
    by = normalization(first)
    made = loaders(second, 100, tiers=["test"], normalizations={"1-2-3": by})
    (batch,) = made["test"]["1-2-3"]
    np.testing.assert_allclose(batch["responses"], second.responses * by["responses"]["factor"], rtol=1e-6)
    with pytest.raises(ValueError, match="normalizations: want one of session 1-2-3, got other"):
        loaders(second, tiers=["test"], normalizations={"other": by})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: loaders(recording(), tiers=["final"]), "tiers: want trials of final, got recordings with test, train"),
        (lambda: loaders(recording(), batch_size=0), "batch_size: want at least 1, got 0"),
        (
            lambda: loaders(recording(behavior=None), preparation=Preparation(behavior_as_channels=True)),
            "want behavior",
        ),
        (lambda: loaders(recording(), frames=4), "frames: want a recording of videos, got Recording"),
        (lambda: loaders(video(), frames=4, skip_frames=4), "skip_frames: want 0 to frames - 1 = 3, got 4"),
        (lambda: Preparation(scale=0), r"scale: want a number in \(0, 1\], got 0"),
        (lambda: Preparation(scale=2.0), r"scale: want a number in \(0, 1\], got 2.0"),
        (lambda: Preparation(normalize=("image",)), "normalize: want some of images, .* got 'image'"),
        (lambda: Preparation(fields=("images",)), "fields: want some of behavior, .* got 'images'"),
    ],
)
def test_what_cannot_be_done_is_said(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_channels_and_scale():
    whole = recording()
    preparation = Preparation(scale=0.5, behavior_as_channels=True, pupil_as_channels=True, fields=())
    (batch,) = loaders(whole, 100, tiers=["test"], preparation=preparation)["test"]["1-2-3"]
    assert batch.keys() == {"images", "responses"}
    assert batch["images"].shape == (8, 1 + 3 + 2, 4, 6) == (8, *preparation.image_shape(whole))
    by = normalization(whole, preparation)
    behavior = whole.behavior[whole.in_tier("test")] * by["behavior"]["factor"]
    np.testing.assert_allclose(batch["images"][:, 1:4, 2, 3], behavior, rtol=1e-6)


@BOTH
def test_clips_of_videos(memory):
    whole = video()
    made = loaders(whole, 2, memory=memory, frames=6, skip_frames=2, preparation=Preparation(normalize=()))
    assert len(made["test"]["movie"].dataset) == 3  # of 16 frames: from 0, 4, 8, with responses to 2 to 13
    trials = whole.in_tier("test")
    clips = torch.cat([batch["images"] for batch in made["test"]["movie"]])
    responses = torch.cat([batch["responses"] for batch in made["test"]["movie"]])
    assert clips.shape == (3, 2, 6, 8, 6)
    assert responses.shape == (3, 4, 4)
    np.testing.assert_array_equal(responses.flatten(0, 1), whole.responses[trials[2:14]].astype(np.float32))
    np.testing.assert_array_equal(clips[1].transpose(0, 1), whole.images[trials[4:10]])


def test_clips_do_not_cross_sequences():
    count = 20
    images = np.arange(count, dtype=float)[:, None, None, None] * np.ones((count, 1, 4, 4))
    whole = Recording(images, np.ones((count, 2)), sequences=[0] * 7 + [1] * 13)
    made = loaders(whole, 100, frames=5, tiers=["train"], preparation=Preparation(normalize=()))
    (batch,) = made["train"]["recording"]
    assert sorted(batch["images"][:, 0, 0, 0, 0].tolist()) == [0, 7, 12]


def test_an_error_of_a_reader_reaches_the_caller():
    class Broken(Reader):
        shape, dtype = (24, 6), np.dtype(np.float64)

        def read(self, rows):
            if 20 in rows:
                raise ValueError("20.npy: it is cut")
            return np.ones((len(rows), 6)) * rows[:, None]

    whole = recording(responses=Broken())
    made = loaders(whole, 2, memory=0, tiers=["test"])
    with pytest.raises(ValueError, match=r"20.npy: it is cut"):
        list(made["test"]["1-2-3"])


def test_a_pass_that_is_left_early_ends_its_threads():
    loader = loaders(recording(), 2, memory=0)["train"]["1-2-3"]
    for _ in loader:
        break
    iterator = iter(loader)
    next(iterator)
    iterator.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("v1fast-read")]


def test_trials_for_other_loaders():
    whole = recording()
    prepared = Prepared(whole, Preparation(), normalization(whole), whole.in_tier("test"))
    batches = list(torch.utils.data.DataLoader(prepared, batch_size=4))
    (batch,) = loaders(whole, 8, tiers=["test"])["test"]["1-2-3"]
    for name, values in batch.items():
        assert torch.cat([one[name] for one in batches]).equal(values)


# Training --------------------------------------------------------------------------------------------------------


def encoder(sessions, channels=1):
    from v1fast.models import FiringRateEncoder, MLPModulator, MLPShifter, Stacked2dCore
    from v1fast.readouts import FullGaussian2d, MultiReadoutBase

    torch.manual_seed(0)
    core = Stacked2dCore(channels, 4, 3, 3, layers=2, stack=-1)
    neurons = {name: one.responses.shape[1] for name, one in sessions.items()}
    readout = MultiReadoutBase(dict.fromkeys(sessions, (4, 8, 12)), neurons, FullGaussian2d, bias=True)
    return FiringRateEncoder(
        core, readout, shifter=MLPShifter(list(sessions)), modulator=MLPModulator(neurons, input_channels=3)
    )


def trained(tmp_path, memory, **options):
    from v1fast.training import fit

    sessions = {"a": recording(), "b": recording(neurons=4, seed=1)}
    made = loaders(sessions, 5, seed=2, memory=memory)
    model = encoder(sessions)
    history = fit(model, made["train"], made["validation"], show=False, accelerator="cpu", out=tmp_path, **options)
    return model, history


def test_fit_takes_them_as_they_are_and_where_they_lie_does_not_matter(tmp_path):
    pytest.importorskip("lightning")
    resident, history = trained(tmp_path / "a", 2**30, max_epochs=3)
    read, _ = trained(tmp_path / "b", 0, max_epochs=3)
    assert len(history.epochs) == 3
    for (name, one), other in zip(resident.state_dict().items(), read.state_dict().values(), strict=True):
        assert one.equal(other), name


def test_a_run_that_is_resumed_sees_the_batches_that_it_would_have_seen(tmp_path):
    pytest.importorskip("lightning")
    straight, _ = trained(tmp_path / "a", 0, max_epochs=4)
    trained(tmp_path / "b", 0, max_epochs=2)
    resumed, history = trained(tmp_path / "b", 2**30, max_epochs=4)
    assert len(history.epochs) == 4
    for (name, one), other in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert one.equal(other), name


def test_normalization_is_saved_with_the_model(tmp_path):
    pytest.importorskip("safetensors")
    from v1fast.models import FiringRateEncoder

    sessions = {"a": recording(), "b": recording(neurons=4, seed=1)}
    by = {name: normalization(one) for name, one in sessions.items()}
    encoder(sessions).save(tmp_path / "model.safetensors", normalization=by)
    loaded = FiringRateEncoder.load(tmp_path / "model.safetensors").normalization
    mine, theirs = (loaders(sessions, 50, normalizations=given)["test"]["b"] for given in (by, loaded))
    assert_equal(list(mine), list(theirs))


def test_reading_from_an_archive_with_threads(tmp_path):
    whole = recording(trials=60)
    write_sensorium(whole, tmp_path / "static1-2-3.zip")
    from v1fast.data import read

    one = loaders(read(tmp_path / "static1-2-3.zip"), 4, memory=0, workers=4)["train"]["1-2-3"]
    other = loaders(whole, 4)["train"]["1-2-3"]
    assert_equal(list(one), list(other))
