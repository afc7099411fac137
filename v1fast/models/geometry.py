"""From the positions of a readout to pixels of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Axis = tuple[float, float]


@dataclass(frozen=True)
class Positions:
    """Positions of neurons in pixels of the input image; (0, 0) is the centre of the first pixel.

    Attributes:
        x, y: [N].
        spread_x, spread_y: [N], standard deviation of the positions sampled in training; NaN if none are sampled.
        correlation: [N], of x and y among these positions; NaN likewise.
        at_clamp: [N], whether x or y lies on the border of the feature map, where a readout clamps it.
    """

    x: Tensor
    y: Tensor
    spread_x: Tensor
    spread_y: Tensor
    correlation: Tensor
    at_clamp: Tensor

    def columns(self) -> dict[str, Tensor]:
        """Those of a table of neurons, by name."""
        return {name: getattr(self, name) for name in ("x", "y", "spread_x", "spread_y", "at_clamp")}


def input_grid(core: nn.Module) -> tuple[Axis, Axis]:
    """For x and for y: input pixel of the core's first output pixel, and input pixels from one to the next.

    Computed as centres of receptive fields, from kernel, padding, stride and dilation of each convolution or pooling in
    ``core.features`` up to the layer whose map the core returns. A convolution without padding takes half its kernel
    off each side: with Sensorium images of 64 pixels, the first and last of the map's 56 pixels are centred on pixels
    4 and 59.

    Args:
        core: with ``features``, a sequence of layers (``Stacked2dCore``, here and in neuralpredictors, and the cores of
            videos).
    """
    features: Any = core.features
    layers = list(features)
    stack = getattr(core, "stack", None)
    last = list(stack)[-1] if stack is not None else -1
    chosen = layers[: range(len(layers))[last] + 1]
    kinds = nn.Conv2d | nn.Conv3d | nn.MaxPool2d | nn.AvgPool2d
    windows = [module for layer in chosen for module in layer.modules() if isinstance(module, kinds)]
    return _axis(windows, 1), _axis(windows, 0)


def _axis(windows: list[Any], axis: int) -> Axis:
    first, step = 0.0, 1.0
    for window in windows:
        kernel, stride, dilation = (_of_axis(v, axis) for v in (window.kernel_size, window.stride, _dilation(window)))
        first += step * (dilation * (kernel - 1) / 2 - _padding(window, axis))
        step *= stride
    return first, step


def _of_axis(size: Any, axis: int) -> int:
    """Of the rows (0) or columns (1); before them, convolutions of videos have one of the frames."""
    return int(size if isinstance(size, int) else size[-2:][axis])


def lost_frames(core: nn.Module) -> int | None:
    """Frames of a video for which a core has no map, the first ones: none is padded. None for cores of images."""
    windows = [module for module in core.modules() if isinstance(module, nn.Conv3d)]
    return sum(window.dilation[0] * (window.kernel_size[0] - 1) for window in windows) if windows else None


def _dilation(window: Any) -> Any:
    return getattr(window, "dilation", 1)


def _padding(window: Any, axis: int) -> float:
    if window.padding == "same":  # torch puts the odd pixel after
        return float(_of_axis(_dilation(window), axis) * (_of_axis(window.kernel_size, axis) - 1) // 2)
    return 0.0 if window.padding == "valid" else float(_of_axis(window.padding, axis))


@torch.no_grad()
def input_positions(core: nn.Module, readout: nn.Module, shift: Tensor | None = None) -> Positions:
    """Positions of a point readout's neurons in pixels of the image that the core takes.

    Args:
        core: see :func:`input_grid`.
        readout: with positions ``mu`` or ``grid`` (1, N, 1, 2), (x, y) in [-1, 1] over its ``in_shape`` (C, H, W), as
            all Gaussian, pooled and pyramid readouts have them. ``sigma`` (1, N, 2, 2) is a square root of the
            covariance, (1, N, 1, 2) or (1, N, 1, 1) are standard deviations.
        shift: [2], (x, y) as a shifter gives it, which the readout adds. A shifter with a bias may learn any constant
            shift, and all positions the opposite: only their sum is a place in the image. None: 0.

    Raises:
        ValueError: a readout without such positions.
    """
    place = getattr(readout, "mu", getattr(readout, "grid", None))
    if not isinstance(place, Tensor) or place.dim() != 4 or place.shape[-1] != 2 or place.shape[2] != 1:
        raise ValueError(f"readout: want one with positions mu or grid (1, N, 1, 2), got {type(readout).__name__}")
    grid = place.detach()[0, :, 0].double().clamp(-1, 1)
    spread, correlation = _spread(getattr(readout, "sigma", None), grid)
    moved = grid if shift is None else grid + shift.detach().to(grid)
    shape: Any = readout.in_shape
    corners = getattr(readout, "align_corners", True)
    found = []
    for axis, (first, step) in enumerate(input_grid(core)):
        size = shape[-1 - axis]
        # From -1 to 1 there are size - 1 pixels between the outermost centres, or size between their outer edges.
        pixels = (size - 1) / 2 if corners else size / 2
        found.append((first + step * ((size - 1) / 2 + moved[:, axis] * pixels), spread[:, axis] * pixels * step))
    (x, spread_x), (y, spread_y) = found
    return Positions(x, y, spread_x, spread_y, correlation, (grid.abs() >= 1).any(1))


def _spread(sigma: Any, grid: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 2]: standard deviations along x and y, in units of the grid; [N]: their correlation."""
    if not isinstance(sigma, Tensor) or sigma.dim() != 4:
        return torch.full_like(grid, torch.nan), torch.full_like(grid[:, 0], torch.nan)
    root = sigma.detach()[0].double()
    if root.shape[1:] != (2, 2):
        return root[:, 0].abs().expand(-1, 2), torch.zeros_like(grid[:, 0])
    spread = root.norm(dim=2)
    return spread, (root[:, 0] * root[:, 1]).sum(1) / spread.prod(1)  # of a root of zeros NaN: 0 / 0
