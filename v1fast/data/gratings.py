"""Gratings as images, and a simulated population that responds to their direction."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from v1fast.data.recording import Recording
from v1fast.data.rows import Array, Reader

SCREEN = (480, 640)  # pixels, height and width
RADIANS_PER_PIXEL = 1 / 28  # a period of 176 pixels
PATCH_TILT = 0.1  # radians, which a patch is rotated by
PATCH_CENTRE = (0.5, 0.75)  # of height and width
PATCH_RADIUS = 1 / 6  # of the width

RECORDED_NEURONS = 23589  # of the recording that simulate_gratings stands in for
HALF_WIDTHS = (25.0, 0.4)  # degrees, median half width at half height of tuning curves; spread of its logarithm
SIGNAL_SHARES = (0.5, 3.5)  # parameters of a beta distribution, of mean 1 / 8: share of a trial's variance
TRIALS_PER_STIMULUS = 12.0  # that a response is the mean of, on average
SHARED_SHARE = 0.2  # of the noise variance, mean over neurons
SHARED_FACTORS = 16
JITTER = 2.5  # degrees, of the direction that the whole population sees


class Gratings(Reader):
    """Square-wave gratings of the recordings, 0 and 1, [S, 1, H, W], drawn when they are read.

    ``x cos a + y sin a`` with x, y in radians, 1 / 28 for each pixel of a screen of 480 x 640; 1 where its cosine is
    positive. A patch is a disc of such a grating on grey, 0.5, on the right of the screen; its angle is a + 0.1.

    Args:
        degrees: [S], orientations a.
        image_shape: (H, W), both >= 1; the screen is scaled to it.
        patch: draw patches.

    Raises:
        ValueError: another image_shape.
    """

    def __init__(self, degrees: Array, image_shape: tuple[int, int], patch: bool = False) -> None:
        if min(image_shape) < 1:
            raise ValueError(f"image_shape: want (H, W), both >= 1, got {image_shape}")
        self.degrees, self.patch = np.asarray(degrees, np.float64), patch
        self.shape, self.dtype = (len(self.degrees), 1, *image_shape), np.dtype(np.float32)

    def read(self, rows: NDArray[np.int64]) -> Array:
        """See :class:`v1fast.data.rows.Reader`."""
        height, width = self.shape[2:]
        y, x = np.arange(height)[:, None], np.arange(width)
        per_row, per_column = (SCREEN[axis] / (height, width)[axis] * RADIANS_PER_PIXEL for axis in (0, 1))
        angle = np.deg2rad(self.degrees[rows])[:, None, None] + PATCH_TILT * self.patch
        phase = x * per_column * np.cos(angle) + y * per_row * np.sin(angle)
        images: Array = (np.cos(phase) > 0).astype(np.float32)
        if self.patch:
            away = np.hypot(x - PATCH_CENTRE[1] * width, y - PATCH_CENTRE[0] * height)
            images = np.where(away < PATCH_RADIUS * width, images, np.float32(0.5))
        return images[:, None]


def gratings(degrees: ArrayLike, image_shape: tuple[int, int] = (48, 64), *, patch: bool = False) -> Tensor:
    """Square-wave gratings, or patches of them, as the recordings' screen shows them.

    Args:
        degrees: [S], orientations. A grating of 0 degrees has vertical bars.
        image_shape: (H, W); the screen of 480 x 640 pixels is scaled to it.
        patch: draw patches, see :class:`Gratings`.

    Returns:
        [S, 1, H, W], float32: 0 and 1, and 0.5 around patches.

    Raises:
        ValueError: degrees are not finite [S]; another image_shape.

    >>> gratings([0, 90]).shape
    torch.Size([2, 1, 48, 64])
    """
    angles = np.asarray(degrees, np.float64)
    if angles.ndim != 1 or not np.isfinite(angles).all():
        raise ValueError(f"degrees: want finite [S], got {angles.shape}")
    return torch.from_numpy(np.asarray(Gratings(angles, image_shape, patch)))


def simulate_gratings(
    neurons: int = RECORDED_NEURONS,
    stimuli: int = 360,
    *,
    image_shape: tuple[int, int] = (48, 64),
    seed: int = 0,
) -> Recording:
    """A population of the size of Stringer et al.'s recordings, and its responses to gratings of 0 to 360 degrees.

    Each neuron has a preferred direction, uniform over the circle. Its tuning curve over orientation is von Mises, with
    a half width at half height of 25 degrees (median). The response to the opposite direction is smaller by a share
    that is uniform between 0 and 1, the direction index. Most neurons are noisy: an eighth of a single trial's variance
    is tuning, on average, and the responses are means of 12 trials (Poisson, at least 1). A fifth of the noise is
    shared, by 16 factors. The whole population sees each direction off by 2.5 degrees (standard deviation): noise that
    no number of neurons averages out (Moreno-Bote et al., Nature Neuroscience 17, 1410, 2014), so that a linear decoder
    errs by two degrees, as it does with the recording. Responses are z-scored over stimuli, so they may be negative.

    These are settings of ours, chosen to be realistic. They are not fitted to a recording.

    Args:
        neurons: N >= 1.
        stimuli: S >= 2 directions, at equal steps from 0.
        image_shape: (H, W) of the gratings, which are drawn when they are read.
        seed: of everything random here, >= 0.

    Returns:
        A recording with ``trials["orientation"]`` [S], in degrees, and per neuron ``preferred_direction`` (degrees),
        ``half_width`` (degrees), ``direction_index`` and ``signal_share`` (of the variance of a mean response).

    Raises:
        ValueError: for an argument out of range.

    >>> simulate_gratings(50, 36).responses.shape
    (36, 50)
    """
    for name, value, least in (("neurons", neurons, 1), ("stimuli", stimuli, 2)):
        if value < least:
            raise ValueError(f"{name}: want >= {least}, got {value}")
    rng = np.random.default_rng(seed)
    degrees = np.arange(stimuli) * (360 / stimuli)
    preferred = rng.uniform(0, 360, neurons)
    half_width = np.exp(rng.normal(np.log(HALF_WIDTHS[0]), HALF_WIDTHS[1], neurons)).clip(8, 60)
    direction_index = rng.uniform(0, 1, neurons)
    seen = degrees + JITTER * rng.standard_normal(stimuli)
    signal = _standardized(_tuning(seen, preferred, half_width, direction_index))
    share = rng.beta(*SIGNAL_SHARES, neurons)
    # Shared noise: few neurons have much of it.
    loadings = rng.standard_normal((SHARED_FACTORS, neurons)) / np.sqrt(SHARED_FACTORS)
    common = np.minimum(1, rng.exponential(SHARED_SHARE, neurons))
    noise = rng.standard_normal((stimuli, neurons), dtype=np.float32) * np.sqrt(1 - common)
    noise += (rng.standard_normal((stimuli, SHARED_FACTORS)) @ loadings) * np.sqrt(common)
    noise /= np.sqrt(np.maximum(1, rng.poisson(TRIALS_PER_STIMULUS, (stimuli, 1))))
    responses = _standardized(signal * np.sqrt(share) + noise * np.sqrt(1 - share))
    return Recording(
        images=Gratings(degrees, image_shape),
        responses=responses.astype(np.float32),
        trials={"orientation": degrees},
        neurons={
            "preferred_direction": preferred,
            "half_width": half_width,
            "direction_index": direction_index,
            "signal_share": share / (share + (1 - share) / TRIALS_PER_STIMULUS),
        },
        name="simulated",
    )


def _tuning(degrees: Array, preferred: Array, half_width: Array, direction_index: Array) -> Array:
    """Tuning curves [S, N], 1 at the preferred direction."""
    away = np.deg2rad(degrees[:, None] - preferred).astype(np.float32)
    sharpness = (np.log(2) / (1 - np.cos(2 * np.deg2rad(half_width)))).astype(np.float32)
    opposite = (1 - np.cos(away)) / 2  # 0 at the preferred direction, 1 at the opposite one
    curves: Array = np.exp(sharpness * (np.cos(2 * away) - 1)) * (1 - direction_index.astype(np.float32) * opposite)
    return curves


def _standardized(values: Array) -> Array:
    standard: Array = (values - values.mean(0)) / values.std(0)
    return standard
