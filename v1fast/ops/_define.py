"""The rules of registration, once for all ops.

The reference defines the meaning of an op. ``define`` registers the fake for ``torch.compile``, the derivative, and the
behaviour under function transforms. ``register_defaults`` registers what runs on every device that has no kernel: the
fallback, or else the reference, after the op's check. Under function transforms and the like:

- ``vmap`` runs the op once for each member of the batch and stacks the results;
- ``func.grad``, ``jacrev``, ``jvp``, ``hessian`` and forward-mode duals differentiate the reference itself. A custom op
  would refuse the first and give a silent zero tangent for the second;
- ``torch.onnx.export`` (``dynamo=True``) gets the reference, as ops that ONNX knows.

An op that writes into an argument, ``Tensor(a!)`` in its schema, has no derivative and refuses operands that require
grad. It tells autograd that the argument has changed, whichever kernel wrote it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _AutoDispatchBelowAutograd
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

from v1fast._torch import any_requires_grad, is_plain, register_vmap
from v1fast.contracts._forms import Form, Seen, form_of


def _is_differentiated_by_transform(arguments: tuple[Any, ...]) -> bool:
    if _are_functorch_transforms_active():
        derivatives = (TransformType.Grad, TransformType.Jvp)
        if any(level.key() in derivatives for level in get_interpreter_stack() or ()):
            return True
    # The level is -1 outside every dual level. There, looking at each tensor would cost more than the op's dispatch.
    return forward_ad._current_level >= 0 and any(
        isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None for a in arguments
    )


def _is_exported_to_onnx(arguments: tuple[Any, ...]) -> bool:
    # The exporter calls with its own class of tensors. For other tensors, asking would cost a tenth of the call.
    return type(arguments[0]) is not Tensor and torch.onnx.is_in_onnx_export()


library = torch.library.Library("v1fast", "DEF")

references: dict[str, Callable[..., Any]] = {}
"""Name of each op -> its reference, behind the op's check: what every kernel of it is held against."""

defaults: dict[str, Callable[..., Any]] = {}
"""Name of each op -> what runs where no kernel does, behind the op's check. A launcher calls it for a form that it does
not take.
"""

_launchers: dict[str, dict[str, Callable[..., Any]]] = {}
"""Name of each op -> type of device -> its kernel in Python there, behind the op's check."""

_checks: dict[str, Callable[..., None]] = {}


def _with_autograd(
    op: Any, reference: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the kernel of the Autograd key, and what records a call with plain arguments.

    The first gets a key set and the arguments. It records the op, or lets the reference run.

    ``torch.library.register_autograd`` makes the same kernel without the reference. It also spends 80 us per call on
    default arguments, which these schemas do not have.
    """

    run = below_autograd(op)

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *arguments: Any) -> Any:
            with _AutoDispatchBelowAutograd():
                if keyset is None:
                    output = run(*arguments)
                else:
                    output = op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)
            setup_context(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return (None, *backward(ctx, *grads))

    written = _written(op)

    Recorded.__name__ = Recorded.__qualname__ = f"{op.name().replace('::', '_')}_recorded"

    def kernel(keyset: Any, *arguments: Any) -> Any:
        if _is_differentiated_by_transform(arguments) or _is_exported_to_onnx(arguments):
            return reference(*arguments)
        if torch.is_grad_enabled() and any_requires_grad(*arguments):
            if written:
                raise RuntimeError(f"{op.name()}: want no operand that requires grad: it writes into an operand")
            return Recorded.apply(keyset, *arguments)
        with _AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    # What Function.apply calls if no transform is active; it would look at each argument first.
    return kernel, partial(super(torch.autograd.Function, Recorded).apply, None)


def launchers_of(name: str) -> dict[str, Callable[..., Any]]:
    """Return the kernels in Python of the op of this name, by type of device: those that there are at any time."""
    return _launchers.setdefault(name, {})


_compiled: set[tuple[str, str]] = set()


def has_kernel(name: str, device: str) -> bool:
    """Whether the op of this name has a kernel for a device that the dispatcher names so, such as "CPU"."""
    if device.lower() in _launchers[name] or (name, device) in _compiled:
        return True
    found = torch._C._dispatch_has_kernel_for_dispatch_key(f"v1fast::{name}", device)  # takes 2 us
    if found:
        _compiled.add((name, device))  # it stays
    return bool(found)


def below_autograd(op: Any) -> Callable[..., Any]:
    """Return what runs the op where nothing but autograd can want to know of the call, and autograd is done.

    The dispatcher takes several microseconds to call a kernel in Python. So such a kernel is called at once, unless a
    profiler wants to see the op.
    """
    dispatched = getattr(op, "_op", op)  # without a call of Python's
    launchers = launchers_of(op._schema.name.removeprefix("v1fast::"))

    def run(*arguments: Any) -> Any:
        if launchers and not _profiler_enabled():
            launcher = launchers.get(arguments[0].device.type)
            if launcher is not None:
                return launcher(*arguments)
        return dispatched(*arguments)

    return run


def _written(op: Any) -> list[int]:
    """Return the indices of the arguments that the op writes into."""
    aliases = (argument.alias_info for argument in op._schema.arguments)
    return [i for i, alias in enumerate(aliases) if alias is not None and alias.is_write]


def _writing_kernel(op: Any) -> Callable[..., Any]:
    """Return the kernel of the ADInplaceOrView key: autograd must not use the old contents of a written operand."""
    written = _written(op)

    def kernel(keyset: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            result = op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *arguments)
        torch.autograd.graph.increment_version([arguments[i] for i in written])
        return result

    return kernel


def _one_by_one(op: Any) -> Callable[..., Any]:
    """Return the vmap rule of any op: run it for each member and stack the results."""
    written = _written(op)

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        if any(in_dims[i] is None for i in written):
            raise ValueError(f"{op.name()}: want a batched operand to write into beside batched operands")

        def member(i: int) -> Any:
            return op(*(a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims, strict=True)))

        members = [member(i) for i in range(info.batch_size)]
        if written:
            return None, None
        if isinstance(members[0], Tensor):
            return torch.stack(members), 0
        return tuple(torch.stack(outputs) for outputs in zip(*members, strict=True)), (0,) * len(members[0])

    return rule


def _save_nothing(ctx: Any, arguments: tuple[Any, ...], output: Any) -> None:
    pass


def _no_derivative(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError("this op of v1fast has no derivative")


def _behind(check: Callable[..., None], function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*arguments: Any) -> Any:
        check(*arguments)
        return function(*arguments)

    return checked


_MOST_FORMS = 1000
"""How many forms of calls are remembered for an op. Then all are forgotten."""


def behind_check(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return a kernel of the op of this name, behind the op's check: what is registered of a kernel in Python.

    The check takes longer than the rest of a call. It reads no values, so it runs once for each form of a call. But
    whether a written operand overlaps another depends on addresses. A kernel with an argument ``seen`` gets what there
    is to remember of the form.
    """
    check = _checks[name]
    if _written(getattr(torch.ops.v1fast, name).default):
        return _behind(check, kernel)
    legal: dict[Form, Seen] = {}
    remembers = "seen" in inspect.signature(kernel).parameters

    def checked(*arguments: Any) -> Any:
        form = form_of(arguments)
        seen = legal.get(form)
        if seen is None:
            check(*arguments)
            if len(legal) >= _MOST_FORMS:
                legal.clear()
            seen = legal[form] = Seen()
        return kernel(*arguments, seen=seen) if remembers else kernel(*arguments)

    return checked


def register_launcher(
    name: str, launcher: Callable[..., Any], device: str, registry: Any = None, **options: Any
) -> None:
    """Register a kernel in Python of the op of this name, behind the op's check.

    Args:
        name: of the op.
        launcher: takes the op's arguments and, if it has such an argument, what is ``seen`` of their form.
        device: the dispatcher's name of the device's type, such as "CUDA".
        registry: the ``torch.library.Library`` to register in; None: that of the ops.
        **options: of ``Library.impl``.
    """
    kernel = behind_check(name, launcher)
    (library if registry is None else registry).impl(name, kernel, device, **options)
    if not _written(getattr(torch.ops.v1fast, name).default):
        _launchers[name][device.lower()] = kernel


def forget_launchers(device: str) -> None:
    """Forget the kernels in Python for this type of device, whose registration the dispatcher has forgotten."""
    for found in _launchers.values():
        found.pop(device.lower(), None)


def _public(op: Any, record: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """Return the op with errors that name the operand, whichever kernel runs.

    A legal call is checked once, by its kernel. If a kernel in C++ refuses, with few words, the check says more.

    A kernel in Python that the dispatcher calls costs more than its work. So calls with plain arguments do without that
    of autograd: what it would do with them is done here.
    """
    may_skip, run = not _written(op), below_autograd(op)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():  # a compiler would wrap the error of the fake in its own
            check(*arguments)
            return op(*arguments)
        try:
            if not (may_skip and is_plain(arguments)):
                return op(*arguments)
            if torch.is_grad_enabled() and any_requires_grad(*arguments):
                return record(*arguments)
            with _AutoDispatchBelowAutograd():
                return run(*arguments)
        except RuntimeError:
            try:
                check(*arguments)
            except ValueError as error:
                raise error from None
            raise

    return call


def define(
    schema: str,
    *,
    check: Callable[..., None],
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] = _save_nothing,
    backward: Callable[..., Any] = _no_derivative,
) -> Callable[..., Any]:
    """Define ``v1fast::<schema>``. ``reference`` defines its meaning; see also ``register_defaults``.

    Args:
        schema: name, arguments and returns; no argument has a default.
        check: raises ValueError unless the arguments are legal. Runs before the reference, before the fake and before
            every other kernel in Python (``behind_check``). A kernel in C++ refuses the same arguments itself.
        reference: the computation in plain torch, out of place, so that it can be differentiated itself.
        fake: outputs of the right shape, dtype and strides, without values.
        setup_context: called with the autograd context, the arguments and the output.
        backward: called with the context (its ``needs_input_grad[0]`` is not an argument) and the gradients of the
            outputs. Returns one gradient or None for each argument.

    Returns:
        The op. What it refuses is a ValueError of ``check``; ``torch.ops.v1fast`` has the op without this.
    """
    name = schema.partition("(")[0]
    qualname = f"v1fast::{name}"
    library.define(schema)
    op = getattr(torch.ops.v1fast, name).default
    _checks[name] = check
    references[name] = _behind(check, reference)
    kernel, record = _with_autograd(op, references[name], setup_context, backward)
    library.impl(name, kernel, "Autograd", with_keyset=True)
    if _written(op):
        library.impl(name, _writing_kernel(op), "ADInplaceOrView", with_keyset=True)
    torch.library.register_fake(qualname, _behind(check, fake), lib=library)
    register_vmap(op, _one_by_one(op), library)
    return _public(op, record, check)


def register_defaults(fallback: Mapping[str, Callable[..., Any]]) -> None:
    """Register, once, what runs every defined op on devices without a kernel: its fallback, or its reference."""
    for name, reference in references.items():
        defaults[name] = _behind(_checks[name], fallback[name]) if name in fallback else reference
        library.impl(name, defaults[name], "CompositeExplicitAutograd")


def save_tensors(count: int) -> Callable[..., None]:
    """Return a ``setup_context`` that saves ``count`` arguments, tensors or None, and the rest as ``ctx.options``."""

    def setup_context(ctx: Any, arguments: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*arguments[:count])
        ctx.options = arguments[count:]

    return setup_context


def derivative_of(reference_backward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the backward of a backward op whose arguments ``save_tensors`` saved. It differentiates the op's
    reference, and can itself be differentiated to any order.
    """

    def double_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        create_graph = torch.is_grad_enabled()
        needed = [i for i in range(len(ctx.saved_tensors)) if ctx.needs_input_grad[1 + i]]
        with torch.enable_grad():
            # Views: a tensor that was given as two operands needs a gradient for each of them.
            operands: list[Any] = [t if t is None else t.view_as(t) for t in ctx.saved_tensors]
            outputs = reference_backward(*operands, *ctx.options)
            pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
            result: list[Tensor | None] = [None] * (len(operands) + len(ctx.options))
            if pairs:
                found = torch.autograd.grad(
                    [o for o, _ in pairs],
                    [operands[i] for i in needed],
                    [g for _, g in pairs],
                    create_graph=create_graph,
                    allow_unused=True,
                )
                for i, gradient in zip(needed, found, strict=True):
                    result[i] = gradient
        return tuple(result)

    return double_backward


def define_with_backward(
    schema: str,
    *,
    gradients: int,
    check: Callable[..., None],
    check_backward: Callable[..., None],
    reference: Callable[..., Any],
    reference_backward: Callable[..., Any],
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any],
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Define ``v1fast::<name>`` with one output, and ``v1fast::<name>_backward``, its derivative.

    The backward op takes the output's gradient, the arguments of ``schema`` and a mask of ``gradients`` bools. It
    returns a gradient for each of that many leading arguments, ``empty(0)`` where the mask is false. Its own derivative
    is that of ``reference_backward``, which is an explicit formula and not a call of autograd.

    Args:
        schema: as in :func:`define`, the tensors first.
        gradients: number of leading arguments that have a gradient.
        check: raises ValueError unless the arguments are legal.
        check_backward: the same for the backward op.
        reference: computes the op in plain torch.
        reference_backward: computes the backward op in plain torch.
        fake: the output without values.
        fake_backward: the gradients without values.
    """
    name, arguments = schema.split(")")[0].split("(")
    kinds = [argument.split()[0] for argument in arguments.split(",")]
    tensors = sum(kind.startswith("Tensor") for kind in kinds)

    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        mask = list(ctx.needs_input_grad[1 : 1 + gradients])
        found = backward_op(grad_output, *ctx.saved_tensors, *ctx.options, mask)
        wanted = (g if m else None for g, m in zip(found, mask, strict=True))
        return (*wanted, *(None,) * (len(kinds) - gradients))

    op = define(
        schema, check=check, reference=reference, fake=fake, setup_context=save_tensors(tensors), backward=backward
    )
    backward_op = define(
        f"{name}_backward(Tensor grad_output, {arguments}, bool[{gradients}] output_mask)"
        f" -> ({', '.join(['Tensor'] * gradients)})",
        check=check_backward,
        reference=reference_backward,
        fake=fake_backward,
        setup_context=save_tensors(1 + tensors),
        backward=derivative_of(reference_backward),
    )
    return op, backward_op
