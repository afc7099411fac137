"""The rows of one run as one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .rows import Row

if TYPE_CHECKING:
    from rich.table import Table

TABLE_WIDTH = 132  # columns, if the output has no width of its own
OURS = "v1fast"


def table(rows: Sequence[Row], title: str) -> Table:
    """Make one line per provider and case. Only the better baseline is shown, and given noise only for v1fast."""
    from rich.box import SIMPLE
    from rich.table import Table

    found = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1))
    for title in ("case", "provider"):
        found.add_column(title, no_wrap=True)
    for title in ("error", "forward\nms", "step\nms", "forward\ntimes", "step\ntimes", "of limit\nfwd, bwd"):
        found.add_column(title, justify="right", no_wrap=True)
    for title in ("extra\nMiB", "2 threads\nstep ms", "\ntimes"):
        found.add_column(title, justify="right", no_wrap=True)
    for case in dict.fromkeys(row.case for row in rows):
        lines = list(_lines([row for row in rows if row.case == case]))
        for number, line in enumerate(lines):
            found.add_row(*line, end_section=number == len(lines) - 1)
    return found


def footnotes(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what the table does not say: the machine, how to read the columns, and which providers are missing."""
    run = rows[0].run
    yield machine(run)
    yield (
        "Times: medians of CPU time on one thread, and of elapsed time on two. step: forward and backward. times: the "
        "better baseline's median over this one's."
    )
    yield "error: the largest, relative, of output and gradients. extra: peak memory beyond output and gradients."
    yield from _lone_baselines(rows)
    reasons = {f"{row.provider} ({row.case}): {row.status}" for row in rows if not row.measured}
    yield from sorted(reasons)


def _lone_baselines(rows: Sequence[Row]) -> Iterator[str]:
    for case in dict.fromkeys(row.case for row in rows):
        found = {row.provider for row in rows if row.case == case and row.baseline and row.measured}
        if len(found) == 1:
            yield f"{case}: compared with {found.pop()} alone."


def machine(run: Mapping[str, Any]) -> str:
    """Describe the processor, its ceilings, and the kernels."""
    facts, versions = run["machine"], run["versions"]
    parts = [f"{facts['cpu']} ({facts['isa']})" if facts else run["system"]["architecture"]]
    for ceiling in run["ceilings"][:1]:
        second = f", L2 {ceiling['L2']['read_gbs']['best']:.0f} GB/s" if ceiling["L2"] else ""
        parts.append(f"one thread: {ceiling['fma_gflops']['best']:.0f} GFLOP/s{second}")
    parts += [device["name"] for device in run["cuda_devices"]]
    loaded = [name for name, state in run["kernels"].items() if state == "loaded"]
    parts += [f"torch {versions['torch']}", f"v1fast {versions['v1fast']}", f"kernels: {', '.join(loaded) or 'none'}"]
    return "; ".join(parts)


def _lines(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of one case's lines."""
    first = [row for row in rows if row.measured and row.threads in (1, None)]
    second = {(row.provider, row.noise): row for row in rows if row.measured and row.threads == 2}
    chosen = [row for row in first if shown(row, first)]
    for number, row in enumerate(chosen):
        title = (row.case, shape(row))[number] if number < 2 else ""
        yield title, _label(row), *_figures(row), *_two_threads(second.get((row.provider, row.noise)))
    if len(chosen) == 1:
        yield shape(chosen[0]), *[""] * 10


def shown(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a row is in the table, given all rows of its case. For example, only the better baseline is shown."""
    if row.noise == "given":
        return row.provider == OURS
    rivals = [_total(other) for other in rows if other.baseline and other.noise == row.noise]
    return not row.baseline or _total(row) == min(rivals)


def _total(row: Row) -> float:
    return row.milliseconds.get("step", row.milliseconds["forward"]).median


def _label(row: Row) -> str:
    return row.provider + (", noise given" if row.noise == "given" else "")


def shape(row: Row) -> str:
    """Format the sizes, such as 3x8x5."""
    return "x".join(str(size) for size in row.shape.values())


def _figures(row: Row) -> tuple[str, ...]:
    step = row.milliseconds.get("step")
    limit = [
        f"{100 * row.limit_fraction[phase]:.0f}" for phase in ("forward", "backward") if phase in row.limit_fraction
    ]
    return (
        f"{max(row.errors.values()):.0e}",
        _number(row.milliseconds["forward"].median),
        _number(step.median) if step else "",
        _times(row, "forward"),
        _times(row, "step"),
        f"{', '.join(limit)} %" if limit else "",
        f"{row.memory.extra / 2**20:.0f}" if row.memory else "",
    )


def _two_threads(row: Row | None) -> tuple[str, str]:
    if row is None:
        return "", ""
    return _number(_total(row)), _times(row, "step" if "step" in row.milliseconds else "forward")


def _times(row: Row, phase: str) -> str:
    return f"{row.speedup[phase].times:.3g}" if phase in row.speedup else ""


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
