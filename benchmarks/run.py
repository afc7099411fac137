"""The whole run: cases one after another, rows written as they come, one table and one picture at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from v1fast import _choices, doctor
from v1fast._progress import progress

from . import bench_gaussian_readout, bench_metrics, bench_pooled_readout, bench_rdm, bench_rsa, picture, report, rows
from .clocks import Clock, CpuClock, WallClock
from .contract import Case
from .harness import Contest, Effort
from .peers import gaussian_readout as peers
from .replays import GraphClock

if TYPE_CHECKING:
    from rich.console import Console

QUICK_CASES = ("tiny", "lurz")
BENCHES = (bench_gaussian_readout, bench_pooled_readout, bench_rdm, bench_rsa, bench_metrics)
BENCH_OF: dict[str, Any] = {case.name: bench for bench in BENCHES for case in bench.CASES}
CASES: tuple[Case, ...] = tuple(case for bench in BENCHES for case in bench.CASES)
CASE_NAMES = tuple(case.name for case in CASES)
PROVIDER_NAMES = tuple(dict.fromkeys(name for bench in BENCHES for name in bench.NAMES))


def main(
    out: Path,
    cases: Sequence[str] = (),
    providers: Sequence[str] = (),
    device: str = "cpu",
    quick: bool = False,
    full: bool = False,
) -> list[rows.Row]:
    """Measure, print the table, and write ``rows.jsonl`` and ``speed.png``. Ctrl-C keeps what was measured.

    Args:
        out: folder, created if missing; the files of an earlier run are replaced.
        cases: names from ``CASE_NAMES``; none: all, or a few with ``quick``.
        providers: names from ``PROVIDER_NAMES``, for every case; none: a choice that takes a few minutes.
        device: "cpu" or "cuda".
        quick: one round of v1fast and eager, in two small cases.
        full: every provider in every case, and more rounds: more than an hour on two cores.

    Returns:
        The rows.

    Raises:
        ValueError: an unknown case, provider or device.
    """
    from rich.console import Console

    _check(cases, providers, device)
    if device == "cuda":
        os.environ["V1FAST_GPU_CHECK"] = "0"  # a kernel must not be timed as what replaces it
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=report.TABLE_WIDTH)
    with console.status("measuring this machine"):
        run = asdict(doctor.examine(quick))
    run["started"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    run["versions"] |= {name: _version(name) for name in peers.NAMES}
    chosen = [case for case in CASES if case.name in (cases or (QUICK_CASES if quick else CASE_NAMES))]
    found: list[rows.Row] = []
    try:
        with progress("", len(chosen), console=console) as bar:
            for case in chosen:
                for contest in _contests(case, providers, device, quick, full, bar.describe):
                    try:
                        contest.run()
                    finally:
                        found += contest.rows(run)
                        rows.write(out / "rows.jsonl", found)
                bar.advance()
    finally:
        _conclude(out, found, console)
    return found


def _check(cases: Sequence[str], providers: Sequence[str], device: str) -> None:
    for what, given, known in (("case", cases, CASE_NAMES), ("provider", providers, PROVIDER_NAMES)):
        for name in given:
            _choices.one_of(what, name, known)
    _choices.one_of("device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: torch sees no CUDA device")


def _effort(case: Case, threads: int | None, quick: bool, full: bool) -> Effort:
    if quick:
        return Effort(rounds=1)
    if full:
        return Effort(rounds=9, seconds=300)
    return Effort(rounds=3, seconds=40) if case.name == BENCH_OF[case.name].HEADLINE and threads != 2 else Effort()


def _contests(
    case: Case, chosen: Sequence[str], device: str, quick: bool, full: bool, say: Callable[[str], None]
) -> Iterator[Contest]:
    """Yield the contests. On the CPU: one thread in CPU time, and two threads in elapsed time."""
    on_cpu: list[tuple[Clock, int | None]] = [(CpuClock(), 1), (WallClock(), 2)]
    bench = BENCH_OF[case.name]
    settings = on_cpu[: os.cpu_count()] if device == "cpu" else [(GraphClock(), None)]
    for clock, threads in settings:
        names = chosen or (bench.NAMES if full else bench.COMPARED if quick else bench.plan(case, threads))
        entrants = [provider for provider in bench.providers(case, device) if provider.name in names]
        effort = _effort(case, threads, quick, full)
        if entrants:
            yield Contest(bench.OP, case, entrants, clock=clock, device=device, threads=threads, effort=effort, say=say)


def _conclude(out: Path, found: Sequence[rows.Row], console: Console) -> None:
    if not any(row.measured for row in found):
        console.print("Nothing was measured.")
        return
    for bench in BENCHES:
        of_op = [row for row in found if row.op == bench.OP]
        if any(row.measured for row in of_op):
            console.print(report.table(of_op, bench.TITLE))
    for line in report.footnotes(found):
        console.print(line, markup=False)
    picture.save(found, out / "speed.png")
    console.print(f"Rows: {out / 'rows.jsonl'}; picture: {out / 'speed.png'}", markup=False)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
