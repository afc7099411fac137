"""The command line: what each command prints, passes on, and says when its extra is absent."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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
    probe="not built",
    machine=None,
    ceilings=[],
)


@pytest.fixture
def run():
    def invoke(*arguments: str):
        return CliRunner().invoke(app, arguments, prog_name="v1fast")

    return invoke


@pytest.fixture
def examined(monkeypatch) -> list[bool]:
    """The ``quick`` of each examination, none of which measures anything."""
    calls = []

    def examine(quick: bool = False) -> doctor.Report:
        calls.append(quick)
        return REPORT

    monkeypatch.setattr(doctor, "examine", examine)
    return calls


@pytest.fixture
def demos(monkeypatch) -> list[dict]:
    """The arguments of each demo, none of which runs."""
    calls = []
    monkeypatch.delenv("V1FAST_REAL_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "v1fast.demo", SimpleNamespace(main=lambda **options: calls.append(options)))
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


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_command_line_without_its_extra(monkeypatch, module):
    for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "v1fast.cli", raising=False)
    with pytest.raises(SystemExit) as caught:
        main()
    # a string as the code: the interpreter prints it to stderr and exits with 1
    assert caught.value.code == 'v1fast: the command line needs the "cli" extra: pip install "v1fast[cli]"'


def test_a_missing_module_of_another_kind_is_not_hidden(monkeypatch):
    monkeypatch.setitem(sys.modules, "v1fast._version", None)
    monkeypatch.delitem(sys.modules, "v1fast.cli", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"v1fast\._version"):
        main()


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "v1fast", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"v1fast {__version__}\n"
