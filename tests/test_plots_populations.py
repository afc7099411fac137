"""What the figures of fitted populations say."""

import numpy as np
import pytest
import torch
from figures import drawn, texts
from torch import nn

from v1fast import plots
from v1fast.insilico import ReceptiveFields, most_exciting_inputs
from v1fast.models import Stacked2dCore, input_positions
from v1fast.models.geometry import Positions
from v1fast.readouts import FullGaussian2d

pytest.importorskip("matplotlib")


def gaussian(sigma):
    """Positions of a readout of one neuron whose sigma (2, 2) is this."""
    readout = FullGaussian2d((4, 11, 21), 1, bias=False, gauss_type="full")
    with torch.no_grad():
        readout.sigma.copy_(torch.tensor(sigma).reshape(1, 1, 2, 2))
    return input_positions(Stacked2dCore(1, 4, 3, 3, layers=1, stack=-1), readout)


def test_the_ellipse_is_that_of_the_sampled_positions():
    root = torch.tensor([[0.2, 0.1], [0.0, 0.3]])
    found = gaussian([[0.2, 0.1], [0.0, 0.3]])
    # in pixels: 10 to a unit of x, 5 to one of y
    covariance = torch.diag(torch.tensor([10.0, 5.0])) @ root @ root.T @ torch.diag(torch.tensor([10.0, 5.0]))
    assert found.spread_x.item() == pytest.approx(covariance[0, 0].sqrt().item(), rel=1e-6)
    assert found.spread_y.item() == pytest.approx(covariance[1, 1].sqrt().item(), rel=1e-6)
    correlation = covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt()
    assert found.correlation.item() == pytest.approx(correlation.item(), rel=1e-6)
    (ellipses,) = plots.visual_field(found, (11, 21)).axes[0].collections
    values, vectors = np.linalg.eigh(covariance.numpy())
    assert 2 * np.sqrt(values[::-1]) == pytest.approx([2 * ellipses._widths[0], 2 * ellipses._heights[0]], rel=1e-5)
    angle = np.arctan2(vectors[1, 1], vectors[0, 1])
    assert np.sin(ellipses._angles[0] - angle) == pytest.approx(0, abs=1e-5)


def positions(number):
    x = torch.linspace(3, 60, number)
    nothing = torch.full((number,), torch.nan)
    return Positions(x, x / 2, nothing, nothing, nothing, torch.zeros(number, dtype=torch.bool))


def test_the_visual_field_has_the_images_frame_and_counts():
    values = np.array([0.1, np.nan, 0.5, 0.6])
    figure = plots.visual_field(positions(4), (36, 64), values, label="correlation")
    assert figure.axes[0].get_ylim() == (35.5, -0.5)
    assert "4 neurons" in texts(figure)
    assert "ellipses" not in texts(figure)  # these positions are not sampled
    assert figure.axes[1].get_ylabel() == "correlation"
    assert drawn(figure)


def test_retinotopy_names_axes_and_refuses_others():
    figure = plots.retinotopy(np.random.default_rng(0).uniform(0, 900, (5, 3)), positions(5), (36, 64))
    said = texts(figure)
    assert "5 neurons" in said
    assert {axes.get_xlabel() for axes in figure.axes[:2]} == {"cortex, first axis (µm)"}
    assert drawn(figure)
    with pytest.raises(ValueError, match=r"cortex: want \[N, 2\] or \[N, 3\] with N = 5, got \(4, 2\)"):
        plots.retinotopy(np.zeros((4, 2)), positions(5), (36, 64))


def test_weights_are_sorted_and_counted():
    weights = np.zeros((3, 4))
    weights[0, 3], weights[1, 0], weights[2] = 1.0, -2.0, 0.5
    figure = plots.readout_weights(weights)
    image = figure.axes[0].images[0].get_array()
    assert np.array_equal(image, [[-1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]])
    assert "Median 1.0 of 4 channels" in texts(figure)
    assert drawn(figure)
    assert drawn(plots.readout_weights(np.zeros((2, 4))))
    with pytest.raises(ValueError, match=r"weights: want \[N, C\], got \(4,\)"):
        plots.readout_weights(np.zeros(4))


def test_images_are_named_with_their_rates():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3, bias=False))
    with torch.no_grad():
        model[1].weight[2] = 0
    found = most_exciting_inputs(model, (6, 8), norm=2.0, steps=50)
    figure = plots.exciting_inputs(found, ["a", "b", "c"], columns=2)
    said = texts(figure)
    assert f"a: 0 → {found.rates[0]:.3g}" in said
    assert "undefined" in said
    assert "3 of 3 neurons; 1 without any" in said
    assert drawn(figure)


def test_fields_of_silent_neurons_are_blank():
    mean = torch.zeros(2, 1, 6, 8)
    mean[0, 0, 2, 3] = -0.5
    fields = ReceptiveFields(mean, mean.abs(), mean[:, None, :0], mean[:, 0, 0, :0], torch.tensor([4, 7]))
    figure = plots.receptive_fields(fields)
    assert figure.axes[0].images[0].get_array().min() == -1
    assert not figure.axes[1].images[0].get_array().any()
    assert [axes.get_title() for axes in figure.axes] == ["4", "7"]
    assert drawn(figure)
