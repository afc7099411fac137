"""Reading and writing files so that what goes wrong names the file, and nothing that is there is lost."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import fcntl
except ModuleNotFoundError:  # Windows: two processes that write the same file are not detected
    fcntl = None  # type: ignore[assignment]
LOCKS = fcntl is not None  # where there are none, open files cannot be renamed either

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError from within, such as that of a full disk, bears the name of the file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within it a file is read, by a reader of its format.

    Raises:
        FileNotFoundError: there is none.
        ValueError: in one line, whatever the reader raises: it is no file, or cut, or of another format.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # of a pipe nobody knows when it ends
            raise ValueError("it is a directory" if path.is_dir() else "it is no regular file")
        yield
    except (FileNotFoundError, ModuleNotFoundError):
        raise
    except Exception as error:  # each format has its own, and some have any
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        said = " ".join(text.split()) or type(error).__name__
        # What NumPy and torch say of any other file, too, is advice to run code that it may hold.
        if "allow_pickle" in said:
            said = "it holds no plain array of numbers"
        elif "weights_only" in said:
            said = "it holds no plain tensors, as torch.save writes them"
        raise ValueError(f"{path}: cannot be read: {said}") from error


def destination(path: Path) -> Path:
    """Where a file is to be written: ``path``, or what it is a link to, which the link stays.

    Raises:
        OSError: it is no regular file: a device, a pipe or a directory is not replaced by one.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG  # nothing, or a link to nothing
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "want a regular file, or none, to be replaced", str(path))
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def replace(path: Path, content: bytes) -> None:
    """Write at once: whoever reads ``path`` meanwhile, or after a crash, sees the old content or the new.

    Raises:
        OSError: see ``destination``; or the file cannot be written. The old content is there then.
    """
    target = destination(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with naming(path):
            partial.write_bytes(content)
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new(path: Path) -> Iterator[Path]:
    """A file or folder that appears under its name when the block has written it whole, to the path that it is given.

    Raises:
        FileExistsError: there is something at ``path``.
        OSError: it cannot be written; nothing is left.
    """
    if path.exists() or path.is_symlink():
        raise FileExistsError(errno.EEXIST, "want a path where nothing is", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        partial = Path(folder) / path.name
        yield partial
        os.rename(partial, path)


def open_alone(path: Path) -> io.FileIO:
    """Open for reading and writing, without a buffer, so that no other process can open it this way meanwhile."""
    # Do not follow a link: its target belongs to somebody else.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    while True:
        file = io.FileIO(os.open(path, flags, 0o666), "r+")
        try:
            if fcntl is not None:
                _lock(file)
            # Another process may have finished and renamed it after it was opened here.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError as error:
            file.close()
            raise BlockingIOError(errno.EAGAIN, "another process is writing this file", str(path)) from error
        file.close()


def _lock(file: io.FileIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # some cluster file systems have no locks


def allocated(descriptor: int) -> int:
    """Return the bytes that a file, which may have holes, occupies on the disk."""
    return getattr(os.fstat(descriptor), "st_blocks", 0) * 512


def need_room(target: Path, what: str, size: int) -> None:
    """Raise OSError if the disk of ``target`` has less than ``size`` bytes left for ``what``."""
    free = shutil.disk_usage(target.parent).free
    if size > free:
        message = f"want {size / 2**30:.2f} GiB for {what}, {free / 2**30:.2f} GiB are free"
        raise OSError(errno.ENOSPC, message, str(target))


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that a new name in it survives a power cut. Not possible everywhere."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def write_report(folder: Path, summary: dict[str, Any], pictures: dict[str, Figure]) -> None:
    """``summary.json``, and then each picture under its name.

    A number that is undefined is NaN in it, as Python's ``json`` reads it.
    """
    replace(folder / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    for name, figure in pictures.items():
        image = io.BytesIO()
        figure.savefig(image, format="png")
        replace(folder / f"{name}.png", image.getvalue())
