"""``read``: a recording in any format, by what lies at a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from v1fast.data.recording import Recording

FORMATS = ("sensorium", "openretina", "stringer", "arrays", "nwb")


def read(path: str | Path, format: str | None = None, **options: Any) -> Recording:
    """Read a recording.

    Args:
        path: file or folder. It is never written to.
        format: "sensorium", "openretina", "stringer", "arrays" or "nwb"; None: by what lies there.
        **options: of the format's reader.
    """
    raise NotImplementedError


def read_all(*paths: str | Path, **options: Any) -> dict[str, Recording]:
    """Read recordings by name, as models want them; a folder that holds several gives all of them.

    Raises:
        ValueError: two have the same name.
    """
    raise NotImplementedError
