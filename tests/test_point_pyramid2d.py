"""The layer PointPyramid2d and its pyramid: constructor, state and repairs of neuralpredictors' class."""

import copy

import layer_checks
import numpy as np
import pytest
import torch
from assertions import assert_as_accurate
from op_checks import assert_same

from v1fast import _eager as eager
from v1fast import readouts
from v1fast.readouts import PointPyramid2d
from v1fast.readouts.pyramid import Pyramid

SHAPE, N, SCALES = (5, 9, 14), 12, 2
CHANNELS = (SCALES + 1) * SHAPE[0]
TYPES = ("gauss5x5", "gauss3x3", "laplace5x5")
f32, f64 = torch.float32, torch.float64


def readout(**options):
    """A readout whose features and bias differ from neuron to neuron."""
    defaults = {"scale_n": SCALES, "positive": False, "bias": True, "init_range": 0.8, "downsample": True}
    return layer_checks.differing(PointPyramid2d(SHAPE, N, **defaults | {"type": "gauss5x5"} | options))


def features(batch=4):
    return torch.randn(batch, *SHAPE)


def eager_forward(layer, x, shift=None, dtype=f64):
    """What the layer means, from its parameters, by torch's own ops."""
    return eager.levels_readout(
        copy.deepcopy(layer.gauss_pyramid).to(dtype)(x.to(dtype)),
        layer.grid[0, :, 0].to(dtype),
        layer.features[0, :, 0].t().to(dtype),
        None if layer.bias is None else layer.bias.to(dtype),
        None if shift is None else shift.to(dtype),
        align_corners=layer.align_corners,
    )


def test_names():
    assert readouts.SpatialTransformerPyramid2d is PointPyramid2d


def test_filters():
    """Sums of one, symmetric, and the Gaussian is near one of unit width."""
    for kind in TYPES:
        weights = Pyramid(type=kind).filter
        assert weights.dtype == f32
        assert weights.sum().item() == pytest.approx(1, abs=1e-5)
        assert weights.equal(weights.t())
        assert weights.equal(weights.flip(0))
    gaussian = Pyramid(type="gauss5x5").filter
    assert gaussian[2, 2].item() == pytest.approx(0.150342, abs=1e-8)
    assert Pyramid(type="gauss3x3").filter.mul(16).tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    assert Pyramid(type="laplace5x5").filter.mul(256)[1].tolist() == [4, 16, 24, 16, 4]


def smoothed(image, weights):
    """Correlation with the filter, zeros beyond the border, pixel by pixel."""
    size = weights.shape[0]
    padded = np.pad(image, size // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size))
    return np.einsum("hwij,ij->hw", windows, weights)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("downsample", [True, False])
@pytest.mark.parametrize("size", [(9, 14), (8, 7), (1, 1)])
def test_pyramid(kind, downsample, size):
    """Each level is what the upsampled next one lacks; all of them together are the image again."""
    pyramid = Pyramid(2, kind, downsample).double()
    image = torch.randn(2, 3, *size, dtype=f64)
    levels = pyramid(image)
    weights = pyramid.filter.numpy()
    rest = image
    for detail in levels[:-1]:
        assert detail.shape == rest.shape
        maps = rest.flatten(0, 1).numpy()
        low = back = np.stack([smoothed(m, weights) for m in maps])
        if downsample:
            low = low[:, ::2, ::2]
            spread = np.zeros_like(maps)
            spread[:, ::2, ::2] = low
            back = 4 * np.stack([smoothed(m, weights) for m in spread])
        np.testing.assert_allclose(detail.flatten(0, 1), maps - back, atol=1e-12)
        rest = torch.from_numpy(low).unflatten(0, (2, 3))
    torch.testing.assert_close(levels[-1], rest)


def test_a_flat_map_has_no_detail():
    detail, low = Pyramid(1, "laplace5x5")(torch.ones(1, 2, 16, 16))
    torch.testing.assert_close(low[..., 1:-1, 1:-1], torch.ones(1, 2, 6, 6))
    assert detail[..., 4:-4, 4:-4].abs().max() < 1e-6


def test_state_dict_keys_and_shapes():
    state = {k: tuple(v.shape) for k, v in readout().state_dict().items()}
    assert state == {
        "grid": (1, N, 1, 2),
        "features": (1, CHANNELS, 1, N),
        "bias": (N,),
        "gauss_pyramid.filter": (5, 5),
    }
    assert "bias" not in readout(bias=False).state_dict()


def test_initial_values():
    mean = torch.rand(500, dtype=f64)
    layer = PointPyramid2d(SHAPE, 500, 2, False, True, 0.4, True, "gauss3x3", mean_activity=mean, another=1)
    assert 0.38 < layer.grid.abs().max() <= 0.4
    assert (layer.features == 1 / 5).all()
    assert layer.bias.dtype == f32
    assert layer.bias.equal(mean.float())
    assert layer.feature_reg_weight == 1.0
    with torch.no_grad():
        layer.bias.add_(1)
    assert mean.max() <= 1
    layer.initialize()
    assert layer.bias.equal(mean.float())


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        *({"type": kind} for kind in TYPES),
        {"downsample": False},
        {"align_corners": False, "bias": False},
        {"scale_n": 0},
        {"scale_n": 5},  # down to one pixel
    ],
)
def test_forward(options, shifted):
    layer = readout(**options)
    x, shift = features(), 0.3 * torch.randn(4, 2) if shifted else None
    got = layer(x, shift=shift, data_key="a")
    own = eager_forward(layer, x, shift, f32)
    assert_as_accurate(got, own, eager_forward(layer, x, shift))
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert_as_accurate(layer(channels_last, shift=shift), own, eager_forward(layer, x, shift))


@pytest.mark.parametrize("out_idx", [[3, 0, -1], np.arange(N) % 3 == 0, torch.arange(N) > 8], ids=str)
def test_out_idx_is_a_choice_of_the_whole(out_idx):
    layer, x = readout(), features()
    assert_same(layer(x, out_idx=out_idx), layer(x)[:, torch.as_tensor(out_idx)])


def test_frames_are_images():
    layer_checks.assert_reads_frames(readout(), torch.randn(2, SHAPE[0], 3, *SHAPE[1:]))


def test_other_maps_are_read():
    assert readout()(torch.randn(2, 5, 20, 11)).shape == (2, N)
    with pytest.raises(ValueError, match=r"features: want .* with C = 5, got \(2, 4, 9, 14\)"):
        readout()(torch.randn(2, 4, 9, 14))


def test_parameters_are_kept_in_range_in_place():
    layer = readout(positive=True)
    with torch.no_grad():
        layer.grid[0, 0, 0] = torch.tensor([1.7, -3.0])
    grid, storages = layer.grid, (layer.grid.data_ptr(), layer.features.data_ptr())
    assert (layer.features < 0).any()
    layer(features())
    assert layer.grid is grid
    assert (layer.grid.data_ptr(), layer.features.data_ptr()) == storages
    assert layer.grid[0, 0, 0].tolist() == [1, -1]
    assert (layer.features >= 0).all()


def test_dtype_may_change_after_a_forward_pass():
    layer, x = readout(), features()
    want = layer(x)
    torch.testing.assert_close(layer.double()(x.double()), want.double(), rtol=1e-5, atol=1e-5)
    y = layer.to(torch.bfloat16)(x.bfloat16())
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_autocast_reads_levels_of_different_dtypes():
    layer, x = readout(), features()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == f32
    torch.testing.assert_close(y, layer(x), rtol=0.05, atol=0.1)


def test_regularizers():
    layer = readout(feature_reg_weight=0.5)
    magnitude = layer.features.detach().abs()
    assert layer.regularizer().item() == pytest.approx(0.5 * magnitude.sum().item(), rel=1e-6)
    groups = layer.features.detach().view(SCALES + 1, 5, N)
    assert layer.group_sparsity(5).item() == pytest.approx(groups.square().mean(1).sqrt().mean().item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"group_size: want a divisor of \(scale_n \+ 1\) \* C = 15, got 4"):
        layer.group_sparsity(4)
    layer_checks.assert_knows_gamma_readout(readout)


def test_bad_arguments():
    with pytest.raises(ValueError, match="type: want one of gauss5x5, gauss3x3, laplace5x5, got 'gauss'"):
        readout(type="gauss")
    with pytest.raises(ValueError, match="scale_n: want at least 0, got -1"):
        readout(scale_n=-1)


def test_compiles():
    torch.compiler.reset()
    layer, x = readout(), features()
    step = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(step(x).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(got, torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())))


def test_ensemble_by_vmap():
    layers = [readout(positive=True) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    x, base = features(), copy.deepcopy(layers[0]).to("meta")
    got = torch.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(got, torch.stack([layer(x) for layer in layers]))


def test_gradients_reach_the_features_through_the_pyramid():
    layer, x = readout().double(), features(2).double().requires_grad_()
    direction = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    step = 1e-4
    change = (layer(x + step * direction) - layer(x - step * direction)).sum() / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(change.item(), rel=1e-6)
