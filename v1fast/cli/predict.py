"""``v1fast predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from v1fast.cli._common import Json, Quiet, in_one_line, need, open_run, print_json

EPILOG = """
Examples:

v1fast predict out/fit animal1 --out animal1.npz

v1fast predict out/fit images.npy --session animal1 --out responses.npz   images [T, H, W] or [T, C, H, W]

The file holds predictions [T, N], in the units of the recording's responses, and responses [T, N], trials [T],
image_ids [T], tiers [T], unit_ids [N].
"""


@in_one_line
def predict(
    run: Annotated[Path, typer.Argument(help="Folder that v1fast fit wrote.")],
    data: Annotated[Path, typer.Argument(help="A recording, or images in a .npy file.")],
    out: Annotated[Path, typer.Option(help="The .npz file to write.")] = Path("predictions.npz"),
    tier: Annotated[str | None, typer.Option(help="Of the trials.", show_default="all")] = None,
    session: Annotated[str | None, typer.Option(help="Of the model, if the recording has another name.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predict responses to the trials of a recording, or to images."""
    need("fit", "yaml", "jinja2", "lightning", "torchmetrics", "safetensors")
    from v1fast.runs.prediction import predict_images, predict_recording, write_predictions

    if out.suffix != ".npz":
        raise ValueError(f"--out: want a name that ends in .npz, got {out}")
    if data.suffix == ".npy" and data.is_file():
        encoder, _, preparation = open_run(run, [], device)
        arrays = predict_images(encoder, data, preparation, session)
    else:
        encoder, recordings, preparation = open_run(run, [data], device)
        if len(recordings) != 1:
            raise ValueError(f"{data}: want one recording, got {', '.join(recordings)}")
        arrays = predict_recording(encoder, next(iter(recordings.values())), preparation, session, tier)
    write_predictions(out, arrays)
    trials, neurons = arrays["predictions"].shape
    if as_json:
        print_json({"out": str(out), "trials": trials, "neurons": neurons})
    elif not quiet:
        typer.echo(f"{out}: predictions of {trials} trials x {neurons} neurons")
