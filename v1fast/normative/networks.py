"""Small networks that judge the orientation of images, with filters like those of the retina and of V1."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

WIDTH = 1.1  # of the centre, in steps of the grid
PERIOD = 10.0  # of the oriented filters
ENVELOPE = 0.4  # of the oriented filters, times WIDTH


def initial_filters(count: int = 6, size: int = 7) -> Tensor:
    """Filters to begin with: a centre with its surround, its negative, and oriented filters.

    On a grid of ``size`` points from -size / 2 to size / 2 in either direction, with x down the rows and r the distance
    from the middle: exp(-r / (2 s^2)) - 0.5 exp(-r / (2 (2 s)^2)), s = 1.1; and
    cos(2 pi (x cos t + y sin t) / 10 + pi / 2) exp(-r / (2 (0.4 s)^2)), at equal steps of t over 180 degrees. Each is
    divided by its largest magnitude.

    Args:
        count: >= 2; all but two are oriented.
        size: on a side, >= 2.

    Returns:
        [count, 1, size, size].

    Raises:
        ValueError: an argument out of range.

    >>> initial_filters().abs().amax((1, 2, 3)).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    for name, value in (("count", count), ("size", size)):
        if value < 2:
            raise ValueError(f"{name}: want >= 2, got {value}")
    steps = torch.linspace(-size / 2, size / 2, size)
    x, y = torch.meshgrid(steps, steps, indexing="ij")
    r = torch.sqrt(x**2 + y**2)
    centre = torch.exp(-r / (2 * WIDTH**2)) - 0.5 * torch.exp(-r / (2 * (2 * WIDTH) ** 2))
    envelope = torch.exp(-r / (2 * (ENVELOPE * WIDTH) ** 2))
    found = [centre, -centre]
    for number in range(count - 2):
        angle = math.pi * number / (count - 2)
        wave = torch.cos(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / PERIOD + math.pi / 2)
        found.append(wave * envelope)
    filters = torch.stack(found)[:, None]
    return filters / filters.abs().amax((1, 2, 3), keepdim=True)


class OrientationNet(nn.Module):
    """Image -> [convolution, ReLU] -> [max-pool] -> ``fc``, ReLU -> ``out``.

    Its modules are made in the order conv, fc, out. Then the initial filters take the place of the convolution's, which
    has no bias at first.

    Args:
        image_shape: (H, W).
        filters: of the convolution; 0: no convolution.
        size: of a filter, odd.
        pool: K, of the max-pool: its output is floor(H / K) x floor(W / K). 1: none.
        hidden: units of ``fc``.
        outputs: of ``out``.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        image_shape: tuple[int, int] = (48, 64),
        *,
        filters: int = 6,
        size: int = 7,
        pool: int = 8,
        hidden: int = 10,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        if size % 2 == 0:
            raise ValueError(f"size: want an odd number, got {size}")
        for name, value in (("pool", pool), ("hidden", hidden), ("outputs", outputs)):
            if value < 1:
                raise ValueError(f"{name}: want >= 1, got {value}")
        height, width = (side // pool for side in image_shape)
        if not height * width:
            raise ValueError(f"pool: want at most {min(image_shape)}, got {pool}")
        self.conv = nn.Conv2d(1, filters, size, padding=size // 2) if filters else None
        self.pool = nn.MaxPool2d(pool) if pool > 1 else nn.Identity()
        self.fc = nn.Linear(max(1, filters) * height * width, hidden)
        self.out = nn.Linear(hidden, outputs)
        if self.conv is not None:
            with torch.no_grad():
                self.conv.weight.copy_(initial_filters(filters, size))
                self.conv.bias.zero_()  # type: ignore[union-attr]

    def forward(self, images: Tensor) -> Tensor:
        """[S, 1, H, W] -> [S, outputs]; of one output, the logarithm of the odds: the course's sigmoid is in the loss.

        "pool" and "fc" are the layers whose activations are compared: before flattening, and before the ReLU.
        """
        if self.conv is not None:
            images = torch.relu(self.conv(images))
        return self.out(torch.relu(self.fc(self.pool(images).flatten(1))))

    def probability(self, images: Tensor) -> Tensor:
        """[S, 1, H, W] -> [S, outputs]: the sigmoid of ``forward``."""
        return torch.sigmoid(self(images))


class CNN(OrientationNet):
    """Convolution, pooling over 8 x 8 pixels, 10 hidden units: the network of the story.

    >>> sum(p.numel() for p in CNN().parameters())
    3201
    """


class ConvPoolFC(OrientationNet):
    """The same layers as :class:`CNN`, with random filters to begin with."""

    def __init__(self, image_shape: tuple[int, int] = (48, 64), **options: int) -> None:
        super().__init__(image_shape, **options)
        if self.conv is None:
            raise ValueError("filters: want >= 1, got 0")
        self.conv.reset_parameters()


class FC(OrientationNet):
    """No convolution: each hidden unit sees all pixels.

    >>> FC().fc
    Linear(in_features=3072, out_features=10, bias=True)
    """

    def __init__(self, image_shape: tuple[int, int] = (48, 64), *, hidden: int = 10, outputs: int = 1) -> None:
        super().__init__(image_shape, filters=0, pool=1, hidden=hidden, outputs=outputs)


class ConvFC(OrientationNet):
    """No pooling: each hidden unit sees all places of all filters.

    >>> ConvFC().fc.in_features == 6 * 48 * 64
    True
    """

    def __init__(
        self,
        image_shape: tuple[int, int] = (48, 64),
        *,
        filters: int = 6,
        size: int = 7,
        hidden: int = 10,
        outputs: int = 1,
    ) -> None:
        super().__init__(image_shape, filters=filters, size=size, pool=1, hidden=hidden, outputs=outputs)
