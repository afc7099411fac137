"""The pooled layers: constructor, state, quirks and repairs of neuralpredictors' classes, on v1fast's op."""

import copy
import math
from functools import partial

import layer_checks
import numpy as np
import pytest
import torch
from assertions import assert_as_accurate
from torch import nn
from torch.nn import functional as F

from v1fast import _eager as eager
from v1fast import ops, readouts
from v1fast.readouts import GeneralizedPointPooled2d, PointPooled2d, SpatialTransformerPooled3d

SHAPE, N, STEPS = (5, 9, 13), 12, 2
CHANNELS = (STEPS + 1) * SHAPE[0]
f32, f64 = torch.float32, torch.float64


def readout(kind=PointPooled2d, **options):
    options = {"pool_steps": STEPS, "bias": True, "pool_kern": 2, "init_range": 0.8} | options
    return layer_checks.differing(kind(SHAPE, N, **options))


def generalized_readout():
    return readout(GeneralizedPointPooled2d, inferred_params_n=2)


def video_readout(**options):
    channels, height, width = SHAPE
    return layer_checks.differing(
        SpatialTransformerPooled3d((channels, 4, height, width), N, **{"init_range": 0.8} | options)
    )


def features(batch=4):
    return torch.randn(batch, *SHAPE)


def eager_forward(layer, x, shift=None, dtype=f64):
    """What the layer means, from its parameters, by torch's own ops."""
    return eager.pooled_readout(
        x.to(dtype),
        layer.grid[0, :, 0].to(dtype),
        layer.features[0, :, 0].t().to(dtype),
        None if layer.bias is None else layer.bias.to(dtype),
        None if shift is None else shift.to(dtype),
        pool_kernel=layer.pool_kern,
        pool_steps=layer.pool_steps,
        align_corners=layer.align_corners,
    )


def test_names():
    assert readouts.SpatialTransformerPooled2d is PointPooled2d


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (readout(), {"grid": (1, N, 1, 2), "features": (1, CHANNELS, 1, N), "bias": (N,)}),
        (readout(bias=False, pool_steps=0), {"grid": (1, N, 1, 2), "features": (1, 5, 1, N)}),
        (
            readout(GeneralizedPointPooled2d, inferred_params_n=3),
            {"grid": (1, N, 1, 2), "features": (3, 1, CHANNELS, 1, N), "bias": (3, N)},
        ),
        (
            video_readout(pool_steps=2),
            {"grid": (1, N, 1, 2), "features": (1, CHANNELS, 1, N), "bias": (N,), "mask": (1, CHANNELS, 1, N)},
        ),
    ],
    ids=["pooled", "plain", "generalized", "3d"],
)
def test_state_dict_keys_and_shapes(layer, shapes):
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == shapes


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: PointPooled2d(SHAPE, 500, 2, True, 2, 0.4, **o),
        lambda **o: GeneralizedPointPooled2d(SHAPE, 500, 2, True, 2, 0.4, inferred_params_n=2, **o),
        lambda **o: SpatialTransformerPooled3d((5, 4, 9, 13), 500, init_range=0.4, **o),
    ],
)
def test_initial_values(make):
    layer = make()
    assert 0.38 < layer.grid.abs().max() <= 0.4
    assert (layer.features == 1 / 5).all()
    assert (layer.bias == 0).all()
    assert layer.feature_reg_weight == 1.0
    mean = torch.rand(500, dtype=f64)
    layer = make(mean_activity=mean)
    assert layer.bias.dtype == f32
    assert layer.bias.equal(mean.float().expand_as(layer.bias))
    with torch.no_grad():
        layer.bias.add_(1)
    assert mean.max() <= 1
    layer.initialize()
    assert layer.bias.equal(mean.float().expand_as(layer.bias))
    layer.initialize(2 * mean)
    assert layer.bias.equal(2 * mean.float().expand_as(layer.bias))


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"align_corners": False},
        {"bias": False, "pool_steps": 0},
        {"pool_kern": 3},
        {"pool_steps": 3},  # down to one row
    ],
)
def test_forward(options, shifted):
    layer = readout(**options)
    x, shift = features(), 0.3 * torch.randn(4, 2) if shifted else None
    got = layer(x, shift=shift)
    assert_as_accurate(got, eager_forward(layer, x, shift, f32), eager_forward(layer, x, shift))
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert_as_accurate(layer(channels_last, shift=shift), got, eager_forward(layer, x, shift))


@pytest.mark.parametrize("outputs", [1, 3])
def test_generalized_forward(outputs):
    """Every output is that of a PointPooled2d of the same points."""
    layer = readout(GeneralizedPointPooled2d, inferred_params_n=outputs)
    x, shift = features(), 0.1 * torch.randn(4, 2)
    y = layer(x, shift=shift)
    assert y.shape == ((4, N) if outputs == 1 else (outputs, 4, N))
    one = readout()
    one.grid = layer.grid
    for out, weights, bias in zip(y.view(outputs, 4, N), layer.features, layer.bias, strict=True):
        one.features, one.bias = nn.Parameter(weights), nn.Parameter(bias)
        torch.testing.assert_close(out, one(x, shift=shift))
    assert layer(x[:1], out_idx=[3]).shape == ((1, 1) if outputs == 1 else (outputs, 1, 1)), "no axis is lost"
    y.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize("outputs", [None, 1, 2])
def test_weighted_features(outputs):
    kind = {} if outputs is None else {"kind": GeneralizedPointPooled2d, "inferred_params_n": outputs}
    layer, x, shift = readout(**kind, return_weighted_features=True), features(), 0.1 * torch.randn(4, 2)
    weighted = layer(x, shift=shift)
    assert weighted.shape == ((2, 4, CHANNELS, N) if outputs == 2 else (4, CHANNELS, N))
    some = layer(x, shift=shift, out_idx=[4, 1])
    torch.testing.assert_close(some, weighted[..., [4, 1]])
    layer.return_weighted_features = False
    bias = layer.bias if outputs != 2 else layer.bias[:, None]
    torch.testing.assert_close(weighted.sum(-2) + bias, layer(x, shift=shift))


@pytest.mark.parametrize("kind", [PointPooled2d, GeneralizedPointPooled2d])
def test_out_idx_is_a_choice_of_the_whole(kind):
    layer_checks.assert_chooses_neurons(partial(readout(kind, inferred_params_n=2), features()), N)


def test_bad_out_idx():
    layer_checks.assert_refuses_out_idx(readout(), features())


@pytest.mark.parametrize(
    "make", [readout, lambda: readout(GeneralizedPointPooled2d, inferred_params_n=2), video_readout]
)
def test_the_grid_is_clamped_in_place(make):
    layer = make()
    with torch.no_grad():
        layer.grid[0, 0, 0] = torch.tensor([1.7, -3.0])
    parameter, storage = layer.grid, layer.grid.data_ptr()
    x = features()
    layer(x if not isinstance(layer, SpatialTransformerPooled3d) else x[:, :, None])
    assert layer.grid is parameter
    assert layer.grid.data_ptr() == storage, "a CUDA graph and an optimiser keep what they hold"
    assert layer.grid[0, 0, 0].tolist() == [1, -1]


def test_shift_comes_after_the_clamp():
    layer = readout(bias=False)
    with torch.no_grad():
        layer.grid.fill_(1.0)
    x = torch.ones(2, *SHAPE)
    assert layer(x, shift=torch.zeros(2, 2)).abs().min() > 0
    assert (layer(x, shift=torch.full((2, 2), 2.1)) == 0).all(), "outside the map, but for coarse pixels, is nothing"


def test_unknown_arguments_are_accepted():
    layer = PointPooled2d(SHAPE, N, 1, True, 2, 0.1, shared_transform=True)
    x = features()
    assert layer(x, data_key="a", images=x, behavior=None).equal(layer(x))


@pytest.mark.parametrize("kind", [PointPooled2d, GeneralizedPointPooled2d])
def test_pool_steps_can_be_set(kind):
    layer = readout(kind).double()
    old = layer.features
    layer.pool_steps = STEPS
    assert layer.features is old
    layer.pool_steps = 1
    assert layer.pool_steps == 1
    assert layer.features.shape == (*old.shape[:-3], 2 * SHAPE[0], 1, N)
    assert layer.features.dtype == f64
    assert (layer.features == 1 / SHAPE[0]).all()
    assert isinstance(layer.features, nn.Parameter)
    assert layer.features.is_contiguous()
    assert dict(layer.named_parameters())["features"] is layer.features
    assert layer(features().double()).shape == (4, N)
    for bad in (-1, 1.5):
        with pytest.raises(ValueError, match="pool_steps: want a whole number of at least 0, got"):
            layer.pool_steps = bad


def test_regularizer():
    layer_checks.assert_regularizes(readout)


@pytest.mark.skipif(
    ops.loaded["native"] != "loaded" and ops.loaded["fallback"] == "loaded", reason="the fallback puts weights by level"
)
def test_the_forward_pass_copies_no_weight():
    layer = readout()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        layer(features())
    copied = [e.input_shapes[0] for e in profile.events() if e.name in ("aten::copy_", "aten::clone", "aten::cat")]
    assert copied, "the positions are"
    assert layer.features.numel() not in map(math.prod, copied)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_module_cast_as_a_whole(dtype):
    layer_checks.assert_casts_as_a_whole(readout(), features(), dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_range": 0}, r"init_range: want a value in \(0, 1\], got 0"),
        ({"init_range": 1.5}, "init_range"),
        ({"pool_kern": 0}, "pool_kern: want at least 1, got 0"),
        ({"pool_steps": -1}, "pool_steps: want a whole number of at least 0, got -1"),
        ({"pool_steps": 0.5}, "pool_steps"),
        ({"mean_activity": torch.zeros(3)}, r"mean_activity: want \[N\] = \(12,\), got \(3,\)"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        readout(**options)


def test_bad_features():
    with pytest.raises(ValueError, match=r"want .* with \(C, H, W\) = \(5, 9, 13\), got \(2, 5, 9, 12\)"):
        readout()(torch.randn(2, 5, 9, 12))
    with pytest.raises(ValueError, match=r"4 poolings of 2 x 2 leave something of, got \(9, 13\), of which \(1, 1\)"):
        readout(pool_steps=4)(features())
    with pytest.raises(ValueError, match="inferred_params_n: want at least 1, got 0"):
        readout(GeneralizedPointPooled2d, inferred_params_n=0)


@pytest.mark.parametrize("kind", [PointPooled2d, GeneralizedPointPooled2d])
def test_compiles(kind):
    torch.compiler.reset()
    layer, x = readout(kind, inferred_params_n=2), features()
    step = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(step(x).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(got, torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())))


@pytest.mark.parametrize("make", [readout, video_readout])
def test_ensemble_by_vmap(make):
    layers = [make() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    x = features() if make is readout else torch.randn(2, 5, 3, 9, 13)
    base = copy.deepcopy(layers[0]).to("meta")
    got = torch.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (x,)))(parameters, buffers)
    assert got.equal(torch.stack([layer(x) for layer in layers]))


def test_learns():
    """Adam moves the points of a readout onto those of another from which the targets come."""
    torch.manual_seed(1)
    x = F.avg_pool2d(torch.randn(400, 4, 23, 27), 5, stride=1)
    truth = PointPooled2d((4, 19, 23), 6, 2, False, 2, 0.3)
    layer = PointPooled2d((4, 19, 23), 6, 2, False, 2, 0.1)
    with torch.no_grad():
        truth.features.copy_(torch.randn_like(truth.features))
        target = truth(x)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(25):
        for batch in torch.randperm(400).split(50):
            optimiser.zero_grad()
            (layer(x[batch]) - target[batch]).square().mean().backward()
            optimiser.step()
    assert (layer.grid - truth.grid).abs().max() < 0.1
    assert (layer(x) - target).square().mean() < 0.05 * target.var()


@pytest.mark.parametrize("make", [readout, generalized_readout])
def test_frames_are_images(make):
    layer, x = make(), torch.randn(2, 5, 3, 9, 13)
    layer_checks.assert_reads_frames(layer, x)
    layer_checks.assert_reads_frames(layer, x.contiguous(memory_format=torch.channels_last_3d))
    layer.return_weighted_features = True
    weighted = layer(x)
    assert weighted.shape[-4:] == (2, 3, CHANNELS, N)
    torch.testing.assert_close(weighted[..., 1, :, :], layer(x[:, :, 1]))


# Videos ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"kernel_size": 3, "stride": 2, "pool_steps": 2}, {"bias": False}])
def test_every_frame_of_a_video_is_an_image(options):
    layer = video_readout(**options)
    x, shift = torch.randn(2, 5, 4, 9, 13), 0.2 * torch.randn(2, 4, 2)
    y = layer(x, shift=shift)
    assert y.shape == (2, 4, N)
    levels = [x.double().transpose(1, 2).reshape(8, 5, 9, 13)]
    for _ in range(layer.pool_steps):
        levels.append(F.avg_pool2d(levels[-1], layer.kernel_size, layer.stride))
    weight = layer.features.double()[0, :, 0].t()
    bias = None if layer.bias is None else layer.bias.double()
    want = eager.levels_readout(levels, layer.grid.double()[0, :, 0], weight, bias, shift.double().view(8, 2))
    torch.testing.assert_close(y.double(), want.view(2, 4, N), rtol=1e-5, atol=1e-5)
    frame = layer(x[:, :, 1:2], shift=shift[:, 1:2])
    torch.testing.assert_close(frame, y[:, 1:2])
    for subs_idx in ([3, -1], torch.arange(N) > 8):
        assert layer(x, shift=shift, subs_idx=subs_idx).equal(y[..., subs_idx])


def test_positive_and_stopped_gradient():
    layer = video_readout(positive=True, stop_grad=True)
    assert (layer.features < 0).any()
    x = torch.randn(2, 5, 3, 9, 13, requires_grad=True)
    layer(x, data_key="a").sum().backward()
    assert (layer.features >= 0).all()
    assert x.grad is None
    assert layer.features.grad.abs().sum() > 0


def test_a_shared_grid_keeps_its_values():
    first = video_readout()
    before = first.grid.detach().clone()
    second = video_readout(grid=first.grid)
    assert second.grid is first.grid
    assert first.grid.equal(before)
    second.initialize(grid=False)
    assert first.grid.equal(before)
    with pytest.raises(ValueError, match=r"grid: want \(1, N, 1, 2\) = \(1, 12, 1, 2\), got \(1, 3, 1, 2\)"):
        video_readout(grid=nn.Parameter(torch.zeros(1, 3, 1, 2)))


@pytest.mark.parametrize("neurons", [1, 3])
def test_pruning(neurons):
    layer = SpatialTransformerPooled3d((2, 4, 9, 13), neurons)
    with torch.no_grad():
        layer.features.copy_(torch.rand_like(layer.features) + 0.5)
    with pytest.raises(ValueError, match="want a gradient, from a backward pass"):
        layer.update_fisher_prune_scores()
    with pytest.raises(ValueError, match="want an update_fisher_prune_scores"):
        layer.prune()
    scores = []
    for _ in range(2):
        layer.zero_grad()
        layer(torch.randn(2, 2, 3, 9, 13)).square().sum().backward()
        layer.update_fisher_prune_scores()
        scores.append(0.5 * (layer.features.grad * layer.features.detach()) ** 2)
    mean = (scores[0] + scores[1]) / 2
    torch.testing.assert_close(layer.fisher_prune_scores, mean)
    order = mean[0, :, 0].argsort(dim=0)
    for count in (1, 2):
        layer.prune()
        assert (layer.mask == 0).sum() == count * neurons
        assert (layer.mask[0, :, 0].gather(0, order[:count]) == 0).all()
    with torch.no_grad():
        layer.features.add_(1)  # as an optimiser with momentum would
    layer(torch.randn(2, 2, 3, 9, 13))
    assert (layer.features == 0).equal(layer.mask == 0)
    layer.reset_fisher_prune_scores()
    with pytest.raises(ValueError, match="fisher_prune_scores"):
        layer.prune()
    layer.pool_steps = 2
    assert layer.mask.shape == layer.features.shape == (1, 6, 1, neurons)
    assert (layer.mask == 1).all()
    assert layer.feature_l1(subs_idx=[0]).item() == pytest.approx(6 / 2)


def test_bad_videos():
    layer = video_readout()
    with pytest.raises(ValueError, match=r"features: want \[B, C, T, H, W\] with C = 5, got \(2, 5, 9, 13\)"):
        layer(torch.randn(2, 5, 9, 13))
    with pytest.raises(ValueError, match=r"shift: want .* or \[B, T, 2\] = \(2, 3, 2\), got \(2, 3\)"):
        layer(torch.randn(2, 5, 3, 9, 13), shift=torch.zeros(2, 3))


def test_printed_form():
    assert repr(readout()) == "PointPooled2d(5 x 9 x 13 -> 12, bias, 2 poolings of 2 x 2)"
    assert repr(video_readout(stop_grad=True, bias=False)) == (
        "SpatialTransformerPooled3d(5 x 4 x 9 x 13 -> 12, 1 poolings of 2 x 2, stop_grad)"
    )


# Real data -------------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_trained_readouts_of_macaque_v1(real_data):
    """Of a released model of macaque V1 (sinzlab/cppn_for_invariances), against what neuralpredictors computes."""
    folder = real_data / "macaque_v1_pointpooled"
    state = torch.load(folder / "cppn_monkey_model3_PointPooled2d.pt", map_location="cpu", weights_only=True)
    with np.load(folder / "cppn_pointpooled_expected.npz") as arrays:
        x = torch.from_numpy(arrays["features_in"])
        expected = {k.removeprefix("y_"): torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith("y_")}
    assert len(expected) == 32
    assert sum(y.shape[1] for y in expected.values()) == 458
    for session, want in expected.items():
        prefix = f"readout.{session}."
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        layer = PointPooled2d(x.shape[1:], want.shape[1], pool_steps=2, bias=True, pool_kern=3, init_range=0.2)
        layer.load_state_dict(own, strict=True)
        for layout in (torch.contiguous_format, torch.channels_last):
            got = layer.eval()(x.contiguous(memory_format=layout))
            assert (got - want).abs().max() <= 1e-5 * want.abs().max()
