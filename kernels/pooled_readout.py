"""Launchers of the pooled readout."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from v1fast.contracts import pooled_readout as contract
from v1fast.contracts._forms import Seen, form_of
from v1fast.reference._common import compute_dtype

from . import _backward, _forward
from ._launch import at_points, operands_at_points
from ._pyramid import maps_of, only


def pooled_readout(
    features: Tensor,  # [B, C, H, W]
    grid: Tensor,  # [N, 2] or [B, N, 2]
    weight: Tensor,  # [N, (pool_steps + 1) * C]
    bias: Tensor | None,  # [N]
    shift: Tensor | None,  # [B, 2]
    pooled: Tensor | None,  # the poolings in the layout of pooled_levels
    align_corners: bool,
    pool_kernel: int,
    pool_steps: int,
    seen: Seen | None = None,
) -> Tensor:  # [B, N]
    """The op ``v1fast::pooled_readout``."""
    operands = operands_at_points(features, grid, weight, bias, shift)

    def describe() -> _forward.Described:
        options = (align_corners, pool_kernel, pool_steps)
        return _forward.Described(
            (form_of((*operands, pooled)), *options),
            contract.new_output(features, grid, weight),
            compute_dtype(*operands),
            at_points(align_corners),
            _maps_of(operands, pool_kernel, pool_steps),
        )

    return _forward.read(seen, operands, 0, describe, pooled)


def _maps_of(
    operands: Sequence[Tensor | None], pool_kernel: int, pool_steps: int
) -> Callable[[Tensor, Tensor | None], list[Tensor]]:
    if pool_steps == 0:
        return only
    dtype = compute_dtype(*operands)
    return lambda features, pooled: maps_of(features, pool_kernel, pool_steps, pooled, dtype)


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
    seen: Seen | None = None,
) -> tuple[Tensor, ...]:
    """The op ``v1fast::pooled_readout_backward``. A gradient that is not requested is ``empty(0)``."""
    operands = operands_at_points(features, grid, weight, bias, shift)
    grad = grad_output.contiguous()

    def describe() -> _backward.Described:
        return _backward.Described(
            (grad.dtype, form_of((*operands, pooled)), align_corners, pool_kernel, pool_steps, *output_mask),
            {"features": features, "mu": grid, "weight": weight, "bias": bias, "shift": shift},
            output_mask,
            grad.numel(),
            compute_dtype(*operands),
            at_points(align_corners),
            _maps_of(operands, pool_kernel, pool_steps),
            pool_kernel,
        )

    return _backward.gradients(seen, operands, 0, grad, describe, pooled)
