"""``v1fast decode``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v1fast.cli import _gratings as shared
from v1fast.cli._common import Json, Quick, Quiet, RealData, in_one_line, need, print_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from v1fast.decoding import Decoding

EPILOG = """
Examples:

v1fast decode      a simulated population of 23,589 neurons

v1fast decode W3D4_stringer_oribinned1.npz --splits 10 --out out/decode

v1fast decode recording.npz --bin-degrees 6 --width 50 --depth 2 --activation tanh

The folder gets errors.csv (each decoder and split), classes.csv, sizes.csv and pictures; with V1FAST_REAL_DATA, or
--real-data, also macaque.csv and pictures of 17 sessions of macaque V1.
"""


@in_one_line
def decode(
    data: shared.Data = None,
    out: Annotated[Path, typer.Option(help="Folder for tables and pictures.")] = Path("out/decode"),
    bin_degrees: Annotated[
        float | None, typer.Option(help="Mean responses in bins of this width.", show_default="as recorded")
    ] = None,
    period: Annotated[float, typer.Option(help="180: opposite directions are the same stimulus; needs DATA.")] = 360,
    neurons: shared.Neurons = None,
    splits: Annotated[int, typer.Option(min=1, help="Random splits of the stimuli, 60 % for training.")] = 5,
    width: Annotated[int, typer.Option(min=1, help="Units of a hidden layer.")] = 200,
    depth: Annotated[int, typer.Option(min=1, help="Hidden layers.")] = 1,
    activation: Annotated[str, typer.Option(help="none, relu, tanh or sigmoid; beside none and relu.")] = "relu",
    iterations: Annotated[int, typer.Option(min=1, help="Of gradient descent.")] = 50,
    rate: Annotated[float, typer.Option(help="Of gradient descent.")] = 1e-4,
    batch: Annotated[int, typer.Option(min=1, help="Stimuli of a step of SGD.")] = 20,
    batch_rate: Annotated[float, typer.Option(help="Of SGD.")] = 1e-5,
    classes: Annotated[int, typer.Option(min=2, help="Classes of directions.")] = 20,
    class_iterations: Annotated[int, typer.Option(min=1, help="Of the softmax network.")] = 200,
    l1: Annotated[float, typer.Option(min=0, help="Penalty of the softmax network.")] = 5e-4,
    l2: Annotated[float, typer.Option(min=0, help="Penalty of the softmax network.")] = 1e-2,
    seed: Annotated[int, typer.Option(min=0, help="Of the first split.")] = 4,
    real_data: RealData = None,
    quick: Quick = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Decode the direction of gratings from the responses of thousands of neurons."""
    need("decode", "matplotlib", "sklearn", "rich")
    from v1fast._tables import summarise
    from v1fast.decoding import DecodingSettings
    from v1fast.decoding import decode as run

    given: dict[str, Any] = {
        "splits": min(splits, 2) if quick else splits,
        "width": width,
        "depth": depth,
        "activation": activation,
        "iterations": iterations,
        "rate": rate,
        "batch": batch,
        "batch_rate": batch_rate,
        "classes": classes,
        "class_iterations": min(class_iterations, 50) if quick else class_iterations,
        "l1": l1,
        "l2": l2,
        "seed": seed,
    }
    if quick:
        given |= {"widths": (2, 20), "depths": (1, 2), "tries": 1}
    settings = DecodingSettings(**given)
    shared.check_folder(out)
    population = shared.population(data, min(neurons or 1000, 1000) if quick else neurons, bin_degrees, period)
    found = run(population, settings, show=not (quiet or as_json))
    macaque, macaque_pictures = _macaque(real_data, quick, not (quiet or as_json))
    tables = {"errors": found.rows, "classes": found.class_rows, "sizes": found.sizes} | macaque
    table = [
        {
            "decoder": row["decoder"],
            "error on the circle": row["mean"],
            "95 % interval": f"{row['low']:.3g} to {row['high']:.3g}" if row["subsets"] > 1 else "",
            "on the line": line["mean"],
        }
        for row, line in zip(
            *(summarise(found.rows, ("decoder",), f"{kind}_error") for kind in ("circular", "plain")), strict=True
        )
    ]
    if as_json:
        print_json({"decoders": table, "classes": found.class_rows, "macaque": macaque.get("macaque", [])})
    elif not quiet:
        shared.show("Mean errors in degrees on held-out stimuli", table)
        _say(found)
    shared.write(out, tables, lambda: _pictures(found, quick) | macaque_pictures, say=not (quiet or as_json))


def _say(found: Decoding) -> None:
    accuracy, near, chance = (
        sum(row[key] for row in found.class_rows) / len(found.class_rows)
        for key in ("accuracy", "at_most_one_class_off", "chance")
    )
    typer.echo(
        f"\nOf {found.settings.classes} classes the softmax network finds {accuracy:.0%} ({near:.0%} to within one; "
        f"chance {chance:.0%}).\nWritten gradients differ from autograd's by {found.gradient_difference:.0e}, relative."
    )
    if found.population.z_scored_here:
        typer.echo("The responses were not z-scored over stimuli; here they are.")


def _pictures(found: Decoding, quick: bool) -> dict[str, Figure]:
    from v1fast.decoding import board_losses, figures

    widths, depths = ((4, 16), (1, 2)) if quick else ((4, 8, 16, 32), (1, 2, 3))
    steps = 50 if quick else 800
    boards = board_losses(widths, depths, squares=4, steps=steps)
    return {
        "data": figures.data_matrix(found.population),
        "tuning": figures.tuning(found.population),
        "losses": figures.losses(found.first),
        "decoded": figures.decoded_against_true(found.first, found.rows, found.settings.classes),
        "errors": figures.errors(found.rows, found.class_rows),
        "weights": figures.class_weights(found.classified, found.population),
        "sizes": figures.sizes(found.sizes),
        "xor": figures.boards(widths, depths, boards, steps=steps),
    }


def _macaque(
    real_data: Path | None, quick: bool, show: bool
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Figure]]:
    """Table and pictures of the macaque sessions; nothing where their folder is not there."""
    if real_data is None or not (real_data / "ecker_macaque_v1").is_dir():
        return {}, {}
    from v1fast.decoding import analyse_macaque, figures

    sessions = analyse_macaque(real_data, show=show, **({"sessions": 2} if quick else {}))
    pictures = {"macaque": figures.macaque(sessions), "macaque_rdms": figures.macaque_rdms(sessions)}
    return {"macaque": [session.row() for session in sessions]}, pictures
