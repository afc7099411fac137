"""What is done to trials before a model sees them: normalisation and channels as neuralpredictors makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from v1fast.data.recording import FIELDS, Recording
from v1fast.data.rows import Array

Normalization = Mapping[str, Mapping[str, Any]]
ROWS = 256  # read and converted at once: bounds the memory
SMALL = 0.01  # of the mean deviation: responses are divided by no smaller one


@dataclass(frozen=True)
class Preparation:
    """What is done to a trial, in this order, as in neuralpredictors and the Sensorium baselines.

    Attributes:
        normalize: which of "images", "responses", "behavior", "pupil_center", "trial_idx" are normalised. The model of
            Lurz et al. 2021 leaves the images out.
        scale: of the images' sides, in (0, 1], by bilinear interpolation without a filter. The Sensorium baselines have
            0.25.
        behavior_as_channels, pupil_as_channels: append them to the images, as channels of one value each.
        fields: which of "behavior", "pupil_center", "trial_idx" a batch holds beside images and responses. None: those
            of the first two that the recording has.

    Raises:
        ValueError: a name that is none of these; a scale out of range.
    """

    normalize: tuple[str, ...] = FIELDS
    scale: float = 1.0
    behavior_as_channels: bool = False
    pupil_as_channels: bool = False
    fields: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for what, names, known in (("normalize", self.normalize, FIELDS), ("fields", self.fields or (), FIELDS[2:])):
            unknown = [name for name in names if name not in known]
            if unknown:
                raise ValueError(f"{what}: want some of {', '.join(known)}, got {unknown[0]!r}")
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale: want a number in (0, 1], got {self.scale}")

    def fields_of(self, recording: Recording) -> tuple[str, ...]:
        """Names in a batch, beside "images" and "responses".

        Raises:
            ValueError: the recording lacks one that is wanted.
        """
        there = [name for name in ("behavior", "pupil_center") if getattr(recording, name) is not None]
        wanted = set(self.fields or ())
        wanted |= {"behavior"} if self.behavior_as_channels else set()
        wanted |= {"pupil_center"} if self.pupil_as_channels else set()
        for name in sorted(wanted - {"trial_idx"}):
            if name not in there:
                raise ValueError(f"{recording.name}: want {name}, got a recording without it")
        return tuple(there if self.fields is None else self.fields)

    def image_shape(self, recording: Recording) -> tuple[int, int, int]:
        """(C, H, W) of a prepared image: behaviour and pupil count as channels where they are appended."""
        channels, *sides = recording.images.shape[1:]
        extra = recording.behavior.shape[1] if self.behavior_as_channels and recording.behavior is not None else 0
        extra += 2 if self.pupil_as_channels else 0
        height, width = (max(round(self.scale * side), 1) for side in sides)
        return channels + extra, height, width


def statistics_of(recording: Recording, field: str) -> dict[str, Array]:
    """Mean and standard deviation of a field: those of the recording, else of its training trials.

    Of images over all pixels, else of each neuron or variable; trials that are not finite are left out.

    Raises:
        ValueError: there are no training trials to take them of.
    """
    given = recording.statistics.get(field)
    if given:
        return dict(given)
    trials = recording.in_tier("train")
    if not len(trials):
        raise ValueError(f"{recording.name}: {field}: want training trials to normalise by, got none")
    rows: Any = getattr(recording, field)
    if field == "images":
        rows, trials = recording.images, np.unique(recording.image_index[trials])
    count, mean, squares = 0.0, np.float64(0), np.float64(0)
    for start in range(0, len(trials), ROWS):
        values = np.asarray(rows[trials[start : start + ROWS]], np.float64)
        values = values.reshape(-1, 1) if field == "images" else values[np.isfinite(values).all(1)]
        if not len(values):
            continue
        own, total = values.mean(0), count + len(values)  # Chan, Golub & LeVeque 1983, Am. Stat. 37, 242
        squares = squares + ((values - own) ** 2).sum(0) + (own - mean) ** 2 * (count * len(values) / total)
        mean, count = mean + (own - mean) * (len(values) / total), total
    if not count:
        raise ValueError(f"{recording.name}: {field}: want finite values in training trials, got none")
    std = np.sqrt(squares / count)
    return {"mean": mean[0], "std": std[0]} if field == "images" else {"mean": mean, "std": std}


def normalization(recording: Recording, preparation: Preparation | None = None) -> dict[str, dict[str, Any]]:
    """What trials are normalised by, as numbers and arrays that ``FiringRateEncoder.save`` keeps.

    ``(value - mean) / std`` of images, "pupil_center" and "trial_idx"; ``value * factor`` of responses and behaviour. A
    neuron's factor is 1 / std, and no larger than that of a hundredth of the mean std.

    Args:
        recording: its statistics are taken, or those of its training trials where files give none.
        preparation: says of which fields; default all.

    Returns:
        Field -> {"mean", "std"} or {"factor"}.

    Raises:
        ValueError: something to divide by is not positive.
    """
    preparation = preparation or Preparation()
    used = {"images", "responses", *preparation.fields_of(recording)}
    used |= {"behavior"} if preparation.behavior_as_channels else set()
    used |= {"pupil_center"} if preparation.pupil_as_channels else set()
    made: dict[str, dict[str, Any]] = {}
    for field in FIELDS:
        if field not in used or field not in preparation.normalize:
            continue
        if field == "trial_idx":
            numbers = np.arange(len(recording))
            made[field] = {"mean": numbers.mean(), "std": numbers.std()}
            continue
        found = statistics_of(recording, field)
        _check(recording, field, found)
        if field in ("images", "pupil_center"):
            made[field] = {"mean": found["mean"], "std": found["std"]}
        else:
            made[field] = {"factor": _floored(found["std"]) if field == "responses" else 1 / found["std"]}
    return made


def _floored(std: Array) -> Array:
    """1 / std of each neuron, where that is more than a hundredth of the mean."""
    least = SMALL * std.mean()
    return np.where(std > least, 1 / np.where(std > least, std, 1), 1 / least)


def _check(recording: Recording, field: str, found: Mapping[str, Array]) -> None:
    sizes = {"images": (), "responses": (recording.responses.shape[1],), "pupil_center": (2,)}
    rows: Any = getattr(recording, field)
    want = sizes.get(field, (rows.shape[1],))
    for key, values in found.items():
        if key in ("mean", "std") and np.squeeze(values).shape != np.squeeze(np.empty(want)).shape:
            raise ValueError(f"{recording.name}: statistics of {field}: want {key} {want}, got {np.shape(values)}")
    std = np.asarray(found["std"])
    if not (std.mean() > 0 if field == "responses" else (std > 0).all()):
        raise ValueError(f"{recording.name}: statistics of {field}: want a std > 0, got {std.min():g}: it does not vary")


class Prepared:
    """Trials of a recording, prepared when they are read: a dataset for torch's loaders too.

    Args:
        recording: of which.
        preparation: what is done.
        normalization: see :func:`normalization`.
        trials: which of them; None: all.

    ``prepared[numbers]`` is a dict of float32 tensors, first axis trials; ``prepared[number]`` one trial.
    """

    def __init__(
        self,
        recording: Recording,
        preparation: Preparation,
        normalization: Normalization,
        trials: NDArray[np.int64] | None = None,
    ) -> None:
        self.recording, self.preparation, self.normalization = recording, preparation, normalization
        self.trials = np.arange(len(recording)) if trials is None else trials
        self.fields = preparation.fields_of(recording)

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, rows: Any) -> dict[str, Tensor]:
        if isinstance(rows, int | np.integer):
            return {name: values[0] for name, values in self[[int(rows)]].items()}
        trials = self.trials[np.asarray(rows)]
        fields = {"images": self._images(trials), "responses": self._field("responses", trials)}
        return fields | {name: self._field(name, trials) for name in self.fields}

    def _field(self, name: str, trials: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self._normalized(name, trials).astype(np.float32))

    def _normalized(self, name: str, trials: NDArray[np.int64]) -> Array:
        """In float64, so that float32 is rounded once, as there."""
        if name == "images":
            values = np.asarray(self.recording.images[self.recording.image_index[trials]], np.float64)
        elif name == "trial_idx":
            values = np.asarray(self.recording.trials.get(name, np.arange(len(self.recording))))[trials, None]
        else:
            rows: Any = getattr(self.recording, name)
            values = np.asarray(rows[trials], np.float64)
        by = self.normalization.get(name)
        if by is None:
            return values
        if "factor" in by:
            scaled: Array = values * np.asarray(by["factor"])
            return scaled
        return (values - np.asarray(by["mean"])) / np.asarray(by["std"])

    def _images(self, trials: NDArray[np.int64]) -> Tensor:
        images = torch.from_numpy(self._normalized("images", trials))
        _, height, width = self.preparation.image_shape(self.recording)
        if images.shape[2:] != (height, width):
            images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False)
        appended = [name for name, wanted in self._channels() if wanted]
        for name in appended:
            values = torch.from_numpy(self._normalized(name, trials))
            images = torch.cat([images, values[:, :, None, None].expand(*values.shape, height, width)], 1)
        return images.float()

    def _channels(self) -> list[tuple[str, bool]]:
        as_channels = self.preparation.behavior_as_channels, self.preparation.pupil_as_channels
        return list(zip(("behavior", "pupil_center"), as_channels, strict=True))
