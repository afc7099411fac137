"""Parameters of all layers are plain: contiguous tensors, whose gradients have their strides.

What torch and others do with parameters counts on it: LBFGS, pruning and ``parameters_to_vector`` flatten them,
safetensors and ``fully_shard`` refuse others, DistributedDataParallel copies a gradient of other strides, and a fused
Adam pairs their memory with that of a resumed state, whatever the strides.
"""

import copy
import io
import pickle

import every_readout
import layer_checks
import pytest
import ranks
import torch
from every_readout import MAKERS, MAP, N
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, prune, vector_to_parameters

from v1fast import models, readouts

f64 = torch.float64
POINTS = [
    name
    for name in MAKERS
    if name.startswith(("FullGaussian2d", "Gaussian2d", "Generalized", "Point", "Remapped", "Spatial"))
]
every_layer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
point_layers = pytest.mark.parametrize("make", [MAKERS[name] for name in POINTS], ids=POINTS)


def in_evaluation(make, dtype=f64):
    return make().to(dtype).eval()


def assert_plain(layer):
    for name, tensor in layer.state_dict().items():
        assert tensor.is_contiguous(), name


def test_every_class_is_here():
    """All public classes, without second names of the same class and without what is no layer."""
    classes = {name.partition(",")[0] for name in MAKERS}
    here = {getattr(readouts, name) for name in classes}
    others = {getattr(readouts, name) for name in readouts.__all__} - here
    assert others == {readouts.Readout, readouts.ConfigurationError}


@every_layer
def test_state_is_contiguous(make):
    """Parameters stay plain after copies and conversions of a layer, and after a step of training."""
    layer = make()
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), make().double()):
        assert_plain(other)
    other = make()
    other.load_state_dict(layer.state_dict())
    assert_plain(other)
    layer(every_readout.features(layer)).sum().backward()
    torch.optim.Adam(layer.parameters()).step()
    assert_plain(layer)


@every_layer
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, f64], ids=str)
def test_gradients_have_the_strides_of_their_parameters(make, training, dtype):
    """In axes of length 1 too, which DistributedDataParallel compares."""
    layer = make().to(dtype).train(training)
    layer(every_readout.features(layer).to(dtype)).square().sum().backward()
    found = {name: p for name, p in layer.named_parameters() if p.grad is not None}
    assert found
    for name, parameter in found.items():
        assert parameter.grad.stride() == parameter.stride(), name


def test_gradients_of_other_models_have_the_strides_of_their_parameters():
    core = models.Stacked2dCore(1, 6, input_kern=5, hidden_kern=3, layers=3, depth_separable=True)
    core(torch.randn(2, 1, 20, 20)).square().sum().backward()
    for name, parameter in core.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name


@point_layers
def test_chosen_neurons_have_the_gradient_of_the_rest(make):
    """What is not chosen gets zeros, and the gradient is as plain as that of all neurons."""
    layer = in_evaluation(make)
    if isinstance(layer, every_readout.OfOneSession):
        pytest.skip("takes a session")
    x = every_readout.features(layer).double()
    name = "subs_idx" if isinstance(layer, readouts.SpatialTransformerPooled3d) else "out_idx"
    index = [5, 0, 7]
    upstream = torch.zeros_like(layer(x))
    upstream[..., index] = 1.0
    layer(x).backward(upstream)
    whole = {key: p.grad.clone() for key, p in layer.named_parameters() if p.grad is not None}
    layer.zero_grad()
    layer(x, **{name: index}).sum().backward()
    for key, parameter in ((key, layer.get_parameter(key)) for key in whole):
        torch.testing.assert_close(parameter.grad, whole[key], msg=key)
        assert parameter.grad.stride() == parameter.stride(), key


@point_layers
def test_parameters_keep_the_strides_that_they_are_given(make):
    """``assign=True`` puts in the tensors of the checkpoint: they stay those, and mean the same."""
    layer = layer_checks.with_random_bias(in_evaluation(make))
    with torch.no_grad():
        stored = layer_checks.stored_features(layer)
        stored.copy_(torch.randn_like(stored))
    given = {k: v.mT.contiguous().mT if v.dim() > 1 else v for k, v in layer.state_dict().items()}
    given |= {k: v.movedim(-1, 0).contiguous().movedim(0, -1) for k, v in given.items() if "features" in k}
    other = in_evaluation(make)
    other.load_state_dict(given, assign=True)
    assert {k: v.stride() for k, v in other.state_dict().items()} == {k: v.stride() for k, v in given.items()}
    x = every_readout.features(layer).double()
    torch.testing.assert_close(other(x), layer(x))
    for each in (layer, other):
        each(x).square().sum().backward()
    for (name, want), got in zip(layer.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, msg=name)


# What torch does with parameters --------------------------------------------------------------------------------------


def peers_gaussian(state, x):
    """neuralpredictors' computation in evaluation, of a state of its layout."""
    with torch.no_grad():
        state["_mu"].clamp_(-1, 1)
    grid = state["_mu"].expand(len(x), -1, -1, -1)
    read = F.grid_sample(x, grid, align_corners=True).squeeze(-1)
    return (read * state["_features"].squeeze(2)).sum(1) + state["bias"]


def peers_pooled(state, x):
    levels = [x, F.avg_pool2d(x, 2)]
    with torch.no_grad():
        state["grid"].clamp_(-1, 1)
    grid = state["grid"].expand(len(x), -1, -1, -1)
    read = torch.cat([F.grid_sample(level, grid, align_corners=True) for level in levels], dim=1)
    return (read.squeeze(-1) * state["features"].squeeze(2)).sum(1) + state["bias"]


def fit(parameters, loss, optimizer, steps):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(steps):
        optimizer.step(closure)


@pytest.mark.parametrize(
    ("make", "peers"), [(MAKERS["FullGaussian2d"], peers_gaussian), (MAKERS["PointPooled2d"], peers_pooled)]
)
def test_lbfgs_goes_the_way_of_the_peers_layout(make, peers):
    layer = in_evaluation(make)
    x, want = torch.randn(8, *MAP, dtype=f64), torch.randn(8, N, dtype=f64)
    state = {k: v.detach().clone().requires_grad_() for k, v in layer.named_parameters()}

    layer.train()  # which brings positions into the map, as the peers do in every pass

    def of_layer():
        return (layer(x, sample=False) - want).square().mean()

    def of_peer():
        return (peers(state, x) - want).square().mean()

    first = of_layer().item()
    for parameters, loss in ((list(layer.parameters()), of_layer), (list(state.values()), of_peer)):
        fit(parameters, loss, torch.optim.LBFGS(parameters, lr=0.1, max_iter=5), steps=3)
    assert of_layer().item() < first
    torch.testing.assert_close(of_layer(), of_peer())  # both clamp the last step's positions
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter, state[name], msg=lambda text, name=name: f"{name}: {text}")


@every_layer
def test_lbfgs_takes_a_step(make):
    layer = in_evaluation(make)
    x = every_readout.features(layer).double()
    parameters = [p for p in layer.parameters() if p.requires_grad]
    fit(parameters, lambda: layer(x).square().mean(), torch.optim.LBFGS(parameters, lr=1e-3, max_iter=2), steps=2)
    assert all(p.isfinite().all() for p in parameters)


@every_layer
def test_vector_of_parameters_and_back(make):
    layer = in_evaluation(make)
    x = every_readout.features(layer).double()
    want, vector = layer(x), parameters_to_vector(layer.parameters()).detach()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    vector_to_parameters(vector, layer.parameters())
    assert parameters_to_vector(layer.parameters()).equal(vector)
    torch.testing.assert_close(layer(x), want)


@point_layers
def test_pruned_weights_count_as_zero(make):
    layer = in_evaluation(make)
    x, name = every_readout.features(layer).double(), getattr(type(layer), "stored_features", "features")
    stored = layer_checks.stored_features(layer)
    with torch.no_grad():
        stored.copy_(torch.randn_like(stored))
    plain = copy.deepcopy(layer)
    prune.l1_unstructured(layer, name, amount=0.5)
    mask = getattr(layer, f"{name}_mask")
    assert mask.sum() == mask.numel() - round(0.5 * mask.numel())
    with torch.no_grad():
        getattr(plain, name).mul_(mask)
    torch.testing.assert_close(layer(x), plain(x))
    layer(x).sum().backward()
    assert (getattr(layer, f"{name}_orig").grad[mask == 0] == 0).all()


@every_layer
def test_safetensors(make, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    layer, other = in_evaluation(make), in_evaluation(make)
    # save_model leaves out all but one of the names of a shared parameter
    safetensors.save_model(layer, str(tmp_path / "layer.safetensors"))
    safetensors.load_model(other, tmp_path / "layer.safetensors")
    x = every_readout.features(layer).double()
    assert other(x).equal(layer(x))
    if len(set(map(id, layer.state_dict(keep_vars=True).values()))) == len(layer.state_dict()):
        safetensors.save_file(layer.state_dict(), str(tmp_path / "state.safetensors"))
        loaded = safetensors.load_file(tmp_path / "state.safetensors")
        assert all(loaded[k].equal(v) for k, v in layer.state_dict().items())


@pytest.fixture
def one_process(tmp_path):
    """A gloo process group with this process alone."""
    if not torch.distributed.is_available():
        pytest.skip("torch has no torch.distributed")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@every_layer
def test_fully_shard(make, one_process):
    from torch.distributed.device_mesh import init_device_mesh

    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not ranks.SHARDS_ON_CPUS:
        pytest.skip("before 2.7, torch has no fully_shard for CPUs")
    layer = in_evaluation(make)
    x, plain = every_readout.features(layer).double(), copy.deepcopy(layer)
    fsdp.fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
    for each in (layer, plain):
        each(x).square().sum().backward()
    for (name, got), want in zip(layer.named_parameters(), plain.parameters(), strict=True):
        if want.grad is not None:
            torch.testing.assert_close(got.grad.full_tensor(), want.grad, msg=name)


def test_fused_adam_resumes_a_state_of_the_peers_layout():
    """Whose averages are contiguous; a fused step pairs memory with memory."""
    make = MAKERS["FullGaussian2d"]
    x = torch.randn(4, *MAP)
    layers = {fused: make().eval() for fused in (True, False)}
    state = {k: nn.Parameter(v.detach().clone()) for k, v in layers[True].named_parameters()}
    peer = torch.optim.Adam(state.values(), lr=0.1)
    for _ in range(3):
        peer.zero_grad()
        (peers_gaussian(state, x) - 0.1 * state["sigma"].sum()).square().mean().backward()
        peer.step()
    buffer = io.BytesIO()
    torch.save(peer.state_dict(), buffer)
    for fused, layer in layers.items():
        layer.load_state_dict({k: v.detach() for k, v in state.items()})
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        buffer.seek(0)
        optimizer.load_state_dict(torch.load(buffer))
        for group in optimizer.param_groups:
            group.update(fused=fused, foreach=False)
        for _ in range(2):
            optimizer.zero_grad()
            (layer(x) - 0.1 * layer.sigma.sum()).square().mean().backward()
            optimizer.step()
    for (name, fused), plain in zip(layers[True].named_parameters(), layers[False].parameters(), strict=True):
        torch.testing.assert_close(fused, plain, msg=name)
