"""From recordings to what :func:`v1fast.training.fit` takes: normalised batches, on a device or read ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from v1fast.data.recording import TIERS, Recording


@dataclass(frozen=True)
class Preparation:
    """What is done to a trial, in this order, as neuralpredictors and the Sensorium baselines do it.

    Attributes:
        normalize: which of "images", "responses", "behavior", "pupil_center", "trial_idx" are normalised.
        scale: of the images' sides, (0, 1], after the normalisation.
        behavior_as_channels, pupil_as_channels: append them to the images as constant channels.
        fields: which of "behavior", "pupil_center", "trial_idx" a batch has beside images and responses; None: all that
            the recording has, without "trial_idx".
    """

    normalize: tuple[str, ...] = ("images", "responses", "behavior", "pupil_center", "trial_idx")
    scale: float = 1.0
    behavior_as_channels: bool = False
    pupil_as_channels: bool = False
    fields: tuple[str, ...] | None = None


def loaders(
    recordings: Recording | Mapping[str, Recording],
    batch_size: int = 128,
    seed: int = 0,
    tiers: Sequence[str] = TIERS,
    *,
    device: str | torch.device | None = None,
    preparation: Preparation | None = None,
    memory: int = 2 * 2**30,
    workers: int = 2,
    frames: int | None = None,
    skip_frames: int = 0,
) -> dict[str, dict[str, Any]]:
    """Loaders by tier and session: ``fit(encoder, made["train"], made["validation"])``.

    Batches are dicts: "images" [B, C, H, W], "responses" [B, N], "behavior" [B, K], "pupil_center" [B, 2].
    """
    raise NotImplementedError


def normalization(recording: Recording, preparation: Preparation | None = None) -> dict[str, Any]:
    """What :func:`loaders` normalises by, for ``FiringRateEncoder.save(normalization=...)``."""
    raise NotImplementedError
