"""Small recordings for tests, and files of them in each format."""

import numpy as np

from v1fast.data import Recording

SHAPE = (1, 8, 12)


def recording(trials=24, neurons=6, seed=0, name="1-2-3", **others):
    """With everything that a recording can have; the last tier shows four images, twice each."""
    rng = np.random.default_rng(seed)
    tests = 8
    index = np.r_[np.arange(trials - tests), np.tile(np.arange(trials - tests, trials - tests // 2), 2)]
    fields = {
        "images": rng.normal(110, 60, (trials - tests // 2, *SHAPE)).astype(np.float32),
        "responses": rng.gamma(1, 2, (trials, neurons)),
        "image_index": index,
        "image_ids": 1000 + index,
        "tiers": ["train"] * (trials - tests - 4) + ["validation"] * 4 + ["test"] * tests,
        "pupil_center": rng.normal(100, 5, (trials, 2)),
        "behavior": rng.gamma(2, 3, (trials, 3)),
        "cortex": rng.uniform(0, 800, (neurons, 3)),
        "unit_ids": 10 + np.arange(neurons),
        "neurons": {"area": np.repeat("V1", neurons), "layer": np.repeat("L2/3", neurons)},
        "trials": {"trial_idx": np.arange(trials) * 2},
        "name": name,
    }
    return Recording(**{**fields, **others})


def video(frames=(20, 12, 16), neurons=4, seed=0, name="movie"):
    """Three sequences: train, validation, test."""
    rng = np.random.default_rng(seed)
    count = sum(frames)
    return Recording(
        rng.normal(size=(count, 2, 8, 6)).astype(np.float32),
        rng.gamma(1, 2, (count, neurons)),
        tiers=np.repeat(["train", "validation", "test"], frames),
        sequences=np.repeat([0, 1, 2], frames),
        name=name,
    )


def assert_same(first, second, without=()):
    """The same trials, whatever order the images lie in."""
    assert first.name == second.name
    np.testing.assert_array_equal(first.images[first.image_index], second.images[second.image_index])
    assert len({*zip(first.image_numbers.tolist(), second.image_numbers.tolist(), strict=True)}) == len(
        set(first.image_numbers.tolist())
    )
    for field in ("responses", "tiers", "pupil_center", "behavior", "cortex", "unit_ids"):
        if field not in without:
            np.testing.assert_array_equal(np.asarray(getattr(first, field)), np.asarray(getattr(second, field)), field)
    for group in ("neurons", "trials"):
        mine, theirs = getattr(first, group), getattr(second, group)
        for field in mine if group not in without else ():
            np.testing.assert_array_equal(mine[field], theirs[field], field)
