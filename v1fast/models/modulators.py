"""Modulators: networks from an animal's behaviour to a gain of each neuron."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v1fast.models._sessions import PerSession


class MLP(nn.Module):
    """The modulator of one session: responses times ``elu(network(behavior)) + 1``.

    The network ends in a ReLU, so a gain is never below 1.

    Args:
        neurons: number of neurons N.
        input_channels: number of variables of behaviour.
        hidden_channels: units of each hidden layer.
        layers: number of linear layers, >= 1.
        bias: whether the linear layers have a bias.
        n_parameters_to_modulate: number of outputs P of each neuron that get a gain of their own.

    Raises:
        ValueError: ``layers`` below 1.

    Keys: ``modulator_networks.<output>.0.weight``, ``.2.weight``, ...
    """

    def __init__(
        self,
        neurons: int,
        input_channels: int = 3,
        hidden_channels: int = 10,
        layers: int = 2,
        bias: bool = True,
        n_parameters_to_modulate: int = 1,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers: want at least 1, got {layers}")
        self.n_parameters_to_modulate = n_parameters_to_modulate
        widths = [input_channels, *[hidden_channels] * (layers - 1), neurons]
        self.modulator_networks = nn.ModuleList()
        for _ in range(n_parameters_to_modulate):
            stack: list[nn.Module] = []
            for before, after in itertools.pairwise(widths):
                stack += [nn.Linear(before, after, bias=bias), nn.ReLU()]
            self.modulator_networks.append(nn.Sequential(*stack))

    def initialize(self) -> None:
        """Draw new weights (Glorot & Bengio 2010, normal) and set the biases to 0."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def regularizer(self) -> Tensor:
        """Mean absolute weight of each network's last layer, summed over networks."""
        last: Any = [network[-2] for network in self.modulator_networks]  # type: ignore[index]
        return torch.stack([layer.weight.abs().mean() for layer in last]).sum()

    def gains(self, behavior: Tensor) -> Tensor:
        """Return the gains [B, N] for ``behavior`` [B, input_channels]; [P, B, N] if P > 1."""
        gains = [F.elu(network(behavior)) + 1 for network in self.modulator_networks]
        return gains[0] if self.n_parameters_to_modulate == 1 else torch.stack(gains)

    def forward(self, x: Tensor, behavior: Tensor, out_idx: Tensor | None = None) -> Tensor:
        """Return responses ``x`` [B, N] or [P, B, N] times the gains.

        Args:
            x: responses.
            behavior: [B, input_channels].
            out_idx: int64 indices of the neurons in ``x``, if it does not hold all.
        """
        gains = self.gains(behavior)
        return x * (gains if out_idx is None else gains[..., out_idx])


class MLPModulator(PerSession):
    """One :class:`MLP` per session; a drop-in for ``MLPModulator`` of neuralpredictors.

    Same constructor and state_dict keys (``<data_key>.modulator_networks.0.0.weight``, ...). There ``initialize`` does
    nothing; here it draws new weights.

    Args:
        n_neurons: number of neurons of each session.
        input_channels: number of variables of behaviour, or a dict of them by session.
        hidden_channels: units of each hidden layer.
        layers: number of linear layers, >= 1.
        gamma_modulator: factor of the penalty, see ``MLP.regularizer``.
        bias: whether the linear layers have a bias.
        n_parameters_to_modulate: see :class:`MLP`.
        **kwargs: accepted and ignored, as neuralpredictors does.
    """

    def __init__(
        self,
        n_neurons: Mapping[str, int],
        input_channels: int | Mapping[str, int] = 3,
        hidden_channels: int = 5,
        layers: int = 2,
        gamma_modulator: float = 0,
        bias: bool = True,
        n_parameters_to_modulate: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(gamma_modulator)
        self.gamma_modulator = gamma_modulator
        for data_key, neurons in n_neurons.items():
            inputs = input_channels[data_key] if isinstance(input_channels, Mapping) else input_channels
            self[data_key] = MLP(neurons, inputs, hidden_channels, layers, bias, n_parameters_to_modulate)
