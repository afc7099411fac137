"""Cores, shifters and the encoder against neuralpredictors' and openretina's."""

import math
import types

import pytest
import torch
from neuralpredictors.layers import cores, encoders, hermite, readouts, shifters
from openretina.modules.core.base_core import SimpleCoreWrapper
from peers import side_by_side

from v1fast import models
from v1fast.readouts import FullGaussian2d, MultiReadoutBase

pytestmark = [*side_by_side.QUIET, pytest.mark.filterwarnings("ignore:Cutting frames")]

SMALL = {"input_channels": 1, "hidden_channels": 8, "input_kern": 5, "hidden_kern": 3, "layers": 3, "gamma_input": 0.7}
VIDEO = {
    "channels": (2, 4, 5),
    "temporal_kernel_sizes": (7, 3),
    "spatial_kernel_sizes": (5, 3),
    "gamma_input": 0.3,
    "gamma_temporal": 0.2,
    "gamma_in_sparse": 0.1,
    "gamma_hidden": 0.4,
    "cut_first_n_frames": 2,
}


@pytest.mark.parametrize("options", [{}, {"n_se_blocks": 2, "se_reduction": 4}, {"depth_separable": True, "stack": -1}])
def test_squeeze_and_excitation_core(options):
    ours, peer = side_by_side.twins(
        lambda: models.SE2dCore(**SMALL, **options, conv_bias=False),
        lambda: cores.SE2dCore(**SMALL, **options, independent_bn_bias=False),
    )
    side_by_side.move(ours, peer)
    inputs = torch.randn(side_by_side.DRAWS, 3, 1, 20, 24)
    for training in (True, False):
        ours.train(training), peer.train(training)
        side_by_side.assert_same_results(ours, peer, inputs)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"pad_input": False, "stack": -1, "upsampling": 3}])
def test_rotation_equivariant_core(options, monkeypatch):
    # Its factorials are of floats, which Python no longer takes.
    monkeypatch.setattr(hermite, "math", types.SimpleNamespace(factorial=lambda x: math.factorial(int(x))))
    options = {**SMALL, "num_rotations": 4, **options}
    torch.manual_seed(3)
    peer, their_next = cores.RotationEquivariant2dCore(**options, independent_bn_bias=False), torch.rand(1)
    torch.manual_seed(3)
    ours, my_next = models.RotationEquivariant2dCore(**options), torch.rand(1)
    assert my_next.equal(their_next)
    theirs = peer.state_dict()
    assert list(theirs) == list(ours.state_dict())
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6, msg=name)
    for name, buffer in peer.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    ours.load_state_dict(peer.state_dict())
    x = torch.randn(3, 1, 20, 24)
    for training in (True, False):
        ours.train(training), peer.train(training)
        torch.testing.assert_close(ours(x), peer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("trial", [False, True])
def test_mlp_shifter(layers, trial):
    options = {"data_keys": ["a", "b"], "input_channels": 3, "hidden_channels_shifter": 4, "shift_layers": layers}
    ours, peer = side_by_side.twins(lambda: models.MLPShifter(**options), lambda: shifters.MLPShifter(**options))
    pupil, index = torch.randn(5, 2 if trial else 3), torch.randn(5, 1) if trial else None
    torch.testing.assert_close(ours["b"](pupil, index), peer["b"](pupil, index))
    assert ours.regularizer("a") == peer.regularizer("a") == 0


def test_static_affine_shifter():
    options = {"data_keys": ["a"], "gamma_shifter": 2.0}
    ours, peer = side_by_side.twins(
        lambda: models.StaticAffine2dShifter(**options), lambda: shifters.StaticAffine2dShifter(**options)
    )
    pupil = torch.randn(5, 2)
    torch.testing.assert_close(ours["a"](pupil), peer["a"](pupil))
    torch.testing.assert_close(ours.regularizer("a"), peer.regularizer("a"))
    bias = {"a": torch.tensor([0.1, -0.2])}
    torch.manual_seed(0)
    ours.initialize(bias), torch.manual_seed(0), peer.initialize(bias)
    side_by_side.assert_same_state(ours, peer)


def encoder(library, shifter):
    """One of a library's classes: the same constructors, called alike."""
    core = library.core(**SMALL, stack=-1)
    readout = library.multi({"a": (8, 20, 24), "b": (8, 20, 24)}, {"a": 6, "b": 5}, library.readout, bias=True)
    shift = library.shifter(["a", "b"]) if shifter else None
    return library.encoder(core, readout, shifter=shift, elu_offset=0.3)


OURS = types.SimpleNamespace(
    core=models.Stacked2dCore,
    multi=MultiReadoutBase,
    readout=FullGaussian2d,
    shifter=models.MLPShifter,
    encoder=models.FiringRateEncoder,
)
THEIRS = types.SimpleNamespace(
    core=cores.Stacked2dCore,
    multi=readouts.MultiReadoutBase,
    readout=readouts.FullGaussian2d,
    shifter=shifters.MLPShifter,
    encoder=encoders.FiringRateEncoder,
)


@pytest.mark.parametrize("shifter", [False, True])
def test_encoder(shifter):
    ours, peer = side_by_side.twins(lambda: encoder(OURS, shifter), lambda: encoder(THEIRS, shifter))
    x, batch = torch.randn(3, 1, 20, 24), {"pupil_center": torch.randn(3, 2), "responses": torch.rand(3, 5)}
    ours.eval(), peer.eval()
    for data_key in ("a", "b"):
        got = ours(x, data_key=data_key, **batch)
        torch.testing.assert_close(got, peer(x, data_key=data_key, **batch), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.regularizer(data_key), peer.regularizer(data_key))


@pytest.mark.parametrize("kind", ["custom_separable", "separable"])
@pytest.mark.parametrize("options", [{}, {"input_padding": True, "maxpool_every_n_layers": 2}])
def test_openretinas_core(kind, options):
    gammas = {} if kind == "custom_separable" else {"gamma_input": 0, "gamma_in_sparse": 0, "gamma_hidden": 0}
    options = {**VIDEO, **options, **gammas, "convolution_type": kind}
    ours, peer = side_by_side.twins(lambda: models.SimpleCoreWrapper(**options), lambda: SimpleCoreWrapper(**options))
    side_by_side.move(ours, peer)
    inputs = torch.randn(2, 2, 2, 20, 14, 12)
    for training in (True, False):
        ours.train(training), peer.train(training)
        got, want = side_by_side.results(ours, inputs), side_by_side.results(peer, inputs)
        assert got.keys() == want.keys()
        for name, value in want.items():  # theirs keeps its filters, so that a copy in float64 cannot be made
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()), msg=name)


PLACES = {"a": torch.randn(6, 3).numpy(), "b": torch.randn(5, 3).numpy()}
TANH = {"hidden_layers": 1, "hidden_features": 30, "final_tanh": True}
CORTEX = {"grid_mean_predictor_type": "cortex", "source_grids": PLACES}
LAYOUTS = {  # core, its options, the readouts' options, whether there is a shifter
    "Sensorium": (cores.Stacked2dCore, {"depth_separable": True}, {"grid_mean_predictor": TANH, **CORTEX}, False),
    "Sensorium+": (cores.Stacked2dCore, {"depth_separable": True}, {"grid_mean_predictor": TANH, **CORTEX}, True),
    "nnvision": (cores.SE2dCore, {"n_se_blocks": 2, "se_reduction": 4}, {"gauss_type": "isotropic"}, False),
    "nndichromacy": (cores.SE2dCore, {}, {"grid_mean_predictor": {"hidden_layers": 0}, **CORTEX}, True),
    "nnsysident": (
        cores.Stacked2dCore,
        {"batch_norm_scale": False, "independent_bn_bias": False},
        {"share_features": True, "shared_match_ids": {"a": [0, 1, 2, 3, 4, 4], "b": [4, 3, 2, 1, 0]}},
        False,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_are_read(layout, tmp_path):
    make, core_options, options, shifter = LAYOUTS[layout]
    core = make(**{**SMALL, "pad_input": False}, stack=-1, **core_options)
    shape = tuple(core(torch.zeros(2, 1, 20, 24)).shape[1:])
    multi = readouts.MultiReadoutSharedParametersBase(
        {"a": shape, "b": shape}, {"a": 6, "b": 5}, readouts.FullGaussian2d, bias=True, **options
    )
    shift = shifters.MLPShifter(["a", "b"], hidden_channels_shifter=4, shift_layers=3) if shifter else None
    peer = encoders.FiringRateEncoder(core, multi, shifter=shift).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape)) if parameter.requires_grad else None
    torch.save(peer.state_dict(), tmp_path / "model.pth")
    ours = models.FiringRateEncoder.from_checkpoint(tmp_path / "model.pth", image_shape=(20, 24))
    x, pupil = torch.randn(3, 1, 20, 24), torch.randn(3, 2)
    for data_key in ("a", "b"):
        want = peer(x, data_key=data_key, pupil_center=pupil)
        torch.testing.assert_close(ours(x, data_key=data_key, pupil_center=pupil), want, rtol=1e-4, atol=1e-5)
