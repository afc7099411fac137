"""``v1fast fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from v1fast.cli import _common
from v1fast.cli._common import Json, Quiet, in_one_line, need, print_json, read_recordings

EPILOG = """
Examples:

v1fast fit static26872-17-20-GrayImageNet-94c6.zip   the Sensorium baseline of one recording, into out/fit

v1fast fit animal1 animal2 animal3 --preset sensorium+ --out out/three   one core, with behaviour and eye position

v1fast fit animal1 --set readout=FullFactorized2d --set training.epochs=50 --out out/factorised

v1fast fit animal1 --config out/fit/config.yaml --out out/again

v1fast fit --preset small --print-config > run.yaml   a file to begin with

v1fast fit animal1 --devices 4   four processes, or four GPUs, that share each batch

The same command goes on where it was stopped, by Ctrl-C too, with any --devices.
"""


@in_one_line
def fit(
    data: Annotated[
        list[Path] | None,
        typer.Argument(help="Recordings, files or folders; several share one core."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("out/fit"),
    preset: Annotated[
        str | None,
        typer.Option(help="sensorium, sensorium+, lurz2020 or small.", show_default="sensorium"),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="File of YAML, on top of the preset.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One value, e.g. core.layers=3; repeatable.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="The most epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Trials of each recording in a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The first learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initial values, order and sampled positions.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    devices: Annotated[int | None, typer.Option(help="GPUs, or processes on the CPU, that share each batch.")] = None,
    num_nodes: Annotated[int | None, typer.Option(help="Machines with as many devices each.")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the configuration, and leave.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fit a model to recordings, judge it on test trials, and write model, metrics and a report into a folder."""
    need("fit", "yaml", "jinja2", "lightning", "torchmetrics", "safetensors")
    from v1fast.runs import configure

    overrides: dict[str, Any] = {
        "training.epochs": epochs,
        "training.batch_size": batch_size,
        "training.learning_rate": learning_rate,
        "seed": seed,
        "machine.device": device,
        "machine.devices": devices,
        "machine.num_nodes": num_nodes,
    }
    configuration = configure(preset, config, settings or (), overrides)
    if print_config:
        typer.echo(str(configuration), nl=False)
        return
    if not data:
        raise ValueError("DATA: want at least one recording, got none")
    _run(data, configuration, out, quiet, as_json)


def _run(data: list[Path], configuration: Any, out: Path, quiet: bool, as_json: bool) -> None:
    from rich.console import Console

    from v1fast.runs import fit_recordings, rank_of
    from v1fast.runs.folder import command_line

    rank = rank_of(configuration).number
    if rank:  # it prints nothing but its own errors
        _common.speaker = f"rank {rank}: "
        quiet = True
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
    recordings = read_recordings(data, configuration.data.format)
    for recording in recordings.values():
        console.print(repr(recording), markup=False)
    try:
        outcome = fit_recordings(
            recordings, configuration, out, command=command_line(), show=not quiet, console=console
        )
    except KeyboardInterrupt as pressed:
        pressed.__notes__ = [f"the same command {'goes on' if (out / 'last.ckpt').exists() else 'begins again'}"]
        raise
    for note in outcome.notes:
        console.print(f"Note: {note}", markup=False)
    if outcome.state == "interrupted":
        interrupt = KeyboardInterrupt()
        interrupt.__notes__ = [f"{outcome.folder.model} holds the best so far; the same command goes on"]
        raise interrupt
    if rank:
        return
    if as_json:
        print_json({"out": str(out), "state": outcome.state, **outcome.metrics})
        return
    if outcome.state == "unchanged":
        console.print(f"{out}: this run is finished: nothing was done; another --out begins a new one", markup=False)
    if not quiet:
        from v1fast.cli.evaluate import print_metrics

        print_metrics(outcome.metrics)
        console.print(f"Look at {out / 'report.html'}", markup=False)
