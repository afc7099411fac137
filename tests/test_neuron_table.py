"""One row for each neuron; positions in pixels of the image."""

import builtins
import csv

import numpy as np
import pytest
import torch

from v1fast import metrics, readouts
from v1fast.models import Stacked2dCore, input_positions
from v1fast.models.geometry import input_grid

CORE = {"input_channels": 1, "hidden_channels": 4, "layers": 2, "stack": -1}
CORES = {
    "padded": {"input_kern": 5, "hidden_kern": 3},
    "unpadded": {"input_kern": 5, "hidden_kern": 3, "pad_input": False},
    "strides": {"input_kern": 5, "hidden_kern": 3, "pad_input": False, "input_stride": 2, "stride": 2},
    "dilated, odd padding": {"input_kern": 5, "hidden_kern": 3, "hidden_dilation": 2, "hidden_padding": 1},
    "separable": {"input_kern": 7, "hidden_kern": 5, "pad_input": False, "depth_separable": True},
    "attention": {"input_kern": 7, "hidden_kern": 5, "pad_input": False, "attention_conv": True},
    "first layer of two": {"input_kern": 5, "hidden_kern": 9, "hidden_padding": 0, "stack": [0]},
}


def seen(core, shape, row, column):
    """Centre (x, y) of the pixels that a pixel of the map depends on."""
    image = torch.randn(1, 1, *shape, requires_grad=True)
    core(image)[0, :, row, column].sum().backward()
    pixels = image.grad[0, 0].nonzero().double()
    return ((pixels.amin(0) + pixels.amax(0)) / 2).flip(0)


@pytest.mark.parametrize("name", CORES)
def test_positions_are_the_centres_of_what_is_seen(name):
    core, shape = Stacked2dCore(**CORE | CORES[name]).eval(), (41, 53)
    _, channels, *size = core(torch.zeros(1, 1, *shape)).shape
    readout = readouts.FullGaussian2d((channels, *size), 2, bias=True)
    row, column = size[0] // 2, size[1] // 2 - 1  # far from the border, where windows are whole
    with torch.no_grad():
        readout.mu[0, :, 0] = torch.tensor([[2 * column / (size[1] - 1) - 1, 2 * row / (size[0] - 1) - 1], [-1, 0.0]])
    found = input_positions(core, readout)
    got = torch.stack([found.x[0], found.y[0]])
    torch.testing.assert_close(got, seen(core, shape, row, column), rtol=0, atol=1e-5)
    assert found.at_clamp.tolist() == [False, True]


def test_an_unpadded_core_does_not_reach_the_border():
    """The sizes of Sensorium and of Lurz et al. 2020."""
    for kernel, first, last in ((9, 4, 59), (15, 7, 56)):
        core = Stacked2dCore(1, 4, kernel, 7, layers=4, pad_input=False, stack=-1, depth_separable=True)
        readout = readouts.PointPooled2d(
            (4, 37 - kernel, 65 - kernel), 2, pool_steps=0, bias=True, pool_kern=2, init_range=0.1
        )
        with torch.no_grad():
            readout.grid[0, :, 0] = torch.tensor([[-1.0, -1], [1, 1]])
        found = input_positions(core, readout)
        assert found.x.tolist() == [first, last]
        assert found.y.tolist() == [first, 35 - first]
        assert found.spread_x.isnan().all()
        assert found.at_clamp.all()


def test_spreads_are_those_of_the_positions_drawn():
    core = Stacked2dCore(1, 4, 5, 3, layers=2, stack=-1, pad_input=False, input_stride=2)
    shape, grid = (4, 11, 21), ((2.0, 2.0), (2.0, 2.0))
    assert input_grid(core) == grid
    for kind in ("full", "uncorrelated", "isotropic"):
        readout = readouts.FullGaussian2d(shape, 3, bias=True, gauss_type=kind, init_sigma=0.1, sampler="torch")
        with torch.no_grad():
            readout.sigma.uniform_(0.02, 0.1)
        found = input_positions(core, readout)
        drawn = readout.sample_grid(20_000, sample=True)[:, :, 0]
        want = drawn.double().std(0) * torch.tensor([20.0, 10.0]) / 2 * 2
        torch.testing.assert_close(torch.stack([found.spread_x, found.spread_y], 1), want, rtol=0.03, atol=0)


def test_corners_not_aligned():
    core = Stacked2dCore(1, 4, 5, 3, layers=2, stack=-1)
    readout = readouts.FullGaussian2d((4, 10, 20), 2, bias=True, align_corners=False)
    with torch.no_grad():
        readout.mu[0, :, 0] = torch.tensor([[-1.0, 0], [1, 0.1]])
    found = input_positions(core, readout)
    torch.testing.assert_close(found.x, torch.tensor([-0.5, 19.5], dtype=torch.float64))
    torch.testing.assert_close(found.y, torch.tensor([4.5, 5.0], dtype=torch.float64), rtol=0, atol=1e-6)


def test_a_readout_without_positions_is_refused():
    core = Stacked2dCore(1, 4, 5, 3, layers=2, stack=-1)
    with pytest.raises(ValueError, match=r"readout: want one with positions mu or grid \(1, N, 1, 2\), got FullFact"):
        input_positions(core, readouts.FullFactorized2d((4, 10, 20), 2, bias=True))


def table():
    responses = torch.poisson(torch.full((30, 3), 4.0))
    responses[:, 1] = 0.0
    results = metrics.evaluate(responses, torch.rand(30, 3), torch.arange(30) % 10)
    core = Stacked2dCore(1, 4, 5, 3, layers=2, stack=-1)
    positions = input_positions(core, readouts.FullGaussian2d((4, 10, 20), 3, bias=True))
    return metrics.neuron_table(
        results, unit=[11, 12, 13], area=["V1", "V1", "LM"], layer=["L2/3"] * 3, positions=positions
    ), results


def test_the_file_reads_back_as_it_was(tmp_path):
    written, results = table()
    assert list(written) == ["unit", "area", "layer", *results, "x", "y", "spread_x", "spread_y", "at_clamp"]
    path = tmp_path / "neurons.csv"
    path.write_text("old")
    metrics.write_table(path, written)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [path.name for path in tmp_path.iterdir()] == ["neurons.csv"]
    assert [row["area"] for row in rows] == ["V1", "V1", "LM"]
    assert [row["at_clamp"] for row in rows] == ["False"] * 3
    for name in (*results, "x", "spread_y"):
        np.testing.assert_array_equal([float(row[name]) for row in rows], written[name])
    assert rows[1]["single_trial_correlation"] == "nan"


def test_parquet(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    written, _ = table()
    metrics.write_table(tmp_path / "neurons.parquet", written)
    assert [path.name for path in tmp_path.iterdir()] == ["neurons.parquet"]
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "neurons.parquet"), pandas.DataFrame(written))


@pytest.mark.parametrize("absent", ["pandas", "pyarrow"])
def test_parquet_without_what_it_needs(absent, tmp_path, monkeypatch):
    if absent != "pandas":
        pytest.importorskip("pandas")
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        if name == absent:
            raise ModuleNotFoundError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas pyarrow"):
        metrics.write_table(tmp_path / "neurons.parquet", {"unit": [1]})
    assert not list(tmp_path.iterdir())


def test_bad_tables(tmp_path):
    result = metrics.Result(torch.zeros(3))
    assert list(metrics.neuron_table({"a": result})["unit"]) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"area: want \[N\] = \(3,\), got \(2,\)"):
        metrics.neuron_table({"a": result}, area=["V1", "V1"])
    with pytest.raises(ValueError, match="metrics: 'unit' is the name of another column"):
        metrics.neuron_table({"unit": result})
    with pytest.raises(ValueError, match=r"neurons.txt: want a name that ends in .csv or .parquet"):
        metrics.write_table(tmp_path / "neurons.txt", {})
