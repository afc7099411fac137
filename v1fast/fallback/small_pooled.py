"""Pooled readouts without the dispatcher, and small ones in as few operations of torch as there can be.

An op that Python computes passes through the dispatcher, and its backward too. For few neurons that takes longer than
all of eager torch. Here, ``torch.autograd.Function`` is called at once where nothing but autograd looks on. Derivatives
of any order are those of the op.

A small call pools and reads all images at once, and autograd records torch's own operations, as in an eager model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled

from v1fast._torch import any_requires_grad, is_plain
from v1fast.fallback import bilinear, small_layers

MOST = 2**19  # features of a small call, and values that it reads
LITTLE = 2**13  # features, of which fewer operations are faster than faster ones
MOST_POOLINGS = 16
MOST_IN_ALL = 2**31 - 1
Op = Callable[..., Any]


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


def _is_small(features: Tensor, grid: Tensor, weight: Tensor, *_: Any) -> bool:
    return features.numel() <= MOST and len(features) * weight.numel() <= MOST


def takes(*arguments: Any) -> bool:
    """Whether a call of the op is small and legal."""
    return _is_legal(*arguments) and _is_small(*arguments)


def _poolings(features: Tensor, kernel: int, steps: int) -> Iterator[Tensor]:
    """Yield the maps and their poolings, which torch computes several times as fast in channels-last."""
    yield features
    level = features
    if steps and features.numel() > LITTLE:
        level = features.contiguous(memory_format=torch.channels_last)
    for _ in range(steps):
        level = torch._C._nn.avg_pool2d(level, kernel)
        yield level


def _of_images(points: Tensor, shift: Tensor | None, batch: int) -> Tensor:
    """Return points [B or 1, N, 1, 2] with the shift, [B, N, 1, 2]."""
    if shift is not None:
        points = points + shift.view(-1, 1, 1, 2)
    return points if points.shape[0] == batch else points.expand(batch, -1, -1, -1)


def _weighted(
    levels: Iterable[Tensor], batch: int, points: Tensor, weight: Tensor, shift: Tensor | None, align_corners: bool
) -> Tensor:
    """Return the sum over channels of what is read of all levels, weighted: [B, N].

    Each level is read before the next one is made: autograd adds gradients up in the opposite order, in the layout of
    the first. So those of poolings are channels-last, as the poolings are.

    Args:
        levels: [B, C, H, W], with any C, H and W.
        batch: B.
        points: [B or 1, N, 1, 2].
        weight: (1, K, N, 1) for K channels in all, or without the first axis.
        shift: [B, 2] or [1, 2].
        align_corners: as for the op.
    """
    points = _of_images(points, shift, batch)
    parts = [(level, bilinear.read(level, points, align_corners)) for level in levels]
    values = parts[0][1] if len(parts) == 1 else torch.cat([read for _, read in parts], 1)
    return bilinear.with_derivatives(values.mul(weight), points, align_corners, *parts).sum((1, 3))


def small(
    features: Tensor,  # [B, C, H, W]
    grid: Tensor,  # [N, 2] or [B, N, 2]
    weight: Tensor,  # [N, (steps + 1) C]
    bias: Tensor | None,  # [N]
    shift: Tensor | None,  # [B, 2]
    pooled: None,
    align_corners: bool,
    kernel: int,
    steps: int,
) -> Tensor:  # [B, N]
    """Return what the op returns of a small call."""
    points = grid.contiguous().unsqueeze(-2)  # read fastest so
    points = points.unsqueeze(0) if grid.dim() == 2 else points
    levels = _poolings(features, kernel, steps)
    output = _weighted(levels, len(features), points, weight.t().unsqueeze(2), shift, align_corners)
    return output if bias is None else output.add_(bias)


def of_parameters(
    launchers: Mapping[str, Any],
    features: Tensor,
    grid: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    align_corners: bool,
    kernel: int,
    steps: int,
    write: bool,
) -> Tensor | None:  # [B, N]
    """Return the readout by the parameters of a layer, None where it is not faster, or not to be computed here.

    Args:
        launchers: kernels in Python by type of device: one for the CPU is called in any case.
        features: [B, C, H, W] on the CPU, of sizes that the layer takes.
        grid: (1, N, 1, 2). A pass reads it in range.
        weight: (1, (steps + 1) C, 1, N).
        bias: (N).
        shift: [B, 2] or [1, 2].
        align_corners: as for the op.
        kernel: as for the op.
        steps: as for the op.
        write: whether positions out of range are written, as in training.
    """
    batch, channels, height, width = features.shape
    if "cpu" in launchers or min(height, width) < kernel**steps:
        return None
    if not _fits(features, (steps + 1) * channels, grid, weight, bias, shift):
        return None
    points = _points(grid, shift, batch, write)
    levels = _poolings(features, kernel, steps)
    output = _weighted(levels, batch, points, weight.transpose(2, 3), shift, align_corners)
    return output if bias is None else output.add_(bias)


def of_levels(
    launchers: Mapping[str, Any],
    levels: Sequence[Tensor],
    grid: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    align_corners: bool,
    write: bool,
) -> Tensor | None:  # [B, N]
    """Return the same for levels [B, C, H, W] that were made by others, the largest first. Each may have its C.

    Their parts are added in the order of ``functional.levels_readout``.
    """
    first, channels = levels[0], [level.shape[1] for level in levels]
    if any(x.dtype is not first.dtype or x.shape[0] != first.shape[0] or not x.is_cpu for x in levels):
        return None
    if "cpu" in launchers or not (is_plain(tuple(levels)) and _fits(first, sum(channels), grid, weight, bias, shift)):
        return None
    points = _of_images(_points(grid, shift, len(first), write), shift, len(first))
    outputs = []
    for level, part in zip(levels, weight.transpose(2, 3).split(channels, 1), strict=True):
        read = bilinear.read(level, points, align_corners)
        weighted = bilinear.with_derivatives(read.mul(part), points, align_corners, (level, read))
        outputs.append(weighted.sum((1, 3)))
    if bias is not None:
        outputs[0] = outputs[0].add_(bias)
    return functools.reduce(torch.add, outputs)


def _fits(
    features: Tensor, channels: int, grid: Tensor, weight: Tensor, bias: Tensor | None, shift: Tensor | None
) -> bool:
    """Whether maps and parameters are of one form and few, with so many channels, and autograd alone looks on."""
    batch, dtype, numbers = features.shape[0], features.dtype, grid.numel()
    return (
        grid.dtype is dtype
        and grid.is_cpu
        and weight.dtype is dtype
        and weight.is_cpu
        and 2 * weight.numel() == channels * numbers
        and 0 < batch * weight.numel() <= MOST
        and 0 < features.numel() <= MOST
        and features.layout is torch.strided
        and (bias is None or (bias.dtype is dtype and bias.is_cpu and 2 * bias.numel() == numbers))
        and (shift is None or small_layers.has(shift, (batch, 2), dtype) or small_layers.has(shift, (1, 2), dtype))
        and small_layers.is_usual((features, grid, weight, bias, shift), dtype)
    )


def _points(grid: Tensor, shift: Tensor | None, batch: int, write: bool) -> Tensor:
    """Return positions in range, [B or 1, N, 1, 2]."""
    points = small_layers.in_range(grid, -1, 1, write and torch.is_grad_enabled())
    if shift is None and torch.is_grad_enabled():
        # A copy: autograd keeps it, and the parameter may be changed before the backward pass.
        return torch.expand_copy(points, (batch, -1, -1, -1))
    return points


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
        def forward(ctx: Any, *arguments: Any) -> Any:
            features, grid, weight, bias, shift, _, *ctx.options = arguments
            ctx.save_for_backward(features, grid, weight, bias, shift)
            return forward(*arguments)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            wanted = ctx.needs_input_grad[:5]
            looks_on = torch.is_grad_enabled() or "cpu" in kernels or not _nobody_looks_on((grad,))
            compute = backward_op if looks_on else backward
            found = compute(grad, *ctx.saved_tensors, None, *ctx.options, list(wanted))
            return (*(d if w else None for d, w in zip(found, wanted, strict=True)), None, None, None, None)

    # What Function.apply calls if no transform is active; it would look at each argument first.
    record = super(torch.autograd.Function, Pooled).apply

    def call(*arguments: Any) -> Any:
        if "cpu" in kernels or torch.compiler.is_compiling():
            return op(*arguments)
        if not (_nobody_looks_on(arguments) and _is_legal(*arguments)):
            return op(*arguments)
        if _is_small(*arguments):
            return small(*arguments)
        if torch.is_grad_enabled() and any_requires_grad(*arguments):
            return record(*arguments)
        with torch.no_grad():
            return forward(*arguments)

    return call
