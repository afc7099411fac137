"""``v1fast data``: download, show and simulate recordings."""

from pathlib import Path
from typing import Annotated

import typer

from v1fast.cli._common import in_one_line, need

app = typer.Typer(no_args_is_help=True, help="Recordings: download published ones, show what is in a file, simulate.")

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("get", epilog="Example: v1fast data get lurz2020 --folder data")
@in_one_line
def get(
    name: Annotated[str, typer.Argument(help="stringer, stringer-halves, lurz2020 or sensorium2022.")],
    folder: Annotated[Path, typer.Option(help="Folder to write to, in a folder of that name.")] = Path("data"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Download a published recording; what was begun goes on where it ended."""
    from v1fast import data

    got = data.get(name, folder, show=not (quiet or as_json))
    if as_json:
        _print_json(
            [{"path": str(one.path), "sha256": one.sha256, "new": one.new, "checked": one.checked} for one in got]
        )
        return
    if quiet:
        return
    published = data.PUBLISHED[name]
    typer.echo(f"{published.about}; its licence: {published.page}")
    for one in got:
        known = (
            f"checked by {one.checked}" if one.checked else f"SHA-256 {one.sha256} recorded: the publisher gives none"
        )
        typer.echo(f"{one.path}: {'downloaded' if one.new else 'is there'}, {known}")


@app.command("show", epilog="Example: v1fast data show data/sensorium2022")
@in_one_line
def show(
    paths: Annotated[list[str], typer.Argument(help="Files or folders; one that holds several recordings shows all.")],
    format: Annotated[
        str | None, typer.Option(help="sensorium, openretina, stringer, arrays or nwb; default: by what is there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what is in recordings, without reading the responses."""
    from v1fast.data import read_all

    recordings = read_all(*paths, format=format)
    if as_json:
        _print_json({name: recording.summary() for name, recording in recordings.items()})
        return
    for recording in recordings.values():
        typer.echo(f"{recording!r}; {recording.source}")


@app.command("simulate", epilog="Example: v1fast data simulate out/animals --animals 4 --neurons 1000 --train 4000")
@in_one_line
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder to write the recordings into.")],
    animals: Annotated[int, typer.Option(help="Number of animals.")] = 2,
    neurons: Annotated[int, typer.Option(help="Neurons of each.")] = 200,
    train: Annotated[int, typer.Option(help="Training images of each, shown once.")] = 1000,
    validation: Annotated[int, typer.Option(help="Validation images of each, shown once.")] = 100,
    test: Annotated[int, typer.Option(help="Test images, the same for all, shown 6 to 10 times.")] = 50,
    height: Annotated[int, typer.Option(help="Of an image, in pixels.")] = 36,
    width: Annotated[int, typer.Option(help="Of an image, in pixels.")] = 64,
    gaze: Annotated[float, typer.Option(help="Eye movements, standard deviation in pixels.")] = 0.7,
    subfields: Annotated[int, typer.Option(help="Of a neuron, at most: 1 to 3; with 1 it reads at its position.")] = 3,
    noise: Annotated[str, typer.Option(help="poisson or gamma.")] = "poisson",
    format: Annotated[str, typer.Option(help="sensorium, openretina, stringer or arrays.")] = "sensorium",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Write recordings of simulated animals, with pupil positions and running speed, and the truth beside them."""
    need("demo", "skimage")
    from v1fast.data import simulate_animals, write

    suffix = ".npz" if format in ("stringer", "arrays") else ""
    drawn = simulate_animals(
        animals,
        neurons,
        (height, width),
        train=train,
        validation=validation,
        test=test,
        noise=noise,  # type: ignore[arg-type]  # it is checked there
        gaze=gaze,
        subfields=subfields,
        seed=seed,
    )
    for one in drawn:
        recording = one.to_recording()
        path = out if format == "openretina" else out / f"{recording.name}{suffix}"
        write(recording, path, format)
        if not quiet:
            typer.echo(f"{path}: {recording!r}")


def _print_json(content: object) -> None:
    import json

    typer.echo(json.dumps(content, indent=2))
