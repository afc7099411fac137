"""Experiments in silico on the model of a run: which neurons, in which state of the animal, and the files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from v1fast import _files
from v1fast.data import Preparation, Recording
from v1fast.data.preparation import Prepared
from v1fast.insilico import ExcitingInputs, ReceptiveFields
from v1fast.models import FiringRateEncoder
from v1fast.models.geometry import lost_frames
from v1fast.runs.evaluation import session_for
from v1fast.runs.prediction import write_predictions


@dataclass(frozen=True)
class Experiment:
    """What images are like for a session's model, and the mean state of its animal.

    Attributes:
        session: of the model.
        neurons: how many it has.
        image_shape: (C, H, W) of the images, without channels of behaviour and pupil.
        images: [B, C, H, W], prepared images of training trials.
        state: "behavior", "pupil_center", "channels": means over these trials, for the models that take them.
    """

    session: str
    neurons: int
    image_shape: tuple[int, int, int]
    images: Tensor
    state: dict[str, Tensor]


def experiment(
    encoder: FiringRateEncoder,
    recordings: Mapping[str, Recording],
    preparation: Preparation,
    session: str | None = None,
    images: int = 1,
) -> Experiment:
    """Prepare experiments on one session.

    Args:
        encoder: with the ``normalization`` of its training, by session.
        recordings: by name.
        preparation: as in training.
        session: None: the only one.
        images: B, of training trials at even steps; at least 100 are read for the animal's state.

    Raises:
        ValueError: a model of videos; there is no such recording or session, or several and none was named; no
            training trials.
    """
    if lost_frames(encoder.core) is not None:
        raise ValueError("RUN: want a model of images, got one of videos")
    known = ", ".join(recordings)
    if session is None and len(recordings) != 1:
        raise ValueError(f"--session: want one of {known}, got none")
    if session is not None and len(recordings) > 1 and session not in recordings:
        raise ValueError(f"--session: want one of {known}, got {session}")
    recording = recordings.get(session or "", next(iter(recordings.values())))
    name = session_for(encoder, recording, session)
    trials = recording.in_tier("train")
    if not len(trials):
        raise ValueError(f"{recording.source or recording.name}: want trials of the tier 'train', got none")
    spread = trials[np.linspace(0, len(trials) - 1, min(max(images, 100), len(trials))).round().astype(int)]
    batch = Prepared(recording, preparation, encoder.normalization.get(name, {}), spread)[np.arange(len(spread))]
    device = next(encoder.parameters()).device
    channels = recording.images.shape[1]
    prepared = batch["images"][:images, :channels]
    state: dict[str, Tensor] = {key: batch[key].mean(0) for key in ("behavior", "pupil_center") if key in batch}
    if batch["images"].shape[1] > channels:
        state["channels"] = batch["images"][:, channels:].mean((0, 2, 3))
    _, height, width = prepared.shape[1:]
    return Experiment(
        session=name,
        neurons=recording.responses.shape[1],
        image_shape=(channels, height, width),
        images=prepared.to(device),
        state={key: values.to(device) for key, values in state.items()},
    )


def choose_neurons(text: str, run: Path, about: Experiment) -> list[int]:
    """Indices of neurons by what a user writes: ``0-9,12``, ``all``, ``best:24``.

    Args:
        text: what was written. The best are those of the highest single-trial correlation in the run's neurons.csv.
        run: its folder.
        about: of the session.

    Raises:
        ValueError: it is none of these, or a neuron is not there.
    """
    wanted = f"--neurons: want such as 0-9,12, all, or best:24, of {about.neurons} neurons, got {text}"
    if text == "all":
        return list(range(about.neurons))
    kind, _, count = text.partition(":")
    if kind == "best":
        if not count.isdecimal() or not int(count):
            raise ValueError(wanted)
        return _best(run / "neurons.csv", about, int(count))
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(wanted)
        low, high = int(first), int(last if dash else first)
        if not low <= high < about.neurons:
            raise ValueError(wanted)
        chosen += range(low, high + 1)
    return chosen


def _best(path: Path, about: Experiment, count: int) -> list[int]:
    with _files.reading(path), open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("session", about.session) == about.session]
        values = np.array([float(row["single_trial_correlation"] or "nan") for row in rows])
    if len(values) != about.neurons:
        raise ValueError(f"{path}: want {about.neurons} neurons of session {about.session}, got {len(values)}")
    order = np.argsort(-values)  # NaN comes last
    return [int(neuron) for neuron in order[:count]]


def write_exciting(folder: Path, found: ExcitingInputs) -> list[Path]:
    """Write mei.npz and, where matplotlib is installed, mei.png; return their paths."""
    arrays = {name: getattr(found, name) for name in ("images", "rates", "background_rates", "neurons")}
    return _write(folder, "mei", arrays, "exciting_inputs", found)


def write_fields(folder: Path, found: ReceptiveFields) -> list[Path]:
    """Write fields.npz and, where matplotlib is installed, fields.png; return their paths."""
    arrays = {name: getattr(found, name) for name in ("mean", "rms", "neurons")}
    return _write(folder, "fields", arrays, "receptive_fields", found)


def _write(folder: Path, name: str, arrays: Mapping[str, Tensor], draw: str, found: Any) -> list[Path]:
    written = [folder / f"{name}.npz"]
    write_predictions(written[0], {key: values.cpu().numpy() for key, values in arrays.items()})
    if find_spec("matplotlib"):
        from v1fast import plots

        picture = io.BytesIO()
        getattr(plots, draw)(found).savefig(picture, format="png")
        written.append(folder / f"{name}.png")
        _files.replace(written[1], picture.getvalue())
    return written
