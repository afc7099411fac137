"""What the references of all readouts do alike with dtypes and with gradients that are not asked for."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(*operands: Tensor | None) -> torch.dtype:
    """float64 if any operand is float64, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in operands) else torch.float32


def cast_or_empty(gradient: Tensor | None, operand: Tensor | None, otherwise: Tensor) -> Tensor:
    """The gradient in the operand's dtype; ``empty(0)`` of the dtype of ``otherwise`` where either is absent."""
    return otherwise.new_empty(0) if gradient is None or operand is None else gradient.to(operand.dtype)
