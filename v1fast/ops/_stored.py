"""A call of an op on operands that are stored in other shapes, as one step of autograd's.

Layers keep parameters in the shapes of other libraries. A view or a copy that autograd records is a step of its own, in
both passes. For a small readout, or on a GPU, such steps take longer than the op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd

from v1fast._torch import is_plain
from v1fast.ops._define import below_autograd, has_kernel, launchers_of


class OfStored:
    """What calls an op of ``define_with_backward`` so.

    Args:
        name: of the op.
        check: raises ValueError unless the op's arguments are legal.
        backward_op: its backward, as ``define_with_backward`` returns it.
        gradients: number of leading arguments that have a gradient.
        stored: index of an argument -> whether its two axes are swapped in what is stored.
    """

    def __init__(
        self,
        name: str,
        *,
        check: Callable[..., None],
        backward_op: Callable[..., Any],
        gradients: int,
        stored: Mapping[int, bool],
    ) -> None:
        self._name, self._check = name, check
        self._direct = [i for i in range(gradients) if i not in stored]
        recorded: Any = _recorded(name, backward_op, gradients, stored)
        # What Function.apply calls if no transform is active; it would look at each argument first.
        self._record: Any = super(torch.autograd.Function, recorded).apply  # type: ignore[misc]

    def suits(self, *tensors: Any) -> bool:
        """Whether nothing but autograd looks on at a call with these tensors, and the device of the first has a kernel.

        Everything else takes the step of each view and copy, and so does what runs where there is no kernel.
        """
        return (
            torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and is_plain(tensors)
            and (not tensors[0].is_cpu or has_kernel(self._name, "CPU"))
        )

    def __call__(self, stored: Sequence[Tensor], *arguments: Any) -> Any:
        """Call the op.

        Args:
            stored: get the gradients in place of the arguments whose values they hold, in their order.
            *arguments: of the op. Those whose values are stored are views or copies that autograd does not know of.
        """
        try:
            return self._record(*stored, *[arguments[i] for i in self._direct], arguments)
        except RuntimeError:
            try:
                self._check(*arguments)
            except ValueError as error:
                raise error from None
            raise


def _recorded(
    name: str, backward_op: Callable[..., Any], gradients: int, stored: Mapping[int, bool]
) -> type[torch.autograd.Function]:
    """Return the step: of what is stored, of the other arguments that have a gradient, and of a tuple of all."""
    op = getattr(torch.ops.v1fast, name).default
    tensors = sum("Tensor" in str(argument.type) for argument in op._schema.arguments)
    run, run_backward = below_autograd(op), below_autograd(getattr(torch.ops.v1fast, f"{name}_backward").default)
    launchers, count = launchers_of(name), len(stored)
    swapped = [i for i, is_swapped in stored.items() if is_swapped]
    order = [*stored, *(i for i in range(gradients) if i not in stored)]  # of the step's arguments
    positions = [order.index(i) for i in range(gradients)]

    class OfStored(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: Any) -> Any:
            arguments = given[-1]
            with _AutoDispatchBelowAutograd():
                if launchers and arguments[0].device.type in launchers:
                    # They read rows: what is copied for them is kept for the backward pass.
                    arguments = [*arguments]
                    for i in swapped:
                        arguments[i] = arguments[i].contiguous()
                output = run(*arguments)
            ctx.save_for_backward(*arguments[:tensors])
            # Not saved: only their place in the graph is asked for, so they may be changed.
            ctx.stored, ctx.options = given[:count], arguments[tensors:]
            return output

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
            needed = ctx.needs_input_grad
            mask = [needed[i] for i in positions]
            operands = ctx.saved_tensors
            if torch.is_grad_enabled() or not is_plain((grad_output,)):
                if torch.is_grad_enabled():
                    operands = _in_graph(operands, ctx.stored, stored)
                return arranged(backward_op(grad_output, *operands, *ctx.options, mask), needed, ctx.stored)
            with _AutoDispatchBelowAutograd():
                return arranged(run_backward(grad_output, *operands, *ctx.options, mask), needed, ctx.stored)

    def arranged(
        found: Sequence[Tensor], needed: Sequence[bool], tensors: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of the step's arguments."""
        result = [found[i] if is_needed else None for i, is_needed in zip(order, needed, strict=False)]
        for place, is_swapped in enumerate(stored.values()):
            gradient = result[place]
            if gradient is not None:
                gradient = gradient.t().contiguous() if is_swapped else gradient
                result[place] = gradient.view_as(tensors[place])
        return (*result, None)

    OfStored.__name__ = OfStored.__qualname__ = f"v1fast_{name}_of_stored"
    return OfStored


def _in_graph(operands: Sequence[Any], tensors: Sequence[Tensor], stored: Mapping[int, bool]) -> list[Any]:
    """Return the operands as functions of what is stored: their own values, of which autograd now knows."""
    known = list(operands)
    for (i, is_swapped), tensor in zip(stored.items(), tensors, strict=True):
        values = operands[i]
        view = tensor.reshape(values.t().shape).t() if is_swapped else tensor.reshape(values.shape)
        known[i] = values + (view - view.detach())
    return known
