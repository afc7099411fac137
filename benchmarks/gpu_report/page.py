"""The report as files: report.json with everything, report.md to be read, report.png."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from v1fast import _files

from . import plan
from .record import read
from .schedule import Job

Row = Mapping[str, Any]
NAMES = [name for stage in plan.STAGES for name in stage]


def write(out: Path, about: Mapping[str, str], jobs: Sequence[Job]) -> None:
    """Replace report.json and report.md by what is known so far."""
    parts = {job.name: {"status": job.status, "seconds": job.took, **read(out, job.name)} for job in jobs}
    found = {"about": dict(about), "parts": parts}
    _files.replace(out / "report.json", json.dumps(found, indent=1, allow_nan=False).encode())
    _files.replace(out / "report.md", ("\n".join(lines(found, out)) + "\n").encode())


def draw(out: Path) -> None:
    """Write report.png, or report.txt that says why there is none."""
    from . import picture

    try:
        picture.save({name: read(out, name)["rows"] for name in NAMES}, out / "report.png")
    except ModuleNotFoundError as error:
        _files.replace(out / "report-png.txt", f"no picture: {error}\n".encode())


def lines(found: Mapping[str, Any], out: Path) -> Iterator[str]:
    """Yield the lines of report.md."""
    parts = found["parts"]
    yield "# The GPU kernels of v1fast on a device\n"
    for about in (parts["ceilings"]["about"], found["about"]):
        if about:
            yield ", ".join(f"{name} {value}" for name, value in about.items()) + ".\n"
    yield from _missing(parts, out)
    yield from _tests(parts)
    yield from _ceilings(parts["ceilings"]["rows"])
    yield from _kernels(parts)
    yield from _large(parts["large"]["rows"])
    yield from _tuned(parts)
    yield from _counters(parts["counters"]["rows"])


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a table and an empty line."""
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
    yield ""


def number(value: Any) -> str:
    """Format a figure, or a range of two, in three digits."""
    if isinstance(value, (list, tuple)):
        low, high = value
        return number(low) if high < 1.05 * low else f"{number(low)} - {number(high)}"
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _missing(parts: Mapping[str, Any], out: Path) -> Iterator[str]:
    yield "## Parts\n"
    rows = []
    for name, part in parts.items():
        took = "" if part["seconds"] is None else f"{part['seconds']:.0f}"
        rows.append((plan.KINDS[name].title, part["status"], took, str(len(part["rows"])), str(len(part["missing"]))))
    yield from table(("part", "status", "s", "rows", "left out"), rows)
    gone = [(name, each) for name, part in parts.items() for each in part["missing"]]
    for name, each in gone:
        yield f"- left out of {name}: {each['what']}: {each['why']}"
    for name, part in parts.items():
        if part["status"].startswith("failed"):
            yield f"- {name} {part['status']}: {_last_line(out / 'logs' / f'{name}.log')}"
    if (out / "report-png.txt").exists():
        yield f"- {(out / 'report-png.txt').read_text().strip()}"
    yield ""


def _last_line(log: Path) -> str:
    said = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return said[-1][:300] if said else "it said nothing"


def _tests(parts: Mapping[str, Any]) -> Iterator[str]:
    yield "## Tests\n"
    for name in ("tests", "compiled tests"):
        for row in parts[name]["rows"]:
            counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(row["counts"].items()))
            yield f"{plan.KINDS[name].title}: {counts or 'none yet'}.\n"
            for each in row["failures"]:
                yield f"- {each['outcome']}: `{each['test']}`: {each.get('message', '')}"
            for why, count in row["skipped"].items():
                yield f"- {count} skipped: {why}"
            slow = ", ".join(
                f"{e['test'].rpartition('::')[2]} {e['seconds']:.1f} s" for e in row["slowest"][:3] if "seconds" in e
            )
            yield f"\nSlowest: {slow}.\n"
    for name in ("memcheck", "racecheck"):
        for row in parts[name]["rows"]:
            said = "; ".join([*row["summary"], *row["tests"]]) or row["said"]
            yield f"{plan.KINDS[name].title}: {'clean' if row['code'] == 0 else 'NOT clean'}, {said}\n"


def _ceilings(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield "## Ceilings\n"
    yield "`assumed` is what the cost sheet of docs/gpu.md takes it to be.\n"
    cells = [
        (r["name"], f"{number(r['rate'] / 1e9)} G{r['unit']}", number(r["assumed"] and r["assumed"] / 1e9))
        for r in rows
    ]
    yield from table(("what", "measured", "assumed"), cells)


KERNEL_NOTE = """\
Times in us. `graph`: on the GPU, by replay of a CUDA graph, operands rotated past the L2. `events`: between events
around an uncaptured call. `host`: until an uncaptured call returns. `floor`: compulsory bytes at the measured rate of
a copy, or operations at the measured rate of products. `predicted`: the cost sheet of docs/gpu.md for an H100.
`by rates`: the same counts with the rates measured above. Eager is given its noise; v1fast draws its own.
"""


def _kernels(parts: Mapping[str, Any]) -> Iterator[str]:
    rows = [*parts["readouts"]["rows"], *parts["rdms"]["rows"]]
    if not rows:
        return
    yield "## Kernels\n"
    yield KERNEL_NOTE
    others = [*rows, *parts["compiled"]["rows"]]
    columns = ("case", "dtype", "what", "error", "graph", "events", "host", "floor", "predicted", "by rates", "eager",
               "compile", "times as fast")  # fmt: skip
    yield from table(columns, [_cells(row, others) for row in rows if row["provider"] == "v1fast"])
    failed = [row for row in rows if row.get("why")]
    for row in failed:
        yield f"- {row['case']} {row['dtype']} {row['what']} {row['provider']}: {row['why']}"
    yield ""


def rivals(row: Row, rows: Sequence[Row]) -> dict[str, float]:
    """Return the times of others on the same case and pass: the fastest eager one, and torch.compile's."""
    found: dict[str, float] = {}
    for other in rows:
        same = (other["case"], other["dtype"]) == (row["case"], row["dtype"]) and "frozen" not in row["what"]
        taken = other.get("graph_us") or other.get("events_us")
        if same and other["what"] == row["what"].partition(",")[0] and other["provider"] != "v1fast" and taken:
            kind = "compile" if other["provider"] == "compile" else "eager"
            found[kind] = min(taken, found.get(kind, taken))
    return found


def _cells(row: Row, others: Sequence[Row]) -> tuple[str, ...]:
    against, own = rivals(row, others), row.get("graph_us")
    figures = (
        row.get(n) for n in ("graph_us", "events_us", "host_us", "floor_us", "predicted_us", "by_measured_rates_us")
    )
    return (
        row["case"],
        row["dtype"],
        row["what"],
        f"{row['error']:.1e}" if row.get("error") is not None else "NaN",
        *map(number, figures),
        number(against.get("eager")),
        number(against.get("compile")),
        number(min(against.values()) / own) if against and own else "",
    )


def _large(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield "## More than 2^31 elements\n"
    cells = [
        (r["case"], str(r["shape"]), f"{r['elements']:.3g}", f"{r['error']:.1e}", number(r["graph_us"])) for r in rows
    ]
    yield from table(("what", "shape", "elements", "error", "graph"), cells)


def _tuned(parts: Mapping[str, Any]) -> Iterator[str]:
    rows = parts["tuned"]["rows"]
    if not rows:
        return
    yield "## With autotuning\n"
    untuned = [row for name in ("readouts", "rdms") for row in parts[name]["rows"] if row["provider"] == "v1fast"]
    plain = {(row["case"], row["dtype"], row["what"]): row.get("graph_us") for row in untuned}
    cells = []
    for row in rows:
        before, after = plain.get((row["case"], row["dtype"], row["what"])), row.get("graph_us")
        chosen = "; ".join(f"{name} {tuple(best)}" for name, best in row.get("configurations", {}).items())
        ratio = before / after if before and after else None
        cells.append(
            (
                row["case"],
                row["dtype"],
                row["what"],
                row["provider"],
                number(after),
                number(before),
                number(ratio),
                chosen,
            )
        )
    columns = ("case", "dtype", "what", "with", "graph", "without", "times as fast", "neurons, channels, images, warps")
    yield from table(columns, cells)


def _counters(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield "## Counters\n"
    columns = list(rows[0])
    yield from table(columns, [[str(r[c]) if isinstance(r[c], str) else number(r[c]) for c in columns] for r in rows])
