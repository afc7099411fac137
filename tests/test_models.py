"""Shifters, modulators and the encoder that joins them with cores and readouts."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from v1fast.models import (
    FiringRateEncoder,
    LinearNonlinearCore,
    MLPModulator,
    MLPShifter,
    RotationEquivariant2dCore,
    SE2dCore,
    Stacked2dCore,
    StaticAffine2dShifter,
    TransferLearningCore,
)
from v1fast.models.cores import Basic3dCore, Factorized3dCore, SimpleCoreWrapper
from v1fast.readouts import FullGaussian2d, MultiReadoutBase, PointPooled2d

SHAPE, NEURONS = (8, 20, 24), {"a": 6, "b": 5}
CORE = {"input_channels": 1, "hidden_channels": 8, "input_kern": 5, "hidden_kern": 3, "layers": 2, "stack": -1}


def encoder(shifter=False, modulator=False, **options):
    readout = MultiReadoutBase(dict.fromkeys(NEURONS, SHAPE), NEURONS, FullGaussian2d, bias=True, init_sigma=0.1)
    return FiringRateEncoder(
        Stacked2dCore(**CORE, gamma_input=0.5),
        readout,
        shifter=MLPShifter(NEURONS) if shifter else None,
        modulator=MLPModulator(NEURONS, gamma_modulator=2.0) if modulator else None,
        **options,
    )


def batch(images=3):
    return {"pupil_center": torch.randn(images, 2), "behavior": torch.randn(images, 3)}


def test_encoder_is_core_readout_and_nonlinearity():
    model, x = encoder(elu_offset=0.3).eval(), torch.randn(3, 1, 20, 24)
    want = F.elu(model.readout["b"](model.core(x)) + 0.3) + 1
    torch.testing.assert_close(model(x, data_key="b", responses=torch.rand(3, 5), image_id=1), want)
    torch.testing.assert_close(model.predict_mean(x, data_key="b"), want)
    torch.testing.assert_close(model.predict_variance(x, data_key="b"), want)
    with pytest.raises(KeyError, match="data_key: want one of a, b, got 'c'"):
        model(x, data_key="c")


@pytest.mark.parametrize(
    ("name", "config", "function"),
    [
        ("elu", None, lambda x: F.elu(x) + 1),
        ("exp", None, torch.exp),
        ("softplus", None, lambda x: torch.logaddexp(x, torch.zeros(()))),
        ("identity", None, lambda x: x),
        ("AdaptiveELU", {"xshift": 0.5, "yshift": 2.0}, lambda x: F.elu(x - 0.5) + 2),
    ],
)
def test_nonlinearities(name, config, function):
    model = encoder(nonlinearity_type=name, nonlinearity_config=config).eval()
    x = torch.randn(3, 1, 20, 24)
    torch.testing.assert_close(model(x, data_key="a"), function(model.readout["a"](model.core(x))))


def test_unknown_nonlinearity_and_idle_offset():
    with pytest.raises(ValueError, match="nonlinearity_type: want one of elu, exp"):
        encoder(nonlinearity_type="tanh")
    with pytest.warns(UserWarning, match="elu_offset has no effect with nonlinearity_type='exp'"):
        encoder(nonlinearity_type="exp", elu_offset=1.0)


def test_shift_comes_from_the_pupil():
    model, x, fields = encoder(shifter=True).eval(), torch.randn(3, 1, 20, 24), batch()
    got = model(x, data_key="a", **fields)
    shift = model.shifter["a"](fields["pupil_center"])
    assert shift.abs().max() < 1
    want = F.elu(model.readout["a"](model.core(x), shift=shift)) + 1
    torch.testing.assert_close(got, want)
    assert not torch.allclose(got, F.elu(model.readout["a"](model.core(x))) + 1)
    with pytest.raises(ValueError, match=r"pupil_center: want \[B, 2\] for the shifter, got None"):
        model(x, data_key="a")
    with pytest.raises(ValueError, match=r"pupil_center: want \[B, 2\], got \(3, 4\)"):
        model(x, data_key="a", pupil_center=torch.randn(3, 4))


def test_gain_comes_from_behaviour():
    model, x, fields = encoder(modulator=True).eval(), torch.randn(3, 1, 20, 24), batch()
    gains = model.modulator["b"].gains(fields["behavior"])
    assert gains.shape == (3, 5)
    assert (gains >= 1).all()
    readout = model.readout["b"](model.core(x))
    torch.testing.assert_close(model(x, data_key="b", **fields), F.elu(readout * gains) + 1)
    chosen = model(x, data_key="b", out_idx=[4, 1], **fields)
    torch.testing.assert_close(chosen, model(x, data_key="b", **fields)[:, [4, 1]])
    with pytest.raises(ValueError, match=r"behavior: want \[B, K\] for the modulator, got None"):
        model(x, data_key="b")


def test_penalty_has_each_part_once():
    model = encoder(shifter=True, modulator=True)
    modulator = model.modulator["a"].modulator_networks[0][-2].weight.abs().mean() * 2
    want = 0.5 * model.core.laplace() + model.readout["a"].regularizer() + modulator
    torch.testing.assert_close(model.regularizer("a"), want)
    model.regularizer("a", detach_core=True).backward()
    assert all(p.grad is None for p in model.core.parameters())
    assert model.readout["a"]._features.grad is not None
    affine = StaticAffine2dShifter(NEURONS, gamma_shifter=3.0)
    torch.testing.assert_close(affine.regularizer("b"), 3 * affine["b"].weight.square().mean())


def test_one_readout_for_all_calls():
    model = FiringRateEncoder(Stacked2dCore(**CORE), PointPooled2d(SHAPE, 7, 1, True, 2, 0.1)).eval()
    x = torch.randn(3, 1, 20, 24)
    torch.testing.assert_close(model(x, data_key="any"), F.elu(model.readout(model.core(x))) + 1)
    assert model.regularizer().ndim == 0


def test_detached_core_gets_no_gradient():
    model, x = encoder(), torch.randn(3, 1, 20, 24)
    model(x, data_key="a", detach_core=True).sum().backward()
    assert all(p.grad is None for p in model.core.parameters())


def test_frozen_core_stays_the_same_function():
    """Neither gradients nor running statistics change it, whatever mode the encoder is set to."""
    model, x = encoder().freeze_core(), torch.randn(8, 1, 20, 24)
    before = {name: value.clone() for name, value in model.core.state_dict().items()}
    model.train()
    assert not any(m.training for m in model.core.modules())
    assert model.readout.training
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(x, data_key="a").sum().backward()
        optimizer.step()
    for name, value in model.core.state_dict().items():
        assert value.equal(before[name]), name
    assert model.freeze_core(False).core.training
    assert all(p.requires_grad for p in model.core.parameters())


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda c: Stacked2dCore(**{**CORE, "input_channels": c}),
        lambda c: SE2dCore(c, 8, 5, 3, layers=3, n_se_blocks=1, se_reduction=4, depth_separable=True, stack=-1),
        lambda c: SE2dCore(c, 8, 5, 3, layers=3, stack=None),
        lambda c: RotationEquivariant2dCore(c, 4, 5, 3, layers=2, num_rotations=4, stack=-1),
        lambda c: LinearNonlinearCore(c, 8, 5),
        lambda c: TransferLearningCore(c, nn.Sequential(nn.Conv2d(c, 8, 3), nn.ReLU(), nn.MaxPool2d(2)), 3),
    ],
)
def test_no_layout_changes_between_images_and_readout(make, channels):
    """Every map is channels-last from the first convolution on, and so is its gradient."""
    model = FiringRateEncoder(make(channels), nn.Identity())
    seen = []

    def look(module, inputs, output):
        if output.dim() == 4 and output.shape[1] > 1:
            seen.append((module, output.is_contiguous(memory_format=torch.channels_last)))

    for module in model.core.modules():
        module.register_forward_hook(look)
    out = model.features(torch.randn(3, channels, 20, 24))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert seen
    assert all(is_last for _, is_last in seen), [type(m).__name__ for m, is_last in seen if not is_last]
    assert all(p.is_contiguous() for p in model.parameters())


@pytest.mark.parametrize(
    "core",
    [
        lambda: Basic3dCore(1, 8, (5, 5, 5), (3, 3, 3), layers=2, padding=True),
        lambda: Factorized3dCore(1, 8, 5, 5, 3, 3, final_nonlin=True, layers=2, padding=True),
        lambda: SimpleCoreWrapper((1, 8), (7,), (5,), 0, 0, 0, 0, cut_first_n_frames=6, input_padding=True),
    ],
)
def test_encoder_of_videos(core):
    """Shift and gain are those of the last frames, as the core loses the first."""
    readout = FullGaussian2d((8, 20, 24), 6, bias=True, init_sigma=0.1)
    shifter, modulator = MLPShifter(["a"]), MLPModulator({"a": 6}, gamma_modulator=1.0)
    model = FiringRateEncoder(core(), readout, shifter=shifter, modulator=modulator).eval()
    pupil, behavior = torch.randn(2, 14, 2), torch.randn(2, 14, 3)
    x = torch.randn(2, 1, 14, 20, 24)
    maps = model.features(x)
    assert maps.shape == (2, 8, 8, 20, 24)
    got = model(x, data_key="a", pupil_center=pupil, behavior=behavior)
    want = readout(maps, shift=shifter["a"](pupil[:, 6:])) * modulator["a"].gains(behavior[:, 6:])
    torch.testing.assert_close(got, F.elu(want) + 1)
    model.regularizer("a").backward()
    assert modulator["a"].modulator_networks[0][-2].weight.grad is not None


def test_networks_of_sessions_start_anew():
    for network in (MLPShifter(["a"], shift_layers=2), MLPModulator({"a": 5}), StaticAffine2dShifter(["a"])):
        before = [p.detach().clone() for p in network.parameters()]
        network.initialize()
        weights = [(b, p) for b, p in zip(before, network.parameters(), strict=True) if p.dim() == 2]
        assert all(not p.equal(b) for b, p in weights)
        with pytest.raises(KeyError, match="data_key: want one of a, got 'b'"):
            network.regularizer("b")


def test_several_outputs_are_modulated_apart():
    modulator = MLPModulator({"a": 5}, n_parameters_to_modulate=2)["a"]
    x, behavior = torch.rand(2, 3, 5), torch.randn(3, 3)
    gains = modulator.gains(behavior)
    assert gains.shape == (2, 3, 5)
    torch.testing.assert_close(modulator(x, behavior), x * gains)
    assert next(iter(MLPModulator({"a": 4}, {"a": 7})["a"].state_dict())) == "modulator_networks.0.0.weight"


def test_encoder_compiles_and_pickles():
    model, x = encoder(shifter=True, modulator=True).eval(), torch.randn(3, 1, 20, 24)
    fields = batch()
    want = model(x, data_key="a", **fields)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x, data_key="a", **fields), want)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x, data_key="a", **fields), want)
