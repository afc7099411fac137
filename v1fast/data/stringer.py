"""Stringer's format: ``resp`` and ``stimuli`` (orientations) or ``istim`` (images) in a file of NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from v1fast.data.recording import Recording


def read_stringer(
    path: str | Path,
    *,
    images: Any = None,
    first_image: int = 0,
    bin_degrees: float | None = None,
    image_shape: tuple[int, int] = (48, 64),
    split: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
) -> Recording:
    """Read responses to gratings (``stimuli`` in degrees), or to images (``istim``, with ``images``)."""
    raise NotImplementedError


def write_stringer(recording: Recording, path: str | Path) -> None:
    """Write ``resp``, ``istim`` and ``images`` into an ``.npz``."""
    raise NotImplementedError
