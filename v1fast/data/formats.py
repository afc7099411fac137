"""``read`` and ``write``: recordings in any of the formats."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from v1fast import _choices
from v1fast.data.arrays import read_arrays, write_arrays
from v1fast.data.nwb import read_nwb
from v1fast.data.openretina import RESPONSES, SUFFIXES, open_hdf5, read_openretina, sessions, write_openretina
from v1fast.data.recording import Recording
from v1fast.data.sensorium import read_sensorium, scans, write_sensorium
from v1fast.data.stringer import read_stringer, write_stringer
from v1fast.data.trees import Tree

READERS: dict[str, Callable[..., Recording]] = {
    "sensorium": read_sensorium,
    "openretina": read_openretina,
    "stringer": read_stringer,
    "arrays": read_arrays,
    "nwb": read_nwb,
}
WRITERS: dict[str, Callable[[Recording, str | Path], None]] = {
    "sensorium": write_sensorium,
    "openretina": write_openretina,
    "stringer": write_stringer,
    "arrays": write_arrays,
}
_KNOWN = (
    "a Sensorium folder or zip (data/responses/0.npy, ...), an openretina session (.h5 beside stimuli/), Stringer's "
    ".npz (resp, stimuli or istim), an .npz or a folder of images and responses, or .nwb"
)


def read(path: str | Path, format: str | None = None, **options: Any) -> Recording:
    """Read a recording in any format. What is there is never written to, and nothing is unpickled.

    Args:
        path: file or folder; also one with a single recording in it.
        format: "sensorium", "openretina", "stringer", "arrays" or "nwb". None: by what lies there.
        **options: of the reader of that format, e.g. :func:`read_sensorium`.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: it is of no known format, holds several recordings, or is damaged.
    """
    path = Path(path)
    if format is None:
        format = _format(path)
        if format is None:
            inside = _inside(path)
            if len(inside) == 1:  # as an archive unpacks
                return read(inside[0], **options)
            found = f"{len(inside)} recordings: {', '.join(str(one) for one in inside[:4])}" if inside else _got(path)
            raise ValueError(f"{path}: want {_KNOWN}, got {found}")
    _choices.one_of("format", format, tuple(READERS))
    return READERS[format](path, **options)


def read_all(*paths: str | Path, format: str | None = None, **options: Any) -> dict[str, Recording]:
    """Read recordings by their names, which models have as ``data_key``.

    Args:
        *paths: files or folders; one that holds several recordings gives all of them.
        format, **options: see :func:`read`.

    Raises:
        FileNotFoundError, ValueError: see :func:`read`; or two recordings have the same name.
    """
    found: dict[str, Recording] = {}
    for path, more in _every(paths, format):
        recording = read(path, format, **{**more, **options})
        if recording.name in found:
            both = f"{found[recording.name].source} and {recording.source}"
            raise ValueError(f"want recordings of different names, got {recording.name} for {both}")
        found[recording.name] = recording
    return found


def write(recording: Recording, path: str | Path, format: str = "sensorium") -> None:
    """Write a recording as "sensorium", "openretina", "stringer" or "arrays"; see the writers of these names.

    Raises:
        ValueError: the format cannot hold the recording, or is unknown.
        FileExistsError: there is something in the way.
    """
    _choices.one_of("format", format, tuple(WRITERS))
    WRITERS[format](recording, path)


def _every(paths: tuple[str | Path, ...], format: str | None) -> Iterator[tuple[Path, dict[str, str]]]:
    for path in map(Path, paths):
        kind = format or _format(path)
        if kind == "sensorium":
            roots = scans(Tree(path))
            yield from ((path, {"scan": root.rstrip("/")} if len(roots) > 1 else {}) for root in roots or [""])
        elif kind == "openretina" and path.is_dir():
            yield from ((file, {}) for file in sessions(path))
        elif kind is None and _inside(path):
            yield from _every(tuple(_inside(path)), None)
        else:
            yield path, {}


def _inside(path: Path) -> list[Path]:
    """Recordings right in a folder; of an archive and the folder that it was unpacked to, the folder."""
    if not path.is_dir():
        return []
    found = [one for one in sorted(path.iterdir()) if not one.name.startswith(".") and _is_recording(one)]
    folders = {one.name for one in found if one.is_dir()}
    return [one for one in found if not (one.suffix == ".zip" and one.stem in folders)]


def _is_recording(path: Path) -> bool:
    """Whether a path in a folder is one, among others that need not be."""
    try:
        kind = _format(path)
        if kind == "openretina" and not path.is_dir():
            with open_hdf5(path) as content:
                return any(name.startswith(RESPONSES) for name in content)
        return kind is not None and not (path.suffix == ".npz" and kind == "arrays" and not _has_arrays(Tree(path)))
    except (OSError, ValueError):
        return False


def _has_arrays(tree: Tree) -> bool:
    return {"images.npy", "responses.npy"} <= set(tree.files(""))


def _format(path: Path) -> str | None:
    """By what lies there; None if that is no recording.

    Raises:
        FileNotFoundError: nothing does.
        ValueError: an archive is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(2, os.strerror(2), str(path))
    if path.suffix == ".nwb":
        return "nwb"
    if path.suffix in SUFFIXES:
        return "openretina"
    if path.is_dir() or path.suffix in (".zip", ".npz"):
        tree = Tree(path)
        names = {name.removesuffix(".npy") for name in tree.files("")}
        if path.suffix == ".npz" and "resp" in names and names & {"stimuli", "istim"}:
            return "stringer"
        if path.suffix == ".npz" and {"resp_train", "resp_test", "stimuli"} <= names:
            return "stringer"
        if _has_arrays(tree) or path.suffix == ".npz":  # whose reader says what is missing
            return "arrays"
        if tree.files("data/responses") or (path.suffix == ".zip" and scans(tree)):
            return "sensorium"
        if path.is_dir() and sessions(path):
            return "openretina"
    return None


def _got(path: Path) -> str:
    if not path.is_dir():
        return f"a file {path.suffix or 'without a suffix'}"
    names = sorted(one.name for one in path.iterdir())
    return f"a folder with {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}" if names else "an empty folder"
