"""Tasks that make a representation: tilt and orientation of gratings, rotation and identity of photographs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from v1fast import _choices
from v1fast.data import gratings
from v1fast.data.photographs import PHOTOGRAPHS, photograph_crops
from v1fast.decoding.baselines import from_circle, on_circle
from v1fast.decoding.scores import mean_error
from v1fast.normative.training import accuracy, tilts

Floats = NDArray[np.float64]
PHOTOGRAPH_CONTRAST = 0.25  # standard deviation of a photograph's pixels, which have a mean of 0.5 as gratings do
PERIOD = 180.0  # degrees, of orientations


@dataclasses.dataclass(frozen=True)
class Task:
    """Images, what is asked of them, and new images to test it.

    Attributes:
        name: of the task.
        images: [S, 1, H, W].
        targets: as the loss takes them.
        loss: name in ``training.LOSSES``.
        outputs: that the network needs.
        new_images: [T, 1, H, W].
        new_targets: of them.
        score: (outputs, targets) -> how well it is solved.
        scored: what the score is, and its chance level, in words.
    """

    name: str
    images: Tensor
    targets: Tensor
    loss: str
    outputs: int
    new_images: Tensor
    new_targets: Tensor
    score: Callable[[Tensor, Tensor], float]
    scored: str


def tilt(draw: np.random.RandomState, images: int, new: int, image_shape: tuple[int, int], patch: bool) -> Task:
    """Is a grating tilted to the left or to the right?"""
    degrees, others = ((draw.rand(count) - 0.5) * PERIOD for count in (images, new))
    shown, fresh = (gratings(angles, image_shape, patch=patch) for angles in (degrees, others))
    return Task("tilt", shown, tilts(degrees), "binary", 1, fresh, tilts(others), accuracy, "accuracy, chance 0.5")


def orientation(draw: np.random.RandomState, images: int, new: int, image_shape: tuple[int, int], patch: bool) -> Task:
    """Which orientation has a grating? As cosine and sine of the doubled angle."""
    degrees, others = ((draw.rand(count) - 0.5) * PERIOD for count in (images, new))
    shown, fresh = (gratings(angles, image_shape, patch=patch) for angles in (degrees, others))
    targets, answers = (torch.from_numpy(on_circle(angles, PERIOD)).float() for angles in (degrees, others))
    scored = "error in degrees, chance 45"
    return Task("orientation", shown, targets, "squared", 2, fresh, answers, _orientation_error, scored)


def _orientation_error(outputs: Tensor, targets: Tensor) -> float:
    decoded, true = (from_circle(part.double().numpy(), PERIOD) for part in (outputs, targets))
    return mean_error(decoded, true, PERIOD)


def rotation(draw: np.random.RandomState, images: int, new: int, image_shape: tuple[int, int], patch: bool) -> Task:
    """Is a photograph rotated to the left or to the right, by up to 90 degrees? The test is on other photographs."""
    parts = []
    for names, count in ((PHOTOGRAPHS["train"], images), (PHOTOGRAPHS["validation"] + PHOTOGRAPHS["test"], new)):
        degrees = (draw.rand(count) - 0.5) * PERIOD
        parts.append((rotated_photographs(names, degrees, image_shape, draw.randint(2**31)), tilts(degrees)))
    (shown, targets), (fresh, answers) = parts
    return Task(
        "rotation of photographs", shown, targets, "binary", 1, fresh, answers, accuracy, "accuracy, chance 0.5"
    )


def rotated_photographs(names: tuple[str, ...], degrees: Floats, image_shape: tuple[int, int], seed: int) -> Tensor:
    """Crops of photographs, each rotated, with a mean of 0.5 and a standard deviation of 0.25 before the rotation.

    Args:
        names: of photographs, see ``photograph_crops``.
        degrees: [S], to the right.
        image_shape: (H, W).
        seed: of the crops.

    Returns:
        [S, 1, H, W].
    """
    height, width = image_shape
    side = int(np.ceil(np.hypot(height, width)))  # so that no corner shows what lies outside
    side += (side - height) % 2  # the middle of the crop is that of the image
    crops = photograph_crops(names, len(degrees), (side, side), np.random.default_rng(seed))
    angle = torch.from_numpy(np.deg2rad(degrees)).float()
    zero = torch.zeros_like(angle)
    turn = torch.stack(
        [torch.stack([angle.cos(), angle.sin(), zero], 1), torch.stack([-angle.sin(), angle.cos(), zero], 1)], 1
    )
    turned = F.grid_sample(
        crops, F.affine_grid(turn, [len(crops), 1, side, side], align_corners=False), align_corners=False
    )
    top, left = (side - height) // 2, (side - width) // 2
    return 0.5 + PHOTOGRAPH_CONTRAST * turned[:, :, top : top + height, left : left + width]


def objects(draw: np.random.RandomState, images: int, new: int, image_shape: tuple[int, int], patch: bool) -> Task:
    """Which of 7 photographs is a crop from? The test is on other crops of the same photographs."""
    names = PHOTOGRAPHS["train"]
    parts = [
        photograph_crops(names, count, image_shape, np.random.default_rng(draw.randint(2**31)))
        for count in (images, new)
    ]
    # Crops come from the photographs in turn, but those without contrast are drawn again from the same one.
    targets = [torch.arange(count) % len(names) for count in (images, new)]
    shown, fresh = (0.5 + PHOTOGRAPH_CONTRAST * part for part in parts)
    scored = f"accuracy, chance {1 / len(names):.2f}"
    return Task("which photograph", shown, targets[0], "classes", len(names), fresh, targets[1], accuracy, scored)


TASKS: dict[str, Callable[[np.random.RandomState, int, int, tuple[int, int], bool], Task]] = {
    "tilt": tilt,
    "orientation": orientation,
    "rotation": rotation,
    "objects": objects,
}
"""Name -> (random numbers, number of images, of new ones, image_shape, patch) -> task."""


def make_task(
    name: str,
    *,
    seed: int = 12,
    images: int = 1000,
    new: int = 500,
    image_shape: tuple[int, int] = (48, 64),
    patch: bool = False,
) -> Task:
    """Draw a task.

    Args:
        name: tilt, orientation, rotation or objects.
        seed: of its images.
        images, new: how many to learn from, and to test on.
        image_shape: (H, W).
        patch: whether gratings are patches.

    Raises:
        ValueError: another name.
        ModuleNotFoundError: photographs need scikit-image.
    """
    return _choices.pick("task", name, TASKS)(np.random.RandomState(seed), images, new, image_shape, patch)


def fourier(images: Tensor, bands: int = 36) -> tuple[Floats, Floats]:
    """The orientation of images without any learning, from their Fourier transform.

    The power of an image, minus its mean and under a Hann window, is summed in bands of the direction of the wave
    vector. The orientation is half the direction of the sum of the power, each at its doubled angle.

    Args:
        images: [S, 1, H, W].
        bands: of 180 degrees.

    Returns:
        Orientations [S] in -90 to 90 degrees, of which 0 has vertical bars; the power in each band [S, bands].

    >>> fourier(gratings([30.0]))[0].round().tolist()
    [30.0]
    """
    values = images[:, 0].double()
    height, width = values.shape[1:]
    window = torch.hann_window(height, dtype=torch.float64)[:, None] * torch.hann_window(width, dtype=torch.float64)
    power = torch.fft.fft2((values - values.mean((1, 2), keepdim=True)) * window).abs().square()
    y, x = torch.fft.fftfreq(height).double()[:, None], torch.fft.fftfreq(width).double()
    angle = torch.atan2(y, x)
    power[:, 0, 0] = 0  # what the window leaves of the mean
    doubled = (power * torch.exp(2j * angle)).sum((1, 2))
    degrees = np.rad2deg(torch.angle(doubled).numpy()) / 2
    place = ((angle.rad2deg() % 180) * bands / 180).long().clamp(max=bands - 1).flatten()
    energy = torch.zeros(len(values), bands, dtype=torch.float64).index_add_(1, place, power.flatten(1))
    return degrees, energy.numpy()
