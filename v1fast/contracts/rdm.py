"""The contracts of ``v1fast::rdm``, ``rdm_out`` and ``cross_rdm``: legal operands, and the tensors returned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from v1fast import _choices
from v1fast.contracts import _checks
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


def new_output(x: Tensor, y: Tensor | None, method: str, condensed: bool, accuracy: str) -> Tensor:
    """Return the output of rdm without values."""
    return x.new_empty(output_shape(x.shape[0], x.shape[1], condensed), dtype=reference.output_dtype(x, y))


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


def new_gradients(
    grad: Tensor, matrix: Tensor | None, x: Tensor, y: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and y without values, ``empty(0)`` where the mask is false. For cross_rdm too."""
    wanted = zip((x, y), rest[-1], strict=True)
    d_x, d_y = (x.new_empty(0) if t is None or not w else t.new_empty(t.shape) for t, w in wanted)
    return d_x, d_y


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


def check_cross(x: Tensor, y: Tensor, method: str, accuracy: str) -> None:
    """Raise ValueError unless the operands fit each other."""
    _check_choices(method, accuracy)
    _check_rows("x", x)
    _check_rows("y", y)
    _checks.shape("y", y, "[batch, rows, columns of x]", (x.shape[0], y.shape[1], x.shape[2]))
    _checks.device("y", y, x)


def new_cross(x: Tensor, y: Tensor, method: str, accuracy: str) -> Tensor:
    """Return the output of cross_rdm without values."""
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
