"""Stacked2dCore: parameters, initial weights, results and penalties against written-out facts and formulas."""

import copy
import inspect
import io
import pickle
import warnings

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v1fast.models import Stacked2dCore
from v1fast.models.regularizers import REGULARIZERS

SMALL = {"input_channels": 1, "hidden_channels": 4, "input_kern": 5, "hidden_kern": 3, "layers": 3}
SENSORIUM = {
    "input_channels": 1,
    "hidden_channels": 64,
    "input_kern": 9,
    "hidden_kern": 7,
    "layers": 4,
    "gamma_input": 6.3831,
    "pad_input": False,
    "input_regularizer": "LaplaceL2norm",
    "laplace_padding": None,
    "stack": -1,
    "use_avg_reg": False,
    "depth_separable": True,
}


def small(**options) -> Stacked2dCore:
    return Stacked2dCore(**{**SMALL, **options})


def randomised(core: Stacked2dCore, seed: int = 0) -> Stacked2dCore:
    """Every parameter and statistic away from the 0 or 1 it starts from, so that each has an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in [*core.named_parameters(), *core.named_buffers()]:
            if "running_var" in name:
                x.copy_(0.5 + torch.rand(x.shape, generator=generator))
            elif "filter" not in name and x.is_floating_point() and "zero" not in name:
                x.add_(0.2 * torch.randn(x.shape, generator=generator))
    return core


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*(shape or (2, 1, 12, 15)), generator=torch.Generator().manual_seed(seed))


class Objective(nn.Module):
    """A scalar of all that a core computes."""

    def __init__(self, core: Stacked2dCore) -> None:
        super().__init__()
        self.core = core

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x).square().mean() + self.core.regularizer()


# Parameters

STATS = "norm.running_mean norm.running_var norm.num_batches_tracked"
NORM = f"norm.weight norm.bias {STATS}"
CONV = "conv.weight conv.bias"
SEPARABLE = "ds_conv.in_depth_conv. ds_conv.spatial_conv. ds_conv.out_depth_conv."
ATTENTION = "attention_conv.rel_h attention_conv.rel_w"
PROJECTIONS = "attention_conv.key_conv. attention_conv.query_conv. attention_conv.value_conv."


def each(prefixes: str, names: str) -> str:
    return " ".join(prefix + name for prefix in prefixes.split() for name in names.split())


KEYS = {
    # options: (keys of layer 0, of layer 1, of layer 2)
    "default": ({}, f"conv.weight {NORM}", f"{CONV} {NORM}", f"{CONV} {NORM}"),
    "no bias": (
        {"bias": False},
        f"conv.weight {STATS} scale.scale",
        f"conv.weight {STATS} scale.scale",
        f"conv.weight {STATS} scale.scale",
    ),
    "bias list": (
        {"bias": [True, False, True]},
        f"conv.weight {NORM}",
        f"conv.weight {STATS} scale.scale",
        f"{CONV} {NORM}",
    ),
    "no convolution bias": (
        {"conv_bias": False},
        f"conv.weight {NORM}",
        f"conv.weight {NORM}",
        f"conv.weight {NORM}",
    ),
    "only convolution bias": (
        {"bias": False, "conv_bias": True},
        f"conv.weight {STATS} scale.scale",
        f"{CONV} {STATS} scale.scale",
        f"{CONV} {STATS} scale.scale",
    ),
    "no norm": ({"batch_norm": False}, CONV, CONV, CONV),
    "no norm, no bias": ({"batch_norm": False, "bias": False}, "conv.weight", "conv.weight", "conv.weight"),
    "norm list": ({"batch_norm": [False, True, False]}, CONV, f"{CONV} {NORM}", CONV),
    "no scale": (
        {"batch_norm_scale": False, "final_batchnorm_scale": False},
        f"conv.weight {STATS} bias.bias",
        f"{CONV} {STATS} bias.bias",
        f"{CONV} {STATS} bias.bias",
    ),
    "no scale but the last": (
        {"batch_norm_scale": False},
        f"conv.weight {STATS} bias.bias",
        f"{CONV} {STATS} bias.bias",
        f"{CONV} {NORM}",
    ),
    "scale list": (
        {"batch_norm_scale": [True, True, False], "bias": [True, False, False], "conv_bias": False},
        f"conv.weight {NORM}",
        f"conv.weight {STATS} scale.scale",
        f"conv.weight {STATS}",
    ),
    "depth-separable": (
        {"depth_separable": True},
        f"conv.weight {NORM}",
        f"{each(SEPARABLE, 'weight bias')} {NORM}",
        f"{each(SEPARABLE, 'weight bias')} {NORM}",
    ),
    "attention": (
        {"attention_conv": True, "bias": False},
        f"conv.weight {STATS} scale.scale",
        f"{ATTENTION} {each(PROJECTIONS, 'weight')} {STATS} scale.scale",
        f"{ATTENTION} {each(PROJECTIONS, 'weight')} {STATS} scale.scale",
    ),
    "soft threshold": (
        {"nonlinearity_type": "SoftThreshold", "final_nonlinearity": False, "input_regularizer": "GaussianLaplaceL2"},
        f"conv.weight {NORM} nonlin.zero",
        f"{CONV} {NORM} nonlin.zero",
        f"{CONV} {NORM}",
    ),
}


@pytest.mark.parametrize(("options", "layer0", "layer1", "layer2"), KEYS.values(), ids=KEYS)
def test_keys(options, layer0, layer1, layer2):
    want = ["_input_weights_regularizer.laplace.filter"]
    for layer, keys in enumerate((layer0, layer1, layer2)):
        want += [f"features.layer{layer}.{key}" for key in keys.split()]
    assert list(small(**options).state_dict()) == want


def test_signature():
    """Order and defaults of neuralpredictors' class, so that positional calls mean the same; then what is ours."""
    parameters = inspect.signature(Stacked2dCore).parameters.values()
    assert [(p.name, p.default) for p in parameters if p.default is not p.empty] == [
        ("layers", 3),
        ("gamma_hidden", 0),
        ("gamma_input", 0.0),
        ("skip", 0),
        ("stride", 1),
        ("input_stride", 1),
        ("final_nonlinearity", True),
        ("elu_shift", (0, 0)),
        ("bias", True),
        ("momentum", 0.1),
        ("pad_input", True),
        ("hidden_padding", None),
        ("batch_norm", True),
        ("batch_norm_scale", True),
        ("final_batchnorm_scale", True),
        ("hidden_dilation", 1),
        ("laplace_padding", 0),
        ("input_regularizer", "LaplaceL2"),
        ("stack", None),
        ("use_avg_reg", True),
        ("depth_separable", False),
        ("attention_conv", False),
        ("linear", False),
        ("nonlinearity_type", "AdaptiveELU"),
        ("nonlinearity_config", None),
        ("conv_bias", None),
    ]
    assert [p.name for p in parameters][:4] == ["input_channels", "hidden_channels", "input_kern", "hidden_kern"]


# The last values of some weights that neuralpredictors draws after torch.manual_seed(42), and the next random number.
DRAWN = {
    "main and 0.3.0": (
        {},
        {"layer0.conv.weight": [0.053529, -0.042868, 0.065519], "layer2.conv.weight": [0.236033, 0.1139, -0.023042]},
        0.399710,
    ),
    "main and 0.3.0, depth-separable": (
        {"depth_separable": True},
        {
            "layer0.conv.weight": [0.068907, 0.125664, 0.064089],
            "layer2.ds_conv.out_depth_conv.weight": [0.30552, 0.610419, -0.303822],
        },
        0.970514,
    ),
    "main and 0.3.0, attention": (
        {"attention_conv": True},
        {
            "layer0.conv.weight": [0.011801, -0.242263, -0.081229],
            "layer1.attention_conv.rel_w": [-1.472334, -0.474874, 1.663972],
            "layer2.attention_conv.value_conv.weight": [0.184177, 0.381899, 0.589611],
        },
        0.489790,
    ),
    "0.3.0, bias=False": (
        {"depth_separable": True, "conv_bias": False},
        {
            "layer0.conv.weight": [-0.085588, -0.072482, -0.041782],
            "layer2.ds_conv.out_depth_conv.weight": [0.084927, -0.435202, 0.015254],
        },
        0.441851,
    ),
    "main, bias=False": (
        {"depth_separable": True, "bias": False, "conv_bias": True},
        {
            "layer0.conv.weight": [0.068907, 0.125664, 0.064089],
            "layer2.ds_conv.out_depth_conv.weight": [0.30552, 0.610419, -0.303822],
        },
        0.970514,
    ),
}


@pytest.mark.parametrize(("options", "drawn", "following"), DRAWN.values(), ids=DRAWN)
def test_a_seed_gives_the_weights_that_it_gives_in_neuralpredictors(options, drawn, following):
    torch.manual_seed(42)
    core = small(**options)
    assert torch.rand(1).item() == pytest.approx(following, abs=2e-6)
    for name, values in drawn.items():
        torch.testing.assert_close(
            core.state_dict()[f"features.{name}"].flatten()[-3:], torch.tensor(values), atol=2e-6, rtol=0
        )


def test_initial_weights_are_glorot_normal_and_biases_zero():
    torch.manual_seed(0)
    core = randomised(Stacked2dCore(8, 64, 9, 7, depth_separable=True))
    core.initialize()
    weights = {name: p for name, p in core.named_parameters() if name.endswith("weight") and "norm" not in name}
    assert len(weights) == 7
    for name, w in weights.items():
        area = w.shape[2] * w.shape[3]
        want = (2 / (area * (w.shape[0] + w.shape[1]))) ** 0.5
        assert w.std().item() == pytest.approx(want, rel=0.06), name
        assert abs(w.mean().item()) < 0.1 * want, name
    biases = [p for name, p in core.named_parameters() if name.endswith("conv.bias")]
    assert len(biases) == 6
    assert not any(p.any() for p in biases)


# Results


def by_hand(core: Stacked2dCore, layer: int, x: Tensor, **conv_options) -> Tensor:
    """One convolution, batch norm (eval) and ELU, from the parameters by name."""
    state = {k.removeprefix(f"features.layer{layer}."): v for k, v in core.state_dict().items()}
    x = F.conv2d(x, state["conv.weight"], state.get("conv.bias"), **conv_options)
    mean, var = state["norm.running_mean"], state["norm.running_var"]
    x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    x = x * state["norm.weight"][:, None, None] + state["norm.bias"][:, None, None]
    return torch.where(x > 0.5, x - 0.5, torch.expm1(x - 0.5)) + 1.0


@pytest.mark.parametrize("skip", [0, 1, 2, 3, 7])
def test_forward_and_skip(skip):
    core = randomised(
        small(layers=4, hidden_channels=[2, 3, 4, 5], skip=skip, elu_shift=(0.5, 1.0), stack=[3, 1])
    ).eval()
    x = images()
    maps = [by_hand(core, 0, x, padding=2)]
    for layer in range(1, 4):
        maps.append(by_hand(core, layer, torch.cat(maps[-max(skip, 1) :], dim=1), padding=1))
    torch.testing.assert_close(core(x), torch.cat([maps[3], maps[1]], dim=1))


def test_strides_paddings_and_dilation():
    core = randomised(
        small(
            layers=2,
            hidden_kern=(5,),
            stride=2,
            input_stride=(2, 1),
            hidden_padding=[1, 3],
            hidden_dilation=2,
            pad_input=False,
            elu_shift=(0.5, 1.0),
            stack=-1,
        )
    ).eval()
    x = images(2, 1, 30, 31)
    want = by_hand(core, 1, by_hand(core, 0, x, stride=(2, 1)), stride=2, padding=(1, 3), dilation=2)
    torch.testing.assert_close(core(x), want)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (12, 15)),
        ({"pad_input": False}, (8, 11)),
        ({"hidden_padding": 0, "stack": -1}, (8, 11)),
        ({"hidden_kern": [3, 5], "hidden_dilation": 2}, (12, 15)),
        ({"input_kern": (5, 3), "hidden_kern": [(3, 1), (1, 5)]}, (12, 15)),
        ({"depth_separable": True, "hidden_padding": 0, "stack": -1}, (8, 11)),
    ],
)
def test_padding(options, shape):
    assert small(**options)(images()).shape[2:] == shape


@pytest.mark.parametrize(
    ("stack", "layers"),
    [(None, [0, 1, 2]), (-1, [2]), (-2, [1, 2]), (1, [1, 2]), (0, [0, 1, 2]), ([0], [0]), ([-1, 0], [2, 0])],
)
def test_stack(stack, layers):
    core = small(hidden_channels=[4, 5, 6], stack=stack).eval()
    maps = {}
    for index, layer in enumerate(core.features):
        layer.register_forward_hook(lambda _, __, output, index=index: maps.update({index: output}))
    y = core(images())
    assert torch.equal(y, torch.cat([maps[index] for index in layers], dim=1))
    assert core.outchannels == y.shape[1]
    if len(layers) == 1:
        assert y is maps[layers[0]]


def test_momentum_of_the_running_statistics():
    core = small(layers=1, momentum=0.9)
    x = images()
    core(x)
    mean = F.conv2d(x, core.features.layer0.conv.weight, padding=2).mean((0, 2, 3))
    torch.testing.assert_close(core.features.layer0.norm.running_mean, 0.9 * mean)


def test_separable_convolution():
    core = randomised(small(layers=2, depth_separable=True, linear=True, batch_norm=[True, False], stack=-1)).eval()
    convs = core.features.layer1.ds_conv
    x = core.features.layer0(images())
    inside = torch.einsum("oc,bchw->bohw", convs.in_depth_conv.weight[:, :, 0, 0], x)
    inside = inside + convs.in_depth_conv.bias[:, None, None]
    spatial = [
        F.conv2d(
            inside[:, c : c + 1], convs.spatial_conv.weight[c : c + 1], convs.spatial_conv.bias[c : c + 1], padding=1
        )
        for c in range(4)
    ]
    want = torch.einsum("oc,bchw->bohw", convs.out_depth_conv.weight[:, :, 0, 0], torch.cat(spatial, dim=1))
    torch.testing.assert_close(core(images()), want + convs.out_depth_conv.bias[:, None, None])


def test_attention():
    core = (
        randomised(small(layers=2, attention_conv=True, linear=True, batch_norm=[True, False], stack=-1))
        .double()
        .eval()
    )
    layer, images_ = core.features.layer1.attention_conv, images(1, 1, 4, 5).double()
    x = core.features.layer0(images_)
    query = layer.query_conv(x)[0]
    key, value = (conv(F.pad(x, [1, 1, 1, 1]))[0] for conv in (layer.key_conv, layer.value_conv))
    want = torch.empty(4, 4, 5, dtype=torch.float64)
    for channel, i, j in np.ndindex(want.shape):
        half = channel % 2
        offset = layer.rel_h[half, 0, 0] if channel < 2 else layer.rel_w[half, 0, 0]
        window = key[channel, i : i + 3, j : j + 3] + offset
        weights = torch.softmax((query[channel, i, j] * window).flatten(), 0)
        want[channel, i, j] = weights @ value[channel, i : i + 3, j : j + 3].flatten()
    torch.testing.assert_close(core(images_)[0], want)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("Elu1", lambda x: np.where(x > 0, x, np.expm1(x)) + 1),
        ("Exp", np.exp),
        ("Log1Exp", lambda x: np.logaddexp(x, 0)),
        ("SoftThreshold", lambda x: np.logaddexp(x, 0)),
    ],
)
def test_nonlinearities(name, function):
    core = small(layers=1, nonlinearity_type=name).double()
    x = np.linspace(-60, 60, 1201) + 1e-3
    y = core.features.layer0.nonlin(torch.from_numpy(x))
    torch.testing.assert_close(y, torch.from_numpy(function(x)), rtol=1e-13, atol=1e-15)


def test_log1exp_is_finite_for_large_inputs():
    x = torch.tensor([-1e4, 90.0, 1e4], requires_grad=True)
    y = small(layers=1, nonlinearity_type="Log1Exp").features.layer0.nonlin(x)
    y.sum().backward()
    assert y.tolist() == [0, 90, 1e4]
    assert x.grad.tolist() == [0, 1, 1]


def test_nonlinearity_does_not_write_into_its_input():
    for shift in ((0, 0), (0.5, 1.0)):
        x = images()
        small(elu_shift=shift).features.layer0.nonlin(x)
        assert torch.equal(x, images())


@pytest.mark.parametrize(
    ("options", "activations"), [({"linear": True}, 0), ({"final_nonlinearity": False}, 2), ({}, 3)]
)
def test_linear_and_final_nonlinearity(options, activations):
    assert sum("nonlin" in dict(layer.named_children()) for layer in small(**options).features) == activations


@pytest.mark.parametrize(
    "options",
    [
        {"elu_shift": (0.5, 1.0), "gamma_hidden": 0.3, "skip": 2},
        {"attention_conv": True, "nonlinearity_type": "SoftThreshold", "input_regularizer": "LaplaceL2norm"},
        {"depth_separable": True, "bias": False, "input_regularizer": "GaussianLaplaceL2"},
    ],
)
def test_gradients(options):
    model = Objective(randomised(small(hidden_channels=2, gamma_input=0.7, **options))).double().eval()
    names, parameters = zip(*model.named_parameters(), strict=True)

    def objective(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    x = images(1, 1, 5, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(objective, (x, *parameters), fast_mode=True)


# Penalties


def laplacians(weight: np.ndarray, padding: int) -> np.ndarray:
    filters = weight.reshape(-1, *weight.shape[2:])
    full = np.stack([-scipy.ndimage.laplace(np.pad(f, padding), mode="constant") for f in filters])
    return full[:, 1:-1, 1:-1]


def gaussian_mask(height: int, width: int) -> np.ndarray:
    window = scipy.signal.windows.gaussian
    gauss = np.outer(*(window(size, min(height, width) / 4) for size in (height, width)))
    return 1 - (gauss - gauss.min()) / (gauss.max() - gauss.min())


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("padding", [None, 0, 1])
@pytest.mark.parametrize(
    "name", ["LaplaceL1", "LaplaceL2", "LaplaceL2norm", "GaussianLaplaceL2", "GaussianLaplaceL2Adaptive"]
)
def test_laplace(name, padding, average):
    core = Stacked2dCore(
        2, 3, (7, 5), 3, input_regularizer=name, laplace_padding=padding, use_avg_reg=average, gamma_input=3.0
    ).double()
    weight = core.features.layer0.conv.weight.detach().numpy()
    aggregate = np.mean if average else np.sum
    rough = laplacians(weight, 1 if padding is None else padding)
    if name.startswith("Gaussian"):
        cut = 1 if padding == 0 else 0
        rough = rough * gaussian_mask(7, 5)[cut : 7 - cut, cut : 5 - cut]
    want = {
        "LaplaceL1": aggregate(np.abs(rough)),
        "LaplaceL2": aggregate(rough**2) / 2,
    }.get(name, aggregate(rough**2) / aggregate(weight**2))
    assert core.laplace().item() == pytest.approx(want, rel=1e-6)
    assert core.regularizer().item() == pytest.approx(3 * want, rel=1e-6)


def test_group_sparsity():
    core = small(hidden_channels=[4, 5, 6], hidden_kern=[3, 5], gamma_hidden=0.3, gamma_input=0.0)
    weights = [core.state_dict()[f"features.layer{i}.conv.weight"].numpy() for i in (1, 2)]
    want = np.mean([np.sqrt((w**2).sum((2, 3))).mean() for w in weights])
    assert core.group_sparsity().item() == pytest.approx(want)
    assert core.regularizer().item() == pytest.approx(0.3 * want)


def test_group_sparsity_of_zero_filters_has_a_gradient():
    core = small(gamma_hidden=1.0)
    nn.init.zeros_(core.features.layer1.conv.weight)
    core.regularizer().backward()
    assert core.features.layer1.conv.weight.grad.isfinite().all()


@pytest.mark.parametrize("options", [{"depth_separable": True}, {"attention_conv": True}, {"layers": 1}])
def test_no_group_sparsity(options):
    core = small(gamma_input=2.0, **options)
    assert core.group_sparsity() == 0
    assert core.regularizer().item() == pytest.approx(2 * core.laplace().item())


def test_warns_where_gamma_hidden_has_no_effect():
    with pytest.warns(UserWarning, match="gamma_hidden has no effect on layers of type ds_conv"):
        small(depth_separable=True, gamma_hidden=0.1)


def test_defaults_do_not_warn():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        small().regularizer()
    assert not caught


# Checkpoints


def assert_same_results(core: nn.Module, other: nn.Module) -> None:
    x = images()
    torch.testing.assert_close(core.eval()(x), other.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [{}, {"depth_separable": True}, {"attention_conv": True}, {"batch_norm": False}])
def test_checkpoint_without_convolution_biases(kind):
    """They are 0, and the parameters stay the ones that an optimiser may already hold."""
    saved = randomised(small(conv_bias=False, **kind))
    core = randomised(small(**kind), seed=1)
    before = list(core.parameters())
    checkpoint = saved.state_dict()
    keys = list(checkpoint)
    with warnings.catch_warnings(action="error"):
        core.load_state_dict(checkpoint)
    assert list(checkpoint) == keys
    assert all(p is q for p, q in zip(core.parameters(), before, strict=True))
    assert_same_results(core, saved)


@pytest.mark.parametrize("kind", [{}, {"depth_separable": True}, {"attention_conv": True}, {"batch_norm": False}])
def test_checkpoint_with_convolution_biases(kind):
    saved = randomised(small(**kind))
    core = small(conv_bias=False, **kind)
    with pytest.warns(UserWarning, match="parameters that this core was built without"):
        core.load_state_dict(saved.state_dict())
    assert [name for name, _ in core.named_parameters()] == [name for name, _ in saved.named_parameters()]
    assert all(p.requires_grad for p in core.parameters())
    assert_same_results(core, saved)


@pytest.mark.parametrize("saved_with", [{}, {"conv_bias": False}])
@pytest.mark.parametrize("built_with", [{"bias": False}, {"bias": False, "batch_norm_scale": False}])
def test_checkpoint_with_batch_norm_biases(saved_with, built_with):
    saved = randomised(small(depth_separable=True, **saved_with))
    core = small(depth_separable=True, **built_with)
    with pytest.warns(UserWarning, match="parameters that this core was built without"):
        core.load_state_dict(saved.state_dict())
    assert [name for name, _ in core.named_parameters()] == [name for name, _ in saved.named_parameters()]
    assert_same_results(core, saved)


def test_parameters_added_to_a_frozen_core_are_frozen():
    core = small(bias=False).requires_grad_(False)
    with pytest.warns(UserWarning, match="parameters that this core was built without"):
        core.load_state_dict(small().state_dict())
    assert not any(p.requires_grad for p in core.parameters())


def test_checkpoint_of_a_whole_model():
    """With a prefix, through a deep copy and a pickled copy, and by assignment to a core without storage."""
    saved = randomised(small(conv_bias=False))
    checkpoint = nn.ModuleDict({"core": saved}).state_dict()
    for core in (small(), copy.deepcopy(small()), pickle.loads(pickle.dumps(small()))):
        nn.ModuleDict({"core": core}).load_state_dict(checkpoint)
        assert_same_results(core, saved)
    with torch.device("meta"):
        bare = small()
    bare.load_state_dict(saved.state_dict(), assign=True)
    assert_same_results(bare, saved)


@pytest.mark.parametrize(
    "absent", ["layer1.ds_conv.spatial_conv.bias", "layer1.ds_conv.spatial_conv.weight", "layer2.norm.bias"]
)
def test_a_damaged_checkpoint_is_refused(absent):
    checkpoint = small(depth_separable=True).state_dict()
    del checkpoint[f"features.{absent}"]
    for core in (small(depth_separable=True), small(depth_separable=True, bias=False)):
        with pytest.raises(RuntimeError, match=absent.rpartition(".")[0]), warnings.catch_warnings(action="ignore"):
            core.load_state_dict(checkpoint)


def test_saving_and_copying():
    core = randomised(small(skip=2, attention_conv=True))
    file = io.BytesIO()
    torch.save(core, file)
    file.seek(0)
    for other in (copy.deepcopy(core), torch.load(file, weights_only=False)):
        assert_same_results(core, other)
        assert torch.equal(core.regularizer(), other.regularizer())


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore:the checkpoint has")
@pytest.mark.parametrize(
    "options", [{}, {"conv_bias": False}, {"bias": False}, {"bias": False, "conv_bias": True}], ids=str
)
def test_trained_mouse_v1_core(real_data, options, record_property):
    folder = real_data / "sensorium_mouse_v1"
    checkpoint = torch.load(folder / "sensorium_sota_model.pth", map_location="cpu", weights_only=True)
    expected = np.load(folder / "sensorium_sota_expected.npz")
    core = Stacked2dCore(**SENSORIUM, **options).eval()
    core.load_state_dict({k.removeprefix("core."): v for k, v in checkpoint.items() if k.startswith("core.")})
    with torch.no_grad():
        y = core(torch.from_numpy(expected["x"]))
    assert y.shape == (6, 64, 28, 56)
    error = np.abs(y.mean((2, 3)).numpy() - expected["core_mean"]).max()
    record_property("largest error", float(error))
    print(f"largest error of a channel's mean: {error:.1e} (values up to {np.abs(expected['core_mean']).max():.2f})")
    assert error < 1e-6


# Layout, compilation, errors


@pytest.mark.parametrize("options", [{}, {"depth_separable": True, "stack": -1}, {"skip": 2}])
def test_channels_last_stays(options):
    core = randomised(small(**options)).eval()
    want = core(images())
    y = core.to(memory_format=torch.channels_last)(images())
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, want)


@pytest.mark.parametrize(
    ("training", "options"),
    [
        (True, {"skip": 2, "elu_shift": (0.5, 1.0)}),
        (True, {"depth_separable": True}),
        (False, {"attention_conv": True}),
    ],
)
def test_compiles_to_one_graph(training, options):
    model = Objective(randomised(small(gamma_input=1.0, **options))).train(training)
    other = copy.deepcopy(model)
    model(images()).backward()
    torch.compile(other, fullgraph=True, backend="aot_eager")(images()).backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


ERRORS = {
    "layers: want 1 or more, got 0": {"layers": 0},
    "hidden_channels: want one value or a list of 3, got a list of 2": {"hidden_channels": [4, 4]},
    "hidden_kern: want one value or a list of 2, got a list of 3": {"hidden_kern": [3, 3, 3]},
    "batch_norm: want one value or a list of 3, got a list of 1": {"batch_norm": [True]},
    "stack: want layers from -3 to 2, got 3": {"stack": 3},
    "stack: want layers from -3 to 2, got [0, 3]": {"stack": [0, 3]},
    "depth_separable, attention_conv: want at most one": {"depth_separable": True, "attention_conv": True},
    "input_regularizer: want one of LaplaceL1, LaplaceL2, ": {"input_regularizer": "Laplace"},
    "nonlinearity_type: want one of AdaptiveELU, Elu1, ": {"nonlinearity_type": "ReLU"},
    "laplace_padding: want None, 0 or 1": {"input_regularizer": "GaussianLaplaceL2", "laplace_padding": 2},
    "input_kern: want more than one pixel": {"input_regularizer": "GaussianLaplaceL2", "input_kern": 1},
    "input_kern: want more than one pixel, at more than one distance from the centre, for a Gaussian mask, got 2 x 2": {
        "input_regularizer": "GaussianLaplaceL2",
        "input_kern": 2,
    },
    "hidden_channels: want an even number": {"attention_conv": True, "hidden_channels": 5},
    "hidden_kern: want an odd number": {"attention_conv": True, "hidden_kern": 4},
    "stride: want 1 with attention_conv, got 2": {"attention_conv": True, "stride": 2},
    "hidden_padding: want 1 with attention_conv, got 0": {"attention_conv": True, "hidden_padding": 0},
    "hidden_dilation: want 1 with attention_conv, got 2": {"attention_conv": True, "hidden_dilation": 2},
}


@pytest.mark.parametrize(("message", "options"), ERRORS.items())
def test_errors(message, options):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below, as a plain string
        small(**options)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.parametrize("padding", [0, 1])
def test_filters_of_zeros_are_smooth(name, padding):
    """Pruned ones, or those of an input that is not used."""
    core = small(input_regularizer=name, laplace_padding=padding)
    with torch.no_grad():
        core.features[0].conv.weight.zero_()
    penalty = core.laplace()
    penalty.backward()
    assert penalty == 0
    assert (core.features[0].conv.weight.grad == 0).all()
