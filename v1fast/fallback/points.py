"""Feature maps read at points by rows: a few images at a time, so that what is read stays in the cache.

The maps of a pyramid are copied into one table of rows: the channels of a pixel side by side, in the dtype to compute
in, and each map with a border of zeros. A corner outside a map is a pixel of its border. Its products are zero, or NaN
where the position is NaN, as in the reference. The bilinear sum of four rows is an embedding bag, and its adjoint an
indexed sum of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

SAMPLES = 2**18  # values that are read at a time: with what is computed from them they fit the second-level cache
MAPS = 2**20  # values of maps at a time

ALL = slice(None)
WHOLE = (ALL,)
"""All images or neurons, in a single part."""

Pair = tuple[Tensor | float, Tensor | float]
Maps = Callable[[slice], Sequence[Tensor]]
"""The maps [b, C, H, W] of some of the images, one for each level."""
Keep = Callable[[slice, list[Tensor]], None]
"""Takes images, and the gradients of their maps, [b, C, H, W] for each level, which it may overwrite."""
Upstream = Callable[[slice, slice], Tensor]
"""The gradient of what some neurons read in some images, [L, b, n, C]."""


class Corners:
    """The rows of the corners of M = L B N points, (y0 x0), (y0 x1), (y1 x0), (y1 x1), and the weights of the sides."""

    def __init__(
        self,
        rows: Tensor,  # [M, 4]
        across: tuple[Tensor, Tensor],  # of x0 and x1, each [L, B or 1, N]
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
        # Of a single neuron, reshape would be a view with a stride of 0.
        return out.expand(-1, self.images, -1, -1).reshape(-1, 4).contiguous()

    @cached_property
    def value(self) -> Tensor:
        """The weights of bilinear interpolation."""
        return self._products(self.down, self.across)

    @cached_property
    def slopes(self) -> tuple[Tensor, Tensor]:
        """The weights of its derivative by the pixel coordinates x and y."""
        return self._products(self.down, (-1.0, 1.0)), self._products((-1.0, 1.0), self.across)


class Pyramid:
    """Maps of one number of channels as rows of a table, and the points that are read in all of them.

    Args:
        sizes: height and width of each of L levels.
        channels: C.
        batch: B.
        points: [B, N, 2], or [1, N, 2] if all images share them: x and y, normalised, in the compute dtype.
        align_corners: as in ``torch.nn.functional.grid_sample``.
    """

    def __init__(
        self, sizes: Sequence[tuple[int, int]], channels: int, batch: int, points: Tensor, align_corners: bool
    ) -> None:
        points = points.movedim(-1, 0).contiguous()  # x and y apart
        self.sizes, self.channels, self.batch, self.points = sizes, channels, batch, points
        self.align_corners = align_corners
        pixels = [(height + 2) * (width + 2) for height, width in sizes]
        samples = len(sizes) * channels
        self.neurons = Slices(points.shape[-1], SAMPLES // samples)
        most = SAMPLES // (samples * max(1, self.neurons[0].stop if self.neurons else 1))
        self.images = Slices(batch, min(most, MAPS // (sum(pixels) * channels)))
        self.count = self.images[0].stop if self.images else 0  # images in the table
        self.starts = [0, *accumulate(self.count * each for each in pixels)]  # rows of the levels
        edges = [[width for _, width in sizes], [height for height, _ in sizes]]
        scales = [[(edge - 1) / 2 if align_corners else edge / 2 for edge in axis] for axis in edges]
        integers = torch.int32 if self.starts[-1] < 2**31 else torch.int64
        self.scale = points.new_tensor(scales)[..., None, None]  # [2, L, 1, 1]
        self.last, self.pitch, self.step, self.start = (
            torch.tensor(values, dtype=integers, device=points.device)[..., None, None]
            for values in (edges, [width + 2 for _, width in sizes], pixels, self.starts[:-1])
        )
        self.shared: dict[tuple[int, int], Corners] = {}

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self.points.dtype

    def table(self) -> Tensor:
        """Return rows of zeros, [R, C]."""
        return self.points.new_zeros((self.starts[-1], self.channels))

    def inside(self, table: Tensor, count: int) -> Iterator[Tensor]:
        """Yield the maps of the first images in a table without their borders, [B, H, W, C]."""
        for (height, width), first in zip(self.sizes, self.starts, strict=False):
            rows = table[first : first + count * (height + 2) * (width + 2)]
            yield rows.view(count, height + 2, width + 2, self.channels)[:, 1:-1, 1:-1]

    def fill(self, table: Tensor, maps: Sequence[Tensor]) -> None:
        """Copy maps [B, C, H, W] into a table."""
        for inside, each in zip(self.inside(table, len(maps[0])), maps, strict=True):
            inside.copy_(each.permute(0, 2, 3, 1))

    def corners(self, images: slice, neurons: slice) -> Corners:
        """Return the four pixels around each point of these images and neurons."""
        count = images.stop - images.start
        if self.points.shape[1] > 1:
            return self._corners(self.points[:, images, neurons], count)
        key = (count, neurons.start)
        if key not in self.shared:
            self.shared[key] = self._corners(self.points[:, :, neurons], count)
        return self.shared[key]

    def _corners(self, points: Tensor, count: int) -> Corners:  # [2, B or 1, N]
        pixel = (points.unsqueeze(1) + 1) * self.scale
        if not self.align_corners:
            pixel -= 0.5
        lower = pixel.floor()
        far = pixel.sub_(lower)
        # Whatever integer becomes of a NaN or of a huge number, its pixel is on the border or inside.
        first = torch.minimum(lower.to(self.last.dtype).clamp_(min=-2), self.last)
        (x0, y0), (x1, y1) = (first + 1).clamp_(min=0), torch.minimum(first + 2, self.last + 1)
        image = self.start + torch.arange(count, dtype=self.last.dtype, device=points.device).view(-1, 1) * self.step
        rows = first.new_empty((len(self.sizes), count, points.shape[-1], 4))
        for k, column in enumerate(rows.unbind(-1)):
            if k % 2 == 0:
                row = (y0, y1)[k // 2] * self.pitch + image
            torch.add(row, (x0, x1)[k % 2], out=column)
        near = 1 - far
        return Corners(rows.view(-1, 4), (near[0], far[0]), (near[1], far[1]), count)

    def by_level(self, weight: Tensor) -> Tensor:  # [N, L C] -> [L, N, C]
        """Return weights in the compute dtype, level by level."""
        return weight.to(self.dtype).contiguous().unflatten(1, (len(self.sizes), self.channels)).movedim(1, 0)

    def values_of(self, maps: Maps) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield images and neurons, and what these neurons read in them, [L, b, n, C]."""
        table = self.table()
        for images in self.images:
            self.fill(table, maps(images))
            for neurons in self.neurons:
                corners = self.corners(images, neurons)
                values = gather(table, corners.rows, corners.value)
                yield images, neurons, values.view(len(self.sizes), corners.images, -1, self.channels)

    def gather(self, maps: Maps, out: Tensor) -> None:
        """Write what is read at every point of a single level into ``out``, [B, N, C]."""
        for images, neurons, values in self.values_of(maps):
            out[images, neurons] = values[0]

    def read(self, maps: Maps, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the sum over the channels of all levels at every point, weighted by [N, L C], plus bias [N].

        It is [B, N] in the compute dtype.
        """
        w = self.by_level(weight)
        out = w.new_empty((self.batch, w.shape[1]))
        for images, neurons, values in self.values_of(maps):
            torch.sum(values.mul_(w[:, None, neurons]).sum(-1), 0, out=out[images, neurons])
        return out if bias is None else out.add_(bias.to(self.dtype))

    def gradients_of_weighted(
        self, maps: Maps, weight: Tensor, grad: Tensor, keep: Keep | None, want_position: bool, want_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of positions [B, N, 2] and weight [N, L C] from that of ``read``, [B, N].

        ``keep`` is given the gradients of maps. None stands for what nobody wants.
        """
        return self._backward(maps, self._weighted(grad, weight), grad, keep, want_position, want_weight)

    def gradients_of_gathered(self, maps: Maps, grad: Tensor, keep: Keep | None, want_position: bool) -> Tensor | None:
        """Return the gradient of positions [B, N, 2] from that of what ``gather`` wrote, [B, N, C]."""
        return self._backward(maps, self._given(grad), None, keep, want_position, False)[0]

    def _weighted(self, grad: Tensor, weight: Tensor) -> Upstream:  # [B, N], [N, L C]
        """Return the function that computes the gradient of what is read from that of the weighted sum."""
        w = self.by_level(weight)
        return lambda images, neurons: grad[images, neurons].unsqueeze(-1) * w[:, None, neurons]

    def _given(self, grad: Tensor) -> Upstream:  # [B, N, C]
        """Return the function that selects from the gradient of what is read in a single level."""
        return lambda images, neurons: grad[images, neurons].to(self.dtype).unsqueeze(0)

    def _backward(
        self, maps: Maps, upstream: Upstream, grad: Tensor | None, keep: Keep | None, position: bool, weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of positions [B, N, 2] and weight [N, L C], None if not wanted.

        Args:
            maps: the maps that were read.
            upstream: the gradient of what was read.
            grad: [B, N], the gradient of the weighted sum; what was read times it is the gradient of the weight.
            keep: is given the gradients of maps, unless nobody wants them.
            position: whether the gradient of positions is wanted.
            weight: whether that of the weight is wanted.
        """
        found = _Gradients(self, position, weight)
        table = self.table() if position or weight else None
        target = None if keep is None else self.table()
        for images in self.images:
            if table is not None:
                self.fill(table, maps(images))
            if target is not None:
                target.zero_()
            for neurons in self.neurons:
                here = upstream(images, neurons)
                if target is not None:
                    corners = self.corners(images, neurons)
                    scatter(target, corners.rows, corners.value, here.reshape(-1, self.channels))
                if table is not None:
                    found.collect(images, neurons, table, here, None if grad is None else grad[images, neurons])
            if target is not None and keep is not None:
                keep(images, [each.permute(0, 3, 1, 2) for each in self.inside(target, images.stop - images.start)])
        return None if found.position is None else found.position.movedim(0, -1), found.weight


class _Gradients:
    """What a backward pass computes. What is not requested is None."""

    def __init__(self, pyramid: Pyramid, position: bool, weight: bool) -> None:
        like, levels = pyramid.points, len(pyramid.sizes)
        neurons = like.shape[-1]
        self.pyramid = pyramid
        self.position = like.new_zeros((2, pyramid.batch, neurons)) if position else None
        self.levels = like.new_zeros((levels, neurons, pyramid.channels)) if weight else None

    @property
    def weight(self) -> Tensor | None:  # [N, L C]
        """The gradient of the weight."""
        return None if self.levels is None else self.levels.movedim(0, 1).flatten(1)

    def collect(self, images: slice, neurons: slice, table: Tensor, upstream: Tensor, grad: Tensor | None) -> None:
        """Add the gradients from some images and neurons, whose values have the gradient ``upstream`` [L, b, n, C].

        The values times ``grad`` [b, n] are the gradient of the weight.
        """
        corners = self.pyramid.corners(images, neurons)
        if self.levels is not None and grad is not None:
            values = gather(table, corners.rows, corners.value).view(upstream.shape)
            self.levels[:, neurons] += values.mul_(grad.unsqueeze(-1)).sum(1)
        if self.position is not None:
            for scale, slope, found in zip(self.pyramid.scale, corners.slopes, self.position, strict=True):
                along = gather(table, corners.rows, slope).view(upstream.shape).mul_(upstream).sum(-1)
                found[images, neurons] = along.mul_(scale).sum(0)


class Slices(Sequence[slice]):
    """A range in as few equal parts as possible of at most ``most``, or 1; however many, they take no memory."""

    def __init__(self, total: int, most: int) -> None:
        size = -(-total // max(1, -(-total // max(1, most))))
        self._firsts, self._size, self._total = range(0, total, max(1, size)), size, total

    def __len__(self) -> int:
        return len(self._firsts)

    def __getitem__(self, index: Any) -> Any:
        first = self._firsts[index]
        return slice(first, min(first + self._size, self._total))


def gather(table: Tensor, rows: Tensor, weight: Tensor) -> Tensor:  # [R, C], [M, 4], [M, 4] -> [M, C]
    """Return the weighted sums of four rows each."""
    if table.dtype == torch.float32 and table.device.type in ("cpu", "cuda"):
        first = torch.arange(0, rows.numel(), 4, dtype=rows.dtype, device=rows.device)
        return torch.embedding_bag(table, rows.view(-1), first, False, 0, False, weight.view(-1))[0]
    found = table.index_select(0, rows.view(-1)).view(-1, 4, table.shape[1])
    return found.mul_(weight.unsqueeze(-1)).sum(1)


def scatter(table: Tensor, rows: Tensor, weight: Tensor, values: Tensor) -> None:  # [R, C], [M, 4], [M, 4], [M, C]
    """Add the weighted values to four rows each: the adjoint of ``gather``."""
    part = torch.empty_like(values)
    for row, factor in zip(rows.long().unbind(-1), weight.unbind(-1), strict=True):
        table.index_add_(0, row.contiguous(), torch.mul(values, factor.unsqueeze(-1), out=part))


def shifted(grid: Tensor, shift: Tensor | None, dtype: torch.dtype) -> Tensor:  # [B or 1, N, 2]
    """Return given positions, [N, 2] or [B, N, 2], with the shift [B, 2] of each image."""
    p = (grid if grid.dim() == 3 else grid.unsqueeze(0)).to(dtype)
    return p if shift is None else (p + shift.to(dtype).unsqueeze(1)).contiguous()


def one_level(features: Tensor) -> Maps:
    """Return the function that selects the maps of some images."""
    return lambda images: [features if images is ALL else features[images]]


class Kept:
    """The gradient of features in their dtype and layout, from that of the maps of some images after another."""

    def __init__(self, features: Tensor) -> None:
        self.features = features
        self.found: Tensor | None = None

    def __call__(self, images: slice, maps: list[Tensor]) -> None:
        """Keep the first of the gradients of maps, [b, C, H, W]."""
        found, like = maps[0], self.features
        if images is ALL and found.dtype == like.dtype and found.is_contiguous() and found.stride() == like.stride():
            self.found = found
            return
        if self.found is None:
            self.found = torch.empty_like(like)
        self.found[images] = found

    @property
    def gradient(self) -> Tensor:
        """The gradient of all features; there may be no image."""
        return torch.empty_like(self.features) if self.found is None else self.found


def position_gradients(
    d_position: Tensor | None, grid: Tensor, want_grid: bool, want_shift: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of given positions (in their shape) and of the shift, from [B, N, 2]."""
    if d_position is None:
        return None, None
    d_grid = (d_position.sum(0) if grid.dim() == 2 else d_position).contiguous() if want_grid else None
    return d_grid, d_position.sum(1) if want_shift else None
