"""Is the baseline as fast as the published layer? Not part of the test suite: ``make bench-baselines``.

A ratio to a slow baseline means nothing. For each readout, the fastest expression of torch's own operations is compared
with neuralpredictors' class in one run.
"""

from __future__ import annotations

from typing import Any

import pytest

from . import bench_gaussian_readout, bench_pooled_readout
from .clocks import CpuClock
from .contract import Case
from .harness import Contest, Effort

SLOWER = 1.1  # largest ratio to the published layer's time, allowing for the noise of a shared machine
CASES = [(bench_gaussian_readout, "lurz"), (bench_pooled_readout, "pooled"), (bench_pooled_readout, "macaque")]


@pytest.mark.parametrize(("bench", "name"), CASES, ids=[name for _, name in CASES])
def test_an_expression_is_as_fast_as_the_published_layer(bench: Any, name: str) -> None:
    case: Case = next(case for case in bench.CASES if case.name == name)
    entrants = [provider for provider in bench.providers(case, "cpu") if provider.baseline]
    contest = Contest(bench.OP, case, entrants, clock=CpuClock(), effort=Effort(rounds=5, seconds=40))
    contest.run()
    rows = {row.provider: row for row in contest.rows({}) if row.measured}
    peer = [row for provider, row in rows.items() if provider.startswith("neuralpredictors")]
    eager = [row for provider, row in rows.items() if provider.startswith("eager")]
    assert len(peer) == 2, "neuralpredictors is not there: make bench-baselines installs it"
    for phase in ("forward", "step"):
        fastest = min(row.milliseconds[phase].median for row in eager)
        published = min(row.milliseconds[phase].median for row in peer)
        assert fastest <= SLOWER * published, f"{phase}: {fastest:.1f} ms, neuralpredictors {published:.1f} ms"
