"""openretina's format: stimuli as ``stimuli/<name>.npy`` [C, T, H, W], and a file of HDF5 for each session.

A session's file has ``responses_<name>`` [N, T] for each stimulus that was shown, ``stimulus_<name>`` [C, T, H, W] where
the session has a version of its own, and ``session_info/<name>`` [N]. Beside these, which openretina reads, v1fast
writes and reads ``trials_<name>/<field>`` [T, ...] and ``session_info/cortex``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from v1fast import _files
from v1fast.data.recording import TIERS, Recording
from v1fast.data.rows import Array, Dataset, Reader, as_rows
from v1fast.data.sensorium import session_name
from v1fast.data.trees import Tree, reading

if TYPE_CHECKING:
    import h5py

SUFFIXES = (".h5", ".hdf5")
RESPONSES, STIMULUS, TRIALS, INFO, STIMULI = "responses_", "stimulus_", "trials_", "session_info", "stimuli"
IMAGES = "v1fast_images"  # an attribute of files that v1fast wrote: whether frames are single images
PER_TRIAL = ("image_ids", "pupil_center", "behavior")


def read_openretina(
    path: str | Path, *, session: str | None = None, tiers: Mapping[str, str] | None = None
) -> Recording:
    """Read a session. Frames are images, and every frame is a trial; ``loaders(..., frames=...)`` makes clips of them.

    Args:
        path: of the session's ``.h5`` or ``.hdf5``, beside which ``stimuli/`` lies; or of their folder.
        session: name of its file without the suffix, where a folder has several.
        tiers: name of a stimulus -> tier. Default: "validation" or "test" where the name begins with it, else "train".

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: in one line: the file, the array, what was wanted, what came.
        ModuleNotFoundError: without h5py.
    """
    file = _session_file(Path(path), session)
    with open_hdf5(file) as content:
        names = sorted(name.removeprefix(RESPONSES) for name in content if name.startswith(RESPONSES))
        if not names:
            raise ValueError(f"{file}: want datasets {RESPONSES}<stimulus>, got {', '.join(content) or 'none'}")
        unknown = [name for name in tiers or {} if name not in names]
        if unknown:
            raise ValueError(f"{file}: tiers: want stimuli of {', '.join(names)}, got {unknown[0]!r}")
        stimuli = [_stimulus(file, content, name) for name in names]
        responses = [_responses(file, content, name, frames) for name, frames in zip(names, stimuli, strict=True)]
        trials = [_trials(file, content, name, len(rows)) for name, rows in zip(names, responses, strict=True)]
        neurons = _info(file, content, responses[0].shape[1])
        images = bool(content.attrs.get(IMAGES, False))
    lengths = [len(rows) for rows in responses]
    fields = {name: _joined([one[name] for one in trials]) for name in trials[0] if all(name in one for one in trials)}
    tier_of = {name: (tiers or {}).get(name) or _tier(name) for name in names}
    return Recording(
        Joined(f"{file}: stimuli", stimuli, "[C, H, W]"),
        np.concatenate(responses),
        tiers=np.repeat([tier_of[name] for name in names], lengths),
        sequences=None if images else np.repeat(np.arange(len(names)), lengths),
        cortex=neurons.pop("cortex", None),
        unit_ids=neurons.pop("unit_ids", None),  # type: ignore[arg-type]
        neurons=neurons,
        trials={**fields, "stimulus": np.repeat(names, lengths)},
        **{name: fields.pop(name, None) for name in PER_TRIAL},  # type: ignore[arg-type]
        name=session_name(file.stem),
        source=str(file),
    )


def _tier(name: str) -> str:
    return next((tier for tier in TIERS[1:] if name.startswith(tier)), TIERS[0])


def sessions(folder: Path) -> list[Path]:
    """Files of sessions in a folder."""
    return sorted(one for one in folder.iterdir() if one.suffix in SUFFIXES)


def _session_file(path: Path, session: str | None) -> Path:
    if not path.is_dir():
        return path
    found = [one for one in sessions(path) if session in (None, one.stem)]
    if len(found) != 1:
        have = ", ".join(one.name for one in sessions(path)) or "none"
        raise ValueError(f"{path}: want one session, {session or 'or its name'}, got {have}")
    return found[0]


@contextmanager
def open_hdf5(path: Path, mode: Literal["r", "w"] = "r") -> Iterator[h5py.File]:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{path}: needs h5py: pip install "v1fast[data]"', name="h5py") from error
    if mode == "r" and not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    with reading(str(path)) if mode == "r" else nullcontext():
        file = h5py.File(path, mode)
    try:
        yield file
    finally:
        file.close()


def _read(path: Path, content: Any, name: str) -> Array:
    with reading(f"{path}: {name}"):
        values = np.asarray(content[name][()])
    if values.dtype.kind == "O":  # text, as h5py gives it
        values = np.array([each.decode() if isinstance(each, bytes) else str(each) for each in values.ravel()])
    return values


class _Frames(Reader):
    """Frames [T, C, H, W] of a stimulus [C, T, H, W] that lies in a file of HDF5, which is opened when one is read."""

    def __init__(self, path: Path, name: str, dataset: Any) -> None:
        self.path, self.name = path, name
        own = Dataset(dataset, axis=1)
        self.shape, self.dtype = own.shape, own.dtype

    def read(self, rows: NDArray[np.int64]) -> Array:
        """See :class:`v1fast.data.rows.Reader`."""
        with open_hdf5(self.path) as content, reading(f"{self.path}: {self.name}"):
            return Dataset(content[self.name], axis=1).read(rows)


def _stimulus(path: Path, content: Any, name: str) -> Any:
    if f"{STIMULUS}{name}" in content:
        dataset = content[f"{STIMULUS}{name}"]
        where, shape = f"{path}: {STIMULUS}{name}", tuple(dataset.shape)
        frames: Any = _Frames(path, f"{STIMULUS}{name}", dataset) if len(shape) == 4 else None
    else:
        tree = Tree(path.parent)
        where = tree.where(f"{STIMULI}/{name}.npy")
        if f"{name}.npy" not in tree.files(STIMULI):
            raise ValueError(f"{path}: {RESPONSES}{name}: want its stimulus {where}, got none")
        whole = tree.array(f"{STIMULI}/{name}.npy")
        shape = whole.shape
        frames = np.moveaxis(whole, 1, 0) if len(shape) == 4 else None
    if frames is None or 0 in shape:
        raise ValueError(f"{where}: want [C, T, H, W], got {shape}")
    return as_rows(where, frames)


def _responses(path: Path, content: Any, name: str, frames: Any) -> Array:
    values = _read(path, content, f"{RESPONSES}{name}")
    if values.ndim != 2 or values.shape[1] != len(frames) or values.dtype.kind not in "fiub":
        want = f"numbers [N, T], T = {len(frames)} frames of its stimulus"
        raise ValueError(f"{path}: {RESPONSES}{name}: want {want}, got {values.dtype} {values.shape}")
    first = next(each for each in sorted(content) if each.startswith(RESPONSES))
    if len(values) != len(content[first]):
        want = f"[N, T], N = {len(content[first])} as in {first}"
        raise ValueError(f"{path}: {RESPONSES}{name}: want {want}, got {values.shape}")
    return values.T


def _trials(path: Path, content: Any, name: str, count: int) -> dict[str, Array]:
    group = content.get(f"{TRIALS}{name}", {})
    found = {field: _read(path, group, field) for field in group}
    for field, values in found.items():
        if not values.ndim or len(values) != count:
            want = f"[T, ...], T = {count}"
            raise ValueError(f"{path}: {TRIALS}{name}/{field}: want {want}, got {values.shape}")
    return found


def _info(path: Path, content: Any, count: int) -> dict[str, Array]:
    """What is known of each neuron; what is not of this length is of something else."""
    group = content.get(INFO, {})
    found = {name: _read(path, group, name) for name in group if hasattr(group[name], "shape")}
    return {name: values for name, values in found.items() if values.ndim and len(values) == count}


def _joined(parts: list[Array]) -> Array:
    return np.concatenate(parts)


class Joined(Reader):
    """Rows of several sources, one after the other.

    Args:
        where: how a message begins.
        parts: of them, of the same shape but for the first axis.
        axes: letters of a row's axes.
    """

    def __init__(self, where: str, parts: list[Any], axes: str) -> None:
        for part in parts:
            if part.shape[1:] != parts[0].shape[1:]:
                raise ValueError(f"{where}: want {axes} = {parts[0].shape[1:]} in all, got {part.shape[1:]}")
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])
        self.shape = (int(self.ends[-1]), *parts[0].shape[1:])
        self.dtype = np.result_type(*(part.dtype for part in parts))

    def read(self, rows: NDArray[np.int64]) -> Array:
        """See :class:`v1fast.data.rows.Reader`."""
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        owner = np.searchsorted(self.ends, rows, side="right")
        for number in np.unique(owner).tolist():
            places = owner == number
            first = self.ends[number] - len(self.parts[number])
            found[places] = self.parts[number][rows[places] - first]
        return found


def write_openretina(recording: Recording, path: str | Path) -> None:
    """Write ``stimuli/<tier>_<session>.npy`` and ``<session>.h5`` into a folder, made where it is missing.

    The images of a tier, in the order of its trials, are the frames of one stimulus; of videos, each sequence is one
    (``<tier>_<session>_<number>``). Several sessions can share a folder.

    Raises:
        FileExistsError: one of the files is there.
        ModuleNotFoundError: without h5py.
        OSError: it cannot be written.
    """
    folder, file = Path(path), Path(path) / f"{recording.name}.h5"
    with _files.new(file) as partial, open_hdf5(partial, "w") as content:
        content.attrs[IMAGES] = recording.sequences is None
        for name, trials in _stimuli_of(recording):
            frames = recording.images[recording.image_index[trials]]
            with _files.new(folder / STIMULI / f"{name}.npy") as stimulus:
                np.save(stimulus, np.moveaxis(frames, 0, 1), allow_pickle=False)
            content[f"{RESPONSES}{name}"] = np.asarray(recording.responses[trials]).T
            fields = {field: getattr(recording, field) for field in PER_TRIAL} | dict(recording.trials)
            for field, values in fields.items():
                if values is not None:
                    _put(content, f"{TRIALS}{name}/{field}", np.asarray(values[trials]))
        for name, values in {"cortex": recording.cortex, "unit_ids": recording.unit_ids, **recording.neurons}.items():
            if values is not None:
                _put(content, f"{INFO}/{name}", values)


def _stimuli_of(recording: Recording) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Names of stimuli and their trials."""
    for tier in dict.fromkeys(recording.tiers.tolist()):
        trials, name = recording.in_tier(tier), f"{tier}_{recording.name}"
        if recording.sequences is None:
            yield name, trials
            continue
        numbers = recording.sequences[trials]
        for place, number in enumerate(dict.fromkeys(numbers.tolist())):
            yield f"{name}_{place}", trials[numbers == number]


def _put(content: Any, name: str, values: Array) -> None:
    content[name] = np.char.encode(values, "utf-8") if values.dtype.kind == "U" else values
