"""``v1fast accelerate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from v1fast.cli._common import Json, Quiet, benchmark, in_one_line, need, print_json

EPILOG = """
Examples:

v1fast accelerate sensorium_sota_model.pth   what is in it, and what is assumed

v1fast accelerate sensorium_sota_model.pth --out model.safetensors --speed

v1fast accelerate macaque.pt --image-shape 93 93 --core hidden_dilation=2 --readout pool_kern=3

What is written is read by v1fast.models.FiringRateEncoder.load. A model that your own program has made is accelerated
there, in place: print(v1fast.accelerate(model)).
"""
IMAGES = 32  # of a timed step


@in_one_line
def accelerate(
    checkpoint: Annotated[
        Path, typer.Argument(help="A state_dict of neuralpredictors or v1fast (.pth, .pt, .safetensors).")
    ],
    out: Annotated[Path | None, typer.Option(help="Write the encoder: a name that ends in .safetensors.")] = None,
    image_shape: Annotated[tuple[int, int], typer.Option(help="Height and width of the images.")] = (36, 64),
    core: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An argument of the core, e.g. pad_input=true.")
    ] = None,
    readout: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An argument of the readouts, e.g. pool_kern=3.")
    ] = None,
    speed: Annotated[bool, typer.Option("--speed", help="Time a step of the readout beside eager torch.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make a released checkpoint into a model whose readouts v1fast computes; say what was read off it."""
    need("fit", "yaml", "safetensors")
    from v1fast.runs.released import described, read_checkpoint, step_shape

    if out is not None and out.suffix != ".safetensors":
        raise ValueError(f"--out: want a name that ends in .safetensors, got {out}")
    encoder = read_checkpoint(checkpoint, image_shape, core or (), readout or ())
    found: dict[str, Any] = {"checkpoint": str(checkpoint), **described(encoder)}
    shape = step_shape(encoder, IMAGES) if speed else None
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        encoder.save(out)
        found["out"] = str(out)
    if shape is not None:
        found["speed"] = benchmark("one_step").time_readout(shape, 5)
    if as_json:
        print_json(found)
    elif not quiet:
        _print(found, speed, str(encoder.inferred or ""))


def _print(found: dict[str, Any], speed: bool, inferred: str) -> None:
    neurons = ", ".join(f"{name or 'one session'} {count:,}" for name, count in found["neurons"].items())
    lines = [f"{found['core']} and {found['readout']}, {found['parameters']:,} parameters; neurons: {neurons}"]
    lines += [inferred] if inferred else ["saved by v1fast: nothing is assumed"]
    if timed := found.get("speed"):
        sizes = ", ".join(f"{name} = {size}" for name, size in timed["shape"].items())
        lines.append(
            f"a training step of the readout, {sizes}: eager torch {timed['eager_ms']:.1f} ms, v1fast "
            f"{timed['v1fast_ms']:.1f} ms, {timed['ratio']:.1f} times as fast"
        )
    elif speed:
        lines.append(f"speed: only FullGaussian2d is timed here; v1fast bench times {found['readout']}")
    if "out" in found:
        lines.append(f"{found['out']}: written; v1fast.models.FiringRateEncoder.load reads it")
    typer.echo("\n".join(lines))
