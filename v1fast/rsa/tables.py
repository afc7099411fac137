"""Results as tables in a terminal: every interval with its level and over what, every p with its kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from v1fast.rsa.resampling import OVER

if TYPE_CHECKING:
    from rich.console import Console

    from v1fast.rsa.comparisons import ModelComparison


def print_table(
    console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> None:
    """Print rows of text below a header, names to the left and numbers to the right, and notes below."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=None, header_style="bold", pad_edge=False)
    for k, name in enumerate(header):
        table.add_column(Text(name), justify="right" if k else "left", overflow="fold", no_wrap=k > 0)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table, soft_wrap=False)
    for note in notes:
        console.print(note, soft_wrap=True, markup=False)


def print_comparison(console: Console, compared: ModelComparison, title: str) -> None:
    """Print the tests of models, and those of their differences."""
    kind = compared.above_zero.correction
    interval = f"{100 * compared.level:g} % interval"
    rows = [
        [
            name,
            f"{compared.similarity[k]:.4f}",
            interval_text(compared.interval[:, k]),
            *(
                p_text(p[k])
                for tests in (compared.above_zero, compared.below_ceiling)
                for p in (tests.p, tests.familywise)
            ),
        ]
        for k, name in enumerate(compared.names)
    ]
    header = ["model", "similarity", interval, "p > 0", "all", "p < ceiling", "all"]
    notes = [
        f"Intervals: over {OVER[compared.over]}. p: one-sided, more than 0 and less than the lower bound of the noise "
        f"ceiling; all: familywise, corrected for all models ({kind}).",
        *compared.notes,
    ]
    print_table(console, title, header, rows, notes)
    if len(compared.pairs):
        print_differences(console, compared)


def print_differences(console: Console, compared: ModelComparison) -> None:
    """Print the differences between models."""
    tests = compared.different
    rows = [
        [
            f"{compared.names[i]} - {compared.names[j]}",
            f"{compared.difference[k]:.4f}",
            interval_text(compared.difference_interval[:, k]),
            *(p_text(p[k]) for p in (tests.p, tests.familywise, tests.fdr)),
        ]
        for k, (i, j) in enumerate(compared.pairs)
    ]
    interval = f"{100 * compared.level:g} % interval"
    notes = [
        f"Intervals: over {OVER[compared.over]}. "
        f"p: two-sided; familywise: {tests.correction}; FDR: Benjamini & Hochberg."
    ]
    print_table(console, "Differences", ["models", "difference", interval, "p", "familywise", "FDR"], rows, notes)


def interval_text(ends: Sequence[float] | Any) -> str:
    """Return both ends."""
    return f"{ends[0]:.3f} to {ends[1]:.3f}"


def p_text(p: float) -> str:
    """Return a p; below 0.0001 only that it is."""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"
