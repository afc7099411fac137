"""One row per neuron: its identity, how well it is predicted, and where it looks."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from v1fast import _files
from v1fast.metrics._results import Result

if TYPE_CHECKING:
    from v1fast.models.geometry import Positions

Table = dict[str, NDArray[Any]]


def neuron_table(
    metrics: Mapping[str, Result],
    *,
    unit: ArrayLike | None = None,
    area: ArrayLike | None = None,
    layer: ArrayLike | None = None,
    positions: Positions | None = None,
) -> Table:
    """Return a table of the neurons: columns of length N, by name.

    Args:
        metrics: results by the names of their columns.
        unit, area, layer: [N], identity, visual area and cortical layer of each neuron. Default units: 0 to N - 1;
            the other columns are left out if not given.
        positions: where the neurons look, see :func:`v1fast.models.input_positions`.

    Returns:
        ``unit``, ``area``, ``layer``, a column for each metric (NaN where undefined), then from ``positions``: ``x``
        and ``y``, in pixels of the input image from the centre of its first pixel; ``spread_x`` and ``spread_y``, the
        standard deviations in pixels of the positions drawn in training; ``at_clamp``, whether the position lies on the
        border where positions are clamped.

    Raises:
        ValueError: columns of different lengths; a metric with the name of another column.
    """
    columns: dict[str, Any] = {name: result.per_neuron.cpu().numpy() for name, result in metrics.items()}
    lengths = {len(values) for values in columns.values()} | ({len(positions.x)} if positions is not None else set())
    count = max(lengths, default=0 if unit is None else len(np.asarray(unit)))
    who = {"unit": np.arange(count) if unit is None else unit, "area": area, "layer": layer}
    where = {} if positions is None else {name: value.cpu().numpy() for name, value in positions.columns().items()}
    for name in columns:
        if name in who or name in where:
            raise ValueError(f"metrics: {name!r} is the name of another column")
    table = {name: np.asarray(values) for name, values in {**who, **columns, **where}.items() if values is not None}
    for name, values in table.items():
        if values.shape != (count,):
            raise ValueError(f"{name}: want [N] = ({count},), got {values.shape}")
    return table


def write_table(path: str | Path, table: Mapping[str, ArrayLike]) -> None:
    """Write a table as CSV or parquet, by the file's suffix. The file appears only when it is complete.

    CSV has a line of names, numbers that read back exactly, and ``nan`` for undefined values. Parquet needs pandas and
    pyarrow.

    Raises:
        ValueError: another suffix.
        ImportError: parquet without pandas or pyarrow.
    """
    path = Path(path)
    writers = {".csv": _csv, ".parquet": _parquet}
    if path.suffix not in writers:
        raise ValueError(f"{path}: want a name that ends in .csv or .parquet")
    _files.replace(path, writers[path.suffix]({name: np.asarray(values) for name, values in table.items()}))


def _csv(table: Table) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*(values.tolist() for values in table.values()), strict=True))
    return text.getvalue().encode()


def _parquet(table: Table) -> bytes:
    try:
        import pandas
        import pyarrow  # noqa: F401 - pandas would say in several lines that it is absent
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a table as parquet needs pandas and pyarrow: pip install pandas pyarrow") from error
    content = io.BytesIO()
    pandas.DataFrame(table).to_parquet(content, index=False, engine="pyarrow")
    return content.getvalue()
