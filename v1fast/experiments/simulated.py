"""Simulated animals as recordings, for experiments without a download."""

from __future__ import annotations

import numpy as np
import torch

from v1fast.data import Recording, SimulatedRecording


def as_recording(simulated: SimulatedRecording) -> Recording:
    """A simulated session as a recording: gaze is the pupil's position, the speed of running is behaviour."""
    tiers = {"train": simulated.train, "validation": simulated.validation, "test": simulated.test}
    first = np.cumsum([0] + [len(trials.images) for trials in tiers.values()])[:-1]
    index = [trials.image_ids.numpy() + start for trials, start in zip(tiers.values(), first, strict=True)]
    return Recording(
        torch.cat([trials.images for trials in tiers.values()]).numpy(),
        torch.cat([trials.responses for trials in tiers.values()]).numpy(),
        image_index=np.concatenate(index),
        tiers=np.repeat(list(tiers), [len(trials.responses) for trials in tiers.values()]),
        pupil_center=torch.cat([trials.gaze for trials in tiers.values()]).numpy(),
        behavior=torch.cat([trials.speed for trials in tiers.values()])[:, None].numpy(),
        cortex=simulated.neurons.cortex.numpy(),
        unit_ids=simulated.neurons.unit.numpy(),
        name=f"animal{simulated.animal}-{simulated.session}",
    )
