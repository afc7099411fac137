"""``v1fast readouts``."""

from pathlib import Path
from typing import Annotated

import typer

from v1fast.cli import _experiments as shared
from v1fast.cli._common import Quick, in_one_line, need

LEGEND = "readout: parameters per neuron"


@in_one_line
def readouts(
    data: shared.Data = None,
    out: Annotated[Path, typer.Option(help="Folder for results, tables and pictures.")] = Path("out/readouts"),
    images: shared.Images = None,
    neurons: Annotated[str | None, typer.Option(help="Numbers of neurons; default: 50,500 and all.")] = None,
    subsets: shared.Subsets = None,
    kinds: Annotated[str, typer.Option(help="Some of dense, factorized, pooled, gaussian.")] = (
        "dense,factorized,pooled,gaussian"
    ),
    retinotopy: Annotated[str, typer.Option(help="Of Gaussian readouts: none, predicted, residual.")] = "none",
    share_features: Annotated[
        bool, typer.Option("--share-features", help="Compare with and without; recordings of the same neurons.")
    ] = False,
    behavior: Annotated[
        bool, typer.Option("--behavior", help="Also with a shifter (pupil), a modulator (behaviour), and both.")
    ] = False,
    scale: shared.Scale = 1.0,
    raw_images: shared.NoImageNormalization = False,
    small: shared.Small = False,
    bands: shared.Bands = "t",
    seed: shared.Seed = 0,
    simulate: shared.Simulate = False,
    quick: Quick = False,
) -> None:
    """Compare readouts: fraction oracle against the number of images, for few neurons and many.

    Stopped, the same command goes on where it was.

    Examples:

      v1fast readouts recordings/26872 --retinotopy none,predicted --out out/readouts

      v1fast readouts scan1 scan2 scan3 --share-features --raw-images     (scans of the same neurons)

      v1fast readouts --simulate --quick
    """
    need("train", "lightning", "torchmetrics", "safetensors")
    need("plot", "matplotlib")
    from v1fast.experiments import (
        QUICK,
        ComparisonSettings,
        Simulated,
        compare_readouts,
        compared,
        simulated_sessions,
        summarise,
    )
    from v1fast.experiments.figures import bars_figure, curves_figure

    settings = ComparisonSettings(
        images=shared.numbers("images", images) or ((24, 96) if quick else ()),
        neurons=shared.numbers("neurons", neurons),
        subsets=subsets or (2 if quick else 5),
        readouts=shared.words(kinds),  # type: ignore[arg-type]
        sharing=(False, True) if share_features else (False,),
        retinotopy=shared.words(retinotopy),  # type: ignore[arg-type]
        behavior=behavior,
        model=shared.model_of(small or simulate, quick),
        seed=seed,
    )
    if simulate:
        sessions = dict(simulated_sessions(shared.one_animal(QUICK if quick else Simulated(seed=seed), share_features)))
    else:
        sessions = shared.sessions_of(data, scale, raw_images)
    rows = compared(compare_readouts(sessions, settings, out=out))
    table = summarise(rows, ("readout", "parameters_per_neuron", "neurons", "images"), method=bands)  # type: ignore[arg-type]
    plain = [row for row in rows if not row["behavior"]]
    pictures = {"readouts": curves_figure(plain, panels="size", curves="curve", legend=LEGEND, method=bands)}  # type: ignore[arg-type]
    if behavior:
        most = max(row["neurons"] for row in rows)
        wanted = [row for row in rows if row["neurons"] == most and (row["behavior"] or row["readout"] == "gaussian")]
        pictures["behavior"] = bars_figure(wanted, groups="readout", method=bands)  # type: ignore[arg-type]
    shared.finish(out, rows, table, pictures)
