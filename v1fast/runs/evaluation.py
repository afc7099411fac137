"""How good a model is on recordings: predictions, metrics, one row for each neuron."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v1fast import metrics
from v1fast.data import Preparation, Recording, loaders
from v1fast.data.loaders import stretches
from v1fast.data.preparation import Prepared
from v1fast.metrics import Bootstrap, FractionOracleResult, Result
from v1fast.models import FiringRateEncoder, Positions, input_positions, of_session
from v1fast.models.geometry import lost_frames

Table = dict[str, NDArray[Any]]
FRAMES = 256  # of a video that are predicted at once
REPORTED = ("single_trial_correlation", "correlation_to_average", "feve")
OF_REPEATS = ("correlation_to_average", "oracle_correlation", "explainable_variance", "feve", "ccnorm")


@dataclass(frozen=True, eq=False)
class Predictions:
    """Responses and predictions of the trials of one recording, as the model has them: normalised.

    Attributes:
        predicted: [T, N], expected responses.
        responses: [T, N].
        trials: [T], their numbers in the recording.
        image_numbers: [T], equal for trials of the same image.
        factor: [N] or one number, what responses were multiplied by.
        shift: [2], the mean shift by the eye over these trials; None without a shifter.
    """

    predicted: Tensor
    responses: Tensor
    trials: NDArray[np.int64]
    image_numbers: NDArray[np.int64]
    factor: NDArray[np.float64]
    shift: Tensor | None = None

    def in_units(self, values: Tensor) -> NDArray[np.float32]:
        """In the recording's own units."""
        scaled: NDArray[np.float32] = (values.double().numpy() / self.factor).astype(np.float32)
        return scaled


@dataclass(frozen=True, eq=False)
class Judgement:
    """A model judged on the trials of one recording.

    Attributes:
        tier: of the trials.
        results: by the names of :func:`v1fast.metrics.evaluate`; those of repeats only where images were repeated.
        fraction_oracle: None without repeats.
        trials, images, repeated: numbers of trials, of images, and of images with several trials.
        table: of the neurons, see :func:`v1fast.metrics.neuron_table`.
    """

    tier: str
    results: Mapping[str, Result]
    fraction_oracle: FractionOracleResult | None
    trials: int
    images: int
    repeated: int
    table: Table

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        found: dict[str, Any] = {
            "tier": self.tier,
            "trials": self.trials,
            "images": self.images,
            "repeated_images": self.repeated,
            "neurons": len(self.table["unit"]),
        }
        for name, result in self.results.items():
            entry = {"mean": result.mean, "median": result.median, "undefined": result.undefined}
            entry |= {"below_threshold": result.below_threshold} if name == "feve" else {}
            found[name] = entry | _interval(result.interval)
        if self.fraction_oracle is not None:
            entry = {"value": self.fraction_oracle.value, "undefined": self.fraction_oracle.undefined}
            found["fraction_oracle"] = entry | _interval(self.fraction_oracle.interval)
        return found


def _interval(interval: Any) -> dict[str, Any]:
    return {} if interval is None else {"interval": [interval.low, interval.high], "confidence": interval.confidence}


@torch.no_grad()
def predict(
    encoder: FiringRateEncoder,
    recording: Recording,
    preparation: Preparation,
    *,
    session: str | None = None,
    tier: str | None = None,
    batch_size: int = 128,
) -> Predictions:
    """Expected responses to the trials of a tier; of a video to all frames but the first, which fill the filters.

    Args:
        encoder: with the ``normalization`` of its training, by session.
        recording: its trials.
        preparation: as in training.
        session: whose readout predicts; None: that of the recording's name.
        tier: None: all trials.
        batch_size: trials at once.

    Raises:
        ValueError: no such session in the model; no trials of the tier; another number of neurons.
    """
    name = session_for(encoder, recording, session)
    trials = np.arange(len(recording)) if tier is None else recording.in_tier(tier)
    where = recording.source or recording.name
    if not len(trials):
        raise ValueError(f"{where}: want trials of the tier {tier!r}, got {', '.join(sorted(set(recording.tiers)))}")
    if preparation.normalize and name not in encoder.normalization:
        raise ValueError(f"encoder.normalization: want that of session {name}, got {', '.join(encoder.normalization)}")
    normalization = encoder.normalization.get(name, {})
    predicted, responses, shifts, kept = [], [], [], []
    encoder.eval()
    for rows, batch in _batches(encoder, recording, preparation, normalization, trials, batch_size):
        fields = {key: values for key, values in batch.items() if key not in ("images", "responses")}
        predicted.append(encoder(batch["images"], data_key=name, **fields).flatten(0, -2).cpu())
        responses.append(batch["responses"].flatten(0, -2).cpu())
        kept.append(rows)
        if encoder.shifter is not None:
            shifter = of_session(encoder.shifter, name)
            shifts.append(shifter(fields["pupil_center"], fields.get("trial_idx")).flatten(0, -2).cpu())
    if not predicted:
        raise ValueError(f"{where}: want a video of more than {lost_frames(encoder.core)} frames in the tier {tier!r}")
    trials = trials[np.concatenate(kept)]
    factor = np.asarray(normalization.get("responses", {}).get("factor", 1.0), np.float64)
    return Predictions(
        torch.cat(predicted),
        torch.cat(responses),
        trials,
        recording.image_numbers[trials],
        factor,
        torch.cat(shifts).nanmean(0) if shifts else None,
    )


def _batches(
    encoder: FiringRateEncoder,
    recording: Recording,
    preparation: Preparation,
    normalization: Any,
    trials: NDArray[np.int64],
    batch_size: int,
) -> Iterator[tuple[NDArray[np.int64], dict[str, Tensor]]]:
    """Places in ``trials`` that have a prediction, and a batch of them; of videos one stretch of frames each."""
    device, lost = next(encoder.parameters()).device, lost_frames(encoder.core)
    if lost is None:
        tiers = np.where(np.isin(np.arange(len(recording)), trials), "chosen", "other")
        chosen = {"": dataclasses.replace(recording, tiers=tiers)}
        options: Any = {"preparation": preparation, "normalizations": {"": normalization}, "device": device}
        made = loaders(chosen, batch_size, tiers=("chosen",), memory=0, **options)["chosen"][""]
        places = np.split(np.arange(len(trials)), range(batch_size, len(trials), batch_size))
        yield from zip(places, made, strict=True)
        return
    prepared = Prepared(recording, preparation, normalization, trials)
    for part in stretches(recording, trials):
        for start in range(part[0], part[-1] + 1 - lost, FRAMES):
            rows = np.arange(start, min(start + FRAMES + lost, part[-1] + 1))
            clip = {name: values[None].to(device) for name, values in prepared[rows].items()}
            clip["images"] = clip["images"].transpose(1, 2)
            clip["responses"] = clip["responses"][:, lost:]
            yield rows[lost:], clip


def session_for(encoder: FiringRateEncoder, recording: Recording, session: str | None = None) -> str:
    """The session of a model that a recording is of.

    Raises:
        ValueError: there is none, or it has another number of neurons.
    """
    sessions: Any = encoder.readout
    name = session or recording.name
    where = recording.source or recording.name
    if name not in sessions:
        hint = "" if session else "; --session NAME says which it is"
        raise ValueError(f"{where}: want one of the model's sessions {', '.join(sessions)}, got {name}{hint}")
    neurons, got = int(of_session(sessions, name).outdims), recording.responses.shape[1]
    if neurons != got:
        raise ValueError(f"{where}: want the {neurons} neurons of session {name}, got {got}")
    return name


def judge(
    encoder: FiringRateEncoder,
    recording: Recording,
    preparation: Preparation,
    *,
    session: str | None = None,
    tier: str = "test",
    bootstrap: Bootstrap | None = None,
) -> Judgement:
    """Compare predictions with responses.

    Args:
        encoder, recording, preparation, session: see :func:`predict`.
        tier: of the trials.
        bootstrap: asks for intervals over images.

    Raises:
        ValueError: see :func:`predict`.
    """
    found = predict(encoder, recording, preparation, session=session, tier=tier)
    images, counts = np.unique(found.image_numbers, return_counts=True)
    repeated = int((counts > 1).sum())
    results = metrics.evaluate(found.responses, found.predicted, found.image_numbers, bootstrap=bootstrap)
    fraction = None
    if repeated:
        fraction = metrics.fraction_oracle(found.responses, found.predicted, found.image_numbers, bootstrap=bootstrap)
    else:
        results = {name: result for name, result in results.items() if not _of_repeats(name)}
    table = metrics.neuron_table(
        results,
        unit=recording.unit_ids,
        area=recording.neurons.get("area"),
        layer=recording.neurons.get("layer"),
        positions=positions(encoder, session_for(encoder, recording, session), found.shift),
    )
    return Judgement(tier, results, fraction, len(found.trials), len(images), repeated, table)


def _of_repeats(name: str) -> bool:
    return any(name.startswith(other) for other in OF_REPEATS)


def positions(encoder: FiringRateEncoder, session: str, shift: Tensor | None = None) -> Positions | None:
    """Where the neurons look, moved by a shift [2]; None for readouts or cores without such positions."""
    try:
        return input_positions(encoder.core, of_session(encoder.readout, session), shift)
    except (ValueError, AttributeError):
        return None


def overall(judgements: Mapping[str, Judgement]) -> dict[str, float]:
    """Means over the neurons of all recordings, by metric; NaN where no neuron has a value."""
    found = {}
    for name in dict.fromkeys(name for judgement in judgements.values() for name in judgement.results):
        values = [j.results[name].per_neuron for j in judgements.values() if name in j.results]
        found[name] = float(torch.cat(values).nanmean()) if values else math.nan
    return found


def joined(judgements: Mapping[str, Judgement]) -> Table:
    """The tables of several recordings in one; its first column is ``session``.

    A column that a recording lacks is NaN there, or empty text.
    """
    names = list(dict.fromkeys(name for judgement in judgements.values() for name in judgement.table))
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in ("session", *names)}
    for session, judgement in judgements.items():
        count = len(judgement.table["unit"])
        columns["session"].append(np.full(count, session))
        for name in names:
            columns[name].append(judgement.table.get(name, _missing(name, judgements, count)))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _missing(name: str, judgements: Mapping[str, Judgement], count: int) -> NDArray[Any]:
    kinds = {judgement.table[name].dtype.kind for judgement in judgements.values() if name in judgement.table}
    return np.full(count, "") if kinds & {"U", "S"} else np.full(count, np.nan)
