"""What the figures of dissimilarity matrices say, rather than how they look."""

import numpy as np
import pytest
from figures import drawn, texts

from v1fast import functional, rsa

pytest.importorskip("matplotlib")
from v1fast.rsa import plots

DRAW = np.random.default_rng(0)


def rdm(stimuli=12):
    return functional.rdm(DRAW.normal(size=(stimuli, 20)))


def test_heat_maps_show_values_or_ranks():
    first, second = rdm(), 50 * rdm()
    figure = plots.rdm_heatmaps({"V1": first, "pixels": second}, percentiles=True, title="two systems")
    said = texts(figure)
    for expected in ("V1", "pixels", "two systems", "percentile", "stimulus"):
        assert expected in said
    image = figure.axes[1].images[0]
    assert image.get_clim() == (0, 100)
    shown = image.get_array()
    i, j = np.triu_indices(12, 1)
    assert sorted(shown[i, j]) == pytest.approx(np.linspace(0, 100, 66))
    assert (np.argsort(shown[i, j]) == np.argsort(second[i, j])).all()
    assert np.ma.getmaskarray(shown).diagonal().all()
    assert drawn(figure)
    figure = plots.rdm_heatmaps({"V1": first})
    np.testing.assert_allclose(figure.axes[0].images[0].get_array()[i, j], first[i, j])
    assert figure.axes[0].images[0].get_clim() == (0, first.max())
    first[3], first[:, 3] = np.nan, np.nan
    assert drawn(plots.rdm_heatmaps({f"system {k}": first for k in range(5)}, percentiles=True))


def test_heat_maps_name_blocks_and_thin_out_what_has_no_pixel():
    groups = ["faces"] * 5 + ["houses"] * 7
    figure = plots.rdm_heatmaps({"IT": rdm(), "V1": rdm()}, groups=groups)
    ticks = figure.axes[0].get_xticks()
    assert ticks.tolist() == [2.5, 8.5]
    assert "houses" in texts(figure)
    assert drawn(figure)
    large = plots.rdm_heatmaps({"many": rdm(1500)}).axes[0].images[0]
    assert large.get_array().shape == (750, 750)
    assert large.get_extent() == [0, 1500, 1500, 0]
    for bad in ({"rdms": {"a": rdm(), "b": rdm(5)}}, {"groups": groups[1:]}):
        with pytest.raises(ValueError, match="rdms, groups: want the same stimuli in all"):
            plots.rdm_heatmaps(**{"rdms": {"a": rdm()}, **bad})


def test_bars_bear_their_values_and_the_ceiling():
    values = {"V1": 0.31, "a model with a long name": -0.12, "pixels": 0.05, "more": 0.2, "fifth": 0.1}
    intervals = [[0.2, -0.3, 0, 0.1, 0], [0.4, 0, 0.1, 0.3, 0.2]]
    figure = plots.similarity_bars(values, intervals=intervals, ceiling=(0.5, 0.62), title="to IT")
    said = texts(figure)
    for expected in ("0.31", "-0.12", "noise ceiling 0.50 to 0.62", "to IT", "pixels"):
        assert expected in said
    low, high = figure.axes[0].get_ylim()
    assert low < -0.34
    assert high > 0.62
    assert drawn(figure)
    assert drawn(plots.similarity_bars({"one": 0.0}))


def test_rows_curves_and_maps_are_drawn():
    axis = np.arange(12) * 15.0
    places, rows = rsa.rows_nearest(rdm(), axis, [0, 44, 90])
    figure = plots.rdm_rows(axis, {"V1": rows, "pixels": rows}, places, axis="orientation (degrees)", title="rows")
    for expected in ("from 0", "from 45", "from 90", "orientation (degrees)", "pixels", "rows"):
        assert expected in texts(figure)
    assert drawn(figure)
    tuning = rsa.tuning_curves(DRAW.random((60, 11)), np.tile(axis, 5))
    figure = plots.tuning_curves(tuning, axis="orientation (degrees)", title="tuning")
    assert len([axes for axes in figure.axes if axes.get_title()]) == 8
    assert drawn(figure)
    chosen = plots.tuning_curves(tuning, [3, 5])
    assert [axes.get_title() for axes in chosen.axes] == ["neuron 3", "neuron 5"]
    np.testing.assert_allclose(chosen.axes[1].lines[0].get_ydata(), tuning.mean[:, 5])
    maps = {"a": DRAW.random((12, 2)), "b": DRAW.random((12, 3))}
    figure = plots.low_dimensional_map(maps, axis, period=180, label="orientation (degrees)")
    assert "165" in texts(figure)
    assert figure.axes[0].collections[0].get_clim() == (0, 180)
    assert drawn(figure)
    groups = ["faces", "houses", "bodies"] * 4
    figure = plots.low_dimensional_map(maps, groups, label="kind", title="groups")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["faces", "houses", "bodies"]
    assert drawn(figure)
