"""Plain arrays: a dict, an ``.npz``, or a folder of ``.npy`` files, under the names of :class:`Recording`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from v1fast.data.recording import Recording


def read_arrays(source: str | Path | Mapping[str, Any], **names: str) -> Recording:
    """Read "images" [I, C, H, W] or [I, H, W], "responses" [T, N] or [repeats, I, N], and what else there is."""
    raise NotImplementedError


def write_arrays(recording: Recording, path: str | Path) -> None:
    """Write an ``.npz``, or a folder of ``.npy`` files, which can be mapped."""
    raise NotImplementedError
