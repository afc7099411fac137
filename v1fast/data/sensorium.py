"""The format of the Sensorium competition and of Lurz et al. 2021 (static scans): a folder, or a zip of it.

``data/<field>/<trial>.npy``: images [C, H, W], responses [N], behavior [K], pupil_center [2]. ``meta/neurons/*.npy``
[N, ...], ``meta/trials/*.npy`` [T], ``meta/statistics/<field>/<source>/{mean,std,...}.npy``.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from v1fast import _files
from v1fast.data.recording import Recording
from v1fast.data.rows import Array
from v1fast.data.trees import Tree, TrialFiles

AXES = {"images": "[C, H, W]", "responses": "[N]", "behavior": "[K]", "pupil_center": "[2]"}
IMAGE_ID = "frame_image_id"
CORTEX = "cell_motor_coordinates"
IDENTITY = {"area": "unknown", "layer": "unknown", "animal_ids": -1, "sessions": -1, "scan_idx": -1}
"""Columns of neurons that neuralpredictors looks for, and what is written where the recording has none."""


def read_sensorium(path: str | Path, *, statistics: str = "all", scan: str | None = None) -> Recording:
    """Read a folder, or a zip archive without unpacking it; neither is written to.

    Images, responses, behaviour and pupil positions are read when they are needed, trial by trial.

    Args:
        path: of the folder or archive; what it holds may lie in a folder within.
        statistics: which ones of ``meta/statistics`` normalise: "all", or "stimulus_frame" where the files have it.
        scan: name of one of several scans in an archive.

    Returns:
        The recording, named after the animal, session and scan in the name of the folder (``static26872-17-20-...`` is
        "26872-17-20"), else after the folder.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: in one line: the file, the array, what was wanted, what came.
    """
    tree = Tree(path)
    root = _root(tree, scan)
    fields = {name: _field(tree, root, name) for name in AXES}
    for name in ("images", "responses"):
        if fields[name] is None:
            raise ValueError(f"{tree.where(f'{root}data')}: want a folder {name}, got none")
    neurons, trials = (_columns(tree, f"{root}meta/{kind}", kind) for kind in ("neurons", "trials"))
    if "tiers" not in trials:
        raise ValueError(f"{tree.where(f'{root}meta/trials')}: want tiers.npy, got none")
    _check_lengths(tree, root, fields, neurons, trials)
    return Recording(
        **fields,  # type: ignore[arg-type]
        tiers=trials.pop("tiers"),
        image_ids=_image_ids(trials),  # type: ignore[arg-type]
        cortex=neurons.pop(CORTEX, None),
        unit_ids=neurons.pop("unit_ids", None),  # type: ignore[arg-type]
        neurons=neurons,
        trials=trials,
        statistics={name: _statistics(tree, root, name, statistics) for name, rows in fields.items() if rows},
        name=session_name(root.rstrip("/").rpartition("/")[2] or Path(path).resolve().name),
        source=str(path),
    )


def session_name(text: str) -> str:
    """Animal, session and scan in a name such as ``static26872-17-20-...``; else the name, without dots."""
    found = re.search(r"static(\d+-\d+-\d+)", text)
    return found[1] if found else text.removesuffix(".zip").replace(".", "_")


def scans(tree: Tree) -> list[str]:
    """Folders in a tree that hold a scan, as "" or "folder/"."""
    ends = "data/responses"
    return sorted(name.removesuffix(ends) for name in tree.folders if name == ends or name.endswith(f"/{ends}"))


def _root(tree: Tree, scan: str | None) -> str:
    found = scans(tree)
    if scan is not None:
        found = [root for root in found if scan in (session_name(root.rstrip("/").rpartition("/")[2]), root.rstrip("/"))]
    if len(found) != 1:
        names = ", ".join(root.rstrip("/") for root in found) or "none"
        raise ValueError(f"{tree.path}: want a scan with data/responses and meta/trials, got {names}")
    return found[0]


def _field(tree: Tree, root: str, name: str) -> TrialFiles | None:
    folder = f"{root}data/{name}"
    if name in ("behavior", "pupil_center") and not tree.files(folder):
        return None
    return TrialFiles(tree, folder, AXES[name])


def _columns(tree: Tree, folder: str, kind: str) -> dict[str, Array]:
    """The tables of neurons or trials; what is not plain (texts saved as objects) is left out, unless it is needed."""
    columns = {}
    for name in sorted(tree.files(folder)):
        if name.endswith(".npy"):
            try:
                columns[name.removesuffix(".npy")] = np.array(tree.array(f"{folder}/{name}"))
            except ValueError as error:
                if "pickled" not in str(error) or name in ("tiers.npy", f"{CORTEX}.npy", "unit_ids.npy"):
                    raise
    return columns


def _check_lengths(
    tree: Tree,
    root: str,
    fields: Mapping[str, TrialFiles | None],
    neurons: Mapping[str, Array],
    trials: Mapping[str, Array],
) -> None:
    responses: Any = fields["responses"]
    count, units = responses.shape
    for name, rows in fields.items():
        if rows is not None and len(rows) != count:
            want = f"{count} files, one for each of data/responses"
            raise ValueError(f"{tree.where(f'{root}data/{name}')}: want {want}, got {len(rows)}")
    for kind, columns, length, letter in (("neurons", neurons, units, "N"), ("trials", trials, count, "T")):
        for name, values in columns.items():
            if not values.ndim or len(values) != length:
                where = tree.where(f"{root}meta/{kind}/{name}.npy")
                raise ValueError(f"{where}: want [{letter}, ...], {letter} = {length}, got {values.shape}")


def _image_ids(trials: dict[str, Array]) -> Array | None:
    """Of images of several classes, the same number in two of them is not the same image."""
    ids = trials.get(IMAGE_ID)
    classes = trials.get("frame_image_class")
    if ids is None or classes is None or len(np.unique(classes)) < 2:
        return ids
    return np.array([f"{kind}/{number}" for kind, number in zip(classes.tolist(), ids.tolist(), strict=True)])


def _statistics(tree: Tree, root: str, field: str, source: str) -> dict[str, Array]:
    """Those that normalise; empty where there are none of this field at all."""
    folder = f"{root}meta/statistics/{field}/{source}"
    files = tree.files(folder)
    if not files:
        if any(name.startswith(f"{root}meta/statistics/{field}/") for name in tree.folders):
            raise ValueError(f"{tree.where(folder)}: want mean.npy and std.npy, got no such folder")
        return {}
    found = {}
    for key in ("mean", "std"):
        if f"{key}.npy" not in files:
            raise ValueError(f"{tree.where(folder)}: want {key}.npy, got none")
        found[key] = np.array(tree.array(f"{folder}/{key}.npy"))
        if found[key].dtype.kind not in "fiu" or not np.isfinite(found[key]).all():
            raise ValueError(f"{tree.where(f'{folder}/{key}.npy')}: want finite numbers, got {found[key].dtype}")
    return found


def write_sensorium(recording: Recording, path: str | Path) -> None:
    """Write a folder, or a zip archive if ``path`` ends in ".zip"; it appears when it is whole.

    Statistics are those of the recording, else of its training trials; without either there are none.
    neuralpredictors' ``FileTreeDataset`` reads it.

    Raises:
        FileExistsError: there is something at ``path``.
        OSError: it cannot be written.
    """
    path = Path(path)
    with _files.new(path) as partial:
        if path.suffix == ".zip":
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
                _write(recording, lambda name, content: archive.writestr(f"{path.stem}/{name}", content))
        else:
            _write(recording, lambda name, content: _put(partial / name, content))


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _write(recording: Recording, put: Callable[[str, bytes], Any]) -> None:
    from v1fast.data.preparation import statistics_of

    for name in AXES:
        rows: Any = getattr(recording, name)
        if rows is None:
            continue
        for trial in range(len(recording)):
            row = rows[int(recording.image_index[trial])] if name == "images" else rows[trial]
            put(f"data/{name}/{trial}.npy", _npy(row))
        if recording.statistics.get(name) or len(recording.in_tier("train")):
            for key, values in statistics_of(recording, name).items():
                put(f"meta/statistics/{name}/all/{key}.npy", _npy(values))
    units = len(recording.unit_ids)
    neurons: dict[str, Any] = {name: np.full(units, value) for name, value in IDENTITY.items()}
    neurons |= {"unit_ids": recording.unit_ids, **recording.neurons}
    if recording.cortex is not None:
        neurons[CORTEX] = recording.cortex
    trials = {"trial_idx": np.arange(len(recording)), **recording.trials}
    trials |= {"tiers": recording.tiers, IMAGE_ID: recording.image_ids}
    for kind, columns in (("neurons", neurons), ("trials", trials)):
        for name, values in columns.items():
            put(f"meta/{kind}/{name}.npy", _npy(values))


def _npy(values: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, np.asarray(values), allow_pickle=False)
    return content.getvalue()
