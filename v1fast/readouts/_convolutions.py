"""The small convolutional networks inside some readouts."""

from __future__ import annotations

from torch import nn


def convolutions(name: str, layers: int, channels: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolutions that keep the size of the map, with batch normalisation and ELU between them.

    Names as in neuralpredictors: conv0, norm0, nonlin0, conv1, ...; the last is conv<layers>.

    Raises:
        ValueError: fewer than one layer; the message calls the argument ``name``.
    """
    if layers < 1:
        raise ValueError(f"{name}: want at least 1, got {layers}")
    network = nn.Sequential()
    for i in range(layers - 1):
        network.add_module(f"conv{i}", nn.Conv2d(channels, channels, kernel, padding="same"))
        network.add_module(f"norm{i}", nn.BatchNorm2d(channels))
        network.add_module(f"nonlin{i}", nn.ELU())
    network.add_module(f"conv{layers}", nn.Conv2d(channels, outputs, kernel, padding="same"))
    return network


def initialize_convolutions(network: nn.Module) -> None:
    """Initialise all filters (Xavier) and set their biases to zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
