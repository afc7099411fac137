"""The discrete Laplacian of filters and masks, for penalties on what is not smooth."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Laplace(nn.Module):
    """Convolution of every filter with the discrete Laplacian.

    Args:
        padding: Zeros around each filter, in pixels. 0 leaves the filter's border unpenalised; None is 1.
    """

    filter: Tensor

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.padding = 1 if padding is None else padding
        cross = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])
        self.register_buffer("filter", cross[None, None])

    def forward(self, weight: Tensor) -> Tensor:
        """Filters [out, in, kh, kw] -> their Laplacian [out * in, 1, kh + 2 * padding - 2, kw + 2 * padding - 2]."""
        return F.conv2d(weight.reshape(-1, 1, *weight.shape[2:]), self.filter, padding=self.padding)
