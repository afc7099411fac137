"""What holds for every public layer alike: shifts, choices of neurons, keyword arguments, dtypes, warnings."""

import inspect
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path

import layer_checks
import new_processes
import numpy as np
import pytest
import torch
from torch import nn

from v1fast import functional, readouts
from v1fast._build import release
from v1fast.models import MultitaskLN
from v1fast.readouts import FullGaussian2d, MultiReadoutBase, MultiReadoutSharedParametersBase, _arguments

SHAPE, N, FRAMES = (5, 6, 9), 12, 3
VIDEO = (SHAPE[0], FRAMES, *SHAPE[1:])
POOLED = {"pool_steps": 1, "bias": True, "pool_kern": 2, "init_range": 0.3}
PYRAMID = {"scale_n": 1, "positive": False, "bias": True, "init_range": 0.3, "downsample": True, "type": "gauss5x5"}
MASKS = {"mask_l1_reg": 0, "weights_l1_reg": 0, "laplace_mask_reg": 0, "mask_size": SHAPE[1:]}
PREDICTOR = {"grid_mean_predictor": {"hidden_layers": 1}, "source_grid": np.random.default_rng(0).normal(size=(N, 3))}

LAYERS = {
    "AttentionReadout": (SHAPE, {"bias": True}),
    "DenseReadout": (SHAPE, {"bias": True}),
    "DeterministicGaussian2d": (SHAPE, {"bias": True}),
    "FactorizedReadout": (VIDEO, MASKS | {"init_scales": [(0, 1), (0, 1)], "readout_bias": True}),
    "FullFactorized2d": (SHAPE, {"bias": True, "init_noise": 1.0}),
    "FullGaussian2d": (SHAPE, {"bias": True} | PREDICTOR),
    "FullPointPooled2d": (SHAPE, POOLED | PREDICTOR | {"shared_features": {"match_ids": [0, 1, 2, 3] * 3}}),
    "Gaussian2d": (SHAPE, {"bias": True}),
    "Gaussian3d": (SHAPE, {"bias": True}),
    "GaussianMaskReadout": (VIDEO, {}),
    "GeneralizedFullGaussianReadout2d": (SHAPE, {"bias": True, "inferred_params_n": 2}),
    "GeneralizedPointPooled2d": (SHAPE, POOLED | {"inferred_params_n": 2}),
    "PointGaussianReadout": (VIDEO, {"bias": True}),
    "PointPooled2d": (SHAPE, POOLED),
    "PointPyramid2d": (SHAPE, PYRAMID),
    "RemappedGaussian2d": (SHAPE, {"bias": True}),
    "SeparableReadout": (SHAPE, {"rank": 2}),
    "SpatialTransformerPooled3d": (VIDEO, {"init_range": 0.3}),
    "UltraSparse": (SHAPE, {"bias": True, "init_mu_range": 0.5, "init_sigma_range": 0.5, "shared_mean": True}),
}
NO_LAYERS = {"ClonedReadout", "ConfigurationError", "MultiReadoutBase", "MultiReadoutSharedParametersBase", "Readout"}
OTHER_NAMES = {
    "FullSXF",
    "KlindtReadoutWrapper3D",
    "SpatialTransformerPooled2d",
    "SpatialTransformerPyramid2d",
    "SpatialXFeatureLinear",
}
every_layer = pytest.mark.parametrize("name", LAYERS)
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def nothing_was_warned_of(monkeypatch):
    monkeypatch.setattr(_arguments, "_warned", set())


def make(name, neurons=N, **options):
    shape, defaults = LAYERS[name]
    return getattr(readouts, name)(shape, neurons, **defaults | options)


def chosen_by(layer):
    """The name of the argument that chooses neurons."""
    return "subs_idx" if isinstance(layer, readouts.SpatialTransformerPooled3d) else "out_idx"


def inputs(name, batch=4):
    """Images, and a video; of a layer that reads videos alone, the video."""
    maps = [torch.randn(batch, *SHAPE), torch.randn(batch, *VIDEO)]
    return maps[1:] if name == "SpatialTransformerPooled3d" else maps


def test_every_layer_is_in_the_table():
    assert {*LAYERS, *NO_LAYERS, *OTHER_NAMES} == set(readouts.__all__)
    assert all(getattr(readouts, name).__name__ != name for name in OTHER_NAMES)


# Shifts, neurons, dtypes ----------------------------------------------------------------------------------------------


@every_layer
def test_one_shift_for_all_images(name):
    layer = make(name).eval()
    for x in inputs(name):
        layer_checks.assert_broadcasts_shift(layer, x)


def _calls():
    x, grid, weight = torch.randn(4, 5, 6, 9), torch.rand(7, 2) - 0.5, torch.randn(7, 5)
    return {
        "gaussian_readout": lambda shift: functional.gaussian_readout(x, grid, None, weight, shift=shift),
        "levels_readout": lambda shift: functional.levels_readout([x], grid, weight, shift=shift),
        "gather_levels": lambda shift: functional.gather_levels([x], grid, shift),
        "pooled_readout": lambda shift: functional.pooled_readout(
            x, grid, weight.repeat(1, 2), shift=shift, pool_kernel=2, pool_steps=1
        ),
    }


@pytest.mark.parametrize("name", _calls())
def test_functions_take_one_shift_for_all_images(name):
    call = _calls()[name]
    one = torch.tensor([[0.1, -0.2]], requires_grad=True)
    each = one.detach().repeat(4, 1).requires_grad_()
    got, want = call(one), call(each)
    assert got.equal(want)
    got.square().sum().backward()
    want.square().sum().backward()
    torch.testing.assert_close(one.grad, each.grad.sum(0, keepdim=True), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"shift: want \[B, 2\] = \(4, 2\), got \(1, 3\)"):
        call(torch.zeros(1, 3))


@every_layer
@pytest.mark.parametrize("out_idx", [[N], [-N - 1], [0, 3, N + 5], torch.tensor([-(2**40)]), np.array([2**40])])
def test_neurons_that_are_not_there(name, out_idx):
    layer = make(name)
    x = inputs(name)[-1]
    with pytest.raises(IndexError, match=rf"out_idx: want indices from -{N} to {N - 1}, got -?\d+"):
        layer(x, **{chosen_by(layer): out_idx})
    last = layer.eval()(x, **{chosen_by(layer): [-N, N - 1]})
    torch.testing.assert_close(last, layer(x)[..., [0, N - 1]], rtol=1e-4, atol=1e-5)


def test_neurons_that_are_not_there_in_other_modules():
    multi = MultiReadoutBase({"a": SHAPE, "b": SHAPE}, {"a": N, "b": N}, FullGaussian2d, clone_readout=True, bias=True)
    cells = MultitaskLN(SHAPE, 4, [0, 0, 1, 1], np.zeros((4, 2)), (3, 3), 2)
    for call in (
        partial(multi, torch.randn(2, *SHAPE), data_key="a"),
        partial(multi, torch.randn(2, *SHAPE), data_key="b"),
        partial(cells, torch.randn(2, *VIDEO)),
    ):
        for out_idx in ([N], [-N - 1]):
            with pytest.raises(IndexError, match="out_idx: want indices from"):
                call(out_idx=out_idx)


@every_layer
def test_the_default_dtype_is_respected(name):
    torch.set_default_dtype(torch.float64)
    try:
        layer = make(name)
        state = layer.state_dict()
        assert all(t.dtype == torch.float64 for t in state.values() if t.is_floating_point())
        assert layer(inputs(name)[-1]).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@every_layer
def test_number_of_neurons(name):
    assert make(name).number_of_neurons() == N


# Keyword arguments ----------------------------------------------------------------------------------------------------

# What trainers, data sets (Sensorium's among them) and configurations bring along.
BATCH_WORDS = """
behavior pupil_center images responses repeats loader data_key trial_idx frames frame_image_id image_class speed
running seeds shifter samples sample_rate stimulus targets weights masks session mouse neuron_ids times timestamps
eye_pos condition_hash image_onset indices unit_idx z y
"""
OPTIONS_WORDS = """
loader data_info gamma_input gamma_hidden shifter share_features share_grid share_transform shared_match_ids
source_grids grid_mean_predictor_type in_shapes_dict n_neurons_dict gauss_type init_sigma init_sigma_range sigma_range
pool_steps pool_kern num_filters positive_weights normalize init_noise gamma_masks gamma_features readout_gamma
nonlinearity batch_size seed verbose
"""

BATCH, OPTIONS = BATCH_WORDS.split(), OPTIONS_WORDS.split()


def misspelt(name):
    """Two letters exchanged, one left out, one too many."""
    return name[:1] + name[2] + name[1] + name[3:], name[:2] + name[3:], name[:2] + name[1:]


def takes_any(function):
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


@every_layer
def test_what_batches_and_configurations_bring_along_is_silent(name):
    cls = getattr(readouts, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        own = _arguments.arguments(cls, "__init__")
        layer = make(name, **{key: None for key in OPTIONS if key not in own} if takes_any(cls.__init__) else {})
        layer(inputs(name)[-1], **dict.fromkeys(BATCH))


@every_layer
def test_misspelt_arguments_of_forward(name):
    layer = make(name)
    x = inputs(name)[-1]
    for argument in ("shift", chosen_by(layer)):
        for typo in misspelt(argument):
            with pytest.warns(
                UserWarning, match=f"{name} ignores the argument '{typo}': did you mean '{argument}'"
            ) as w:
                layer(x, **{typo: None})
            assert [each.filename for each in w] == [__file__]
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                layer(x, **{typo: None})  # once


@every_layer
def test_misspelt_arguments_of_the_constructor(name):
    cls = getattr(readouts, name)
    for argument in ("init_noise", "feature_reg_weight", "batch_sample", "mean_activity", "bias"):
        if argument not in _arguments.arguments(cls, "__init__"):
            continue
        for typo in misspelt(argument):
            if not takes_any(cls.__init__):
                with pytest.raises(TypeError, match=typo):
                    make(name, **{typo: None})
                continue
            with pytest.warns(UserWarning, match=f"{name} ignores the argument '{typo}': did you mean") as caught:
                make(name, **{typo: None})
            assert {each.filename for each in caught} == {__file__}


def test_a_warning_that_is_raised_is_raised_again():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(UserWarning, match="init_sigam"):
                make("FullGaussian2d", init_sigam=1)


@pytest.mark.parametrize("cls", [MultiReadoutBase, MultiReadoutSharedParametersBase])
def test_misspelt_arguments_of_several_sessions(cls):
    def multi(**options):
        return cls({"a": SHAPE}, {"a": N}, FullGaussian2d, bias=True, **options)

    typos = {"init_sigam": "init_sigma", "clone_readuot": "clone_readout"}
    if cls is MultiReadoutSharedParametersBase:
        typos |= {"share_fetures": "share_features", "source_gridss": "source_grids"}
    for typo, argument in typos.items():
        with pytest.warns(UserWarning, match=f"{cls.__name__} ignores the argument {typo!r}: did you mean") as caught:
            multi(**{typo: None})
        assert [(f"{argument!r}?" in str(w.message), w.filename) for w in caught] == [(True, __file__)]
    layer, x = multi(), torch.randn(2, *SHAPE)
    with pytest.warns(UserWarning, match="FullGaussian2d ignores the argument 'shfit'"):
        layer(x, data_key="a", shfit=None)
    with pytest.warns(UserWarning, match=f"{cls.__name__} ignores the argument 'data_kye': did you mean 'data_key'"):
        layer(x, data_kye="a")
    with pytest.warns(UserWarning, match=f"{cls.__name__} ignores the argument 'init_simga'"):
        layer.add_session("b", 3, init_simga=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x, data_key="a", **dict.fromkeys(name for name in BATCH if name != "data_key"))
        multi(**dict.fromkeys(name for name in BATCH if name != "data_key"))


class Own(FullGaussian2d):
    def __init__(self, *args, own_option=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.own_option = own_option


def test_a_subclass_has_arguments_of_its_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Own(SHAPE, N, True, own_option=2, init_sigma=0.3)
    with pytest.warns(UserWarning, match="Own ignores the argument 'own_optoin': did you mean 'own_option'"):
        Own(SHAPE, N, True, own_optoin=2)
    with pytest.warns(UserWarning, match="Own ignores the argument 'init_sigam': did you mean 'init_sigma'"):
        Own(SHAPE, N, True, init_sigam=2)
    assert list(inspect.signature(FullGaussian2d).parameters)[:3] == ["in_shape", "outdims", "bias"]


# Where warnings point -------------------------------------------------------------------------------------------------


def in_a_model(layer):
    return nn.Sequential(nn.Identity(), nn.Sequential(layer))


def hooked(layer):
    layer.register_forward_hook(lambda *_: None)
    layer.register_full_backward_hook(lambda *_: None)
    return layer


def compiled_in_place(layer):
    layer.compile(backend="aot_eager", fullgraph=True)
    return layer


WAYS = {
    "called": lambda layer: layer,
    "in a model": in_a_model,
    "with hooks": hooked,
    "compiled": partial(torch.compile, backend="aot_eager", fullgraph=True),
    "compiled, of any shape": partial(torch.compile, backend="aot_eager", fullgraph=True, dynamic=True),
    "compiled in a model": lambda layer: torch.compile(in_a_model(layer), backend="aot_eager", fullgraph=True),
    "compiled in place": compiled_in_place,
}


@pytest.mark.parametrize("way", WAYS)
def test_the_shape_warning_points_at_the_callers_line(way):
    torch.compiler.reset()
    layer = WAYS[way](FullGaussian2d(SHAPE, N, True).eval())
    x = torch.randn(2, 5, 7, 8)
    with pytest.warns(UserWarning, match=r"where the readout was made for \(5, 6, 9\)") as caught:
        layer(x)
    lines, first = inspect.getsourcelines(test_the_shape_warning_points_at_the_callers_line)
    want = (__file__, first + lines.index("        layer(x)\n"))
    assert [(w.filename, w.lineno) for w in caught if "made for" in str(w.message)] == [want]


@pytest.mark.skipif(release(torch.__version__) < (2, 6), reason="its compiler fails where pytest records a warning")
@pytest.mark.parametrize("name", ["FullGaussian2d", "PointPooled2d", "DenseReadout"])
def test_compiled_layers_ignore_arguments_in_one_graph(name):
    torch.compiler.reset()
    layer, x = make(name).eval(), torch.randn(2, *SHAPE)
    step = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with pytest.warns(UserWarning, match="did you mean 'shift'") as caught:
        got = step(x, shfit=torch.zeros(2, 2), behavior=torch.zeros(2, 3), repeats=3, session="a")
    assert caught[0].filename == __file__
    torch.testing.assert_close(got, layer(x))


class Legacy(readouts.Gaussian2d):
    pass


DEPRECATED = {
    "gamma_readout": lambda: make("GeneralizedPointPooled2d", gamma_readout=1.0),
    "average": lambda: make("PointPooled2d").regularizer(average=True),
    "a class": lambda: MultiReadoutBase({"a": SHAPE}, {"a": N}, readouts.Gaussian2d, bias=True),
    "a subclass": lambda: Legacy(SHAPE, N, True),
}


@pytest.mark.parametrize("what", DEPRECATED)
def test_deprecations_point_at_the_callers_line(what):
    with pytest.warns(DeprecationWarning, match="is deprecated") as caught:
        DEPRECATED[what]()
    assert {w.filename for w in caught} == {__file__}


# Names ----------------------------------------------------------------------------------------------------------------

SUBMODULES = {
    "attention": ["AttentionReadout", "Readout"],
    "base": ["ClonedReadout", "ConfigurationError", "Readout", "Reduction"],
    "factorized": ["FullFactorized2d", "FullSXF", "SpatialXFeatureLinear"],
    "gaussian": [
        "DeterministicGaussian2d",
        "FullGaussian2d",
        "Gaussian2d",
        "Gaussian3d",
        "GeneralizedFullGaussianReadout2d",
        "RemappedGaussian2d",
        "UltraSparse",
    ],
    "multi_readout": ["MultiReadoutBase", "MultiReadoutSharedParametersBase", "FullGaussian2d", "ClonedReadout"],
    "point_pooled": ["GeneralizedPointPooled2d", "PointPooled2d", "SpatialTransformerPooled3d"],
    "pyramid": ["PointPyramid2d", "Pyramid"],
}


@pytest.mark.parametrize("module", SUBMODULES)
def test_submodules_have_neuralpredictors_names(module):
    found = import_module(f"v1fast.readouts.{module}")
    for name in SUBMODULES[module]:
        assert getattr(found, name) is getattr(readouts, name, getattr(found, name))
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(found, "no_such_name")  # noqa: B009


IMPORTS = (
    "",
    "import v1fast.accelerate",
    "import v1fast.accelerate as other; other.Report",
    "from v1fast.accelerate import accelerate, restore, Report; assert accelerate(model) == v1fast.accelerate(model)",
    "from v1fast import accelerate; accelerate.LIBRARIES; accelerate(model)",
    "import sys, importlib; del sys.modules['v1fast.accelerate']; import v1fast.accelerate",
    "import importlib, sys; importlib.reload(sys.modules['v1fast.accelerate'])",
    "import copy, pickle; assert copy.deepcopy(v1fast.accelerate) is pickle.loads(pickle.dumps(v1fast.accelerate))",
)


@pytest.mark.once
def test_accelerate_is_called_whatever_was_imported():
    call = "v1fast.accelerate(model, sampler='philox', channels_last=False); v1fast.accelerate.accelerate(model)"
    model = "import torch, v1fast; model = torch.nn.Linear(2, 2)"
    new_processes.run([f"{model}\n{imports}\n{call}; v1fast.restore(model)" for imports in IMPORTS])


@pytest.mark.once
def test_parts_of_the_package_are_attributes_and_imported_when_used():
    lazy = ("models", "rsa", "data", "plots", "doctor")
    slow = ("matplotlib", "torch._dynamo", "torch._inductor", *(f"v1fast.{name}" for name in lazy))
    imports = "import torch, sys; before = set(sys.modules); import v1fast; dir(v1fast)"
    used = "v1fast.rsa.compare, v1fast.models.Stacked2dCore, v1fast.data.simulate, v1fast.plots.positions"
    said = new_processes.run(
        [
            f"{imports}; print(({{*sys.modules}} - before) & {{*{slow}}})",
            f"import v1fast; {used}, v1fast.doctor.examine, v1fast.functional.rdm, v1fast.readouts.FullSXF",
            f"import v1fast; assert {{*{lazy}, 'accelerate', 'readouts', 'functional'}} <= {{*dir(v1fast)}}",
            "import v1fast\ntry: v1fast.nothing\nexcept AttributeError as e: assert 'nothing' in str(e)",
        ]
    )
    assert said[0] == "set()"


@every_layer
def test_says_what_it_is(name):
    layer = make(name)
    shown = layer.extra_repr().split(", ")
    shape, learned = LAYERS[name][0], "bias" in dict(layer.named_parameters())
    assert shown[0] == f"{' x '.join(map(str, shape))} -> {N}"
    assert ("bias" in shown) == learned


@every_layer
def test_feature_l1_is_of_the_weights_of_the_channels(name):
    layer = make(name)
    of_its_own = {"DenseReadout": "weight", "FactorizedReadout": "feature_weights", "SeparableReadout": "Wc"}
    weights = getattr(layer, of_its_own.get(name, "features"))
    assert layer.feature_l1().item() == pytest.approx(weights.abs().sum().item(), rel=1e-5)


@every_layer
def test_initialize_returns_to_the_mean_activity_of_the_constructor(name):
    mean = torch.rand((2, N) if name == "SeparableReadout" else N)
    layer = make(name, mean_activity=mean)
    assert layer.bias.equal(mean.expand_as(layer.bias))
    layer.initialize(mean + 1)
    assert layer.bias.equal((mean + 1).expand_as(layer.bias))
    layer.initialize()
    assert layer.bias.equal(mean.expand_as(layer.bias))


@pytest.mark.parametrize("name", sorted({*LAYERS, *NO_LAYERS} - {"ConfigurationError", "Readout"}))
def test_what_differs_from_the_published_class_is_said_in_the_docs(name):
    table = (Path(__file__).parents[1] / "docs" / "layers.md").read_text()
    assert f"\n| `{name}`" in table
    of_its_own = name in ("DenseReadout", "FullPointPooled2d")
    assert ("docs/layers.md" in getattr(readouts, name).__doc__) != of_its_own
