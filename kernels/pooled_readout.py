"""Launchers of the pooled readout."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from v1fast.contracts import pooled_readout as contract
from v1fast.contracts._forms import Form, form_of
from v1fast.reference._common import compute_dtype

from ._backward import Wanted, gradients
from ._forward import read
from ._launch import operands_at_points, ready_at_points
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
    form: Form | None = None,  # of the other arguments
) -> Tensor:  # [B, N]
    """The op ``v1fast::pooled_readout``."""
    out = contract.new_output(features, grid, weight)
    if out.numel() == 0:
        return out
    operands = operands_at_points(features, grid, weight, bias, shift)
    given = (features, grid, weight, bias, shift, pooled, align_corners, pool_kernel, pool_steps)
    return read(
        form_of(given) if form is None else form,
        operands,
        0,
        out,
        lambda: ready_at_points(compute_dtype(*operands), operands, align_corners),
        _maps_of(operands, pool_kernel, pool_steps),
        pooled,
    )


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
    form: Form | None = None,  # of the other arguments
) -> tuple[Tensor, ...]:
    """The op ``v1fast::pooled_readout_backward``. A gradient that is not requested is ``empty(0)``."""
    names = ("features", "mu", "weight", "bias", "shift")
    given = (features, grid, weight, bias, shift)
    want = Wanted(**{k: v for k, v, wanted in zip(names, given, output_mask, strict=True) if wanted})
    operands = operands_at_points(*given)
    grad = grad_output.contiguous()
    options = (align_corners, pool_kernel, pool_steps)
    out = gradients(
        (grad.dtype, form_of((*given, pooled, *options)) if form is None else form[1:10], *output_mask),
        operands,
        0,
        grad,
        want,
        grad.numel(),
        lambda: ready_at_points(compute_dtype(*operands), operands, align_corners),
        _maps_of(operands, pool_kernel, pool_steps),
        pooled,
        pool_kernel,
    )
    unwanted = {"features": features, "weight": weight}
    return tuple([out[name] if name in out else unwanted.get(name, grid).new_empty(0) for name in names])
