"""accelerate() and restore() on models of stand-ins: classes of torch's own ops that say they are neuralpredictors'."""

import copy
import io
import pickle
import sys
import types
import warnings
from abc import ABC
from collections import OrderedDict
from functools import partial

import pytest
import ranks
import torch
from assertions import assert_as_accurate
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

import v1fast
from v1fast import _eager as eager

SHAPE, N = (5, 7, 9), 12
PACKAGE = "neuralpredictors.layers.readouts"


def of(module):
    """Make a class one of another module, where pickle finds it."""

    def named(cls):
        cls.__module__ = module
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            name = ".".join(parts[:depth])
            STAND_INS.setdefault(name, types.ModuleType(name))
        setattr(STAND_INS[module], cls.__name__, cls)
        return cls

    return named


STAND_INS = {}


@pytest.fixture(autouse=True)
def libraries(monkeypatch):
    for name, module in STAND_INS.items():
        monkeypatch.setitem(sys.modules, name, module)


@of(f"{PACKAGE}.base")
class Readout(nn.Module):
    def initialize(self):
        raise NotImplementedError


@of(f"{PACKAGE}.gaussian")
class FullGaussian2d(Readout):
    gauss_type, batch_sample, align_corners = "full", True, True
    _predicted_grid = _shared_grid = _shared_features = False

    def __init__(self, in_shape=SHAPE, outdims=N):
        super().__init__()
        self.in_shape, self.outdims, self.grid_shape = in_shape, outdims, (1, outdims, 1, 2)
        self._mu = nn.Parameter(2.4 * torch.rand(1, outdims, 1, 2) - 1.2)
        self.sigma = nn.Parameter(0.3 * torch.randn(1, outdims, 2, 2))
        self._features = nn.Parameter(torch.randn(1, in_shape[0], 1, outdims))
        self.bias = nn.Parameter(torch.randn(outdims))

    mu = property(lambda self: self._mu)
    features = property(lambda self: self._features)

    def regularizer(self):
        return self.features.abs().sum()

    def initialize(self):
        nn.init.zeros_(self._mu)

    def forward(self, x, sample=None, shift=None, out_idx=None, **kwargs):
        self._mu.data.clamp_(-1, 1)
        noise = None
        if self.training if sample is None else sample:
            noise = x.new_empty(x.shape[0], self.outdims, 1, 2).normal_().squeeze(2)
        weight = self.features[0, :, 0].t()
        return eager.gaussian_readout(x, self.mu[0, :, 0], self.sigma[0], weight, self.bias, shift, noise=noise)


@of(f"{PACKAGE}.gaussian")
class RemappedGaussian2d(FullGaussian2d):
    def forward(self, x, **kwargs):
        return super().forward(x.flip(-1))


@of(f"{PACKAGE}.gaussian")
class NewGaussian2d(FullGaussian2d):
    def forward(self, x, **kwargs):
        return super().forward(x.flip(-2))


@of(f"{PACKAGE}.gaussian")
class GeneralizedFullGaussianReadout2d(FullGaussian2d):
    def __init__(self, outputs, return_weighted_features=False):
        super().__init__()
        self.inferred_params_n, self.return_weighted_features = outputs, return_weighted_features
        self._features = nn.Parameter(torch.randn(outputs, 1, SHAPE[0], 1, N))
        self.bias = nn.Parameter(torch.randn(outputs, N))

    def forward(self, x, sample=None, shift=None, out_idx=None, **kwargs):
        self._mu.data.clamp_(-1, 1)
        points = self.mu.expand(len(x), -1, -1, -1)
        values = F.grid_sample(x, points, align_corners=True).squeeze(-1) * self.features.squeeze(3)
        return values if self.return_weighted_features else (values.sum(2) + self.bias.unsqueeze(1)).squeeze()


@of(f"{PACKAGE}.gaussian")
class Gaussian3d(Readout):
    def forward(self, x):
        return x.mean((2, 3))


@of(f"{PACKAGE}.of_the_future")
class OfTheFuture(Readout):
    def forward(self, x):
        return x.mean((2, 3))


@of(f"{PACKAGE}.factorized")
class FullFactorized2d(Readout):
    """Of release 0.3.0, which has no positive_spatial."""

    def __init__(self, **options):
        super().__init__()
        self.in_shape, self.outdims = SHAPE, N
        self.normalize = self.constrain_pos = self.positive_weights = self._shared_features = False
        vars(self).update(options)
        self._features = nn.Parameter(torch.randn(N, SHAPE[0]))
        self.scales = nn.Parameter(torch.randn(N, 1))
        self.spatial = nn.Parameter(torch.randn(N, *SHAPE[1:]))
        self.bias = nn.Parameter(torch.randn(N))

    features = property(lambda self: self.scales * self._features if self._shared_features else self._features)

    def forward(self, x, shift=None, **kwargs):
        if shift is not None:
            raise NotImplementedError
        masks = self.spatial
        if self.constrain_pos:
            masks.data.clamp_(0)
            self.features.data.clamp_(0)
        if getattr(self, "positive_spatial", False):
            masks = masks.abs()
        return torch.einsum("bchw,nhw,nc->bn", x, masks, self.features) + self.bias


@of(f"{PACKAGE}.attention")
class AttentionReadout(Readout):
    def __init__(self):
        super().__init__()
        self.in_shape, self.outdims = SHAPE, N
        self.attention = nn.Sequential(nn.Conv2d(SHAPE[0], N, 1))
        self.features = nn.Parameter(torch.randn(N, SHAPE[0]))
        self.bias = nn.Parameter(torch.randn(N))

    def forward(self, x, shift=None):
        attention = self.attention(x).flatten(2).softmax(-1)
        return torch.einsum("bns,bcs,nc->bn", attention, x.flatten(2), self.features) + self.bias


@of("openretina.modules.readout.factorized")
class FactorizedReadout(Readout):
    def __init__(self):
        super().__init__()
        self.in_shape, self.outdims, self.mask_size, self.readout_bias = (SHAPE[0], 3, *SHAPE[1:]), N, SHAPE[1:], False
        self.mask_weights = nn.Parameter(torch.randn(SHAPE[1] * SHAPE[2], N))
        self.feature_weights = nn.Parameter(torch.randn(SHAPE[0], N))
        self.register_buffer("bias", torch.zeros(N))

    def apply_constraints(self):
        self.mask_weights.data.abs_()

    def forward(self, x, **kwargs):
        self.apply_constraints()
        return F.softplus(torch.einsum("bcts,sn,cn->btn", x.flatten(3), self.mask_weights, self.feature_weights))


class OwnConstraint(FactorizedReadout):
    def apply_constraints(self):
        self.feature_weights.data.clamp_(-0.5, 0.5)


@of("openretina.modules.readout.factorized_gaussian")
class GaussianMaskReadout(Readout):
    def __init__(self):
        super().__init__()
        self.in_shape, self.outdims, self.positive = (SHAPE[0], 3, *SHAPE[1:]), N, True
        self.gaussian_mean_scale, self.gaussian_var_scale, self.nonlinearity_function = 1.5, 0.5, F.softplus
        axes = (torch.linspace(-size / SHAPE[2], size / SHAPE[2], size) for size in SHAPE[1:])
        self.register_buffer("grid", torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).repeat(N, 1, 1, 1))
        self.mask_mean, self.mask_log_var = nn.Parameter(0.5 * torch.randn(N, 2)), nn.Parameter(torch.randn(N))
        self.features = nn.Parameter(torch.randn(1, SHAPE[0], 1, N))
        self.scale_param, self.bias = nn.Parameter(torch.rand(N) + 0.5), nn.Parameter(torch.randn(N))

    def forward(self, x):
        self.features.data.clamp_(0)
        variance = (0.5 * self.mask_log_var).exp().view(-1, 1, 1)
        masks = torch.exp(-0.5 * (self.grid - 1.5 * self.mask_mean.view(N, 1, 1, 2)).square().sum(-1) / variance)
        masks = masks / masks.sum((1, 2), keepdim=True)
        out = torch.einsum("bcthw,nhw,cn->btn", x, masks, self.features[0, :, 0])
        return F.softplus(out * self.scale_param + self.bias)


@of(f"{PACKAGE}.base")
class ClonedReadout(nn.Module):
    def __init__(self, source):
        super().__init__()
        self._source = source

    def initialize(self):
        pass

    def forward(self, x, **kwargs):
        return 2 * self._source(x)


@of(f"{PACKAGE}.point_pooled")
class PointPooled2d(Readout):
    def __init__(self, return_weighted_features=False):
        super().__init__()
        self.in_shape, self.outdims, self._pool_steps, self.pool_kern, self.align_corners = SHAPE, N, 1, 2, True
        self.return_weighted_features = return_weighted_features
        self.avg = nn.AvgPool2d((2, 2), stride=2, count_include_pad=False)
        self.grid = nn.Parameter(2 * torch.rand(1, N, 1, 2) - 1)
        self.features = nn.Parameter(torch.randn(1, 2 * SHAPE[0], 1, N))
        self.bias = nn.Parameter(torch.randn(N))

    pool_steps = property(lambda self: self._pool_steps)

    def forward(self, x, shift=None, out_idx=None, **kwargs):
        weight = self.features[0, :, 0].t()
        return eager.pooled_readout(x, self.grid[0, :, 0], weight, self.bias, shift, pool_kernel=2, pool_steps=1)


@of(f"{PACKAGE}.point_pooled")
class GeneralizedPointPooled2d(PointPooled2d):
    def __init__(self, outputs):
        super().__init__()
        self.features = nn.Parameter(torch.randn(outputs, 1, 2 * SHAPE[0], 1, N))
        self.bias = nn.Parameter(torch.randn(outputs, N))

    def forward(self, x, shift=None, out_idx=None, **kwargs):
        out = [
            eager.pooled_readout(x, self.grid[0, :, 0], w[0, :, 0].t(), b, shift, pool_kernel=2, pool_steps=1)
            for w, b in zip(self.features, self.bias, strict=True)
        ]
        return torch.stack(out).squeeze()


@of(f"{PACKAGE}.multi_readout")
class MultiReadoutBase(nn.ModuleDict):
    def initialize(self):
        pass

    def forward(self, *args, data_key=None, **kwargs):
        return self[data_key](*args, **kwargs)


class Model(nn.Module):
    """A core and the readouts of two sessions."""

    def __init__(self, **more):
        super().__init__()
        self.core = nn.Conv2d(1, SHAPE[0], 3, padding=1)
        self.readout = MultiReadoutBase({"a": FullGaussian2d(), "b": PointPooled2d(), **more})

    def forward(self, images, data_key="a"):
        return self.readout(self.core(images), data_key=data_key)


class Ops(TorchDispatchMode):
    """Names of v1fast's forward ops that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if name.startswith("v1fast.") and "backward" not in name:
            self.names.append(name)
        return func(*args, **kwargs or {})


def run(model, x, **options):
    """Output with the random numbers of one seed, and which of v1fast's ops ran."""
    torch.manual_seed(3)
    with Ops() as ops:
        out = model(x, **options)
    return out, ops.names


def by_v1fast(model, x, **options):
    return bool(run(model, x, **options)[1])


def features(batch=4):
    return torch.randn(batch, *SHAPE)


def images(batch=4):
    return torch.randn(batch, 1, *SHAPE[1:])


def assert_close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("data_key", ["a", "b"])
def test_same_results_by_v1fast(data_key, training):
    model, x, shift = Model().train(training), images(), 0.1 * torch.randn(4, 2)
    exact = copy.deepcopy(model).double()
    peer = run(model.readout, model.core(x), data_key=data_key, shift=shift)
    report = v1fast.accelerate(model)
    ours = run(model.readout, model.core(x), data_key=data_key, shift=shift)
    assert not peer[1]
    assert ours[1]
    assert [outcome.names for outcome in report.replaced] == [("readout.a",), ("readout.b",)]
    assert not report.left
    if training and data_key == "a":  # float64 draws other numbers
        assert_close(ours[0], peer[0])
    else:
        want = exact.readout(exact.core(x.double()), data_key=data_key, shift=shift.double())
        assert_as_accurate(ours[0], peer[0], want)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("batch", [1, 4])
def test_axes_that_get_lost(batch, outputs):
    """neuralpredictors' encoders rely on it for a single image."""
    layer, x = GeneralizedPointPooled2d(outputs), features(batch)
    want = layer(x)
    v1fast.accelerate(layer)
    assert by_v1fast(layer, x)
    assert layer(x).shape == want.shape
    assert_close(layer(x), want)


MASKED = {
    "attention": AttentionReadout,
    "factorized": FullFactorized2d,
    "factorized, positive": lambda: FullFactorized2d(constrain_pos=True),
    "factorized, shared and positive": lambda: FullFactorized2d(constrain_pos=True, _shared_features=True),
    "factorized, positive weights": lambda: FullFactorized2d(positive_weights=True),
    "factorized, positive masks": lambda: FullFactorized2d(positive_spatial=True),
    "factorized videos": FactorizedReadout,
    "factorized videos, a constraint of their own": OwnConstraint,
    "Gaussian masks": GaussianMaskReadout,
    "several outputs": lambda: GeneralizedFullGaussianReadout2d(2).eval(),
    "weighted features": lambda: GeneralizedFullGaussianReadout2d(2, return_weighted_features=True).eval(),
    "one output": lambda: GeneralizedFullGaussianReadout2d(1).eval(),
}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", MASKED)
def test_same_results_and_state_of_the_other_classes(name, batch):
    layer = MASKED[name]()
    ours, exact = copy.deepcopy(layer), copy.deepcopy(layer).double()
    assert len(v1fast.accelerate(ours).replaced) == 1
    videos = isinstance(layer, FactorizedReadout | GaussianMaskReadout)
    x = torch.randn(batch, SHAPE[0], 3, *SHAPE[1:]) if videos else features(batch)
    rows = []
    for each in (ours, layer, exact):
        inputs = x.to(each.bias.dtype, copy=True).requires_grad_()
        out = each(inputs)
        out.square().sum().backward()
        rows.append({"out": out, "d_input": inputs.grad} | {k: p.grad for k, p in each.named_parameters()})
    for key, want in rows[2].items():
        if want is None:
            assert rows[0][key] is None or not rows[0][key].any()
        else:
            torch.testing.assert_close(rows[0][key], want.to(x.dtype), rtol=1e-3, atol=1e-3)
    if not layer.training:
        ours.project_()  # evaluation leaves the parameters as they are
    for key, value in layer.state_dict().items():
        assert ours.state_dict()[key].equal(value), key


@pytest.mark.parametrize("options", [{}, {"constrain_pos": True}])
def test_factorized_readouts_take_no_shift(options):
    layer = FullFactorized2d(**options)
    v1fast.accelerate(layer)
    with pytest.raises(NotImplementedError, match="shift"):
        layer(features(), shift=torch.zeros(4, 2))
    assert layer(features(), out_idx=[1]).shape == (4, N)


def test_everything_stays_the_same_object():
    model = Model()
    model.readout["a"].bias.requires_grad_(False)
    model.readout["b"].eval()
    before = {name: dict(vars(m)) for name, m in model.named_modules()}
    modules, tensors = list(model.modules()), [*model.parameters(), *model.buffers()]
    classes = [type(m) for m in modules]
    state = {k: (v.data_ptr(), v.stride()) for k, v in model.state_dict(keep_vars=True).items()}

    def assert_as_it_was():
        assert all(m is other for m, other in zip(model.modules(), modules, strict=True))
        assert all(t is other for t, other in zip([*model.parameters(), *model.buffers()], tensors, strict=True))
        assert {k: (v.data_ptr(), v.stride()) for k, v in model.state_dict(keep_vars=True).items()} == state
        for name, m in model.named_modules():
            assert vars(m).keys() == before[name].keys()
            assert all(vars(m)[key] is value for key, value in before[name].items())

    v1fast.accelerate(model)
    assert_as_it_was()
    assert isinstance(model.readout["a"], FullGaussian2d)
    assert isinstance(model.readout["a"], v1fast.readouts.FullGaussian2d)
    assert v1fast.restore(model) == ("readout.a", "readout.b")
    assert_as_it_was()
    assert [type(m) for m in model.modules()] == classes
    assert v1fast.restore(model) == ()


def test_everything_but_forward_stays_the_librarys():
    layer = FullGaussian2d()
    penalty = layer.regularizer()
    v1fast.accelerate(layer)
    assert layer.regularizer().equal(penalty)
    layer.initialize()
    assert (layer._mu == 0).all()
    assert "FullGaussian2d" in repr(layer)


def test_a_run_goes_on():
    """Optimiser, state and random stream: the losses are those of a run that is not interrupted."""

    def losses(model, *changes):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        found = []
        for step, x in enumerate(images(32).split(4)):
            if step in (2, 5) and changes:
                reports.append(changes[step // 4](model))
            optimizer.zero_grad()
            loss = run(model, x)[0].square().mean() + run(model, x, data_key="b")[0].square().mean()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    model = Model()
    other = copy.deepcopy(model)
    reports = []
    torch.manual_seed(0)
    want = losses(model)
    torch.manual_seed(0)
    got = losses(other, v1fast.accelerate, v1fast.restore)
    assert len(reports[0].replaced) == 2
    assert got == pytest.approx(want, rel=1e-4)
    assert got[:2] == want[:2]


def test_checkpoints_are_exchanged_and_keep_the_layout_of_parameters():
    """A fused optimiser relies on equal strides of parameters and state."""
    model, peer = Model(), Model()
    v1fast.accelerate(model)
    strides = [p.stride() for p in model.parameters()]
    buffer = io.BytesIO()
    torch.save(peer.state_dict(), buffer)
    buffer.seek(0)
    model.load_state_dict(torch.load(buffer))
    assert [p.stride() for p in model.parameters()] == strides
    peer.load_state_dict(model.state_dict())
    x = images()
    assert_close(run(model, x)[0], run(peer, x)[0])


def test_hooks_keep_working():
    layer, calls = FullGaussian2d(), []
    before = layer.register_forward_hook(lambda module, args, out: calls.append((module, "before")))
    layer.bias.register_hook(lambda grad: calls.append("bias"))
    v1fast.accelerate(layer)
    layer.register_full_backward_hook(lambda module, *grads: calls.append("later"))
    layer(features().requires_grad_()).sum().backward()
    assert calls == [(layer, "before"), "bias", "later"] or calls == [(layer, "before"), "later", "bias"]
    before.remove()
    v1fast.restore(layer)
    calls.clear()
    layer(features().requires_grad_()).sum().backward()
    assert sorted(calls) == ["bias", "later"], "a hook of the time between stays, a removed one is gone"


def test_tied_parameters_and_a_module_under_two_names():
    model = Model(c=FullGaussian2d())
    model.readout["c"]._features = model.readout["a"]._features
    model.readout["d"] = model.readout["a"]
    model.readout["e"] = ClonedReadout(model.readout["a"])
    report = v1fast.accelerate(model)
    assert [outcome.names for outcome in report.replaced] == [
        ("readout.a", "readout.d", "readout.e._source"),
        ("readout.b",),
        ("readout.c",),
    ]
    assert "readout.a = readout.d = readout.e._source: FullGaussian2d of neuralpredictors" in str(report)
    assert "readout.e: ClonedReadout of neuralpredictors; computes little" in str(report)
    assert model.readout["c"]._features is model.readout["a"]._features
    assert by_v1fast(model, images(), data_key="e")


def test_the_model_may_be_the_readout():
    layer = FullGaussian2d()
    assert str(v1fast.accelerate(layer)) == "1 replaced\n  (the model itself): FullGaussian2d of neuralpredictors"
    assert by_v1fast(layer, features())
    assert v1fast.restore(layer) == ("",)
    assert type(layer) is FullGaussian2d


def test_other_models_are_left_alone():
    model = nn.Sequential(nn.Linear(2, 2), v1fast.readouts.FullGaussian2d(SHAPE, N, bias=True))
    classes = [type(m) for m in model.modules()]
    assert str(v1fast.accelerate(model)) == "no readout of neuralpredictors or openretina found"
    assert [type(m) for m in model.modules()] == classes
    assert v1fast.restore(model) == ()


class OwnForward(FullGaussian2d):
    def forward(self, x, **kwargs):
        return super().forward(x, **kwargs).exp()


class OwnPositions(FullGaussian2d):
    mu = property(lambda self: self._mu.tanh())


class OwnHelper(FullGaussian2d):
    def _gaussian(self):
        return "a name that v1fast uses"


class OwnPenalty(FullGaussian2d):
    def __init__(self):
        super().__init__()
        self.gamma = 3.0

    def regularizer(self):
        return self.gamma * super().regularizer()

    def plot(self):
        return "a name that nobody uses"


class OfAnotherVersion(nn.Module):
    def forward(self, x, sample=None, shift=None, out_idx=None):
        return x


OfAnotherVersion.__module__, OfAnotherVersion.__qualname__ = FullGaussian2d.__module__, "FullGaussian2d"
OfAnotherVersion.initialize = None


def with_own(name, value):
    layer = FullGaussian2d()
    setattr(layer, name, value)
    return layer


def with_parametrised_positions():
    return parametrize.register_parametrization(FullGaussian2d(), "_mu", nn.Tanh())


def with_other_pooling():
    layer = PointPooled2d()
    layer.avg = nn.MaxPool2d(2)
    return layer


def with_a_hook_on_the_pooling():
    layer = PointPooled2d()
    layer.avg.register_forward_hook(lambda *_: None)
    return layer


LEFT = {
    "forward": (OwnForward, "OwnForward, a FullGaussian2d of neuralpredictors; has its own forward"),
    "positions": (OwnPositions, "has its own mu"),
    "a helper": (OwnHelper, "has its own _gaussian"),
    "forward of the object": (lambda: with_own("forward", lambda x, **_: x), "has its own forward"),
    "a sampler of the object": (lambda: with_own("sampler", 3), "has its own sampler"),
    "no counterpart": (OfTheFuture, "OfTheFuture of neuralpredictors; v1fast has no counterpart"),
    "no counterpart but a base class": (NewGaussian2d, "v1fast has no counterpart"),
    "a counterpart that is no faster": (Gaussian3d, "Gaussian3d of neuralpredictors; v1fast computes it no faster"),
    "does not work": (RemappedGaussian2d, "RemappedGaussian2d of neuralpredictors; its forward returns nothing"),
    "another version": (OfAnotherVersion, "is of another version: its forward takes self, x, sample, shift, out_idx "),
    "parametrised": (with_parametrised_positions, "has a parametrised _mu, which v1fast would clamp otherwise"),
    "weighted features": (lambda: PointPooled2d(return_weighted_features=True), "has return_weighted_features"),
    "other pooling": (with_other_pooling, "has an avg of its own"),
    "hooked pooling": (with_a_hook_on_the_pooling, "has an avg of its own, or hooks on it"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_and_why(case):
    make, why = LEFT[case]
    layer = make()
    cls, x = type(layer), features()
    want = run(layer, x)[0]
    report = v1fast.accelerate(layer)
    assert not report.replaced
    assert why in str(report.left[0])
    assert str(report).startswith("1 left\n  (the model itself): ")
    assert type(layer) is cls
    assert run(layer, x)[0].equal(want)


def test_a_subclass_that_leaves_forward_alone():
    layer = OwnPenalty()
    penalty = layer.regularizer()
    report = v1fast.accelerate(layer)
    assert report.replaced[0].kind == "OwnPenalty, a FullGaussian2d of neuralpredictors"
    assert by_v1fast(layer, features())
    assert layer.regularizer().equal(penalty)
    assert layer.plot()
    v1fast.restore(layer)
    assert type(layer) is OwnPenalty


def test_twice_and_with_another_sampler():
    model, x = Model(), images()
    want = run(model, x)[0]
    v1fast.accelerate(model)
    cls = type(model.readout["a"])
    report = v1fast.accelerate(model)
    assert not report.replaced
    assert [outcome.why for outcome in report.left] == ["is accelerated already"] * 2
    assert type(model.readout["a"]) is cls
    assert_close(run(model, x)[0], want)
    report = v1fast.accelerate(model, sampler="philox")
    assert len(report.replaced) == 2
    assert not torch.allclose(run(model, x)[0], want, atol=1e-2)
    assert not run(model, x)[0].equal(model(x)), "every pass draws anew"
    assert_close(run(model.eval(), x)[0], run(v1fast_restored(model), x)[0])


def v1fast_restored(model):
    other = copy.deepcopy(model)
    assert v1fast.restore(other)
    return other


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_of_an_accelerated_model(how):
    model, x = Model(), images()
    v1fast.accelerate(model)
    if how == "deepcopy":
        other = copy.deepcopy(model)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    assert other.readout["a"]._mu is not model.readout["a"]._mu
    out, ops = run(other, x)
    assert ops
    assert out.equal(run(model, x)[0])
    v1fast.restore(other)
    assert type(other.readout["a"]) is FullGaussian2d
    assert by_v1fast(model, x)
    assert not by_v1fast(other, x)


class Positive(nn.Module):
    def forward(self, weights):
        return weights.abs()


def test_parametrised_features():
    """Also where the parametrisation is added or removed while the readout is accelerated."""
    layer, x = FullGaussian2d(), features()
    parametrize.register_parametrization(layer, "_features", Positive())
    want = run(layer, x)[0]
    v1fast.accelerate(layer)
    assert by_v1fast(layer, x)
    assert_close(run(layer, x)[0], want)
    assert_close(run(copy.deepcopy(layer), x)[0], want)
    parametrize.remove_parametrizations(layer, "_features")
    assert by_v1fast(layer, x)
    assert_close(run(layer, x)[0], want)
    parametrize.register_parametrization(layer, "_features", Positive())
    v1fast.restore(layer)
    assert parametrize.is_parametrized(layer)
    assert run(layer, x)[0].equal(want)
    parametrize.remove_parametrizations(layer, "_features")
    assert type(layer) is FullGaussian2d


@pytest.mark.parametrize("of_the_module", [False, True])
def test_compiled_models_compile_anew(of_the_module):
    graphs = []

    def backend(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    torch.compiler.reset()
    model, x = Model(), images()
    compiled = model if of_the_module else torch.compile(model, backend=backend, fullgraph=True)
    if of_the_module:
        model.compile(backend=backend, fullgraph=True)

    def call():
        torch.manual_seed(3)
        return compiled(x)

    want = call()
    v1fast.accelerate(compiled)
    assert_close(call(), want)
    assert [any("v1fast" in target for target in graph) for graph in graphs] == [False, True]
    v1fast.restore(compiled)
    assert call().equal(want)
    v1fast.accelerate(compiled)
    assert_close(call(), want)
    assert len(graphs) == 2, "what was compiled before is used again"


@pytest.mark.skipif(not hasattr(torch._dynamo.config, "use_recursive_dict_tags_for_guards"), reason="not in this torch")
def test_compiled_models_compile_anew_where_only_dictionaries_are_watched():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    model, x = nn.Sequential(OrderedDict(core=nn.Conv2d(3, 5, 3))), torch.rand(2, 3, 8, 8)
    compiled = torch.compile(model, backend=backend, fullgraph=True)

    def in_channels_last():
        return compiled(x).is_contiguous(memory_format=torch.channels_last)

    with torch._dynamo.config.patch(use_recursive_dict_tags_for_guards=True):
        assert not in_channels_last()
        v1fast.accelerate(compiled, channels_last=True)
        assert in_channels_last()
        v1fast.restore(compiled)
        assert not in_channels_last()
        v1fast.accelerate(compiled, channels_last=True)
        assert in_channels_last()
    assert len(graphs) == 2, "what was compiled before is used again"


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel(process_group):
    model, x = Model(), images()
    parallel = DistributedDataParallel(model, find_unused_parameters=True)
    want = run(parallel, x)[0]
    want.square().sum().backward()
    gradient = model.readout["a"]._features.grad.clone()
    parallel.zero_grad()
    report = v1fast.accelerate(parallel)
    assert report.replaced[0].names == ("module.readout.a",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of gradients in another layout than the reducer expects
        out, ops = run(parallel, x)
        out.square().sum().backward()
    assert ops
    assert_close(out, want)
    assert_close(model.readout["a"]._features.grad, gradient)


@pytest.mark.parametrize("first", ["shard", "accelerate"])
def test_sharded_models(process_group, first):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not ranks.SHARDS_ON_CPUS:
        pytest.skip("before 2.7, torch has no fully_shard for CPUs")
    model, x = Model(), images()
    want = run(model, x)[0]
    steps = [v1fast.accelerate, partial(fsdp.fully_shard, mesh=init_device_mesh("cpu", (1,)))]
    for step in steps if first == "accelerate" else reversed(steps):
        step(model.readout["a"])
    out, ops = run(model, x)
    out.sum().backward()
    assert ops
    assert_close(out, want)
    v1fast.restore(model)
    assert isinstance(model.readout["a"], fsdp.FSDPModule)
    assert run(model, x)[0].equal(want)


def test_another_dtype_and_device():
    model, x = Model().double(), images().double()
    want = run(model, x)[0]
    v1fast.accelerate(model)
    assert_close(run(model, x)[0], want)
    assert run(model.float(), x.float())[0].dtype == torch.float32
    assert v1fast.accelerate(Model().to("meta")).replaced


class Vendored(nn.Module):
    """FullGaussian2d, as a laboratory may have copied it to a file of its own."""

    gauss_type, batch_sample, align_corners = "full", True, True
    _predicted_grid = _shared_grid = _shared_features = False
    mu, features = property(lambda self: self._mu), property(lambda self: self._features)

    def __init__(self):
        super().__init__()
        vars(self).update(vars(FullGaussian2d()))

    def forward(self, x, sample=None, shift=None, out_idx=None, **kwargs):
        return FullGaussian2d.forward(self, x, sample, shift, out_idx)


class VendoredPooled(nn.Module):
    """GeneralizedPointPooled2d, which loses axes as the library's does."""

    pool_steps = property(lambda self: self._pool_steps)

    def __init__(self):
        super().__init__()
        vars(self).update(vars(GeneralizedPointPooled2d(2)))

    def forward(self, x, shift=None, out_idx=None, **kwargs):
        return GeneralizedPointPooled2d.forward(self, x, shift)


class VendoredChild(Vendored):
    def regularizer(self):
        return 3


class VendoredOther(Vendored):
    def forward(self, x, **kwargs):
        return 2 * super().forward(x)


OF_VENDORED = {Vendored: v1fast.readouts.FullGaussian2d, VendoredPooled: v1fast.readouts.GeneralizedPointPooled2d}


@pytest.mark.parametrize("cls", [Vendored, VendoredChild, VendoredPooled])
@pytest.mark.parametrize("batch", [1, 4])
def test_vendored_classes(cls, batch):
    layer, x, shift = cls(), features(batch), 0.1 * torch.randn(batch, 2)
    want = run(layer, x, shift=shift)[0]
    report = v1fast.accelerate(layer, also=OF_VENDORED)
    assert str(report) == f"1 replaced\n  (the model itself): {cls.__name__} of {cls.__module__.partition('.')[0]}"
    for each in (layer, copy.deepcopy(layer)):
        got, ops = run(each, x, shift=shift)
        assert ops
        assert got.shape == want.shape
        assert_close(got, want)
    assert [o.why for o in v1fast.accelerate(layer).left] == ["is accelerated already"]
    assert v1fast.accelerate(layer, sampler="philox").replaced
    assert v1fast.restore(layer) == ("",)
    assert type(layer) is cls
    assert run(layer, x, shift=shift)[0].equal(want)


def test_what_also_cannot_do():
    assert "has its own forward" in str(v1fast.accelerate(VendoredOther(), also=OF_VENDORED))
    assert "of another version" in str(v1fast.accelerate(Vendored(), also={Vendored: v1fast.readouts.PointPooled2d}))
    layer = OwnForward()
    assert v1fast.accelerate(layer, also={OwnForward: v1fast.readouts.FullGaussian2d}).left
    for also in (
        {Vendored: FullGaussian2d},
        {"Vendored": v1fast.readouts.FullGaussian2d},
        {Vendored: "FullGaussian2d"},
    ):
        with pytest.raises(TypeError, match=r"also: want \{a class of modules: a class of v1fast.readouts\}, got \{"):
            v1fast.accelerate(Vendored(), also=also)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.outdims, self.features = 3, nn.Parameter(torch.ones(3))


def test_what_was_seen_where_nothing_was_found():
    """By the name of a class, or by what it has."""
    model = nn.ModuleDict({"a": Vendored(), "b": Linear(), "core": nn.Conv2d(1, 1, 1)})
    type(model["a"]).__name__ = "FullGaussian2d"
    report = v1fast.accelerate(model)
    type(model["a"]).__name__ = "Vendored"
    assert [o.names for o in report.unknown] == [("a",), ("b",)]
    text = str(report)
    assert text.startswith("no readout of neuralpredictors or openretina found; of unknown classes, which ")
    assert "also=" in text
    assert f"  a: {Vendored.__module__}.{Vendored.__qualname__}\n  b: {Linear.__module__}.Linear" in text
    assert "core" not in text


class Plain(ABC):  # noqa: B024
    pass


class Core(Plain, nn.Module):
    """As neuralpredictors': a class of its own comes first."""

    def __init__(self):
        super().__init__()
        nn.Module.__init__(self)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ELU(), nn.Conv2d(6, SHAPE[0], 3, padding=1)
        )

    def forward(self, input_, data_key=None):
        return self.layers(input_)


def with_core():
    model = Model()
    model.core = Core()
    return model.eval()


def strides_that_count(tensor):
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def layout_of_maps(model, x):
    seen = []
    hook = model.readout["a"].register_forward_pre_hook(lambda _, args: seen.append(args[0].stride()))
    model(x)
    hook.remove()
    return "channels-last" if seen[0][1] == 1 else "channels first"


@pytest.mark.parametrize("wrap", [None, "compiled", "core compiled"])
def test_a_core_in_channels_last(wrap):
    torch.compiler.reset()
    plain, x = with_core(), images()
    want, strides = plain(x), [p.stride() for p in plain.parameters()]
    model = torch.compile(plain, backend="eager") if wrap == "compiled" else plain
    core = plain.core
    if wrap == "core compiled":
        plain.core = torch.compile(plain.core, backend="eager")
    report = v1fast.accelerate(model, channels_last=True)
    assert len(report.replaced) == 2
    assert [o.kind.split()[0] for o in report.channels_last] == ["Core"]
    assert "1 in channels-last\n  " in str(report)
    assert layout_of_maps(plain, x) == "channels-last"
    assert_close(model(x), want)
    model(x).sum().backward()
    assert [p.stride() for p in plain.parameters()] == strides
    for p in plain.core.parameters():
        assert strides_that_count(p.grad) == strides_that_count(p)
    assert not v1fast.accelerate(model, channels_last=True).channels_last, "it is already"
    assert any("core" in name for name in v1fast.restore(model))
    assert type(core) is Core
    assert layout_of_maps(plain, x) == "channels first"
    assert_close(model(x), want)


def test_copies_of_a_core_in_channels_last():
    model, x = with_core(), images()
    v1fast.accelerate(model, channels_last=True)
    want = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert layout_of_maps(other, x) == "channels-last"
        assert other(x).equal(want)
        v1fast.restore(other)
        assert type(other.core) is Core
    assert model.core(input_=x).equal(model.core(x))
    assert model.core.layers[0](x[0]).shape == (6, *SHAPE[1:])


def test_channels_last_without_a_core():
    model = nn.Sequential(FullGaussian2d())
    with pytest.raises(ValueError, match="channels_last: want a module of the name core in the model, got none"):
        v1fast.accelerate(model, channels_last=True)
    assert type(model[0]) is FullGaussian2d


def test_the_report_is_shown_in_words():
    report = v1fast.accelerate(Model(c=OwnForward()))
    assert repr(report) == (
        "2 replaced\n"
        "  readout.a: FullGaussian2d of neuralpredictors\n"
        "  readout.b: PointPooled2d of neuralpredictors\n"
        "1 left\n"
        "  readout.c: OwnForward, a FullGaussian2d of neuralpredictors; has its own forward"
    )


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"model: want a torch.nn.Module, got list"):
        v1fast.accelerate([FullGaussian2d()])
    with pytest.raises(TypeError, match="model"):
        v1fast.restore(None)
    with pytest.raises(ValueError, match="sampler: want one of philox, torch, got 'numpy'"):
        v1fast.accelerate(FullGaussian2d(), sampler="numpy")
