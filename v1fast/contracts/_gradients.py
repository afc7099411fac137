"""The tensors that the backward ops of all readouts return."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def empty_gradients(
    operands: Sequence[Tensor | None], like: Sequence[Tensor], mask: Sequence[bool], laid_out: Sequence[int]
) -> tuple[Tensor, ...]:
    """Return the outputs of a backward op without values: ``empty(0)`` in the dtype of ``like`` if not requested.

    The outputs numbered ``laid_out`` (features and weights) have the layout of ``torch.empty_like`` of their operand.
    The others are contiguous.
    """

    def gradient(i: int) -> Tensor:
        operand = operands[i]
        if operand is None or not mask[i]:
            return like[i].new_empty(0)
        return torch.empty_like(operand) if i in laid_out else operand.new_empty(operand.shape)

    return tuple(gradient(i) for i in range(len(operands)))
