"""What both experiments need of a model: it stands still, and chosen neurons answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from v1fast.models import FiringRateEncoder
from v1fast.models._sessions import of_session
from v1fast.readouts.base import select_neurons


@contextmanager
def standing_still(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradient of a parameter; afterwards all is as it was."""
    modes = {module: module.training for module in model.modules()}
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode


class Responses:
    """Rates of chosen neurons of one session, from images [B, C, H, W], or from a core's maps of them.

    Args:
        model: an encoder of v1fast; or any module that makes [B, N] of images.
        data_key: session, for encoders.
        behavior, pupil_center: [K] and [2], the state that the animal is held in, for models that need it.
        channels: [K], values of channels that the model takes after those of the images.
    """

    def __init__(
        self,
        model: nn.Module,
        data_key: str | None,
        behavior: Tensor | None,
        pupil_center: Tensor | None,
        channels: Tensor | None,
    ) -> None:
        self.model, self.data_key, self.channels = model, data_key, channels
        self.state = {"behavior": behavior, "pupil_center": pupil_center}
        shapes = (("behavior", behavior, "[K]"), ("pupil_center", pupil_center, "[2]"), ("channels", channels, "[K]"))
        for name, value, shape in shapes:
            if value is not None and value.dim() != 1:
                raise ValueError(f"{name}: want {shape}, got {tuple(value.shape)}")

    def features(self, images: Tensor) -> Tensor:
        """The core's maps; of other models the images themselves, with the further channels."""
        if self.channels is not None:
            further = self.channels.to(images)[None, :, None, None].expand(len(images), -1, *images.shape[2:])
            images = torch.cat([images, further], 1)
        return self.model.features(images) if isinstance(self.model, FiringRateEncoder) else images

    def read(self, features: Tensor, neurons: Tensor) -> Tensor:
        """[B, M]: the rates of ``neurons`` [M]."""
        if not isinstance(self.model, FiringRateEncoder):
            rates: Tensor = self.model(features)
            return rates[:, neurons]
        state: dict[str, Any] = {
            name: None if value is None else value.to(features).expand(len(features), -1)
            for name, value in self.state.items()
        }
        return self.model.read(features, self.data_key, sample=False, out_idx=neurons, **state)

    def neurons(self, chosen: Any, images: Tensor) -> Tensor:
        """Indices [M] of the chosen neurons, on the images' device; None chooses all.

        Raises:
            ValueError: there is no such neuron.
        """
        if isinstance(self.model, FiringRateEncoder):
            count = int(of_session(self.model.readout, self.data_key).outdims)
        else:
            with torch.no_grad():
                count = self.model(self.features(images[:1])).shape[1]
        indices = torch.arange(count) if chosen is None else select_neurons(chosen, count, torch.device("cpu"))
        assert indices is not None
        return indices.to(images.device)
