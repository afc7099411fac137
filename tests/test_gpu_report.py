"""`make gpu-report`, rehearsed on a device that is none, and what it promises of its processes."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]
FAKE = """
import fake_cuda
fake_cuda.install()
import sys
import pytest
from fake_cuda import processes
from v1fast.benchmarks.gpu_report import __main__, testing
from v1fast.benchmarks.gpu_report.record import Part
processes.install()
"""
REHEARSAL = """
out = sys.argv[1]
sys.argv = ["gpu_report", out, "--quick", "--seconds", "560"]
assert __main__.main() == 0
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


def run_on_fake_device(program, *arguments, **environment):
    """Run the program in a new process that has the fake device, and whose children are forks of it."""
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("V1FAST_KERNELS")}
    more = {"V1FAST_KERNELS": "triton,native,fallback", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment}
    command = [sys.executable, "-c", FAKE + program, *map(str, arguments)]
    done = subprocess.run(command, env=kept | more, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.once
def test_rehearsal_of_the_whole_report(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in TOOLS.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    out = tmp_path / "report"
    cache = os.environ.get("V1FAST_EMULATOR_CACHE", tmp_path)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    run_on_fake_device(REHEARSAL, out, PATH=path, TRITON_CACHE_DIR=str(Path(cache) / "triton"))
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
