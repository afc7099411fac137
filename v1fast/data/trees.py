"""Folders and zip archives of ``.npy`` files, read alike and never written to; nothing in them is unpickled."""

from __future__ import annotations

import io
import os
import struct
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v1fast.data.rows import Array, Reader

HEADER = 4096  # bytes: more than any header of a plain array has
MAPPED = 2**20  # bytes: larger files are mapped


class Tree:
    """A folder, or a zip archive, as names of files with their sizes.

    Args:
        path: of it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file that is no zip archive, or a damaged one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._archive: tuple[int, zipfile.ZipFile] | None = None
        self._sizes: dict[str, dict[str, int]] | None = None
        if self.path.is_dir():
            return
        if not self.path.exists():
            raise FileNotFoundError(2, os.strerror(2), str(self.path))
        with reading(str(self.path)):
            self._sizes = {}
            for info in self._zip().infolist():
                folder, _, name = info.filename.rpartition("/")
                if name:
                    self._sizes.setdefault(folder, {})[name] = info.file_size

    def _zip(self) -> zipfile.ZipFile:
        """The archive, opened by this process: a forked one must not share the place in the file."""
        with self._lock:
            if self._archive is None or self._archive[0] != os.getpid():
                self._archive = (os.getpid(), zipfile.ZipFile(self.path))
            return self._archive[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_sizes": self._sizes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _archive=None, _lock=threading.Lock())

    @cached_property
    def folders(self) -> list[str]:
        """All folders that hold files, as "a/b"; "" is the root."""
        if self._sizes is not None:
            return list(self._sizes)
        found = [Path(root).relative_to(self.path) for root, _, files in os.walk(self.path) if files]
        return ["" if folder == Path() else folder.as_posix() for folder in found]

    def files(self, folder: str) -> dict[str, int]:
        """Names of the files right in a folder -> size in bytes; none if there is no such folder."""
        if self._sizes is not None:
            return self._sizes.get(folder, {})
        where = self.path / folder
        if not where.is_dir():
            return {}
        with os.scandir(where) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

    def where(self, name: str) -> str:
        """How messages name a file in it."""
        return str(self.path / name)

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            ValueError: it cannot be read, or is damaged.
        """
        with reading(self.where(name)):
            return (self.path / name).read_bytes() if self._sizes is None else self._zip().read(name)

    def head(self, name: str) -> bytes:
        """The beginning of a file, at most 4096 bytes."""
        with reading(self.where(name)), self._open(name) as file:
            return file.read(HEADER)

    def _open(self, name: str) -> Any:
        return (self.path / name).open("rb") if self._sizes is None else self._zip().open(name)

    def array(self, name: str) -> Array:
        """A ``.npy`` file, mapped where it can be.

        Raises:
            ValueError: it is cut, or holds no plain array; the message names it.
        """
        with reading(self.where(name)):
            if self.files(name.rpartition("/")[0]).get(name.rpartition("/")[2], 0) > MAPPED:
                mapped = self._mapped(name)
                if mapped is not None:
                    return mapped
        content = self.read(name)
        with reading(self.where(name)):
            return plain(content)

    def _mapped(self, name: str) -> Array | None:
        """Of a file, or of one that an archive holds without compression; None of a compressed one."""
        if self._sizes is None:
            path, begin = self.path / name, 0
            size = path.stat().st_size
        else:
            info = self._zip().getinfo(name)
            if info.compress_type != zipfile.ZIP_STORED:
                return None
            path, begin, size = self.path, _content(self.path, info.header_offset), info.file_size
        shape, dtype, fortran, start = header(self.head(name))
        _check_size(size, start, shape, dtype)
        return np.memmap(path, dtype, "r", begin + start, shape, "F" if fortran else "C")


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Whatever a library says of a damaged file becomes one line that names it."""
    try:
        yield
    except (MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:  # each library has its own
        said = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise ValueError(f"{where}: cannot be read: {_said(said) or type(error).__name__}") from error


def _said(text: str) -> str:
    """Without the advice to run code that a file may hold."""
    return "it holds pickled objects, want a plain array of numbers" if "pickle" in text else text


def plain(content: bytes) -> Array:
    """The array in the content of a ``.npy`` file, read-only.

    Raises:
        ValueError: it is cut, or holds no plain array.
    """
    shape, dtype, fortran, start = header(content)
    _check_size(len(content), start, shape, dtype)
    count = int(np.prod(shape))
    if not count * dtype.itemsize:
        return np.zeros(shape, dtype)
    return np.frombuffer(content, dtype, count, start).reshape(shape, order="F" if fortran else "C")


def _check_size(size: int, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    want = start + int(np.prod(shape)) * dtype.itemsize
    if size < want:
        raise ValueError(f"it is cut: want {want} bytes for {dtype} {shape}, got {size}")


def _content(path: Path, header_offset: int) -> int:
    """Where the content of a file in a zip archive begins: behind its local header, whose length varies."""
    with path.open("rb") as file:
        file.seek(header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return header_offset + 30 + int(name) + int(extra)


def header(content: bytes) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """Shape, dtype, whether in Fortran's order, and where the values begin, by the beginning of a ``.npy`` file."""
    file = io.BytesIO(content)
    if not content.startswith(np.lib.format.MAGIC_PREFIX):
        raise ValueError("it is no .npy file" if content else "it is empty")
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"want version 1.0 or 2.0 of .npy, got {version}")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, want a plain array of numbers")
    return shape, dtype, fortran, file.tell()


class TrialFiles(Reader):
    """A file for each row: ``0.npy``, ``1.npy``, ... in one folder of a tree; none is kept in memory.

    Sizes are checked at once, which finds what is missing or cut; shapes when a row is read.

    Args:
        tree: that holds them.
        folder: in the tree.
        axes: letters of a row's axes, for messages.

    Raises:
        ValueError: a file is missing, cut, or no array of numbers.
    """

    def __init__(self, tree: Tree, folder: str, axes: str) -> None:
        self.tree, self.folder, self.axes = tree, folder, axes
        sizes = {name: size for name, size in tree.files(folder).items() if name.endswith(".npy")}
        if not sizes:
            raise ValueError(f"{tree.where(folder)}: want 0.npy, 1.npy, ..., got no such file")
        count = len(sizes)
        missing = next((row for row in range(count) if f"{row}.npy" not in sizes), None)
        if missing is not None:
            raise ValueError(
                f"{tree.where(folder)}: want 0.npy to {count - 1}.npy, got {count} files, {missing}.npy is missing"
            )
        shape, self.dtype, size = self._look(0)
        if shape and 0 in shape or self.dtype.kind not in "fiub" or len(shape) != axes.count(",") + 1:
            raise ValueError(f"{self._where(0)}: want numbers {axes}, got {self.dtype} {shape}")
        self.shape = (count, *shape)
        for row in range(count):
            if sizes[f"{row}.npy"] != size:
                self._check(row, sizes[f"{row}.npy"])

    def _where(self, row: int) -> str:
        return self.tree.where(f"{self.folder}/{row}.npy")

    def _look(self, row: int) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        """Shape, dtype, and size in bytes that a row's file should have, by its header."""
        with reading(self._where(row)):
            shape, dtype, _, start = header(self.tree.head(f"{self.folder}/{row}.npy"))
        return shape, dtype, start + int(np.prod(shape)) * dtype.itemsize

    def _check(self, row: int, size: int) -> None:
        shape, dtype, want = self._look(row)
        self._compare(row, dtype, shape)
        if size != want:
            raise ValueError(f"{self._where(row)}: want {want} bytes for {dtype} {shape}, got {size}: it is cut")

    def _compare(self, row: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        if shape != self.shape[1:] or dtype.kind not in "fiub":
            raise ValueError(
                f"{self._where(row)}: want {self.axes} = {self.shape[1:]} as in 0.npy, got {dtype} {shape}"
            )

    def read(self, rows: NDArray[np.int64]) -> Array:
        """See :class:`v1fast.data.rows.Reader`."""
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for place, row in enumerate(rows.tolist()):
            with reading(self._where(row)):
                values = plain(self.tree.read(f"{self.folder}/{row}.npy"))
            self._compare(row, values.dtype, values.shape)
            if not np.can_cast(values.dtype, found.dtype):  # some files of float64 among those of float32
                found = found.astype(np.promote_types(values.dtype, found.dtype))
            found[place] = values
        return found
