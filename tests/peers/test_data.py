"""The Sensorium format and the preparation of trials, side by side with neuralpredictors."""

import numpy as np
import pytest
import torch

from v1fast.data import Preparation, Recording, loaders, read_sensorium, write_sensorium


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scan written as the published ones are: one neuron hardly responds, statistics are not those of the trials."""
    pytest.importorskip("neuralpredictors")
    rng = np.random.default_rng(0)
    trials, neurons = 30, 12
    scale = np.r_[0.001, rng.uniform(0.5, 20, neurons - 1)]
    recording = Recording(
        rng.integers(0, 256, (trials, 1, 20, 36)).astype(np.float32),
        rng.gamma(1, scale, (trials, neurons)),
        tiers=["train"] * 20 + ["validation"] * 5 + ["test"] * 5,
        behavior=rng.gamma(2, (3.0, 0.1, 8.0), (trials, 3)),
        pupil_center=rng.normal((110, 70), (6, 4), (trials, 2)),
        cortex=rng.uniform(0, 800, (neurons, 3)),
        name="1-2-3",
        statistics={
            "images": {"mean": np.float64(113.47), "std": np.float64(59.58)},
            "responses": {"mean": scale, "std": scale * rng.uniform(0.8, 1.2, neurons)},
        },
    )
    path = tmp_path_factory.mktemp("data") / "static1-2-3-GrayImageNet-0123"
    write_sensorium(recording, path)
    return path


def theirs(folder, *keys, channels=(), scale=None, exclude=None):
    """All trials, as neuralpredictors makes them."""
    from neuralpredictors.data.datasets import FileTreeDataset
    from neuralpredictors.data.transforms import (
        AddBehaviorAsChannels,
        AddPupilCenterAsChannels,
        NeuroNormalizer,
        ScaleInputs,
        ToTensor,
    )

    data = FileTreeDataset(str(folder), "images", "responses", *keys)
    data.transforms.append(NeuroNormalizer(data, exclude=exclude))
    made = {"behavior": AddBehaviorAsChannels, "pupil_center": AddPupilCenterAsChannels}
    data.transforms += [made[name]() for name in channels]
    if scale is not None:
        data.transforms.append(ScaleInputs(scale=scale))
    data.transforms.append(ToTensor())
    points = [data[trial] for trial in range(len(data))]
    return data, {name: torch.stack([getattr(point, name) for point in points]) for name in data.data_keys}


ALL = ("behavior", "pupil_center")


@pytest.mark.parametrize("memory", [2**30, 0], ids=["resident", "read"])
@pytest.mark.parametrize(
    ("keys", "channels", "scale", "exclude"),
    [
        ((), (), None, None),
        ((), (), None, ["images"]),
        (ALL, (), None, None),
        (ALL, ("behavior",), None, None),
        (ALL, ("behavior", "pupil_center"), 0.25, None),
        ((*ALL, "trial_idx"), (), 0.5, None),
        (("behavior",), (), 0.4, ["behavior"]),
    ],
)
def test_prepared_trials_are_neuralpredictors(folder, keys, channels, scale, exclude, memory):
    _, want = theirs(folder, *keys, channels=channels, scale=scale, exclude=exclude)
    fields = ("images", "responses", "behavior", "pupil_center", "trial_idx")
    preparation = Preparation(
        normalize=tuple(name for name in fields if name not in (exclude or ())),
        scale=scale or 1.0,
        behavior_as_channels="behavior" in channels,
        pupil_as_channels="pupil_center" in channels,
        fields=keys,
    )
    recording = read_sensorium(folder)
    made = loaders(recording, 7, preparation=preparation, memory=memory)
    for tier in ("validation", "test"):
        batches = list(made[tier]["1-2-3"])
        got = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        assert got.keys() == want.keys()
        trials = recording.in_tier(tier)
        for name, values in got.items():
            expected = want[name][trials]
            assert values.dtype == expected.dtype
            if name == "images" and scale is not None:  # their interpolation rounds otherwise, in float64
                torch.testing.assert_close(values, expected, rtol=2e-7, atol=1e-7)
            else:
                assert values.equal(expected), name


def test_a_written_scan_is_what_neuralpredictors_reads(folder):
    data, _ = theirs(folder, *ALL)
    recording = read_sensorium(folder)
    assert len(data) == len(recording) == 30
    assert data.n_neurons == recording.responses.shape[1]
    np.testing.assert_array_equal(data.trial_info.tiers, recording.tiers)
    np.testing.assert_array_equal(data.neurons.cell_motor_coordinates, recording.cortex)
    np.testing.assert_array_equal(data.neurons.unit_ids, recording.unit_ids)
    for name in ("area", "layer", "animal_ids", "sessions", "scan_idx"):
        assert len(getattr(data.neurons, name)) == 12
    np.testing.assert_array_equal(data.trial_info.frame_image_id, recording.image_ids)
