"""What ``v1fast transfer`` and ``v1fast readouts`` share: data, settings, and what is written at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from v1fast import _choices, _files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from v1fast._tables import Band
    from v1fast.experiments import ModelSettings, Session

Data = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Recordings: folders or files of any format that v1fast reads, or a folder that holds several."
    ),
]
Simulate = Annotated[bool, typer.Option("--simulate", help="Simulated animals and a small model, without any data.")]
Images = Annotated[str | None, typer.Option(help="Numbers of images, such as 64,256,1024; default: powers of two.")]
Subsets = Annotated[int | None, typer.Option(min=1, help="Random subsets of neurons and images, for the bands.")]
Scale = Annotated[float, typer.Option(help="Of the images' sides; 0.25 for Sensorium's 144 x 256 pixels.")]
NoImageNormalization = Annotated[
    bool, typer.Option("--raw-images", help="Leave images as they are, as Lurz et al. do.")
]
Channels = Annotated[
    bool,
    typer.Option("--behavior-channels", help="Behaviour and pupil as channels of the images, as Sensorium+ has them."),
]
Retinotopies = Annotated[
    str, typer.Option(help="Of Gaussian and pooled readouts: some of none, predicted (from cortex), residual.")
]
Share = Annotated[
    bool, typer.Option("--share-features", help="Compare with and without; recordings of the same neurons.")
]
Published = Annotated[bool, typer.Option("--published", help="Draw the values of Lurz et al. beside.")]
Small = Annotated[bool, typer.Option("--small", help="The small model that --simulate has, instead of the published.")]
Seed = Annotated[int, typer.Option(min=0, help="Of subsets, fits and simulated animals.")]
Bands = Annotated[str, typer.Option(help="Of the 95 % bands: t or bootstrap.")]


def numbers(name: str, text: str | None) -> tuple[int, ...]:
    """Numbers of an option, separated by commas.

    Raises:
        ValueError: something else is there.
    """
    try:
        return tuple(int(word) for word in words(text))
    except ValueError:
        raise ValueError(f"--{name}: want whole numbers separated by commas, got {text}") from None


def words(text: str | None) -> tuple[str, ...]:
    """Words of an option, separated by commas."""
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def band_of(text: str) -> Band:
    """How bands are computed; ValueError for another word, before anything is run."""
    _choices.one_of("--bands", text, ("t", "bootstrap"))
    return cast("Band", text)


def sessions_of(data: Sequence[Path] | None, scale: float, raw_images: bool, channels: bool) -> dict[str, Session]:
    """Read and prepare recordings.

    Raises:
        ValueError: none are given, or one cannot be read.
    """
    from v1fast.data import Preparation, read_all
    from v1fast.experiments import as_session

    if not data:
        raise ValueError("want recordings, or --simulate")
    normalized = ("responses", "behavior", "pupil_center", *(() if raw_images else ("images",)))
    prepared = {}
    for name, one in read_all(*data).items():
        pupil = channels and one.pupil_center is not None
        preparation = Preparation(normalized, scale, behavior_as_channels=channels, pupil_as_channels=pupil)
        prepared[name] = as_session(one, preparation)
    return prepared


def chosen(name: str, wanted: str | None, sessions: Mapping[str, Session]) -> dict[str, Session] | None:
    """Sessions named by an option, by their whole names or by parts that fit one; None without the option.

    Raises:
        ValueError: a name fits none, or several.
    """
    if wanted is None:
        return None
    found = {}
    for word in words(wanted):
        fits = [key for key in sessions if key == word] or [key for key in sessions if word in key]
        if len(fits) != 1:
            what = "several of them" if fits else "none of them"
            raise ValueError(f"--{name}: want one of {', '.join(sessions)}, got {word!r}, which fits {what}")
        found[fits[0]] = sessions[fits[0]]
    if not found:
        raise ValueError(f"--{name}: want names of recordings, got {wanted!r}")
    return found


def model_of(small: bool, quick: bool, normalized_scale: Mapping[str, Any] | None = None) -> ModelSettings:
    """Settings of the model."""
    from v1fast.experiments import SMALL, TINY, ModelSettings

    model = TINY if quick else SMALL if small else ModelSettings()
    return replace(model, **(normalized_scale or {}))


def simulated_animals(
    quick: bool, seed: int, matched: bool, channels: bool, animals: int | None = None
) -> tuple[dict[str, Session], list[str]]:
    """Sessions of simulated animals, and the names of the last animal's.

    Args:
        quick: fewer and smaller ones.
        seed: of the animals.
        matched: two animals, of two sessions each in which all neurons are the same.
        channels: behaviour and pupil are channels of the images.
        animals: how many; None: as many as the preset has.
    """
    from v1fast.experiments import QUICK, Simulated, simulated_sessions

    sizes = QUICK if quick else Simulated(seed=seed)
    sizes = replace(sizes, animals=2, sessions=2) if matched else sizes
    sizes = replace(sizes, animals=animals or sizes.animals, channels=channels)
    sessions = dict(simulated_sessions(sizes))
    return sessions, list(sessions)[-sizes.sessions :]


def said_of_arms(kinds: Sequence[str], retinotopy: Sequence[str]) -> None:
    """Say on stderr which readouts are compared without what is wanted, and why."""
    from v1fast.experiments.models import HAS_POSITIONS

    without = [kind for kind in kinds if kind not in HAS_POSITIONS]
    if without and set(retinotopy) - {"none"}:
        why = "each neuron weights all pixels, and so there is no position to predict"
        typer.echo(f"without retinotopy: {', '.join(without)} ({why})", err=True)


def finish(
    out: Path, rows: Sequence[Mapping[str, Any]], table: Sequence[Mapping[str, Any]], pictures: Mapping[str, Figure]
) -> None:
    """Write tables and pictures, and print the table."""
    import io

    from rich.console import Console
    from rich.table import Table

    from v1fast.experiments import write_csv

    flat = [{key: value for key, value in row.items() if not isinstance(value, Mapping)} for row in rows]
    write_csv(out / "results.csv", flat)
    write_csv(out / "table.csv", table)
    for name, figure in pictures.items():
        content = io.BytesIO()
        figure.savefig(content, format="png")
        _files.replace(out / f"{name}.png", content.getvalue())
    shown = Table(*[str(column) for column in table[0]], box=None)
    for row in table:
        shown.add_row(*[f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()])
    console = Console(markup=False, highlight=False)
    console.width = console.width if console.is_terminal else max(console.width, 140)
    console.print(shown)
    console.print(f"results.csv, table.csv and {', '.join(f'{name}.png' for name in pictures)} are in {out}")
