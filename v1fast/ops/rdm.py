"""The contracts of ``v1fast::rdm``, ``rdm_out`` and ``cross_rdm``: shapes, fake outputs, derivatives, schemas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from v1fast import _choices
from v1fast.ops import _checks
from v1fast.ops._define import define, derivative_of, save_tensors
from v1fast.reference import rdm as reference


def _check_choices(method: str, accuracy: str) -> None:
    _choices.one_of("method", method, reference.METHODS)
    _choices.one_of("accuracy", accuracy, reference.ACCURACIES)


def _check_rows(name: str, x: Tensor) -> None:
    _checks.floating(name, x)
    if x.dim() != 3 or x.shape[-1] < 1:
        raise ValueError(f"{name}: want [batch, rows, columns >= 1], got {tuple(x.shape)}")
    _checks.at_most(name, "a number of rows", x.shape[1])


def check(x: Tensor, y: Tensor | None, method: str, condensed: bool, accuracy: str) -> None:
    """Raise ValueError unless the operands fit each other. It names the operand, what was wanted and what came."""
    _check_choices(method, accuracy)
    _check_rows("x", x)
    if y is None:
        return
    if method != "euclidean":
        raise ValueError(f'y: want None beside method {method!r}, got a tensor; only "euclidean" takes one')
    _check_rows("y", y)
    _checks.shape("y", y, "x's shape", x.shape)
    _checks.device("y", y, x)


def output_shape(batch: int, rows: int, condensed: bool) -> tuple[int, ...]:
    """Return the shape of rdm's output."""
    return (batch, rows * (rows - 1) // 2) if condensed else (batch, rows, rows)


def _fake(x: Tensor, y: Tensor | None, method: str, condensed: bool, accuracy: str) -> Tensor:
    return x.new_empty(output_shape(x.shape[0], x.shape[1], condensed), dtype=reference.output_dtype(x, y))


def _save_matrix(ctx: Any, arguments: tuple[Any, ...], output: Tensor) -> None:
    """Save x, y, the options and, if the derivative needs it, the matrix."""
    x, y, *ctx.options = arguments
    ctx.save_for_backward(None if "euclidean" in ctx.options else output, x, y)


def _check_matrix(
    grad: Tensor,
    matrix: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    method: str,
    shape: tuple[int, ...],
    output_mask: Sequence[bool],
) -> None:
    if matrix is None and method != "euclidean":
        raise ValueError(f"matrix: want what the forward pass returned beside method {method!r}, got None")
    dtype = reference.output_dtype(x, y)
    for name, tensor in {"grad": grad, "matrix": matrix}.items():
        if tensor is None:
            continue
        _checks.shape(name, tensor, "the matrix's shape", shape)
        if tensor.dtype != dtype or tensor.device != x.device:
            raise ValueError(f"{name}: want {dtype} on {x.device}, got {tensor.dtype} on {tensor.device}")
    _checks.output_mask(output_mask, 2)


def _empty_gradients(x: Tensor, y: Tensor | None, mask: list[bool]) -> tuple[Tensor, Tensor]:
    wanted = zip((x, y), mask, strict=True)
    d_x, d_y = (x.new_empty(0) if t is None or not w else t.new_empty(t.shape) for t, w in wanted)
    return d_x, d_y


def check_backward(
    grad: Tensor,
    matrix: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    method: str,
    condensed: bool,
    accuracy: str,
    output_mask: Sequence[bool],
) -> None:
    """Raise ValueError unless the operands fit each other, and gradient and matrix fit the output of rdm."""
    check(x, y, method, condensed, accuracy)
    _check_matrix(grad, matrix, x, y, method, output_shape(x.shape[0], x.shape[1], condensed), output_mask)


def _fake_backward(
    grad: Tensor, matrix: Tensor | None, x: Tensor, y: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    return _empty_gradients(x, y, rest[-1])


def _gradients(op: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    mask = list(ctx.needs_input_grad[1:3])
    found = op(grad, *ctx.saved_tensors, *ctx.options, mask)
    return (*(g if wanted else None for g, wanted in zip(found, mask, strict=True)), *(None for _ in ctx.options))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(rdm_backward, ctx, grad)


rdm = define(
    "rdm(Tensor x, Tensor? y, str method, bool condensed, str accuracy) -> Tensor",
    check=check,
    reference=reference.rdm,
    fake=_fake,
    setup_context=_save_matrix,
    backward=_backward,
)

rdm_backward = define(
    "rdm_backward(Tensor grad, Tensor? matrix, Tensor x, Tensor? y, str method, bool condensed, str accuracy,"
    " bool[2] output_mask) -> (Tensor, Tensor)",
    check=check_backward,
    reference=reference.rdm_backward,
    fake=_fake_backward,
    setup_context=save_tensors(4),
    backward=derivative_of(reference.rdm_backward),
)


def check_out(x: Tensor, y: Tensor | None, method: str, condensed: bool, accuracy: str, out: Tensor) -> None:
    """Raise ValueError unless ``out`` fits the result of rdm and shares no memory with x and y."""
    check(x, y, method, condensed, accuracy)
    _checks.shape("out", out, "rdm's shape", output_shape(x.shape[0], x.shape[1], condensed))
    dtype = reference.output_dtype(x, y)
    if out.dtype != dtype or not out.is_contiguous():
        layout = "contiguous" if out.is_contiguous() else "strided"
        raise ValueError(f"out: want contiguous {dtype}, got {layout} {out.dtype}")
    _checks.device("out", out, x)
    _checks.apart("out", out, {"x": x, "y": y})


def _write_reference(
    x: Tensor, y: Tensor | None, method: str, condensed: bool, accuracy: str, out: Tensor
) -> None:  # into out, as rdm returns it
    out.copy_(reference.rdm(x, y, method, condensed, accuracy))


def _write_nothing(*arguments: Any) -> None:
    pass


rdm_out = define(
    "rdm_out(Tensor x, Tensor? y, str method, bool condensed, str accuracy, Tensor(a!) out) -> ()",
    check=check_out,
    reference=_write_reference,
    fake=_write_nothing,
)


def check_cross(x: Tensor, y: Tensor, method: str, accuracy: str) -> None:
    """Raise ValueError unless the operands fit each other."""
    _check_choices(method, accuracy)
    _check_rows("x", x)
    _check_rows("y", y)
    _checks.shape("y", y, "[batch, rows, columns of x]", (x.shape[0], y.shape[1], x.shape[2]))
    _checks.device("y", y, x)


def _fake_cross(x: Tensor, y: Tensor, method: str, accuracy: str) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], y.shape[1]), dtype=reference.output_dtype(x, y))


def check_cross_backward(
    grad: Tensor,
    matrix: Tensor | None,
    x: Tensor,
    y: Tensor,
    method: str,
    accuracy: str,
    output_mask: Sequence[bool],
) -> None:
    """Raise ValueError unless the operands fit each other, and gradient and matrix fit the output of cross_rdm."""
    check_cross(x, y, method, accuracy)
    _check_matrix(grad, matrix, x, y, method, (x.shape[0], x.shape[1], y.shape[1]), output_mask)


def _fake_cross_backward(
    grad: Tensor, matrix: Tensor | None, x: Tensor, y: Tensor, method: str, accuracy: str, mask: list[bool]
) -> tuple[Tensor, Tensor]:
    return _empty_gradients(x, y, mask)


def _cross_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(cross_rdm_backward, ctx, grad)


cross_rdm = define(
    "cross_rdm(Tensor x, Tensor y, str method, str accuracy) -> Tensor",
    check=check_cross,
    reference=reference.cross_rdm,
    fake=_fake_cross,
    setup_context=_save_matrix,
    backward=_cross_backward,
)

cross_rdm_backward = define(
    "cross_rdm_backward(Tensor grad, Tensor? matrix, Tensor x, Tensor y, str method, str accuracy,"
    " bool[2] output_mask) -> (Tensor, Tensor)",
    check=check_cross_backward,
    reference=reference.cross_rdm_backward,
    fake=_fake_cross_backward,
    setup_context=save_tensors(4),
    backward=derivative_of(reference.cross_rdm_backward),
)
