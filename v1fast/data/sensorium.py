"""The format of the Sensorium competition and of Lurz et al. 2021 (static scans): a folder, or a zip of it."""

from __future__ import annotations

from pathlib import Path

from v1fast.data.recording import Recording


def read_sensorium(path: str | Path, *, statistics: str = "all") -> Recording:
    """Read a folder or zip with ``data/images/0.npy``, ``data/responses/0.npy``, ...; trials when they are needed."""
    raise NotImplementedError


def write_sensorium(recording: Recording, path: str | Path) -> None:
    """Write a folder, or a zip if ``path`` ends in ``.zip``."""
    raise NotImplementedError
