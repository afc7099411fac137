"""One type for all recordings: what was shown, what came of it, and what else is known of trials and neurons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from v1fast import _arrays

Array = NDArray[Any]
TIERS = ("train", "validation", "test")


class Rows(Protocol):
    """What is read row by row: an array, a mapped file, or a reader of files that does not hold them in memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any) -> Array: ...


@dataclass(eq=False)
class Recording:
    """A session: images, and the responses of its neurons to them, trial by trial.

    Arrays may be of NumPy or torch, mapped from files, or readers that read rows when they are asked for them
    (:class:`Rows`). Nothing is normalised: :func:`v1fast.data.loaders` does that.

    Attributes:
        images: [I, C, H, W], any real dtype; for videos, their frames.
        responses: [T, N], of T trials; for videos, of T frames.
        image_index: [T], int64: the row of ``images`` that a trial showed. Default: trial t showed image t.
        image_ids: [T], numbers or text: trials of one id showed the same image. Default: ``image_index``.
        tiers: [T], text: "train", "validation", "test", or others. Default: all "train".
        pupil_center: [T, 2], or None.
        behavior: [T, K], or None.
        cortex: [N, 2] or [N, 3], where the neurons lie, in micrometres, or None.
        unit_ids: [N]. Default: 0 to N - 1.
        neurons: name -> [N, ...], what else is known of the neurons.
        trials: name -> [T, ...], what else is known of the trials.
        sequences: for videos [T], int64: frames of one sequence followed each other; else None.
        statistics: "images", "responses", "behavior", "pupil_center" -> {"mean": ..., "std": ...}, as the files give
            them; empty where they do not.
        name: of the session, the ``data_key`` of models.
        source: file or folder it was read from.

    Raises:
        ValueError: arrays that do not fit together; the message names the array, what was wanted and what came.

    >>> import numpy as np
    >>> Recording(np.zeros((4, 1, 36, 64)), np.ones((4, 3)), tiers=["train", "train", "validation", "test"])
    Recording "recording": 4 trials (2 train, 1 validation, 1 test), 3 neurons, images 1 x 36 x 64
    """

    images: Rows
    responses: Rows
    image_index: Array | None = None
    image_ids: Array | None = None
    tiers: Array | None = None
    pupil_center: Rows | None = None
    behavior: Rows | None = None
    cortex: Array | None = None
    unit_ids: Array | None = None
    neurons: Mapping[str, Array] = field(default_factory=dict)
    trials: Mapping[str, Array] = field(default_factory=dict)
    sequences: Array | None = None
    statistics: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    name: str = "recording"
    source: str = ""

    def __len__(self) -> int:
        """Number of trials."""
        return len(self.responses)

    def select(self, *, trials: Any = None, neurons: Any = None) -> Recording:
        """Some trials, some neurons: indices or masks of each; None keeps all. Images stay."""
        raise NotImplementedError

    def in_tier(self, tier: str) -> NDArray[np.int64]:
        """The trials of a tier, in their order."""
        raise NotImplementedError
