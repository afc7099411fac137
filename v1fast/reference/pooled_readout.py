"""Each neuron reads the features and their successive average poolings at one point (Sinz et al., "Stimulus domain
transfer in recurrent models for large scale cortical population prediction on video", NeurIPS 2018).

level[0]   = features;  level[l+1] = the average of level[l] over squares of kernel x kernel pixels
out[b,n]   = bias[n] + sum_l sum_c weight[n,l,c] * bilinear(level[l,b,c], grid[n] + shift[b])

Arithmetic is float64 where any operand is float64, else float32, that of the poolings included.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from v1fast.reference._common import cast_or_empty, compute_dtype, laid_out_or_empty
from v1fast.reference.points import locate, position_gradients, read, read_backward


def _levels(features: Tensor, kernel: int, steps: int, dtype: torch.dtype) -> list[Tensor]:
    levels = [features.to(dtype)]
    for _ in range(steps):
        levels.append(F.avg_pool2d(levels[-1], kernel))
    return levels


def _spread(pooled: Tensor, kernel: int, like: Tensor) -> Tensor:
    """Return the gradient of a map from that of its pooling. The remainder at the right and lower border gets zero."""
    spread = pooled.repeat_interleave(kernel, 2).repeat_interleave(kernel, 3) / kernel**2
    right, below = like.shape[3] - spread.shape[3], like.shape[2] - spread.shape[2]
    return F.pad(spread, (0, right, 0, below))


def pooled_levels(features: Tensor, pool_kernel: int, pool_steps: int, wide: bool) -> Tensor:
    """The op ``v1fast::pooled_levels``: the poolings one after another, each [B, H, W, C]; float64 if ``wide``."""
    dtype = torch.float64 if wide else torch.float32
    _, *pooled = _levels(features, pool_kernel, pool_steps, dtype)
    none = features.new_empty(0, dtype=dtype)
    return torch.cat([none, *(level.movedim(1, -1).flatten() for level in pooled)])


def pooled_readout(
    features: Tensor,  # [B, C, H, W]
    grid: Tensor,  # [N, 2] or [B, N, 2], (x, y)
    weight: Tensor,  # [N, (pool_steps + 1) * C]
    bias: Tensor | None,  # [N]
    shift: Tensor | None,  # [B, 2]
    pooled: Tensor | None,  # the result of pooled_levels for these features, so that kernels need not recompute it
    align_corners: bool,
    pool_kernel: int,
    pool_steps: int,
) -> Tensor:  # [B, N]
    """The op ``v1fast::pooled_readout``."""
    dtype = compute_dtype(features, grid, weight, bias, shift)
    levels = _levels(features, pool_kernel, pool_steps, dtype)
    out: Tensor | None = bias
    for level, part in zip(levels, weight.to(dtype).chunk(len(levels), dim=1), strict=True):
        read_here = read(level, locate(level, grid, shift, align_corners, dtype), part, None, dtype)
        out = read_here if out is None else out + read_here
    assert out is not None
    return out.to(torch.promote_types(features.dtype, weight.dtype))


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
    """The op ``v1fast::pooled_readout_backward``. A gradient that is not requested is ``empty(0)``.

    d_features and d_weight have the layout of ``torch.empty_like`` of their operand. The others are contiguous.
    """
    dtype = compute_dtype(features, grid, weight, bias, shift)
    want_features, want_grid, want_weight, want_bias, want_shift = output_mask
    levels = _levels(features, pool_kernel, pool_steps, dtype)
    found = [
        read_backward(
            grad_output.to(dtype),
            level,
            locate(level, grid, shift, align_corners, dtype),
            part,
            want_features=want_features,
            want_position=want_grid or want_shift,
            want_weight=want_weight,
            want_bias=False,
        )
        for level, part in zip(levels, weight.to(dtype).chunk(len(levels), dim=1), strict=True)
    ]
    d_levels, d_positions, d_weights = (
        [g for g in kind if g is not None] for kind in list(zip(*found, strict=True))[:3]
    )
    d_features, d_grid, d_shift = None, None, None
    if want_features:
        total = d_levels[-1]
        for d_level in reversed(d_levels[:-1]):
            total = d_level + _spread(total, pool_kernel, d_level)
        d_features = total
    if want_grid or want_shift:
        d_position = torch.stack(d_positions).sum(0)
        d_grid, d_shift = position_gradients(d_position, grid, want_grid, want_shift)
    return (
        laid_out_or_empty(d_features, features),
        cast_or_empty(d_grid, grid, grid),
        laid_out_or_empty(torch.cat(d_weights, dim=1) if want_weight else None, weight),
        cast_or_empty(grad_output.to(dtype).sum(0) if want_bias else None, bias, grid),
        cast_or_empty(d_shift, shift, grid),
    )
