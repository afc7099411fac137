"""`make gpu-report`, rehearsed on a device that is none, and what it promises of its processes."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]
ON_FAKE_DEVICE = """
import fake_cuda
fake_cuda.install()
import gc
import json
import os
import sys
from pathlib import Path
import pytest
import torch
from fake_cuda import processes
out = Path(sys.argv[1])
"""
REPORT = """
import torch._dynamo  # once, not in each child
from v1fast.benchmarks.gpu_report import __main__

x = torch.ones(3, device="cuda")  # no backward pass here: its threads would not survive a fork
for refused in (lambda: x + torch.ones(3), lambda: torch.stack([x, torch.ones(3)]), x.numpy):
    with pytest.raises((RuntimeError, TypeError)):
        refused()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    doubled = 2 * x
    drawn = torch.rand(5, device="cuda")
    for refused in (lambda: x[0].item(), lambda: x.nonzero(), lambda: torch.tensor([1.0]).to("cuda"), x.tolist):
        with pytest.raises(RuntimeError, match="capturing"):
            refused()
before = drawn.clone()
x.fill_(4)
graph.replay()
assert doubled.tolist() == [8, 8, 8] and not drawn.equal(before)

processes.install()
gc.freeze()  # what is imported is never freed: no child need search it
sys.argv = ["gpu_report", str(out / "report"), "--quick", "--seconds", "560"]
assert __main__.main() == 0
"""
BENCH_AND_CRASHES = """
from v1fast.benchmarks import run
from v1fast.benchmarks.gpu_report import testing
from v1fast.benchmarks.gpu_report.record import Part

processes.install()
gc.freeze()
rows = run.main(out / "bench", ["tiny", "rdm-small"], ["v1fast", "eager-chain", "corrcoef"], "cuda", quick=True)
bench = [[row.provider, row.clock, row.status, row.milliseconds != {}] for row in rows]
(out / "bench.json").write_text(json.dumps(bench))

tests = str(out / "test_it.py")
testing.pytest_command = lambda *more: [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *more, tests]
testing.run_shares(Part(out / "crashes", "tests", 200.0), 2, "test")
"""
TESTS = """
import os
import pytest
import torch

def spoil():
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def test_0(): pass
def test_1(): assert 1 == 2, "a reason"
def test_2(): os.abort()
def test_3(): pytest.skip("no reason")
def test_4(): pass
def test_5():
    torch.cuda.synchronize = spoil
    assert 3 == 4
def test_6(): pass
def test_7(): pass
def test_8(): pass
"""
TOOLS = {
    "compute-sanitizer": "echo '========= ERROR SUMMARY: 0 errors'; echo '11 passed in 3.2s'",
    "ncu": """cat <<'END'
==PROF== Connected to process 1
"ID","Kernel Name","gpu__time_duration.sum","sm__throughput.avg.pct_of_peak_sustained_elapsed",\
"lts__throughput.avg.pct_of_peak_sustained_elapsed","dram__throughput.avg.pct_of_peak_sustained_elapsed",\
"sm__warps_active.avg.pct_of_peak_sustained_active","launch__registers_per_thread"
"","","ns","%","%","%","%","register/thread"
"0","forward_kernel","160,000","55.5","91.2","12.0","48.1","72"
END""",
}


def _module(name):
    return importlib.import_module(f"v1fast.benchmarks.gpu_report.{name}")


def on_fake_device(code, folder):
    """Return the folder of what one process has made that has the fake device, and whose children are forks of it."""
    (folder / "test_it.py").write_text(TESTS)
    tools = folder / "tools"
    tools.mkdir()
    for name, script in TOOLS.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "V1FAST_KERNELS": "triton,native,fallback",
        "TRITON_CACHE_DIR": str(Path(os.environ.get("V1FAST_EMULATOR_CACHE", folder)) / "triton"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # each child would import plugins for a second, which nothing needs
    }
    leave = "\nsys.stdout.flush()\nos._exit(0)\n"  # at once: to clean up takes a second
    command = [sys.executable, "-c", ON_FAKE_DEVICE + code + leave, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def benched(tmp_path_factory):
    return on_fake_device(BENCH_AND_CRASHES, tmp_path_factory.mktemp("bench"))


@pytest.mark.once
def test_crashes_end_no_more_than_their_test(benched):
    """Neither one that ends the process nor an error after which the device refuses everything."""
    found = json.loads((benched / "crashes" / "parts" / "tests.json").read_text())
    (row,) = found["rows"]
    assert row["counts"] == {"passed": 5, "failed": 2, "crashed": 1, "skipped": 1}
    messages = {each["test"].rpartition("::")[2]: each.get("message", "") for each in row["failures"]}
    assert messages.keys() == {"test_1", "test_2", "test_5"}
    assert "a reason" in messages["test_1"]
    assert found["missing"] == []


@pytest.mark.once
def test_bench_replays_graphs(benched):
    """What cannot be captured gets no time, and the reason."""
    rows = json.loads((benched / "bench.json").read_text())
    assert {name for name, *_ in rows} == {"v1fast", "eager-chain", "corrcoef"}
    for name, clock, status, timed in rows:
        assert clock == "cuda graph"
        assert timed == (name != "corrcoef")
        assert status == "measured" or (name == "corrcoef" and "called a synchronizing CUDA operation" in status)


@pytest.mark.once
def test_rehearsal_of_the_whole_report(tmp_path):
    out = on_fake_device(REPORT, tmp_path) / "report"
    found = json.loads((out / "report.json").read_text())
    for name, part in found["parts"].items():
        assert part["status"] == "done", (name, part)
        assert not part["missing"], (name, part["missing"])
        assert part["rows"] or name.startswith("compile "), name
    assert found["parts"]["tests"]["rows"][0]["counts"].keys() == {"passed"}
    timed = [row for name in ("readouts", "rdms", "tuned", "large") for row in found["parts"][name]["rows"]]
    for row in timed:
        clocks = ("events_us", "host_us") if row.get("provider") == "corrcoef" else ("graph_us", "events_us", "host_us")
        assert all(row[clock] > 0 for clock in clocks), row  # the host reads a value in corrcoef
        assert row["error"] < 1, row
    text = (out / "report.md").read_text()
    for title in ("Parts", "Tests", "Ceilings", "Kernels", "More than 2^31 elements", "With autotuning", "Counters"):
        assert f"## {title}\n" in text
    assert "| forward_kernel | 160 |" in text
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


def run_on_fake_device(selection, **environment):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "V1FAST_KERNELS": "triton,native,fallback",
        **environment,
    }
    options = ["-q", "-p", "fake_cuda", "-p", "no:cacheprovider", "-k", selection]
    command = [sys.executable, "-m", "pytest", "tests/test_cuda.py", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.slow
@pytest.mark.once
def test_the_tests_for_a_gpu_run_on_a_device_that_is_none():
    """The kernels of the CPU stand in for those of the GPU, but there is nothing of theirs to tune."""
    run_on_fake_device("not autotuning")


@pytest.mark.slow
@pytest.mark.once
def test_some_of_the_tests_for_a_gpu_run_on_the_emulator():
    selection = "(autotuning and scatter) or rdm_out or autocast or stream or (16_bits and correlation)"
    run_on_fake_device(selection, FAKE_CUDA="emulated")


def test_the_fake_device_is_built_for_each_torch(monkeypatch, tmp_path):
    """For each version, and in each place: the library is linked with those of one environment."""
    fake_cuda = importlib.import_module("fake_cuda")
    monkeypatch.setenv("V1FAST_EMULATOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fake_cuda.subprocess, "run", lambda command, check: Path(command[-3]).write_text(""))

    def built(environment, version):
        folder = tmp_path / environment
        folder.mkdir(exist_ok=True)
        (folder / "version.py").write_text(version)
        found = SimpleNamespace(origin=str(folder / "__init__.py"))
        monkeypatch.setattr(fake_cuda.importlib.util, "find_spec", lambda name: found)
        return fake_cuda._library()

    one = built("one", "2.13.0")
    assert built("one", "2.13.0") == one
    assert len({one, built("other", "2.13.0"), built("one", "2.12.0")}) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 3


# Processes ---------------------------------------------------------------------------------------------------------

SLEEPS = "import time\ntime.sleep(60)"
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(60)
"""


def job(name, code, seconds, *arguments):
    return _module("schedule").Job(name, seconds, lambda left: [sys.executable, "-c", code, *map(str, arguments)])


def is_running(pid):
    """A zombie is not: nobody has asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def schedule(monkeypatch):
    found = _module("schedule")
    monkeypatch.setattr(found, "GRACE", 0.3)
    return found


@pytest.mark.once
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_part_that_overruns_is_stopped_with_its_children(schedule, tmp_path):
    pid = tmp_path / "pid"
    stages = [[job("fine", "print('hello')", 20), job("stubborn", STUBBORN, 2, pid)], [job("next", "1 / 0", 20)]]
    changes = []
    schedule.run(stages, tmp_path, 60, lambda: changes.append(1), late=0)
    assert [[each.status for each in stage] for stage in stages] == [
        ["done", "stopped: its time was over"],
        ["failed: exit code 1"],
    ]
    assert (tmp_path / "fine.log").read_text() == "hello\n"
    assert len(changes) >= 3
    assert not is_running(int(pid.read_text()))


@pytest.mark.once
def test_a_part_goes_on_in_another_process_after_an_error_that_spoils_the_device(schedule, tmp_path):
    code = (
        "import os, sys\nprint('began')\nsys.exit(0 if os.path.exists(sys.argv[1]) else open(sys.argv[1], 'w') and 3)"
    )
    stages = [[job("spoilt", code, 20, tmp_path / "once"), job("never", "import sys\nsys.exit(3)", 1)]]
    schedule.run(stages, tmp_path, 60, lambda: None)
    assert [each.status for each in stages[0]] == ["done", "failed: exit code 3"]
    assert (tmp_path / "spoilt.log").read_text() == "began\nbegan\n"


@pytest.mark.once
def test_what_has_no_time_left_is_not_begun(schedule, tmp_path):
    stages = [[job("long", SLEEPS, 9)], [job("late", "", 20)]]
    schedule.run(stages, tmp_path, 1.0, lambda: None, late=0)
    assert stages[0][0].status == "stopped: its time was over"
    assert stages[1][0].status == "not begun: no time left"


@pytest.mark.once
def test_ctrl_c_stops_all_and_leaves_what_is_there(schedule, tmp_path):
    stages = [[job("first", "", 20), job("long", SLEEPS, 20)], [job("next", "", 20)]]

    def changed():
        if stages[0][0].status == "done" and stages[0][1].status == "running":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        schedule.run(stages, tmp_path, 60, changed)
    assert [each.status for stage in stages for each in stage] == [
        "done",
        "stopped: interrupted",
        "not begun: interrupted",
    ]
    assert stages[0][1].process.poll() is not None


# Parts -------------------------------------------------------------------------------------------------------------


def part_of(tmp_path, seconds=100.0, **more):
    return _module("record").Part(tmp_path, "a part", seconds, **more)


def test_a_part_goes_on_where_it_was(tmp_path):
    first = part_of(tmp_path)
    first.add(key="one", error=1.0)
    first.leave_out("two", "it crashed")
    again = part_of(tmp_path)
    assert [again.begin(what) for what in ("one", "two", "three")] == [False, False, True]
    again.add(key="three")
    assert [row["key"] for row in again.rows] == ["one", "three"]
    assert len(again.missing) == 1


def test_a_part_writes_what_it_has_as_it_comes(tmp_path):
    record = _module("record")
    times = iter([0.0, 1.0, 99.5, 99.5])
    part = part_of(tmp_path, now=lambda: next(times))
    part.add(name="one", error=float("nan"), more={"a": float("inf"), "b": [1.0]})
    with part.guarded("two"):
        raise ValueError("it is wrong\nand more")
    assert part.begin("three")
    assert not part.begin("four")
    assert record.read(tmp_path, "a part") == {
        "about": {},
        "rows": [{"name": "one", "error": None, "more": {"a": None, "b": [1.0]}}],
        "missing": [
            {"what": "two", "why": "ValueError: it is wrong"},
            {"what": "four", "why": "no time left"},
        ],
    }
    assert record.read(tmp_path, "another") == {"about": {}, "rows": [], "missing": []}


@pytest.mark.parametrize(
    ("tool", "says"),
    [
        (None, "ncu is not installed"),
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission", "the driver gives them to administrators"),
        ("==ERROR== something else", "ncu wrote none: ==ERROR== something else"),
    ],
)
def test_counters_that_are_not_to_be_had(tmp_path, monkeypatch, tool, says):
    monkeypatch.setenv("PATH", str(tmp_path))
    if tool:
        (tmp_path / "ncu").write_text(f"#!/bin/sh\necho '{tool}'\n")
        (tmp_path / "ncu").chmod(0o755)
    part = part_of(tmp_path)
    part.write()
    _module("counters").main(part)
    (missing,) = part.missing
    assert missing["why"].startswith(says)
    assert part.rows == []


def test_a_sanitizer_that_is_not_there_or_finds_something(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    part = part_of(tmp_path)
    _module("testing").sanitize(part, "memcheck")
    assert part.missing == [{"what": "memcheck", "why": "compute-sanitizer is not installed"}]
    (tmp_path / "compute-sanitizer").write_text("#!/bin/sh\necho '========= ERROR SUMMARY: 3 errors'\nexit 9\n")
    (tmp_path / "compute-sanitizer").chmod(0o755)
    _module("testing").sanitize(part, "memcheck")
    (row,) = part.rows
    assert row["code"] == 9
    assert row["summary"] == ["ERROR SUMMARY: 3 errors"]


def test_the_page_says_what_is_missing_and_why(tmp_path):
    page, plan = _module("page"), _module("plan")
    jobs = [each for stage in plan.jobs(tmp_path, False) for each in stage]
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rdms.log").write_text("Traceback\nRuntimeError: no kernel image\n")
    for each in jobs:
        each.status = "failed: exit code 1" if each.name == "rdms" else "not begun: interrupted"
    page.write(tmp_path, {"torch": "9"}, jobs)
    text = (tmp_path / "report.md").read_text()
    assert "- rdms failed: exit code 1: RuntimeError: no kernel image\n" in text
    assert "| Readouts | not begun: interrupted |" in text
    assert json.loads((tmp_path / "report.json").read_text())["parts"].keys() == {each.name for each in jobs}


def test_without_matplotlib_there_is_no_picture_and_the_page_says_so(tmp_path, monkeypatch):
    page, plan, record = _module("page"), _module("plan"), _module("record")
    row = {"case": "a", "dtype": "float32", "what": "forward", "provider": "v1fast", "graph_us": 2.0, "host_us": 1.0}
    record.write(tmp_path, "readouts", {"about": {}, "rows": [row], "missing": []})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page.draw(tmp_path)
    page.write(tmp_path, {}, [each for stage in plan.jobs(tmp_path, False) for each in stage])
    assert "- no picture: figures need matplotlib" in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "report.png").exists()


def test_the_parts_fit_ten_minutes():
    plan, stages = _module("plan"), _module("plan").STAGES
    assert sum(max(plan.KINDS[name].seconds for name in stage) for stage in stages) <= 580
    assert {name for stage in stages for name in stage} == plan.KINDS.keys() - {"counted"}


def test_without_a_device_a_part_says_so(tmp_path):
    command = [sys.executable, "-m", "v1fast.benchmarks.gpu_report", str(tmp_path), "--part", "large"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (2, "torch sees no CUDA device")
