"""The doctor reports every part of an installation, and goes on when one of them is broken."""

import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from v1fast import _build, doctor, ops
from v1fast._version import __version__
from v1fast.ops import _load

LEVELS = ("L1", "L2", "L3", "memory")


@pytest.fixture(scope="module")
def probe() -> ModuleType:
    try:
        return importlib.import_module("v1fast._probe")
    except ModuleNotFoundError:
        if os.environ.get("V1FAST_REQUIRE_NATIVE") == "1":
            raise
        pytest.skip("v1fast._probe is not built")


@pytest.fixture(scope="module")
def report() -> doctor.Report:
    return doctor.examine(quick=True)


@pytest.fixture
def no_probe(monkeypatch):
    monkeypatch.setitem(sys.modules, "v1fast._probe", None)


def test_json_holds_the_whole_report(report):
    found = json.loads(report.to_json())
    assert set(found) == {"versions", "system", "cuda_devices", "kernels", "probe", "machine", "ceilings"}
    assert found["versions"] == report.versions
    assert found["ceilings"] == report.ceilings


def test_versions(report):
    assert report.versions["v1fast"] == __version__
    assert report.versions["python"] == platform.python_version()
    assert report.versions["torch"] == torch.__version__
    assert report.versions["numpy"] == metadata.version("numpy")


def test_absent_package(monkeypatch, no_probe):
    def version(package: str) -> str:
        if package == "rich":
            raise metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    report = doctor.examine()
    assert report.versions["rich"] is None
    assert report.versions["typer"] == "1.0"
    assert "not installed" in doctor.as_text(report)


def test_system(report, monkeypatch, no_probe):
    assert report.system["torch_threads"] == torch.get_num_threads()
    assert report.system["torch_cuda"] == torch.version.cuda
    monkeypatch.setenv("V1FAST_KERNELS", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment = doctor.examine().system["environment"]
    assert environment["V1FAST_KERNELS"] == ""
    assert "OMP_NUM_THREADS" not in environment


def test_kernels_are_those_that_the_ops_loaded(report):
    assert report.kernels == ops.loaded
    assert all(state in doctor.as_text(report) for state in ops.loaded.values())


CPU_BUILD, CUDA_BUILD = "torch.version.cuda = torch.version.hip = None", "torch.version.cuda = '13.0'"


@pytest.mark.parametrize(
    ("build", "kernels", "loads"),
    [
        (CPU_BUILD, None, False),
        (CPU_BUILD, "native,triton", True),
        (CPU_BUILD, "native", False),
        (CUDA_BUILD, None, True),
    ],
)
def test_triton_is_imported_where_its_kernels_can_be_used_or_are_asked_for(build, kernels, loads):
    pytest.importorskip("triton")
    show = "print('triton' in sys.modules, v1fast.ops.loaded['triton'])"
    code = f"import sys, torch; {build}; import v1fast; {show}"
    environment = {name: value for name, value in os.environ.items() if name != "V1FAST_KERNELS"}
    environment |= {} if kernels is None else {"V1FAST_KERNELS": kernels}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    imported, state = done.stdout.strip().split(" ", 1)
    assert imported == str(loads)
    assert (state == "loaded") == loads
    if kernels is None and not loads:
        assert "built for the CPU alone" in state


def test_cuda_devices(monkeypatch, no_probe):
    def properties(index: int) -> SimpleNamespace:
        if index == 1:
            raise RuntimeError("device is lost")
        return SimpleNamespace(name="Some GPU", major=9, minor=0, total_memory=139 << 30)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    report = doctor.examine()
    assert report.cuda_devices[0] == {"name": "Some GPU", "capability": "9.0", "memory_bytes": 139 << 30}
    assert report.cuda_devices[1]["name"] == "unusable: device is lost"
    text = doctor.as_text(report)
    assert "Some GPU, capability 9.0, 139 GiB" in text
    assert "unusable: device is lost" in text


def test_without_the_probe(no_probe):
    report = doctor.examine()
    assert report.probe.startswith("not built")
    assert report.machine is None
    assert report.ceilings == []
    assert report.probe in doctor.as_text(report)
    json.loads(report.to_json())


EXTENSIONS = ("v1fast._C", "v1fast._probe")
MODULES = {"v1fast._C": ["the module torch"], "v1fast._probe": []}  # that a build needs


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """What can be found where v1fast runs: everything that a build needs, and no note of one."""
    found = {"modules": {"torch"}, "programs": {"g++"}, "noted": {}}

    def note(extension, why):
        found["noted"][extension] = why
        (tmp_path / "left_out.json").write_text(json.dumps(found["noted"]))

    monkeypatch.setattr(_build, "_LEFT_OUT", tmp_path / "left_out.json")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in found["modules"] else None)
    monkeypatch.setattr("shutil.which", lambda name: name if name in found["programs"] else None)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("CXX", raising=False)
    return SimpleNamespace(**found, note=note)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_what_is_missing_is_named(environment, extension, monkeypatch):
    assert _build.why_absent(extension) == "not built: nothing that it needs is missing here now; install v1fast again"
    environment.modules.clear()
    if MODULES[extension]:
        why = _build.why_absent(extension)
        assert "the module torch, not found here" in why
        assert "compiler" not in why
    environment.programs.clear()
    lacking = " and ".join([*MODULES[extension], "a C++20 compiler (g++ or c++ or clang++)"])
    assert f"needs {lacking}, not found here" in _build.why_absent(extension)
    environment.modules.add("torch")
    monkeypatch.setenv("CXX", "icpx -O2")
    assert "needs a C++20 compiler (icpx), not found here" in _build.why_absent(extension)
    environment.programs.add("icpx")
    assert "nothing" in _build.why_absent(extension)
    environment.note(extension, "No module named 'spam'")
    assert _build.why_absent(extension) == "not built when v1fast was installed: No module named 'spam'"
    monkeypatch.setattr(sys, "platform", "win32")
    assert "it is for Linux and macOS, and this is" in _build.why_absent(extension)


def test_the_reports_say_what_is_missing(environment, no_probe, monkeypatch):
    environment.note("v1fast._probe", "command 'g++' failed")
    environment.note("v1fast._C", "No module named 'torch'")
    assert doctor.examine().probe == "not built when v1fast was installed: command 'g++' failed"
    monkeypatch.setitem(sys.modules, "v1fast._C", None)
    assert _load._load_native() == "not built when v1fast was installed: No module named 'torch'"


@pytest.mark.parametrize(("hidden", "reason"), [((), "no/such/compiler"), (("torch",), "No module named 'torch'")])
def test_a_build_notes_what_it_left_out(tmp_path, hidden, reason):
    """A real one, of a copy, without a compiler and without some modules."""
    source = Path(__file__).parents[1]
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(source / name, tmp_path)
    for folder in ("csrc", "v1fast", "kernels", "benchmarks"):
        shutil.copytree(source / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "hidden").mkdir()
    for name in hidden:
        (tmp_path / "hidden" / f"{name}.py").write_text(f"raise ImportError(\"No module named '{name}'\")")
    environment = os.environ | {"CC": "no/such/compiler", "CXX": "no/such/compiler", "PYTHONPATH": "hidden"}
    environment.pop("V1FAST_REQUIRE_NATIVE", None)
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", "built"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    noted = json.loads((tmp_path / "built" / "v1fast" / "_left_out.json").read_text())
    assert set(noted) == set(EXTENSIONS)
    assert reason in noted["v1fast._C"]
    assert "no/such/compiler" in noted["v1fast._probe"]


def test_probe_that_does_not_load(monkeypatch):
    def import_module(name: str) -> ModuleType:
        raise ImportError("undefined symbol: f")

    monkeypatch.setattr(importlib, "import_module", import_module)
    assert doctor.examine().probe == "does not load: undefined symbol: f"


def test_probe_that_cannot_measure(monkeypatch, probe):
    def ceilings(threads: int, quick: bool) -> dict:
        raise RuntimeError("Resource temporarily unavailable")

    monkeypatch.setattr(probe, "ceilings", ceilings)
    report = doctor.examine()
    assert "Resource temporarily unavailable" in report.probe
    assert report.machine == probe.facts()
    assert report.probe in doctor.as_text(report)


def test_text_is_aligned(report):
    for table in doctor.tables(report):
        assert all(len(row) == len(table.columns) for row in table.rows)
    lines = doctor.as_text(report).splitlines()
    versions = lines[lines.index("Versions") + 1 : lines.index("System") - 1]
    column = versions[0].index("version")
    assert all(line[column - 1] == " " and line[column] != " " for line in versions)


@pytest.mark.parametrize(
    ("count", "text"), [(512, "512 B"), (32768, "32 KiB"), (1 << 20, "1 MiB"), (3 << 29, "1.5 GiB")]
)
def test_sizes_are_readable(count, text):
    assert doctor._size(count) == text


def test_ceilings_are_for_one_thread_and_for_all(report, probe):
    assert report.probe == "loaded"
    assert report.machine == probe.facts()
    cores = report.machine["logical_cores"]
    assert [ceiling["threads"] for ceiling in report.ceilings] == sorted({1, cores})


def test_probe_facts(probe):
    facts = probe.facts()
    assert facts["logical_cores"] == len(os.sched_getaffinity(0))
    assert facts["cpu"]
    known = [facts["caches"][level]["bytes"] for level in LEVELS[:3] if facts["caches"][level]]
    assert known == sorted(known)
    assert all(4096 <= size <= 4 << 30 for size in known)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of an x86 processor")
def test_probe_names_the_instruction_set(probe):
    text = Path("/proc/cpuinfo").read_text()
    flags = next(line for line in text.splitlines() if line.startswith("flags")).split()
    expected = "avx2+fma" if {"avx2", "fma", "bmi2", "f16c"} <= set(flags) else "baseline"
    if {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= set(flags):
        expected = "avx512"
    assert probe.facts()["isa"] == expected


def test_probe_counts_the_cores_that_it_may_use(probe):
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert probe.facts()["logical_cores"] == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_probe_working_sets_fit_their_caches(report, probe):
    for ceiling in report.ceilings:
        measured = [level for level in LEVELS if ceiling[level]]
        sizes = [ceiling[level]["bytes_per_thread"] for level in measured]
        assert sizes == sorted(sizes)
        assert measured[-1] == "memory"
        assert sizes[-1] * ceiling["threads"] >= 64 << 20
        for level, size in zip(measured[:-1], sizes, strict=False):
            assert size < report.machine["caches"][level]["bytes"]


def test_probe_rates_are_sane(report, probe):
    for ceiling in report.ceilings:
        rates = [ceiling["fma_gflops"]]
        rates += [ceiling[level][kind] for level in LEVELS if ceiling[level] for kind in ("read_gbs", "update_gbs")]
        assert all(rate["best"] >= rate["median"] > 0 for rate in rates)
    alone = report.ceilings[0]
    assert 1 < alone["fma_gflops"]["best"] < 1000
    assert 1 < alone["memory"]["read_gbs"]["best"] < 1000
    if alone["L1"]:
        assert alone["L1"]["read_gbs"]["best"] > alone["memory"]["read_gbs"]["best"]


@pytest.mark.parametrize("threads", [0, -1, 1 << 20])
def test_probe_rejects_thread_counts(probe, threads):
    with pytest.raises(ValueError, match=rf"threads: want 1 to \d+, the logical cores, got {threads}"):
        probe.ceilings(threads=threads)


def test_probe_lets_other_python_threads_run(probe):
    entered, left = threading.Event(), threading.Event()

    def measure() -> None:
        entered.set()
        probe.ceilings(quick=True)
        left.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # seconds: from here on a thread runs until it gives up the interpreter by itself
    try:
        measuring = threading.Thread(target=measure)
        measuring.start()
        entered.wait()
        assert not left.is_set()
    finally:
        sys.setswitchinterval(interval)
        measuring.join()
