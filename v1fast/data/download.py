"""Published recordings, downloaded: resumed after a break, checked, and in place only when whole."""

from __future__ import annotations

from pathlib import Path

NAMES = ("stringer", "lurz2020", "sensorium2022")


def get(name: str, folder: str | Path = "data", *, show: bool = True) -> list[Path]:
    """Download the files of a published recording into ``folder``, and return their paths."""
    raise NotImplementedError
