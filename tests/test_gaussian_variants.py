"""Layers made of FullGaussian2d: several outputs per neuron, positions that the image moves."""

import warnings
from functools import partial

import layer_checks
import pytest
import torch
from assertions import assert_as_accurate
from torch import nn
from torch.nn import functional as F

from v1fast import _eager as eager
from v1fast.readouts import FullGaussian2d, Gaussian3d, GeneralizedFullGaussianReadout2d, RemappedGaussian2d

SHAPE, N, P = (5, 7, 9), 12, 3
MATCH_IDS = [3, 1, 3, 8, 1, 0, 0, 8, 3, 1, 2, 2]  # five distinct ids
OPTIONS = {"bias": True, "init_mu_range": 0.8, "init_sigma": 0.3}
f32, f64 = torch.float32, torch.float64


def generalized(outputs=P, **options):
    layer = GeneralizedFullGaussianReadout2d(SHAPE, N, inferred_params_n=outputs, **OPTIONS | options)
    return layer_checks.differing(layer)


def remapped(**options):
    """A layer whose field is not the same everywhere."""
    return layer_checks.differing(RemappedGaussian2d(SHAPE, N, **OPTIONS | {"max_remap_amplitude": 0.5} | options))


def features(batch=4):
    return torch.randn(batch, *SHAPE)


def videos(batch=2, frames=3):
    return torch.randn(batch, SHAPE[0], frames, *SHAPE[1:])


# Several outputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({}, {"_mu": (1, N, 1, 2), "sigma": (1, N, 2, 2), "_features": (P, 1, 5, 1, N), "bias": (P, N)}),
        (
            {"bias": False, "gauss_type": "isotropic", "shared_features": {"match_ids": MATCH_IDS}},
            {
                "_mu": (1, N, 1, 2),
                "sigma": (1, N, 1, 1),
                "_features": (P, 1, 5, 1, 5),
                "scales": (P, 1, 1, 1, N),
                "feature_sharing_index": (N,),
            },
        ),
    ],
)
def test_state_dict_keys_and_shapes(options, keys):
    state = GeneralizedFullGaussianReadout2d(SHAPE, N, **{"bias": True, "inferred_params_n": P} | options).state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == keys


def test_the_bias_is_initialised():
    layer = GeneralizedFullGaussianReadout2d(SHAPE, N, True, inferred_params_n=P)
    assert (layer.bias == 0).all()
    mean = torch.rand(N, dtype=f64)
    layer = GeneralizedFullGaussianReadout2d(SHAPE, N, True, inferred_params_n=P, mean_activity=mean)
    assert layer.bias.equal(mean.float().expand(P, N))
    with torch.no_grad():
        layer.bias.add_(1)
    assert mean.max() <= 1
    layer.initialize(torch.arange(P * N).view(P, N))
    assert layer.bias.equal(torch.arange(P * N).view(P, N).float())
    GeneralizedFullGaussianReadout2d(SHAPE, N, False, inferred_params_n=P).initialize()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sampler", ["philox", "torch"])
@pytest.mark.parametrize("outputs", [1, P])
def test_every_output_reads_the_same_point(outputs, sampler, training):
    """Each is that of a FullGaussian2d of the same parameters and the same draws."""
    layer = generalized(outputs, sampler=sampler).train(training)
    x, shift = features(), torch.randn(4, 2) / 5
    torch.manual_seed(2)
    y = layer(x, shift=shift)
    assert y.shape == ((4, N) if outputs == 1 else (outputs, 4, N))
    one = FullGaussian2d(SHAPE, N, **OPTIONS, sampler=sampler).train(training)
    one._mu, one.sigma = layer._mu, layer.sigma
    for out, weights, bias in zip(y.view(outputs, 4, N), layer._features, layer.bias, strict=True):
        one._features, one.bias = nn.Parameter(weights), nn.Parameter(bias)
        torch.manual_seed(2)
        torch.testing.assert_close(out, one(x, shift=shift))
    y.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for name, p in layer.named_parameters() if training or name != "sigma")


@pytest.mark.parametrize("options", [{}, {"shared_features": {"match_ids": MATCH_IDS}}, {"bias": False}])
def test_generalized_in_float64(options):
    layer, x, shift = generalized(**options).eval(), features(), torch.randn(4, 2) / 5

    def expected(dtype):
        grid = layer.mu.to(dtype)[0, :, 0] + shift.to(dtype)[:, None]
        read = F.grid_sample(x.to(dtype), grid[:, :, None], align_corners=True)[..., 0]
        out = torch.einsum("bcn,pcn->pbn", read, layer.features.to(dtype)[:, 0, :, 0])
        return out if layer.bias is None else out + layer.bias.to(dtype)[:, None]

    assert_as_accurate(layer(x, shift=shift), expected(f32), expected(f64))


@pytest.mark.parametrize("sampler", ["philox", "torch"])
def test_generalized_weighted_features(sampler):
    layer, x, shift = generalized(sampler=sampler, return_weighted_features=True), features(), torch.randn(4, 2) / 5
    torch.manual_seed(4)
    weighted = layer(x, shift=shift)
    assert weighted.shape == (P, 4, 5, N)
    torch.manual_seed(4)
    torch.testing.assert_close(layer(x, shift=shift, out_idx=[4, 1]), weighted[..., [4, 1]])
    assert layer(videos()).shape == (P, 2, 3, 5, N)
    layer.return_weighted_features = False
    torch.manual_seed(4)
    torch.testing.assert_close(weighted.sum(-2) + layer.bias[:, None], layer(x, shift=shift))


@pytest.mark.parametrize("outputs", [1, P])
def test_no_axis_is_lost(outputs):
    layer = generalized(outputs)
    front = () if outputs == 1 else (outputs,)
    assert layer(features(1), out_idx=[3]).shape == (*front, 1, 1)
    assert layer(videos(1, 1), out_idx=[3]).shape == (*front, 1, 1, 1)


def test_generalized_shared_features():
    own = generalized(shared_features={"match_ids": MATCH_IDS})
    before = own._features.detach().clone()
    other = GeneralizedFullGaussianReadout2d(
        SHAPE,
        N,
        True,
        inferred_params_n=P,
        shared_features={"match_ids": MATCH_IDS, "shared_features": own.shared_features},
    )
    assert other._features is own._features
    assert own._features.equal(before)
    assert other.regularizer() == 0
    with pytest.raises(ValueError, match=r"shared_features: want \(3, 1, 5, 1, 5\), got \(1, 1, 5, 1, 5\)"):
        generalized(shared_features={"match_ids": MATCH_IDS, "shared_features": nn.Parameter(own._features[:1])})


def test_generalized_regularizer():
    layer_checks.assert_regularizes(generalized)


# Positions that the image moves ---------------------------------------------------------------------------------------


def test_remapped_state_dict_keys_and_shapes():
    state = RemappedGaussian2d(SHAPE, N, bias=True, remap_layers=2, remap_kernel=3).state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == {
        "_mu": (1, N, 1, 2),
        "sigma": (1, N, 2, 2),
        "_features": (1, 5, 1, N),
        "bias": (N,),
        "remap_field.conv0.weight": (5, 5, 3, 3),
        "remap_field.conv0.bias": (5,),
        "remap_field.norm0.weight": (5,),
        "remap_field.norm0.bias": (5,),
        "remap_field.norm0.running_mean": (5,),
        "remap_field.norm0.running_var": (5,),
        "remap_field.norm0.num_batches_tracked": (),
        "remap_field.conv2.weight": (2, 5, 3, 3),
        "remap_field.conv2.bias": (2,),
        "remap_field.norm2.weight": (2,),
        "remap_field.norm2.bias": (2,),
        "remap_field.norm2.running_mean": (2,),
        "remap_field.norm2.running_var": (2,),
        "remap_field.norm2.num_batches_tracked": (),
    }


@pytest.mark.parametrize(("layers", "kernel"), [(1, 1), (2, 3), (3, 5), (2, 4)])
@pytest.mark.parametrize("sample", [True, False])
def test_remapped_forward(layers, kernel, sample):
    layer = remapped(remap_layers=layers, remap_kernel=kernel, sampler="torch").eval()
    layer.train()(features(16))
    layer.eval()
    x, shift = features(), torch.randn(4, 2) / 5

    def expected(dtype):
        double = layer.double() if dtype == f64 else layer
        torch.manual_seed(3)
        noise = torch.empty(4, N, 1, 2).normal_().squeeze(2).to(dtype) if sample else None
        grid = eager.positions(double.mu[0, :, 0], double.sigma[0], None, noise, 4)
        field = 0.5 * double.remap_field(x.to(dtype))
        moved = grid + F.grid_sample(field, grid[:, :, None], align_corners=True)[..., 0].mT + shift.to(dtype)[:, None]
        read = F.grid_sample(x.to(dtype), moved[:, :, None], align_corners=True)[..., 0]
        return (read * double._features[0, :, 0]).sum(1) + double.bias

    torch.manual_seed(3)
    got, own, exact = layer(x, sample=sample, shift=shift), expected(f32), expected(f64)
    assert_as_accurate(got, own, exact)
    still = FullGaussian2d(SHAPE, N, **OPTIONS).double().eval()
    still.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("remap")})
    assert not torch.allclose(still(x.double(), shift=shift.double()), exact, atol=1e-2), "the field moves something"


def test_remapped_gradients_reach_everything():
    layer = remapped()
    layer(features()).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_remapped_initial_values():
    layer = RemappedGaussian2d(SHAPE, N, bias=True)
    assert layer.max_remap_amplitude == 0.2
    assert (layer.remap_field.conv0.bias == 0).all()
    before = layer.remap_field.conv0.weight.detach().clone()
    assert before.std().item() == pytest.approx((2 / (9 * 10)) ** 0.5, rel=0.2), "Xavier"
    layer.initialize(torch.ones(N))
    assert not layer.remap_field.conv0.weight.equal(before)
    assert (layer.bias == 1).all()


@pytest.mark.parametrize("make", [generalized, remapped])
def test_out_idx_is_a_choice_of_the_whole(make):
    layer, x = make(), features()

    def call(**options):
        torch.manual_seed(2)
        return layer(x, **options)

    layer_checks.assert_chooses_neurons(call, N, exactly=make is generalized)
    layer_checks.assert_refuses_out_idx(layer, x)


@pytest.mark.parametrize("make", [generalized, partial(generalized, 1), remapped])
def test_every_frame_of_a_video_is_an_image(make):
    layer_checks.assert_reads_frames(make().eval(), videos())


@pytest.mark.parametrize("make", [generalized, remapped])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_module_cast_as_a_whole(make, dtype):
    layer_checks.assert_casts_as_a_whole(make(), features(), dtype)


@pytest.mark.parametrize("make", [generalized, remapped])
def test_compiles(make):
    layer_checks.assert_compiles(make().eval(), features())


@pytest.mark.parametrize("make", [generalized, remapped])
def test_ensemble_by_vmap(make):
    layer_checks.assert_runs_under_vmap(make, features())


@pytest.mark.parametrize("make", [generalized, remapped])
def test_second_derivatives(make):
    layer_checks.assert_twice_differentiable(make().double(), features(2).double(), torch.full((2, 2), 0.1))


@pytest.mark.parametrize("make", [generalized, remapped])
def test_unknown_arguments_and_other_features(make):
    layer, x = make(unknown=True).eval(), features()
    assert layer(x, data_key="a", images=x).equal(layer(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"features: want .* = \(5, 7, 9\), got \(2, 5, 7, 8\)"):
            layer(torch.randn(2, 5, 7, 8))


def test_bad_arguments():
    with pytest.raises(ValueError, match="inferred_params_n: want at least 1, got 0"):
        generalized(0)
    with pytest.raises(ValueError, match="remap_layers: want at least 1, got 0"):
        remapped(remap_layers=0)
    with pytest.raises(ValueError, match=r"mean_activity: want \[N\] = \(3, 12\), got \(2, 12\)"):
        generalized(mean_activity=torch.zeros(2, N))


# The edge of the map ------------------------------------------------------------------------------------------------


def _clamp_of_torch_2_15(x, low, high=float("inf")):
    """It passes no gradient at exactly its bounds."""
    return torch.where((x > low) & (x < high), x, x.detach().clip(low, high))


@pytest.mark.parametrize("kind", ["remapped", "generalized", "3d"])
@pytest.mark.parametrize("edge", [-1.0, 1.0])
def test_a_mean_at_the_edge_has_a_gradient_on_every_torch(kind, edge, monkeypatch):
    """In all layers that compute positions themselves, ``sample_grid`` among them: otherwise it would never leave."""
    layer = {
        "remapped": remapped,
        "generalized": generalized,
        "3d": lambda: Gaussian3d(SHAPE, N, bias=True, init_mu_range=0.8, init_sigma_range=0.3),
    }[kind]().eval()
    parameter = layer.mu if kind == "3d" else layer._mu
    with torch.no_grad():
        parameter.fill_(edge)
    monkeypatch.setattr(torch.Tensor, "clamp", _clamp_of_torch_2_15)
    grid = layer.sample_grid(2, sample=False)
    (gradient,) = torch.autograd.grad(grid.sum(), parameter)
    assert gradient.eq(2).all()
