"""What ops share that read feature maps at points: a few images at a time, so that what is read stays in the cache.

Each map is copied into rows: the channels of a pixel side by side, in the dtype to compute in, with a border of zeros.
A corner outside the map is a pixel of the border. Its products are zero, or NaN where the position is NaN, as in the
reference. The bilinear sum of four rows is an embedding bag, and its adjoint an indexed sum of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

SAMPLES = 2**18  # values that are read at a time: with what is computed from them they fit the second-level cache
MAPS = 2**20  # values of maps at a time

Pair = tuple[Tensor | float, Tensor | float]


class Level:
    """A feature map as a table of rows, a few images at a time, and the points in it."""

    def __init__(self, size: tuple[int, int], channels: int, points: Tensor, align_corners: bool) -> None:
        height, width = size
        self.size, self.channels = size, channels
        self.points = points  # [2, B or 1, N]: x and y
        self.align_corners = align_corners
        self.scale = [(edge - 1) / 2 if align_corners else edge / 2 for edge in (width, height)]
        self.pixels = (height + 2) * (width + 2)
        self.last = torch.tensor([width, height], dtype=torch.int32, device=points.device).view(2, 1, 1)
        self.factor = points.new_tensor(self.scale).view(2, 1, 1)
        self.dtype = points.dtype
        self.shared: dict[tuple[int, int], Corners] = {}

    def blank(self, images: int) -> Tensor:
        """Return rows of zeros for this many images, [B, H + 2, W + 2, C]."""
        height, width = self.size
        return self.points.new_zeros((images, height + 2, width + 2, self.channels))

    def corners(self, images: slice, neurons: slice) -> Corners:
        """Return the four pixels around each point of these images and neurons."""
        count = images.stop - images.start
        if self.points.shape[1] > 1:
            return self._corners(self.points[:, images, neurons], count)
        key = (count, neurons.start)
        if key not in self.shared:
            self.shared[key] = self._corners(self.points[:, :, neurons], count)
        return self.shared[key]

    def _corners(self, points: Tensor, count: int) -> Corners:
        pixel = (points + 1) * self.factor
        if not self.align_corners:
            pixel -= 0.5
        lower = pixel.floor()
        far = pixel.sub_(lower)
        # Whatever integer becomes of a NaN or of a huge number, its pixel is on the border or inside.
        first = torch.minimum(lower.int().clamp_(min=-2), self.last)
        (x0, y0), (x1, y1) = (first + 1).clamp_(min=0), torch.minimum(first + 2, self.last + 1)
        y0, y1 = ((y if count * self.pixels < 2**31 else y.long()) * (self.size[1] + 2) for y in (y0, y1))
        if count > 1:
            image = torch.arange(0, count * self.pixels, self.pixels, dtype=y0.dtype, device=y0.device).unsqueeze(-1)
            y0, y1 = y0 + image, y1 + image
        index = y0.new_empty((*y0.shape, 4))
        for k, column in enumerate(index.unbind(-1)):
            torch.add((y0, y1)[k // 2], (x0, x1)[k % 2], out=column)
        near = 1 - far
        return Corners(index.view(-1, 4), (near[0], far[0]), (near[1], far[1]), count)


class Corners:
    """The rows of the corners of M = B N points, (y0 x0), (y0 x1), (y1 x0), (y1 x1), and the weights of the sides."""

    def __init__(
        self,
        rows: Tensor,  # [M, 4]
        across: tuple[Tensor, Tensor],  # of x0 and x1, each [B or 1, N]
        down: tuple[Tensor, Tensor],  # of y0 and y1
        images: int,  # B
    ) -> None:
        self.rows, self.across, self.down, self.images = rows, across, down, images

    def _products(self, down: Pair, across: Pair) -> Tensor:  # [M, 4]
        """Return the products of weights of rows and columns of pixels. One of the pairs may be numbers."""
        like = self.across[0]
        out = like.new_empty((*like.shape, 4))
        for k, column in enumerate(out.unbind(-1)):
            a, b = down[k // 2], across[k % 2]
            torch.mul(*((a, b) if isinstance(a, Tensor) else (b, a)), out=column)
        return out.view(-1, 4) if len(out) == self.images else out.expand(self.images, -1, -1).reshape(-1, 4)

    @cached_property
    def value(self) -> Tensor:
        """The weights of bilinear interpolation."""
        return self._products(self.down, self.across)

    @cached_property
    def slopes(self) -> tuple[Tensor, Tensor]:
        """The weights of its derivative by the pixel coordinates x and y."""
        return self._products(self.down, (-1.0, 1.0)), self._products((-1.0, 1.0), self.across)


def gather(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:  # [R, C], [M, 4], [M, 4] -> [M, C]
    """Return the weighted sums of four rows each."""
    if table.dtype == torch.float32 and table.device.type in ("cpu", "cuda"):
        first = torch.arange(0, index.numel(), 4, dtype=index.dtype, device=index.device)
        return torch.embedding_bag(table, index.view(-1), first, False, 0, False, weight.view(-1))[0]
    rows = table.index_select(0, index.view(-1)).view(-1, 4, table.shape[1])
    return rows.mul_(weight.unsqueeze(-1)).sum(1)


def scatter(table: Tensor, index: Tensor, weight: Tensor, values: Tensor) -> None:  # [R, C], [M, 4], [M, 4], [M, C]
    """Add the weighted values to four rows each: the adjoint of ``gather``."""
    part = torch.empty_like(values)
    for row, factor in zip(index.long().unbind(-1), weight.unbind(-1), strict=True):
        table.index_add_(0, row.contiguous(), torch.mul(values, factor.unsqueeze(-1), out=part))


def _slices(total: int, most: int) -> list[slice]:
    """Divide a range into as few equal parts as possible of at most ``most``."""
    size = -(-total // max(1, -(-total // most)))
    return [slice(first, min(first + size, total)) for first in range(0, total, max(1, size))]


def parts(batch: int, levels: Sequence[Level]) -> tuple[list[slice], list[slice]]:
    """Return the images and the neurons that are read at a time."""
    channels = max(level.channels for level in levels)
    some = _slices(levels[0].points.shape[-1], max(1, SAMPLES // channels))
    most = SAMPLES // (channels * max(1, some[0].stop if some else 1))
    return _slices(batch, max(1, min(most, MAPS // (levels[0].pixels * channels)))), some


Maps = Callable[[slice], Sequence[Tensor]]
"""The maps [b, C, H, W] of some of the images, one for each level."""


class Tables:
    """The rows of all levels, for a few images at a time."""

    def __init__(self, levels: Sequence[Level], images: Sequence[slice]) -> None:
        most = max((part.stop - part.start for part in images), default=0)
        self.levels, self.blanks = levels, [level.blank(most) for level in levels]

    def inside(self, count: int) -> list[Tensor]:
        """Return the maps without their borders, [B, H, W, C]."""
        return [blank[:count, 1:-1, 1:-1] for blank in self.blanks]

    def rows(self, count: int) -> list[Tensor]:
        """Return the tables [R, C]."""
        return [blank[:count].view(-1, blank.shape[-1]) for blank in self.blanks]

    def fill(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Copy maps [B, C, H, W], and return the tables."""
        count = len(maps[0])
        for inside, each in zip(self.inside(count), maps, strict=True):
            inside.copy_(each.permute(0, 2, 3, 1))
        return self.rows(count)


def shifted(grid: Tensor, shift: Tensor | None, dtype: torch.dtype) -> Tensor:  # [2, B or 1, N]
    """Return given positions, [N, 2] or [B, N, 2], with x and y apart, and with the shift [B, 2] of each image."""
    p = (grid if grid.dim() == 3 else grid.unsqueeze(0)).to(dtype).movedim(-1, 0)
    return p.contiguous() if shift is None else p + shift.to(dtype).t().unsqueeze(-1)


def _with_columns(levels: Sequence[Level], *others: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield each level with its own of each of the others, and the columns of its weights."""
    first = 0
    for level, *rest in zip(levels, *others, strict=True):
        yield level, *rest, slice(first, first + level.channels)
        first += level.channels


def walk(levels: Sequence[Level], maps: Maps, batch: int) -> Iterator[tuple[slice, slice, list[Tensor]]]:
    """Yield images and neurons to be read at a time, and the tables of these images."""
    some_images, some_neurons = parts(batch, levels)
    tables = Tables(levels, some_images)
    for images in some_images:
        rows = tables.fill(maps(images))
        for neurons in some_neurons:
            yield images, neurons, rows


def read(maps: Maps, levels: Sequence[Level], weight: Tensor, bias: Tensor | None, batch: int) -> Tensor:
    """Return the sum over the channels of all levels at every point, weighted by [N, sum of C], plus bias [N].

    It is [B, N] in the compute dtype.
    """
    dtype = levels[0].dtype
    w = weight.to(dtype).contiguous()
    out = w.new_empty((batch, len(w)))
    for images, neurons, rows in walk(levels, maps, batch):
        here = out[images, neurons]
        for level, table, columns in _with_columns(levels, rows):
            corners = level.corners(images, neurons)
            values = gather(table, corners.rows, corners.value).view(*here.shape, -1)
            total = values.mul_(w[neurons, columns]).sum(-1)
            here.copy_(total) if columns.start == 0 else here.add_(total)
    return out if bias is None else out.add_(bias.to(dtype))


class Gradients:
    """What a backward pass computes. What is not requested is None."""

    def __init__(self, levels: Sequence[Level], batch: int, position: bool, weight: bool) -> None:
        like, columns = levels[0].points, sum(level.channels for level in levels)
        neurons = like.shape[-1]
        self.position = like.new_zeros((2, batch, neurons)) if position else None
        self.weight = like.new_zeros((neurons, columns)) if weight else None

    def collect(
        self,
        level: Level,
        columns: slice,
        images: slice,
        neurons: slice,
        table: Tensor | None,  # None if neither of the two is requested
        target: Tensor | None,  # rows of the gradient of the features
        upstream: Tensor,  # [b, n, C]
        grad: Tensor | None,  # [b, n]
    ) -> None:
        """Add the gradients from some images and neurons at one level, whose values have the gradient ``upstream``.

        The values times ``grad`` are the gradient of the weight.
        """
        corners = level.corners(images, neurons)
        value = corners.value
        if target is not None:
            scatter(target, corners.rows, value, upstream.reshape(-1, level.channels))
        if table is None:
            return
        if self.weight is not None and grad is not None:
            values = gather(table, corners.rows, value).view(upstream.shape)
            self.weight[neurons, columns] += values.mul_(grad.unsqueeze(-1)).sum(0)
        if self.position is not None:
            for axis, slope in enumerate(corners.slopes):
                along = gather(table, corners.rows, slope).view(upstream.shape).mul_(upstream).sum(-1)
                self.position[axis, images, neurons].add_(along, alpha=level.scale[axis])


def backward(
    maps: Maps,
    levels: Sequence[Level],
    upstream: Callable[[slice, slice, slice], Tensor],  # of images, neurons and columns -> [b, n, C]
    grad: Tensor | None,  # [B, N]
    found: Gradients,
    keep: Callable[[slice, list[Tensor]], None] | None,
    batch: int,
) -> None:
    """Collect the gradients of positions and weight in ``found``.

    ``keep`` is given images and the gradients of their maps, [b, H, W, C] for each level; None if nobody wants them.
    """
    some_images, some_neurons = parts(batch, levels)
    nothing = [None] * len(levels)
    tables = None if found.position is None and found.weight is None else Tables(levels, some_images)
    targets = None if keep is None else Tables(levels, some_images)
    for images in some_images:
        count = images.stop - images.start
        rows = nothing if tables is None else tables.fill(maps(images))
        into = nothing if targets is None else [table.zero_() for table in targets.rows(count)]
        for neurons in some_neurons:
            for level, table, target, columns in _with_columns(levels, rows, into):
                g = None if grad is None else grad[images, neurons]
                here = upstream(images, neurons, columns)
                found.collect(level, columns, images, neurons, table, target, here, g)
        if targets is not None and keep is not None:
            keep(images, targets.inside(count))


def keep_in(d_features: Tensor) -> Callable[[slice, list[Tensor]], None]:
    """Return the function that writes the gradient of a single level into that of the features, [B, C, H, W]."""

    def keep(images: slice, maps: list[Tensor]) -> None:
        d_features[images] = maps[0].permute(0, 3, 1, 2)

    return keep


def weighted(grad: Tensor, weight: Tensor) -> Callable[[slice, slice, slice], Tensor]:
    """Return the function that computes the gradient of what is read from that of the weighted sum, [B, N]."""
    return lambda images, neurons, columns: grad[images, neurons].unsqueeze(-1) * weight[neurons, columns]


def position_gradients(
    d_position: Tensor | None, grid: Tensor, want_grid: bool, want_shift: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of given positions (in their shape) and of the shift, from [2, B, N]."""
    if d_position is None:
        return None, None
    d_grid = (d_position.sum(1) if grid.dim() == 2 else d_position).movedim(0, -1).contiguous()
    return d_grid if want_grid else None, d_position.sum(-1).t().contiguous() if want_shift else None
