"""Dissimilarity matrices that do not fit into memory, in files."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v1fast import _files, ops
from v1fast._progress import progress as progress_bar
from v1fast._version import __version__
from v1fast.rsa import _tiles
from v1fast.rsa._tiles import Tile

SIDE = 3456  # rows of a tile: 46 MiB of float32, twice a group of rows that the kernel sums at a time


def rdm_to_file(
    responses: Tensor | NDArray[Any],
    path: str | os.PathLike[str],
    condensed: bool = True,
    *,
    method: str = "correlation",
    accuracy: str = "float32",
    overwrite: bool = False,
    progress: bool = True,
) -> NDArray[Any]:
    """Write a dissimilarity matrix, as computed by ``functional.rdm``, to a file, tile by tile.

    In addition to the responses this needs less than 512 MiB of memory, for any number of stimuli. Until the matrix is
    complete, it stays hidden in the same folder as ``.NAME.partial``. ``.NAME.journal`` records which tiles are done.
    Then ``path`` appears atomically. After an interruption by Ctrl-C, ``kill -9`` or a full disk, the same call
    continues: finished tiles are not computed again. On the same machine, the file then has the same bytes as without
    an interruption.

    Correlation and cosine are the same numbers as those of ``functional.rdm``: to the bit with the compiled kernels,
    and to rounding otherwise. For euclidean, each tile is centred at its own mean. So the numbers agree to float32's
    rounding of the largest dissimilarity. Responses of few values, by the rule of ties in ``reference.rdm``, give the
    same bits for any method, if each tile's values show the same steps as all values do.

    Args:
        responses: [S, N]: S stimuli, N neurons; tensor or array, of any strides. An array that is mapped from a file is
            read in place. Integers are converted to float32, tile by tile; those beyond 2^24 are an error.
        path: of the ``.npy`` file to write. If it is a link, its target is written.
        condensed: only the upper triangle [S (S - 1) / 2], row by row, or the whole matrix [S, S].
        method: "correlation", "cosine" or "euclidean".
        accuracy: as for ``functional.rdm``.
        overwrite: replace an existing file. Also drop the remains of an interrupted call with other responses or
            settings, or a damaged journal. By default all of these are errors.
        progress: show a bar (by rich, otherwise lines) on stderr.

    Returns:
        The matrix, mapped from the file, read-only: float64 if the responses are, otherwise float32.

    Raises:
        FileExistsError: ``path`` exists, or an unfinished matrix of other responses or settings, or one whose journal
            is damaged; see ``overwrite``.
        BlockingIOError: another process is writing the same file.
        OSError: the disk has not enough space, which is checked before anything is computed; or ``path`` is a device,
            a pipe or a directory.
        ValueError: an operand does not fit; the message names it.
    """
    target = _files.destination(Path(path))
    x = _tiles.Responses("responses", responses)
    _tiles.check_options("method", method, accuracy)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target}: there is such a file already; overwrite=True replaces it")
    settings = _settings(x, condensed, method, accuracy)
    with _Unfinished(target, x.shape[0], x.result_dtype, settings, condensed, overwrite) as unfinished:
        try:
            _fill(unfinished, x, method, accuracy, progress)
        except KeyboardInterrupt as interrupt:
            if sys.version_info >= (3, 11):
                interrupt.add_note(f"{target} is unfinished; the same call goes on from here")
            raise
        unfinished.finish()
    return np.load(target, mmap_mode="r")


def _fill(unfinished: _Unfinished, x: _tiles.Responses, method: str, accuracy: str, show: bool) -> None:
    """Fill in the missing tiles. The next tile is computed while the last one is written to the disk."""
    every = list(_tiles.tiles(x.shape[0], SIDE))
    missing = [tile for tile in every if tile not in unfinished.done]
    shown = progress_bar(unfinished.target.name, len(every), len(every) - len(missing), show)
    with shown as bar, ThreadPoolExecutor(1) as writer:
        last: Future[None] | None = None
        for tile in missing:
            values = _tiles.square(x, tile, method, accuracy).cpu().numpy()
            if last is not None:
                last.result()
                bar.advance()
            last = writer.submit(unfinished.store, tile, values)
        if last is not None:
            last.result()
            bar.advance()


def _settings(x: _tiles.Responses, condensed: bool, method: str, accuracy: str) -> dict[str, Any]:
    """Return everything that the bytes of the file depend on, including the checksum of the responses."""
    digest = hashlib.sha256()
    for rows in x.parts():
        digest.update(rows.contiguous().cpu().view(torch.uint8).numpy().data)
    return {
        "v1fast": __version__,
        "kernels": ops.paths["CPU"],
        "device": x.device.type,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "responses": {"shape": list(x.shape), "dtype": str(x.dtype), "sha256": digest.hexdigest()},
        "condensed": condensed,
        "method": method,
        "accuracy": accuracy,
        "side": SIDE,
    }


class _Unfinished:
    """The hidden file that becomes ``target``, and the journal of its tiles.

    Everything in the journal is on the disk: a tile is synced before its line is written. A line that a crash has cut
    short has no end and does not count.
    """

    def __init__(
        self,
        target: Path,
        stimuli: int,
        dtype: torch.dtype,
        settings: dict[str, Any],
        condensed: bool,
        overwrite: bool,
    ) -> None:
        self.target, self.condensed, self.overwrite = target, condensed, overwrite
        self.stimuli, self.dtype = stimuli, np.dtype(np.float64 if dtype == torch.float64 else np.float32)
        self.head = json.dumps(settings)
        self.partial = target.with_name(f".{target.name}.partial")
        self.journal = target.with_name(f".{target.name}.journal")
        self.done: set[Tile] = set()

    def __enter__(self) -> _Unfinished:
        self.file = _files.open_alone(self.partial)
        try:
            with _files.naming(self.target):
                self._resume_or_start()
        except BaseException:
            self.file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def _resume_or_start(self) -> None:
        shape: tuple[int, ...] = (self.stimuli, self.stimuli)
        if self.condensed:
            shape = (self.stimuli * (self.stimuli - 1) // 2,)
        header = io.BytesIO()
        description = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, description)
        self.offset = header.tell()
        size = self.offset + int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        # A journal without its file belongs to a matrix that was finished.
        resumed = self._read_journal() and os.fstat(self.file.fileno()).st_size == size
        if not resumed:
            # Remove the journal first: an old journal would be wrong for a new file.
            self.journal.unlink(missing_ok=True)
            _files.sync_folder(self.target.parent)
            self.done.clear()
            self.file.truncate(0)
        _files.need_room(self.target, "the matrix", size - _files.allocated(self.file.fileno()))
        if resumed:
            return
        self.file.truncate(size)
        self.file.seek(0)
        self.file.write(header.getvalue())
        os.fsync(self.file.fileno())
        _files.replace(self.journal, f"{self.head}\n".encode())
        _files.sync_folder(self.target.parent)

    def _read_journal(self) -> bool:
        """Whether there is a journal with the same settings. Other settings are an error, unless it may be dropped."""
        if not self.journal.exists():
            return False
        complete = self.journal.read_bytes().rpartition(b"\n")[0]
        head, *lines = complete.split(b"\n")
        if head != self.head.encode():
            return self._dropped(
                f"other responses or settings were begun under this name and are not finished ({self.partial.name}); "
                f"finish them, or drop them with overwrite=True"
            )
        every = {_line_of(tile): tile for tile in _tiles.tiles(self.stimuli, SIDE)}
        if not every.keys() >= set(lines):
            return self._dropped(f"its journal {self.journal.name} is damaged; drop what was begun with overwrite=True")
        os.truncate(self.journal, len(complete) + 1)
        self.done = {every[line] for line in lines}
        return True

    def _dropped(self, why: str) -> bool:
        """Return False: the old beginning is dropped. This is an error, unless it may be dropped."""
        if not self.overwrite:
            raise FileExistsError(f"{self.target}: {why}")
        return False

    def store(self, tile: Tile, values: NDArray[Any]) -> None:
        """Write a tile. After the return, no crash can lose it."""
        with _files.naming(self.target):
            self._write(tile.i[0], tile.j[0], values)
            if not self.condensed and not tile.on_diagonal:
                self._write(tile.j[0], tile.i[0], np.ascontiguousarray(values.T))
            os.fsync(self.file.fileno())
        with _files.naming(self.journal), self.journal.open("ab") as journal:
            journal.write(_line_of(tile) + b"\n")
            journal.flush()
            os.fsync(journal.fileno())
        self.done.add(tile)

    def _write(self, first_row: int, first_column: int, values: NDArray[Any]) -> None:
        for number, row in enumerate(values, start=first_row):
            start, column = number * self.stimuli, first_column
            if self.condensed:
                start, column = number * (2 * self.stimuli - number - 1) // 2 - number - 1, max(column, number + 1)
            part = row[column - first_column :]
            if not part.size:
                continue
            self.file.seek(self.offset + (start + column) * self.dtype.itemsize)
            if self.file.write(part.data) != part.nbytes:
                raise OSError(errno.ENOSPC, "the disk is full; the same call goes on from here", str(self.target))

    def finish(self) -> None:
        """Rename the file to its final name."""
        with _files.naming(self.target):
            os.fsync(self.file.fileno())
        if _files.fcntl is None:  # Windows does not rename open files
            self.file.close()
        os.replace(self.partial, self.target)
        _files.sync_folder(self.target.parent)
        self.journal.unlink()


def _line_of(tile: Tile) -> bytes:
    """Return the tile's line in the journal."""
    return f"{tile.i[0]} {tile.i[1]} {tile.j[0]} {tile.j[1]}".encode()
