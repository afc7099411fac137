"""``v1fast readouts``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v1fast.cli import _experiments as shared
from v1fast.cli._common import Quick, in_one_line, need

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from v1fast._tables import Band

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
    retinotopy: shared.Retinotopies = "none",
    share_features: shared.Share = False,
    behavior: Annotated[
        bool, typer.Option("--behavior", help="Also with a shifter (pupil), a modulator (behaviour), and both.")
    ] = False,
    published: shared.Published = False,
    scale: shared.Scale = 1.0,
    raw_images: shared.NoImageNormalization = False,
    behavior_channels: shared.Channels = False,
    small: shared.Small = False,
    bands: shared.Bands = "t",
    seed: shared.Seed = 0,
    simulate: shared.Simulate = False,
    quick: Quick = False,
) -> None:
    """Compare readouts: fraction oracle against the number of images, for few neurons and many.

    Stopped, the same command goes on where it was.

    Examples:

      v1fast readouts recordings/26872 --retinotopy none,predicted,residual --out out/readouts

      v1fast readouts scan1 scan2 scan3 --share-features --raw-images     (scans of the same neurons)

      v1fast readouts --simulate --quick
    """
    need("train", "lightning", "torchmetrics", "safetensors")
    need("plot", "matplotlib")
    from v1fast.experiments import ComparisonSettings, compare_readouts, compared, summarise
    from v1fast.experiments.published import beside_comparison

    words, maps, method = shared.words(kinds), shared.words(retinotopy), shared.band_of(bands)
    settings = ComparisonSettings(
        images=shared.numbers("images", images) or ((24, 96) if quick else ()),
        neurons=shared.numbers("neurons", neurons),
        subsets=subsets or (2 if quick else 5),
        readouts=words,  # type: ignore[arg-type]
        sharing=(False, True) if share_features else (False,),
        retinotopy=maps,  # type: ignore[arg-type]
        behavior=behavior,
        model=shared.model_of(small or simulate, quick),
        seed=seed,
    )
    settings.variants()  # what cannot be is said before recordings are read
    if simulate:
        sessions, _ = shared.simulated_animals(quick, seed, share_features, behavior_channels, animals=1)
    else:
        sessions = shared.sessions_of(data, scale, raw_images, behavior_channels)
    shared.said_of_arms(words, maps)
    rows = compared(compare_readouts(sessions, settings, out=out))
    by = ("readout", "parameters_per_neuron", "neurons", "images")
    table = summarise(rows, by, method=method)
    shared.finish(out, rows, table, _pictures(rows, words, method, beside_comparison(rows) if published else ()))


def _pictures(
    rows: Sequence[Mapping[str, Any]], kinds: Sequence[str], method: "Band", beside: Sequence[Mapping[str, Any]]
) -> dict[str, "Figure"]:
    """The readouts side by side; what sharing and retinotopy add to each; what behaviour explains."""
    from v1fast.experiments.figures import bars_figure, curves_figure
    from v1fast.experiments.models import PLAIN

    # The Gaussian readouts with which behaviour is compared may be of no kind that was asked for.
    curves = [row for row in rows if not row["behavior"] and row["kind"] in kinds]
    plain = [row for row in curves if row["arm"] == PLAIN] or curves
    names = {row["curve"] for row in plain}
    drawn = [row for row in beside if row["curve"] in names]
    found = {
        "readouts": curves_figure(plain, panels="size", curves="curve", legend=LEGEND, method=method, beside=drawn)
    }
    if len(plain) < len(curves):
        found["arms"] = curves_figure(
            curves,
            panels="kind",
            down="size",
            curves="arm",
            numbers="parameters_per_neuron",
            method=method,
            beside=beside,
        )
    if any(row["behavior"] for row in rows):
        most = max(row["neurons"] for row in rows)
        wanted = [row for row in rows if row["neurons"] == most and (row["behavior"] or row["readout"] == "gaussian")]
        found["behavior"] = bars_figure(wanted, groups="readout", method=method)
    return found
