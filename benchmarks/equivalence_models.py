"""The same model by the classes of two libraries, for :mod:`.equivalence`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from v1fast.models import FiringRateEncoder, Stacked2dCore
from v1fast.readouts import FullGaussian2d

from .peers import published

NEURONS = 300
CORE = {
    "input_channels": 1,
    "hidden_channels": 16,
    "input_kern": 9,
    "hidden_kern": 5,
    "layers": 3,
    "gamma_input": 1.0,
    "stack": -1,
    "pad_input": False,
    "depth_separable": True,
}
READOUT = {"bias": True, "init_mu_range": 0.3, "init_sigma": 0.2, "gamma_readout": 0.01}


class Published(nn.Module):
    """neuralpredictors' core and readout, with ELU + 1."""

    def __init__(self, mean_activity: Tensor, maps: tuple[int, int, int]) -> None:
        super().__init__()
        self.core = published("neuralpredictors.layers.cores", "Stacked2dCore")(**CORE)
        make = published("neuralpredictors.layers.readouts", "FullGaussian2d")
        self.readout = make(maps, len(mean_activity), mean_activity=mean_activity.clone(), **READOUT)

    def forward(self, images: Tensor) -> Tensor:
        return F.elu(self.readout(self.core(images))) + 1

    def regularizer(self) -> Any:
        return self.core.regularizer() + self.readout.regularizer()


def encoder(
    mean_activity: Tensor,
    sampler: Any,
    maps: tuple[int, int, int],
    make: type[FiringRateEncoder] = FiringRateEncoder,
) -> FiringRateEncoder:
    """v1fast's core and readout in its encoder, or in a class derived from that."""
    readout = FullGaussian2d(maps, len(mean_activity), mean_activity=mean_activity, sampler=sampler, **READOUT)  # type: ignore[arg-type]
    return make(Stacked2dCore(**CORE), readout)  # type: ignore[arg-type]


def normalized(images: Tensor) -> Tensor:
    """Of mean 0 and standard deviation 1, all together."""
    return (images - images.mean()) / images.std()


def seeded(mean_activity: Tensor, seed: int, maps: tuple[int, int, int]) -> Published:
    """The published model, with the initial values of a seed."""
    torch.manual_seed(seed)
    return Published(mean_activity, maps)
