"""Scripts that are written in cells, as executed notebooks.

    python tools/docs/notebooks.py out/notebooks [examples/fit_model.py ...]

Without names, every script in examples/ that has a line ``# %%``. Each runs in the folder of the notebooks. A cell that
fails ends with the error.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
# A kernel has arguments of its own, which a script would take for its options; figures are to be shown in the notebook.
SETUP = "import sys\n\n%matplotlib inline\nsys.argv[1:] = []"


def in_cells() -> list[Path]:
    """The scripts of examples/ in jupytext's percent format."""
    scripts = sorted((ROOT / "examples").glob("*.py"))
    return [script for script in scripts if any(line.startswith("# %%") for line in script.read_text().splitlines())]


def notebook(script: Path, folder: Path) -> Path:
    """Run a script as a notebook, and write it with what its cells show."""
    made = jupytext.read(script, fmt="py:percent")
    made.cells.insert(0, nbformat.v4.new_code_cell(SETUP))
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    options = {"timeout": 600, "kernel_name": "python3", "resources": {"metadata": {"path": str(folder)}}}
    NotebookClient(made, **options).execute()
    for cell in made.cells:
        cell.metadata.pop("execution", None)  # times of day
    path = folder / f"{script.stem}.ipynb"
    nbformat.write(made, path)
    return path


def main(folder: Path, scripts: list[Path]) -> None:
    """Make the notebooks, one after another."""
    folder.mkdir(parents=True, exist_ok=True)
    for script in scripts or in_cells():
        start = time.perf_counter()
        path = notebook(script, folder)
        print(f"{path}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 2**20:.1f} MiB", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve(), [Path(name) for name in sys.argv[2:]])
