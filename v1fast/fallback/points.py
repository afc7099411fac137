"""Feature maps read at points by rows: a few images at a time, so that what is read stays in the cache.

A row is the channels of a pixel, side by side, in the dtype to compute in: channels-last maps are read as they lie, and
others are copied. The bilinear sum of four rows is an embedding bag, and its adjoint an indexed sum of rows.

A corner outside the map is never read. Along an axis where one of two is outside, the other one is read twice, with
half of its weight each time. A point that has no corner in the map reads any pixel, and zero takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

SAMPLES = 2**18  # values that are read at a time, in a level: with what is computed from them they fit the cache
MAPS = 2**20  # values of maps at a time
MANY = 4  # images for which points are sorted by the pixels that they read
POINTS = 2**16  # whose corners are computed at a time: less often, and these still fit the cache

ALL = slice(None)
WHOLE = (ALL,)
"""All images or neurons, in a single part."""

Pair = tuple[Tensor | float, Tensor | float]
Maps = Callable[[slice], Sequence[Tensor]]
"""The maps [b, C, H, W] of some of the images, one for each level."""
Upstream = Callable[[slice, slice, int], Tensor]
"""The gradient of what some neurons read in some images in a level, [b, n, C]."""


class Corners:
    """The rows of the corners of points in L maps, (y0 x0), (y0 x1), (y1 x0), (y1 x1), and the weights of the sides."""

    def __init__(
        self,
        rows: Tensor,  # [L, b, n, 4]
        across: tuple[Tensor, Tensor],  # of x0 and x1, each [L, b or 1, n]
        down: tuple[Tensor, Tensor],  # of y0 and y1
        slopes: tuple[Pair, Pair],  # the derivatives of across and of down by the pixel coordinates
        outside: Tensor | None,  # [L, b or 1, n], which points have no corner in the map; None: all have one
        by_pixel: bool,  # whether all images share the points, and are many enough to sort these
    ) -> None:
        self.rows, self.across, self.down, self.slopes_of, self.outside = rows, across, down, slopes, outside
        self.by_pixel = by_pixel
        self._pixels: dict[int, tuple[Tensor, ...]] = {}
        self._part_of: tuple[Corners, slice] | None = None

    def part(self, images: slice) -> Corners:
        """Return the corners of the points of some images, whose weights are parts of these."""
        outside = None if self.outside is None else self.outside[:, images]
        found = Corners(self.rows[:, images], self.across, self.down, self.slopes_of, outside, self.by_pixel)
        found._part_of = self, images
        return found

    def _products(self, down: Pair, across: Pair) -> Tensor:  # [L, b, n, 4]
        """Return the products of weights of rows and columns of pixels. One of the pairs may be numbers."""
        like = self.across[0]
        out = like.new_empty((*like.shape, 4))
        for k, column in enumerate(out.unbind(-1)):
            a, b = down[k // 2], across[k % 2]
            torch.mul(*((a, b) if isinstance(a, Tensor) else (b, a)), out=column)
        # Of a single neuron, expand would give a stride of 0.
        return out.expand(self.rows.shape).contiguous()

    @cached_property
    def value(self) -> Tensor:
        """The weights of bilinear interpolation."""
        if self._part_of is not None:
            whole, images = self._part_of
            return whole.value[:, images]
        return self._products(self.down, self.across)

    @cached_property
    def slopes(self) -> tuple[Tensor, Tensor]:
        """The weights of its derivative by the pixel coordinates x and y."""
        if self._part_of is not None:
            whole, images = self._part_of
            by_x, by_y = whole.slopes
            return by_x[:, images], by_y[:, images]
        across, down = self.slopes_of
        return self._products(self.down, across), self._products(down, self.across)

    def gather(self, level: int, table: Tensor, weight: Tensor) -> Tensor:  # [R, C] -> [b, n, C]
        """Return the sums of the corners' rows, weighted by ``value`` or one of ``slopes``."""
        rows, w = self.rows[level], weight[level]
        found = gather(table, rows.view(-1, 4), w.view(-1, 4))
        if self.outside is not None:
            at = self._outside_in(level)
            found[at] = w.view(-1, 4)[at].sum(-1, keepdim=True) * 0  # NaN where the position is
        return found.view(*rows.shape[:2], -1)

    def scatter(self, level: int, table: Tensor, values: Tensor) -> None:  # [R, C], [b, n, C]
        """Add the weighted values to the corners' rows: the adjoint of ``gather``."""
        values = self._without_outside(level, values.reshape(-1, values.shape[-1]))
        if self.by_pixel and has_bags(table):
            pixels, points, firsts, weight = self._by_pixel(level)
            table.index_add_(0, pixels, bags(values, points, firsts, weight))
            return
        part = torch.empty_like(values)
        weight = self._without_outside(level, self.value[level].view(-1, 4))
        for row, factor in zip(self.rows[level].view(-1, 4).long().unbind(-1), weight.unbind(-1), strict=True):
            table.index_add_(0, row.contiguous(), torch.mul(values, factor.unsqueeze(-1), out=part))

    def _outside_in(self, level: int) -> Tensor:
        """Return which of the b n points have no corner in the map of a level, as indices."""
        assert self.outside is not None
        return self.outside[level].expand(self.rows.shape[1:3]).flatten().nonzero().squeeze(1)

    def _without_outside(self, level: int, values: Tensor) -> Tensor:  # [b n, ...]
        return values if self.outside is None else values.index_fill(0, self._outside_in(level), 0)

    def _by_pixel(self, level: int) -> tuple[Tensor, ...]:
        """Return the pixels that points read, U of them in all images, and the points at each, in one list.

        That are: the pixels' rows [U], the points and their weights [b n 4], and where those of each pixel begin [U].
        """
        if level not in self._pixels:
            rows, order = self.rows[level, 0].view(-1).sort(stable=True)
            pixels, counts = rows.unique_consecutive(return_counts=True)
            weight = self._without_outside(level, self.value[level].view(-1, 4)).view(-1)[order]
            images = torch.arange(len(self.rows[level]), device=rows.device).unsqueeze(1)
            points, firsts = order.div_(4, rounding_mode="floor"), counts.cumsum(0) - counts
            found = (
                pixels.long() + self.rows[level, :, 0, :1] - self.rows[level, 0, 0, 0],
                points + images * self.rows.shape[2],
                firsts + images * len(order),
                weight.expand(len(images), -1),
            )
            self._pixels[level] = tuple(each.reshape(-1) for each in found)
        return self._pixels[level]


class Pyramid:
    """Maps of one number of channels as rows, and the points that are read in all of them.

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
        pixels = [height * width for height, width in sizes]
        self.neurons = Slices(points.shape[-1], SAMPLES // channels)
        most = SAMPLES // (channels * max(1, self.neurons[0].stop if self.neurons else 1))
        self.images = Slices(batch, min(most, MAPS // (sum(pixels) * channels)))
        edges = [[width for _, width in sizes], [height for height, _ in sizes]]
        scales = [[(edge - 1) / 2 if align_corners else edge / 2 for edge in axis] for axis in edges]
        count = self.images[0].stop if self.images else 0  # images at a time
        integers = torch.int32 if count * max(pixels) < 2**31 else torch.int64
        self.scale = points.new_tensor(scales)[..., None, None]  # [2, L, 1, 1]
        self.edge, self.pitch, self.step = (
            torch.tensor(values, dtype=integers, device=points.device)[..., None, None]
            for values in (edges, edges[0], pixels)
        )
        self.shared: dict[tuple[int, int], Corners] = {}
        self._computed: dict[int, tuple[int, Corners]] = {}
        self.copies = [Copies(points.dtype) for _ in sizes]

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self.points.dtype

    def rows(self, maps: Sequence[Tensor]) -> list[Tensor]:  # [b, C, H, W] -> [b H W, C]
        """Return maps as rows: views where they are laid out so."""
        each = (copy(level) for copy, level in zip(self.copies, maps, strict=True))
        return [level.permute(0, 2, 3, 1).view(-1, self.channels) for level in each]

    def corners(self, images: slice, neurons: slice) -> Corners:
        """Return the four pixels around each point of these images and neurons."""
        count = images.stop - images.start
        if self.points.shape[1] > 1:
            return self._corners_of_some(images, neurons)
        key = (count, neurons.start)
        if key not in self.shared:
            self.shared[key] = self._corners(self.points[:, :, neurons], count)
        return self.shared[key]

    def _corners_of_some(self, images: slice, neurons: slice) -> Corners:
        """Return those of points that images do not share, computed for several parts of the images at once."""
        each = self.images[0].stop
        most = POINTS // (each * self.points.shape[2]) * each  # images at once
        if most <= each:
            return self._corners(self.points[:, images, neurons], images.stop - images.start)
        first = images.start // most * most
        known, corners = self._computed.get(neurons.start, (None, None))
        if known != first or corners is None:
            points = self.points[:, first : first + most, neurons]
            corners = self._corners(points, points.shape[1])
            self._computed[neurons.start] = first, corners
        return corners.part(slice(images.start - first, images.stop - first))

    def _corners(self, points: Tensor, count: int) -> Corners:  # [2, b or 1, n]
        pixel = (points.unsqueeze(1) + 1) * self.scale
        if not self.align_corners:
            pixel -= 0.5
        lower = pixel.floor()
        far = pixel.sub_(lower)
        near = 1 - far
        # Whatever integer becomes of a NaN or of a huge number, its pixel is in the map.
        first, last = torch.minimum(lower.to(self.edge.dtype).clamp_(min=-2), self.edge), self.edge - 1
        low, high = torch.minimum(first.clamp(min=0), last), torch.minimum((first + 1).clamp_(min=0), last)
        slopes, outside = self._mend_borders(first, low, high, near, far)
        by_pixel = self.points.shape[1] == 1 and self.batch >= MANY
        rows = self._rows_of(low, high, count)
        return Corners(rows, (near[0], far[0]), (near[1], far[1]), slopes, outside, by_pixel)

    @staticmethod
    def _mend_borders(
        first: Tensor, low: Tensor, high: Tensor, near: Tensor, far: Tensor
    ) -> tuple[tuple[Pair, Pair], Tensor | None]:
        """Correct the weights where an axis has a single pixel, low = high. Return their slopes, and who is outside.

        All operands are [2, L, b or 1, n]. The slopes are those of x and y by their pixel coordinates.
        """
        at = (low == high).flatten().nonzero().squeeze(1)
        if not len(at):
            return ((-1.0, 1.0), (-1.0, 1.0)), None
        wanted, lowest, highest = (each.flatten()[at] for each in (first, low, high))
        here, there = wanted == lowest, wanted + 1 == highest  # which of the two is in the map
        half = (near.flatten()[at] * here + far.flatten()[at] * there) / 2
        slope = (there.to(half.dtype) - here.to(half.dtype)) / 2
        before, after = torch.full_like(near, -1), torch.full_like(near, 1)
        for each, value in ((near, half), (far, half), (before, slope), (after, slope)):
            each.view(-1)[at] = value
        slopes = (before[0], after[0]), (before[1], after[1])
        neither = at[~(here | there)]
        if not len(neither):
            return slopes, None
        outside = torch.zeros_like(near, dtype=torch.bool)
        outside.view(-1)[neither] = True
        return slopes, outside[0] | outside[1]

    def _rows_of(self, low: Tensor, high: Tensor, count: int) -> Tensor:  # [2, L, b or 1, n] -> [L, b, n, 4]
        (x0, y0), (x1, y1) = low, high
        image = torch.arange(count, dtype=low.dtype, device=low.device).view(-1, 1) % self.images[0].stop * self.step
        rows = low.new_empty((len(self.sizes), count, low.shape[-1], 4))
        for k, column in enumerate(rows.unbind(-1)):
            if k % 2 == 0:
                row = (y0, y1)[k // 2] * self.pitch + image
            torch.add(row, (x0, x1)[k % 2], out=column)
        return rows

    def by_level(self, weight: Tensor) -> Tensor:  # [N, L C] -> [L, N, C]
        """Return weights in the compute dtype, level by level."""
        return weight.to(self.dtype).contiguous().unflatten(1, (len(self.sizes), self.channels)).movedim(1, 0)

    def values_of(self, maps: Maps) -> Iterator[tuple[slice, slice, Iterator[Tensor]]]:
        """Yield images and neurons, and what these neurons read in them, [b, n, C] of one level after another."""
        for images in self.images:
            tables = self.rows(maps(images))
            for neurons in self.neurons:
                corners = self.corners(images, neurons)
                read = (corners.gather(level, table, corners.value) for level, table in enumerate(tables))
                yield images, neurons, read

    def gather(self, maps: Maps, out: Tensor) -> None:
        """Write what is read at every point of a single level into ``out``, [B, N, C]."""
        for images, neurons, (values,) in self.values_of(maps):
            out[images, neurons] = values

    def read(self, maps: Maps, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the sum over the channels of all levels at every point, weighted by [N, L C], plus bias [N].

        It is [B, N] in the compute dtype.
        """
        w = self.by_level(weight)
        out = w.new_empty((self.batch, w.shape[1]))
        for images, neurons, read in self.values_of(maps):
            into = out[images, neurons]
            for level, values in enumerate(read):
                values *= w[level, neurons]
                if level:
                    into += values.sum(-1)
                else:
                    torch.sum(values, -1, out=into)
        return out if bias is None else out.add_(bias.to(self.dtype))

    def gradients_of_weighted(
        self, maps: Maps, weight: Tensor, grad: Tensor, keep: Kept | None, want_position: bool, want_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of positions [B, N, 2] and weight [N, L C] from that of ``read``, [B, N].

        ``keep`` is given the gradients of maps. None stands for what nobody wants.
        """
        return self._backward(maps, self._weighted(grad, weight), grad, keep, want_position, want_weight)

    def gradients_of_gathered(self, maps: Maps, grad: Tensor, keep: Kept | None, want_position: bool) -> Tensor | None:
        """Return the gradient of positions [B, N, 2] from that of what ``gather`` wrote, [B, N, C]."""
        return self._backward(maps, self._given(grad), None, keep, want_position, False)[0]

    def _weighted(self, grad: Tensor, weight: Tensor) -> Upstream:  # [B, N], [N, L C]
        """Return the function that computes the gradient of what is read from that of the weighted sum."""
        w = self.by_level(weight)
        return lambda images, neurons, level: grad[images, neurons].unsqueeze(-1) * w[level, neurons]

    def _given(self, grad: Tensor) -> Upstream:  # [B, N, C]
        """Return the function that selects from the gradient of what is read in a single level."""
        return lambda images, neurons, level: grad[images, neurons].to(self.dtype)

    def _backward(
        self, maps: Maps, upstream: Upstream, grad: Tensor | None, keep: Kept | None, position: bool, weight: bool
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
        for images in self.images:
            tables = self.rows(maps(images)) if position or weight else None
            targets = None if keep is None else self._targets(keep, images)
            for neurons in self.neurons:
                corners = self.corners(images, neurons)
                for level in range(len(self.sizes)):
                    here = upstream(images, neurons, level)
                    if tables is not None:
                        part = None if grad is None else grad[images, neurons]
                        found.collect(images, neurons, level, corners, tables[level], here, part)
                    if targets is not None:
                        corners.scatter(level, targets[level], here)
            if targets is not None and keep is not None:
                shapes = ((images.stop - images.start, *size, self.channels) for size in self.sizes)
                keep(images, [t.view(s).permute(0, 3, 1, 2) for t, s in zip(targets, shapes, strict=True)])
        return None if found.position is None else found.position.movedim(0, -1), found.weight

    def _targets(self, keep: Kept, images: slice) -> list[Tensor]:
        """Return rows of zeros for the gradients of maps; for the first, if possible, those where they are kept."""
        count = images.stop - images.start
        first, *others = self.sizes
        kept = keep.rows(images, self.dtype)
        zeros = (self.points.new_zeros((count * height * width, self.channels)) for height, width in others)
        rows = count * first[0] * first[1]
        return [self.points.new_zeros((rows, self.channels)) if kept is None else kept.zero_(), *zeros]


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

    def collect(
        self,
        images: slice,
        neurons: slice,
        level: int,
        corners: Corners,
        table: Tensor,  # [R, C], the rows of the level's maps
        upstream: Tensor,  # [b, n, C], the gradient of what is read
        grad: Tensor | None,  # [b, n]; what is read times this is the gradient of the weight
    ) -> None:
        """Add the gradients that come from some images and neurons in a level."""
        if self.levels is not None and grad is not None:
            values = corners.gather(level, table, corners.value)
            self.levels[level, neurons] += values.mul_(grad.unsqueeze(-1)).sum(0)
        if self.position is not None:
            for scale, slope, found in zip(self.pyramid.scale, corners.slopes, self.position, strict=True):
                along = corners.gather(level, table, slope).mul_(upstream).sum(-1)
                found[images, neurons] += along.mul_(scale[level])


class Copies:
    """Maps in a dtype, channels-last: as they lie, or copied into the same memory each time.

    Fresh memory costs more than the copy. The first maps are the most.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._memory: Tensor | None = None

    def __call__(self, maps: Tensor) -> Tensor:  # [b, C, H, W]
        """Return the maps; a copy is valid until the next call."""
        images = maps.permute(0, 2, 3, 1)
        if maps.dtype == self.dtype and images.is_contiguous():
            return maps
        if self._memory is None:
            self._memory = images.new_empty(images.shape, dtype=self.dtype)
        return self._memory[: len(images)].copy_(images).permute(0, 3, 1, 2)


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
    if has_bags(table):
        firsts = torch.arange(0, rows.numel(), 4, dtype=rows.dtype, device=rows.device)
        return bags(table, rows.view(-1), firsts, weight.view(-1))
    found = table.index_select(0, rows.view(-1)).view(-1, 4, table.shape[1])
    return found.mul_(weight.unsqueeze(-1)).sum(1)


def has_bags(table: Tensor) -> bool:
    """Whether ``bags`` takes these rows: torch has embedding bags of float64 and of other devices that are slow."""
    return table.dtype == torch.float32 and table.device.type in ("cpu", "cuda")


def bags(table: Tensor, rows: Tensor, firsts: Tensor, weight: Tensor) -> Tensor:  # [R, C], [E], [M], [E] -> [M, C]
    """Return weighted sums of rows; ``firsts`` says where those of each sum begin."""
    return torch._embedding_bag_forward_only(table, rows, firsts, False, 0, False, weight)[0]


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
        self.written = False  # whether the next maps to keep are where they are kept

    def __call__(self, images: slice, maps: list[Tensor]) -> None:
        """Keep the first of the gradients of maps, [b, C, H, W]."""
        found, like = maps[0], self.features
        if self.written:
            return
        if images is ALL and found.dtype == like.dtype and found.is_contiguous() and found.stride() == like.stride():
            self.found = found
            return
        if self.found is None:
            self.found = torch.empty_like(like)
        self.found[images] = found

    def rows(self, images: slice, dtype: torch.dtype) -> Tensor | None:  # [b H W, C]
        """Return what is kept of these images, as rows; None if it has another dtype or layout. Its values are any."""
        if self.found is None:
            self.found = torch.empty_like(self.features)
        some = self.found[images].permute(0, 2, 3, 1)
        self.written = some.is_contiguous() and some.dtype == dtype
        return some.view(-1, some.shape[-1]) if self.written else None

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
