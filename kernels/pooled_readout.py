"""Launchers of the pooled readout."""

from __future__ import annotations

from torch import Tensor

from v1fast.contracts import pooled_readout as contract
from v1fast.reference._common import compute_dtype

from ._backward import Wanted, gradients
from ._forward import read
from ._launch import Operands, prepare_points
from ._pyramid import pyramid


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
) -> Tensor:  # [B, N]
    """The op ``v1fast::pooled_readout``."""
    operands = (features, grid, weight, bias, shift)
    out = contract.new_output(*operands)
    if out.numel() == 0:
        return out
    o = prepare_points(compute_dtype(*operands), *operands, align_corners)
    return read(pyramid(o, pool_kernel, pool_steps, pooled), out)


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
) -> tuple[Tensor, ...]:
    """The op ``v1fast::pooled_readout_backward``. A gradient that is not requested is ``empty(0)``."""
    operands = (features, grid, weight, bias, shift)
    names = ("features", "mu", "weight", "bias", "shift")
    want = Wanted(**{k: v for k, v, wanted in zip(names, operands, output_mask, strict=True) if wanted})
    dtype = compute_dtype(*operands)

    def levels() -> list[Operands]:
        return pyramid(prepare_points(dtype, *operands, align_corners), pool_kernel, pool_steps, pooled)

    out = gradients(levels, grad_output.contiguous(), want, grad_output.numel(), pool_kernel)
    unwanted = {"features": features, "weight": weight}
    return tuple(out[name] if name in out else unwanted.get(name, grid).new_empty(0) for name in names)
