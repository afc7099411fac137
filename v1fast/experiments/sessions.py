"""Sessions as experiments take them: prepared tensors of three tiers, of which neurons and images can be chosen."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from v1fast.data import Preparation, Recording, loaders
from v1fast.training import TensorBatches, TrialRows

Sessions = Mapping[str, "Session"]
Fields = Mapping[str, Any]
TIERS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Session:
    """One recording, prepared.

    Attributes:
        name: of the session.
        train, validation, test: name -> rows of trials: "images" (a tensor [T, C, H, W], or
            :class:`v1fast.training.TrialRows`, or features that were computed before), "responses" [T, N], and
            "pupil_center" [T, 2] and "behavior" [T, K] where they were recorded.
        test_images: [T], int64, which image a test trial showed.
        unit_ids: [N], numbers or text; the same id in two sessions is the same neuron.
        cortex: [N, D], or None.

    Raises:
        ValueError: they do not fit together, or no test image has two trials: there is no oracle then.
    """

    name: str
    train: Fields
    validation: Fields
    test: Fields
    test_images: Tensor
    unit_ids: NDArray[Any]
    cortex: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        for tier in TIERS:
            fields = getattr(self, tier)
            missing = [name for name in ("images", "responses") if name not in fields]
            if missing:
                raise ValueError(f"{self.name}: {tier}: want {missing[0]}, got {', '.join(fields) or 'no fields'}")
            if len(fields["images"]) != len(fields["responses"]) or not len(fields["images"]):
                lengths = f"{len(fields['images'])} and {len(fields['responses'])}"
                raise ValueError(f"{self.name}: {tier}: want images and responses of the same trials, got {lengths}")
            if fields["responses"].shape[1] != len(self.unit_ids):
                want, got = len(self.unit_ids), fields["responses"].shape[1]
                raise ValueError(f"{self.name}: {tier}: want responses of {want} neurons, got {got}")
        if len(self.test_images) != len(self.test["responses"]):
            wanted = len(self.test["responses"])
            raise ValueError(f"{self.name}: test_images: want [T] = ({wanted},), got ({len(self.test_images)},)")
        if len(self.test_images.unique()) == len(self.test_images):
            raise ValueError(f"{self.name}: test: want images shown more than once, for the oracle, got none")
        if self.cortex is not None and len(self.cortex) != len(self.unit_ids):
            raise ValueError(f"{self.name}: cortex: want [N, D], N = {len(self.unit_ids)}, got {self.cortex.shape}")

    @property
    def neurons(self) -> int:
        """Their number N."""
        return len(self.unit_ids)

    @property
    def images(self) -> int:
        """Number of training trials."""
        return len(self.train["images"])

    def of_neurons(self, chosen: ArrayLike) -> Session:
        """Some of the neurons, by indices, in that order."""
        index = np.asarray(chosen, np.int64)

        def fields(tier: str) -> dict[str, Any]:
            given = getattr(self, tier)
            return {**given, "responses": given["responses"][:, torch.from_numpy(index)]}

        cortex = None if self.cortex is None else self.cortex[index]
        tiers: dict[str, Any] = {tier: fields(tier) for tier in TIERS}
        return replace(self, **tiers, unit_ids=self.unit_ids[index], cortex=cortex)

    def of_images(self, chosen: ArrayLike) -> Session:
        """Some of the training trials, by indices; validation and test stay."""
        index = torch.as_tensor(np.asarray(chosen, np.int64))
        return replace(self, train={name: rows_of(rows, index) for name, rows in self.train.items()})

    def with_images_of(self, other: Session) -> Session:
        """These responses, with the images of the same trials as another session has them, or their features."""
        tiers: dict[str, Any] = {
            tier: {**getattr(self, tier), "images": getattr(other, tier)["images"]} for tier in TIERS
        }
        return replace(self, **tiers)

    def fingerprint(self) -> dict[str, Any]:
        """What tells whether results belong to these data."""
        responses = [getattr(self, tier)["responses"] for tier in TIERS]
        sizes = [len(values) for values in responses]
        crc = 0
        for values in responses:
            crc = zlib.crc32(values.contiguous().numpy().tobytes(), crc)
        return {"trials": sizes, "neurons": self.neurons, "responses": crc}


def rows_of(rows: Any, index: Tensor) -> Any:
    """Some rows of a tensor, or of rows that are made when asked for."""
    return rows.select(index) if isinstance(rows, TrialRows) else rows[index]


def as_session(recording: Recording, preparation: Preparation | None = None) -> Session:
    """Prepare a recording with the tiers "train", "validation" and "test"; its tensors lie in memory.

    Where the recording says of which animal a neuron is (``neurons["animal_ids"]``), ids of other animals differ.

    Raises:
        ValueError: a tier is missing, or no test image is repeated.
    """
    preparation = preparation or Preparation()
    made = loaders(recording, tiers=TIERS, preparation=preparation, memory=2**62, drop_undefined=False)
    per_trial = preparation.behavior_as_channels or preparation.pupil_as_channels
    tiers: dict[str, dict[str, Any]] = {}
    for tier in TIERS:
        (batches,) = made[tier].values()
        assert isinstance(batches, TensorBatches)
        fields: dict[str, Any] = dict(batches.fields)
        if not per_trial:
            fields["images"] = _distinct(fields["images"], recording.image_index[recording.in_tier(tier)])
        tiers[tier] = fields
    ids = torch.from_numpy(np.asarray(recording.image_numbers, np.int64)[recording.in_tier("test")])
    cortex = None if recording.cortex is None else np.asarray(recording.cortex)[:, :2]
    units = np.asarray(recording.unit_ids)
    if "animal_ids" in recording.neurons:
        animals = np.asarray(recording.neurons["animal_ids"])
        units = np.array([f"{animal}:{unit}" for animal, unit in zip(animals, units, strict=True)])
    return Session(recording.name, **tiers, test_images=ids, unit_ids=units, cortex=cortex)


def _distinct(images: Tensor, shown: NDArray[np.int64]) -> TrialRows:
    """Each image once, though several trials showed it."""
    _, first, inverse = np.unique(shown, return_index=True, return_inverse=True)
    kept = images if len(first) == len(images) else images[torch.from_numpy(first)]
    index = np.arange(len(images)) if len(first) == len(images) else inverse
    return TrialRows(kept, torch.from_numpy(index.astype(np.int64)))


def draw_images(sessions: Sessions, count: int | None, rng: np.random.Generator) -> dict[str, Session]:
    """``count`` training trials in all, as many of each session as there can be; None: all.

    Each session's are the first of a permutation, so that a larger count contains a smaller one's for the same ``rng``.

    Raises:
        ValueError: there are fewer, or fewer than sessions are wanted.
    """
    permutations = {name: rng.permutation(session.images) for name, session in sessions.items()}
    if count is None:
        return dict(sessions)
    shares = _shares(count, [session.images for session in sessions.values()])
    pairs = zip(sessions.items(), shares, strict=True)
    return {name: session.of_images(permutations[name][:share]) for (name, session), share in pairs}


def check_images(counts: Sequence[int], fewest: int, most: int) -> None:
    """Raise ValueError for a number of images of which not every session can have one, or that is more than all."""
    for count in counts:
        if not fewest <= count <= most:
            raise ValueError(f"images: want {fewest} to {most}, got {count}")


def _shares(count: int, sizes: list[int]) -> list[int]:
    """``count`` divided evenly, as far as the sizes allow."""
    check_images([count], len(sizes), sum(sizes))
    shares = [0] * len(sizes)
    while sum(shares) < count:
        left = [i for i, size in enumerate(sizes) if shares[i] < size]
        each = (count - sum(shares)) // len(left)
        for i in left if each else left[: count - sum(shares)]:
            shares[i] += min(max(each, 1), sizes[i] - shares[i])
    return shares


def draw_neurons(sessions: Sessions, count: int | None, rng: np.random.Generator) -> dict[str, Session]:
    """``count`` neurons of each session: the same units, where all sessions have the same; None: all.

    Raises:
        ValueError: a session has fewer.
    """
    if count is None:
        return dict(sessions)
    few = next((session for session in sessions.values() if session.neurons < count), None)
    if few is not None:
        raise ValueError(f"neurons: want at most {few.neurons}, as many as {few.name} has, got {count}")
    if are_matched(sessions):
        units = rng.permutation(np.unique(next(iter(sessions.values())).unit_ids))[:count]
        return {name: one.of_neurons(np.flatnonzero(np.isin(one.unit_ids, units))) for name, one in sessions.items()}
    return {name: one.of_neurons(np.sort(rng.permutation(one.neurons)[:count])) for name, one in sessions.items()}


def are_matched(sessions: Sessions) -> bool:
    """Whether there are several sessions, of the same neurons."""
    ids = [np.unique(session.unit_ids) for session in sessions.values()]
    return len(ids) > 1 and all(np.array_equal(ids[0], other) for other in ids[1:])
