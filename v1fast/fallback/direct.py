"""Feature maps read at points by torch's own ``grid_sampler_2d``, a few images at a time: what ``points`` does by rows.

No map has to be copied into rows, and a call takes few operations of torch. So this is faster for few points, for small
maps, and for little work in all. ``docs/fallback.md`` has the measurements behind ``is_faster``.

torch reads several points at once only where their coordinates are contiguous, and takes two to four times as long
elsewhere. Here they are, which in eager models they often are not: there they are the transpose of a matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from v1fast.fallback import points as rows
from v1fast.fallback.bilinear import reads_none_at_nan
from v1fast.fallback.points import WHOLE, Kept, Maps, Slices

FEW = 2**9  # weights that are read as they lie
LITTLE = 2**15  # values that are read: by rows, the operations of torch would take longer than the work
MOST_OF_A_PIXEL = 16  # values that are read in an image, for each of its pixels
PLANE = 2**13  # pixels of a map whose gradient is faster to add up with the channels of a pixel side by side
NARROW, WIDE = 16, 64  # channels: rows are short or long

Upstream = Callable[[slice, slice, int], Tensor]
"""The gradient of what some neurons read in some images in a level, [b, C, n]."""


class Points:
    """Points that are read in the maps of a pyramid; the arguments and methods are those of ``points.Pyramid``.

    The points are finite, and there is at least one.
    """

    def __init__(
        self, sizes: Sequence[tuple[int, int]], channels: int, batch: int, points: Tensor, align_corners: bool
    ) -> None:
        self.channels, self.levels, self.align_corners, self.dtype = channels, len(sizes), align_corners, points.dtype
        grid = points.unsqueeze(2)
        self.grid = grid if len(grid) == batch else grid.expand(batch, -1, -1, -1)  # [B, N, 1, 2]
        samples, neurons = self.levels * channels, points.shape[1]
        pixels = sum(height * width for height, width in sizes)
        self.images: Sequence[slice] = WHOLE
        self.neurons: Sequence[slice] = WHOLE
        # What is read of an image may be as large as its maps: for each part, their gradient is written anew.
        values = max(rows.SAMPLES, pixels * channels)
        if batch * neurons * samples > values or batch * pixels * channels > rows.MAPS:
            self.neurons = Slices(neurons, values // samples)
            most = values // (samples * self.neurons[0].stop)
            self.images = Slices(batch, min(most, rows.MAPS // (pixels * channels)))
        self.is_whole = self.images is WHOLE

    def _some(self, x: Tensor, images: slice, neurons: slice) -> Tensor:  # [B, N, ...] -> [b, n, ...]
        return x if self.is_whole else x[images, neurons]

    def _of_level(self, weight: Tensor, level: int, neurons: slice) -> Tensor:  # [L C, N] -> [C, n]
        if self.is_whole and self.levels == 1:
            return weight
        first = level * self.channels
        return weight[first : first + self.channels, neurons]

    def _values(self, level: Tensor, grid: Tensor) -> Tensor:  # [b, C, n]
        return torch.grid_sampler_2d(level, grid, 0, 0, self.align_corners).squeeze(3)

    def _levels(self, maps: Maps, images: slice) -> list[Tensor]:
        return [level if level.dtype == self.dtype else level.to(self.dtype) for level in maps(images)]

    def _by_channel(self, weight: Tensor) -> Tensor:  # [N, L C] -> [L C, N]
        w = weight.to(self.dtype).t()
        return w if weight.numel() < FEW else w.contiguous()

    def gather(self, maps: Maps, out: Tensor) -> None:
        """Write what is read at every point of a single level into ``out``, [B, N, C]."""
        for images in self.images:
            (level,) = self._levels(maps, images)
            for neurons in self.neurons:
                grid = self._some(self.grid, images, neurons)
                self._some(out, images, neurons).copy_(self._values(level, grid).mT)

    def read(self, maps: Maps, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the sum over the channels of all levels at every point, weighted by [N, L C], plus bias [N].

        It is [B, N] in the compute dtype.
        """
        if self.is_whole and self.levels == 1:
            (level,) = self._levels(maps, rows.ALL)
            out = self._values(level, self.grid).mul_(weight.to(self.dtype).t()).sum(1)
        else:
            out = self._read_parts(maps, self._by_channel(weight))
        return out if bias is None else out.add_(bias)

    def _read_parts(self, maps: Maps, w: Tensor) -> Tensor:
        out = self.grid.new_empty(self.grid.shape[:2])
        for images in self.images:
            for number, level in enumerate(self._levels(maps, images)):
                for neurons in self.neurons:
                    grid, into = (self._some(t, images, neurons) for t in (self.grid, out))
                    values = self._values(level, grid).mul_(self._of_level(w, number, neurons))
                    if number:
                        into += values.sum(1)
                    else:
                        torch.sum(values, 1, out=into)
        return out

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
        w = self._by_channel(weight)

        def upstream(images: slice, neurons: slice, level: int) -> Tensor:
            return self._some(grad, images, neurons).unsqueeze(1) * self._of_level(w, level, neurons)

        return upstream

    def _given(self, grad: Tensor) -> Upstream:  # [B, N, C]
        """Return the function that selects from the gradient of what is read in a single level."""
        return lambda images, neurons, level: self._some(grad, images, neurons).to(self.dtype).mT.contiguous()

    def _backward(
        self, maps: Maps, upstream: Upstream, grad: Tensor | None, keep: Kept | None, position: bool, weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of positions [B, N, 2] and weight [N, L C], None if not wanted."""
        found = _Gradients(self, position, weight)
        for images in self.images:
            d_levels: list[Tensor] = []
            for number, level in enumerate(self._levels(maps, images)):
                if keep is not None and level.shape[2] * level.shape[3] > PLANE:
                    level = level.contiguous(memory_format=torch.channels_last)
                for neurons in self.neurons:
                    grid = self._some(self.grid, images, neurons)
                    if position or keep is not None:
                        here = upstream(images, neurons, number).unsqueeze(3)
                        operands = (here, level, grid, 0, 0, self.align_corners, [keep is not None, True])
                        d_level, d_grid = torch.ops.aten.grid_sampler_2d_backward.default(*operands)
                        if position:
                            found.add_position(images, neurons, number, d_grid.squeeze(2))
                        if len(d_levels) == number:
                            d_levels.append(d_level)
                        elif keep is not None:
                            d_levels[number] += d_level
                    if weight and grad is not None:
                        values = self._values(level, grid)
                        values *= self._some(grad, images, neurons).unsqueeze(1)
                        found.add_weight(images, neurons, number, values.sum(0))
            if keep is not None:
                keep(images, d_levels)
                del d_level, level, operands  # each as large as the maps of the next images
        return found.position, None if found.weight is None else found.weight.t()


class _Gradients:
    """The gradients of positions [B, N, 2] and weight [L C, N]. What is not requested is None."""

    def __init__(self, points: Points, position: bool, weight: bool) -> None:
        self.points, self.position, self.weight = points, None, None
        batch, neurons = points.grid.shape[:2]
        # Of a single part, the gradients are what torch returns.
        if not points.is_whole or points.levels > 1:
            self.position = points.grid.new_zeros((batch, neurons, 2)) if position else None
            self.weight = points.grid.new_zeros((points.levels * points.channels, neurons)) if weight else None

    def add_position(self, images: slice, neurons: slice, level: int, found: Tensor) -> None:
        """Add the gradient of points, [b, n, 2], that comes from a level."""
        if self.position is None:
            self.position = found
        else:
            self.position[images, neurons] += found

    def add_weight(self, images: slice, neurons: slice, level: int, found: Tensor) -> None:
        """Add the gradient of a level's weights [C, n] that comes from some images."""
        if self.weight is None:
            self.weight = found
        else:
            self.points._of_level(self.weight, level, neurons).add_(found)


def _is_faster(sizes: Sequence[tuple[int, int]], channels: int, batch: int, points: Tensor, gradients: bool) -> bool:
    """Whether these points, [B or 1, N, 2], are read faster here than by rows, or their gradients are computed."""
    if points.device.type != "cpu" or points.numel() == 0 or batch == 0:
        return False
    values = points.shape[1] * channels * len(sizes)  # of an image
    if batch * values > LITTLE:
        of_a_pixel = values / sum(height * width for height, width in sizes)
        narrow = channels <= NARROW
        if len(points) < batch:  # rows compute the corners of such points once
            chosen = narrow if gradients else of_a_pixel <= MOST_OF_A_PIXEL
        elif gradients and channels >= WIDE:
            chosen = of_a_pixel <= 2
        else:
            chosen = narrow or of_a_pixel <= MOST_OF_A_PIXEL
        if not chosen:
            return False
    return reads_none_at_nan() or math.isfinite(points.sum().item())


def reader(
    sizes: Sequence[tuple[int, int]],
    channels: int,
    batch: int,
    points: Tensor,
    align_corners: bool,
    gradients: bool = False,
) -> Points | rows.Pyramid:
    """Return what reads these points, or computes their gradients, fastest. See ``points.Pyramid``."""
    kind = Points if _is_faster(sizes, channels, batch, points, gradients) else rows.Pyramid
    return kind(sizes, channels, batch, points, align_corners)
