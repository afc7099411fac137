"""From recordings to what :func:`v1fast.training.fit` takes: prepared batches, on a device or read ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v1fast._batches import ReadBatches, TensorBatches
from v1fast.data.preparation import ROWS, Normalization, Preparation, Prepared, normalization
from v1fast.data.recording import TIERS, Recording

Loaders = dict[str, dict[str, "TensorBatches | ReadBatches"]]


def loaders(
    recordings: Recording | Mapping[str, Recording],
    batch_size: int = 128,
    seed: int = 0,
    tiers: Sequence[str] | None = None,
    *,
    device: str | torch.device | None = None,
    preparation: Preparation | None = None,
    normalizations: Mapping[str, Normalization] | None = None,
    memory: int = 2 * 2**30,
    workers: int = 2,
    drop_undefined: bool = False,
    frames: int | None = None,
    skip_frames: int = 0,
) -> Loaders:
    """Make loaders by tier and session: ``fit(encoder, made["train"], made["validation"])``.

    A batch is a dict of float32: "images" [B, C, H, W], "responses" [B, N], and, where the recording has them,
    "behavior" [B, K] and "pupil_center" [B, 2], which an encoder hands to its modulator and shifter. Trials of "train"
    come in random order, which is a function of seed and epoch, the same wherever they lie and with any number of
    workers; those of other tiers in the order of the recording.

    Args:
        recordings: one, or several by the name that they have in the model.
        batch_size: trials of a batch.
        seed: of the order.
        tiers: which ones; None: all that the recordings have. A tier that a recording lacks has no loader of it.
        device: where prepared trials lie, or where batches go that are read; None: in memory.
        preparation: normalisation, scale, channels; default :class:`Preparation`.
        normalizations: by session, see :func:`normalization`; those of a model whose training was on other files.
            Default: of each recording.
        memory: bytes that the prepared trials of all sessions may take on the device, 2 GiB. A session that does not
            fit is read from its files again in each epoch, some batches ahead.
        workers: threads that read ahead; 0: none.
        drop_undefined: leave out trials in which responses, behaviour or pupil are not finite. To find them takes one
            pass over the files.
        frames: of videos, length T of a clip: batches are "images" [B, C, T, H, W] and "responses" [B, T', N].
            None: every frame is an image.
        skip_frames: of the responses to a clip the first ones that a model without padding does not predict:
            T' = T - skip_frames.

    Returns:
        Tier -> session -> loader: of batches, with ``len``, ``dataset`` and ``set_epoch``.

    Raises:
        ValueError: no recording has trials of a tier; what is wanted is not in a recording; nothing to normalise by.

    >>> import numpy as np
    >>> from v1fast.data import Recording
    >>> recording = Recording(np.random.rand(20, 1, 36, 64), np.random.rand(20, 5), tiers=["train"] * 15 + ["test"] * 5)
    >>> made = loaders({"mouse": recording}, batch_size=8, tiers=["train", "test"])
    >>> [len(batch["responses"]) for batch in made["train"]["mouse"]]
    [8, 7]
    """
    sessions = {recordings.name: recordings} if isinstance(recordings, Recording) else dict(recordings)
    preparation = preparation or Preparation()
    where = None if device is None else torch.device(device)
    if tiers is None:
        tiers = [tier for tier in dict.fromkeys((*TIERS, *_tiers(sessions))) if tier in _tiers(sessions)]
    made: Loaders = {tier: {} for tier in tiers}
    left = memory
    for name, recording in sessions.items():
        if normalizations is not None and name not in normalizations:
            raise ValueError(f"normalizations: want one of session {name}, got {', '.join(normalizations) or 'none'}")
        by = normalization(recording, preparation) if normalizations is None else normalizations[name]
        parts = _parts(recording, preparation, by, tiers, drop_undefined, frames, skip_frames)
        size = sum(part.size for part in parts.values())
        for tier, part in parts.items():
            if not len(part):
                continue
            shuffle = tier == "train"
            if size > left:
                made[tier][name] = ReadBatches(part.__getitem__, len(part), batch_size, shuffle, seed, workers, where)
            else:
                made[tier][name] = TensorBatches(part.resident(where), batch_size, shuffle, seed)
        left -= size if size <= left else 0
    empty = [tier for tier, found in made.items() if not found]
    if empty:
        known = ", ".join(_tiers(sessions)) or "no trials"
        raise ValueError(f"tiers: want trials of {empty[0]}, got recordings with {known}")
    return made


def _tiers(sessions: Mapping[str, Recording]) -> list[str]:
    return sorted({str(tier) for recording in sessions.values() for tier in recording.tiers})


class Clips(Prepared):
    """Prepared trials, or clips of successive frames, of one tier.

    Args:
        recording, preparation, normalization, trials: see :class:`Prepared`.
        frames: of a clip; None: single trials.
        skip_frames: responses at the beginning of a clip that are left out.
    """

    def __init__(
        self,
        recording: Recording,
        preparation: Preparation,
        normalization: Normalization,
        trials: NDArray[np.int64],
        frames: int | None = None,
        skip_frames: int = 0,
    ) -> None:
        super().__init__(recording, preparation, normalization, trials)
        self.frames, self.skip = frames, skip_frames
        self.starts = None if frames is None else _starts(recording, trials, frames, frames - skip_frames)

    def __len__(self) -> int:
        return len(self.trials) if self.starts is None else len(self.starts)

    @property
    def size(self) -> int:
        """Bytes of all of them, prepared."""
        shape = self.preparation.image_shape(self.recording)
        widths: dict[str, Any] = {name: getattr(self.recording, name, None) for name in self.fields}
        beside = sum(1 if rows is None else int(rows.shape[1]) for rows in widths.values())
        values = math.prod(shape) + self.recording.responses.shape[1] + beside
        return 4 * values * len(self) * (self.frames or 1)

    def __getitem__(self, rows: Any) -> dict[str, Tensor]:
        if self.starts is None or self.frames is None:
            return super().__getitem__(rows)
        if isinstance(rows, int | np.integer):
            return {name: values[0] for name, values in self[[int(rows)]].items()}
        places = self.starts[np.asarray(rows)][:, None] + np.arange(self.frames)
        fields = super().__getitem__(places.ravel())
        clips = {name: values.unflatten(0, places.shape) for name, values in fields.items()}
        clips["images"] = clips["images"].transpose(1, 2)
        clips["responses"] = clips["responses"][:, self.skip :]
        return clips

    def resident(self, device: torch.device | None) -> dict[str, Tensor]:
        """All of them, prepared, on a device."""
        whole: dict[str, Tensor] = {}
        for start in range(0, len(self), ROWS):
            rows = np.arange(start, min(start + ROWS, len(self)))
            for name, values in self[rows].items():
                if name not in whole:
                    whole[name] = torch.empty((len(self), *values.shape[1:]), device=device)
                whole[name][start : start + len(rows)] = values
        return whole


def _parts(
    recording: Recording,
    preparation: Preparation,
    by: Normalization,
    tiers: Sequence[str],
    drop_undefined: bool,
    frames: int | None,
    skip_frames: int,
) -> dict[str, Clips]:
    if frames is not None and not 0 <= skip_frames < frames:
        raise ValueError(f"skip_frames: want 0 to frames - 1 = {frames - 1}, got {skip_frames}")
    if frames is not None and recording.sequences is None:
        raise ValueError(f"frames: want a recording of videos, got {recording!r}")
    parts = {}
    for tier in tiers:
        trials = recording.in_tier(tier)
        if drop_undefined:
            trials = trials[_defined(recording, trials, preparation.fields_of(recording))]
        parts[tier] = Clips(recording, preparation, by, trials, frames, skip_frames)
    return parts


def _defined(recording: Recording, trials: NDArray[np.int64], fields: Sequence[str]) -> NDArray[np.bool_]:
    """Which trials are finite in all that a model is given."""
    defined = np.ones(len(trials), bool)
    for name in ("responses", *fields):
        rows: Any = getattr(recording, name, None)
        for start in range(0, 0 if rows is None else len(trials), ROWS):
            part = slice(start, start + ROWS)
            defined[part] &= np.isfinite(rows[trials[part]]).all(1)
    return defined


def _starts(recording: Recording, trials: NDArray[np.int64], frames: int, step: int) -> NDArray[np.int64]:
    """Places in ``trials`` where clips begin, so that each of their responses is wanted once."""
    starts = [np.arange(part[0], part[-1] + 2 - frames, step) for part in stretches(recording, trials)]
    return np.concatenate(starts) if starts else np.zeros(0, np.int64)


def stretches(recording: Recording, trials: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Places in ``trials`` of frames that follow each other in one video, a list for each such stretch."""
    sequences: Any = recording.sequences
    breaks = np.flatnonzero((np.diff(trials) != 1) | (np.diff(sequences[trials]) != 0)) + 1
    return [part for part in np.split(np.arange(len(trials)), breaks) if len(part)]
