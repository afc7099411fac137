"""Readouts whose features neurons share, and whose positions come from cortex: the pooled one and the dense one."""

import numpy as np
import pytest
import torch

from v1fast import _eager as eager
from v1fast.models import FiringRateEncoder, Stacked2dCore
from v1fast.readouts import (
    ConfigurationError,
    DenseReadout,
    FullFactorized2d,
    FullGaussian2d,
    FullPointPooled2d,
    MultiReadoutSharedParametersBase,
    PointPooled2d,
)

SHAPE, N, STEPS = (5, 9, 13), 12, 2
IDS = np.array([3, 1, 3, 8, 1, 0, 0, 8, 3, 1, 2, 2])
SOURCE = np.random.default_rng(0).normal(size=(N, 3)) * 100 + 40
PREDICTED = {"grid_mean_predictor": {"hidden_layers": 1, "hidden_features": 6, "final_tanh": True}}
POOLED = {"pool_steps": STEPS, "bias": True, "pool_kern": 2, "init_range": 0.8}
SHARED = {"match_ids": IDS}
KINDS = {
    "pooled": lambda **options: FullPointPooled2d(SHAPE, N, **POOLED | options),
    "dense": lambda **options: DenseReadout(SHAPE, N, **{"bias": True, "init_noise": 1.0} | options),
    "gaussian": lambda **options: FullGaussian2d(SHAPE, N, bias=True, **options),
    "factorized": lambda **options: FullFactorized2d(SHAPE, N, bias=True, init_noise=1.0, **options),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def pooled(**options):
    layer = KINDS["pooled"](**options)
    with torch.no_grad():
        layer._features.normal_()
    return layer


def of_neuron(layer, neuron):
    """Feature weights of a neuron, scaled."""
    return layer.features[neuron] if layer.by_rows else layer.features[..., neuron]


@every_kind
def test_neurons_of_one_id_share_features_up_to_a_factor(kind):
    torch.manual_seed(0)
    own = KINDS[kind](shared_features=SHARED)
    with torch.no_grad():
        own.shared_features.normal_()
        own.scales.view(-1)[2] = 3
    assert own.shared_features.shape[0 if own.by_rows else -1] == 5
    assert of_neuron(own, 2).equal(3 * of_neuron(own, 0))
    assert of_neuron(own, 4).equal(of_neuron(own, 1))
    assert not of_neuron(own, 0).equal(of_neuron(own, 1))
    before = own.shared_features.detach().clone()
    other = KINDS[kind](shared_features=SHARED | {"shared_features": own.shared_features})
    assert own.shared_features.equal(before), "a readout that joins does not reset what is shared"
    assert other.feature_l1() == 0
    x = torch.randn(4, *SHAPE)
    other(x).square().sum().backward()
    assert own.shared_features.grad.abs().sum() > 0
    assert other.scales.grad.abs().sum() > 0
    chosen = [7, 2]
    torch.testing.assert_close(own.eval()(x, out_idx=chosen), own(x)[:, chosen])
    with pytest.raises(ValueError, match=r"shared_features: want .*, got \(1,\)"):
        KINDS[kind](shared_features=SHARED | {"shared_features": torch.nn.Parameter(torch.zeros(1))})


@every_kind
def test_sessions_share_features(kind):
    cls = type(KINDS[kind]())
    options = {"pooled": POOLED, "dense": {"bias": True}, "gaussian": {"bias": True}, "factorized": {"bias": True}}
    order = [4, 0, 7, 1, 2, 3, 5, 6, 11, 10, 9, 8]
    layer = MultiReadoutSharedParametersBase(
        {"a": SHAPE, "b": SHAPE},
        {"a": N, "b": N},
        cls,
        share_features=True,
        shared_match_ids={"a": IDS, "b": IDS[order]},
        **options[kind],
    )
    a, b = layer["a"], layer["b"]
    assert b.shared_features is a.shared_features
    with torch.no_grad():
        a.shared_features.normal_()
    for column, neuron in enumerate(order):
        assert of_neuron(b, column).equal(of_neuron(a, neuron))


def test_dense_weights_are_what_a_matrix_product_says():
    layer = KINDS["dense"](shared_features=SHARED)
    with torch.no_grad():
        layer.scales.normal_()
    x = torch.randn(4, *SHAPE)
    rows = np.unique(IDS, return_inverse=True)[1]
    weight = layer.weight[torch.from_numpy(rows)] * layer.scales
    torch.testing.assert_close(layer(x), x.flatten(1) @ weight.flatten(1).T + layer.bias)
    assert set(layer.state_dict()) == {"weight", "bias", "scales", "feature_sharing_index"}
    assert set(KINDS["dense"]().state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("tanh", [False, True])
def test_predicted_points_are_read_as_points_that_are_learned(tanh):
    torch.manual_seed(1)
    predictor = {"grid_mean_predictor": {"hidden_layers": 1, "final_tanh": tanh}, "source_grid": SOURCE}
    layer = pooled(**predictor, residual_reg_weight=0.5)
    with torch.no_grad():
        layer.mu_residual.normal_(0, 0.9)  # some leave the map
    assert layer.grid.abs().max() == 1
    x, shift = torch.randn(4, *SHAPE), torch.randn(4, 2) / 9
    weights = layer.features[0, :, 0].t().double()
    want = eager.pooled_readout(
        x.double(),
        layer.grid[0, :, 0].double(),
        weights,
        layer.bias.double(),
        shift.double(),
        pool_kernel=2,
        pool_steps=STEPS,
        align_corners=True,
    )
    torch.testing.assert_close(layer(x, shift=shift).double(), want, rtol=1e-4, atol=1e-5)
    plain = PointPooled2d(SHAPE, N, **POOLED)
    plain.load_state_dict({"grid": layer.grid, "features": layer.features, "bias": layer.bias})
    assert plain(x, shift=shift).equal(layer(x, shift=shift))
    layer(x).square().sum().backward()
    assert layer.mu_transform[0].weight.grad.abs().sum() > 0
    assert layer.mu_residual.grad.abs().sum() > 0


def test_without_options_it_is_the_pooled_readout():
    torch.manual_seed(0)
    full = FullPointPooled2d(SHAPE, N, **POOLED)
    torch.manual_seed(0)
    plain = PointPooled2d(SHAPE, N, **POOLED)
    x = torch.randn(4, *SHAPE)
    assert full(x).equal(plain(x))
    assert full.grid.equal(plain.grid)
    assert set(full.state_dict()) == {"_grid", "_features", "bias"}
    full.pool_steps = 1
    assert full._features.shape == (1, 10, 1, N)
    assert full(x).shape == (4, N)
    assert set(full.state_dict()) == {"_grid", "_features", "bias"}


def test_offsets_from_the_map_are_penalised():
    layer = pooled(**PREDICTED, source_grid=SOURCE, residual_reg_weight=0.5, feature_reg_weight=0.1)
    plain = layer.regularizer().item()
    assert plain == pytest.approx(0.1 * layer.features.abs().sum().item(), rel=1e-5)
    with torch.no_grad():
        layer.mu_residual.fill_(0.2)
    assert layer.regularizer().item() == pytest.approx(plain + 0.5 * 2 * N * 0.04, rel=1e-5)
    assert "predicted grid with residuals" in repr(layer)
    layer.initialize()
    assert layer.mu_residual.abs().sum() == 0


def test_new_neurons_are_placed_by_the_map_and_its_frame(tmp_path):
    torch.manual_seed(0)
    pytest.importorskip("safetensors")
    core = Stacked2dCore(1, 5, 5, 3, layers=2, stack=-1, pad_input=True)
    layer = FullPointPooled2d((5, 9, 13), N, **POOLED, **PREDICTED, source_grid=SOURCE)
    torch.testing.assert_close(layer.place(SOURCE), layer.grid[0, :, 0])
    new = SOURCE[:4] + 10
    other = FullPointPooled2d(
        SHAPE, 4, **POOLED, **PREDICTED, source_grid=new, shared_transform=layer.mu_transform,
        source_frame=layer.source_frame,
    )  # fmt: skip
    torch.testing.assert_close(other.grid[0, :, 0], layer.place(new))
    FiringRateEncoder(core, layer).save(tmp_path / "model.safetensors")
    loaded = FiringRateEncoder.load(tmp_path / "model.safetensors")
    assert loaded.readout.place(new).equal(layer.place(new))
    with pytest.raises(ValueError, match="place: want a readout with grid_mean_predictor"):
        pooled().place(new)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"residual_reg_weight": 1.0}, ConfigurationError, "residual_reg_weight: want it beside grid_mean_predictor"),
        ({"shared_transform": torch.nn.Linear(3, 2)}, ConfigurationError, "shared_transform: want it beside"),
        ({"grid_mean_predictor": {}}, ValueError, r"source_grid: want \[N, D\] for grid_mean_predictor, got None"),
        ({**PREDICTED, "source_grid": SOURCE[1:]}, ValueError, r"with N = 12, got \(11, 3\)"),
        ({**PREDICTED, "source_grid": np.full((N, 2), np.nan)}, ValueError, "source_grid: want finite positions"),
        (
            {"shared_features": {"match_ids": [1]}},
            ValueError,
            r"match_ids: want one id per neuron, \(12,\), got \(1,\)",
        ),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        pooled(**options)


def test_poolings_cannot_change_where_features_are_shared():
    layer = pooled(shared_features=SHARED)
    with pytest.raises(ValueError, match="pool_steps: want new readouts for another number, since features are shared"):
        layer.pool_steps = 1
    assert layer.pool_steps == STEPS
    assert layer(torch.randn(2, *SHAPE)).shape == (2, N)


@pytest.mark.parametrize(
    ("cls", "options", "name"),
    [
        (PointPooled2d, {"share_features": True}, "shared_features"),
        (PointPooled2d, {"grid_mean_predictor": {"hidden_layers": 1}}, "grid_mean_predictor"),
        (FullFactorized2d, {"grid_mean_predictor": {"hidden_layers": 1}}, "grid_mean_predictor"),
        (FullPointPooled2d, {"share_grid": True}, "shared_grid"),
    ],
)
def test_a_readout_that_would_ignore_what_is_shared_is_refused(cls, options, name):
    given = {"source_grids": {"a": SOURCE}, "shared_match_ids": {"a": IDS}, "grid_mean_predictor_type": "cortex"}
    layer = POOLED if "Pooled" in cls.__name__ else {"bias": True}
    with pytest.raises(ValueError, match=f"base_readout: want a readout that takes {name}, got {cls.__name__}"):
        MultiReadoutSharedParametersBase({"a": SHAPE}, {"a": N}, cls, **layer, **given, **options)
