"""Arrays that are read row by row, so that a recording need not fit into memory."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from v1fast import _arrays

Array = NDArray[Any]


class Rows(Protocol):
    """An array, a mapped file, or a reader; ``rows`` is a number, a slice, or a list of numbers."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any) -> Array: ...


class Reader:
    """Base class of readers: a subclass has ``shape``, ``dtype`` and ``read``."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, rows: NDArray[np.int64]) -> Array:
        """Return the rows of these numbers, each in 0 to len - 1, in their order; repeated ones too."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        if isinstance(rows, int | np.integer):
            row: Array = self.read(np.array([range(len(self))[rows]]))[0]
            return row
        numbers = np.arange(len(self))[rows]
        if not len(numbers):
            return np.empty((0, *self.shape[1:]), self.dtype)
        return self.read(numbers)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """All of it, which must fit into memory."""
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dtype} {self.shape})"


class Part(Reader):
    """Some rows, and some of the second axis, of rows.

    Args:
        whole: of which.
        rows, columns: indices; None: all.
    """

    def __init__(self, whole: Rows, rows: NDArray[np.int64] | None, columns: NDArray[np.int64] | None = None) -> None:
        if isinstance(whole, Part):  # of a part of a part, one part is left
            rows = whole.rows if rows is None else (rows if whole.rows is None else whole.rows[rows])
            columns = whole.columns if columns is None else (columns if whole.columns is None else whole.columns[columns])
            whole = whole.whole
        self.whole, self.rows, self.columns = whole, rows, columns
        count = len(whole) if rows is None else len(rows)
        rest = whole.shape[1:] if columns is None else (len(columns), *whole.shape[2:])
        self.shape, self.dtype = (count, *rest), whole.dtype

    def read(self, rows: NDArray[np.int64]) -> Array:
        """See :class:`Reader`."""
        found = self.whole[rows if self.rows is None else self.rows[rows]]
        return found if self.columns is None else found[:, self.columns]


class Dataset(Reader):
    """A dataset of h5py, or one of another library that only gives rows in ascending order.

    Args:
        dataset: with ``shape`` and ``dtype``; its file stays open.
        axis: of the rows, 0 or 1.
    """

    def __init__(self, dataset: Any, axis: int = 0) -> None:
        self.dataset, self.axis = dataset, axis
        shape = tuple(dataset.shape)
        self.shape, self.dtype = (shape[axis], *shape[:axis], *shape[axis + 1 :]), np.dtype(dataset.dtype)

    def read(self, rows: NDArray[np.int64]) -> Array:
        """See :class:`Reader`."""
        chosen, places = np.unique(rows, return_inverse=True)
        first, last = int(chosen[0]), int(chosen[-1]) + 1
        # A stretch is read at once and thinned: libraries are slow at lists of rows.
        index: Any = slice(first, last) if last - first <= 4 * len(chosen) else chosen
        found = np.asarray(self.dataset[(slice(None),) * self.axis + (index,)])
        found = np.moveaxis(found, self.axis, 0)
        return found[places if index is chosen else rows - first]


def as_rows(name: str, given: Any) -> Rows:
    """Return an array, or a reader as it is.

    Raises:
        ValueError: no real numbers, or no axis.
    """
    if isinstance(given, Reader):
        kind = given.dtype.kind
        if kind not in "fiub":
            raise ValueError(f"{name}: want numbers, got {given.dtype}")
        return given
    if type(given).__module__.startswith("h5py."):
        return as_rows(name, Dataset(given))
    array = _arrays.to_array(name, given)
    if not array.ndim:
        raise ValueError(f"{name}: want an array, got a number")
    return array
