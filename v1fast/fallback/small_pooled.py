"""Pooled readouts of so little work that what a call costs is Python: as few operations of torch as there can be.

As ``small`` does for Gaussian readouts, and for all images at once: the maps are pooled and read by torch's own
operations, in their own layout, and what is read is kept for the backward pass, as by eager torch. Where there is more
work, a few images at a time are faster. Second derivatives are those of the op.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from v1fast._torch import any_requires_grad, is_plain
from v1fast.fallback import direct
from v1fast.reference._common import laid_out_like

MOST = 2**18  # features, and values that are read
MOST_POOLINGS = 16
Op = Callable[..., Any]


def _nobody_looks_on(arguments: tuple[Any, ...]) -> bool:
    """Whether the op would run here, as it is, and autograd alone can want to know of it."""
    return (
        is_plain(arguments)
        and not torch._C._dispatch_has_kernel_for_dispatch_key("v1fast::pooled_readout", "CPU")
        and not torch.is_autocast_enabled("cpu")
    )


def _suits(
    features: Tensor,
    grid: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    pooled: Tensor | None,
    align_corners: bool,
    kernel: int,
    steps: int,
) -> bool:
    """Whether the call is legal, small, on the CPU and of one dtype, and all images share the points, but for a shift.

    All else is for the op, and so are errors.
    """
    if pooled is not None or features.dim() != 4 or grid.dim() != 2 or kernel < 1 or not 0 <= steps <= MOST_POOLINGS:
        return False
    batch, channels, height, width = features.shape
    neurons, columns, dtype = grid.shape[0], (steps + 1) * channels, features.dtype
    return (
        0 < features.numel() <= MOST
        and 0 < batch * neurons * columns <= MOST
        and min(height, width) >= kernel**steps
        and (dtype == torch.float32 or dtype == torch.float64)
        and grid.shape == (neurons, 2)
        and weight.shape == (neurons, columns)
        and grid.dtype == weight.dtype == dtype
        and (bias is None or (bias.shape == (neurons,) and bias.dtype == dtype and bias.is_cpu))
        and (shift is None or (shift.shape == (batch, 2) and shift.dtype == dtype and shift.is_cpu))
        and features.is_cpu
        and grid.is_cpu
        and weight.is_cpu
        and features.layout == torch.strided
    )


def _points(grid: Tensor, shift: Tensor | None, batch: int) -> Tensor:  # [B, N, 1, 2]
    if shift is None:
        return grid[None, :, None].expand(batch, -1, -1, -1)
    return (grid + shift.unsqueeze(1)).unsqueeze(2)


def _read(
    features: Tensor,
    points: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    align_corners: bool,
    kernel: int,
    steps: int,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the output, what is read, [B, (steps + 1) C, N, 1], and the poolings."""
    level, levels = features, []
    read = [torch.grid_sampler_2d(level, points, 0, 0, align_corners)]
    for _ in range(steps):
        level = torch._C._nn.avg_pool2d(level, kernel)
        levels.append(level)
        read.append(torch.grid_sampler_2d(level, points, 0, 0, align_corners))
    values = torch.cat(read, 1) if steps else read[0]
    output = (values.squeeze(3) * weight.t()).sum(1)
    return output if bias is None else output.add_(bias), values, levels


def _gradients(
    grad: Tensor,
    features: Tensor,
    weight: Tensor,
    points: Tensor,
    values: Tensor,
    levels: Sequence[Tensor],
    align_corners: bool,
    kernel: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of features, grid, weight, bias and shift, None where not wanted."""
    want_features, want_grid, want_weight, want_bias, want_shift = wanted
    g = grad.unsqueeze(1)
    d_features = d_grid = d_shift = d_weight = d_points = None
    if want_features or want_grid or want_shift:
        upstream = (g * weight.t()).unsqueeze(3).split(features.shape[1], 1)
        maps, mask = (features, *levels), [want_features, True]
        for number in range(len(levels), -1, -1):
            operands = (upstream[number], maps[number], points, 0, 0, align_corners, mask)
            d_level, d_here = torch.ops.aten.grid_sampler_2d_backward.default(*operands)
            d_points = d_here if d_points is None else d_points.add_(d_here)
            if want_features:
                if d_features is not None:
                    d_level += torch.ops.aten.avg_pool2d_backward.default(
                        d_features, maps[number], kernel, [], 0, False, True, None
                    )
                d_features = d_level
        if want_features and d_features.stride() != features.stride():
            d_features = laid_out_like(d_features, features)
        d_grid = d_points.sum((0, 2)) if want_grid else None
        d_shift = d_points.sum((1, 2)) if want_shift else None
    if want_weight:
        d_weight = (values.squeeze(3) * g).sum(0).t()
        if d_weight.stride() != weight.stride():
            d_weight = d_weight.contiguous() if weight.is_contiguous() else laid_out_like(d_weight, weight)
    return d_features, d_grid, d_weight, grad.sum(0) if want_bias else None, d_shift


def first(op: Op, backward_op: Op) -> Op:
    """Return ``op`` of the pooled readout, or what is faster for a small call; ``backward_op`` is its derivative."""

    class SmallPooled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor:
            features, grid, weight, bias, shift, _, align_corners, kernel, steps = arguments
            points = _points(grid, shift, features.shape[0])
            output, values, levels = _read(features, points, weight, bias, align_corners, kernel, steps)
            ctx.save_for_backward(features, grid, weight, bias, shift, points, values, *levels)
            ctx.options = align_corners, kernel, steps
            return output

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            features, grid, weight, bias, shift, points, values, *levels = ctx.saved_tensors
            align_corners, kernel, steps = ctx.options
            wanted = ctx.needs_input_grad[:5]
            if not torch.is_grad_enabled() and _nobody_looks_on((grad,)):
                found = _gradients(grad, features, weight, points, values, levels, align_corners, kernel, wanted)
                return (*found, None, None, None, None)
            operands = (features, grid, weight, bias, shift, None, align_corners, kernel, steps)
            found = backward_op(grad, *operands, list(wanted))
            return (*(d if w else None for d, w in zip(found, wanted, strict=True)), None, None, None, None)

    record = super(torch.autograd.Function, SmallPooled).apply  # of a call that no transform looks at

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or not (_nobody_looks_on(arguments) and _suits(*arguments)):
            return op(*arguments)
        features, grid, weight, bias, shift, _, *options = arguments
        if not direct.reads_none_at_nan() and not math.isfinite(grid.sum().item()):
            return op(*arguments)
        if torch.is_grad_enabled() and any_requires_grad(*arguments):
            return record(*arguments)
        with torch.no_grad():
            return _read(features, _points(grid, shift, features.shape[0]), weight, bias, *options)[0]

    return call
