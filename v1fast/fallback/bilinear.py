"""Maps read at points by torch's own ``grid_sampler_2d``, with derivatives of any order.

Torch records it in C++, faster than any step of autograd's written in Python, but in older releases its derivative has
none: 2.8 lacks it, 2.13 has it. What stands in for that here runs only where somebody asks for the graph of a gradient
(``create_graph``).
"""

from __future__ import annotations

import math
from functools import lru_cache, partial

import torch
from torch import Tensor

from v1fast.reference import point_gather as reference


def read(maps: Tensor, points: Tensor, align_corners: bool) -> Tensor:  # [B, C, H, W], [B, N, 1, 2] -> [B, C, N, 1]
    """Return the values of maps at points, zero outside, NaN at points that are not finite.

    Derivatives of its gradients need ``with_derivatives``.
    """
    if reads_none_at_nan() or math.isfinite(points.sum().item()):
        return torch.grid_sampler_2d(maps, points, 0, 0, align_corners)
    return reference.point_gather(maps, points.squeeze(2), None, align_corners).mT.unsqueeze(3)


def with_derivatives(result: Tensor, points: Tensor, align_corners: bool, *parts: tuple[Tensor, Tensor]) -> Tensor:
    """Return ``result``, whose gradients will have derivatives too, if torch's have none.

    Only ``result``, which nobody else has, gets a hook, in the cheapest way: each hook of a step costs as much as an
    operation of torch. A pass that makes a graph comes by it first.

    Args:
        result: computed from all that was read, and from nothing that was read by others.
        points: where ``read`` read.
        align_corners: as it read.
        *parts: maps, and what it returned for them.
    """
    step = result.grad_fn
    if step is not None and not gradients_have_derivatives():
        result._backward_hooks = {-1: partial(_prepare, points, align_corners, [*parts])}
        step._register_hook_dict(result)
    return result


def _prepare(points: Tensor, align_corners: bool, parts: list[tuple[Tensor, Tensor]], _: Tensor) -> None:
    """Let the steps that read return gradients with a graph, in a pass that makes one."""
    while parts and torch.is_grad_enabled():
        maps, values = parts.pop()
        step = values.grad_fn
        if step is not None and step.name().startswith("GridSampler"):
            step.register_hook(partial(_with_graph, maps, points, align_corners))


def _with_graph(
    maps: Tensor, points: Tensor, align_corners: bool, found: tuple[Tensor | None, ...], grads: tuple[Tensor | None]
) -> tuple[Tensor | None, ...] | None:
    """Return the gradients of maps and points with a graph of their own, None where nobody asks for one.

    Args:
        maps: as for ``read``.
        points: as for ``read``.
        align_corners: as for ``read``.
        found: the gradients that torch computed. None stands for what is not wanted.
        grads: the gradient of the values, [B, C, N, 1].
    """
    (grad,) = grads
    if grad is None or not torch.is_grad_enabled():
        return None
    wanted = [gradient is not None for gradient in found]
    operands = (grad.squeeze(3).mT, maps, points.squeeze(2), None, align_corners)
    gradients = reference.point_gather_backward(*operands, [*wanted, False])
    d_points = gradients[1].unsqueeze(2) if wanted[1] else None
    return gradients[0] if wanted[0] else None, d_points


@lru_cache(maxsize=1)
def reads_none_at_nan() -> bool:
    """Whether torch reads no pixel at a position that is NaN: on x86. On ARM it reads the first."""
    one, grid = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 2), math.nan)
    d_maps, _ = torch.ops.aten.grid_sampler_2d_backward.default(one, one, grid, 0, 0, True, [True, True])
    return d_maps.item() == 0


def clamped_to_map(positions: Tensor) -> Tensor:
    """Return positions clamped to [-1, 1]. The gradient passes at the edges too, and not beyond.

    It is the function of the same name of the references, in fewer operations.
    """
    if clamp_passes_at_bounds() or not torch.is_grad_enabled():
        return positions.clamp(-1, 1)
    given = positions.detach()
    inside = given.clamp(-1, 1)
    return torch.where(given == inside, positions, inside)


@lru_cache(maxsize=1)
def clamp_passes_at_bounds() -> bool:
    """Whether the gradient passes ``torch.clamp`` at exactly its bounds: 2.13 lets it pass, 2.14.1 does not."""
    with torch.enable_grad(), torch.inference_mode(False):
        edge = torch.ones((), device="cpu", requires_grad=True)
        (passed,) = torch.autograd.grad(edge.clamp(-1, 1), edge)
    return passed.item() == 1


@lru_cache(maxsize=1)
def gradients_have_derivatives() -> bool:
    """Whether torch differentiates the gradients of ``grid_sampler_2d``."""
    with torch.enable_grad(), torch.inference_mode(False):
        maps, points = torch.ones((1, 1, 2, 2), requires_grad=True), torch.zeros((1, 1, 1, 2), requires_grad=True)
        read = torch.grid_sampler_2d(maps, points, 0, 0, True)
        (gradient,) = torch.autograd.grad(read.sum(), points, create_graph=True)
        try:
            torch.autograd.grad(gradient.sum(), maps)
        except RuntimeError:
            return False
    return True
