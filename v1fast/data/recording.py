"""One type for all recordings: what was shown, what came of it, and what else is known of trials and neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v1fast import _arrays
from v1fast.data.rows import Array, Part, Rows, as_rows

TIERS = ("train", "validation", "test")
FIELDS = ("images", "responses", "behavior", "pupil_center", "trial_idx")
"""What a trial has: names in batches, in normalisation, and of the folders of the Sensorium format."""


@dataclass(eq=False, repr=False)
class Recording:
    """A session: images, and the responses of its neurons to them, trial by trial.

    Arrays may be NumPy's or torch's, mapped from files, or readers that read rows when asked
    (:class:`v1fast.data.rows.Rows`). Nothing is normalised here: :func:`v1fast.data.loaders` does that.

    Attributes:
        images: [I, C, H, W], real numbers; of videos, the frames.
        responses: [T, N], of T trials; of videos, of T frames. NaN is what was not measured.
        image_index: [T], int64, the row of ``images`` that a trial showed. Default: trial t showed image t.
        image_ids: [T], numbers or text; trials of one id showed the same image. Default: ``image_index``.
        tiers: [T], text: "train", "validation", "test", or others. Default: all "train".
        pupil_center: [T, 2], or None.
        behavior: [T, K], or None.
        cortex: [N, 2] or [N, 3], where the neurons lie, in micrometres, or None.
        unit_ids: [N]. Default: 0 to N - 1.
        neurons: name -> [N, ...], what else is known of the neurons.
        trials: name -> [T, ...], what else is known of the trials.
        sequences: of videos [T], int64: the trials of one number are successive frames; else None.
        statistics: "images", "responses", "behavior", "pupil_center" -> {"mean": ..., "std": ...}, as the files give
            them; empty where they do not.
        name: of the session, which models have as ``data_key``; without dots.
        source: file or folder that it was read from.

    Raises:
        ValueError: arrays that do not fit together; the message names the source, the array, what was wanted and what
            came.

    >>> import numpy as np
    >>> Recording(np.zeros((4, 1, 36, 64)), np.ones((4, 3)), tiers=["train", "train", "validation", "test"])
    Recording 'recording': 4 trials (train 2, validation 1, test 1), 3 neurons, images 1 x 36 x 64
    """

    images: Rows
    responses: Rows
    image_index: NDArray[np.int64] = None  # type: ignore[assignment]  # __post_init__ fills in defaults
    image_ids: Array = None  # type: ignore[assignment]
    tiers: Array = None  # type: ignore[assignment]
    pupil_center: Rows | None = None
    behavior: Rows | None = None
    cortex: Array | None = None
    unit_ids: Array = None  # type: ignore[assignment]
    neurons: Mapping[str, Array] = field(default_factory=dict)
    trials: Mapping[str, Array] = field(default_factory=dict)
    sequences: NDArray[np.int64] | None = None
    statistics: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    name: str = "recording"
    source: str = ""

    def __post_init__(self) -> None:
        self._take_rows()
        self._take_trials()
        self._take_neurons()
        if not self.name or "." in self.name:
            raise self._error("name", "text without dots", repr(self.name))

    def _take_rows(self) -> None:
        where = f"{self.source}: " if self.source else ""
        wanted = {"images": "[I, C, H, W]", "responses": "[T, N]", "behavior": "[T, K]", "pupil_center": "[T, 2]"}
        for name, want in wanted.items():
            given = getattr(self, name)
            if given is None and name in ("behavior", "pupil_center"):
                continue
            rows = as_rows(f"{where}{name}", given)
            if len(rows.shape) != want.count(",") + 1 or 0 in rows.shape[1:]:
                raise self._error(name, want, rows.shape)
            setattr(self, name, rows)
        for name in ("behavior", "pupil_center"):
            self._check_length(name, getattr(self, name), len(self), "T")
        if self.pupil_center is not None and self.pupil_center.shape[1] != 2:
            raise self._error("pupil_center", f"[T, 2] = ({len(self)}, 2)", self.pupil_center.shape)

    def _take_trials(self) -> None:
        trials, images = len(self), len(self.images)
        if self.image_index is None:
            if images != trials:
                want = f"one image for each of {trials} trials, or image_index [T]"
                raise self._error("images", want, f"{images} images")
            self.image_index = np.arange(trials)
        self.image_index = self._whole("image_index", self.image_index)
        outside = (self.image_index < 0) | (self.image_index >= images)
        if outside.any():
            raise self._error("image_index", f"0 to {images - 1}", f"{self.image_index[outside][0]}")
        self.image_ids = self.image_index if self.image_ids is None else self._labels("image_ids", self.image_ids)
        self.tiers = np.full(trials, "train") if self.tiers is None else self._labels("tiers", self.tiers)
        if self.tiers.dtype.kind != "U":
            raise self._error("tiers", "text", self.tiers.dtype)
        if self.sequences is not None:
            self.sequences = self._whole("sequences", self.sequences)
        self.trials = {name: _plain(f"trials: {name}", values) for name, values in self.trials.items()}
        for name, values in self.trials.items():
            self._check_length(f"trials: {name}", values, trials, "T")

    def _take_neurons(self) -> None:
        count = self.responses.shape[1]
        self.unit_ids = np.arange(count) if self.unit_ids is None else _plain("unit_ids", self.unit_ids)
        if self.unit_ids.shape != (count,):
            raise self._error("unit_ids", f"[N] = ({count},)", self.unit_ids.shape)
        if self.cortex is not None:
            self.cortex = _arrays.to_array("cortex", self.cortex)
            if self.cortex.ndim != 2 or self.cortex.shape[1] not in (2, 3) or len(self.cortex) != count:
                raise self._error("cortex", f"[N, 2] or [N, 3], N = {count}", self.cortex.shape)
        self.neurons = {name: _plain(f"neurons: {name}", values) for name, values in self.neurons.items()}
        for name, values in self.neurons.items():
            self._check_length(f"neurons: {name}", values, count, "N")

    def _check_length(self, name: str, values: Any, count: int, letter: str) -> None:
        if values is not None and (not values.shape or len(values) != count):
            raise self._error(name, f"[{letter}, ...], {letter} = {count}", tuple(values.shape))

    def _labels(self, name: str, given: Any) -> Array:
        labels = _plain(name, given)
        if labels.shape != (len(self),):
            raise self._error(name, f"[T] = ({len(self)},)", labels.shape)
        return labels

    def _whole(self, name: str, given: Any) -> NDArray[np.int64]:
        values = self._labels(name, given)
        if values.dtype.kind not in "iu" and not (values.dtype.kind == "f" and (values == np.rint(values)).all()):
            raise self._error(name, "whole numbers", values.dtype)
        return values.astype(np.int64)

    def _error(self, name: str, want: str, got: Any) -> ValueError:
        where = f"{self.source}: " if self.source else ""
        return ValueError(f"{where}{name}: want {want}, got {got}")

    def __len__(self) -> int:
        """Number of trials."""
        return len(self.responses)

    @cached_property
    def image_numbers(self) -> NDArray[np.int64]:
        """[T]: ``image_ids`` as numbers from 0, which metrics of repeats take."""
        return _arrays.distinct("image_ids", self.image_ids)[1]

    def in_tier(self, tier: str) -> NDArray[np.int64]:
        """The trials of a tier, in their order; none if there is no such tier."""
        return np.flatnonzero(self.tiers == tier)

    def select(self, *, trials: Any = None, neurons: Any = None) -> Recording:
        """A recording of some trials and some neurons, in the order given; nothing is read for it.

        Args:
            trials, neurons: indices, or a mask; None keeps all. Images stay as they are.

        Raises:
            ValueError: an index out of range, or a mask of another length.

        >>> import numpy as np
        >>> whole = Recording(np.zeros((4, 1, 8, 8)), np.ones((4, 3)))
        >>> whole.select(trials=[0, 2], neurons=[True, False, True]).responses.shape
        (2, 2)
        """
        t, n = self._chosen("trials", trials, len(self)), self._chosen("neurons", neurons, self.responses.shape[1])

        def rows(given: Any) -> Any:
            return given if given is None or t is None else (Part(given, t) if _is_lazy(given) else given[t])

        def columns(values: Any) -> Any:
            return values if values is None or n is None else values[n]

        statistics = {name: dict(values) for name, values in self.statistics.items()}
        if "responses" in statistics:
            statistics["responses"] = {key: columns(values) for key, values in statistics["responses"].items()}
        return replace(
            self,
            responses=self.responses if t is None and n is None else Part(self.responses, t, n),
            **{name: rows(getattr(self, name)) for name in _OF_TRIALS},
            trials={name: rows(values) for name, values in self.trials.items()},
            cortex=columns(self.cortex),
            unit_ids=columns(self.unit_ids),
            neurons={name: columns(values) for name, values in self.neurons.items()},
            statistics=statistics,
        )

    def _chosen(self, name: str, given: Any, count: int) -> NDArray[np.int64] | None:
        if given is None:
            return None
        values = np.asarray(given)
        if values.dtype == bool:
            if values.shape != (count,):
                raise ValueError(f"{name}: want a mask of {count}, got {values.shape}")
            return np.flatnonzero(values)
        values = np.zeros(0, np.int64) if not values.size else values
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise ValueError(f"{name}: want indices or a mask, got {values.dtype} {values.shape}")
        if len(values) and not (-count <= values.min() and values.max() < count):
            raise ValueError(f"{name}: want indices below {count}, got {values.min()} to {values.max()}")
        return values.astype(np.int64) % max(count, 1)

    def __repr__(self) -> str:
        """What is in it, without reading it."""
        images = " x ".join(map(str, self.images.shape[1:]))
        parts = [f"{len(self)} {'frames' if self.sequences is not None else 'trials'} ({self._tiers()})"]
        parts += [f"{self.responses.shape[1]} neurons", f"images {images}"]
        parts += [f"{name} {values.shape[1]}" for name, values in self._optional() if values is not None]
        if self.sequences is not None:
            parts.append(f"{len(np.unique(self.sequences))} sequences")
        return f"Recording {self.name!r}: " + ", ".join(parts)

    def summary(self) -> dict[str, Any]:
        """What is in it as numbers and text, without reading it."""
        tiers = {tier: self.in_tier(tier) for tier in self._tier_names()}
        return {
            "name": self.name,
            "source": self.source,
            "trials": {tier: len(trials) for tier, trials in tiers.items()},
            "images": {tier: len(np.unique(self.image_numbers[trials])) for tier, trials in tiers.items()},
            "image_shape": list(self.images.shape[1:]),
            "neurons": self.responses.shape[1],
            **{name: None if values is None else values.shape[1] for name, values in self._optional()},
            "video": self.sequences is not None,
            "of_neurons": sorted(self.neurons),
            "of_trials": sorted(self.trials),
        }

    def _optional(self) -> Sequence[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in ("behavior", "pupil_center", "cortex")]

    def _tier_names(self) -> list[str]:
        """The known ones first."""
        return sorted(set(self.tiers.tolist()), key=lambda name: (*(name != known for known in TIERS), name))

    def _tiers(self) -> str:
        found = []
        for tier in self._tier_names():
            trials = self.in_tier(tier)
            shown = len(np.unique(self.image_numbers[trials]))
            found.append(f"{tier} {len(trials)}" + (f" of {shown} images" if shown < len(trials) else ""))
        return ", ".join(found) or "none"


_OF_TRIALS = ("image_index", "image_ids", "tiers", "pupil_center", "behavior", "sequences")


def _is_lazy(values: Any) -> bool:
    return not isinstance(values, np.ndarray)


def _plain(name: str, given: Any) -> Array:
    """Numbers or text; text of bytes is decoded."""
    array = given.numpy(force=True) if hasattr(given, "numpy") else np.asarray(given)
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8")
    if array.dtype.kind == "O":
        array = np.asarray(array.tolist())
    if array.dtype.kind not in "UfiubM":
        raise ValueError(f"{name}: want numbers or text, got {array.dtype}")
    return array
