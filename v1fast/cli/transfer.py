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
    within: Annotated[
        bool,
        typer.Option("--within", help="Within an animal: as without --source; for --simulate, which has sources."),
    ] = False,
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
    readouts: Annotated[str, typer.Option(help="Some of gaussian, factorized, pooled, dense.")] = "gaussian,factorized",
    retinotopy: shared.Retinotopies = "none",
    share_features: shared.Share = False,
    core_seeds: Annotated[
        int, typer.Option(min=1, help="Cores of each kind, of different seeds; subsets take turns with them.")
    ] = 1,
    published: shared.Published = False,
    scale: shared.Scale = 1.0,
    raw_images: shared.NoImageNormalization = False,
    behavior_channels: shared.Channels = False,
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

      v1fast transfer scan1 scan2 scan3 scan4 other --target other --scans 1,4 --share-features

      v1fast transfer --simulate --quick
    """
    need("train", "lightning", "torchmetrics", "safetensors")
    need("plot", "matplotlib")
    from v1fast.experiments import TransferSettings, curves, summarise
    from v1fast.experiments import transfer as run
    from v1fast.experiments.figures import curves_figure
    from v1fast.experiments.models import PLAIN
    from v1fast.experiments.published import CROSSING_IMAGES, beside_transfer

    kinds, maps, method = shared.words(readouts), shared.words(retinotopy), shared.band_of(bands)
    settings = TransferSettings(
        images=shared.numbers("images", images) or ((24, 96) if quick else ()),
        subsets=subsets or (2 if quick else 5),
        neurons=neurons,
        conditions=shared.words(conditions),  # type: ignore[arg-type]
        scans=shared.numbers("scans", scans),
        untrained=shared.words(untrained),
        readouts=kinds,  # type: ignore[arg-type]
        retinotopy=maps,  # type: ignore[arg-type]
        sharing=(False, True) if share_features else (False,),
        vgg_weights=None if vgg_weights is None else str(vgg_weights),
        core_seeds=core_seeds,
        model=shared.model_of(small or simulate, quick, {"feature_dtype": "bfloat16"} if bfloat16 else None),
        seed=seed,
    )
    settings.variants()  # what cannot be is said before recordings are read
    if within and source is not None:
        raise ValueError("--within: want no --source beside it, since half of the target's neurons are the source")
    if simulate:
        sessions, last = shared.simulated_animals(quick, seed, share_features, behavior_channels)
        target = target or ",".join(last)
        if source is None and not within:
            named = shared.chosen("target", target, sessions)
            source = ",".join(name for name in sessions if name not in (named or {}))
    else:
        sessions = shared.sessions_of(data, scale, raw_images, behavior_channels)
    sources = shared.chosen("source", source, sessions)
    targets = shared.chosen("target", target, sessions)
    if targets is None:
        targets = {name: one for name, one in sessions.items() if name not in (sources or {})}
    if not targets:
        raise ValueError(f"--source: want some of {', '.join(sessions)}, so that others are left to predict, got all")
    shared.said_of_arms(kinds, maps)
    rows = curves(run(sources, targets, settings, out=out))
    table = summarise(rows, ("readout", "arm", "images"), method=method)
    where = "to other neurons of the animal" if sources is None else "to another animal"
    one_kind = len({row["kind"] for row in rows}) == 1
    variants = any(row["variant"] != PLAIN for row in rows)
    figure = curves_figure(
        rows,
        panels="variant" if one_kind and variants else "kind",
        down="variant" if variants and not one_kind else None,
        curves="arm",
        title=f"Transfer {where}: {rows[0]['neurons']} neurons{', ' + rows[0]['kind'] if one_kind else ''}",
        method=method,
        beside=beside_transfer(rows) if published else (),
        crossing=CROSSING_IMAGES if published and any(row["arm"] == "core of 1 scan" for row in rows) else None,
    )
    shared.finish(out, rows, table, {"transfer": figure})
