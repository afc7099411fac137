"""Operands of the Gaussian readout's cases, and exact results to measure errors against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from v1fast import _eager

from .contract import Case, relative_error

CHECKED = 4_000_000  # products in float64, for the checked images and again for the checked neurons
BORDER = 1e-4  # pixels: closer to a cell border, two correct results may differ by a whole gradient
CLAMP = 1e-5  # likewise, in units of the positions


@dataclass(frozen=True, eq=False)
class ReadoutCase(Case):
    """A call of the Gaussian readout.

    Attributes:
        gradients: the operands whose gradients are computed; none: evaluation at the mean positions, without noise.
    """

    gradients: tuple[str, ...] = ("features", "mu", "sigma", "weight", "bias")

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """B, C, H, W, N."""
        return self.shape["B"], self.shape["C"], self.shape["H"], self.shape["W"], self.shape["N"]


@dataclass(frozen=True)
class Operands:
    """Operands that the providers of one case share. No provider may write to them."""

    features: Tensor  # [B, C, H, W]
    mu: Tensor  # [N, 2]
    sigma: Tensor  # [N, 2, 2]
    weight: Tensor  # [N, C]
    bias: Tensor  # [N]
    upstream: Tensor  # [B, N]

    @cached_property
    def channels_last(self) -> Tensor:
        """The features in the layout of a channels-last core."""
        return self.features.contiguous(memory_format=torch.channels_last)

    @cached_property
    def channel_major(self) -> Tensor:
        """The weight [N, C] stored channel after channel, as in other libraries. Eager reads this layout fastest."""
        return self.weight.t().contiguous().t()


@lru_cache(maxsize=1)
def operands(case: ReadoutCase, device: str) -> Operands:
    """Return equal operands for equal cases: means all over the map, with the initial spread of published models."""
    images, channels, height, width, neurons = case.sizes
    dtype = getattr(torch, case.dtype)
    draw = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device)

    return Operands(
        features=normal(images, channels, height, width).to(dtype),
        mu=1.8 * torch.rand(neurons, 2, generator=draw, device=device) - 0.9,
        sigma=0.1 * normal(neurons, 2, 2),
        weight=(normal(neurons, channels) / channels**0.5).to(dtype),
        bias=normal(neurons),
        upstream=normal(images, neurons).to(dtype),
    )


@lru_cache(maxsize=1)
def _checks(case: ReadoutCase, device: str) -> list[tuple[Tensor | None, ReadoutCheck]]:
    return []


def check(case: ReadoutCase, device: str, noise: Tensor | None) -> ReadoutCheck:
    """Return exact results for this noise [B, N, 2], computed once for the providers that draw the same."""
    known = _checks(case, device)
    for other, made in known:
        if noise is other or (noise is not None and other is not None and torch.equal(noise, other)):
            return made
    known.append((noise, ReadoutCheck(case, device, noise)))
    return known[-1][1]


class ReadoutCheck:
    """Eager torch in float64: output and feature gradient for some images, the other gradients for some neurons."""

    def __init__(self, case: ReadoutCase, device: str, noise: Tensor | None) -> None:
        given = operands(case, device)
        images, channels, _, _, neurons = case.sizes
        self.images = _spread(images, CHECKED // (neurons * channels), device)
        self.neurons = _spread(neurons, CHECKED // (images * channels), device)
        self.upstream = given.upstream.masked_fill(_at_border(case, given, noise), 0)
        self.exact = self._of_images(case, given, noise)
        if case.gradients:
            self.exact |= self._of_neurons(case, given, noise)

    def _of_images(self, case: ReadoutCase, given: Operands, noise: Tensor | None) -> dict[str, Tensor]:
        features = given.features[self.images].double().requires_grad_("features" in case.gradients)
        others = (given.mu.double(), given.sigma.double(), given.weight.double(), given.bias.double())
        drawn = None if noise is None else noise[self.images].double()
        output = _eager.gaussian_readout(features, *others, noise=drawn)
        found = {"output": output.detach()}
        if features.requires_grad:
            upstream = self.upstream[self.images].double()
            (found["features"],) = torch.autograd.grad(output, features, upstream)
        return found

    def _of_neurons(self, case: ReadoutCase, given: Operands, noise: Tensor | None) -> dict[str, Tensor]:
        wanted = [name for name in case.gradients if name != "features"]
        chosen = {name: getattr(given, name)[self.neurons].double() for name in ("mu", "sigma", "weight", "bias")}
        leaves = [chosen[name].requires_grad_() for name in wanted]
        drawn = None if noise is None else noise[:, self.neurons].double()
        output = _eager.gaussian_readout(given.features.double(), **chosen, noise=drawn)
        upstream = self.upstream[:, self.neurons].double()
        return dict(zip(wanted, torch.autograd.grad(output, leaves, upstream), strict=True))

    def errors(self, output: Tensor, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the relative errors for those images and neurons."""
        chosen = {name: self.images if name in ("output", "features") else self.neurons for name in self.exact}
        got = {"output": output, **gradients}
        return {name: relative_error(value[chosen[name]], self.exact[name]) for name, value in got.items()}


def _spread(count: int, wanted: int, device: str) -> Tensor:
    """Return at most ``wanted`` of ``count`` indices, evenly spaced, always with the last one."""
    steps = min(count, max(1, wanted))
    return torch.linspace(count - 1, 0, steps, dtype=torch.float64, device=device).round().long()


def _at_border(case: ReadoutCase, given: Operands, noise: Tensor | None) -> Tensor:
    """[B, N] bool: positions where rounding decides the gradient."""
    _, _, height, width, _ = case.sizes
    mu, sigma = given.mu.double(), given.sigma.double()
    free = _eager.unclamped_positions(mu, sigma, None if noise is None else noise.double())
    inside = free.abs() < 1
    at_border = inside & (_eager.distance_to_cell_border(free, height, width) < BORDER)
    return (at_border | ((free.abs() - 1).abs() < CLAMP)).any(-1).expand(given.upstream.shape)
