"""``v1fast normative``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v1fast.cli import _gratings as shared
from v1fast.cli._common import Json, Quick, Quiet, in_one_line, need, print_json
from v1fast.cli._experiments import words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from v1fast.normative import Normative

EPILOG = """
Examples:

v1fast normative      a simulated population of 23,589 neurons

v1fast normative W3D4_stringer_oribinned1.npz --seeds 5 --out out/normative

v1fast normative --filters 8 --size 5 --patch --tasks orientation,rotation

The folder gets similarity.csv (each layer, task and seed) and pictures.
"""


@in_one_line
def normative(
    data: shared.Data = None,
    out: Annotated[Path, typer.Option(help="Folder for table and pictures.")] = Path("out/normative"),
    neurons: shared.Neurons = None,
    tasks: Annotated[
        str, typer.Option(help="Beside tilt: some of orientation, rotation, objects; or none.")
    ] = "orientation,rotation,objects",
    encoding: Annotated[bool, typer.Option(help="Fit an encoding model to some of the neurons.")] = True,
    encoding_neurons: Annotated[int, typer.Option(min=1, help="That it is fitted to.")] = 2000,
    filters: Annotated[int, typer.Option(min=2, help="Of the convolution.")] = 6,
    size: Annotated[int, typer.Option(min=3, help="Of a filter, in pixels, odd.")] = 7,
    patch: Annotated[bool, typer.Option("--patch", help="Gratings are patches on grey.")] = False,
    bin_degrees: Annotated[float, typer.Option(help="Bins of V1 that matrices are cross-validated over.")] = 6.0,
    epochs: Annotated[int, typer.Option(min=1, help="Of the training.")] = 25,
    images: Annotated[int, typer.Option(min=1, help="To learn from.")] = 1000,
    seeds: Annotated[int, typer.Option(min=1, help="Networks for each task.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of the first.")] = 12,
    quick: Quick = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train networks on tasks, and compare their layers with V1 by dissimilarity matrices."""
    chosen = tuple(word for word in words(tasks) if word != "none")
    need("decode", "matplotlib", "sklearn", "rich")
    if {"rotation", "objects"} & set(chosen):
        need("decode", "skimage")
    from v1fast.normative import NormativeSettings, compare_with_v1

    settings = NormativeSettings(
        seed=seed,
        seeds=1 if quick else seeds,
        tasks=("tilt", *chosen),
        encoding=encoding,
        encoding_neurons=min(encoding_neurons, 200) if quick else encoding_neurons,
        filters=filters,
        size=size,
        patch=patch,
        bin_degrees=bin_degrees,
        epochs=min(epochs, 3) if quick else epochs,
        images=min(images, 200) if quick else images,
    )
    shared.check_folder(out)
    population = shared.population(data, min(neurons or 1000, 1000) if quick else neurons)
    found = compare_with_v1(population, settings, show=not (quiet or as_json))
    table = _table(found)
    if as_json:
        print_json({"ceiling": found.v1.ceiling, "layers": table})
    elif not quiet:
        count = found.v1.responses.shape[1]
        shared.show(f"Similarity with {count:,} neurons of V1: correlation of dissimilarity matrices", table)
        _say(found)
    shared.write(out, {"similarity": found.rows}, lambda: _pictures(found), say=not (quiet or as_json))


def _table(found: Normative) -> list[dict[str, Any]]:
    """Means over seeds."""
    from v1fast._tables import summarise

    by = ("system", "layer")
    plain, crossvalidated = (summarise(found.rows, by, key) for key in ("similarity", "crossvalidated"))
    solved = {(row["system"], row["layer"]): row["solved"] for row in reversed(found.rows)}
    return [
        {
            "system": one["system"],
            "layer": one["layer"],
            "single stimuli": one["mean"],
            "cross-validated": other["mean"],
            "networks": one["subsets"],
            "task (first network)": solved[one["system"], one["layer"]],
        }
        for one, other in zip(plain, crossvalidated, strict=True)
    ]


def _say(found: Normative) -> None:
    v1 = found.v1
    if v1.crossvalidated is None:
        typer.echo("\nOne stimulus in each bin: V1's matrix is not cross-validated. A larger --bin-degrees makes it.")
    elif v1.ceiling is not None:
        low, high = v1.ceiling
        typer.echo(f"\nA true model's matrix would be similar to V1's, cross-validated, by {low:.3f} to {high:.3f}.")
    if v1.undefined:
        typer.echo(f"{v1.undefined} pairs of bins are undefined: no response of theirs repeats.")


def _pictures(found: Normative) -> dict[str, Figure]:
    from v1fast.normative import figures

    settings = found.settings
    return {
        "stimuli": figures.stimuli(settings.image_shape),
        "filters": figures.filters(found.trained["CNN"], settings.filters, settings.size),
        "losses": figures.losses(found.trained),
        "rdms": figures.rdms(found),
        "rows": figures.rows(found),
        "tuning": figures.tuning(found),
        "maps": figures.maps(found),
        "layers": figures.layers(found),
        "tasks": figures.tasks(found.rows, found.v1.ceiling),
    }
