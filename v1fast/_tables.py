"""Results over subsets: means with their 95 % bands, as rows and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

from v1fast import _choices, _files

Band = Literal["t", "bootstrap"]


def band(values: Sequence[float], method: Band = "t", confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Confidence interval of the mean of independent subsets.

    Args:
        values: one for each subset; NaN is left out.
        method: "t", Student's, for a few subsets; "bootstrap", percentiles of 2000 resampled means, for many.
        confidence: in (0, 1).
        seed: of the resampling.

    Returns:
        Lower and upper end; NaN for fewer than two subsets.

    >>> low, high = band([0.5, 0.6, 0.7])
    >>> round(low, 3), round(high, 3)
    (0.352, 0.848)
    """
    _choices.one_of("method", method, ("t", "bootstrap"))
    known = np.asarray([value for value in values if not math.isnan(value)])
    if len(known) < 2:
        return math.nan, math.nan
    if method == "t":
        half = stats.t.ppf(0.5 + confidence / 2, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known))
        return float(known.mean() - half), float(known.mean() + half)
    drawn = np.random.default_rng(seed).integers(len(known), size=(2000, len(known)))
    low, high = np.quantile(known[drawn].mean(1), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def summarise(
    rows: Sequence[Mapping[str, Any]], by: Sequence[str], value: str = "fraction_oracle", method: Band = "t"
) -> list[dict[str, Any]]:
    """One row for each combination of the columns ``by``, in the order in which they come first.

    Returns:
        Rows with ``by``, and of ``value`` "mean", "low", "high" (95 %), "subsets" and "undefined" (subsets without a
        value, which are left out).
    """
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(float(row[value]))
    found = []
    for key, values in groups.items():
        known = [one for one in values if not math.isnan(one)]
        low, high = band(known, method)
        mean = float(np.mean(known)) if known else math.nan
        spread = {"mean": mean, "low": low, "high": high}
        found.append(
            {**dict(zip(by, key, strict=True)), **spread, "subsets": len(known), "undefined": len(values) - len(known)}
        )
    return found


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same columns, at once."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _files.replace(path, text.getvalue().encode())
