"""openretina's format: stimuli as ``stimuli/<name>.npy``, and a file of HDF5 for each session."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from v1fast.data.recording import Recording


def read_openretina(
    path: str | Path, *, session: str | None = None, tiers: Mapping[str, str] | None = None
) -> Recording:
    """Read a session: the path of its file, or the folder and the session's name."""
    raise NotImplementedError


def write_openretina(recording: Recording, path: str | Path) -> None:
    """Write ``stimuli/*.npy`` and ``<name>.h5`` into a folder."""
    raise NotImplementedError
