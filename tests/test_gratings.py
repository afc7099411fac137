"""Gratings as images, and the simulated population that responds to them."""

import doctest
import importlib

import numpy as np
import pytest

from v1fast.data import gratings, simulate_gratings

pytestmark = pytest.mark.once


def test_gratings_are_the_course_s():
    """At res 0.1 of a screen of 640 x 480: x, y = arange(0, size * res) / res / 28 radians."""
    degrees = np.array([-90.0, -33.0, 0.0, 10.5, 90.0, 139.0])
    x, y = (np.arange(0, size * 0.1) / 0.1 / 28 for size in (640, 480))
    angle = np.deg2rad(degrees)[:, None, None]
    wanted = np.cos(x * np.cos(angle) + y[:, None] * np.sin(angle)) > 0
    shown = gratings(degrees)
    assert shown.shape == (6, 1, 48, 64)
    np.testing.assert_array_equal(shown[:, 0].numpy(), wanted)


def test_a_patch_is_a_disc_on_the_right_rotated_by_a_tenth_of_a_radian():
    patch, whole = gratings([20.0], patch=True)[0, 0], gratings([20.0 + np.rad2deg(0.1)])[0, 0]
    y, x = np.mgrid[:48, :64]
    inside = np.sqrt((x - 48) ** 2 + (y - 24) ** 2) < 640 / 3 / 2 * 0.1
    np.testing.assert_array_equal(patch.numpy()[inside], whole.numpy()[inside])
    assert (patch.numpy()[~inside] == 0.5).all()


@pytest.mark.parametrize("degrees", [[[1.0]], [float("nan")]])
def test_other_degrees_are_refused(degrees):
    with pytest.raises(ValueError, match=r"degrees: want finite \[S\]"):
        gratings(degrees)


def test_the_simulated_population():
    recording = simulate_gratings(400, seed=3)
    assert recording.responses.shape == (360, 400)
    np.testing.assert_array_equal(recording.trials["orientation"], np.arange(360))
    np.testing.assert_allclose(recording.responses.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(recording.responses.std(0), 1, atol=1e-5)
    assert recording.responses.min() < 0
    # A neuron with much signal responds most near its preferred direction.
    best = np.argsort(-recording.neurons["signal_share"])[:40]
    away = recording.responses[:, best].argmax(0) - recording.neurons["preferred_direction"][best]
    away = np.abs((away + 180) % 360 - 180)
    selective = recording.neurons["direction_index"][best] > 0.3
    assert np.median(away[selective]) < 15
    again = simulate_gratings(400, seed=3)
    np.testing.assert_array_equal(again.responses, recording.responses)


@pytest.mark.parametrize(
    ("options", "said"), [({"neurons": 0}, "neurons: want >= 1"), ({"stimuli": 1}, "stimuli: want")]
)
def test_sizes_out_of_range(options, said):
    with pytest.raises(ValueError, match=said):
        simulate_gratings(**options)


@pytest.mark.parametrize("module", ["v1fast.data.gratings"])
def test_the_examples_of_docstrings(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted
    assert not found.failed
