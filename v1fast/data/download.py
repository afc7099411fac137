"""Published recordings, downloaded: resumed after a break, checked, and under their names only when whole.

With the standard library: pooch and urllib.request.urlretrieve begin anew after a break, and a session of Sensorium is
as large as a lost connection is likely.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v1fast import _choices, _files
from v1fast._progress import Bar, progress
from v1fast._version import __version__

CHUNK = 2**18  # bytes
ATTEMPTS = 5  # without a byte more, in a row
WAIT = 1.0  # seconds before the second attempt; doubled before each further one
TIMEOUT = 60.0  # seconds of silence
SUMS = "SHA256SUMS"
ARCHIVE = b"PK"  # how a zip archive, and so an .npz, begins

_GIN = "https://gin.g-node.org/cajal"
_SENSORIUM = (
    "static21067-10-18",
    "static22846-10-16",
    "static23343-5-17",
    "static23656-14-22",
    "static23964-4-22",
    "static26872-17-20",
    "static27204-5-13",
)
_PIPELINE = "GrayImageNet-94c6ff995dac583098847cfecd43e7b6"


@dataclass(frozen=True)
class PublishedFile:
    """A file to download.

    Attributes:
        url: http or https.
        name: of the file here.
        md5: its checksum where the publisher gives one, else "".
    """

    url: str
    name: str
    md5: str = ""


@dataclass(frozen=True)
class Published:
    """A published recording.

    Attributes:
        about: what it is, and its source.
        page: where its licence is found.
        files: of it.
    """

    about: str
    page: str
    files: tuple[PublishedFile, ...]


PUBLISHED = {
    "stringer": Published(
        "mouse V1, 23589 neurons, gratings of 360 orientations (Stringer et al. 2021, Cell 184, 2767), as prepared by "
        "Neuromatch Academy",
        "https://osf.io/683xc",
        (
            PublishedFile(
                "https://osf.io/683xc/download", "W3D4_stringer_oribinned1.npz", "436599dfd8ebe6019f066c38aed20580"
            ),
        ),
    ),
    "stringer-halves": Published(
        "the same recording in bins of 6 degrees, two halves of the trials apart",
        "https://osf.io/p3aeb",
        (
            PublishedFile(
                "https://osf.io/p3aeb/download",
                "W3D4_stringer_oribinned6_split.npz",
                "b3f7245c6221234a676b71a1f43c3bb5",
            ),
        ),
    ),
    "lurz2020": Published(
        "mouse V1, natural images, one session (Lurz et al. 2021, ICLR)",
        f"{_GIN}/Lurz2020",
        (PublishedFile(f"{_GIN}/Lurz2020/archive/master.zip", "Lurz2020-master.zip"),),
    ),
    "sensorium2022": Published(
        "mouse V1, natural images, seven sessions (Willeke et al. 2022, arXiv:2206.08666)",
        f"{_GIN}/Sensorium2022",
        tuple(
            PublishedFile(f"{_GIN}/Sensorium2022/raw/master/{scan}-{_PIPELINE}.zip", f"{scan}-{_PIPELINE}.zip")
            for scan in _SENSORIUM
        ),
    ),
}
"""Name -> a recording that :func:`get` downloads."""


@dataclass(frozen=True)
class Got:
    """What came of a file.

    Attributes:
        path: where it is.
        sha256: its checksum.
        new: whether it was downloaded now.
        checked: by what: the publisher's "MD5", or "SHA256SUMS" of an earlier download; "" if there was nothing to
            check it by.
    """

    path: Path
    sha256: str
    new: bool
    checked: str


def get(name: str, folder: str | Path = "data", *, show: bool = True, console: Any = None) -> list[Got]:
    """Download the files of a published recording into ``folder/name``.

    What was begun goes on where it ended, also in a later call. A file appears under its name when it is whole and its
    checksum is right; one that is there is checked and left. Where the publisher gives no checksum, that of the first
    download is recorded in ``SHA256SUMS`` beside the files, in the form that ``sha256sum -c`` reads.

    Args:
        name: "stringer", "stringer-halves", "lurz2020" or "sensorium2022".
        folder: to write to, made where it is missing.
        show: whether to show a progress bar.
        console: of rich, for the bar; default stderr.

    Returns:
        What came of each file.

    Raises:
        ValueError: an unknown name; what came is no archive, or has another checksum.
        OSError: the server cannot be reached, or does not have the file; the disk is full. The same call goes on from
            there.
    """
    _choices.one_of("name", name, tuple(PUBLISHED))
    target = Path(folder) / name
    target.mkdir(parents=True, exist_ok=True)
    return [_get(file, target, show, console) for file in PUBLISHED[name].files]


def _get(file: PublishedFile, folder: Path, show: bool, console: Any) -> Got:
    path = folder / file.name
    if path.exists():
        sha256, md5 = _digests(path)
        return Got(path, sha256, False, _check(file, path, path, sha256, md5))
    with _files.open_alone(path.with_name(f".{path.name}.partial")) as partial:
        if path.exists():  # another process has just finished it
            return _get(file, folder, show, console)
        download = _Download(file, path, partial)
        download.run(show, console)
        sha256, md5 = _digests(download.partial)
        try:
            checked = _check(file, path, download.partial, sha256, md5)
        except ValueError:
            download.drop()  # nothing of it can be gone on from
            raise
        _record(folder, file.name, sha256)
        download.finish()
    return Got(path, sha256, True, checked)


def _digests(path: Path) -> tuple[str, str]:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
    return sha256.hexdigest(), md5.hexdigest()


def _check(file: PublishedFile, path: Path, content: Path, sha256: str, md5: str) -> str:
    """By what the file was checked."""
    where = f"{path}" if content == path else f"{file.url}"
    remedy = "remove it and download it again" if content == path else "nothing was kept"
    if file.md5:
        if md5 != file.md5:
            raise ValueError(f"{where}: want the MD5 {file.md5}, got {md5}: {remedy}")
        return "MD5"
    recorded = _recorded(path.parent).get(path.name)
    if recorded is None:
        return ""
    if sha256 != recorded:
        raise ValueError(
            f"{where}: want the SHA-256 {recorded}, recorded in {path.parent / SUMS}, got {sha256}: {remedy}"
        )
    return SUMS


def _recorded(folder: Path) -> dict[str, str]:
    path = folder / SUMS
    if not path.exists():
        return {}
    pairs = [line.split(None, 1) for line in path.read_text().splitlines() if line.strip()]
    return {pair[1].strip().lstrip("*"): pair[0] for pair in pairs if len(pair) == 2}


def _record(folder: Path, name: str, sha256: str) -> None:
    sums = {**_recorded(folder), name: sha256}
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    _files.replace(folder / SUMS, text.encode())


class _Download:
    """One file: what has come of it lies in a hidden file, and beside that what the server said of the whole."""

    def __init__(self, file: PublishedFile, path: Path, partial: io.FileIO) -> None:
        self.file, self.path, self.content = file, path, partial
        self.partial = path.with_name(f".{path.name}.partial")
        self.notes = path.with_name(f".{path.name}.json")
        self.have = os.fstat(partial.fileno()).st_size
        self.total: int | None = None
        self.version = ""  # ETag or date of what has come so far
        self._read_notes()

    def _read_notes(self) -> None:
        try:
            notes = json.loads(self.notes.read_text())
            self.total, self.version, same = notes["total"], notes["version"], notes["url"] == self.file.url
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same or not self.version:  # of an unknown version nothing can be gone on from
            self._begin_anew()

    def _begin_anew(self) -> None:
        with _files.naming(self.path):
            self.content.truncate(0)
        self.have, self.total, self.version = 0, None, ""

    def run(self, show: bool, console: Any) -> None:
        """Until all of it is there."""
        failures = 0
        with progress(self.file.name, self.total, self.have, show, console, size=True) as bar:
            while not self._whole():
                before = self.have
                try:
                    self._receive(bar)
                except (
                    urllib.error.URLError,
                    http.client.HTTPException,
                    TimeoutError,
                    ConnectionError,
                    ssl.SSLError,
                ) as error:
                    failures = 1 if self.have > before else failures + 1
                    self._give_up(error, failures)
                    time.sleep(WAIT * 2 ** (failures - 1))

    def _whole(self) -> bool:
        return self.total is not None and self.have == self.total

    def _give_up(self, error: Exception, failures: int) -> None:
        """Raise unless another attempt may help."""
        lasting = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 429)
        if failures < ATTEMPTS and not lasting:
            return
        have = f"{self.have / 1e6:.1f} of {self.total / 1e6:.1f} MB are here, " if self.total and self.have else ""
        said = f"HTTP {error.code} {error.reason}" if isinstance(error, urllib.error.HTTPError) else _said(error)
        message = f"{said}; {have}the same call goes on from there" if have else said
        raise OSError(errno.EIO, message, self.file.url) from None

    def _receive(self, bar: Bar) -> None:
        """One request; it may end early."""
        with self._request() as response:
            self._begin(response, bar)
            while chunk := response.read(CHUNK):
                if self.have == 0 and not chunk.startswith(ARCHIVE):
                    kind = response.headers.get("Content-Type", "something else")
                    raise ValueError(
                        f"{self.file.url}: want a zip archive, got {kind}: see {self.path.parent.name}'s page"
                    )
                self._write(chunk)
                bar.advance(len(chunk))
            if self.total is None:  # a server that never said how much it would be has come to its end
                self.total = self.have
        if not self._whole():
            raise ConnectionError("the connection ended early")

    def _request(self) -> Any:
        headers = {"User-Agent": f"v1fast/{__version__}", "Accept-Encoding": "identity"}
        if self.have:
            headers |= {"Range": f"bytes={self.have}-", "If-Range": self.version}
        request = urllib.request.Request(self.file.url, headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code != 416:  # the range lies beyond the end: what is here is not a part of it
                raise
            error.close()
            self._begin_anew()
            return self._request()

    def _begin(self, response: Any, bar: Bar) -> None:
        """See what the server gives: the rest, or all of it again."""
        headers = response.headers
        if response.status == 206:
            start, total = _range(headers.get("Content-Range", ""))
            if start != self.have or self.total not in (None, total):
                self._begin_anew()
                raise ConnectionError(f"want bytes from {self.have} on, got {headers.get('Content-Range')}")
            self.total = total
        else:
            if self.have:
                bar.advance(-self.have)
                self._begin_anew()
            length = headers.get("Content-Length")
            self.total = int(length) if length is not None else None
        etag = headers.get("ETag", "")
        self.version = headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag
        notes = {"url": self.file.url, "total": self.total, "version": self.version}
        _files.replace(self.notes, json.dumps(notes).encode())
        bar.expect(self.total)
        if self.total is not None:
            _files.need_room(self.path, self.file.name, self.total - self.have)

    def _write(self, chunk: bytes) -> None:
        with _files.naming(self.path):
            self.content.seek(self.have)
            written = self.content.write(chunk)
            self.have += written
            if written != len(chunk):
                message = "the disk is full; the same call goes on from here"
                raise OSError(errno.ENOSPC, message, str(self.path))

    def drop(self) -> None:
        """Leave nothing."""
        self.partial.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)

    def finish(self) -> None:
        """Rename the file to its final name."""
        with _files.naming(self.path):
            os.fsync(self.content.fileno())
        if not _files.LOCKS:  # Windows does not rename open files
            self.content.close()
        os.replace(self.partial, self.path)
        _files.sync_folder(self.path.parent)
        self.notes.unlink(missing_ok=True)


def _range(text: str) -> tuple[int, int | None]:
    """First byte and total of ``bytes 5-9/10``; -1 of what is not understood."""
    try:
        kind, _, rest = text.partition(" ")
        span, _, total = rest.partition("/")
        first = int(span.partition("-")[0])
    except ValueError:
        return -1, None
    return (first if kind == "bytes" else -1), (int(total) if total.isdigit() else None)


def _said(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return " ".join(str(said).split())
