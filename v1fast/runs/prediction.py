"""Predicted responses as arrays, in the recording's own units."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v1fast import _files
from v1fast.data import Preparation, Recording
from v1fast.models import FiringRateEncoder, of_session
from v1fast.models.geometry import lost_frames
from v1fast.runs.evaluation import predict

Arrays = dict[str, NDArray[Any]]


def predict_recording(
    encoder: FiringRateEncoder,
    recording: Recording,
    preparation: Preparation,
    session: str | None = None,
    tier: str | None = None,
) -> Arrays:
    """Predictions and what they are of.

    Args:
        encoder, recording, preparation, session, tier: see :func:`v1fast.runs.predict`.

    Returns:
        "predictions" and "responses" [T, N], "trials", "image_ids" and "tiers" [T], "unit_ids" [N].
    """
    found = predict(encoder, recording, preparation, session=session, tier=tier)
    return {
        "predictions": found.in_units(found.predicted),
        "responses": found.in_units(found.responses),
        "trials": found.trials,
        "image_ids": np.asarray(recording.image_ids)[found.trials],
        "tiers": recording.tiers[found.trials],
        "unit_ids": recording.unit_ids,
    }


def predict_images(
    encoder: FiringRateEncoder, path: Path, preparation: Preparation, session: str | None = None
) -> Arrays:
    """Predictions for images that nobody has shown.

    Args:
        encoder: without shifter and modulator, and without channels of behaviour.
        path: of a .npy file: images [T, H, W] or [T, C, H, W], with the pixels' values as in the recordings.
        preparation: as in training.
        session: whose neurons; None: the only one.

    Returns:
        "predictions" [T, N].

    Raises:
        ValueError: no images; the model needs more than images, or has several sessions.
    """
    sessions: Any = encoder.readout
    if session is None:
        if len(sessions) != 1:
            raise ValueError(f"{path}: want --session, one of {', '.join(sessions)}")
        session = next(iter(sessions))
    elif session not in sessions:
        raise ValueError(f"--session: want one of {', '.join(sessions)}, got {session}")
    with _files.reading(path):
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        images = images[:, None] if images.ndim == 3 else images
        if images.ndim != 4:
            raise ValueError(f"want images [T, H, W] or [T, C, H, W], got {images.shape}")
    if lost_frames(encoder.core) is not None:
        raise ValueError(f"{path}: this model is one of videos: want a recording")
    if encoder.shifter is not None or encoder.modulator is not None or preparation.behavior_as_channels:
        raise ValueError(f"{path}: this model needs eye position or behaviour beside images: want a recording")
    neurons = int(of_session(sessions, session).outdims)
    blank = np.zeros((len(images), neurons), np.float32)
    recording = Recording(images, blank, name=session, source=str(path))
    found = predict(encoder, recording, preparation, session=session)
    return {"predictions": found.in_units(found.predicted)}


def write_predictions(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an ``.npz`` at once."""
    content = io.BytesIO()
    save: Any = np.savez_compressed  # its annotation takes a name among the arrays for allow_pickle
    save(content, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    _files.replace(path, content.getvalue())
