"""What a recording is: arrays that fit together, read when they are needed."""

import pickle

import numpy as np
import pytest
import torch
from recorded import recording, video

from v1fast.data import Recording, simulate, simulate_animals
from v1fast.data.rows import Part, Reader

pytestmark = pytest.mark.once
IMAGES, RESPONSES = np.zeros((4, 1, 8, 8)), np.ones((4, 3))


def test_it_says_what_is_in_it():
    assert repr(recording()) == (
        "Recording '1-2-3': 24 trials (train 12, validation 4, test 8 of 4 images), 6 neurons, images 1 x 8 x 12, "
        "behavior 3, pupil_center 2, cortex 3"
    )
    assert repr(video()).endswith("4 neurons, images 2 x 8 x 6, 3 sequences")
    assert repr(Recording(IMAGES, RESPONSES, tiers=["b", "test", "a", "train"])).count("(train 1, test 1, a 1, b 1)")
    summary = recording().summary()
    assert summary["trials"] == {"train": 12, "validation": 4, "test": 8}
    assert summary["images"]["test"] == 4
    assert summary["behavior"] == 3


def test_defaults():
    made = Recording(IMAGES, RESPONSES)
    np.testing.assert_array_equal(made.image_index, np.arange(4))
    np.testing.assert_array_equal(made.image_ids, made.image_index)
    np.testing.assert_array_equal(made.unit_ids, np.arange(3))
    assert set(made.tiers) == {"train"}
    assert made.in_tier("test").tolist() == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"images": np.zeros((4, 8, 8))}, r"images: want \[I, C, H, W\], got \(4, 8, 8\)"),
        ({"images": np.zeros((3, 1, 8, 8))}, "images: want one image for each of 4 trials, or image_index"),
        ({"images": IMAGES.astype(str)}, "images: want numbers, got <U"),
        ({"images": np.zeros((4, 1, 0, 8))}, r"images: want \[I, C, H, W\], got \(4, 1, 0, 8\)"),
        ({"responses": np.ones(4)}, r"responses: want \[T, N\], got \(4,\)"),
        ({"image_index": [0, 1, 2, 4]}, "image_index: want 0 to 3, got 4"),
        ({"image_index": [0, 1, -1, 3]}, "image_index: want 0 to 3, got -1"),
        ({"image_index": [0, 1, 2]}, r"image_index: want \[T\] = \(4,\), got \(3,\)"),
        ({"image_index": [0.5, 1, 2, 3]}, "image_index: want whole numbers, got float64"),
        ({"tiers": ["train"] * 3}, r"tiers: want \[T\] = \(4,\), got \(3,\)"),
        ({"tiers": [0, 1, 1, 1]}, "tiers: want text, got int64"),
        ({"behavior": np.ones((5, 2))}, r"behavior: want \[T, \.\.\.\], T = 4, got \(5, 2\)"),
        ({"pupil_center": np.ones((4, 3))}, r"pupil_center: want \[T, 2\] = \(4, 2\), got \(4, 3\)"),
        ({"cortex": np.ones((3, 4))}, r"cortex: want \[N, 2\] or \[N, 3\], N = 3, got \(3, 4\)"),
        ({"cortex": np.ones((2, 2))}, r"cortex: want \[N, 2\] or \[N, 3\], N = 3, got \(2, 2\)"),
        ({"unit_ids": [1, 2]}, r"unit_ids: want \[N\] = \(3,\), got \(2,\)"),
        ({"neurons": {"area": ["V1"]}}, r"neurons: area: want \[N, \.\.\.\], N = 3, got \(1,\)"),
        ({"trials": {"time": [0.0]}}, r"trials: time: want \[T, \.\.\.\], T = 4, got \(1,\)"),
        ({"name": "a.b"}, "name: want text without dots, got 'a.b'"),
    ],
)
def test_what_does_not_fit_is_named(fields, said):
    with pytest.raises(ValueError, match=said):
        Recording(**{"images": IMAGES, "responses": RESPONSES, **fields})
    with pytest.raises(ValueError, match=f"^here: {said}"):
        Recording(**{"images": IMAGES, "responses": RESPONSES, "source": "here", **fields})


def test_arrays_of_other_libraries():
    made = Recording(
        torch.zeros(4, 1, 8, 8), torch.ones(4, 3), tiers=np.array([b"train"] * 4), unit_ids=torch.arange(3)
    )
    assert isinstance(made.responses, np.ndarray)
    assert made.tiers.tolist() == ["train"] * 4
    h5py = pytest.importorskip("h5py")
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        file["responses"] = np.arange(12.0).reshape(4, 3)
        made = Recording(IMAGES, file["responses"])
        np.testing.assert_array_equal(made.responses[np.array([2, 0, 2])], [[6, 7, 8], [0, 1, 2], [6, 7, 8]])
        np.testing.assert_array_equal(made.responses[1:3], [[3, 4, 5], [6, 7, 8]])


class Counting(Reader):
    """Remembers which rows it read."""

    def __init__(self, values):
        self.values, self.shape, self.dtype, self.asked = values, values.shape, values.dtype, []

    def read(self, rows):
        self.asked += rows.tolist()
        return self.values[rows]


def test_nothing_is_read_before_it_is_needed():
    images, responses = Counting(IMAGES), Counting(np.arange(12.0).reshape(4, 3))
    made = Recording(images, responses, tiers=["train", "train", "test", "test"])
    part = made.select(trials=made.in_tier("test"), neurons=[2, 0]).select(trials=[1], neurons=[True, False])
    assert part.responses.shape == (1, 1)
    assert not images.asked + responses.asked
    np.testing.assert_array_equal(part.responses[:], [[11]])
    assert responses.asked == [3]
    assert isinstance(part.responses, Part)
    assert part.responses.whole is responses, "one view, not one of another"


def test_some_trials_and_neurons():
    whole = recording()
    trials, neurons = np.array([20, 3, 3, -1]), whole.unit_ids % 2 == 0
    part = whole.select(trials=trials, neurons=neurons)
    np.testing.assert_array_equal(part.responses[:], whole.responses[trials][:, neurons])
    for name in ("image_ids", "tiers", "behavior", "pupil_center"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[trials])
    np.testing.assert_array_equal(part.cortex, whole.cortex[neurons])
    np.testing.assert_array_equal(part.trials["trial_idx"], whole.trials["trial_idx"][trials])
    assert part.neurons["area"].shape == (3,)
    assert len(whole.select(trials=[])) == 0
    whole.statistics = {"responses": {"mean": np.arange(6.0), "std": np.arange(6.0)}, "images": {"std": np.float64(2)}}
    np.testing.assert_array_equal(whole.select(neurons=[4, 1]).statistics["responses"]["std"], [4, 1])


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"trials": [24]}, "trials: want indices below 24, got 24 to 24"),
        ({"neurons": [True]}, r"neurons: want a mask of 6, got \(1,\)"),
        ({"neurons": [0.5]}, "neurons: want indices or a mask, got float64"),
    ],
)
def test_a_wrong_choice_is_named(chosen, said):
    with pytest.raises(ValueError, match=said):
        recording().select(**chosen)


def test_it_can_be_sent_to_another_process():
    made = pickle.loads(pickle.dumps(recording().select(trials=[1, 2])))
    np.testing.assert_array_equal(made.responses[:], recording().responses[1:3])


def test_simulated_recordings_keep_their_truth():
    pytest.importorskip("skimage")
    animals = simulate_animals(2, 5, (20, 24), train=8, validation=3, test=2, repeats=(2, 3))
    made = [animal.to_recording() for animal in animals]
    first, trials = made[0], animals[0].test
    assert [one.name for one in made] == ["animal0", "animal1"]
    test = first.select(trials=first.in_tier("test"))
    np.testing.assert_array_equal(test.responses[:], trials.responses)
    np.testing.assert_array_equal(test.images[test.image_index], trials.images[trials.image_ids])
    np.testing.assert_array_equal(test.trials["gaze"], trials.gaze)
    np.testing.assert_array_equal(first.neurons["position"], animals[0].neurons.position)
    shared = [set(one.image_ids[one.in_tier("test")].tolist()) for one in made]
    own = [set(one.image_ids[one.in_tier("train")].tolist()) for one in made]
    assert shared[0] == shared[1]
    assert not own[0] & own[1]


def test_pupil_positions_say_where_an_animal_looks_up_to_a_linear_map():
    pytest.importorskip("skimage")
    (animal,) = simulate_animals(1, 5, (20, 24), train=40, validation=3, test=2)
    made = animal.to_recording()
    inputs = np.c_[made.pupil_center, np.ones(len(made))]
    gaze = made.trials["gaze"]
    weights, *_ = np.linalg.lstsq(inputs, gaze, rcond=None)
    np.testing.assert_allclose(inputs @ weights, gaze, atol=1e-4)
    assert np.abs(weights - np.eye(3)[:, :2]).max() > 0.1, "the pupil is not the gaze"


def test_a_simulated_population_as_a_recording():
    pytest.importorskip("skimage")
    simulation = simulate(5, (20, 24), train=8, validation=3, test=2, repeats=3)
    made = simulation.to_recording()
    test = made.select(trials=made.in_tier("test"))
    np.testing.assert_array_equal(test.responses[:], simulation.test.responses.flatten(0, 1))
    np.testing.assert_array_equal(np.bincount(test.image_numbers), [3, 3])
