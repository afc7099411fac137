"""Dissimilarity matrices in files: their values, and that no interruption changes a byte or repeats a tile."""

import errno
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from v1fast import _files, functional, ops
from v1fast.rsa import _tiles, files, rdm_to_file

fcntl = _files.fcntl

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")
NATIVE = ops.loaded["native"] == "loaded"
SIDE = 40
STIMULI = 150  # 4 x 4 tiles, 10 on and above the diagonal, those at the end smaller


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(files, "SIDE", SIDE)


@pytest.fixture
def computed(monkeypatch):
    """The tiles that were computed."""
    found = []
    original = _tiles.square

    def square(x, tile, *options):
        found.append(tile)
        return original(x, tile, *options)

    monkeypatch.setattr(_tiles, "square", square)
    return found


def responses(dtype=torch.float32):
    return torch.randn(STIMULI, 70, generator=torch.Generator().manual_seed(3), dtype=dtype)


def checksum(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# Writes a matrix in each of the folders, in processes of their own (forked: torch takes seconds to import), which kill
# themselves before or after their k-th call of fsync: at each such moment the disk is in another state. Without moments
# it writes one in its own process, slowly, and a line after each sync.
PROGRAM = """
import json, os, signal, sys, time
import torch
from v1fast.rsa import files, rdm_to_file

given = json.loads(sys.argv[1])
files.SIDE = given["side"]
torch.set_num_threads(1)
fsync, calls = os.fsync, 0

def write(folder, kill_at=0, when=None):
    def counting(descriptor):
        global calls
        calls += 1
        if (calls, when) == (kill_at, "before"):
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)
        if (calls, when) == (kill_at, "after"):
            os.kill(os.getpid(), signal.SIGKILL)
        if when is None:
            print("synced", flush=True)
            time.sleep(0.02)
    os.fsync = counting
    x = torch.randn(given["stimuli"], 70, generator=torch.Generator().manual_seed(3))
    rdm_to_file(x, folder + "/rdm.npy", given["condensed"], progress=False)

for folder, kill_at, when in given["moments"]:
    if not (child := os.fork()):
        write(folder, kill_at, when)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
if not given["moments"]:
    write(given["folder"])
"""


def start(folder=None, condensed=True, moments=()):
    given = {"side": SIDE, "stimuli": STIMULI, "condensed": condensed, "folder": folder and str(folder)}
    program = [sys.executable, "-c", PROGRAM, json.dumps({**given, "moments": moments})]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("condensed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", _tiles.METHODS)
def test_file_is_the_matrix(small_tiles, tmp_path, method, dtype, condensed):
    x = responses(dtype)
    x[7] = 0
    x[100, 3] = torch.nan
    got = rdm_to_file(x, tmp_path / "rdm.npy", condensed, method=method, progress=False)
    want = functional.rdm(x, method=method, condensed=condensed).numpy()
    assert isinstance(got, np.memmap)
    assert not got.flags.writeable
    assert got.dtype == want.dtype
    if NATIVE and method != "euclidean":
        np.testing.assert_array_equal(got, want)
    else:
        eps = torch.finfo(dtype).eps
        np.testing.assert_allclose(got, want, rtol=0, atol=8 * eps * np.nanmax(want))
    if not condensed:
        np.testing.assert_array_equal(got, got.T)
        np.testing.assert_array_equal(np.diagonal(got), np.diagonal(want))
    assert [entry.name for entry in tmp_path.iterdir()] == ["rdm.npy"]


def test_arrays_integers_and_few_stimuli(small_tiles, tmp_path):
    x = np.arange(STIMULI * 6).reshape(STIMULI, 6)[::-1] ** 2 % 17
    got = rdm_to_file(x, tmp_path / "a.npy", progress=False)
    np.testing.assert_allclose(got, functional.rdm(x.astype(np.float32), condensed=True), atol=1e-6)
    for count in (2, 1):
        got = rdm_to_file(x[:count], tmp_path / f"{count}.npy", progress=False)
        assert got.shape == (count - 1,)
        got = rdm_to_file(x[:count], tmp_path / f"full{count}.npy", condensed=False, progress=False)
        assert got.shape == (count, count)


# Calls of fsync: for the folder, the empty file, the folder; for the data and the journal of each tile; for the whole
# file. Moment, before or after such a call -> tiles that need not be computed again. A line of the journal is written
# before it is synced: only a power cut could take it away.
MOMENTS = {(1, "before"): 0, (2, "before"): 0, (3, "before"): 0, (4, "before"): 0, (4, "after"): 0}
MOMENTS |= {(5, "before"): 1, (5, "after"): 1, (14, "after"): 5, (23, "after"): 10, (24, "after"): 10}


def assert_goes_on(stopped, computed, tmp_path, condensed):
    """``stopped`` is called with folders and moments, and stops writing a matrix to each folder at its moment."""
    rdm_to_file(responses(), tmp_path / "whole.npy", condensed, progress=False)
    want, tiles = checksum(tmp_path / "whole.npy"), len(computed)
    assert tiles == 10
    folders = [tmp_path / f"{when} {call}" for call, when in MOMENTS]
    for folder in folders:
        folder.mkdir()
    stopped(zip(folders, MOMENTS, strict=True))
    for folder, done in zip(folders, MOMENTS.values(), strict=True):
        assert not (folder / "rdm.npy").exists()
        computed.clear()
        rdm_to_file(responses(), folder / "rdm.npy", condensed, progress=False)
        assert len(computed) == tiles - done
        assert checksum(folder / "rdm.npy") == want
        assert [entry.name for entry in folder.iterdir()] == ["rdm.npy"]


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("condensed", [True, False])
def test_stopped_at_any_moment_it_goes_on(small_tiles, computed, tmp_path, monkeypatch, condensed):
    fsync = os.fsync

    def stopped(folders):
        for folder, moment in folders:
            calls = itertools.count(1)

            def counting(descriptor, moment=moment, calls=calls):
                call = next(calls)
                for when in ("before", "after"):
                    if when == "after":
                        fsync(descriptor)
                    if (call, when) == moment:
                        raise Stopped

            monkeypatch.setattr(os, "fsync", counting)
            with pytest.raises(Stopped):
                rdm_to_file(responses(), folder / "rdm.npy", condensed, progress=False)

        monkeypatch.setattr(os, "fsync", fsync)

    assert_goes_on(stopped, computed, tmp_path, condensed)


@pytest.mark.slow
@pytest.mark.parametrize("condensed", [True, False])
def test_killed_at_any_moment_it_goes_on(small_tiles, computed, tmp_path, condensed):
    def killed(folders):
        program = start(None, condensed, [(str(folder), *moment) for folder, moment in folders])
        _, said = program.communicate()
        assert program.returncode == 0, said

    assert_goes_on(killed, computed, tmp_path, condensed)


@pytest.mark.slow
def test_killed_and_interrupted_from_outside(small_tiles, computed, tmp_path):
    rdm_to_file(responses(), tmp_path / "whole.npy", progress=False)
    folder = tmp_path / "killed"
    folder.mkdir()
    journal = folder / ".rdm.npy.journal"
    done = 0
    for number, lines in ((signal.SIGKILL, 7), (signal.SIGINT, 6)):
        program = start(folder)
        for _ in range(lines):
            program.stdout.readline()
        if fcntl is not None:
            with pytest.raises(BlockingIOError, match="another process is writing this file"):
                rdm_to_file(responses(), folder / "rdm.npy", progress=False)
        program.send_signal(number)
        _, said = program.communicate()
        assert program.returncode == -number
        if number == signal.SIGINT:
            assert "rdm.npy is unfinished; the same call goes on from here" in said
        assert not (folder / "rdm.npy").exists()
        before, done = done, journal.read_bytes().count(b"\n") - 1
        assert done > before
    computed.clear()
    rdm_to_file(responses(), folder / "rdm.npy", progress=False)
    assert len(computed) == 10 - done
    assert checksum(folder / "rdm.npy") == checksum(tmp_path / "whole.npy")


class Stop(Exception):
    pass


@pytest.fixture
def unfinished(small_tiles, tmp_path, monkeypatch):
    """A path at which three tiles are done."""
    original, seen = files._Unfinished.store, []

    def store(self, tile, values):
        if len(seen) == 3:
            raise Stop
        seen.append(tile)
        original(self, tile, values)

    with monkeypatch.context() as patch:
        patch.setattr(files._Unfinished, "store", store)
        with pytest.raises(Stop):
            rdm_to_file(responses(), tmp_path / "rdm.npy", progress=False)
    return tmp_path / "rdm.npy"


@pytest.mark.skipif(fcntl is None, reason="wants locks")
def test_a_file_that_is_being_written_is_left_alone(unfinished):
    with (
        _files.open_alone(unfinished.with_name(".rdm.npy.partial")),
        pytest.raises(BlockingIOError, match="another process is writing this file"),
    ):
        rdm_to_file(responses(), unfinished, progress=False)


def test_an_interrupt_says_that_the_same_call_goes_on(unfinished, monkeypatch):
    def interrupted(self, tile, values):
        raise KeyboardInterrupt

    monkeypatch.setattr(files._Unfinished, "store", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        rdm_to_file(responses(), unfinished, progress=False)
    assert caught.value.__notes__ == [f"{unfinished} is unfinished; the same call goes on from here"]


def test_an_error_in_the_writer_loses_nothing(unfinished, computed):
    assert not unfinished.exists()
    rdm_to_file(responses(), unfinished, progress=False)
    assert len(computed) == 7


def test_a_line_cut_short_does_not_count(unfinished, computed):
    journal = unfinished.with_name(".rdm.npy.journal")
    journal.write_bytes(journal.read_bytes()[:-4])
    rdm_to_file(responses(), unfinished, progress=False)
    assert len(computed) == 8
    assert np.array_equal(np.load(unfinished), rdm_to_file(responses(), unfinished.with_name("b.npy"), progress=False))


@pytest.mark.parametrize(
    "other",
    [{"method": "cosine"}, {"condensed": False}, {"accuracy": "high"}, {"responses": responses() + 1e-3}],
    ids=lambda given: next(iter(given)),
)
def test_another_input_does_not_go_on(unfinished, computed, other):
    given = {"responses": responses(), "progress": False, **other}
    before = unfinished.with_name(".rdm.npy.journal").read_bytes()
    with pytest.raises(FileExistsError, match=r"other responses or settings were begun .*\.rdm\.npy\.partial"):
        rdm_to_file(path=unfinished, **given)
    assert unfinished.with_name(".rdm.npy.journal").read_bytes() == before
    assert computed == []
    got = rdm_to_file(path=unfinished, overwrite=True, **given)
    assert len(computed) == 10
    del given["progress"]
    want = functional.rdm(given.pop("responses"), **{"condensed": True, **given}).numpy()
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_file_that_is_there_is_kept(small_tiles, tmp_path, computed):
    path = tmp_path / "rdm.npy"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True replaces it"):
        rdm_to_file(responses(), path, progress=False)
    assert path.read_text() == "mine"
    assert computed == []
    assert rdm_to_file(responses(), path, overwrite=True, progress=False).shape == (STIMULI * (STIMULI - 1) // 2,)


def test_a_journal_left_beside_a_finished_file_is_none(small_tiles, tmp_path, computed, monkeypatch):
    path = tmp_path / "rdm.npy"

    def stop(*_):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: missing_ok or stop())
        with pytest.raises(Stop):
            rdm_to_file(responses(), path, progress=False)
    want = checksum(path)
    assert path.with_name(".rdm.npy.journal").read_bytes().count(b"\n") == 11
    # Begun anew, and stopped before the new journal is there: what the old one says is not true of the new file.
    with monkeypatch.context() as patch:
        patch.setattr(files._files, "replace", stop)
        with pytest.raises(Stop):
            rdm_to_file(responses(), path, overwrite=True, progress=False)
    assert checksum(path) == want
    computed.clear()
    rdm_to_file(responses(), path, overwrite=True, progress=False)
    assert len(computed) == 10
    assert checksum(path) == want
    assert [entry.name for entry in tmp_path.iterdir()] == ["rdm.npy"]


def test_room_on_the_disk_is_looked_up_first(small_tiles, tmp_path, computed, monkeypatch):
    monkeypatch.setattr(_files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=40_000))
    with pytest.raises(OSError, match=r"want 0\.00 GiB for the matrix, 0\.00 GiB are free") as caught:
        rdm_to_file(responses(), tmp_path / "rdm.npy", progress=False)
    assert caught.value.errno == errno.ENOSPC
    assert computed == []


def test_rejects_bad_operands(tmp_path):
    for message, given in {
        r"responses: want \[S, N\], got \(2, 3, 4\)": {"responses": torch.ones(2, 3, 4)},
        r"method: want one of correlation, cosine, euclidean, got 'poisson'": {"method": "poisson"},
        r"accuracy: want one of float32, high, bfloat16, got 'low'": {"accuracy": "low"},
    }.items():
        with pytest.raises(ValueError, match=message):
            rdm_to_file(**{"responses": torch.ones(3, 4), "path": tmp_path / "rdm.npy", **given})
    assert not list(tmp_path.iterdir())


DAMAGE = {
    "another line": lambda content: content + b"0 1 2\n",
    "no numbers": lambda content: content + b"a b c d\n",
    "another tile": lambda content: content + b"0 7 0 7\n",
    "no text": lambda content: content + b"\xff\xfe\n",
    "nothing": lambda content: b"",
    "another head": lambda content: b"\xff" + content,
    "zeros": lambda content: bytes(len(content)) + b"\n",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_journal_is_named(unfinished, computed, damage):
    journal = unfinished.with_name(".rdm.npy.journal")
    journal.write_bytes(DAMAGE[damage](journal.read_bytes()))
    before = journal.read_bytes()
    with pytest.raises(FileExistsError, match=r"rdm\.npy: .*overwrite=True") as caught:
        rdm_to_file(responses(), unfinished, progress=False)
    assert "\n" not in str(caught.value)
    assert journal.read_bytes() == before
    want = rdm_to_file(responses(), unfinished.with_name("b.npy"), progress=False)
    computed.clear()
    assert np.array_equal(rdm_to_file(responses(), unfinished, overwrite=True, progress=False), want)
    assert len(computed) == 10
    assert not journal.exists()


def test_a_journal_that_is_a_folder_is_named(unfinished):
    journal = unfinished.with_name(".rdm.npy.journal")
    journal.unlink()
    journal.mkdir()
    with pytest.raises(OSError, match=r"\.rdm\.npy\.journal"):
        rdm_to_file(responses(), unfinished, progress=False)


@pytest.mark.parametrize("where", ["write", "fsync", "journal"])
def test_a_full_disk_names_the_file_and_the_same_call_goes_on(small_tiles, tmp_path, computed, monkeypatch, where):
    path, calls = tmp_path / "rdm.npy", []

    def later(original, after):
        def call(*given, **options):
            calls.append(0)
            if len(calls) > after:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*given, **options)

        return call

    with monkeypatch.context() as patch:
        if where == "fsync":
            patch.setattr(os, "fsync", later(os.fsync, 8))
        elif where == "journal":
            patch.setattr(Path, "open", later(Path.open, 4))
        else:
            patch.setattr(files._Unfinished, "_write", later(files._Unfinished._write, 4))
        with pytest.raises(OSError, match=r"No space left on device: '.*rdm\.npy") as caught:
            rdm_to_file(responses(), path, progress=False)
    assert caught.value.errno == errno.ENOSPC
    assert not path.exists()
    computed.clear()
    rdm_to_file(responses(), path, progress=False)
    assert 0 < len(computed) < 10
    assert [entry.name for entry in tmp_path.iterdir()] == ["rdm.npy"]


def test_links_and_devices_are_not_replaced(small_tiles, tmp_path):
    link, real = tmp_path / "link.npy", tmp_path / "folder" / "real.npy"
    real.parent.mkdir()
    link.symlink_to(real)
    rdm_to_file(responses(), link, progress=False)
    assert link.is_symlink()
    assert [entry.name for entry in real.parent.iterdir()] == ["real.npy"]
    pipe, loop, folder = tmp_path / "pipe.npy", tmp_path / "loop.npy", tmp_path / "folder.npy"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    folder.mkdir()
    for path in ("/dev/null", pipe, loop, folder):
        with pytest.raises(OSError, match=re.escape(str(path))):
            rdm_to_file(responses(), path, overwrite=True, progress=False)
    assert Path("/dev/null").is_char_device()
    assert pipe.is_fifo()
    # Nor is what is hidden beside the file, if it is a link, written through.
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / ".new.npy.partial").symlink_to(precious)
    with pytest.raises(OSError, match=r"\.new\.npy\.partial"):
        rdm_to_file(responses(), tmp_path / "new.npy", progress=False)
    assert precious.read_text() == "mine"


def test_progress_counts_tiles_without_rich(small_tiles, unfinished, capsys, monkeypatch):
    from v1fast import _progress

    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(_progress, "SECONDS_BETWEEN_LINES", 0.0)
    rdm_to_file(responses(), unfinished)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"rdm.npy: {count} of 10" for count in range(4, 11)]


LARGE = """
import threading, time
import torch
from v1fast.rsa import rdm_to_file

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))

x = torch.randn(30_000, 500, generator=torch.Generator().manual_seed(0))
before, most, running = anonymous(), 0, True

def watch():
    global most
    while running:
        most = max(most, anonymous())
        time.sleep(0.005)

watcher = threading.Thread(target=watch)
watcher.start()
rdm_to_file(x, PATH, progress=False)
running = False
watcher.join()
print(before, most, x.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is looked up in /proc")
def test_thirty_thousand_stimuli_killed_and_within_memory(tmp_path):
    path = tmp_path / "rdm.npy"
    program = LARGE.replace("PATH", repr(str(path)))
    journal = path.with_name(".rdm.npy.journal")
    for wanted in (3, 20):  # killed after so many tiles of 45
        run = subprocess.Popen([sys.executable, "-c", program])
        while not journal.exists() or journal.read_bytes().count(b"\n") <= wanted:
            assert run.poll() is None
            time.sleep(0.01)
        run.kill()
        assert run.wait() == -signal.SIGKILL
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, most, size = map(int, done.stdout.split())
    assert before >= size
    print(f"anonymous memory: {(most - before) / 2**20:.0f} MiB beside responses of {size / 2**20:.0f} MiB")
    assert most - before <= 512 * 2**20
    killed = checksum(path)
    os.unlink(path)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert checksum(path) == killed
    x = torch.randn(30_000, 500, generator=torch.Generator().manual_seed(0))
    got = np.load(path, mmap_mode="r")
    for row in (0, 3455, 3456, 17_000, 29_998):
        start = row * (2 * len(x) - row - 1) // 2
        want = functional.cross_rdm(x[row : row + 1], x[row + 1 :])[0].numpy()
        np.testing.assert_allclose(got[start : start + len(want)], want, rtol=0, atol=3e-7)
