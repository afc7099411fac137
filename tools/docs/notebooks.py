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
SETUP = """\
# Added by `make notebooks`: a figure that is saved is shown, and the kernel's own arguments are not the script's.
import io
import sys

import matplotlib
from IPython.display import Image, display
from matplotlib.figure import Figure

matplotlib.use("agg")
sys.argv[1:] = []
save = Figure.savefig


def save_and_show(figure, *args, **options):
    save(figure, *args, **options)
    picture = io.BytesIO()
    save(figure, picture, format="png", dpi=100)
    display(Image(picture.getvalue()))


Figure.savefig = save_and_show"""


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
