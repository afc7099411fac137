"""Writing files."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def replace(path: Path, content: bytes) -> None:
    """Write at once: whoever reads ``path`` meanwhile, or after a crash, sees the old content or the new."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_report(folder: Path, summary: dict[str, Any], pictures: dict[str, Figure]) -> None:
    """``summary.json``, and each picture under its name."""
    for name, figure in pictures.items():
        image = io.BytesIO()
        figure.savefig(image, format="png")
        replace(folder / f"{name}.png", image.getvalue())
    replace(folder / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
