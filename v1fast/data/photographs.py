"""Crops of photographs, as images to show; the photographs come with scikit-image."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Whole photographs go to one tier each, so that no part of a test image was ever trained on. scikit-image ships these
# inside its wheel; the right half of its stereo pair is left out, because it shows what the left half shows.
PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "train": ("astronaut", "brick", "camera", "coffee", "grass", "moon", "stereo_motorcycle"),
    "validation": ("coins", "gravel"),
    "test": ("chelsea", "rocket"),
}
"""Tier -> names of photographs in scikit-image: no tier has a photograph of another."""
# A photograph is cropped at three sizes: its shorter side is this many crops high.
CROPS_PER_SIDE = (4, 6, 8)
# Below this standard deviation (of luminance in 0..1) a crop is sky or shade, and z-scoring it would show only grain.
MIN_CONTRAST = 0.06


def photograph_crops(
    names: Sequence[str], count: int, image_shape: tuple[int, int], rng: np.random.Generator
) -> Tensor:
    """Random crops of scikit-image's photographs, in grey, some mirrored, each z-scored.

    Args:
        names: functions of ``skimage.data``; each photograph gives about as many crops as any other.
        count: number of crops.
        image_shape: (H, W), in pixels.
        rng: the generator drawn from.

    Returns:
        [count, 1, H, W], float32.

    Raises:
        ModuleNotFoundError: without scikit-image.
    """
    height, width = image_shape
    pages = [[_resized(name, height * n) for n in CROPS_PER_SIDE] for name in names]
    found: list[Tensor] = []
    while len(found) < count:
        sizes = pages[len(found) % len(pages)]
        page = sizes[rng.integers(len(sizes))]
        top, left = (int(rng.integers(have - want + 1)) for have, want in zip(page.shape, image_shape, strict=True))
        crop = page[top : top + height, left : left + width]
        mirrored = bool(rng.integers(2))
        if crop.std() >= MIN_CONTRAST:
            found.append(crop.flip(1) if mirrored else crop)
    crops = torch.stack(found)[:, None]
    deviation, mean = torch.std_mean(crops, dim=(1, 2, 3), correction=0, keepdim=True)
    return (crops - mean) / deviation


@functools.cache
def _photograph(name: str) -> Tensor:
    """One of scikit-image's photographs in grey, [height, width], luminance in 0..1."""
    try:
        import skimage.color
        import skimage.data
        import skimage.util
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('the photographs come with scikit-image: pip install "v1fast[demo]"') from error
    image = getattr(skimage.data, name)()
    if isinstance(image, tuple):  # the stereo pair comes as left, right, disparity
        image = image[0]
    grey = skimage.color.rgb2gray(image) if image.ndim == 3 else skimage.util.img_as_float(image)
    return _float(grey)


def _resized(name: str, shorter_side: int) -> Tensor:
    page = _photograph(name)
    scale = shorter_side / min(page.shape)
    size = [round(scale * side) for side in page.shape]
    return F.interpolate(page[None, None], size, mode="bilinear", antialias=True)[0, 0]


def _float(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
