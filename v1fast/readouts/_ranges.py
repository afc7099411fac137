"""Parameters that are kept in a range: positions in the map, weights of one sign, weights of a norm.

A pass computes with a copy that is in range. The gradient passes to the parameter unchanged: straight-through (Bengio,
Léonard & Courville, "Estimating or propagating gradients through stochastic neurons", 2013). Autograd therefore saves
no parameter, and an optimiser or another pass may change it before the backward pass. Only a pass in training mode
changes the parameter itself, as neuralpredictors and openretina do, and never inside a transform or an exporter.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _are_functorch_transforms_active
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from v1fast._torch import is_exporting

Change = Callable[[Tensor], Tensor]
"""Values in range, a new tensor, of those that are given."""


def within_map(positions: Tensor) -> Tensor:
    """Clamped to [-1, 1]."""
    return positions.clamp(-1, 1)


def at_least_zero(values: Tensor) -> Tensor:
    """Clamped to 0 or above."""
    return values.clamp(0)


def _straight_through(values: Tensor, parameter: Tensor) -> Tensor:
    """Return exactly ``values``, with the parameter's gradient. Nothing is saved for the backward pass."""
    return values + (parameter - parameter.detach())


def _save_all(*args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE


# An argument from torch 2.9 on. What is checkpointed here is all saved, so nothing depends on it in a compiled graph.
_TO_THE_END: dict[str, Any] = {"early_stop": False} if "early_stop" in inspect.signature(checkpoint).parameters else {}


def _saved_straight_through(values: Tensor, parameter: Tensor) -> Tensor:
    """``_straight_through`` with a result that compiled code saves for its backward pass.

    The compiler would otherwise recompute the result from the parameter, which has changed by then.
    """
    result: Tensor = checkpoint(
        _straight_through,
        values,
        parameter,
        use_reentrant=False,
        preserve_rng_state=False,
        **_TO_THE_END,
        context_fn=functools.partial(create_selective_checkpoint_contexts, _save_all),
    )
    return result


def _may_be_written(parameter: Tensor) -> bool:
    """Whether the parameter may be changed: not in a transform or an exporter, nor what ``functional_call`` puts in."""
    return (
        torch.is_grad_enabled()
        and isinstance(parameter, nn.Parameter)
        and not _are_functorch_transforms_active()
        and not is_exporting()
    )


def copied(parameter: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """A copy, in another shape if one is given, so that the parameter may be changed before the backward pass."""
    if shape is None:
        return parameter.clone()
    if _are_functorch_transforms_active() or torch.compiler.is_compiling():
        return parameter.clone().view(shape)
    return torch.view_copy(parameter, shape)  # one step of the backward pass, not two


_IN_PLACE: dict[Change, Callable[[Tensor], Tensor]] = {
    within_map: lambda positions: positions.clamp_(-1, 1),
    at_least_zero: lambda values: values.clamp_(0),
}


def _bring_in_range(parameter: Tensor, change: Change) -> Tensor:
    """Change the parameter. Return it without its history."""
    inside = parameter.detach()  # of the same memory and version; cheaper than no_grad
    in_place = _IN_PLACE.get(change)
    return inside.copy_(change(inside)) if in_place is None else in_place(inside)


def unrecorded(parameter: Tensor, change: Change | None, write: bool, shape: Sequence[int]) -> Tensor:
    """``in_range``, or ``copied`` without a change, for who passes the gradient to the parameter."""
    if change is None:
        return torch.view_copy(parameter.detach(), shape)
    if write and _may_be_written(parameter):
        return torch.view_copy(_bring_in_range(parameter, change), shape)
    return change(parameter.detach()).view(shape)


def in_range(parameter: Tensor, change: Change, write: bool, shape: Sequence[int] | None = None) -> Tensor:
    """Return the parameter's values in range, for one pass. With ``write``, change the parameter too where allowed.

    Args:
        parameter: of a layer.
        change: brings its values into range.
        write: whether to change the parameter itself.
        shape: of the result; None: that of the parameter.
    """
    written = write and _may_be_written(parameter)
    if written and not torch.compiler.is_compiling():
        _bring_in_range(parameter, change)
        return parameter.clone() if shape is None else torch.view_copy(parameter, shape)
    recorded = torch.is_grad_enabled() or _are_functorch_transforms_active()
    values = change(parameter.detach() if recorded else parameter)
    if written:
        used = _saved_straight_through(values, parameter)
        with torch.no_grad():
            parameter.copy_(values)
    else:
        used = _straight_through(values, parameter) if recorded else values
    return used if shape is None else used.view(shape)
