"""Shifters: networks from the eye's position to a shift of all receptive fields."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from v1fast.models._sessions import PerSession


class MLP(nn.Module):
    """The shifter of one session: linear layers, each followed by a tanh.

    Args:
        input_features: number of inputs, e.g. 2 pupil coordinates.
        hidden_channels: units of each hidden layer.
        shift_layers: number of linear layers, >= 1; 1 means no hidden layer.
        bias: whether the linear layers have a bias.

    Raises:
        ValueError: ``shift_layers`` below 1; in forward, another number of inputs.

    Keys: ``mlp.0.weight``, ``mlp.0.bias``, ``mlp.2.weight``, ...
    """

    def __init__(
        self, input_features: int = 2, hidden_channels: int = 10, shift_layers: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        if shift_layers < 1:
            raise ValueError(f"shift_layers: want at least 1, got {shift_layers}")
        widths = [input_features, *[hidden_channels] * (shift_layers - 1), 2]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after, bias=bias), nn.Tanh()]
        self.mlp = nn.Sequential(*layers)

    def initialize(self) -> None:
        """Draw new weights (Glorot & Bengio 2010, normal) and set the biases to 0."""
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def regularizer(self) -> Tensor | float:
        """0: this network has no penalty."""
        return 0.0

    def forward(self, pupil_center: Tensor, trial_idx: Tensor | None = None) -> Tensor:
        """Return the shift (x, y) in (-1, 1) of each image.

        Args:
            pupil_center: [B, input_features], for videos [B, T, input_features].
            trial_idx: [B, 1], appended to the inputs, e.g. to follow a slow drift.
        """
        inputs = pupil_center if trial_idx is None else torch.cat([pupil_center, trial_idx], dim=-1)
        first: Any = self.mlp[0]
        if inputs.shape[-1] != first.in_features:
            beside = "" if trial_idx is None else ", trial_idx included"
            raise ValueError(f"pupil_center: want [B, {first.in_features}]{beside}, got {tuple(inputs.shape)}")
        shift: Tensor = self.mlp(inputs)
        return shift


class MLPShifter(PerSession):
    """One :class:`MLP` per session; a drop-in for ``MLPShifter`` of neuralpredictors.

    Same constructor and state_dict keys (``<data_key>.mlp.0.weight``, ...). There ``initialize`` does nothing; here it
    draws new weights.

    Args:
        data_keys: names of the sessions.
        input_channels: number of inputs.
        hidden_channels_shifter: units of each hidden layer.
        shift_layers: number of linear layers, >= 1.
        gamma_shifter: factor of the penalty, which is 0 for this network.
        bias: whether the linear layers have a bias.
        **kwargs: accepted and ignored, as neuralpredictors does.
    """

    def __init__(
        self,
        data_keys: Iterable[str],
        input_channels: int = 2,
        hidden_channels_shifter: int = 2,
        shift_layers: int = 1,
        gamma_shifter: float = 0,
        bias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(gamma_shifter)
        self.gamma_shifter = gamma_shifter
        for data_key in data_keys:
            self[data_key] = MLP(input_channels, hidden_channels_shifter, shift_layers, bias)


class StaticAffine2d(nn.Linear):
    """The shifter of one session: one linear layer and a tanh.

    Args:
        input_channels: number of inputs.
        output_channels: 2, for (x, y).
        bias: whether to add a bias.

    Keys: ``weight``, ``bias``.
    """

    def __init__(self, input_channels: int = 2, output_channels: int = 2, bias: bool = True) -> None:
        super().__init__(input_channels, output_channels, bias=bias)

    @torch.no_grad()
    def initialize(self, bias: Tensor | None = None) -> None:
        """Draw weights so small (standard deviation 1e-6) that no shift is left; set the bias to a copy of ``bias``."""
        self.weight.normal_(0, 1e-6)
        if self.bias is None:
            return
        if bias is None:
            self.bias.normal_(0, 1e-6)
        else:
            self.bias.copy_(bias)

    def regularizer(self) -> Tensor:
        """Mean of the squared weights."""
        return self.weight.square().mean()

    def forward(self, pupil_center: Tensor, trial_idx: Tensor | None = None) -> Tensor:
        """Return the shift (x, y) in (-1, 1) of inputs [B, input_channels]; ``trial_idx`` is ignored."""
        return super().forward(pupil_center).tanh()


class StaticAffine2dShifter(PerSession):
    """One :class:`StaticAffine2d` per session; a drop-in for ``StaticAffine2dShifter`` of neuralpredictors.

    Same constructor and state_dict keys (``<data_key>.weight``, ``<data_key>.bias``).

    Args:
        data_keys: names of the sessions.
        input_channels: number of inputs.
        output_channels: 2, for (x, y).
        bias: whether to add a bias.
        gamma_shifter: factor of the penalty, the mean of the squared weights.
    """

    def __init__(
        self,
        data_keys: Iterable[str],
        input_channels: int = 2,
        output_channels: int = 2,
        bias: bool = True,
        gamma_shifter: float = 0,
    ) -> None:
        super().__init__(gamma_shifter)
        self.gamma_shifter = gamma_shifter
        for data_key in data_keys:
            self[data_key] = StaticAffine2d(input_channels, output_channels, bias)

    def initialize(self, bias: Mapping[str, Tensor] | None = None) -> None:
        """Initialise all sessions; ``bias`` gives each session's, [2]."""
        for data_key, shifter in self.items():
            initialize: Any = shifter.initialize
            initialize(None if bias is None else bias[data_key])
