"""Figures of what neurons respond to, and of what they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from v1fast._plot_style import new_figure, styled
from v1fast.insilico import ExcitingInputs, ReceptiveFields

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AT_MOST = 48  # neurons drawn


@styled
def exciting_inputs(found: ExcitingInputs, names: Sequence[object] | None = None, *, columns: int = 6) -> Figure:
    """Most exciting inputs side by side, the first channel of each, with the rates that they evoke.

    Grey is the background; white and black are the largest difference from it in any of the images.

    Args:
        found: of :func:`v1fast.insilico.most_exciting_inputs`; the first 48 neurons are drawn.
        names: of the neurons, M of them; by default their indices.
        columns: images in a row, at most.
    """
    images = found.images[:, 0].cpu().numpy()
    rates, grey = found.rates.cpu().numpy(), found.background_rates.cpu().numpy()
    labels = list(found.neurons.tolist() if names is None else names)
    titles = [f"{name}: {grey[m]:.2g} → {rates[m]:.3g}" for m, name in enumerate(labels)]
    figure, shown = _grid(images[:AT_MOST] - found.background, titles, columns, "gray")
    missing = f"; {found.undefined} without any" if found.undefined else ""
    figure.suptitle(
        f"Most exciting inputs of {shown} of {len(images)} neurons{missing}\nneuron: rate at grey → rate here"
    )
    return figure


@styled
def receptive_fields(fields: ReceptiveFields, names: Sequence[object] | None = None, *, columns: int = 6) -> Figure:
    """Mean gradients, the first channel of each: red where brighter pixels raise the rate, blue where they lower it.

    Args:
        fields: of :func:`v1fast.insilico.receptive_fields`; the first 48 neurons are drawn.
        names: of the neurons, M of them; by default their indices.
        columns: images in a row, at most.
    """
    images = fields.mean[:, 0].cpu().numpy()
    labels = list(fields.neurons.tolist() if names is None else names)
    scale = np.abs(images).max((1, 2), keepdims=True)
    figure, shown = _grid(images[:AT_MOST] / np.where(scale > 0, scale, 1)[:AT_MOST], labels, columns, "RdBu_r")
    figure.suptitle(f"Receptive fields of {shown} of {len(images)} neurons: mean gradient over images, each scaled")
    return figure


def _grid(images: NDArray[Any], titles: Sequence[object], columns: int, colours: str) -> tuple[Figure, int]:
    number = len(images)
    if number == 0:
        raise ValueError("images: want at least one neuron, got none")
    columns = min(columns, number)
    rows = -(-number // columns)
    height, width = images.shape[1:]
    figure, grid = new_figure(rows, columns, (2.1 * columns, (2.1 * height / width + 0.35) * rows + 0.7))
    cells = np.atleast_1d(grid).ravel()
    top = float(np.nanmax(np.abs(images), initial=0)) or 1.0
    for axes, image, title in zip(cells, images, titles, strict=False):
        axes.imshow(image, cmap=colours, vmin=-top, vmax=top, interpolation="nearest")
        axes.set_title(str(title), fontsize=9)
        if np.isnan(image).all():
            axes.text(0.5, 0.5, "undefined", transform=axes.transAxes, ha="center", va="center", fontsize=9)
    for axes in cells:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(True)  # the frame is the edge of the image here
    for axes in cells[number:]:
        axes.set_axis_off()
    return figure, number
