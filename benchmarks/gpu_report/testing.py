"""``tests/test_cuda.py`` in several processes, and a few of its tests under compute-sanitizer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from . import share
from .record import Part

ROOT = Path(__file__).parents[2]
PROCESSES = 10
COMPILES = "inductor"  # in the names of tests that torch.compile compiles
FEW = "plain-float32-float32-float32 or (test_rdm_matches_float64 and 113)"
QUICK = "test_every_op or constant_row or (test_rdm_matches_float64 and 113)"


def pytest_command(*more: str) -> list[str]:
    """Return a run of the tests on the device."""
    plain = ["-q", "-p", "no:cacheprovider", "-p", "no:benchmark", "--tb=short"]
    return [sys.executable, "-m", "pytest", str(ROOT / "tests" / "test_cuda.py"), *plain, *more]


def _environment(**more: str) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


class _Share:
    """One process of the tests, which is begun anew where a test has crashed it."""

    def __init__(self, part: Part, number: int, of: int, selection: str) -> None:
        stem = part.out / "parts" / f"{part.name}-{number}"
        self.outcomes, self.log = stem.with_suffix(".jsonl"), stem.with_suffix(".log")
        self.outcomes.parent.mkdir(parents=True, exist_ok=True)
        self.outcomes.unlink(missing_ok=True)
        self.environment = _environment(V1FAST_SHARE=f"{number}/{of}", V1FAST_OUTCOMES=str(self.outcomes))
        self.command = pytest_command("-p", "v1fast.benchmarks.gpu_report.share", "-k", selection)
        self.begin()

    def begin(self) -> None:
        self.known = len(share.read(self.outcomes))
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
            )

    def ended(self) -> bool:
        """Whether all is done: a crash that has brought no new outcome is not tried again."""
        code = self.process.poll()
        if code is None:
            return False
        if code in (0, 1, 5) or len(share.read(self.outcomes)) <= self.known:  # passed, failed, no tests
            return True
        self.begin()
        return False


def run_shares(part: Part, count: int, selection: str) -> None:
    """Run the selected tests in so many processes. The outcomes are written every few seconds."""
    shares = [_Share(part, number, count, selection) for number in range(count)]
    try:
        running = shares
        while running and part.left > 0:
            time.sleep(0.5)
            running = [each for each in running if not each.ended()]
            _summarise(part, shares)
    finally:
        stopped = [each for each in shares if each.process.poll() is None]
        for each in stopped:
            each.process.kill()
        _summarise(part, shares)
    for each in stopped:
        part.leave_out(f"the rest of process {each.outcomes.stem}", "no time left")
    for each in shares:
        if each not in stopped and each.process.returncode not in (0, 1, 5):
            part.leave_out(f"the rest of process {each.outcomes.stem}", _said(each.log, each.process.returncode))


def _summarise(part: Part, shares: list[_Share]) -> None:
    found = [entry for each in shares for entry in share.read(each.outcomes).values()]
    running = {each.process.poll() is None for each in shares}
    for entry in found:
        if entry["outcome"] == share.STARTED and running == {False}:
            entry["outcome"] = share.CRASHED
    counts = dict(Counter(entry["outcome"] for entry in found))
    bad = [e for e in found if e["outcome"] not in ("passed", "skipped", share.STARTED)]
    slowest = sorted(found, key=lambda entry: -entry.get("seconds", 0))[:10]
    skipped = dict(Counter(e["message"] for e in found if e["outcome"] == "skipped"))
    part.rows = [{"counts": counts, "failures": bad, "slowest": slowest, "skipped": skipped}]
    part.write()


def _said(log: Path, code: int) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"exit code {code}: {lines[-1][:200] if lines else 'it said nothing'}"


def tests(part: Part) -> None:
    """All tests but those that torch.compile compiles."""
    selection = f"not {COMPILES}" + (f" and ({QUICK})" if part.quick else "")
    run_shares(part, 2 if part.quick else min(PROCESSES, os.cpu_count() or 1), selection)


def compiled_tests(part: Part) -> None:
    """The tests that torch.compile compiles, in one process."""
    run_shares(part, 1, COMPILES + (" and correlation" if part.quick else ""))


def sanitize(part: Part, tool: str) -> None:
    """A few tests under compute-sanitizer, without torch's cache of memory, inside which nothing is out of bounds."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        part.leave_out(tool, "compute-sanitizer is not installed")
        return
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", *pytest_command("-k", FEW)]
    log = part.out / "parts" / f"{part.name}.log"
    try:
        with log.open("w") as file:
            environment = _environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1")
            done = subprocess.run(
                command, env=environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=max(1, part.left)
            )
    except subprocess.TimeoutExpired:
        part.leave_out(tool, "no time left")
        return
    text = log.read_text(errors="replace")
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
    passed = re.findall(r"\d+ (?:passed|failed).*", text)
    part.add(tool=tool, code=done.returncode, summary=summaries[-1:], tests=passed[-1:], said=_said(log, 0)[13:])
