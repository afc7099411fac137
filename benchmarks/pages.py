"""Pages whose tables are measured: what lies between two markers is replaced."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from v1fast import _files


def fill(page: Path, name: str, lines: Iterable[str]) -> None:
    """Put ``lines`` between ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        ValueError: a marker is absent; the page stays as it is.
    """
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = page.read_text()
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page}: want the markers {start} and {end}, one after the other")
    _files.replace(page, "\n".join([before + start, "", *lines, "", end + after]).encode())
