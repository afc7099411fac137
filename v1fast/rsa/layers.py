"""Outputs of a model's layers for stimuli."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from v1fast import _arrays


@contextmanager
def recording(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of some layers in each call of the model, within this context.

    A copy is made when a layer returns, so in-place changes by later layers do not affect it. The hooks are removed
    when the context ends, even after an exception.

    Args:
        model: any module.
        layers: names as in ``model.named_modules()``; "" is the model itself.

    Yields:
        Name -> output of the last call, without derivative. Empty it between calls.

    Raises:
        ValueError: there is no such layer; or, when the model is called, a layer returns something other than one
            tensor or runs more than once.
    """
    found: dict[str, Tensor] = {}
    known = dict(model.named_modules())
    unknown = [name for name in layers if name not in known]
    if unknown:
        raise ValueError(f"layers: want names of {', '.join(name for name in known if name)}, got {', '.join(unknown)}")

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(f"layers: want layers that return a tensor, got {name}: {type(output).__name__}")
            if name in found:
                raise ValueError(f"layers: want layers that run once in a pass, got {name}, which runs again")
            found[name] = output.detach().clone()

        return hook

    hooks = [known[name].register_forward_hook(hook_of(name)) for name in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def activations(
    model: nn.Module, stimuli: Tensor | NDArray[Any], layers: Sequence[str], *, batch: int = 64
) -> dict[str, Tensor]:
    """Outputs of named layers for all stimuli, batch by batch, in evaluation mode and without derivatives.

    Args:
        model: any module that takes a batch of stimuli. It runs on the device of its parameters, and keeps its mode.
        stimuli: [S, ...], not modified. Floating stimuli are converted to the dtype of the model's parameters. If they
            are mapped from a file, only one batch is in memory.
        layers: names as in ``model.named_modules()``; "" is the model itself.
        batch: number of stimuli per call of the model.

    Returns:
        Name -> [S, units] on the CPU, in the layer's own dtype: ``functional.rdm`` accepts it directly.

    Raises:
        ValueError: there is no such layer, or it returns something other than one tensor per batch.
    """
    given = _arrays.to_tensor("stimuli", stimuli)
    layout = torch.preserve_format if isinstance(stimuli, Tensor) else torch.contiguous_format
    if given.dim() < 1 or len(given) < 1 or batch < 1:
        raise ValueError(f"stimuli, batch: want [S >= 1, ...] and at least 1, got {tuple(given.shape)} and {batch}")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    dtype = like.dtype if given.is_floating_point() else given.dtype
    modes = {module: module.training for module in model.modules()}
    collected: dict[str, Tensor] = {}
    model.eval()
    try:
        with torch.no_grad(), recording(model, layers) as found:
            for begin in range(0, len(given), batch):
                part = given[begin : begin + batch]
                found.clear()
                # A copy: a layer that works in place must not write to the caller's array, which may be read-only.
                model(part.to(like.device, dtype, copy=True, memory_format=layout))
                _collect(collected, found, layers, begin, len(part), len(given))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return collected


def _collect(
    collected: dict[str, Tensor], found: dict[str, Tensor], layers: Sequence[str], begin: int, size: int, stimuli: int
) -> None:
    """Store the outputs of a batch at its positions."""
    for name in layers:
        output = found.get(name)
        if output is None or output.dim() < 1 or len(output) != size:
            got = "none" if output is None else str(tuple(output.shape))
            raise ValueError(f"layers: want [batch, ...] with {size} stimuli from {name or 'the model'}, got {got}")
        rows = output.flatten(1) if output.dim() > 1 else output.unsqueeze(1)
        if name not in collected:
            collected[name] = torch.empty((stimuli, rows.shape[1]), dtype=rows.dtype)
        collected[name][begin : begin + size] = rows
