"""What a fit recovers of simulated animals, all through the command line: positions, eye movements, the map of cortex.

The truth is that of the recordings. The model knows it up to two things. A shifter with a bias may move by any constant
what it adds to all positions of a recording, if the positions move back: here positions are taken with the mean shift,
as neurons.csv has them. And a core may displace all its filters by the same vector, if all positions make up for it:
here a translation that all recordings have in common is taken off.
"""

import dataclasses

import numpy as np
import pytest
import torch

for _module in ("yaml", "lightning", "torchmetrics", "safetensors", "skimage"):
    pytest.importorskip(_module)

from commands import done  # noqa: E402

from v1fast.data import read_all  # noqa: E402
from v1fast.models import FiringRateEncoder  # noqa: E402
from v1fast.models.geometry import input_grid  # noqa: E402

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]
MODEL = (
    "--preset",
    "small",
    "--device",
    "cpu",
    "--set",
    "readout.residual_reg_weight=5",
    "--set",
    "shifter=MLPShifter",
)


SIZES = {
    "small": (
        {"animals": 2, "neurons": 100, "train": 500, "validation": 60, "height": 28, "width": 40},
        ("--epochs", "16"),
        {"position": 1.5, "shift": 0.9, "gain": 0.4, "map": 0.1},
    ),
    "whole": (
        {"animals": 4, "neurons": 1000, "train": 3000},
        (),
        {"position": 0.5, "shift": 0.9, "gain": 0.2, "map": 0.1},
    ),
}
"""Sizes of the simulation, settings of the fit, bounds."""


def simulated(folder, **sizes):
    options = [f"--{name}={value}" for name, value in {"subfields": 1, "test": 20, **sizes}.items()]
    done("data", "simulate", folder, *options, "-q")
    return read_all(folder)


@dataclasses.dataclass
class Recovered:
    """Of one recording.

    Attributes:
        errors: [N, 2], learned minus true positions, pixels of the image.
        shifts: [2], correlation of the shifter's output and the gaze, x and y.
        gains: [2], slope of the shifter's output in pixels against the gaze.
        map_errors: [N, 2], predicted minus true map from cortex, relative to half the image's sides.
    """

    errors: np.ndarray
    shifts: np.ndarray
    gains: np.ndarray
    map_errors: np.ndarray


def recovered(run, recordings):
    """What the files of a run say, beside the truth that the recordings hold."""
    encoder = FiringRateEncoder.load(run / "model.safetensors")
    rows = np.genfromtxt(run / "neurons.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
    return {
        name: _recovered(encoder, name, recording, rows[rows["session"] == name])
        for name, recording in recordings.items()
    }


@torch.no_grad()
def _recovered(encoder, name, recording, rows):
    true, cortex = (np.asarray(values) for values in (recording.neurons["position"], recording.cortex))
    height, width = recording.images.shape[-2:]
    half = (np.array(encoder.readout[name].in_shape[:0:-1]) - 1) / 2  # pixels of a unit of the readout; strides are 1
    middle = half + [first for first, _ in input_grid(encoder.core)]
    by, gaze = encoder.normalization[name]["pupil_center"], np.asarray(recording.trials["gaze"])
    pupil = (np.asarray(recording.pupil_center) - by["mean"]) / by["std"]
    shift = encoder.shifter[name](torch.tensor(pupil, dtype=torch.float32)).numpy() * half
    place = encoder.readout[name].place(cortex).numpy() * half + middle + shift.mean(0)
    return Recovered(
        errors=np.stack([rows["x"], rows["y"]], 1) - true,
        shifts=np.array([np.corrcoef(shift[:, axis], gaze[:, axis])[0, 1] for axis in (0, 1)]),
        gains=np.array([np.polyfit(gaze[:, axis], shift[:, axis], 1)[0] for axis in (0, 1)]),
        map_errors=(place - _true_map(cortex, true)) / ((np.array([width, height]) - 1) / 2),
    )


def _true_map(cortex, true):
    """The animal's map is quadratic in cortex; neurons scatter about it, by a pixel, and their mean is the map."""
    u, v = ((cortex - cortex.mean(0)) / cortex.std(0)).T
    terms = np.stack([np.ones_like(u), u, v, u * v, u * u, v * v], 1)
    return terms @ np.linalg.lstsq(terms, true, rcond=None)[0]


@pytest.fixture(params=["small", pytest.param("whole", marks=pytest.mark.slow)], scope="module")
def found(request, tmp_path_factory):
    """Recovered by recording, and the bounds; one core for all recordings, positions by cortex and residuals."""
    folder = tmp_path_factory.mktemp("evidence")
    sizes, settings, bounds = SIZES[request.param]
    recordings = simulated(folder / "animals", **sizes)
    done("fit", folder / "animals", "--out", folder / "run", "-q", *MODEL, *settings)
    return recovered(folder / "run", recordings), bounds


def test_eye_movements_are_recovered(found):
    recordings, bounds = found
    for name, one in recordings.items():
        assert (one.shifts >= bounds["shift"]).all(), (name, one.shifts)
        assert (abs(one.gains - 1) <= bounds["gain"]).all(), (name, one.gains)  # in pixels: no unit is free


def test_positions_are_recovered(found):
    recordings, bounds = found
    common = np.median(np.concatenate([one.errors for one in recordings.values()]), 0)
    assert np.linalg.norm(common) <= 1.5, common  # the core's kernels are not much wider
    for name, one in recordings.items():
        distance = np.median(np.linalg.norm(one.errors - common, axis=1))
        assert distance <= bounds["position"], (name, distance)


def test_the_map_of_cortex_is_recovered(found):
    recordings, bounds = found
    for name, one in recordings.items():
        distance = np.linalg.norm(one.map_errors, axis=1)
        assert np.median(distance) <= bounds["map"], (name, np.median(distance))
