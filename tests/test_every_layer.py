"""What holds for every readout: what a pass writes and keeps, and what else can be made of a layer than its passes.

The layers are those of ``every_layer.py``.
"""

import copy
import itertools
import logging
import warnings
from functools import partial

import every_layer
import pytest
import torch
from every_layer import DRAWING, IN_RANGE, LAYERS
from op_checks import assert_same
from torch import nn
from torch.utils.checkpoint import checkpoint

from v1fast.readouts import ClonedReadout, FullGaussian2d, MultiReadoutBase, PointPooled2d

every = pytest.mark.parametrize("name", LAYERS)
in_range = pytest.mark.parametrize("name", IN_RANGE)
drawing = pytest.mark.parametrize("name", DRAWING)
NORMS = [name for name in IN_RANGE if "norm" in name]
RUNNING = ("RemappedGaussian2d", "AttentionReadout")  # statistics of batches
ONE_DERIVATIVE = ("Gaussian3d", "UltraSparse")  # torch's grid_sample in three dimensions


def seeded(name):
    """Arguments of a call that is the same each time."""
    return {"seed": 5} if name in DRAWING else {}


def with_input(name):
    layer = LAYERS[name]()
    return layer, every_layer.inputs(layer)


def ranged(layer):
    return [getattr(layer, key) for key in layer._ranges()]


def stamps(layer):
    """What a change of a parameter changes."""
    return {key: (p.data_ptr(), p._version, p.detach().clone()) for key, p in layer.named_parameters()}


def assert_unchanged(layer, before):
    for key, (pointer, version, values) in stamps(layer).items():
        assert (pointer, version) == before[key][:2], key
        assert values.equal(before[key][2]), key


def gradients(layer):
    return [None if p.grad is None else p.grad.clone() for p in layer.parameters()]


def assert_same_gradients(got, want):
    assert sum(g is not None and bool(g.abs().sum() > 0) for g in want)
    torch.testing.assert_close([g for g in got if g is not None], [g for g in want if g is not None])
    assert [g is None for g in got] == [g is None for g in want]


@in_range
def test_the_layers_here_start_out_of_range(name):
    layer = LAYERS[name]()
    for key, change in layer._ranges().items():
        assert not change(getattr(layer, key)).equal(getattr(layer, key)), key


@in_range
def test_only_training_passes_write(name):
    layer, x = with_input(name)
    before = stamps(layer)
    options = seeded(name)
    layer.eval()(x, **options).sum().backward()
    with torch.no_grad():
        layer(x, **options)
        layer.train()(x, **options)
    repr(layer)
    layer.state_dict()
    layer.regularizer()
    copy.deepcopy(layer)
    for attribute in ("grid", "mu", "features", "masks", "weight", "normalized_spatial", "get_mask", "mask"):
        value = getattr(layer, attribute, None)
        value() if callable(value) and not isinstance(value, torch.Tensor) else value
    if hasattr(layer, "sample_grid"):
        layer.sample_grid(2)
        layer.sample_grid(2, sample=False)
    assert_unchanged(layer, before)


@in_range
def test_a_training_pass_writes_what_project_does(name):
    layer, x = with_input(name)
    other = copy.deepcopy(layer)
    was = {key: getattr(layer, key) for key in layer._ranges()}
    layer(x, **seeded(name))
    other.project_()
    for (key, got), want in zip(layer.state_dict().items(), other.state_dict().values(), strict=True):
        assert got.equal(want) or "running" in key or "batches" in key, key
    assert all(getattr(layer, key) is p for key, p in was.items())
    if "norm" not in name:
        assert all(change(getattr(layer, key)).equal(getattr(layer, key)) for key, change in layer._ranges().items())


@in_range
def test_evaluation_reads_values_in_range(name):
    layer, x = with_input(name)
    layer.eval()
    got = layer(x)
    got.sum().backward()
    other = copy.deepcopy(layer)
    other.zero_grad()
    other.project_()
    ranges, other._ranges = other._ranges, dict
    want = other(x)
    want.sum().backward()
    assert got.equal(want)
    assert_same_gradients(gradients(layer), gradients(other))
    assert ranges(), "the gradient is the parameter's, also out of range"


@in_range
@pytest.mark.parametrize("training", [True, False])
def test_what_a_pass_saved_may_be_changed(name, training):
    """As by an optimiser's step, in the positions, deviations and weights that are kept in a range."""
    layer, x = with_input(name)
    layer.train(training)
    other = copy.deepcopy(layer)
    layer(x, **seeded(name)).square().sum().backward()
    out = other(x, **seeded(name)).square().sum()
    with torch.no_grad():
        for parameter in [*ranged(other), *([other.sigma] if hasattr(other, "sigma") else [])]:
            parameter.add_(torch.randn_like(parameter))
    out.backward()
    assert_same_gradients(gradients(other), gradients(layer))


@in_range
def test_no_parameter_in_a_range_is_saved(name):
    layer, x = with_input(name)
    kept = {p.untyped_storage().data_ptr() for p in ranged(layer)}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x, **seeded(name))
        layer.eval()(x)
    assert saved
    assert not kept & {t.untyped_storage().data_ptr() for t in saved if t.layout == torch.strided}


@every
def test_passes_between_forward_and_backward_change_no_gradient(name):
    layer, x = with_input(name)
    other = copy.deepcopy(layer)
    layer(x, **seeded(name)).square().sum().backward()
    out = other(x, **seeded(name)).square().sum()
    with torch.no_grad():
        other(x)
    if name not in RUNNING:
        other.eval()(x)
        other.train()(x)
    out.backward()
    assert_same_gradients(gradients(other), gradients(layer))


class Together(nn.Module):
    """Layers of these names as one: they are traced in less time than one after the other."""

    def __init__(self, names, training):
        super().__init__()
        self.names = list(names)
        self.layers = nn.ModuleList(LAYERS[name]().train(training) for name in names)
        self.options = [seeded(name) if training else {} for name in names]

    def inputs(self, batch=2):
        return [every_layer.inputs(layer, batch) for layer in self.layers]

    def forward(self, inputs):
        found = {}
        for i, layer in enumerate(self.layers):
            found[self.names[i]] = layer(inputs[i], **self.options[i])
        return found


class Checkpointed(nn.Module):
    """A small core and a layer whose activations are made again in the backward pass."""

    def __init__(self, name, reentrant=None):
        super().__init__()
        self.layer, x = with_input(name)
        self.core = (nn.Conv2d if x.dim() == 4 else nn.Conv3d)(4, 4, 1)
        self.options, self.reentrant = seeded(name), reentrant

    def forward(self, x):
        if self.reentrant is None:
            return self._once(x)
        return checkpoint(self._once, x, use_reentrant=self.reentrant)

    def _once(self, x):
        return self.layer(torch.tanh(self.core(x)), **self.options).square().sum()


def steps(model, x, call, count=3):
    """Some steps of training, of which the first leaves the range again."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(count):
        optimizer.zero_grad()
        loss = call(x)
        loss.backward()
        losses.append(loss.detach())
        for parameter in model.parameters():  # whatever the loss, steps large enough to reach the bounds
            size = 0 if parameter.grad is None else parameter.grad.norm()
            if size > 1e-3:  # not gradients that are rounding alone
                parameter.grad.mul_(5 / size)
        optimizer.step()
    return losses


CLASSES = [name for name in LAYERS if "," not in name]  # one layer of each, without those of other options
QUICK = {*CLASSES, *NORMS}  # to norm twice, in the pass that is made again, is an error that shows
COMPILED = [
    pytest.param(name, "compiled", marks=pytest.mark.once if name in QUICK else pytest.mark.slow) for name in LAYERS
]


@pytest.mark.parametrize(("name", "way"), [*((name, "eager") for name in LAYERS), *COMPILED])
def test_trains_with_checkpointed_activations(name, way):
    plain = Checkpointed(name)
    x = every_layer.inputs(plain.layer).requires_grad_()
    again = copy.deepcopy(plain)
    again.reentrant = False
    torch.compiler.reset()
    # Of the compiler's default backend only the partitioner: it decides which tensors are kept.
    call = torch.compile(again, fullgraph=True, backend="aot_eager_decomp_partition") if way == "compiled" else again
    torch.testing.assert_close(steps(again, x, call), steps(plain, x, plain), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(list(again.parameters()), list(plain.parameters()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in IN_RANGE if name not in RUNNING])
def test_trains_with_reentrant_checkpoints(name):
    plain = Checkpointed(name)
    x = every_layer.inputs(plain.layer).requires_grad_()
    again = copy.deepcopy(plain)
    again.reentrant = True
    torch.testing.assert_close(steps(again, x, again), steps(plain, x, plain), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(list(again.parameters()), list(plain.parameters()), rtol=1e-3, atol=1e-3)


def groups(*quick):
    """All layers of ``names``, one by one in ``make test-slow``; before that those named ``quick``, together."""
    alone = [pytest.param([name], marks=pytest.mark.slow, id=name) for name in LAYERS]
    return pytest.mark.parametrize("names", [pytest.param(quick, id="together"), *alone])


@pytest.mark.once
@groups(*[name for name in IN_RANGE if name in QUICK])
def test_compiled_training_writes_too(names):
    layers = Together(names, training=True)
    inputs, others = layers.inputs(), copy.deepcopy(layers)
    torch.compiler.reset()
    compiled = torch.compile(layers, fullgraph=True, backend="aot_eager_decomp_partition")
    got, want = compiled(inputs), others(inputs)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(list(map(ranged, layers.layers)), list(map(ranged, others.layers)))
    for outputs in (got, want):
        sum(out.square().sum() for out in outputs.values()).backward()
    torch.testing.assert_close(gradients(layers), gradients(others), rtol=1e-4, atol=1e-4)
    layers.eval()
    before = stamps(layers)
    with torch.no_grad():
        compiled(inputs)
    assert_unchanged(layers, before)


EXPORTS = [
    pytest.param(LAYERS, False, False, id="all-in-evaluation"),  # layers, in training, strictly
    pytest.param(CLASSES, True, True, id="classes-in-training-strictly"),
    *(
        pytest.param([name], training, strict, marks=pytest.mark.slow, id=f"{name}-{training}-{strict}")
        for name, training, strict in itertools.product(LAYERS, (False, True), (False, True))
    ),
]


@pytest.mark.once
@pytest.mark.parametrize(("names", "training", "strict"), EXPORTS)
def test_exports(names, training, strict):
    """The exported program gives the layers' numbers, decomposed too, and export writes nothing."""
    layers = Together(names, training)
    inputs = layers.inputs()
    want = copy.deepcopy(layers)(inputs)
    before = stamps(layers)
    torch.compiler.reset()  # a strict export counts among the compilations of one function, of which there is a limit
    exported = torch.export.export(layers, (inputs,), strict=strict)
    decomposed = exported.run_decompositions()
    assert_unchanged(layers, before)
    for program in (exported, decomposed):
        torch.testing.assert_close(program.module()(inputs), want)


@pytest.mark.once
@groups("FullGaussian2d", "PointPooled2d", "Gaussian3d", "FactorizedReadout, norm")
def test_exports_to_onnx(names, tmp_path):
    """In evaluation, by a plain call of torch's exporter, for any number of images."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # which packages are not installed
    layers = Together(names, training=False)
    inputs = layers.inputs()
    before = stamps(layers)
    options = {"dynamo": True, "opset_version": 20, "verbose": False}
    shapes = ([{0: torch.export.Dim.DYNAMIC} for _ in inputs],)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(layers, (inputs,), **options, dynamic_shapes=shapes)
    assert_unchanged(layers, before)
    program.save(tmp_path / "layers.onnx")
    session = runtime.InferenceSession(tmp_path / "layers.onnx")
    for given in (inputs, layers.inputs(batch=5)):
        named = zip(session.get_inputs(), given, strict=True)
        got = session.run(None, {one.name: x.numpy() for one, x in named})
        want = [out.detach() for out in layers(given).values()]
        torch.testing.assert_close(list(map(torch.from_numpy, got)), want, rtol=1e-4, atol=1e-5)


@every
@pytest.mark.parametrize("training", [False, True])
def test_function_transforms(name, training):
    """With respect to the input, the parameters being constants; nothing is written."""
    if training and name in RUNNING:
        pytest.skip("torch's batch normalisation changes its statistics")
    layer, x = with_input(name)
    layer.train(training)
    before = stamps(layer)
    call = partial(layer, **seeded(name)) if training else layer
    jacobian = torch.func.jacrev(call)(x)
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(copy.deepcopy(layer)(leaf, **(seeded(name) if training else {})).sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda x: call(x).sum())(x), want)
    torch.testing.assert_close(jacobian.sum(tuple(range(jacobian.dim() - x.dim()))), want, rtol=1e-4, atol=1e-5)
    if not name.startswith(ONE_DERIVATIVE):
        tangent = torch.randn_like(x)
        _, got = torch.func.jvp(call, (x,), (tangent,))
        torch.testing.assert_close(got, (jacobian * tangent).flatten(got.dim()).sum(-1), rtol=1e-4, atol=1e-4)
        square = torch.func.hessian(lambda x: call(x).square().sum())(x[:1])
        assert square.isfinite().all()
        assert square.abs().sum() > 0
    assert_unchanged(layer, before)


@every
def test_an_ensemble_in_one_call(name):
    layers = [LAYERS[name]().eval() for _ in range(3)]
    x = every_layer.inputs(layers[0])
    before = [stamps(layer) for layer in layers]
    state = torch.func.stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        got = torch.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (x,)))(*state)
    torch.testing.assert_close(got, torch.stack([layer(x) for layer in layers]))
    for layer, was in zip(layers, before, strict=True):
        assert_unchanged(layer, was)


@in_range
def test_functional_call_leaves_what_it_is_given(name):
    layer, x = with_input(name)
    given = {key: p.detach().clone().requires_grad_(p.requires_grad) for key, p in layer.named_parameters()}
    before, versions = stamps(layer), {key: p._version for key, p in given.items()}
    torch.func.functional_call(layer, given, (x,), seeded(name)).square().sum().backward()
    assert {key: p._version for key, p in given.items()} == versions
    assert_unchanged(layer, before)
    layer(x, **seeded(name)).square().sum().backward()
    for key, parameter in layer.named_parameters():
        torch.testing.assert_close(given[key].grad, parameter.grad, msg=key)


@drawing
@pytest.mark.parametrize("frames", [None, 3])
@pytest.mark.parametrize(("batch_sample", "frame_sample"), [(True, True), (False, True), (True, False), (False, False)])
def test_parts_of_a_batch_draw_what_the_batch_does(name, frames, batch_sample, frame_sample):
    layer, x = LAYERS[name](), torch.randn(5, *every_layer.IMAGE)
    if name == "RemappedGaussian2d":
        layer.eval()
    layer.batch_sample, layer.frame_sample = batch_sample, frame_sample
    if frames is not None:
        x = torch.randn(5, 4, frames, *every_layer.IMAGE[1:])
    axis = {"GeneralizedFullGaussianReadout2d": 1}.get(name, 0)
    call = partial(layer, sample=True, seed=-(2**63))
    whole = call(x)
    for sizes in ([2, 3], [1] * 5):
        firsts = [sum(sizes[:i]) for i in range(len(sizes))]
        parts = [call(part, image_offset=first) for part, first in zip(x.split(sizes), firsts, strict=True)]
        torch.testing.assert_close(torch.cat(parts, axis), whole)
    assert call(x, seed=torch.tensor([7])).equal(call(x, seed=7))
    assert not call(x, seed=7).equal(whole)
    assert_same(call(x, out_idx=[3, 1]), whole[..., [3, 1]])


@drawing
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 2**63}, r"seed: want an int in \[-2\*\*63, 2\*\*63\), got 9223372036854775808"),
        ({"seed": -(2**63) - 1}, "seed: want an int in"),
        ({"seed": 1.5}, r"seed: want an int, or an int64 tensor \[1\], got float"),
        ({"seed": torch.zeros(1)}, "seed: want int64, got float32"),
        ({"seed": torch.zeros(1, dtype=torch.int32)}, "seed: want int64, got int32"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, r"seed: want \[1\] = \(1,\), got \(2,\)"),
        ({"seed": 1, "image_offset": -1}, "image_offset: want at least 0, got -1"),
        (
            {"seed": 1, "image_offset": 2**63},
            r"image_offset: want image_offset \+ B of at most 9223372036854775807, got 922337203685477",
        ),
        ({"image_offset": 3}, "image_offset: want a seed beside it, got image_offset = 3 and no seed"),
    ],
)
def test_refuses_seeds_and_offsets_out_of_range(name, arguments, message):
    layer, x = with_input(name)
    with pytest.raises(ValueError, match=message):
        layer(x, **arguments)


@pytest.mark.parametrize("name", [name for name in DRAWING if not name.startswith(ONE_DERIVATIVE)])
def test_the_other_sampler_refuses_a_seed(name):
    layer, x = with_input(name)
    layer.sampler = "torch"
    with pytest.raises(ValueError, match='seed: want sampler="philox"'):
        layer(x, seed=1)


def test_containers_project_their_readouts():
    shapes, neurons = {"a": every_layer.IMAGE, "b": every_layer.IMAGE}, {"a": 3, "b": 4}
    sessions = MultiReadoutBase(shapes, neurons, base_readout=FullGaussian2d, bias=True)
    with torch.no_grad():
        for readout in sessions.values():
            readout._mu.fill_(3.0)
    sessions.project_()
    assert all(readout._mu.eq(1).all() for readout in sessions.values())
    clone = ClonedReadout(PointPooled2d(every_layer.IMAGE, 3, 1, True, 2, 0.1))
    with torch.no_grad():
        clone._source.grid.fill_(-3.0)
    clone.project_()
    assert clone._source.grid.eq(-1).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NORMS, "FullGaussian2d", "FullFactorized2d, positive"])
@pytest.mark.parametrize("again", [False, None])
def test_the_default_backend_keeps_what_is_in_range(name, again):
    plain = Checkpointed(name)
    x = every_layer.inputs(plain.layer).requires_grad_()
    other = copy.deepcopy(plain)
    other.reentrant = again
    torch.compiler.reset()
    torch.testing.assert_close(
        steps(other, x, torch.compile(other, fullgraph=True)), steps(plain, x, plain), rtol=1e-3, atol=1e-3
    )
