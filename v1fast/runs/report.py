"""``report.html`` of a run: one file that holds all of it, to be looked at in a browser."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from v1fast import _files
from v1fast.runs.configuration import Configuration
from v1fast.runs.evaluation import Judgement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {
    "single_trial_correlation": "single trial",
    "correlation_to_average": "average",
    "feve": "FEVE",
    "fraction_oracle": "fraction oracle",
    "oracle_correlation": "oracle",
}
"""Metrics in tables of a run, and their headings; the first two are correlations."""


def write_report(
    path: Path,
    run: Mapping[str, Any],
    configuration: Configuration,
    epochs: Sequence[Mapping[str, float]],
    judgements: Mapping[str, Judgement],
    metrics: Mapping[str, Any],
) -> None:
    """Write the report; without matplotlib it has no pictures, and says so.

    Args:
        path: of the file, replaced at once.
        run: what ``run.json`` holds.
        configuration: of the run.
        epochs: of the training.
        judgements: by session.
        metrics: what ``metrics.json`` holds.
    """
    source = resources.files("v1fast.runs").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    text = environment.from_string(source).render(
        name=path.parent.resolve().name,
        run=run,
        configuration=str(configuration),
        headings=list(COLUMNS.values()),
        rows=metric_rows(metrics),
        pictures=_pictures(run, epochs, judgements) if find_spec("matplotlib") else None,
        judgements=judgements,
        trials=sum(judgement.trials for judgement in judgements.values()),
    )
    _files.replace(path, text.encode())


def metric_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """A row for each recording: name, tier, trials, images, neurons, then :data:`COLUMNS`; and one for all of several.

    Args:
        metrics: what ``metrics.json`` holds.
    """
    rows = []
    for name, session in metrics["sessions"].items():
        counts = [session["tier"], *(f"{session[key]:,}" for key in ("trials", "images", "neurons"))]
        rows.append([name, *counts, *(_number(session.get(key)) for key in COLUMNS)])
    if len(rows) > 1:
        neurons = sum(session["neurons"] for session in metrics["sessions"].values())
        values = [_number(metrics["all"].get(key)) for key in COLUMNS]
        rows.append(["all", "", "", "", f"{neurons:,}", *values])
    return rows


def _number(entry: Any) -> str:
    if isinstance(entry, Mapping):
        text = _number(entry.get("mean", entry.get("value")))
        low_high = [_number(value) for value in entry.get("interval", ())]
        return f"{text} [{', '.join(low_high)}]" if low_high else text
    return "" if entry is None or entry != entry else f"{entry:.3f}"


def _pictures(
    run: Mapping[str, Any], epochs: Sequence[Mapping[str, float]], judgements: Mapping[str, Judgement]
) -> list[tuple[str, str, str]]:
    """(heading, sentence below, PNG in base 64)."""
    from v1fast.runs import pictures

    placed = {name: judgement for name, judgement in judgements.items() if "x" in judgement.table}
    shapes = {name: session["image_shape"] for name, session in run["sessions"].items()}
    drawn = [
        ("Learning", "One value for each epoch. " + _EPOCHS, pictures.learning_curves(epochs, run["best_epoch"])),
        ("Neurons", _NEURONS, pictures.neurons(judgements)),
    ]
    if placed:
        drawn.append(("Where they look", _POSITIONS, pictures.positions(placed, shapes)))
    return [(heading, text, _png(figure)) for heading, text, figure in drawn]


_EPOCHS = "The validation correlation decides on the learning rate, on the end, and on the weights that are kept."
_NEURONS = (
    "Left: the fraction of neurons whose correlation is below a value. Right, where images were repeated: each dot is "
    "a neuron; the oracle predicts a trial by the other trials of its image."
)
_POSITIONS = (
    "Learned positions in the images that the model is given, moved by the mean shift by the eye where there is a "
    "shifter. The frame is the image."
)


def _png(figure: Figure) -> str:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return base64.b64encode(image.getvalue()).decode()
