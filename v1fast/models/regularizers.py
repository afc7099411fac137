"""Smoothness penalties on the filters of a core's first convolution.

Each compares a filter with its neighbours through the 3x3 discrete Laplacian L (4 in the middle, -1 at its four
neighbours). With ``avg`` every sum below is a mean.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from v1fast._laplace import Laplace


class LaplacePenalty(nn.Module, ABC):
    """What the penalties have in common.

    Args:
        kernel: (height, width) of the filters.
        padding: See :class:`Laplace`.
    """

    def __init__(self, kernel: tuple[int, int], padding: int | None) -> None:
        super().__init__()
        self.kernel = kernel
        self.laplace = Laplace(padding)

    @abstractmethod
    def forward(self, weight: Tensor, avg: bool) -> Tensor:
        """The penalty of filters [out, in, kh, kw], a scalar."""


def _relative(penalty: Tensor, norm: Tensor) -> Tensor:
    """``penalty / norm``, and 0, with a gradient of 0, for filters that are all 0."""
    return penalty / norm.clamp(min=torch.finfo(norm.dtype).tiny)


def _aggregate(x: Tensor, avg: bool) -> Tensor:
    return x.mean() if avg else x.sum()


class LaplaceL1(LaplacePenalty):
    """``sum |L w|``."""

    def forward(self, weight: Tensor, avg: bool) -> Tensor:
        """The penalty of filters [out, in, kh, kw], a scalar."""
        return _aggregate(self.laplace(weight).abs(), avg)


class LaplaceL2(LaplacePenalty):
    """``sum (L w)^2 / 2``."""

    def forward(self, weight: Tensor, avg: bool) -> Tensor:
        """The penalty of filters [out, in, kh, kw], a scalar."""
        return _aggregate(self.laplace(weight).square(), avg) / 2


class LaplaceL2norm(LaplacePenalty):
    """``sum (L w)^2 / sum w^2``, which does not depend on the filters' scale."""

    def forward(self, weight: Tensor, avg: bool) -> Tensor:
        """The penalty of filters [out, in, kh, kw], a scalar."""
        return _relative(_aggregate(self.laplace(weight).square(), avg), _aggregate(weight.square(), avg))


class GaussianLaplaceL2(LaplacePenalty):
    """``sum (m L w)^2 / sum w^2``: free at the filter's centre, full price at its corners.

    m = 1 - g, where g is a round Gaussian of standard deviation min(kernel) / 4 pixels, stretched to the range 0 to 1
    over the filter. Without padding, m is cut to the pixels at which L w is defined.

    Raises:
        ValueError: If padding is more than 1, or all pixels of the kernel are as far from its centre (1 x 1, 2 x 2).
    """

    mask: Tensor

    def __init__(self, kernel: tuple[int, int], padding: int | None) -> None:
        super().__init__(kernel, padding)
        if self.laplace.padding not in (0, 1):
            raise ValueError(f"laplace_padding: want None, 0 or 1 with a Gaussian mask, got {padding}")
        y, x = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2 for size in kernel)
        gauss = torch.exp(-(y[:, None] ** 2 + x**2) / (2 * (min(kernel) / 4) ** 2))
        low, high = gauss.aminmax()
        if low == high:
            want = "more than one pixel, at more than one distance from the centre,"
            raise ValueError(f"input_kern: want {want} for a Gaussian mask, got {kernel[0]} x {kernel[1]}")
        cut = 1 - self.laplace.padding
        mask = (1 - (gauss - low) / (high - low))[cut : kernel[0] - cut, cut : kernel[1] - cut]
        # Computed again from the kernel's size: not part of a checkpoint.
        self.register_buffer("mask", mask.to(torch.get_default_dtype()), persistent=False)

    def forward(self, weight: Tensor, avg: bool) -> Tensor:
        """The penalty of filters [out, in, kh, kw], a scalar."""
        masked = self.laplace(weight) * self.mask
        return _relative(_aggregate(masked.square(), avg), _aggregate(weight.square(), avg))


class TemporalPenalty(nn.Module):
    """``sum (L w)^2 / sum w^2`` of temporal filters, with neuralpredictors' L = (-1, 4, -1), one zero beyond each end.

    With a sum of 2 rather than 0, L also penalises slow filters. Key: ``laplace.filter`` (1, 1, 3).
    """

    def __init__(self) -> None:
        super().__init__()
        self.laplace = nn.Module()
        self.laplace.register_buffer("filter", torch.tensor([[[-1.0, 4.0, -1.0]]]))

    def forward(self, weight: Tensor) -> Tensor:
        """The penalty of filters [out, in, T], a scalar."""
        rows = weight.flatten(0, 1).unsqueeze(1)
        filters: Tensor = self.laplace.filter  # type: ignore[assignment]
        rough = nn.functional.conv1d(rows, filters.to(rows.dtype), padding=1)
        return _relative(rough.square().sum(), rows.square().sum())


REGULARIZERS: dict[str, type[LaplacePenalty]] = {
    "LaplaceL1": LaplaceL1,
    "LaplaceL2": LaplaceL2,
    "LaplaceL2norm": LaplaceL2norm,
    "GaussianLaplaceL2": GaussianLaplaceL2,
    # The same penalty: the adaptive one takes the kernel's size from the weights, which is always known here.
    "GaussianLaplaceL2Adaptive": GaussianLaplaceL2,
}
