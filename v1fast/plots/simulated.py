"""Figures of a fit to a simulated population, and of times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from v1fast._plot_style import BLUE, GREEN, GREY, ORANGE, VERMILLION, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


@styled
def positions(true: ArrayLike, learned: ArrayLike, image_shape: tuple[int, int], *, far: float = 2.0) -> Figure:
    """True and learned receptive-field centres over the visual field, and how far apart they are.

    Args:
        true: [N, 2], x then y, in pixels.
        learned: [N, 2], likewise.
        image_shape: (H, W), in pixels.
        far: distance in pixels from which a position counts as not recovered and is drawn in another colour.
    """
    wanted, got = np.asarray(true), np.asarray(learned)
    if wanted.shape != got.shape or wanted.ndim != 2 or wanted.shape[1] != 2:
        raise ValueError(f"true, learned: want [N, 2] both, got {wanted.shape} and {got.shape}")
    error = np.linalg.norm(got - wanted, axis=1)
    lost = error > far
    figure, (field, spread) = new_figure(1, 2, (11.5, 4.2), width_ratios=[1.9, 1])
    field.plot(*wanted.T, "o", ms=4.5, mfc="none", mec="black", mew=0.7, label=f"true ({len(wanted)})", zorder=3)
    _pairs(field, wanted[~lost], got[~lost], BLUE, f"learned, within {far:g} px ({(~lost).sum()})")
    _pairs(field, wanted[lost], got[lost], VERMILLION, f"learned, farther than {far:g} px ({lost.sum()})")
    height, width = image_shape
    field.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="equal", xlabel="x (px)", ylabel="y (px)")
    field.set_title(f"Learned positions lie {np.median(error):.2f} px from the true ones (median)")
    for side in ("top", "right"):  # the frame is the edge of the image here
        field.spines[side].set_visible(True)
    figure.legend(*field.get_legend_handles_labels(), loc="outside lower left", ncols=3, handletextpad=0.3)

    spread.ecdf(error, color=BLUE, lw=2)
    spread.axvline(far, color=GREY, ls="--", lw=1)
    spread.set(xscale="log", ylim=(0, 1), xlabel="distance from the true position (px)", ylabel="fraction of neurons")
    spread.set_title(f"{1 - lost.mean():.0%} of neurons within {far:g} px")
    _plain_log_axis(spread.xaxis)
    return figure


@styled
def learning_curve(
    train_loss: Sequence[float],
    validation_loss: Sequence[float],
    correlation: Sequence[float],
    position_error: Sequence[float],
    *,
    loss_floor: float,
    correlation_ceiling: float,
) -> Figure:
    """Loss, validation correlation and position error, one value for each epoch.

    Args:
        train_loss, validation_loss: Poisson loss, nats for each response.
        correlation: mean over neurons of the validation correlation.
        position_error: median over neurons of the distance to the true position, pixels.
        loss_floor: validation loss of the true rates.
        correlation_ceiling: validation correlation of the true rates.
    """
    epochs = np.arange(1, len(train_loss) + 1)
    figure, (loss, similarity, distance) = new_figure(1, 3, (12.5, 3.8))
    loss.plot(epochs, train_loss, color=BLUE, lw=2, label="training, positions sampled")
    loss.plot(epochs, validation_loss, color=VERMILLION, lw=2, label="validation, mean positions")
    loss.axhline(loss_floor, color="black", ls=":", lw=1.5, label="validation, true rates")
    loss.set(ylabel="Poisson loss (nats per response)")
    loss.set_title(f"Loss ends {min(validation_loss) - loss_floor:.2f} nats above the true rates'")
    loss.legend(fontsize=10)
    similarity.plot(epochs, correlation, color=VERMILLION, lw=2, label="model")
    similarity.axhline(correlation_ceiling, color="black", ls=":", lw=1.5, label="true rates")
    similarity.set(ylabel="correlation with single responses", ylim=(0, None))
    similarity.set_title(f"Validation correlation reaches {max(correlation):.2f} of {correlation_ceiling:.2f}")
    similarity.legend(loc="lower right", title="mean over neurons")
    distance.plot(epochs, position_error, color=BLUE, lw=2)
    distance.set(yscale="log", ylabel="distance from the true position (px)")
    distance.set_title(f"Position error falls to {min(position_error):.2f} px")
    _plain_log_axis(distance.yaxis, steps=(1, 2, 5))
    for axes in (loss, similarity, distance):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    distance.annotate("median over neurons", (0.97, 0.92), xycoords="axes fraction", ha="right", color=GREY)
    return figure


@styled
def speed_bars(milliseconds: Mapping[str, Mapping[str, float]], *, note: str = "") -> Figure:
    """Step times side by side, one panel for each shape.

    Args:
        milliseconds: for each shape's name, the time by each way of computing, the slower ("eager") way first.
        note: what the times depend on, written below.
    """
    figure, panels = new_figure(1, len(milliseconds), (1.5 + 4.2 * len(milliseconds), 3.9))
    for axes, (shape, times) in zip(np.atleast_1d(panels), milliseconds.items(), strict=True):
        names, values = list(times), np.array(list(times.values()))
        bars = axes.bar(names, values, color=[GREY, BLUE, GREEN, ORANGE][: len(names)], width=0.6)
        axes.bar_label(
            bars, [f"{value:,.3g} ms" if value < 1000 else f"{value:,.0f} ms" for value in values], padding=3
        )
        axes.set(ylabel="forward + backward (ms)", ylim=(0, 1.15 * values.max()))
        axes.set_title(f"{names[-1]} is {values[0] / values[-1]:.1f} times as fast\n{shape}")
    if note:
        figure.supxlabel(note, fontsize=9, color="#444444")
    return figure


@styled
def example_neurons(predicted: ArrayLike, observed: ArrayLike, correlation: ArrayLike, *, panels: int = 6) -> Figure:
    """Predicted against observed mean responses to held-out images, for neurons from the worst to the best predicted.

    Args:
        predicted: [T, N], expected spikes per image.
        observed: [T, N], mean over repeats.
        correlation: [N], between the two; neurons whose correlation is NaN are left out.
        panels: number of neurons drawn, at even steps of the correlation's rank.
    """
    rates, means, r = np.asarray(predicted), np.asarray(observed), np.asarray(correlation)
    ranks = np.linspace(0.05, 0.95, panels)
    defined = np.flatnonzero(~np.isnan(r))
    chosen = defined[np.argsort(r[defined])][np.round(ranks * (len(defined) - 1)).astype(int)]
    columns = -(-panels // 2)
    figure, grid = new_figure(2, columns, (3.4 * columns, 6.6))
    for axes, neuron in zip(np.ravel(grid), chosen, strict=False):
        top = 1.05 * max(rates[:, neuron].max(), means[:, neuron].max()) or 1.0  # of a neuron that is silent
        axes.plot([0, top], [0, top], color=GREY, lw=1, ls="--")
        axes.plot(rates[:, neuron], means[:, neuron], "o", ms=4, color=BLUE, alpha=0.45, mew=0)
        axes.set(xlim=(0, top), ylim=(0, top), aspect="equal")
        axes.set_title(f"neuron {neuron}: r = {r[neuron]:.2f}")
    for axes in np.ravel(grid)[panels:]:
        axes.set_axis_off()
    figure.supxlabel("predicted (spikes per image)")
    figure.supylabel("observed, mean of repeats (spikes per image)")
    figure.suptitle(
        f"Held-out images are predicted with r = {np.nanmedian(r):.2f} (median over neurons)\n"
        f"{panels} neurons from the 5th to the 95th percentile of r; each dot is an image"
    )
    return figure


def _pairs(axes: Axes, wanted: Any, got: Any, colour: str, label: str) -> None:
    for start, end in zip(wanted, got, strict=True):
        axes.plot([start[0], end[0]], [start[1], end[1]], color=colour, lw=0.7, alpha=0.7)
    axes.plot(*got.T, "o", ms=3, color=colour, mew=0, label=label)


def _plain_log_axis(axis: Axis, steps: Sequence[float] = (1,)) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
