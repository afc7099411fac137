"""The rules of registration, once for all ops.

An op means its reference. ``define`` registers the reference as the kernel of last resort on every device, the fake
for ``torch.compile``, the derivative, and what happens under function transforms:

- ``vmap`` runs the op once for each member of the batch and stacks the results;
- ``func.grad``, ``jacrev``, ``jvp``, ``hessian`` and forward-mode duals differentiate the reference itself. A custom op
  would refuse the first and give a silent zero tangent for the second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad


def _is_differentiated_by_transform(arguments: tuple[Any, ...]) -> bool:
    if _are_functorch_transforms_active():
        derivatives = (TransformType.Grad, TransformType.Jvp)
        if any(level.key() in derivatives for level in get_interpreter_stack() or ()):
            return True
    # The level is -1 outside every dual level, where looking at each tensor would cost more than the op's dispatch.
    return forward_ad._current_level >= 0 and any(
        isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None for a in arguments
    )


class _Library(torch.library.Library):
    """A library whose autograd kernels step aside for the reference where a transform differentiates."""

    def __init__(self) -> None:
        super().__init__("v1fast", "DEF")
        self.references: dict[str, Callable[..., Any]] = {}

    def impl(self, op_name: str, fn: Any, dispatch_key: str = "", **options: Any) -> None:
        if dispatch_key == "Autograd":
            reference, autograd = self.references[op_name], fn

            def fn(keyset: Any, *arguments: Any) -> Any:
                if _is_differentiated_by_transform(arguments):
                    return reference(*arguments)
                return autograd(keyset, *arguments)

        super().impl(op_name, fn, dispatch_key, **options)


library = _Library()


def _one_by_one(op: Callable[..., Any]) -> Callable[..., Any]:
    """The vmap rule of any op: run it for each member, stack what comes."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        def member(i: int) -> Any:
            return op(*(a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims, strict=True)))

        members = [member(i) for i in range(info.batch_size)]
        if isinstance(members[0], Tensor):
            return torch.stack(members), 0
        return tuple(torch.stack(outputs) for outputs in zip(*members, strict=True)), (0,) * len(members[0])

    return rule


def _no_derivative(name: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"v1fast::{name} has no derivative")

    return backward


def define(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Define ``v1fast::<schema>``: its meaning by ``reference``, on any device without a faster kernel."""
    name = schema.partition("(")[0]
    qualname = f"v1fast::{name}"
    library.define(schema)
    library.references[name] = reference
    library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(qualname, fake, lib=library)
    torch.library.register_autograd(
        qualname, backward or _no_derivative(name), setup_context=setup_context, lib=library
    )
    op = getattr(torch.ops.v1fast, name).default
    torch.library.register_vmap(qualname, _one_by_one(op), lib=library)
    return op
