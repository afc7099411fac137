"""``v1fast transfer``."""

from pathlib import Path
from typing import Annotated

import typer

from v1fast.cli import _experiments as shared
from v1fast.cli._common import Quick, in_one_line, need


@in_one_line
def transfer(
    data: shared.Data = None,
    source: Annotated[
        str | None,
        typer.Option(help="Recordings that cores are trained on, by name; default: half of the target's neurons."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Recordings whose neurons are predicted; default: all that are no source.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for results, table and pictures.")] = Path("out/transfer"),
    images: shared.Images = None,
    subsets: shared.Subsets = None,
    neurons: Annotated[int | None, typer.Option(min=1, help="Target neurons of a subset; default: all.")] = None,
    conditions: Annotated[
        str, typer.Option(help="Some of direct, best-core/diff-readout, diff-core/best-readout.")
    ] = "direct,best-core/diff-readout,diff-core/best-readout",
    scans: Annotated[str | None, typer.Option(help="Numbers of source recordings, such as 1,4; default: all.")] = None,
    untrained: Annotated[
        str, typer.Option(help='Further cores: some of "random", "vgg16", "random vgg16".')
    ] = "random",
    vgg_weights: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Weights of torchvision's VGG-16.")
    ] = None,
    readouts: Annotated[str, typer.Option(help="gaussian, factorized, pooled, dense.")] = "gaussian,factorized",
    retinotopy: Annotated[str, typer.Option(help="Of Gaussian readouts: none, predicted, residual.")] = "none",
    share_features: Annotated[
        bool, typer.Option("--share-features", help="Compare with and without, for matched neurons.")
    ] = False,
    published: Annotated[bool, typer.Option("--published", help="Draw the values of Lurz et al. beside.")] = False,
    scale: shared.Scale = 1.0,
    raw_images: shared.NoImageNormalization = False,
    small: shared.Small = False,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Keep cached features in bfloat16.")] = False,
    bands: shared.Bands = "t",
    seed: shared.Seed = 0,
    simulate: shared.Simulate = False,
    quick: Quick = False,
) -> None:
    """Train cores on some neurons or animals, freeze them, and fit readouts of others.

    Stopped, the same command goes on where it was.

    Examples:

      v1fast transfer recordings/ --source 21067,22846,23343 --target 26872 --scans 1,3 --out out/transfer

      v1fast transfer recordings/26872 --neurons 1000      (within an animal: cores of half of its neurons)

      v1fast transfer --simulate --quick
    """
    need("train", "lightning", "torchmetrics", "safetensors")
    need("plot", "matplotlib")
    from v1fast.experiments import (
        QUICK,
        Simulated,
        TransferSettings,
        curves,
        simulated_sessions,
        summarise,
    )
    from v1fast.experiments import transfer as run
    from v1fast.experiments.figures import curves_figure

    kinds = shared.words(readouts)
    settings = TransferSettings(
        images=shared.numbers("images", images) or ((24, 96) if quick else ()),
        subsets=subsets or (2 if quick else 5),
        neurons=neurons,
        conditions=shared.words(conditions),  # type: ignore[arg-type]
        scans=shared.numbers("scans", scans),
        untrained=shared.words(untrained),
        readouts=kinds,
        retinotopy=shared.words(retinotopy),  # type: ignore[arg-type]
        sharing=(False, True) if share_features else (False,),
        vgg_weights=None if vgg_weights is None else str(vgg_weights),
        model=shared.model_of(small or simulate, quick, {"feature_dtype": "bfloat16"} if bfloat16 else None),
        seed=seed,
    )
    if simulate:
        sizes = QUICK if quick else Simulated(seed=seed)
        sessions = dict(simulated_sessions(sizes))
        target = target or next(reversed(sessions))
        source = source or ",".join(name for name in sessions if name not in shared.words(target))
    else:
        sessions = shared.sessions_of(data, scale, raw_images)
    sources = shared.chosen("source", source, sessions)
    targets = shared.chosen("target", target, sessions)
    if targets is None:
        targets = {name: one for name, one in sessions.items() if name not in (sources or {})}
    rows = curves(run(sources, targets, settings, out=out))
    table = summarise(rows, ("readout", "arm", "images"), method=bands)  # type: ignore[arg-type]
    where = "to other neurons of the animal" if sources is None else "to another animal"
    figure = curves_figure(
        rows,
        panels="readout",
        curves="arm",
        title=f"Transfer {where}: {rows[0]['neurons']} neurons",
        method=bands,  # type: ignore[arg-type]
        with_published=published,
    )
    shared.finish(out, rows, table, {"transfer": figure})
