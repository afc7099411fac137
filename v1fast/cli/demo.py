"""``v1fast demo``."""

from pathlib import Path
from typing import Annotated

import typer

from v1fast.cli._common import Quick, RealData, in_one_line, need


@in_one_line
def demo(
    out: Annotated[Path, typer.Option(help="Folder for summary.json and the pictures.")] = Path("out/demo"),
    real_data: RealData = None,
    quick: Quick = False,
) -> None:
    """Fit Gaussian readouts to simulated neurons and, where the data is there, run a trained model of mouse V1."""
    need("demo", "matplotlib", "skimage", "lightning", "torchmetrics")
    from v1fast.cli._demonstration import demonstrate

    demonstrate(out=out, real_data=real_data, quick=quick)
