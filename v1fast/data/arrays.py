"""Plain arrays under the names of :class:`Recording`: a dict, an ``.npz``, or a folder of ``.npy`` files.

Names are those of the class's attributes; "neurons/<name>", "trials/<name>" and "statistics/<field>/mean" are those
within. Files of a folder, and arrays of an ``.npz`` that ``numpy.savez`` wrote without compression, are mapped.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from v1fast import _files
from v1fast.data.recording import Recording
from v1fast.data.rows import Array, Part, as_rows
from v1fast.data.sensorium import session_name
from v1fast.data.trees import Tree

NAMES = (
    "images",
    "responses",
    "image_index",
    "image_ids",
    "tiers",
    "pupil_center",
    "behavior",
    "cortex",
    "unit_ids",
    "sequences",
)
GROUPS = ("neurons", "trials", "statistics")
CHANNELS = 4  # at most, where images are taken to have them last


def read_arrays(
    source: str | Path | Mapping[str, Any], *, name: str | None = None, ignore: Sequence[str] = (), **names: str
) -> Recording:
    """Read a recording from arrays.

    Args:
        source: an ``.npz``, a folder of ``.npy`` files, or a mapping. "images" [I, C, H, W], or [I, H, W] of one
            channel; "responses" [T, N], or [R, I, N] of R repeats of each image, where a trial that is NaN in all
            neurons was not shown; the others as in :class:`Recording`, all of them optional. Of repeats [R, I, N], what
            belongs to trials may also be given by image, [I, ...].
        name: of the session; default: that of the file.
        ignore: names in the source that are left out.
        **names: what an array is called in the source, e.g. ``responses="spikes"``.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: in one line: the file, the array, what was wanted, what came.

    >>> import numpy as np
    >>> read_arrays({"images": np.zeros((5, 36, 64)), "responses": np.ones((2, 5, 3))})
    Recording 'recording': 10 trials (train 10 of 5 images), 3 neurons, images 1 x 36 x 64
    """
    where, given = _given(source)
    unknown = [key for key in names if key not in NAMES]
    if unknown:
        raise ValueError(f"want names of {', '.join(NAMES)}, got {unknown[0]!r}")
    for key in names.values():
        if key not in given:
            raise ValueError(f"{where}{key}: want such an array, got {', '.join(given) or 'none'}")
    back = {theirs: ours for ours, theirs in names.items()}
    arrays = {back.get(key, key): values for key, values in given.items() if key not in ignore}
    _check_names(where, arrays)
    fields: dict[str, Any] = {key: values for key, values in arrays.items() if key in NAMES}
    fields["images"] = _images(where, fields["images"])
    groups = _groups(arrays)
    responses = as_rows(f"{where}responses", fields["responses"])
    if len(responses.shape) == 3:
        _unfold(where, fields, groups, np.asarray(responses))
    path = None if isinstance(source, Mapping) else Path(source)
    own = name or ("recording" if path is None else session_name(path.stem))
    return Recording(**fields, **groups, name=own, source="" if path is None else str(path))


def _given(source: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """How messages begin, and all arrays by name."""
    if isinstance(source, Mapping):
        return "", dict(source)
    tree = Tree(source)
    found = {}
    for folder in tree.folders:
        for file in tree.files(folder):
            if file.endswith(".npy"):
                path = f"{folder}/{file}" if folder else file
                found[path.removesuffix(".npy")] = tree.array(path)
    return f"{source}: ", found


def _check_names(where: str, arrays: Mapping[str, Any]) -> None:
    for needed in ("images", "responses"):
        if needed not in arrays:
            raise ValueError(f"{where}want an array {needed}, got {', '.join(arrays) or 'none'}")
    for key in arrays:
        if key not in NAMES and key.partition("/")[0] not in GROUPS:
            known = ", ".join((*NAMES, *(f"{group}/..." for group in GROUPS)))
            raise ValueError(f"{where}{key}: want names of {known}, or ignore={[key]!r}")


def _groups(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for key, values in arrays.items():
        group, _, rest = key.partition("/")
        if group not in GROUPS:
            continue
        if not rest and isinstance(values, Mapping):  # of a dict of dicts
            groups[group] |= values
        elif group == "statistics":
            field, _, statistic = rest.partition("/")
            groups[group].setdefault(field, {})[statistic] = values
        else:
            groups[group][rest] = values
    return groups


def _images(where: str, given: Any) -> Any:
    images = as_rows(f"{where}images", given)
    shape = images.shape
    if len(shape) == 3 and isinstance(images, np.ndarray):
        return images[:, None]
    if len(shape) == 4 and shape[3] <= CHANNELS < shape[1]:
        raise ValueError(f"{where}images: want [I, C, H, W], got {shape}, which looks like channels last")
    return images


def _unfold(where: str, fields: dict[str, Any], groups: dict[str, dict[str, Any]], responses: Array) -> None:
    """Repeats [R, I, N] as trials [R * I, N], without those that were not shown."""
    repeats, shown, neurons = responses.shape
    if shown != len(fields["images"]):
        want = f"[R, I, N], I = {len(fields['images'])} images"
        raise ValueError(f"{where}responses: want {want}, got {responses.shape}")
    flat = responses.reshape(repeats * shown, neurons)
    kept = np.flatnonzero(~np.isnan(flat).all(1))

    def unfolded(name: str, values: Any) -> Any:
        rows = values if hasattr(values, "shape") else np.asarray(values)
        if rows.shape[:1] == (shown,):
            rows = np.tile(np.asarray(rows), (repeats, *[1] * (len(rows.shape) - 1)))
        if rows.shape[:1] != (repeats * shown,):
            want = f"[I, ...], I = {shown}, or [R * I, ...], R * I = {repeats * shown}"
            raise ValueError(f"{where}{name}: want {want}, got {tuple(rows.shape)}")
        return Part(as_rows(name, rows), kept) if rows.ndim > 1 else np.asarray(rows)[kept]

    fields["responses"] = flat[kept]
    fields.setdefault("image_index", np.arange(shown))
    for name in ("image_index", "image_ids", "tiers", "pupil_center", "behavior"):
        if fields.get(name) is not None:
            fields[name] = unfolded(name, fields[name])
    groups["trials"] = {name: unfolded(f"trials/{name}", values) for name, values in groups["trials"].items()}


def write_arrays(recording: Recording, path: str | Path) -> None:
    """Write an ``.npz`` without compression, or, under any other name, a folder of ``.npy`` files.

    Raises:
        FileExistsError: there is something at ``path``.
        OSError: it cannot be written.
    """
    path = Path(path)
    with _files.new(path) as partial:
        if path.suffix == ".npz":
            with zipfile.ZipFile(partial, "w") as archive:
                for name, values in _named(recording):
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, np.asarray(values), allow_pickle=False)
            return
        for name, values in _named(recording):
            target = partial / f"{name}.npy"
            target.parent.mkdir(parents=True, exist_ok=True)
            np.save(target, np.asarray(values), allow_pickle=False)


def _named(recording: Recording) -> list[tuple[str, Any]]:
    found = [(name, getattr(recording, name)) for name in NAMES]
    for group in GROUPS[:2]:
        found += [(f"{group}/{name}", values) for name, values in getattr(recording, group).items()]
    for field, statistics in recording.statistics.items():
        found += [(f"statistics/{field}/{key}", values) for key, values in statistics.items()]
    return [(name, values) for name, values in found if values is not None]

