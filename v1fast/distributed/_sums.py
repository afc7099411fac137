"""Gradients that are summed over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Summed(torch.autograd.Function):
    """Tensors as they are; in the backward pass their gradients are added over the ranks of a group."""

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        # The same layout on every rank, whatever layout the gradient comes in: a collective adds memory to memory.
        ctx.layouts = [_dense_strides(tensor) for tensor in tensors]
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        totals: list[Tensor | None] = []
        waiting = []
        for gradient, strides, wanted in zip(gradients, ctx.layouts, ctx.needs_input_grad[1:], strict=True):
            if not wanted:
                totals.append(None)
                continue
            # A copy, because others may hold the gradient, for example a hook.
            total = torch.empty_strided(gradient.shape, strides, dtype=gradient.dtype, device=gradient.device)
            total.copy_(gradient)
            flat = total.as_strided((total.numel(),), (1,))
            waiting.append(dist.all_reduce(flat, group=ctx.group, async_op=True))
            totals.append(total)
        for work in waiting:
            work.wait()
        return None, *totals


def _dense_strides(tensor: Tensor) -> tuple[int, ...]:
    return torch.empty_like(tensor, device="meta").stride()


def summed_over_ranks(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    """Return the tensors; gradients that reach them are added over the ranks first, once for each tensor.

    Every rank has to run the backward pass, since it waits for the others.
    """
    if not (tensors and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return list(tensors)
    results: tuple[Tensor, ...] = _Summed.apply(group, *tensors)
    return list(results)
