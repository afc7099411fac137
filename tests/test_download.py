"""Downloads from a server on this machine that breaks, lies, and lacks what servers have."""

import hashlib
import http.server
import io
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from v1fast import _files
from v1fast.data import download, get

pytestmark = pytest.mark.once
CONTENT = b"PK" + np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """One file under any name; ``faults`` says what goes wrong in the next requests, in their order.

    Faults: bytes after which the connection is cut, or a status; None: nothing.
    """

    def __init__(self):
        self.content, self.faults, self.asked, self.status = CONTENT, [], [], []
        self.ranges, self.length, self.etag, self.kind = True, True, '"1"', "application/zip"
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                owner.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request):
        fault = self.faults.pop(0) if self.faults else None
        self.asked.append(dict(request.headers))
        if fault is not None and fault >= 400 and fault < 600:
            self.status.append(fault)
            request.send_error(fault)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        same = request.headers.get("If-Range") in (None, self.etag)
        start = int(wanted[1]) if wanted and self.ranges and same else 0
        if start >= len(self.content):
            self.status.append(416)
            request.send_error(416)
            return
        self.status.append(206 if start else 200)
        request.send_response(self.status[-1])
        body = self.content[start:]
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.length:
            request.send_header("Content-Length", str(len(body)))
        if self.etag:
            request.send_header("ETag", self.etag)
        request.send_header("Content-Type", self.kind)
        request.end_headers()
        request.wfile.write(body if fault is None else body[:fault])
        request.wfile.flush()
        request.close_connection = True


@pytest.fixture
def server(monkeypatch):
    made = Server()
    for name, md5 in (("stringer", MD5), ("lurz2020", "")):
        file = download.PublishedFile(f"{made.url}/{name}.zip", f"{name}.zip", md5)
        monkeypatch.setitem(download.PUBLISHED, name, download.Published("about", "page", (file,)))
    monkeypatch.setattr(download, "WAIT", 0.001)
    monkeypatch.setattr(download, "CHUNK", 2**14)
    yield made
    made.server.shutdown()
    made.server.server_close()


def assert_whole(folder, name="stringer"):
    assert (folder / name / f"{name}.zip").read_bytes() == CONTENT
    assert sorted(path.name for path in (folder / name).iterdir()) == ["SHA256SUMS", f"{name}.zip"], (
        "nothing else is left"
    )


def test_a_file(tmp_path, server):
    (got,) = get("stringer", tmp_path, show=False)
    assert (got.path, got.sha256, got.new, got.checked) == (tmp_path / "stringer/stringer.zip", SHA256, True, "MD5")
    assert_whole(tmp_path)
    (again,) = get("stringer", tmp_path, show=False)
    assert (again.new, again.checked) == (False, "MD5")
    assert len(server.asked) == 1, "what is there is not asked for"


def test_a_connection_that_is_cut_goes_on_where_it_was(tmp_path, server):
    server.faults = [100_000, 1, 503, 0, 120_000]
    get("stringer", tmp_path, show=False)
    assert_whole(tmp_path)
    assert server.status == [200, 206, 503, 206, 206, 206]
    starts = [int(asked["Range"].removeprefix("bytes=").rstrip("-")) for asked in server.asked[1:]]
    assert starts == sorted(starts)
    assert starts[0] > 80_000, "no byte that came is asked for again"
    assert starts[-1] >= starts[-2] + 100_000


def test_a_call_goes_on_where_an_earlier_one_ended(tmp_path, server):
    server.faults = [100_000, *[0] * 10]
    with pytest.raises(OSError, match=r"ended early; 0.1 of 0.3 MB are here, the same call goes on from there"):
        get("stringer", tmp_path, show=False)
    assert not (tmp_path / "stringer/stringer.zip").exists()
    server.faults, before = [], len(server.asked)
    get("stringer", tmp_path, show=False)
    assert_whole(tmp_path)
    assert server.status[before:] == [206]


def test_ctrl_c_keeps_what_came(tmp_path, server, monkeypatch):
    original, calls = download._Download._write, []

    def interrupted(self, chunk):
        calls.append(chunk)
        if len(calls) == 9:
            raise KeyboardInterrupt
        original(self, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(download._Download, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get("stringer", tmp_path, show=False)
    get("stringer", tmp_path, show=False)
    assert_whole(tmp_path)
    assert server.status == [200, 206]


@pytest.mark.parametrize("ranges", [False, True])
def test_a_server_that_knows_no_ranges_or_has_another_version_by_now(tmp_path, server, ranges):
    server.faults = [100_000, *[0] * 4]
    with pytest.raises(OSError, match="goes on from there"):
        get("stringer", tmp_path, show=False)
    server.ranges, server.faults = ranges, []
    if ranges:
        server.etag = '"2"'
    get("stringer", tmp_path, show=False)
    assert_whole(tmp_path)
    assert server.status[-1] == 200


def test_a_server_that_says_no_length_and_no_version(tmp_path, server):
    server.length, server.etag = False, None
    (got,) = get("lurz2020", tmp_path, show=False)
    assert got.sha256 == SHA256
    assert got.checked == ""
    assert_whole(tmp_path, "lurz2020")


def test_what_came_without_a_version_is_not_gone_on_from(tmp_path, server):
    server.etag, server.faults = None, [100_000, *[0] * 4]
    with pytest.raises(OSError, match="ended early"):
        get("stringer", tmp_path, show=False)
    server.faults, before = [], len(server.asked)
    get("stringer", tmp_path, show=False)
    assert_whole(tmp_path)
    assert "Range" not in server.asked[before]


def test_what_is_longer_than_the_file_by_now_is_begun_anew(tmp_path, server):
    server.faults = [200_000, *[0] * 4]
    with pytest.raises(OSError, match="ended early"):
        get("lurz2020", tmp_path, show=False)
    server.content, server.faults = CONTENT[:50_000], []
    (got,) = get("lurz2020", tmp_path, show=False)
    assert got.path.read_bytes() == CONTENT[:50_000]
    assert server.status[-2:] == [416, 200]


@pytest.mark.parametrize("name", ["stringer", "lurz2020"])
def test_a_wrong_checksum(tmp_path, server, name):
    if name == "lurz2020":  # nothing to check the first download by
        get(name, tmp_path, show=False)[0].path.unlink()
    server.content = CONTENT[:-1] + b"x"
    want = (
        f"want the MD5 {MD5}, got "
        if name == "stringer"
        else f"want the SHA-256 {SHA256}, recorded in .*SHA256SUMS, got"
    )
    with pytest.raises(ValueError, match=rf"{server.url}/{name}.zip: {want}.*: nothing was kept"):
        get(name, tmp_path, show=False)
    assert not [path for path in (tmp_path / name).iterdir() if path.name != "SHA256SUMS"]
    server.content = CONTENT
    get(name, tmp_path, show=False)
    assert_whole(tmp_path, name)


def test_a_file_that_was_changed(tmp_path, server):
    (got,) = get("lurz2020", tmp_path, show=False)
    assert (tmp_path / "lurz2020/SHA256SUMS").read_text() == f"{SHA256}  lurz2020.zip\n"
    assert get("lurz2020", tmp_path, show=False)[0].checked == "SHA256SUMS"
    got.path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"lurz2020.zip: want the SHA-256 .* remove it and download it again"):
        get("lurz2020", tmp_path, show=False)
    assert got.path.read_bytes() == b"PK"


def test_a_page_in_place_of_the_file(tmp_path, server):
    server.content, server.kind = b"<html>please log in</html>", "text/html"
    with pytest.raises(ValueError, match=r"lurz2020.zip: want a zip archive, got text/html"):
        get("lurz2020", tmp_path, show=False)
    server.content = CONTENT
    get("lurz2020", tmp_path, show=False)
    assert_whole(tmp_path, "lurz2020")


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (403, 1), (500, 5), (429, 5)])
def test_what_the_server_refuses(tmp_path, server, status, attempts):
    server.faults = [status] * 10
    with pytest.raises(OSError, match=f"HTTP {status}") as raised:
        get("stringer", tmp_path, show=False)
    assert raised.value.filename == f"{server.url}/stringer.zip"
    assert len(server.asked) == attempts


def test_no_server(tmp_path, server):
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(OSError, match="refused"):
        get("stringer", tmp_path, show=False)


def test_no_room_for_it(tmp_path, server, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
        with pytest.raises(OSError, match=r"want 0.00 GiB for stringer.zip, 0.00 GiB are free") as raised:
            get("stringer", tmp_path, show=False)
    assert raised.value.filename == str(tmp_path / "stringer/stringer.zip")
    get("stringer", tmp_path, show=False)
    assert_whole(tmp_path)


@pytest.mark.parametrize("how", ["error", "short"])
def test_a_disk_that_fills_up(tmp_path, server, monkeypatch, how):
    class Full(io.FileIO):
        def write(self, chunk):
            if self.tell() + len(chunk) > 50_000:
                if how == "error":
                    raise OSError(28, "No space left on device")
                chunk = chunk[: 50_000 - self.tell()]
            return super().write(chunk)

    with monkeypatch.context() as patch:
        patch.setattr(_files.io, "FileIO", Full)
        with pytest.raises(OSError, match=r"No space left|the disk is full; the same call goes on") as raised:
            get("stringer", tmp_path, show=False)
    assert raised.value.errno == 28
    assert raised.value.filename == str(tmp_path / "stringer/stringer.zip")
    get("stringer", tmp_path, show=False)
    assert_whole(tmp_path)
    assert server.status == [200, 206]


def test_two_at_once(tmp_path, server):
    if not _files.LOCKS:
        pytest.skip("wants locks")
    (tmp_path / "stringer").mkdir()
    message = "another process is writing this file"
    partial = tmp_path / "stringer/.stringer.zip.partial"
    with _files.open_alone(partial), pytest.raises(BlockingIOError, match=message):
        get("stringer", tmp_path, show=False)
    get("stringer", tmp_path, show=False)
    assert_whole(tmp_path)


def test_names(tmp_path):
    known = "stringer, stringer-halves, lurz2020, sensorium2022"
    with pytest.raises(ValueError, match=f"name: want one of {known}, got 'mnist'"):
        get("mnist", tmp_path)
    assert not list(tmp_path.iterdir())


def test_published_addresses():
    files = [file for published in download.PUBLISHED.values() for file in published.files]
    assert all(file.url.startswith("https://") and file.name.endswith((".zip", ".npz")) for file in files)
    assert len({file.name for file in files}) == len(files) == 10
    assert files[0].md5 == "436599dfd8ebe6019f066c38aed20580"


def test_the_bar_counts_bytes(tmp_path, server, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    monkeypatch.setattr("v1fast._progress.SECONDS_BETWEEN_LINES", 0.0)
    server.faults = [100_000]
    get("stringer", tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "stringer.zip: 0.3 MB of 0.3 MB"


def test_the_command(tmp_path, server):
    from v1fast.cli import app

    runner = pytest.importorskip("typer.testing").CliRunner()
    result = runner.invoke(app, ["data", "get", "lurz2020", "--folder", str(tmp_path)])
    assert result.exit_code == 0
    assert f"SHA-256 {SHA256} recorded: the publisher gives none" in result.output
    result = runner.invoke(app, ["data", "get", "lurz2020", "--folder", str(tmp_path), "--json"])
    assert '"checked": "SHA256SUMS"' in result.output
    assert '"new": false' in result.output
    assert runner.invoke(app, ["data", "get", "lurz2020", "--folder", str(tmp_path), "-q"]).output == ""
    server.faults = [404]
    result = runner.invoke(app, ["data", "get", "stringer", "--folder", str(tmp_path), "-q"])
    assert result.exit_code == 1
    assert result.output == f"v1fast: {server.url}/stringer.zip: HTTP 404 Not Found\n"
    assert runner.invoke(app, ["data", "get", "mnist"]).exit_code == 2
