"""Rules that all readout references share: dtypes, the clamp, and gradients that are not requested."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(*operands: Tensor | None) -> torch.dtype:
    """Return float64 if any operand is float64, otherwise float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in operands) else torch.float32


def clamped_to_map(positions: Tensor) -> Tensor:
    """Clamp positions to [-1, 1]. The gradient passes at the edges too, and not beyond.

    ``torch.clamp`` passes it at exactly -1 and 1 up to torch 2.13, and not in 2.14.1. Neurons at the edge of a map
    lie there: without a gradient, they would stay.
    """
    inside = (positions >= -1) & (positions <= 1)
    return torch.where(inside, positions, positions.detach().clamp(-1, 1))


def cast_or_empty(gradient: Tensor | None, operand: Tensor | None, otherwise: Tensor) -> Tensor:
    """Return the gradient in the operand's dtype, or ``empty(0)`` in the dtype of ``otherwise`` if either is absent."""
    return otherwise.new_empty(0) if gradient is None or operand is None else gradient.to(operand.dtype)


def laid_out_like(gradient: Tensor, operand: Tensor) -> Tensor:
    """Return the gradient in the dtype of the operand, and in the layout of ``torch.empty_like(operand)``.

    That is the operand's own layout if its elements fill one block of memory.
    """
    form = torch.empty_like(operand, device="meta")
    if gradient.dtype == form.dtype and gradient.stride() == form.stride():
        return gradient
    return torch.empty_like(operand).copy_(gradient)


def laid_out_or_empty(gradient: Tensor | None, operand: Tensor) -> Tensor:
    """Like ``laid_out_like``, or ``empty(0)`` if there is no gradient."""
    return operand.new_empty(0) if gradient is None else laid_out_like(gradient, operand)
