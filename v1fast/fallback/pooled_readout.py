"""The ops ``v1fast::pooled_readout``, its backward and ``pooled_levels``: see ``v1fast.reference.pooled_readout``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from v1fast.fallback import direct, points, small_pooled
from v1fast.reference._common import cast_or_empty, compute_dtype, laid_out_or_empty


class _Poolings:
    """Some images of the features and their poolings, channels-last: so they are pooled and read fastest."""

    def __init__(self, features: Tensor, kernel: int, steps: int, dtype: torch.dtype) -> None:
        self.features, self.kernel, self.steps = features, kernel, steps
        self._copies = points.Copies(dtype)
        self._pooled: list[Tensor] = []

    def __call__(self, images: slice) -> list[Tensor]:
        """Return the maps, which are valid until the next call."""
        maps = [self.features[images]]
        if not self.steps:
            return maps
        maps[0] = self._copies(maps[0])
        for step in range(self.steps):
            if len(self._pooled) == step:
                self._pooled.append(F.avg_pool2d(maps[-1], self.kernel))
                maps.append(self._pooled[-1])
            else:
                into = self._pooled[step][: len(maps[0])]
                maps.append(torch.ops.aten.avg_pool2d.out(maps[-1], self.kernel, out=into))
        return maps


def _sizes(features: Tensor, kernel: int, steps: int) -> list[tuple[int, int]]:
    height, width = features.shape[2:]
    return [(height // kernel**step, width // kernel**step) for step in range(steps + 1)]


def _stored(pooled: Tensor, features: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """Return the poolings that ``pooled_levels`` stored, as maps [B, C, H, W]."""
    batch, channels = features.shape[:2]
    parts = pooled.split([batch * channels * height * width for height, width in sizes])
    return [part.view(batch, *size, channels).permute(0, 3, 1, 2) for part, size in zip(parts, sizes, strict=True)]


def pooled_levels(features: Tensor, pool_kernel: int, pool_steps: int, wide: bool) -> Tensor:
    """The op ``v1fast::pooled_levels``."""
    sizes = _sizes(features, pool_kernel, pool_steps)[1:]
    dtype, (batch, channels, height, width) = torch.float64 if wide else torch.float32, features.shape
    out = features.new_empty(sum(batch * channels * h * w for h, w in sizes), dtype=dtype)
    into = _stored(out, features, sizes)
    if sizes:
        poolings = _Poolings(features, pool_kernel, pool_steps, dtype)
        count = max(1, points.MAPS // (channels * height * width))
        for first in range(0, batch, count):
            images = slice(first, first + count)
            for level, pooled in zip(into, poolings(images)[1:], strict=True):
                level[images] = pooled
    return out


def _reader(
    features: Tensor,
    grid: Tensor,
    shift: Tensor | None,
    pooled: Tensor | None,
    align_corners: bool,
    kernel: int,
    steps: int,
    dtype: torch.dtype,
    gradients: bool = False,
) -> tuple[direct.Points | points.Pyramid, points.Maps]:
    """Return all levels, and the function that returns their maps: stored, or pooled anew."""
    sizes = _sizes(features, kernel, steps)
    p = points.shifted(grid, shift, dtype)
    reader = direct.reader(sizes, features.shape[1], features.shape[0], p, align_corners, gradients)
    if pooled is None:
        return reader, _Poolings(features, kernel, steps, dtype)
    stored = [features, *_stored(pooled, features, sizes[1:])]
    return reader, lambda images: [level[images] for level in stored]


def pooled_readout(
    features: Tensor,  # [B, C, H, W]
    grid: Tensor,  # [N, 2] or [B, N, 2]
    weight: Tensor,  # [N, (pool_steps + 1) * C]
    bias: Tensor | None,  # [N]
    shift: Tensor | None,  # [B, 2]
    pooled: Tensor | None,  # the result of pooled_levels
    align_corners: bool,
    pool_kernel: int,
    pool_steps: int,
) -> Tensor:  # [B, N]
    """The op ``v1fast::pooled_readout``."""
    call = (features, grid, weight, bias, shift, None, align_corners, pool_kernel, pool_steps)
    if small_pooled.takes(*call):
        return small_pooled.small(*call)
    dtype = compute_dtype(features, grid, weight, bias, shift)
    reader, maps = _reader(features, grid, shift, pooled, align_corners, pool_kernel, pool_steps, dtype)
    out = reader.read(maps, weight, bias)
    return out.to(torch.promote_types(features.dtype, weight.dtype))


class _KeptPooled(points.Kept):
    """The gradient of features from those of all levels."""

    def __init__(self, features: Tensor, kernel: int) -> None:
        super().__init__(features)
        self.kernel = kernel

    def __call__(self, images: slice, maps: list[Tensor]) -> None:
        kernel = self.kernel
        for fine, coarse in zip(reversed(maps[:-1]), reversed(maps[1:]), strict=True):
            height, width = coarse.shape[2:]
            squares = fine[:, :, : height * kernel, : width * kernel].unflatten(2, (height, kernel))
            squares = squares.unflatten(4, (width, kernel))  # [b, C, h, k, w, k]
            squares.add_(coarse[:, :, :, None, :, None], alpha=kernel**-2)
        super().__call__(images, maps)


def pooled_readout_backward(
    grad_output: Tensor,  # [B, N]
    features: Tensor,
    grid: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    pooled: Tensor | None,
    align_corners: bool,
    pool_kernel: int,
    pool_steps: int,
    output_mask: list[bool],  # features, grid, weight, bias, shift
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op ``v1fast::pooled_readout_backward``. A gradient that is not requested is ``empty(0)``."""
    dtype = compute_dtype(features, grid, weight, bias, shift)
    want_features, want_grid, want_weight, want_bias, want_shift = output_mask
    reader, maps = _reader(features, grid, shift, pooled, align_corners, pool_kernel, pool_steps, dtype, True)
    grad = grad_output.to(dtype)
    keep = _KeptPooled(features, pool_kernel) if want_features else None
    want_position = want_grid or want_shift
    d_position, d_weight = reader.gradients_of_weighted(maps, weight, grad, keep, want_position, want_weight)
    d_grid, d_shift = points.position_gradients(d_position, grid, want_grid, want_shift)
    return (
        features.new_empty(0) if keep is None else keep.gradient,
        cast_or_empty(d_grid, grid, grid),
        laid_out_or_empty(d_weight, weight),
        cast_or_empty(grad.sum(0) if want_bias else None, bias, grid),
        cast_or_empty(d_shift, shift, grid),
    )
