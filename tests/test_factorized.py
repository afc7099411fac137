"""The factorised layers: constructor, state, quirks and repairs of the peers' classes, and their meaning."""

import copy
from functools import partial

import layer_checks
import pytest
import torch
from assertions import assert_as_accurate
from torch.nn import functional as F

from v1fast import readouts
from v1fast.readouts import FullFactorized2d, _masks

SHAPE, N, FRAMES = (5, 6, 9), 12, 3
MATCH_IDS = [3, 1, 3, 8, 1, 0, 0, 8, 3, 1, 2, 2]  # five distinct ids
f32, f64 = torch.float32, torch.float64


def readout(**options):
    """A layer whose weights are of the size of one."""
    layer = FullFactorized2d(SHAPE, N, **{"bias": True, "init_noise": 1.0} | options)
    return layer_checks.with_random_bias(layer)


def features(batch=4):
    return torch.randn(batch, *SHAPE)


def videos(batch=2):
    return torch.randn(batch, SHAPE[0], FRAMES, *SHAPE[1:])


def contracted(x, mask, weight, bias=None, shift=None):
    """What all layers of this kind mean, by one sum."""
    out = torch.einsum("bchw,nhw,nc->bn", layer_checks.shifted(x, shift), mask, weight)
    return out if bias is None else out + bias


def expected(layer, x, shift=None, dtype=f64):
    """From the parameters of FullFactorized2d."""
    masks, weight = layer.spatial.to(dtype), layer._features.to(dtype)
    if layer._shared_features:
        weight = layer.scales.to(dtype) * weight[layer.feature_sharing_index]
    if layer.normalize:
        masks = masks / (masks.flatten(1).norm(dim=1)[:, None, None] + 1e-6)
        masks = masks.relu() if layer.constrain_pos else masks
    if layer.positive_spatial:
        masks = masks.abs()
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return contracted(x.to(dtype), masks, weight, bias, None if shift is None else shift.to(dtype))


# The order of the sums ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "channels", "pixels", "order"),
    [
        (4, 5, 54, "_pixels_first"),
        (60, 5, 54, "_images_last"),
        (4, 60, 54, "_channels_first"),
        (1, 1, 1, "_pixels_first"),
    ],
)
@pytest.mark.parametrize("outputs", [(), (2,)])
def test_every_order_of_the_sums(images, channels, pixels, order, outputs):
    assert _masks._cheapest(images, channels, pixels).__name__ == order
    x, mask = torch.randn(images, channels, pixels), torch.randn(N, pixels)
    weight = torch.randn(*outputs, N, channels)
    leaves = [t.requires_grad_() for t in (x, mask, weight)]
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    singles = [t.detach().clone().requires_grad_() for t in leaves]
    towards = torch.randn(*outputs, images, N)
    results = []
    for tensors, compute in ((leaves, _masks.masked_sum), (singles, naive), (doubles, naive)):
        out = compute(*tensors)
        results.append([out, *torch.autograd.grad(out, tensors, towards.to(out.dtype))])
    for name, got, own, exact in zip(("out", "x", "mask", "weight"), *results, strict=True):
        assert_as_accurate(got.detach(), own.detach(), exact.detach(), name)


def naive(x, mask, weight):
    return torch.einsum("bcs,ns,...nc->...bn", x, mask, weight)


def test_the_tensor_between_the_sums_is_the_smallest():
    """Of frames there are more than pixels: nothing of frames x channels x neurons is made."""
    x, mask, weight = torch.randn(400, 5, 54), torch.randn(N, 54), torch.randn(N, 5)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        _masks.masked_sum(x, mask, weight)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest <= 4 * max(N * 5 * 54, 400 * N)
    assert largest < 4 * 400 * 5 * N


# FullFactorized2d -----------------------------------------------------------------------------------------------------


def test_names():
    assert readouts.SpatialXFeatureLinear is FullFactorized2d
    assert readouts.FullSXF is FullFactorized2d


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({}, {"_features": (N, 5), "spatial": (N, 6, 9), "bias": (N,)}),
        ({"bias": False}, {"_features": (N, 5), "spatial": (N, 6, 9)}),
        (
            {"shared_features": {"match_ids": MATCH_IDS}},
            {
                "_features": (5, 5),
                "scales": (N, 1),
                "spatial": (N, 6, 9),
                "bias": (N,),
                "feature_sharing_index": (N,),
            },
        ),
    ],
)
def test_state_dict_keys_and_shapes(options, keys):
    state = FullFactorized2d(SHAPE, N, **{"bias": True} | options).state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == keys


def test_initial_values():
    layer = FullFactorized2d((50, 6, 9), 100, bias=True, init_noise=0.1)
    for weights in (layer.spatial, layer._features):
        assert abs(weights.mean()) < 0.01
        assert 0.09 < weights.std() < 0.11
    assert (layer.bias == 0).all()
    assert layer.spatial_and_feature_reg_weight == 1.0
    assert layer.reg_mode == "legacy"
    layer_checks.assert_copies_mean_activity(partial(FullFactorized2d, SHAPE, N, bias=True))


OPTIONS = {
    "plain": {},
    "without bias": {"bias": False},
    "not normalized": {"normalize": False},
    "absolute masks": {"positive_spatial": True},
    "positive, normalized": {"constrain_pos": True},
    "positive": {"constrain_pos": True, "normalize": False},
    "positive features": {"positive_weights": True},
    "shared features": {"shared_features": {"match_ids": MATCH_IDS}},
    "positive shared features": {"shared_features": {"match_ids": MATCH_IDS}, "constrain_pos": True},
}


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_forward(options, moved):
    layer = readout(**OPTIONS[options])
    x, shift = features(), torch.randn(4, 2) / 2 if moved else None
    got = layer(x, shift=shift)  # first: it brings the parameters into their range
    assert_as_accurate(got, expected(layer, x, shift, f32), expected(layer, x, shift))
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert_as_accurate(layer(channels_last, shift=shift), got, expected(layer, x, shift))


@pytest.mark.parametrize("options", OPTIONS)
def test_gradients(options):
    layer = readout(**OPTIONS[options]).double()
    x, shift = features().double().requires_grad_(), (torch.randn(4, 2) / 2).double().requires_grad_()
    layer(x)
    leaves = [x, shift, *layer.parameters()]
    towards = torch.randn(4, N, dtype=f64)
    got = torch.autograd.grad(layer(x, shift=shift), leaves, towards)
    want = torch.autograd.grad(expected(layer, x, shift), leaves, towards)
    for (name, _), a, b in zip([("x", 0), ("shift", 0), *layer.named_parameters()], got, want, strict=True):
        if name == "spatial" and layer.constrain_pos and layer.normalize:
            assert not torch.allclose(a, b), "the gradient passes the cut"
            relaxed = copy.deepcopy(layer)
            relaxed.constrain_pos = False
            (b,) = torch.autograd.grad(expected(relaxed, x, shift), [relaxed.spatial], towards)
        torch.testing.assert_close(a, b, msg=name)


def test_what_is_positive():
    layer = readout(constrain_pos=True, normalize=False, shared_features={"match_ids": MATCH_IDS})
    with torch.no_grad():
        layer.scales.copy_(torch.randn(N, 1))
    parameters = {name: (p, p.data_ptr()) for name, p in layer.named_parameters()}
    layer(features())
    for name in ("spatial", "_features", "scales"):
        assert (getattr(layer, name) >= 0).all()
        assert (getattr(layer, name) > 0).any()
    assert all(p is getattr(layer, name) and p.data_ptr() == at for name, (p, at) in parameters.items())
    layer = readout(positive_weights=True)
    layer(features())
    assert (layer._features >= 0).all()
    assert (layer.spatial < 0).any()
    with pytest.warns(UserWarning, match="positive_spatial has no effect beside constrain_pos"):
        readout(positive_spatial=True, constrain_pos=True)


def test_a_mask_of_zeros_has_a_gradient():
    layer = readout()
    with torch.no_grad():
        layer.spatial[0] = 0
    layer(features()).sum().backward()
    assert layer.spatial.grad.isfinite().all()


def test_a_mask_of_one_pixel_reads_what_a_point_does():
    """Shifted by whole pixels, by parts of them, and out of the map."""
    layer = readout(bias=False)
    with torch.no_grad():
        layer.spatial.zero_()
        layer.spatial[:, 2, 4] = 1
        layer._features.copy_(torch.randn(N, 5))
    x = features(4)
    shift = torch.tensor([[0.0, 0.0], [0.25, 0.4], [0.1, -0.3], [3.0, 0.0]])
    position = torch.tensor([4 / 8 * 2 - 1, 2 / 5 * 2 - 1]) + shift
    point = F.grid_sample(x, position[:, None, None], align_corners=True)[:, :, 0, 0]
    torch.testing.assert_close(layer(x, shift=shift), point @ layer._features.t() / (1 + 1e-6))
    assert (layer(x, shift=shift)[3] == 0).all()


def test_weight_is_that_of_every_value_of_the_features():
    layer, x = readout(), features()
    assert layer.weight.shape == (N, *SHAPE)
    torch.testing.assert_close(torch.einsum("bchw,nchw->bn", x, layer.weight) + layer.bias, layer(x))


@pytest.mark.parametrize("options", [{}, {"shared_features": {"match_ids": MATCH_IDS}}])
def test_out_idx_is_a_choice_of_the_whole(options):
    layer, x, shift = readout(**options), features(), torch.randn(4, 2) / 2
    layer_checks.assert_chooses_neurons(partial(layer, x, shift=shift), N, exactly=False)
    layer_checks.assert_refuses_out_idx(layer, x)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_every_frame_of_a_video_is_an_image(memory_format):
    layer_checks.assert_reads_frames(readout(), videos().contiguous(memory_format=memory_format))


def test_shared_features():
    own = readout(shared_features={"match_ids": MATCH_IDS})
    for i, j in ((0, 2), (1, 4), (5, 6)):
        assert own.features[i].equal(own.features[j])
    before = own._features.detach().clone()
    other = readout(shared_features={"match_ids": MATCH_IDS, "shared_features": own.shared_features})
    assert other._features is own._features
    assert own._features.equal(before), "a readout that joins does not reset what is shared"
    other(features()).sum().backward()
    assert own._features.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"shared_features: want \[M, C\] = \(5, 5\), got \(12, 5\)"):
        readout(shared_features={"match_ids": MATCH_IDS, "shared_features": readout()._features})


def test_penalty():
    """The peer's makes a tensor of neurons x neurons; the same number comes without."""
    layer = readout(spatial_and_feature_reg_weight=0.5)
    masks, weights = layer.normalized_spatial.detach().flatten(1).abs(), layer._features.detach().abs()
    legacy = 0.5 * (masks.sum(1, keepdim=True) * weights.sum(1)).sum().item()
    per_neuron = 0.5 * sum(m.sum() * w.sum() for m, w in zip(masks, weights, strict=True)).item()
    assert legacy > 5 * per_neuron
    assert layer.regularizer().item() == pytest.approx(legacy, rel=1e-5)
    assert layer.regularizer(reduction="mean").item() == pytest.approx(legacy / (N * 5 * 6 * 9), rel=1e-5)
    with pytest.warns(DeprecationWarning, match="average"):
        assert layer.regularizer(average=True).item() == pytest.approx(legacy / (N * 5 * 6 * 9), rel=1e-5)
    layer.reg_mode = "per_neuron"
    assert layer.regularizer().item() == pytest.approx(per_neuron, rel=1e-5)
    with pytest.raises(ValueError, match="reduction: want one of sum, mean, got None"):
        layer.regularizer(reduction=None)
    with pytest.warns(DeprecationWarning, match="gamma_readout"):
        assert readout(gamma_readout=0.25).spatial_and_feature_reg_weight == 0.25


def test_the_penalty_makes_nothing_of_neurons_times_neurons():
    layer = FullFactorized2d((2, 3, 3), 2000, bias=False)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        layer.regularizer().backward()
    assert max(event.cpu_memory_usage for event in profile.events()) <= 2 * 4 * 2000 * 9


def test_unknown_arguments_are_accepted():
    layer, x = FullFactorized2d(SHAPE, N, True, unknown=True), features()
    assert layer(x, data_key="a", images=x, behavior=None).equal(layer(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reg_mode": "sum"}, "reg_mode: want one of legacy, per_neuron, got 'sum'"),
        ({"shared_features": {"match_ids": [0, 1]}}, r"match_ids: want one id per neuron, \(12,\)"),
        ({"mean_activity": torch.zeros(3)}, r"mean_activity: want \[N\] = \(12,\), got \(3,\)"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        readout(**options)


def test_bad_operands():
    with pytest.raises(ValueError, match=r"features: want .* with \(C, H, W\) = \(5, 6, 9\), got \(2, 5, 9, 6\)"):
        readout()(torch.randn(2, 5, 9, 6))
    with pytest.raises(ValueError, match=r"shift: want \[B, 2\] = \(4, 2\), got \(3, 2\)"):
        readout()(features(), shift=torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"shift: want \[B, 2\] = .* or \[B, T, 2\] = \(2, 3, 2\), got \(2, 4, 2\)"):
        readout()(videos(), shift=torch.zeros(2, 4, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_module_cast_as_a_whole(dtype):
    layer_checks.assert_casts_as_a_whole(readout(), features(), dtype)


def test_compiles():
    layer_checks.assert_compiles(readout(constrain_pos=True, normalize=False), features())


def test_ensemble_by_vmap():
    layer_checks.assert_runs_under_vmap(readout, features())
    layer_checks.assert_runs_under_vmap(partial(readout, constrain_pos=True, normalize=False), features())


def test_second_derivatives():
    layer_checks.assert_twice_differentiable(readout().double(), features(2).double(), torch.full((2, 2), 0.1))
