"""The ops ``v1fast::rdm``, ``rdm_out`` and ``cross_rdm``, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from v1fast.contracts import rdm as contract
from v1fast.ops._define import define, derivative_of, save_tensors
from v1fast.reference import rdm as reference


def _save_matrix(ctx: Any, arguments: tuple[Any, ...], output: Tensor) -> None:
    """Save x, y, the options and, if the derivative needs it, the matrix."""
    x, y, *ctx.options = arguments
    ctx.save_for_backward(None if "euclidean" in ctx.options else output, x, y)


def _gradients(op: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    mask = list(ctx.needs_input_grad[1:3])
    found = op(grad, *ctx.saved_tensors, *ctx.options, mask)
    return (*(g if wanted else None for g, wanted in zip(found, mask, strict=True)), *(None for _ in ctx.options))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(rdm_backward, ctx, grad)


def _cross_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(cross_rdm_backward, ctx, grad)


def _write_reference(
    x: Tensor, y: Tensor | None, method: str, condensed: bool, accuracy: str, out: Tensor
) -> None:  # into out, as rdm returns it
    out.copy_(reference.rdm(x, y, method, condensed, accuracy))


def _write_nothing(*arguments: Any) -> None:
    pass


rdm = define(
    "rdm(Tensor x, Tensor? y, str method, bool condensed, str accuracy) -> Tensor",
    check=contract.check,
    reference=reference.rdm,
    fake=contract.new_output,
    setup_context=_save_matrix,
    backward=_backward,
)
rdm_backward = define(
    "rdm_backward(Tensor grad, Tensor? matrix, Tensor x, Tensor? y, str method, bool condensed, str accuracy,"
    " bool[2] output_mask) -> (Tensor, Tensor)",
    check=contract.check_backward,
    reference=reference.rdm_backward,
    fake=contract.new_gradients,
    setup_context=save_tensors(4),
    backward=derivative_of(reference.rdm_backward),
)
rdm_out = define(
    "rdm_out(Tensor x, Tensor? y, str method, bool condensed, str accuracy, Tensor(a!) out) -> ()",
    check=contract.check_out,
    reference=_write_reference,
    fake=_write_nothing,
)
cross_rdm = define(
    "cross_rdm(Tensor x, Tensor y, str method, str accuracy) -> Tensor",
    check=contract.check_cross,
    reference=reference.cross_rdm,
    fake=contract.new_cross,
    setup_context=_save_matrix,
    backward=_cross_backward,
)
cross_rdm_backward = define(
    "cross_rdm_backward(Tensor grad, Tensor? matrix, Tensor x, Tensor y, str method, str accuracy,"
    " bool[2] output_mask) -> (Tensor, Tensor)",
    check=contract.check_cross_backward,
    reference=reference.cross_rdm_backward,
    fake=contract.new_gradients,
    setup_context=save_tensors(4),
    backward=derivative_of(reference.cross_rdm_backward),
)

small: Callable[..., Any] | None = None
"""Where the fallback runs on the CPU: what computes small matrices (``v1fast.fallback.small_rdm.matrices``)."""

small_cross: Callable[..., Any] | None = None
"""And what computes small calls of ``cross_rdm`` (``v1fast.fallback.cross_rdm.pairs_of_sets``)."""
