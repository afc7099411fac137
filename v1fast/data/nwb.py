"""Neurodata Without Borders, through pynwb.

Files of NWB differ in where they keep what: paths are arguments, as HDF5 has them (``h5dump -n``, ``HDFView``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v1fast.data.recording import Recording
from v1fast.data.rows import Array
from v1fast.data.sensorium import session_name
from v1fast.data.stringer import split_tiers
from v1fast.data.trees import reading

Floats = NDArray[np.float64]


def read_nwb(
    path: str | Path,
    *,
    responses: str,
    images: str,
    trials: str = "intervals/trials",
    image: str = "image",
    tier: str | None = None,
    first_image: int = 0,
    window: tuple[float, float | None] = (0.0, None),
    pupil: str | None = None,
    behavior: Sequence[str] = (),
    cortex: str | None = None,
    name: str | None = None,
    split: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
) -> Recording:
    """Read responses to images, trial by trial.

    Args:
        path: of the file.
        responses: path of a time series [samples, N], such as a ``RoiResponseSeries``, whose mean in the window is a
            response; of a table of units, whose spikes in it are counted; or of a column of ``trials``, [T, N].
        images: path of an ``ImageSeries`` [I, H, W] or [I, H, W, C], or of ``Images``.
        trials: path of the table of trials.
        image: its column with the number of the image that was shown.
        tier: its column with tiers; None: images are split at random, see ``split``.
        first_image: number of the first image in that column.
        window: in seconds after a trial's ``start_time``; an end of None is its ``stop_time``.
        pupil: path of a time series [samples, 2]; its mean in the window is the pupil position.
        behavior: paths of time series [samples] or [samples, K]; likewise.
        cortex: path of a column or dataset [N, 2] or [N, 3], positions in micrometres.
        name: of the session; default: that of the file.
        split: shares of images in "train", "validation" and "test".
        seed: of the split.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: in one line: the file, the path within, what was wanted, what came.
        ModuleNotFoundError: without pynwb.
    """
    with _open(Path(path)) as file:
        table = file.table(trials)
        index = file.column(trials, table, image) - first_image
        tiers = split_tiers(index, split, seed) if tier is None else file.column(trials, table, tier)
        spans = file.spans(trials, table, window)
        own = f"{trials}/"
        if responses.startswith(own):
            values = file.column(trials, table, responses.removeprefix(own))
        else:
            values = file.responses(responses, spans)
        behaviors = [file.averages(one, spans) for one in behavior]
        return Recording(
            file.images(images),
            values,
            image_index=index,
            tiers=tiers,
            pupil_center=None if pupil is None else file.averages(pupil, spans),
            behavior=np.concatenate(behaviors, 1) if behaviors else None,
            cortex=None if cortex is None else file.dataset(cortex),
            name=name or session_name(Path(path).stem),
            source=str(path),
        )


@contextmanager
def _open(path: Path) -> Iterator[_File]:
    try:
        from pynwb import NWBHDF5IO
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{path}: needs pynwb: pip install "v1fast[nwb]"', name="pynwb") from error
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of versions of the format's parts
        with reading(str(path)):
            io = NWBHDF5IO(str(path), "r")
        with io:
            with reading(str(path)):
                content = io.read()
            yield _File(path, content, io._file)


class _File:
    """What is read of an open file; messages name it and the path within."""

    def __init__(self, path: Path, content: Any, hdf5: Any) -> None:
        self.path, self.content, self.hdf5 = path, content, hdf5

    def _error(self, where: str, want: str, got: Any) -> ValueError:
        return ValueError(f"{self.path}: {where}: want {want}, got {got}")

    def object(self, where: str) -> Any:
        """pynwb's object at a path."""
        node = self.hdf5.get(where)
        if node is None:
            inside = self.hdf5.get(where.rpartition("/")[0] or "/")
            there = ", ".join(inside) if hasattr(inside, "keys") else "nothing"
            raise self._error(where, "something at this path", f"{there or 'nothing'} beside it")
        found = self.content.objects.get(node.attrs.get("object_id"))
        if found is None:
            raise self._error(where, "an object of NWB", "a part of one")
        return found

    def dataset(self, where: str) -> Array:
        """Plain values at a path."""
        node = self.hdf5.get(where)
        if node is None or not hasattr(node, "shape"):
            raise self._error(where, "a dataset", "none" if node is None else "a group")
        with reading(f"{self.path}: {where}"):
            return np.asarray(node[()])

    def table(self, where: str) -> Any:
        found = self.object(where)
        if not hasattr(found, "colnames"):
            raise self._error(where, "a table", type(found).__name__)
        return found

    def column(self, where: str, table: Any, name: str) -> Array:
        """A column of numbers or text, the same number of values in each row."""
        if name not in table.colnames:
            raise self._error(where, f"a column {name}", ", ".join(table.colnames))
        with reading(f"{self.path}: {where}/{name}"):
            values = np.asarray(list(table[name][:]))
        if values.dtype.kind not in "fiubU":
            raise self._error(f"{where}/{name}", "numbers or text", values.dtype)
        return values

    def spans(self, where: str, table: Any, window: tuple[float, float | None]) -> Floats:
        """[T, 2]: beginning and end of each trial's window, in seconds."""
        start = self.column(where, table, "start_time").astype(np.float64)
        stop = self.column(where, table, "stop_time") if window[1] is None else start + window[1]
        spans = np.stack([start + window[0], stop], 1)
        if not (spans[:, 0] < spans[:, 1]).all():
            worst = int(np.argmin(spans[:, 1] - spans[:, 0]))
            raise self._error(where, "windows that end after they begin", f"{spans[worst].tolist()} in trial {worst}")
        return spans

    def responses(self, where: str, spans: Floats) -> Array:
        """[T, N]: mean of a series, or counts of spikes."""
        found = self.object(where)
        if not hasattr(found, "colnames"):
            return self.averages(where, spans)
        if "spike_times" not in found.colnames:
            raise self._error(where, "a column spike_times", ", ".join(found.colnames))
        with reading(f"{self.path}: {where}/spike_times"):
            trains = [np.sort(np.asarray(found["spike_times"][unit])) for unit in range(len(found))]
        return np.stack([np.diff(np.searchsorted(train, spans), axis=1)[:, 0] for train in trains], 1)

    def averages(self, where: str, spans: Floats) -> Floats:
        """[T, K]: mean of a time series [samples] or [samples, K] in each window; NaN where it has no sample."""
        series = self.object(where)
        if not hasattr(series, "data") or series.data is None:
            raise self._error(where, "a time series", type(series).__name__)
        count = len(series.data)
        if series.timestamps is not None:
            times = np.asarray(series.timestamps)
        else:
            times = series.starting_time + np.arange(count) / series.rate
        if len(times) != count:
            raise self._error(where, f"{count} timestamps, one for each sample", len(times))
        first, last = np.searchsorted(times, spans).T
        width = 1 if series.data.ndim == 1 else series.data.shape[1]
        means = np.full((len(spans), width), np.nan)
        with reading(f"{self.path}: {where}/data"):
            for trial in np.flatnonzero(first < last):
                means[trial] = np.asarray(series.data[first[trial] : last[trial]]).mean(0)
        return means

    def images(self, where: str) -> Array:
        """[I, C, H, W]."""
        found = self.object(where)
        if not hasattr(found, "images") and getattr(found, "data", None) is None:
            raise self._error(where, "an ImageSeries or Images", type(found).__name__)
        with reading(f"{self.path}: {where}"):
            if hasattr(found, "images"):
                order = getattr(found, "order_of_images", None)
                every = list(found.images.values()) if order is None else list(order.data)
                values = np.stack([np.asarray(one.data) for one in every])
            else:
                values = np.asarray(found.data)
        if values.ndim == 3 and values.size:
            return values[:, None]
        if values.ndim == 4 and values.size:
            return np.moveaxis(values, 3, 1)
        raise self._error(where, "images [I, H, W] or [I, H, W, C] within the file", values.shape)
