"""Pooled readouts without the dispatcher, and small ones in as few operations of torch as there can be.

An op that Python computes passes through the dispatcher, and its backward too. For few neurons that takes longer than
all of eager torch. Here, ``torch.autograd.Function`` is called at once where nothing but autograd looks on. Second
derivatives are those of the op.

A small call pools and reads all images at once, and keeps what it reads for the backward pass, as eager torch does.
Maps are pooled channels-last, which torch does several times as fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled

from v1fast._torch import any_requires_grad, is_plain
from v1fast.fallback import bilinear
from v1fast.reference._common import laid_out_like

MOST = 2**19  # features of a small call, and values that it reads
LITTLE = 2**13  # features, of which fewer operations are faster than faster ones
MOST_POOLINGS = 16
MOST_IN_ALL = 2**31 - 1
Op = Callable[..., Any]
_d_read = torch.ops.aten.grid_sampler_2d_backward.default._op  # without a call of Python's
_d_pooled = torch.ops.aten.avg_pool2d_backward.default._op


def _is_legal(
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
    """Whether a call is legal, on the CPU and of one dtype.

    All else is for the op, and so are errors.
    """
    if pooled is not None or features.dim() != 4 or weight.dim() != 2 or kernel < 1 or not 0 <= steps <= MOST_POOLINGS:
        return False
    batch, channels, height, width = features.shape
    neurons, dtype = weight.shape[0], features.dtype
    return (
        0 < features.numel() <= MOST_IN_ALL
        and 0 < neurons <= MOST_IN_ALL
        and min(height, width) >= kernel**steps
        and (dtype == torch.float32 or dtype == torch.float64)
        and (grid.shape == (neurons, 2) or grid.shape == (batch, neurons, 2))
        and weight.shape == (neurons, (steps + 1) * channels)
        and grid.dtype == weight.dtype == dtype
        and (bias is None or (bias.shape == (neurons,) and bias.dtype == dtype and bias.is_cpu))
        and (shift is None or (shift.shape == (batch, 2) and shift.dtype == dtype and shift.is_cpu))
        and features.is_cpu
        and grid.is_cpu
        and weight.is_cpu
        and features.layout == torch.strided
    )


def _is_small(
    features: Tensor, grid: Tensor, weight: Tensor, bias: Tensor | None, shift: Tensor | None, *_: Any
) -> bool:
    """Whether a legal call is small, and right if grid_sample reads nothing at NaN."""
    if features.numel() > MOST or len(features) * weight.numel() > MOST:
        return False
    return bilinear.reads_none_at_nan() or math.isfinite(
        grid.sum().item() + (0 if shift is None else shift.sum().item())
    )


def takes(*arguments: Any) -> bool:
    """Whether a call of the op is small and legal."""
    return _is_legal(*arguments) and _is_small(*arguments)


class Small:
    """A small call of the op, whose arguments these are: what is read at the points, and what the backward needs."""

    __slots__ = ("align_corners", "kernel", "last", "maps", "per_image", "points", "values")

    def __init__(
        self,
        features: Tensor,
        grid: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        shift: Tensor | None,
        pooled: None,
        align_corners: bool,
        kernel: int,
        steps: int,
    ) -> None:
        self.align_corners, self.kernel = align_corners, kernel
        p = grid if shift is None else grid + shift.unsqueeze(1)
        points = p.contiguous().unsqueeze(-2)
        if p.dim() == 2:
            points = points.unsqueeze(0) if len(features) == 1 else points.expand(len(features), -1, -1, -1)
        self.per_image = grid.dim() == 3
        self.points = points  # [B, N, 1, 2]
        self.last = steps > 0 and features.numel() > LITTLE  # whether poolings are channels-last
        self.maps = maps = [features]
        read = [torch.grid_sampler_2d(features, points, 0, 0, align_corners)]
        level = features.contiguous(memory_format=torch.channels_last) if self.last else features
        for _ in range(steps):
            level = torch._C._nn.avg_pool2d(level, kernel)
            maps.append(level)
            read.append(torch.grid_sampler_2d(level, points, 0, 0, align_corners))
        self.values = (torch.cat(read, 1) if steps else read[0]).squeeze(3)  # [B, (steps + 1) C, N]

    def output(self, weight: Tensor, bias: Tensor | None) -> Tensor:  # [B, N]
        """Return the output of the op."""
        output = (self.values * weight.t()).sum(1)
        return output if bias is None else output.add_(bias)

    def gradients(
        self, grad: Tensor, features: Tensor, weight: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of features, grid, weight, bias and shift from that of the output, [B, N].

        None stands for what is not wanted.
        """
        want_features, want_grid, want_weight, want_bias, want_shift = wanted
        g = grad.unsqueeze(1)
        d_features = d_grid = d_shift = None
        if want_features or want_grid or want_shift:
            d_features, d_points = self._through_points((g * weight.t()).unsqueeze(3), features, want_features)
            if want_grid:
                d_grid = d_points.squeeze(2) if self.per_image else d_points.sum((0, 2))
            d_shift = d_points.sum((1, 2)) if want_shift else None
        d_weight = self._weight_gradient(g, weight) if want_weight else None
        return d_features, d_grid, d_weight, grad.sum(0) if want_bias else None, d_shift

    def _through_points(
        self, upstream: Tensor, features: Tensor, want_features: bool
    ) -> tuple[Tensor | None, Tensor]:  # [B, (steps + 1) C, N, 1]
        """Return the gradients of features and of points, [B, N, 1, 2], from that of what is read."""
        found = d_points = None
        parts = upstream.split(features.shape[1], 1) if len(self.maps) > 1 else (upstream,)
        for level, part in zip(reversed(self.maps), reversed(parts), strict=True):
            d_level, d_here = _d_read(part, level, self.points, 0, 0, self.align_corners, [want_features, True])
            d_points = d_here if d_points is None else d_points.add_(d_here)
            if want_features:
                like = level
                if self.last and not level.is_contiguous():
                    d_level = d_level.contiguous(memory_format=torch.channels_last)  # torch returns NCHW
                elif self.last:
                    like = torch.empty_like(level, memory_format=torch.channels_last)
                if found is not None:  # of the map that was pooled, torch asks for the layout alone
                    d_level += _d_pooled(found, like, self.kernel, [], 0, False, True, None)
                found = d_level
        assert d_points is not None
        if found is None:
            return None, d_points
        return found if found.stride() == features.stride() else laid_out_like(found, features), d_points

    def _weight_gradient(self, g: Tensor, weight: Tensor) -> Tensor:  # [B, 1, N]
        found = (self.values * g).sum(0).t()
        return found if found.stride() == weight.stride() else torch.empty_like(weight).copy_(found)


def _nobody_looks_on(arguments: tuple[Any, ...]) -> bool:
    """Whether autograd alone can want to know of a call."""
    return is_plain(arguments) and not torch.is_autocast_enabled("cpu") and not _profiler_enabled()


def first(op: Op, backward_op: Op, forward: Op, backward: Op, kernels: Mapping[str, Any]) -> Op:
    """Return what is faster than ``op`` where it can be called.

    Args:
        op: the pooled readout.
        backward_op: its derivative, which has derivatives itself.
        forward: computes the op, without autograd.
        backward: computes its derivative.
        kernels: by type of device, those in Python that the op has; one for the CPU goes before.
    """

    class Pooled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor:
            features, grid, weight, bias, shift, _, *options = arguments
            ctx.save_for_backward(features, grid, weight, bias, shift)
            ctx.options, ctx.small = options, None
            if not _is_small(*arguments):
                return forward(*arguments)
            ctx.small = Small(*arguments)
            return ctx.small.output(weight, bias)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            features, _, weight, *_ = operands = ctx.saved_tensors
            align_corners, kernel, steps = ctx.options
            wanted = ctx.needs_input_grad[:5]
            if torch.is_grad_enabled() or "cpu" in kernels or not _nobody_looks_on((grad,)):
                found = backward_op(grad, *operands, None, align_corners, kernel, steps, list(wanted))
            elif ctx.small is not None:
                return (*ctx.small.gradients(grad, features, weight, wanted), None, None, None, None)
            else:
                found = backward(grad, *operands, None, align_corners, kernel, steps, list(wanted))
            return (*(d if w else None for d, w in zip(found, wanted, strict=True)), None, None, None, None)

    # What Function.apply calls if no transform is active; it would look at each argument first.
    record = super(torch.autograd.Function, Pooled).apply

    def call(*arguments: Any) -> Any:
        if "cpu" in kernels or torch.compiler.is_compiling():
            return op(*arguments)
        if not (_nobody_looks_on(arguments) and _is_legal(*arguments)):
            return op(*arguments)
        if torch.is_grad_enabled() and any_requires_grad(*arguments):
            return record(*arguments)
        with torch.no_grad():
            if _is_small(*arguments):
                return Small(*arguments).output(arguments[2], arguments[3])
            return forward(*arguments)

    return call
