"""The fallback beside eager torch: is it as fast where no kernel runs? ``make bench-fallback``.

The cases and baselines of ``v1fast bench``, with ``V1FAST_KERNELS=fallback``, on one thread, in CPU time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from v1fast import ops

from . import bench_gaussian_readout, bench_pooled_readout, bench_rdm, bench_small_rdm, rows
from .clocks import CpuClock
from .contract import Case
from .harness import Contest, Effort

BENCHES: tuple[Any, ...] = (bench_gaussian_readout, bench_pooled_readout, bench_rdm, bench_small_rdm)
OURS = ("v1fast", "v1fast-nchw", "v1fast-layer")
HEADER = ("case", "provider", "noise", "forward", "step", "fastest baseline", "its extra memory", "extra memory")
WIDTHS = (14, 13, 6, 8, 8, 22, 17, 13)


def contest(bench: Any, case: Case, effort: Effort | None = None) -> Contest:
    """Return the contest of the fallback and all baselines on one case."""
    planned = set(bench.plan(case, 1))
    entrants = [
        provider
        for provider in bench.providers(case, "cpu")
        if provider.name in OURS or (provider.baseline and provider.name in planned)
    ]
    return Contest(bench.OP, case, entrants, clock=CpuClock(), effort=effort)


def lines(found: Sequence[rows.Row]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of a table: how many times as fast as the fastest baseline, and the memory of both."""
    for row in found:
        if row.provider not in OURS or not row.measured:
            continue
        last = row.speedup.get("step") or row.speedup["forward"]
        rival = next(other for other in found if other.provider == last.against)
        speed = [f"{row.speedup[name].times:.2f}" if name in row.speedup else "" for name in ("forward", "step")]
        memory = [f"{m.extra / 2**20:.0f} MiB" if m else "" for m in (rival.memory, row.memory)]
        yield row.case, row.provider, row.noise or "", *speed, last.against, *memory


def _line(cells: Sequence[str]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def main() -> None:
    """Measure, and print the table while it grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for rows.jsonl")
    parser.add_argument("--case", action="append", help="this case alone; may be repeated")
    arguments = parser.parse_args()
    if ops.loaded["fallback"] != "loaded" or ops.loaded["native"] == "loaded":
        raise SystemExit("bench_fallback: want V1FAST_KERNELS=fallback in the environment")
    found: list[rows.Row] = []
    print(_line(HEADER))
    for bench in BENCHES:
        for case in bench.CASES:
            if arguments.case and case.name not in arguments.case:
                continue
            one = contest(bench, case, Effort(rounds=5, seconds=20))
            one.run()
            measured = one.rows({})
            found += measured
            rows.write(arguments.out / "rows.jsonl", found)
            for cells in lines(measured):
                print(_line(cells), flush=True)


if __name__ == "__main__":
    main()
