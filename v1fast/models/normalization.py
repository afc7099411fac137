"""Divisive normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DivisiveNormalization(nn.Module):
    r"""Divides each channel's response by the pooled responses of all channels nearby.

    .. math::
        y_c = \frac{u_c^{n_c}}{\sigma_c^{n_c} + \sum_k p_{ck}\, (\mathrm{mean}_{\text{window}}\, u_k^{n_k})},
        \qquad u = \max(x, 0)

    Heeger, "Normalization of cell responses in cat striate cortex", Visual Neuroscience 1992, with learned pooling
    weights as in Burg et al., "Learning divisive normalization in primary visual cortex", PLoS Comput. Biol. 2021.
    Exponents n, semi-saturation constants sigma and pooling weights p are positive: their logarithms are learned.

    Args:
        channels: C, of the maps.
        kernel_size: Width of the square window that is averaged, odd, in pixels; 1 pools over channels alone. At the
            border only pixels of the map count.
        exponent: Initial n.
        sigma: Initial sigma.
        pooling: Initial p, the same for all pairs of channels; default 1 / C.

    Raises:
        ValueError: An argument out of its range.

    Shapes of the parameters: ``log_exponent`` (C), ``log_sigma`` (C), ``log_pooling`` (C, C).

    >>> import torch
    >>> DivisiveNormalization(8, kernel_size=5)(torch.randn(2, 8, 20, 30)).shape
    torch.Size([2, 8, 20, 30])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 1,
        exponent: float = 2.0,
        sigma: float = 1.0,
        pooling: float | None = None,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: want an odd number of at least 1, got {kernel_size}")
        pooling = 1 / channels if pooling is None else pooling
        for name, value in (("exponent", exponent), ("sigma", sigma), ("pooling", pooling)):
            if not value > 0:
                raise ValueError(f"{name}: want a positive value, got {value}")
        self.kernel_size = kernel_size
        self.log_exponent = nn.Parameter(torch.full((channels,), exponent).log())
        self.log_sigma = nn.Parameter(torch.full((channels,), sigma).log())
        self.log_pooling = nn.Parameter(torch.full((channels, channels), pooling).log())

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] in, maps >= 0 of the same shape out."""
        exponent = self.log_exponent.exp().view(-1, 1, 1)
        # Below an exponent of 1 the derivative at 0 is infinite: a small constant keeps gradients finite.
        drive = (x.relu() + 1e-6) ** exponent
        pooled = drive
        if self.kernel_size > 1:
            half = self.kernel_size // 2
            pooled = F.avg_pool2d(drive, self.kernel_size, stride=1, padding=half, count_include_pad=False)
        pooled = F.conv2d(pooled, self.log_pooling.exp()[..., None, None])
        saturation = (self.log_sigma * self.log_exponent.exp()).exp().view(-1, 1, 1)
        return drive / (saturation + pooled)

    def extra_repr(self) -> str:
        """What ``print`` shows of the configuration."""
        return f"{len(self.log_sigma)}, kernel_size={self.kernel_size}"
