"""Cores beside Stacked2dCore: what each one is for."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from v1fast.models import (
    Basic3dCore,
    DivisiveNormalization,
    Factorized3dCore,
    LinearNonlinearCore,
    RotationEquivariant2dCore,
    SE2dCore,
    SimpleCoreWrapper,
    TransferLearningCore,
    vgg16_features,
)
from v1fast.models.cores.rotation import HermiteConv2d, hermite_functions, rotation
from v1fast.models.cores.video import STSeparableBatchConv3d


def randomised(core, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*core.named_parameters(), *core.named_buffers()]:
            if "running_var" in name:
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif "rotate_hermite" not in name and "filter" not in name and value.is_floating_point():
                value.add_(0.2 * torch.randn(value.shape, generator=generator))
    return core.eval()


# squeeze and excitation


def test_squeeze_and_excitation_scales_channels():
    core = randomised(SE2dCore(1, 8, 5, 3, layers=3, n_se_blocks=2, se_reduction=4, stack=None))
    blocks = [name for name, layer in core.features.named_children() if hasattr(layer, "seg_ex_block")]
    assert blocks == ["layer1", "layer2"]
    block = core.features.layer1.seg_ex_block
    x = torch.randn(2, 8, 6, 7)
    hidden = F.relu(x.mean((2, 3)) @ block.se[1].weight.T + block.se[1].bias)
    factor = torch.sigmoid(hidden @ block.se[3].weight.T + block.se[3].bias)
    torch.testing.assert_close(block(x), x * factor[:, :, None, None])
    with pytest.raises(ValueError, match="se_reduction: want at most 8, the number of channels, got 32"):
        SE2dCore(1, 8, 5, 3, n_se_blocks=1)


# rotation equivariance


def test_hermite_functions_are_orthonormal():
    functions, orders = hermite_functions(5, 60, 12.0)
    assert functions.shape == (15, 60, 60)
    assert orders == [0, 1, 1, 0, 2, 2, 1, 1, 3, 3, 0, 2, 2, 4, 4]
    gram = np.einsum("ixy,jxy->ij", functions, functions)
    np.testing.assert_allclose(gram, np.eye(15), atol=1e-6)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_hermite_coefficients_rotate_the_filter(quarter):
    functions, orders = hermite_functions(4, 21, 6.0)
    coefficients = np.random.default_rng(0).normal(size=len(orders))
    turned = rotation(orders, quarter * np.pi / 2) @ coefficients
    filters = np.tensordot(coefficients, functions, 1), np.tensordot(turned, functions, 1)
    # Rows run down the image, so that a positive angle turns from x towards y: clockwise as it is shown.
    np.testing.assert_allclose(filters[1], np.rot90(filters[0], quarter), atol=1e-12)


@pytest.mark.parametrize("quarter", [1, 2, 3])
@pytest.mark.parametrize("rotations", [4, 8])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"batch_norm_scale": False, "final_batchnorm_scale": False}])
def test_rotating_the_image_rotates_maps_and_permutes_orientations(quarter, rotations, options):
    core = randomised(
        RotationEquivariant2dCore(1, 3, 5, 5, layers=3, num_rotations=rotations, stack=-1, **options)
    ).double()
    x = torch.randn(2, 1, 17, 17, dtype=torch.float64)
    maps, turned = (core(image).unflatten(1, (rotations, 3)) for image in (x, x.rot90(quarter, (2, 3))))
    want = maps.rot90(quarter, (3, 4)).roll(quarter * rotations // 4, 1)
    # float32 buffers hold the rotations
    torch.testing.assert_close(turned, want, rtol=1e-4, atol=1e-5)


def test_rotations_share_norms_unless_told():
    def core(**options):
        return RotationEquivariant2dCore(1, 3, 5, 3, layers=2, num_rotations=4, **options)

    assert core().features.layer0.norm.batch_norm.num_features == 3
    assert core(rot_eq_batch_norm=False).features.layer0.norm.num_features == 12
    assert core(stack=-1).outchannels == 12
    assert core().outchannels == 24
    x = torch.randn(4, 1, 9, 9)
    norm = core().train().features.layer0.norm
    y = torch.randn(4, 12, 5, 6) * 3 + 1
    want = F.batch_norm(y.unflatten(1, (4, 3)).transpose(1, 2).flatten(2), None, None, training=True)
    torch.testing.assert_close(norm(y), want.unflatten(2, (4, 5, 6)).transpose(1, 2).flatten(1, 2))
    assert core()(x).shape == (4, 24, 9, 9)
    for name, value in (("depth_separable", True), ("skip", 2), ("hidden_dilation", 2), ("attention_conv", True)):
        with pytest.raises(ValueError, match=f"{name}: want"):
            core(**{name: value})
    with pytest.raises(ValueError, match="input_kern: want a square kernel"):
        RotationEquivariant2dCore(1, 3, (5, 3), 3)


def test_penalties_of_a_rotation_equivariant_core():
    core = RotationEquivariant2dCore(1, 3, 5, 3, layers=2, num_rotations=4, gamma_input=0.3, gamma_hidden=0.2)
    first, second = (core.features[i].hermite_conv.weights_all_rotations for i in (0, 1))
    assert first.shape == (12, 1, 5, 5)
    assert second.shape == (12, 12, 3, 3)
    sparsity = second.square().sum((2, 3)).sqrt().mean()
    torch.testing.assert_close(core.regularizer(), 0.2 * sparsity + 0.3 * core.laplace())
    convolution = HermiteConv2d(1, 2, 5, 0, 1, 4, 1, True)
    assert convolution.weights_all_rotations.abs().max() == 0  # until initialised


def test_linear_nonlinear_core():
    core = randomised(LinearNonlinearCore(2, 6, 7, pad_input=False))
    x = torch.randn(3, 2, 12, 15)
    norm, convolution = core.features.layer0.norm, core.features.layer0.conv
    want = F.elu(norm(F.conv2d(x, convolution.weight)))
    torch.testing.assert_close(core(x), want)
    assert core.group_sparsity() == 0


# videos


def test_basic_core_of_videos():
    core = randomised(Basic3dCore(2, 3, (4, 5, 3), (2, 3, 3), layers=2, temporal_dilation=2, hidden_spatial_dilation=2))
    x = torch.randn(2, 2, 12, 14, 13)
    first, second = core.features.layer0, core.features.layer1
    want = F.elu(first.norm(F.conv3d(x, first.conv.weight, first.conv.bias, dilation=(2, 1, 1))))
    want = F.elu(second.norm(F.conv3d(want, second.conv_1.weight, second.conv_1.bias, dilation=(1, 2, 2))))
    torch.testing.assert_close(core(x), want)
    assert want.shape[2] == 12 - 6 - 1
    linear = Basic3dCore(2, 3, 3, 3, layers=1, final_nonlin=False)
    assert "nonlin" not in dict(linear.features.layer0.named_children())


def test_factorized_core_is_space_then_time():
    core = randomised(Factorized3dCore(1, [3, 4], (5, 3), 4, 3, 2, final_nonlin=False, layers=2, padding=True))
    x = torch.randn(2, 1, 9, 10, 11)
    first, second = core.features.layer0, core.features.layer1
    maps = F.conv3d(x, first.conv_spatial.weight, first.conv_spatial.bias, padding=(0, 2, 1))
    maps = F.elu(first.norm(F.conv3d(maps, first.conv_temporal.weight, first.conv_temporal.bias)))
    maps = F.conv3d(maps, second.conv_spatial_1.weight, second.conv_spatial_1.bias, padding=(0, 1, 1))
    maps = second.norm(F.conv3d(maps, second.conv_temporal_1.weight, second.conv_temporal_1.bias))
    torch.testing.assert_close(core(x), maps)
    assert core.get_kernels() == [(4, 5, 3), (2, 3, 3)]
    assert core.outchannels == core.out_channels == 4


@pytest.mark.parametrize("kind", ["elu", "softplus", "relu", "adaptive_elu"])
def test_nonlinearities_of_cores_of_videos(kind):
    core = Factorized3dCore(1, 3, 3, 2, 3, 2, True, layers=1, hidden_nonlinearities=kind, x_shift=0.2, y_shift=0.5)
    functions = {"elu": F.elu, "softplus": F.softplus, "relu": F.relu, "adaptive_elu": lambda x: F.elu(x - 0.2) + 0.5}
    x = torch.randn(2, 3, 3, 4, 5)
    torch.testing.assert_close(core.features.layer0.nonlin(x), functions[kind](x))


def test_penalties_of_cores_of_videos():
    def rough(rows):  # (-1, 4, -1) with a zero beyond each end
        padded = F.pad(rows, (1, 1))
        return (4 * rows - padded[..., :-2] - padded[..., 2:]).square().sum() / rows.square().sum()

    core = Factorized3dCore(1, 3, 5, 4, 3, 2, True, layers=2, gamma_input_spatial=0.3, gamma_input_temporal=0.2)
    spatial, temporal = core.regularizer()
    weight = core.features.layer0.conv_temporal.weight[..., 0, 0]
    torch.testing.assert_close(temporal, 0.2 * rough(weight))
    filters = F.pad(core.features.layer0.conv_spatial.weight[:, :, 0], (1, 1, 1, 1))
    inner = filters[..., 1:-1, 1:-1]
    laplace = 4 * inner - filters[..., :-2, 1:-1] - filters[..., 2:, 1:-1] - filters[..., 1:-1, :-2]
    laplace = laplace - filters[..., 1:-1, 2:]
    torch.testing.assert_close(spatial, 0.3 * laplace.square().sum() / inner.square().sum())
    basic = Basic3dCore(1, 3, (4, 5, 5), 3, layers=1, gamma_input_spatial=1, gamma_input_temporal=1)
    spatial, temporal = basic.regularizer()
    weight = basic.features.layer0.conv.weight
    torch.testing.assert_close(temporal, sum(rough(weight[..., y, x]) for y in range(5) for x in range(5)))
    torch.testing.assert_close(
        spatial, sum(basic._input_weight_regularizer(weight[:, :, t], avg=False) for t in range(4))
    )


def test_wrong_arguments_of_cores_of_videos():
    with pytest.raises(ValueError, match="hidden_channels: want one value or a list of 2, got a list of 3"):
        Basic3dCore(1, [1, 2, 3], 3, 3, layers=2)
    with pytest.raises(ValueError, match="hidden_nonlinearities: want one of elu"):
        Basic3dCore(1, 3, 3, 3, hidden_nonlinearities="tanh")
    with pytest.raises(ValueError, match="layers: want 1 or more, got 0"):
        Factorized3dCore(1, 3, 3, 3, 3, 3, True, layers=0)
    with pytest.raises(ValueError, match="spatial_kernel_sizes: want 2, one per layer, got 1"):
        SimpleCoreWrapper((1, 2, 3), (3, 3), (3,), 0, 0, 0, 0)
    with pytest.raises(ValueError, match="convolution_type: want one of custom_separable"):
        SimpleCoreWrapper((1, 2), (3,), (3,), 0, 0, 0, 0, convolution_type="fast")
    with pytest.raises(ValueError, match="temporal_kernel_size: want at least subsampling_factor = 3, got 2"):
        STSeparableBatchConv3d(1, 1, 2, 3)


@pytest.mark.parametrize("kind", ["full", "time_independent"])
def test_convolutions_of_openretina_that_fail_there(kind):
    core = SimpleCoreWrapper((2, 3), (5,), (3,), 0, 0, 0, 0, cut_first_n_frames=0, convolution_type=kind)
    frames = 1 if kind == "time_independent" else 5
    x = torch.randn(2, 2, 9, 8, 7)
    weight = core.features.layer0.conv.conv.weight
    assert weight.shape == (3, 2, frames, 3, 3)
    torch.testing.assert_close(core.features.layer0.conv(x), F.conv3d(x, weight))
    with pytest.raises(ValueError, match="convolution_type: want a separable one for this penalty"):
        core.spatial_laplace()


# transfer


def test_vgg16_has_the_published_keys():
    state = vgg16_features().state_dict()
    at = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert list(state) == [f"{i}.{name}" for i in at for name in ("weight", "bias")]
    assert sum(p.numel() for p in state.values()) == 14_714_688  # without the fully connected layers
    assert state["28.weight"].shape == (512, 512, 3, 3)


def test_core_of_another_network():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3))
    core = TransferLearningCore(1, network, layers=4, final_batchnorm=False)
    x = torch.randn(2, 1, 12, 13)
    network.eval()
    torch.testing.assert_close(core(x), F.relu(network[:4](x.repeat(1, 3, 1, 1))))
    assert core.outchannels == 4
    assert not any(p.requires_grad for p in core.parameters())
    before = network[1].running_mean.clone()
    core.train()(x)
    assert network[1].running_mean.equal(before)
    core = TransferLearningCore(1, network, layers="4", fine_tune=True)
    assert core.outchannels == 5
    assert core.features.OutBatchNorm.num_features == 5
    assert all(p.requires_grad for p in core.parameters())
    assert next(iter(core.state_dict())) == "features.TransferLearning.0.weight"


def test_network_cut_at_a_named_layer():
    block = nn.Sequential()
    block.add_module("conv", nn.Conv2d(4, 6, 3))
    block.add_module("norm", nn.BatchNorm2d(6))
    network = nn.Sequential()
    network.add_module("stem", nn.Conv2d(1, 4, 3))
    network.add_module("block", block)
    network.add_module("head", nn.Conv2d(6, 7, 1))
    core = TransferLearningCore(1, network, layers="block.conv", final_batchnorm=False, final_nonlinearity=False)
    x = torch.randn(2, 1, 12, 13)
    torch.testing.assert_close(core(x), block.conv(network.stem(x)))
    assert "features.TransferLearning.block.conv.weight" in core.state_dict()
    with pytest.raises(ValueError, match="layers: want the name of a layer, one of stem, block, head, got 'tail'"):
        TransferLearningCore(1, network, layers="tail")
    with pytest.raises(ValueError, match="layers: want a number from 1 to 3, or a layer's name, got 4"):
        TransferLearningCore(1, network, layers=4)
    with pytest.warns(UserWarning, match="TransferLearningCore ignores stack"):
        TransferLearningCore(1, network, layers=1, stack=-1)


def test_weights_need_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ModuleNotFoundError, match="want torchvision installed for the weights of vgg16"):
        TransferLearningCore(1, "vgg16", layers=3)
    with pytest.raises(ModuleNotFoundError, match="want torchvision installed for the model 'alexnet'"):
        TransferLearningCore(1, "alexnet", layers=3, pretrained=False)
    assert TransferLearningCore(1, "vgg16", layers=3, pretrained=False).outchannels == 64


# divisive normalisation


@pytest.mark.parametrize("kernel", [1, 3])
def test_divisive_normalization(kernel):
    layer = DivisiveNormalization(3, kernel, exponent=1.5, sigma=0.7)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    x = torch.randn(2, 3, 6, 7, requires_grad=True)
    exponent, sigma = layer.log_exponent.exp(), layer.log_sigma.exp()
    drive = (x.clamp(min=0) + 1e-6) ** exponent[:, None, None]
    ones = torch.ones(1, 1, kernel, kernel)
    window = F.conv2d(drive.flatten(0, 1)[:, None], ones, padding=kernel // 2)
    count = F.conv2d(torch.ones(1, 1, 6, 7), ones, padding=kernel // 2)
    pooled = (window / count).view_as(drive)
    pooled = torch.einsum("ck,bkyx->bcyx", layer.log_pooling.exp(), pooled)
    want = drive / ((sigma**exponent)[:, None, None] + pooled)
    torch.testing.assert_close(layer(x), want)
    layer(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in (x, *layer.parameters()))
    for name, value in (("kernel_size", 2), ("exponent", 0.0), ("sigma", -1.0), ("pooling", 0.0)):
        with pytest.raises(ValueError, match=f"{name}: want"):
            DivisiveNormalization(3, **{name: value})
