"""Building blocks of the cores. Their parameters are named as in published checkpoints."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = int | tuple[int, int]
"""One number of pixels for both directions, or (height, width)."""


def pair(size: Size) -> tuple[int, int]:
    """A size as (height, width)."""
    return (size[0], size[1]) if isinstance(size, Sequence) else (size, size)


class Bias2d(nn.Module):
    """Adds a learned number per channel, 0 at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] in, maps of the same shape out."""
        return x + self.bias


class Scale2d(nn.Module):
    """Multiplies by a learned number per channel, 1 at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] in, maps of the same shape out."""
        return x * self.scale


class Bias3d(nn.Module):
    """Adds a learned number per channel, 0 at first, to maps of videos."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, T, H, W] in, maps of the same shape out."""
        return x + self.bias


class Scale3d(nn.Module):
    """Multiplies maps of videos by a learned number per channel, 1 at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, T, H, W] in, maps of the same shape out."""
        return x * self.scale


class SqueezeExcitation(nn.Module):
    """Multiplies each channel by a factor in (0, 1) that a small network computes from the means of all channels.

    Hu, Shen & Sun, "Squeeze-and-excitation networks", CVPR 2018.

    Args:
        channels: Of the maps.
        reduction: The network's hidden layer has ``channels // reduction`` units.

    Raises:
        ValueError: If that is less than 1.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        if channels < reduction:
            raise ValueError(f"se_reduction: want at most {channels}, the number of channels, got {reduction}")
        hidden = channels // reduction
        # The keys of neuralpredictors, where the mean is the first module: se.1.weight, se.3.weight.
        self.se = nn.Sequential(
            _SpatialMean(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] in, maps of the same shape out."""
        return x * self.se(x)[:, :, None, None]


class _SpatialMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))


class DepthSeparableConv2d(nn.Sequential):
    """Mixes channels, filters each channel in space, mixes channels again.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels of the result, and of both steps between.
        kernel_size: Of the spatial filters; so are stride, padding and dilation.
        stride: Pixels.
        padding: Zeros on each side, pixels.
        dilation: Pixels.
        bias: Whether each of the three convolutions has a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        *,
        stride: Size,
        padding: Size,
        dilation: Size,
        bias: bool,
    ) -> None:
        n = out_channels
        super().__init__()
        self.in_depth_conv = nn.Conv2d(in_channels, n, 1, bias=bias)
        self.spatial_conv = nn.Conv2d(n, n, kernel_size, stride, padding, dilation, groups=n, bias=bias)
        self.out_depth_conv = nn.Conv2d(n, n, 1, bias=bias)


class AttentionConv2d(nn.Module):
    """Local self-attention in the place of a convolution (Ramachandran et al. 2019, arXiv:1906.05909).

    Every channel of every pixel attends by itself to the kernel_size x kernel_size pixels around it:
    ``softmax(query * (key + position)) . value``, where position holds a learned offset per row of the window for the
    first half of the channels, and per column for the second. Constructor arguments are those of a convolution.

    Raises:
        ValueError: If out_channels is odd, or the window is not centred on the pixel (even kernel, padding other than
            half of it) or not dense (stride or dilation other than 1).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        *,
        stride: Size,
        padding: Size,
        dilation: Size,
        bias: bool,
    ) -> None:
        super().__init__()
        if out_channels % 2:
            raise ValueError(f"hidden_channels: want an even number with attention_conv, got {out_channels}")
        k = pair(kernel_size)[0]
        if pair(kernel_size) != (k, k) or k % 2 == 0:
            raise ValueError(f"hidden_kern: want an odd number with attention_conv, got {kernel_size}")
        for name, got, want in (
            ("stride", stride, 1),
            ("hidden_dilation", dilation, 1),
            ("hidden_padding", padding, k // 2),
        ):
            if pair(got) != (want, want):
                raise ValueError(f"{name}: want {want} with attention_conv, got {got}")
        self.kernel_size = k
        self.rel_h = nn.Parameter(torch.randn(out_channels // 2, 1, 1, k, 1))
        self.rel_w = nn.Parameter(torch.randn(out_channels // 2, 1, 1, 1, k))
        self.key_conv = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        self.query_conv = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        self.value_conv = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights, in the order that gives a seed the weights it gives in neuralpredictors."""
        for conv in (self.key_conv, self.value_conv, self.query_conv):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.rel_h)
        nn.init.normal_(self.rel_w)

    def _windows(self, x: Tensor) -> Tensor:
        return x.unfold(2, self.kernel_size, 1).unfold(3, self.kernel_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] -> [B, out_channels, H, W]."""
        k = self.kernel_size
        padded = F.pad(x, [k // 2] * 4)
        position = torch.cat([self.rel_h.expand(-1, 1, 1, k, k), self.rel_w.expand(-1, 1, 1, k, k)])
        query = self.query_conv(x)[..., None, None]
        logits = query * (self._windows(self.key_conv(padded)) + position)
        attention = logits.flatten(4).softmax(dim=-1)
        return (attention * self._windows(self.value_conv(padded)).flatten(4)).sum(dim=-1)
