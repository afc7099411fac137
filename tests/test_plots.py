"""What the figures say, rather than how they look."""

import builtins

import numpy as np
import pytest
from figures import drawn, texts

from v1fast import plots

pytest.importorskip("matplotlib")


def test_positions_counts_who_was_found():
    true = np.array([[10.0, 5.0], [20.0, 9.0], [30.0, 12.0], [40.0, 20.0]])
    learned = true + np.array([[0.3, 0.4], [1.0, 0.0], [0.0, 1.5], [3.0, 4.0]])
    figure = plots.positions(true, learned, (36, 64))
    said = texts(figure)
    assert "1.25 px" in said  # median of .5, 1, 1.5, 5
    assert "75% of neurons within 2 px" in said
    assert "within 2 px (3)" in said
    assert "farther than 2 px (1)" in said
    field = figure.axes[0]
    assert field.get_xlim() == (-0.5, 63.5)
    assert field.get_ylim() == (35.5, -0.5)  # the first row of an image is at the top
    assert drawn(figure)


def test_positions_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"true, learned: want \[N, 2\] both, got \(3, 2\) and \(4, 2\)"):
        plots.positions(np.zeros((3, 2)), np.zeros((4, 2)), (36, 64))


def test_learning_curve_says_how_far_it_got():
    figure = plots.learning_curve(
        [0.9, 0.5], [0.8, 0.6], [0.3, 0.6], [9.0, 0.5], loss_floor=0.35, correlation_ceiling=0.75
    )
    said = texts(figure)
    assert "0.25 nats above" in said
    assert "0.60 of 0.75" in said
    assert "0.50 px" in said
    assert drawn(figure)


def test_learning_curve_of_one_epoch():
    assert drawn(plots.learning_curve([0.9], [0.8], [0.3], [9.0], loss_floor=0.3, correlation_ceiling=0.7))


def test_speed_bars_say_the_ratio():
    times = {"small": {"eager": 10.0, "v1fast": 4.0}, "large": {"eager": 2500.0, "v1fast": 100.0}}
    figure = plots.speed_bars(times, note="one machine")
    said = texts(figure)
    for expected in ("2.5 times as fast\nsmall", "25.0 times as fast\nlarge", "10 ms", "2,500 ms", "one machine"):
        assert expected in said
    assert drawn(figure)
    assert drawn(plots.speed_bars({"one": {"eager": 1.0, "v1fast": 2.0}}))


@pytest.mark.parametrize("panels", [6, 5])
def test_example_neurons_run_from_worst_to_best(panels):
    rng = np.random.default_rng(0)
    observed = rng.poisson(2, (20, 50)).astype(float)
    correlation = np.linspace(-0.1, 0.9, 50)
    figure = plots.example_neurons(observed + rng.uniform(size=(20, 50)), observed, correlation, panels=panels)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    shown = [float(title.rpartition(" ")[2]) for title in titles]
    assert len(shown) == panels
    assert shown == sorted(shown)
    assert shown[0] < 0
    assert shown[-1] > 0.8
    assert "r = 0.40 (median" in texts(figure)
    assert drawn(figure)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    original = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "v1fast\[plot\]"'):
        plots.speed_bars({"one": {"eager": 1.0, "v1fast": 2.0}})
