"""Figures of a fitted population: where its neurons look, and with which features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from v1fast._plot_style import BLUE, GREY, new_figure, styled
from v1fast.models.geometry import Positions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def visual_field(
    found: Positions, image_shape: tuple[int, int], values: ArrayLike | None = None, *, label: str = ""
) -> Figure:
    """Receptive-field centres over the image, each with the spread of its sampled positions.

    An ellipse is one standard deviation of the readout's Gaussian.

    Args:
        found: of :func:`v1fast.models.input_positions`.
        image_shape: (H, W) of the images that the model takes, in pixels.
        values: [N], a colour for each neuron, e.g. its correlation; a neuron with NaN is a grey cross.
        label: what the values are.
    """
    from matplotlib.collections import EllipseCollection

    x, y = (v.detach().cpu().numpy() for v in (found.x, found.y))
    figure, axes = new_figure(1, 1, _size(image_shape, 7.5, bar=values is not None))
    spread = np.stack([v.detach().cpu().numpy() for v in (found.spread_x, found.spread_y, found.correlation)], 1)
    drawn = ~np.isnan(spread[:, :2]).any(1)
    if drawn.any():
        widths, heights, angles = _ellipses(*spread[drawn].T)
        ellipses = EllipseCollection(
            2 * widths, 2 * heights, angles, units="xy", offsets=np.stack([x, y], 1)[drawn],
            offset_transform=axes.transData, facecolors="none", edgecolors=GREY, linewidths=0.5, alpha=0.6,
        )  # fmt: skip
        axes.add_collection(ellipses)
    _points(figure, axes, x, y, values, label)
    _frame(axes, image_shape)
    spreads = f"; ellipses: spread of sampling, {np.median(spread[drawn, :2]):.2g} px (median)" if drawn.any() else ""
    axes.set_title(f"{len(x)} neurons{spreads}", fontsize=11)
    return figure


@styled
def retinotopy(cortex: ArrayLike, found: Positions, image_shape: tuple[int, int]) -> Figure:
    """The map from cortex to visual field: cells where they lie in cortex, coloured by where they look.

    Args:
        cortex: [N, 2] or [N, 3], micrometres; the first two are drawn.
        found: of :func:`v1fast.models.input_positions`.
        image_shape: (H, W) of the images that the model takes, in pixels.
    """
    places = np.asarray(cortex)
    if places.ndim != 2 or places.shape[1] not in (2, 3) or len(places) != len(found.x):
        raise ValueError(f"cortex: want [N, 2] or [N, 3] with N = {len(found.x)}, got {places.shape}")
    figure, panels = new_figure(1, 2, (10.5, 4.2))
    for axes, values, name, size in zip(panels, (found.x, found.y), "xy", reversed(image_shape), strict=True):
        # A perceptually uniform map, light in the middle of neither end: colour-blind readers tell all steps apart.
        shown = axes.scatter(
            places[:, 0], places[:, 1], c=values.detach().cpu().numpy(), s=12, cmap="viridis", vmin=0, vmax=size - 1
        )
        axes.set(xlabel="cortex, first axis (µm)", ylabel="cortex, second axis (µm)", aspect="equal")
        direction = "left to right" if name == "x" else "top to bottom"
        figure.colorbar(shown, ax=axes, label=f"{name} in the image (px), {direction}")
    figure.suptitle(f"Where {len(places)} neurons look, by their place in cortex", fontsize=12)
    return figure


@styled
def readout_weights(weights: ArrayLike, *, at_most: int = 200) -> Figure:
    """Weights of each neuron over the core's channels, and how many channels a neuron uses.

    Neurons are sorted by the channel of their largest weight. The right panel is the participation ratio
    (sum of squares)^2 / (sum of fourth powers): 1 for one channel, C for C equal ones.

    Args:
        weights: [N, C].
        at_most: neurons drawn on the left, at even steps of the order.
    """
    values = np.asarray(weights, dtype=float)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"weights: want [N, C], got {values.shape}")
    largest = np.abs(values).max(1, keepdims=True)
    scaled = np.divide(values, largest, out=np.zeros_like(values), where=largest > 0)
    order = np.lexsort((-np.abs(values).max(1), np.abs(values).argmax(1)))
    order = order[np.linspace(0, len(order) - 1, min(at_most, len(order))).round().astype(int)]
    figure, (left, right) = new_figure(1, 2, (10.5, 4.6), width_ratios=[1.7, 1])
    shown = left.imshow(scaled[order], cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    left.set(xlabel="channel of the core", ylabel="neuron, sorted by its largest channel", yticks=[])
    left.set_title(f"Weights of {len(order)} of {len(values)} neurons, each scaled")
    figure.colorbar(shown, ax=left, label="weight / largest of the neuron")
    squares = values**2
    fourth = (squares**2).sum(1)
    used = np.divide(squares.sum(1) ** 2, fourth, out=np.full(len(values), np.nan), where=fourth > 0)
    used = used[~np.isnan(used)]
    right.hist(used, bins=30, color=BLUE)
    right.set(xlabel="channels used (participation ratio)", ylabel="neurons")
    right.set_title(f"Median {np.median(used):.1f} of {values.shape[1]} channels" if len(used) else "No weights")
    return figure


def _ellipses(sx: Any, sy: Any, correlation: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Half axes and angle (degrees, from x towards y) of one standard deviation."""
    covariance = np.array([[sx**2, correlation * sx * sy], [correlation * sx * sy, sy**2]]).transpose(2, 0, 1)
    values, vectors = np.linalg.eigh(covariance)
    radii = np.sqrt(values.clip(min=0))
    return radii[:, 1], radii[:, 0], np.degrees(np.arctan2(vectors[:, 1, 1], vectors[:, 0, 1]))


def _points(figure: Figure, axes: Axes, x: Any, y: Any, values: ArrayLike | None, label: str) -> None:
    if values is None:
        axes.plot(x, y, "o", ms=3, mew=0, color=BLUE)
        return
    colours = np.asarray(values, dtype=float)
    known = ~np.isnan(colours)
    axes.plot(x[~known], y[~known], "x", ms=3, color=GREY)
    shown = axes.scatter(x[known], y[known], c=colours[known], s=10, cmap="viridis", zorder=3)
    figure.colorbar(shown, ax=axes, label=label, shrink=0.85)


def _frame(axes: Axes, image_shape: tuple[int, int]) -> None:
    height, width = image_shape
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="equal", xlabel="x (px)", ylabel="y (px)")
    for side in ("top", "right"):  # the frame is the edge of the image here
        axes.spines[side].set_visible(True)


def _size(image_shape: tuple[int, int], width: float, *, bar: bool) -> tuple[float, float]:
    return width + (1.0 if bar else 0.0), width * image_shape[0] / image_shape[1] + 0.9
