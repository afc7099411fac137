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

import new_processes
import pytest
import torch

from v1fast import _build, _torch, doctor, ops
from v1fast._version import __version__
from v1fast.ops import _gpu_examination, _load

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
    parts = {"versions", "system", "cuda_devices", "kernels", "paths", "probe", "machine", "ceilings"}
    assert set(found) == parts | {"gpu_check", "gpu_kernels"}
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


@pytest.mark.parametrize(
    ("kernels", "cpu"),
    [
        ("fallback", "the fallback, on torch's own kernels; native: left out by the environment variable"),
        ("", "the reference; native: left out by the environment variable"),
        ("native", "the kernels of the set native"),
    ],
)
def test_what_runs_is_said_with_the_reason(kernels, cpu):
    if kernels == "native" and ops.loaded["native"] != "loaded":
        pytest.skip("the compiled kernels are not loaded")
    code = "import v1fast; print(*v1fast.ops.paths.values(), sep='\\n')"
    (said,) = new_processes.run([code], os.environ | {"V1FAST_KERNELS": kernels})
    first, second, third = said.split("\n")
    assert first.startswith(cpu)
    default = "the fallback, on torch's own kernels" if kernels == "fallback" else "the reference"
    assert second.startswith(f"{default}; triton: ")
    assert third == default


new_enough_for_triton = pytest.mark.skipif(
    _build.release(torch.__version__) < _torch.LEAST_FOR_TRITON["torch"], reason="older torch never loads the kernels"
)
CPU_BUILD, CUDA_BUILD = "torch.version.cuda = torch.version.hip = None", "torch.version.cuda = '13.0'"


BUILDS = [  # of torch; V1FAST_KERNELS; whether Triton is imported
    (CPU_BUILD, None, False),
    (CPU_BUILD, "native,triton", True),
    (CPU_BUILD, "native", False),
    (CUDA_BUILD, None, True),
]


@new_enough_for_triton
def test_triton_is_imported_where_its_kernels_can_be_used_or_are_asked_for():
    pytest.importorskip("triton")
    show = "print('triton' in sys.modules, v1fast.ops.loaded['triton'])"
    environment = {name: value for name, value in os.environ.items() if name != "V1FAST_KERNELS"}
    chosen = ["" if kernels is None else f"os.environ['V1FAST_KERNELS'] = {kernels!r}" for _, kernels, _ in BUILDS]
    codes = [
        f"import os, sys, torch; {build}\n{choice}\nimport v1fast; {show}"
        for (build, *_), choice in zip(BUILDS, chosen, strict=True)
    ]
    for (_, kernels, loads), said in zip(BUILDS, new_processes.run(codes, environment), strict=True):
        imported, state = said.split(" ", 1)
        assert imported == str(loads), (kernels, said)
        assert state.startswith("loaded") == loads  # with an older Triton: "loaded, but for ..."
        if kernels is None and not loads:
            assert "built for the CPU alone" in state


FROM_A_TREE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path.insert(0, {tree!r})
"""  # v1fast is that of the folder: nothing is installed

WITHOUT_TRITON = """
import importlib, sys
sys.modules["triton"] = None

def half_imported():
    return [name for name in sys.modules if name.startswith("v1fast.kernels")]

from v1fast.ops import _load, loaded
assert loaded["triton"] == "not available: no module named 'triton'", loaded
assert not half_imported(), half_imported()
for _ in range(2):
    try:
        importlib.import_module("v1fast.kernels")
    except ModuleNotFoundError as error:
        assert error.name == "triton", repr(error)
    else:
        raise AssertionError("imported")
    assert not half_imported(), half_imported()
assert _load._load_triton() == loaded["triton"]
"""


@pytest.fixture
def source_tree(tmp_path):
    for folder in ("v1fast", "kernels", "benchmarks"):
        (tmp_path / folder).symlink_to(Path(__file__).parents[1] / folder)
    return tmp_path


@new_enough_for_triton
@pytest.mark.parametrize("where", ["installed", "tree"])
def test_an_absent_triton_leaves_nothing_half_imported(where, source_tree):
    tree = FROM_A_TREE.format(tree=str(source_tree)) if where == "tree" else ""
    new_processes.run([tree + WITHOUT_TRITON], os.environ | {"V1FAST_KERNELS": "native,triton"})


def test_a_source_tree_has_kernels_and_benchmarks(source_tree):
    code = """
import v1fast.benchmarks
print(v1fast.benchmarks.__file__)
try:
    from v1fast import kernels
    print(kernels.__file__)
except ImportError as error:  # none, or too old
    print(error.name)
"""
    tree = FROM_A_TREE.format(tree=str(source_tree))
    (said,) = new_processes.run([tree + code], os.environ | {"V1FAST_KERNELS": ""})
    benchmarks, kernels = said.splitlines()
    assert Path(benchmarks).parts[-2:] == ("benchmarks", "__init__.py")
    assert kernels == "triton" or Path(kernels).parts[-2:] == ("kernels", "__init__.py")


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


def test_the_gpu_is_checked_where_it_can_be(monkeypatch, no_probe):
    assert doctor.examine().gpu_check == "not asked for"
    assert "GPU kernels" not in doctor.as_text(doctor.examine())
    monkeypatch.setitem(ops.loaded, "triton", "not available: no module named 'triton'")
    assert doctor.examine(gpu=True).gpu_check == "the GPU kernels are not available: no module named 'triton'"
    monkeypatch.setitem(ops.loaded, "triton", "loaded")
    report = doctor.examine(gpu=True)
    assert report.gpu_check == "torch sees no CUDA device"
    assert "torch sees no CUDA device" in doctor.as_text(report)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    form = {"device": "A", "op": "rdm", "form": "x", "failure": None, "error": 1e-7, "allowed": 1e-5, "seconds": 1.0}
    others = [form | {"op": "cross_rdm", "failure": "is wrong", "error": None}, form | {"device": "B"}]
    monkeypatch.setattr(_gpu_examination, "examine", lambda say: iter([form, *others]))
    report = doctor.examine(gpu=True)
    assert (report.gpu_check, report.gpu_failures) == ("done", 1)
    text = doctor.as_text(report)
    assert "on A: 1 of 2 fail" in text
    assert "on B: 0 of 1 fail" in text
    assert "is wrong  -" in text

    def end(say):
        raise RuntimeError("before it checks anything")
        yield

    monkeypatch.setattr(_gpu_examination, "examine", end)
    assert doctor.examine(gpu=True).gpu_check == "before it checks anything"


def test_what_is_said_of_a_gpu_is_true(monkeypatch):
    """No kernel has run on one."""
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda op, key: True)
    found = _load.paths(ops.loaded)
    assert "run on no GPU yet" in found["CUDA"]
    assert "V1FAST_GPU_CHECK turns the check of their first use off" in found["CUDA"]
    monkeypatch.delenv("V1FAST_GPU_CHECK")
    assert "each is checked at its first use" in _load.paths(ops.loaded)["CUDA"]
    assert "GPU" not in found["CPU"]


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
    monkeypatch.setattr(_build, "_FOLDER", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in found["modules"] else None)
    monkeypatch.setattr("shutil.which", lambda name: name if name in found["programs"] else None)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("CXX", raising=False)
    return SimpleNamespace(**found, note=note, folder=tmp_path)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_what_is_missing_is_named(environment, extension, monkeypatch):
    assert (
        _build.why_absent(extension, "2.13.0")
        == "not built: nothing that it needs is missing here now; install v1fast again"
    )
    environment.modules.clear()
    if MODULES[extension]:
        why = _build.why_absent(extension, "2.13.0")
        assert "the module torch, not found here" in why
        assert "compiler" not in why
    environment.programs.clear()
    lacking = " and ".join([*MODULES[extension], "a C++20 compiler (g++ or c++ or clang++)"])
    assert f"needs {lacking}, not found here" in _build.why_absent(extension, "2.13.0")
    environment.modules.add("torch")
    monkeypatch.setenv("CXX", "icpx -O2")
    assert "needs a C++20 compiler (icpx), not found here" in _build.why_absent(extension, "2.13.0")
    environment.programs.add("icpx")
    assert "nothing" in _build.why_absent(extension, "2.13.0")
    environment.note(extension, "No module named 'spam'")
    assert _build.why_absent(extension, "2.13.0") == "not built when v1fast was installed: No module named 'spam'"
    monkeypatch.setattr(sys, "platform", "win32")
    assert "it is for Linux and macOS, and this is" in _build.why_absent(extension, "2.13.0")


def test_the_reports_say_what_is_missing(environment, no_probe, monkeypatch):
    environment.note("v1fast._probe", "command 'g++' failed")
    environment.note("v1fast._C", "No module named 'torch'")
    assert doctor.examine().probe == "not built when v1fast was installed: command 'g++' failed"
    monkeypatch.setitem(sys.modules, _build.ops_binary(torch.__version__), None)
    why = "not built when v1fast was installed: No module named 'torch'"
    with pytest.warns(RuntimeWarning, match=f"runs without its kernels for the CPU, slower: {why}"):
        assert _load._load_native() == why


@pytest.mark.parametrize(
    ("version", "binary"),
    [
        ("2.5.1+cu124", "v1fast._C_torch2_5"),
        ("2.9.1", "v1fast._C_torch2_9"),
        ("2.10.0a0+git1234", "v1fast._C"),
        ("2.13.0+cpu", "v1fast._C"),
        ("3.0.0", "v1fast._C"),
    ],
)
def test_each_torch_has_its_binary(version, binary):
    assert _build.ops_binary(version) == binary


@pytest.mark.parametrize(
    ("files", "version", "reason"),
    [
        (["_C.abi3.so"], "2.8.0", "_C.abi3.so for torch 2.10 or later is there, and this is torch 2.8.0"),
        (["_C_torch2_8.abi3.so"], "2.13.0", "_C_torch2_8.abi3.so for torch 2.8 is there, and this is torch 2.13.0"),
        (
            ["_C.abi3.so", "_C_torch2_5.abi3.so"],
            "2.8.0",
            "_C.abi3.so for torch 2.10 or later and _C_torch2_5.abi3.so for torch 2.5 is there",
        ),
        (["_C.cpython-310-x86_64-linux-gnu.so"], "2.13.0", "_C.cpython-310-x86_64-linux-gnu.so is for another Python"),
        (["_C_torch2_8.cpython-39-darwin.so"], "2.8.0", "_C_torch2_8.cpython-39-darwin.so is for another Python"),
    ],
)
def test_a_binary_that_does_not_fit_is_named(environment, monkeypatch, files, version, reason):
    for name in files:
        (environment.folder / name).touch()
    why = _build.why_absent("v1fast._C", version)
    assert why.startswith("does not fit: ")
    assert reason in why
    assert "not built" in _build.why_absent("v1fast._probe", version)
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setitem(sys.modules, _build.ops_binary(version), None)
    with pytest.warns(RuntimeWarning, match="runs without its kernels for the CPU, slower: does not fit"):
        assert _load._load_native() == why


def test_a_probe_for_another_python_is_named(environment):
    (environment.folder / "_probe.cpython-310-x86_64-linux-gnu.so").touch()
    why = _build.why_absent("v1fast._probe", "2.13.0")
    assert why.startswith("does not fit: _probe.cpython-310-x86_64-linux-gnu.so is for another Python than")


def in_a_copy(folder, code):
    """Runs code with a copy of the package that has no binaries, and returns what it says."""
    source = Path(__file__).parents[1]
    for name in ("v1fast", "kernels"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "_left_out.json")
        shutil.copytree(source / name, folder / name, ignore=ignored, dirs_exist_ok=True)
    tree = FROM_A_TREE.format(tree=str(folder))
    (said,) = new_processes.run([tree + code], os.environ | {"V1FAST_KERNELS": "native"})
    return said


WORKS = (
    "import torch, v1fast; print(v1fast.ops.loaded['native']); print(v1fast.functional.rdm(torch.eye(3)).isnan().sum())"
)


@pytest.mark.parametrize("contents", [b"", b"no binary of any kind", None])
def test_a_broken_binary_does_not_keep_v1fast_from_running(tmp_path, contents):
    """None: a library that lacks a symbol, as one built for a later torch."""
    name = _build.ops_binary(torch.__version__).rpartition(".")[2]
    (tmp_path / "v1fast").mkdir()
    binary = tmp_path / "v1fast" / f"{name}.abi3.so"
    if contents is None:
        if shutil.which("gcc") is None:
            pytest.skip("makes a library with gcc")
        (tmp_path / "empty.c").write_text(
            f"void torch_of_2030(void); void* PyInit_{name}(void) {{ torch_of_2030(); return 0; }}"
        )
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", binary, tmp_path / "empty.c"], check=True)
    else:
        binary.write_bytes(contents)
    said = in_a_copy(tmp_path, WORKS)
    state, count = said.splitlines()[-2:]
    assert state.startswith("does not load: ")
    assert ("torch_of_2030" in state) == (contents is None)
    assert count == "tensor(0)"
    assert said.count("RuntimeWarning: v1fast runs without its kernels for the CPU, slower: does not load") == 1


def test_a_source_tree_warns_of_nothing(tmp_path):
    said = in_a_copy(tmp_path, WORKS)
    assert said.startswith("not built: ")
    assert "Warning" not in said


@pytest.mark.parametrize(
    ("torch_version", "triton_version", "reason"),
    [
        ("2.7.1", "3.4.0", "the kernels need torch 2.8 or later, and this is 2.7.1"),
        ("2.8.0", "3.3.1", "the kernels need triton 3.4 or later, and this is 3.3.1"),
        ("2.8.0", "3.4.0", None),
        ("2.13.0", None, None),
    ],
)
def test_triton_kernels_need_a_torch_and_a_triton(monkeypatch, torch_version, triton_version, reason):
    monkeypatch.setattr(torch, "__version__", torch_version)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    module = None if triton_version is None else SimpleNamespace(__version__=triton_version)
    monkeypatch.setitem(sys.modules, "triton", module)
    assert _torch.too_old_for_triton() == reason
    if reason:
        assert _load._load_triton() == f"not loaded: {reason}"


@pytest.mark.parametrize("version", ["3.4.0", "3.5.0", "3.9.0+git1"])
def test_the_report_says_what_an_old_triton_lacks(version):
    state = _load._loaded_with_triton(version)
    assert state.startswith("loaded")
    assert ("float64" in state) == (version == "3.4.0")


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
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert done.stderr.count("v1fast: no kernel was compiled: ") == 1
    assert "pip install --no-build-isolation v1fast" in done.stderr
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
