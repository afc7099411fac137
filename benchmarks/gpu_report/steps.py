"""One line of the report: one provider's pass over one case, with errors and times."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from v1fast.ops._gpu_check import failures

from ..contract import Step
from .record import Part
from .timing import times

MOST_COPIES = 8
OPERANDS = ("leaves", "x")  # where the steps of the benchmarks keep what they read


def copies(step: Any) -> list[Any]:
    """Return the step and others like it whose operands are copies: together they do not fit in the L2.

    A call then finds nothing in the L2 that an earlier call has left there.
    """
    held = {name: value for name, value in vars(step).items() if name in OPERANDS}
    size = sum(tensor.nbytes for tensor in tree_leaves(held))
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    free, _ = torch.cuda.mem_get_info()
    count = min(MOST_COPIES, 2 + math.ceil(cache / max(size, 1)), max(1, int(free / 4 / max(size, 1))))
    found = [step]
    for _ in range(count - 1):
        other = copy.copy(step)
        vars(other).update(tree_map(_like, held))
        found.append(other)
    return found


def _like(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone(memory_format=torch.preserve_format).requires_grad_(value.requires_grad)


def errors(step: Step, backward: bool) -> dict[str, float]:
    """Return the relative errors of the output and, with ``backward``, of each gradient."""
    torch.manual_seed(0)
    check = step.check()
    torch.manual_seed(0)
    with torch.set_grad_enabled(backward):
        output = step.forward(step.draw())
        gradients = step.backward(output, check.upstream) if backward else {}
    return dict(check.errors(output.detach(), gradients))


def calls(steps: Sequence[Step], backward: bool) -> list[Callable[[], Any]]:
    """Return what calls each step once: the forward pass alone, without autograd, or both passes."""

    def of(step: Step) -> Callable[[], Any]:
        drawn = step.draw()

        def forward() -> Any:
            with torch.no_grad():
                return step.forward(drawn)

        def both() -> Any:
            assert step.upstream is not None
            return step.backward(step.forward(drawn), step.upstream)

        return both if backward else forward

    return [of(step) for step in steps]


def line(
    part: Part, prepare: Callable[[], Step], backward: bool, known: Mapping[str, Any], least: float = 2.0
) -> Mapping[str, Any] | None:
    """Measure one provider's pass and add it as a row.

    Args:
        part: the part that it belongs to.
        prepare: returns the provider's step.
        backward: measure both passes.
        known: cells of the row: case, dtype, what, provider, and what else is known beforehand.
        least: seconds without which it is not begun.

    Returns:
        The row, or None if there is none.
    """
    what = " ".join(str(known[name]) for name in ("case", "dtype", "what", "provider"))
    if not part.begin(what, min(least, part.seconds / 20)):
        return None
    with part.guarded(what):
        step = prepare()
        step.warm_up()
        found = errors(step, backward)
        if failures:
            raise RuntimeError(f"does not compile, and the reference ran in its place: {failures}")
        measured = times(calls(copies(step), backward), part.quick)
        part.add(key=what, **known, error=max(found.values()), errors=found, **measured)
        return part.rows[-1]
    torch.cuda.empty_cache()
    return None
