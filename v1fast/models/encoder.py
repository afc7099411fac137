"""Encoders: from images to expected responses."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v1fast.models.cores import Stacked2dCore
from v1fast.models.geometry import input_positions
from v1fast.readouts import FullGaussian2d


class Encoder(nn.Module):
    """Images [B, 1, H, W] to expected spikes [B, N]: a core of two layers, a Gaussian readout, ELU + 1.

    Args:
        image_shape: (H, W) of the images, pixels.
        mean_response: [N], mean spikes of each neuron, that the readout's bias starts at.
        channels: of the core's map.
        init_mu_range, init_sigma: of the readout's positions, see :class:`v1fast.readouts.FullGaussian2d`.

    Attributes:
        map_shape: [C, H, W] of the core's map.
    """

    def __init__(
        self,
        image_shape: tuple[int, int],
        mean_response: Tensor,
        channels: int = 16,
        init_mu_range: float = 0.1,
        init_sigma: float = 0.2,
    ) -> None:
        super().__init__()
        self.core = Stacked2dCore(
            input_channels=1,
            hidden_channels=channels,
            input_kern=9,
            hidden_kern=3,
            layers=2,
            stack=-1,
            pad_input=False,
        )
        # The readout then reads the core's map without a copy.
        self.core.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.no_grad():
            _, *self.map_shape = self.core(torch.zeros(2, 1, *image_shape)).shape
        self.image_shape = image_shape
        self.readout = FullGaussian2d(
            self.map_shape,
            len(mean_response),
            bias=True,
            init_mu_range=init_mu_range,
            init_sigma=init_sigma,
            mean_activity=mean_response - 1,  # ELU adds the 1
        )

    def forward(self, images: Tensor) -> Tensor:
        """Expected spikes, at sampled positions in training mode, at the means in evaluation mode."""
        rates: Tensor = F.elu(self.readout(self.core(images))) + 1
        return rates

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Expected spikes [T, N] in evaluation mode, for any number of images."""
        self.eval()
        return torch.cat([self(chunk) for chunk in images.split(100)])

    def centres(self) -> Tensor:
        """Learned receptive-field centres [N, 2], x then y, in pixels of the image."""
        found = input_positions(self.core, self.readout)
        return torch.stack([found.x, found.y], dim=1).float()
