"""Encoders in a file, and encoders out of released checkpoints."""

import json
import os
import struct
import warnings

import new_processes
import numpy as np
import pytest
import torch
from torch import nn

from v1fast import models, readouts
from v1fast.models import FiringRateEncoder, Stacked2dCore

NEURONS, IMAGE = {"a": 6, "b": 5}, (20, 24)
CORE = {"input_channels": 1, "hidden_channels": 8, "input_kern": 5, "hidden_kern": 3, "layers": 3, "pad_input": False}
CORES = {
    "plain": lambda: Stacked2dCore(**CORE, stack=-1),
    "all maps": lambda: Stacked2dCore(**{**CORE, "pad_input": True}),
    "two maps": lambda: Stacked2dCore(**CORE, stack=-2),
    "other channels": lambda: Stacked2dCore(**{**CORE, "hidden_channels": [4, 6, 8], "hidden_kern": [3, 5]}, stack=-1),
    "separable": lambda: Stacked2dCore(**CORE, stack=-1, depth_separable=True, conv_bias=False),
    "attention": lambda: Stacked2dCore(**CORE, stack=-1, attention_conv=True),
    "skips": lambda: Stacked2dCore(**CORE, stack=-1, skip=2),
    "no norm": lambda: Stacked2dCore(**CORE, stack=-1, batch_norm=False),
    "biases": lambda: Stacked2dCore(**CORE, stack=-1, batch_norm_scale=False, final_batchnorm_scale=False),
    "scales": lambda: Stacked2dCore(**CORE, stack=-1, bias=False),
    "squeeze": lambda: models.SE2dCore(**CORE, stack=-1, n_se_blocks=1, se_reduction=4),
    "rotation": lambda: models.RotationEquivariant2dCore(**CORE, stack=-1, num_rotations=4, upsampling=3),
    "rotation, apart": lambda: models.RotationEquivariant2dCore(
        **CORE, stack=-1, num_rotations=4, rot_eq_batch_norm=False, bias=False
    ),
}
PLACES = {name: np.random.default_rng(i).normal(size=(n, 3)) for i, (name, n) in enumerate(NEURONS.items())}
SAME = {"shared_match_ids": {"a": [0, 1, 2, 3, 4, 0], "b": [4, 3, 2, 1, 0]}, "share_features": True}
FULL, PREDICTED = readouts.FullGaussian2d, {"grid_mean_predictor_type": "cortex", "source_grids": PLACES}
READOUTS = {
    "full": (FULL, {"bias": True}),
    "isotropic": (FULL, {"bias": False, "gauss_type": "isotropic"}),
    "uncorrelated": (FULL, {"bias": True, "gauss_type": "uncorrelated"}),
    "a linear predictor": (FULL, {"bias": True, "grid_mean_predictor": {}, **PREDICTED}),
    "a hidden layer": (
        FULL,
        {"bias": True, "grid_mean_predictor": {"hidden_layers": 1, "hidden_features": 7, "final_tanh": True}}
        | PREDICTED,
    ),
    "shared features": (FULL, {"bias": True, **SAME}),
    "shared grid": (FULL, {"bias": True, "share_grid": True, **SAME}),
    "several outputs": (readouts.GeneralizedFullGaussianReadout2d, {"bias": True, "inferred_params_n": 2}),
    "pooled": (readouts.PointPooled2d, {"pool_steps": 2, "bias": True, "pool_kern": 2, "init_range": 0.1}),
    "pyramid": (
        readouts.PointPyramid2d,
        {"scale_n": 2, "positive": False, "bias": True, "init_range": 0.1, "downsample": True, "type": "laplace5x5"},
    ),
    "factorised": (readouts.FullFactorized2d, {"bias": True}),
}


def encoder(core="plain", readout="full", shifter=None, modulator=None, **options):
    made = CORES[core]()
    shape = tuple(made.eval()(torch.zeros(1, 1, *IMAGE)).shape[1:])
    kind, arguments = READOUTS[readout]
    multi = readouts.MultiReadoutSharedParametersBase(dict.fromkeys(NEURONS, shape), NEURONS, kind, **arguments)
    model = FiringRateEncoder(made, multi, shifter=shifter, modulator=modulator, **options)
    with torch.no_grad():  # nothing keeps the value it starts from
        for name, value in model.state_dict().items():
            if value.is_floating_point() and not name.endswith(("filter", "zero")) and "rotate_hermite" not in name:
                value.copy_(torch.rand(value.shape) + 0.1 if "running_var" in name else 0.3 * torch.randn(value.shape))
    return model.eval()


def fields():
    return {"pupil_center": torch.randn(3, 2), "behavior": torch.randn(3, 3)}


def assert_alike(one, other):
    one_state, other_state = one.state_dict(), other.state_dict()
    assert list(one_state) == list(other_state)
    for name, value in one_state.items():
        assert value.equal(other_state[name]), name
    x, batch = torch.randn(3, 1, *IMAGE), fields()
    for name in NEURONS:
        torch.testing.assert_close(one(x, data_key=name, **batch), other(x, data_key=name, **batch))


# save and load


@pytest.mark.parametrize("core", CORES)
def test_any_core_comes_back(core, tmp_path):
    model = encoder(core)
    model.save(tmp_path / "model.safetensors")
    assert_alike(FiringRateEncoder.load(tmp_path / "model.safetensors"), model)


@pytest.mark.parametrize("readout", READOUTS)
def test_any_readout_comes_back(readout, tmp_path):
    model = encoder(readout=readout)
    model.save(tmp_path / "model.safetensors")
    loaded = FiringRateEncoder.load(tmp_path / "model.safetensors")
    assert_alike(loaded, model)
    for one, other in zip(loaded.readout.values(), model.readout.values(), strict=True):
        assert type(one) is type(other)
        assert repr(one) == repr(other)
    if "shared features" in readout:
        assert loaded.readout["a"].shared_features is loaded.readout["b"].shared_features


def test_everything_else_comes_back(tmp_path):
    model = encoder(
        shifter=models.MLPShifter(NEURONS, shift_layers=2, gamma_shifter=0.5),
        modulator=models.MLPModulator(NEURONS, gamma_modulator=0.25),
        nonlinearity_type="AdaptiveELU",
        nonlinearity_config={"xshift": 0.5, "yshift": 1.5},
    )
    normalization = {"images": {"mean": np.float32(113.5), "std": np.array([59.5, 2.0])}, "unit": "grey level"}
    model.save(tmp_path / "model.safetensors", normalization)
    loaded = FiringRateEncoder.load(tmp_path / "model.safetensors")
    assert_alike(loaded, model)
    assert loaded.normalization == {"images": {"mean": 113.5, "std": [59.5, 2.0]}, "unit": "grey level"}
    assert set(loaded.versions) == {"v1fast", "torch", "python"}
    torch.testing.assert_close(loaded.regularizer("a"), model.regularizer("a"))
    assert not loaded.core_is_frozen
    loaded.freeze_core().save(tmp_path / "again.safetensors")
    assert not FiringRateEncoder.load(tmp_path / "again.safetensors").train().core.training
    assert FiringRateEncoder.load(tmp_path / "again.safetensors").normalization == loaded.normalization


def test_other_neurons_can_be_placed_by_a_loaded_encoder(tmp_path):
    model = encoder(readout="a hidden layer")
    grids = {name: torch.randn(4, 3) for name in NEURONS}
    want = {name: model.readout[name].place(grid) for name, grid in grids.items()}
    model.save(tmp_path / "model.safetensors")
    loaded = FiringRateEncoder.load(tmp_path / "model.safetensors")
    for name, grid in grids.items():
        assert loaded.readout[name].source_frame == model.readout[name].source_frame
        assert loaded.readout[name].place(grid).equal(want[name])
    bare = FiringRateEncoder.from_checkpoint(model.state_dict(), image_shape=IMAGE)
    with pytest.raises(ValueError, match="source_frame: want centre and scale"):
        bare.readout["a"].place(grids["a"])


def test_sessions_added_later_come_back(tmp_path):
    model = encoder(readout="a linear predictor")
    model.readout.add_session("c", 4, source_grids={"c": np.random.default_rng(3).normal(size=(4, 3))})
    model.save(tmp_path / "model.safetensors")
    loaded = FiringRateEncoder.load(tmp_path / "model.safetensors")
    assert list(loaded.readout) == ["a", "b", "c"]
    assert_alike(loaded, model)


def test_what_cannot_be_described_is_refused(tmp_path):
    model = encoder()
    model.core = nn.Conv2d(1, 8, 5)
    with pytest.raises(ValueError, match=r"core: want a module of v1fast's classes, got torch\.nn.*Conv2d"):
        model.save(tmp_path / "model.safetensors")
    core = models.TransferLearningCore(1, nn.Sequential(nn.Conv2d(1, 8, 5)), 1)
    with pytest.raises(ValueError, match=r"TransferLearningCore\.tl_model_name: want numbers, text"):
        FiringRateEncoder(core, nn.Identity()).save(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError):
        FiringRateEncoder.load(path)
    encoder().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read"):
        FiringRateEncoder.load(path)
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + size])

    def write(**changes):
        config = {**json.loads(header["__metadata__"]["v1fast"]), **changes}
        text = json.dumps({**header, "__metadata__": {"v1fast": json.dumps(config)}}).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])

    write(format=99)
    with pytest.raises(ValueError, match="want format 1 or less, got 99"):
        FiringRateEncoder.load(path)
    for name in ("os:system", "v1fast.cli:main", "v1fast._files:replace"):
        write(core={"class": name, "arguments": {}, "calls": []})
        with pytest.raises(ValueError, match="want a class of"):
            FiringRateEncoder.load(path)
    config = json.loads(header["__metadata__"]["v1fast"])
    write(core={**config["core"], "calls": [["__init__", {}]]})
    with pytest.raises(ValueError, match="want calls of add_session, got __init__"):
        FiringRateEncoder.load(path)
    del header["__metadata__"]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])
    with pytest.raises(ValueError, match="no description of an encoder; from_checkpoint reads bare tensors"):
        FiringRateEncoder.load(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    encoder().save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        encoder("squeeze").save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_installed_is_named(tmp_path):
    code = """
import importlib.util, sys
found = importlib.util.find_spec
hidden = ("safetensors", "lightning")
importlib.util.find_spec = lambda name, *rest: None if name in hidden else found(name, *rest)
import torch
from v1fast.models import FiringRateEncoder
encoder = FiringRateEncoder(torch.nn.Identity(), torch.nn.Identity())
for call in (lambda: encoder.save("x"), lambda: FiringRateEncoder.load("x")):
    try: call()
    except ModuleNotFoundError as error: print(error)
try: import v1fast.training
except ModuleNotFoundError as error: print(error)
"""
    (said,) = new_processes.run([code])
    needs = 'saving and loading encoders needs safetensors: pip install "v1fast[train]"'
    training = 'v1fast.training needs lightning: pip install "v1fast[train]"'
    assert said.splitlines() == [needs, needs, training]


# released checkpoints


@pytest.mark.parametrize("core", CORES)
def test_core_is_read_off_the_keys(core, tmp_path):
    model = encoder(core)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    padding = {"pad_input": core == "all maps"}
    found = FiringRateEncoder.from_checkpoint(tmp_path / "model.pth", image_shape=IMAGE, core_options=padding)
    assert_alike(found, model)
    assert type(found.core) is type(model.core)
    assert not found.training


@pytest.mark.parametrize("readout", READOUTS)
def test_readout_is_read_off_the_keys(readout):
    model = encoder(readout=readout)
    found = FiringRateEncoder.from_checkpoint(model.state_dict(), image_shape=IMAGE)
    assert_alike(found, model)
    assert type(found.readout["a"]) is type(model.readout["a"])
    assert found.readout["a"].in_shape == model.readout["a"].in_shape
    said = str(found.inferred)
    assert "neurons: {'a': 6, 'b': 5}" in said
    assert "not in the checkpoint:" in said
    assert "core pad_input: False" in said


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_shifter_and_modulator_are_read_off_the_keys(layers, bias):
    shifters = [models.MLPShifter(NEURONS, 2, 4, layers, bias=bias), models.StaticAffine2dShifter(NEURONS, bias=bias)]
    for shifter in shifters:
        modulator = models.MLPModulator(NEURONS, 3, 6, layers, bias=bias)
        model = encoder(shifter=shifter, modulator=modulator)
        assert_alike(FiringRateEncoder.from_checkpoint(model.state_dict(), image_shape=IMAGE), model)


@pytest.mark.parametrize("wrap", [{"state_dict": "model."}, {"model_state_dict": "module."}, {"": "net.encoder."}])
def test_wrapped_checkpoints(wrap, tmp_path):
    model = encoder()
    ((outer, prefix),) = wrap.items()
    inside = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save({outer: inside, "epoch": 3} if outer else inside, tmp_path / "last.ckpt")
    assert_alike(FiringRateEncoder.from_checkpoint(tmp_path / "last.ckpt", image_shape=IMAGE), model)


def test_one_readout_without_sessions():
    core = CORES["plain"]()
    model = FiringRateEncoder(core, FULL((8, 16, 20), 7, bias=True)).eval()
    found = FiringRateEncoder.from_checkpoint(model.state_dict(), image_shape=IMAGE)
    x = torch.randn(2, 1, *IMAGE)
    torch.testing.assert_close(found(x), model(x))


def test_what_does_not_fit_says_what_to_give(tmp_path):
    def fails(state, message, **options):
        with pytest.raises(ValueError, match=message):
            FiringRateEncoder.from_checkpoint(state, **{"image_shape": IMAGE, **options})

    state = encoder().state_dict()
    torch.save([1, 2], tmp_path / "list.pth")
    fails(tmp_path / "list.pth", r"list\.pth: cannot be read: it holds a list, no state_dict")
    (tmp_path / "text.pth").write_text("no checkpoint")
    fails(tmp_path / "text.pth", r"text\.pth: cannot be read")
    torch.save({"core": Stacked2dCore(**CORE)}, tmp_path / "pickle.pth")
    fails(tmp_path / "pickle.pth", r"pickle\.pth: cannot be read")
    fails({"weight": torch.zeros(1)}, "checkpoint: want one encoder, with keys that begin with core")
    fails({}, "got no tensors")
    two = {f"members.{i}.{name}": value for i in range(2) for name, value in state.items()}
    fails(two, r"got the prefixes members\.0\., members\.1\.")
    fails({"core.features.layer0.fancy.weight": torch.zeros(1)}, r"core\.features\.layer0: want a convolution")
    fails({**state, "readout.a._features": torch.zeros(1, 9, 1, 6)}, "got layers of .8, 8, 8.; pass core_options")
    fails({"core.x": torch.zeros(1)}, r"want keys core\.features\.layer0.*pass core=")
    fails({**state, "shifter.a.net.weight": torch.zeros(1)}, r"shifter: want keys mlp\.0\.weight or weight, got net")
    fails({**state, "modulator.a.net": torch.zeros(1)}, r"modulator: want keys modulator_networks\.0\.0\.weight")
    odd = {name: value for name, value in state.items() if not name.startswith("readout.b")}
    fails({**odd, "readout.b.grid": torch.zeros(1, 5, 1, 2)}, r"readout\.b: want the keys of a Gaussian")
    mixed = {name: v for name, v in encoder(readout="factorised").state_dict().items() if name.startswith("readout.b")}
    fails({**odd, **mixed}, "want one class for all sessions, got FullFactorized2d, FullGaussian2d")
    masks = encoder(readout="factorised").state_dict()
    fails(masks, r"readout\.spatial: want masks of \(20, 24\)", core_options={"pad_input": True})
    fails(state, "image_shape: want images that the core can read, got .3, 3.", image_shape=(3, 3))


def test_a_module_takes_the_place_of_what_is_unknown():
    core = nn.Sequential(nn.Conv2d(1, 8, 5), nn.ELU())
    model = FiringRateEncoder(core, FULL((8, 16, 20), 7, bias=True)).eval()
    other = nn.Sequential(nn.Conv2d(1, 8, 5), nn.ELU())
    found = FiringRateEncoder.from_checkpoint(model.state_dict(), core=other, image_shape=IMAGE)
    x = torch.randn(2, 1, *IMAGE)
    torch.testing.assert_close(found(x), model(x))
    assert found.core is other


def test_what_no_key_says_is_an_argument_and_reported(tmp_path):
    options = {"grid_mean_predictor": {"hidden_layers": 1, "final_tanh": True}, "source_grid": np.eye(7, 2)}
    model = FiringRateEncoder(models.Stacked2dCore(1, 8, 5, 3), FULL((24, *IMAGE), 7, bias=True, **options))
    given = {"images": {"mean": 113.5, "std": 59.6}}
    found = FiringRateEncoder.from_checkpoint(
        model.state_dict(), image_shape=IMAGE, core_options={"pad_input": True}, normalization=given
    )
    said = found.inferred
    assert said.assumed["normalisation of the images"] == found.normalization == given
    assert said.assumed["readout grid_mean_predictor final_tanh"] is True
    assert said.found["readout grid_mean_predictor"] == {"hidden_layers": 1, "hidden_features": 20}
    found.save(tmp_path / "model.safetensors")
    assert FiringRateEncoder.load(tmp_path / "model.safetensors").normalization == given
    plain = FiringRateEncoder.from_checkpoint(model.state_dict(), image_shape=IMAGE, core_options={"pad_input": True})
    assert plain.inferred.assumed["normalisation of the images"] == "that of the training data"
    assert plain.normalization == {}


@pytest.mark.real_data
def test_the_released_models(real_data):
    mouse = FiringRateEncoder.from_checkpoint(real_data / "sensorium_mouse_v1/sensorium_sota_model.pth")
    with np.load(real_data / "sensorium_mouse_v1/sensorium_sota_expected.npz") as expected, torch.no_grad():
        np.testing.assert_allclose(mouse(torch.from_numpy(expected["x"])), expected["y"], rtol=1e-5, atol=1e-5)
    folder = real_data / "macaque_v1_pointpooled"
    macaque = FiringRateEncoder.from_checkpoint(
        folder / "cppn_monkey_model3_PointPooled2d.pt",
        image_shape=(93, 93),
        core_options={"hidden_dilation": 2},
        readout_options={"pool_kern": 3},
    )
    assert isinstance(macaque.core, models.SE2dCore)
    with np.load(folder / "cppn_pointpooled_expected.npz") as expected, torch.no_grad():
        maps = macaque.features(torch.from_numpy(expected["x"]))
        np.testing.assert_allclose(maps, expected["features_in"], rtol=1e-5, atol=1e-5)
        for name, readout in macaque.readout.items():
            np.testing.assert_allclose(readout(maps), expected[f"y_{name}"], rtol=1e-4, atol=1e-4)


def test_nothing_is_said_where_nothing_is_odd():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FiringRateEncoder.from_checkpoint(encoder().state_dict(), image_shape=IMAGE)
