"""Neurodata Without Borders, through pynwb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from v1fast.data.recording import Recording


def read_nwb(path: str | Path, *, responses: str, images: str, trials: str = "intervals/trials", **options: Any) -> Recording:
    """Read a file of NWB; where responses, stimulus images and the table of trials lie in it are arguments."""
    raise NotImplementedError
