"""The command line: what each command prints, passes on, and says when its extra is absent."""

import ast
import dataclasses
import errno
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from v1fast import doctor
from v1fast.__main__ import main
from v1fast._version import __version__

CliRunner = pytest.importorskip("typer.testing").CliRunner
app = pytest.importorskip("v1fast.cli").app

REPORT = doctor.Report(
    versions={"v1fast": "9.8.7", "triton": None},
    system={"os": "An OS [bold]", "architecture": "x", "torch_threads": 3, "torch_cuda": None, "environment": {}},
    cuda_devices=[],
    kernels={"native": "loaded", "triton": "no CUDA device"},
    paths={"CPU": "native", "CUDA": "the fallback", "others": "the fallback"},
    probe="not built",
    machine=None,
    ceilings=[],
)


def gpu_form(op: str, failure: str | None = None) -> dict:
    numbers = {"error": 1.3e-7, "allowed": 7.6e-6, "seconds": 2.51}
    return {"device": "Some GPU [bold]", "op": op, "form": "C=64, features=float32", "failure": failure} | numbers


GPU_CHECK = {"gpu_check": "done", "gpu_kernels": [gpu_form("rdm"), gpu_form("point_gather")]}


@pytest.fixture
def run():
    def invoke(*arguments: str):
        return CliRunner().invoke(app, arguments, prog_name="v1fast")

    return invoke


@pytest.fixture
def examined(monkeypatch) -> list[bool]:
    """The ``quick`` of each examination, none of which measures anything."""
    calls = []

    def examine(quick: bool = False, gpu: bool = False, say: Callable[[str], None] = print) -> doctor.Report:
        calls.append(quick)
        return dataclasses.replace(REPORT, **GPU_CHECK) if gpu else REPORT

    monkeypatch.setattr(doctor, "examine", examine)
    return calls


@pytest.fixture
def demos(monkeypatch) -> list[dict]:
    """The arguments of each demo, none of which runs."""
    calls = []
    monkeypatch.delenv("V1FAST_REAL_DATA", raising=False)
    stand_in = SimpleNamespace(demonstrate=lambda **options: calls.append(options))
    monkeypatch.setitem(sys.modules, "v1fast.cli._demonstration", stand_in)
    return calls


def test_version(run):
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"v1fast {__version__}\n")


def test_help_names_the_commands(run):
    output = run("--help").output
    assert "doctor" in output
    assert "demo" in output


def test_doctor_prints_tables(run, examined):
    result = run("doctor")
    assert result.exit_code == 0
    for text in ("9.8.7", "not installed", "An OS [bold]", "no CUDA device", "not built"):
        assert text in result.output
    assert examined == [False]


def test_doctor_prints_json(run, examined):
    result = run("doctor", "--json", "--quick")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads(REPORT.to_json())
    assert examined == [True]


@pytest.mark.parametrize(("failure", "code"), [(None, 0), ("is wrong: result 0 errs by 0.5", 1)])
def test_doctor_prints_the_check_of_the_gpu(run, examined, monkeypatch, failure, code):
    monkeypatch.setitem(GPU_CHECK, "gpu_kernels", [gpu_form("rdm", failure), gpu_form("point_gather")])
    monkeypatch.setenv("COLUMNS", "250")
    result = run("doctor", "--gpu")
    assert result.exit_code == code
    for text in (f"on Some GPU [bold]: {code} of 2 fail", "C=64, features=float32", "1.3e-07", failure or "agrees"):
        assert text in result.output
    result = run("doctor", "--gpu", "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout)["gpu_kernels"] == GPU_CHECK["gpu_kernels"]


def test_doctor_says_why_no_gpu_kernel_was_checked(run, examined, monkeypatch):
    monkeypatch.setitem(GPU_CHECK, "gpu_check", "torch sees no CUDA device")
    monkeypatch.setitem(GPU_CHECK, "gpu_kernels", [])
    result = run("doctor", "--gpu")
    assert result.exit_code == 1
    assert "none was checked" in result.output
    assert "torch sees no CUDA device" in result.output


def test_demo_defaults(run, demos):
    assert run("demo").exit_code == 0
    assert demos == [{"out": Path("out/demo"), "real_data": None, "quick": False}]


def test_demo_options(run, demos, tmp_path):
    out, data = tmp_path / "out", tmp_path / "data"
    data.mkdir()
    assert run("demo", "--out", str(out), "--real-data", str(data), "--quick").exit_code == 0
    assert demos == [{"out": out, "real_data": data, "quick": True}]


def test_demo_finds_the_data_by_the_environment(run, demos, tmp_path, monkeypatch):
    monkeypatch.setenv("V1FAST_REAL_DATA", str(tmp_path))
    assert run("demo").exit_code == 0
    assert demos[0]["real_data"] == tmp_path


def test_demo_refuses_data_that_is_not_there(run, demos, tmp_path):
    result = run("demo", "--real-data", str(tmp_path / "nowhere"))
    assert result.exit_code == 2
    assert "nowhere" in result.stderr.replace("\n", "")
    assert demos == []


@pytest.mark.parametrize("module", ["matplotlib", "skimage"])
def test_demo_without_its_extra(run, demos, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    result = run("demo")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert module in result.stderr
    assert 'pip install "v1fast[demo]"' in result.stderr
    assert demos == []


def forget_the_command_line(monkeypatch):
    """The next import of it is the first."""
    for name in [name for name in sys.modules if f"{name}.".startswith("v1fast.cli.")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_command_line_without_its_extra(monkeypatch, module):
    for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    forget_the_command_line(monkeypatch)
    with pytest.raises(SystemExit) as caught:
        main()
    # a string as the code: the interpreter prints it to stderr and exits with 1
    assert caught.value.code == 'v1fast: the command line needs the "cli" extra: pip install "v1fast[cli]"'


def test_a_missing_module_of_another_kind_is_not_hidden(monkeypatch):
    monkeypatch.setitem(sys.modules, "v1fast._version", None)
    forget_the_command_line(monkeypatch)
    with pytest.raises(ModuleNotFoundError, match=r"v1fast\._version"):
        main()


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "v1fast", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"v1fast {__version__}\n"


# Whatever goes wrong ends in one line ----------------------------------------------------------------------------


def ends_in_one_line(result, *said, code=None):
    """Of CliRunner or of subprocess."""
    exit_code = result.exit_code if hasattr(result, "exit_code") else result.returncode
    assert exit_code != 0
    assert code in (None, exit_code)
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith("comparing")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("v1fast: ")
    for words in said:
        assert words in lines[0]


COMMANDS = {
    "doctor": ("v1fast.doctor", "examine"),
    "demo": ("v1fast.cli._demonstration", "demonstrate"),
    "bench": ("v1fast.benchmarks.run", "main"),
    "rsa": ("v1fast.rsa.report", "compare_files"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/summary.json"), 1, "out/summary.json: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "a.npy"), 1, "a.npy: Permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.npy"), 2, "a.npy: No such file"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "standard output: No space left"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "standard output is closed"),
        (MemoryError("Unable to allocate 7 TiB"), 1, "Unable to allocate 7 TiB"),
        (MemoryError(), 1, "MemoryError"),
        (ValueError("a.npy: two\nlines"), 2, "a.npy: two lines"),
        (ModuleNotFoundError("a.mat: this file needs h5py"), 1, "needs h5py"),
        (ValueError("\udcff.npy: undecodable"), 2, "udcff.npy"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=repr,
)
def test_errors_end_in_one_line(run, monkeypatch, command, error, code, said):
    pytest.importorskip("matplotlib")
    monkeypatch.delenv("V1FAST_REAL_DATA", raising=False)

    def fail(*_, **__):
        raise error

    module, name = COMMANDS[command]
    monkeypatch.setattr(importlib.import_module(module), name, fail)
    ends_in_one_line(run(command, *(["a.npy"] if command == "rsa" else [])), said, code=code)


def own_errors():
    """The classes of exceptions that v1fast defines."""
    import v1fast

    folder = Path(v1fast.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            bases = [ast.unparse(base) for base in getattr(node, "bases", ())]
            if isinstance(node, ast.ClassDef) and any(re.search(r"(Error|Exception|Unfit)s?$", base) for base in bases):
                yield ".".join(("v1fast", *path.relative_to(folder).with_suffix("").parts)), node.name


@pytest.mark.parametrize(("module", "name"), list(own_errors()))
def test_errors_of_its_own_end_in_one_line(run, monkeypatch, module, name):
    """Whichever command meets one: their messages say what a user can do."""
    error = getattr(pytest.importorskip(module), name)

    def fail(*_, **__):
        raise error.__new__(error, "what happened: what to do")  # whatever its constructor takes

    monkeypatch.setattr(doctor, "examine", fail)
    ends_in_one_line(run("doctor"), "what happened: what to do", code=1 if issubclass(error, OSError) else 2)


def test_an_error_of_the_program_is_not_hidden(run, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a fault")

    monkeypatch.setattr(doctor, "examine", fail)
    assert isinstance(run("doctor").exception, RuntimeError)


def test_a_note_of_an_interruption_is_passed_on(run, monkeypatch):
    def interrupt(*_, **__):
        error = KeyboardInterrupt()
        error.add_note("x.npy is unfinished; the same call goes on from here")
        raise error

    monkeypatch.setattr(doctor, "examine", interrupt)
    ends_in_one_line(run("doctor"), "interrupted; x.npy is unfinished; the same call goes on", code=130)


def program(*arguments: str, **options):
    environment = {key: value for key, value in os.environ.items() if key != "V1FAST_REAL_DATA"}
    command = [sys.executable, "-m", "v1fast", *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment, timeout=300, **options)


@pytest.fixture
def systems(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((12, 30)))
    np.save(tmp_path / "b.npy", np.random.default_rng(1).random((12, 30)))
    return tmp_path / "a.npy", tmp_path / "b.npy"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="wants Linux")
def test_nobody_reads_what_is_printed(systems, tmp_path):
    pytest.importorskip("matplotlib")
    reader, writer = os.pipe()
    os.close(reader)
    result = program("rsa", *systems, "--out", tmp_path / "out", stdout=writer)
    os.close(writer)
    ends_in_one_line(result, "standard output is closed")
    assert set(json.loads((tmp_path / "out" / "summary.json").read_text())["systems"]) == {"a", "b"}
    with open("/dev/full", "w") as full:
        result = program("doctor", "--json", "--quick", stdout=full)
    ends_in_one_line(result, "standard output: No space left on device")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="wants Linux")
def test_a_file_that_cannot_grow(run, systems, tmp_path):
    """As on a full disk, the write fails in its midst."""
    pytest.importorskip("matplotlib")
    resource = pytest.importorskip("resource")
    np.save(systems[0], np.random.default_rng(0).random((300, 30)))  # a matrix of 350 kB

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    result = program("rsa", systems[0], "--out", tmp_path / "out", stdout=subprocess.DEVNULL, preexec_fn=limit)
    ends_in_one_line(result, "a_rdm.npy: File too large")
    assert run("rsa", str(systems[0]), "--out", str(tmp_path / "out")).exit_code == 0
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
