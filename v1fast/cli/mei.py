"""``v1fast mei``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v1fast.cli._common import Json, Quiet, in_one_line, need, open_run, print_json

if TYPE_CHECKING:
    from torch import Tensor

EPILOG = """
Examples:

v1fast mei out/fit --neurons 0-23

v1fast mei out/fit --neurons 3,17,40 --norm 10 --range -1.5 1.5 --restarts 3

v1fast mei out/fit --session animal1 --neurons best:48 --fields 200   receptive fields too, over 200 images

Norm and range are in units of the prepared images: standard deviations of the recording's pixels. The folder gets
mei.npz (images [M, C, H, W], rates, background_rates [M], neurons [M]) and mei.png; with --fields also fields.npz and
fields.png.
"""


@in_one_line
def mei(
    run: Annotated[Path, typer.Argument(help="Folder that v1fast fit wrote.")],
    data: Annotated[Path | None, typer.Argument(help="A recording; by default that of the run.")] = None,
    neurons: Annotated[str, typer.Option(help="Such as 0-9,12; all; or best:24, the best predicted.")] = "best:24",
    out: Annotated[Path | None, typer.Option(help="Folder to write to.", show_default="RUN/mei")] = None,
    norm: Annotated[float | None, typer.Option(help="Of an image.", show_default="sqrt(pixels) / 4")] = None,
    range_: Annotated[tuple[float, float] | None, typer.Option("--range", help="Lowest and highest pixel.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of the ascent.")] = 300,
    restarts: Annotated[int, typer.Option(min=1, help="Noise images to start from; the best is kept.")] = 1,
    blur: Annotated[float, typer.Option(min=0, help="Smoothing of the gradient, pixels.")] = 0.0,
    fields: Annotated[int, typer.Option(min=0, help="Images to average receptive fields over; 0: none.")] = 0,
    session: Annotated[str | None, typer.Option(help="Of the model.", show_default="the only one")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find the images that excite a fitted model's neurons most, and their receptive fields."""
    need("fit", "yaml", "jinja2", "lightning", "torchmetrics", "safetensors")
    from v1fast.insilico import most_exciting_inputs, receptive_fields
    from v1fast.runs.insilico import choose_neurons, experiment, write_exciting, write_fields

    encoder, recordings, preparation = open_run(run, None if data is None else [data], device)
    about = experiment(encoder, recordings, preparation, session, max(fields, 1))
    chosen = choose_neurons(neurons, run, about)
    options: dict[str, Any] = {"data_key": about.session, "show": not (quiet or as_json), **about.state}
    height, width = about.image_shape[1:]
    found = most_exciting_inputs(
        encoder,
        about.image_shape,
        chosen,
        norm=norm if norm is not None or range_ is not None else (height * width) ** 0.5 / 4,
        value_range=range_,
        steps=steps,
        restarts=restarts,
        blur=blur,
        seed=seed,
        **options,
    )
    folder = out or run / "mei"
    written = write_exciting(folder, found)
    if fields:
        written += write_fields(folder, receptive_fields(encoder, about.images, chosen, **options))
    _say(found.rates, found.undefined, written, as_json=as_json, quiet=quiet)


def _say(rates: Tensor, undefined: int, written: list[Path], *, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json({"neurons": len(rates), "undefined": undefined, "files": [str(path) for path in written]})
    elif not quiet:
        missing = f"; {undefined} without any" if undefined else ""
        typer.echo(f"Most exciting inputs of {len(rates)} neurons{missing}: {', '.join(map(str, written))}")
