"""Small layers on the fallback: by their parameters as they are, recorded by torch, with derivatives of any order."""

import gc
import weakref

import pytest
import torch

from v1fast.fallback import bilinear, philox_cpu, small_layers, small_pooled
from v1fast.ops import _define

B, C, H, W, N = 3, 2, 6, 7, 5
SIGMAS = {"full": (2, 2), "uncorrelated": (1, 2), "isotropic": (1, 1)}
DRAWS = ("means", "noise", "seed", "one draw")


@pytest.fixture(params=["torch", "point_gather"])
def second_order(request, monkeypatch):
    """Whose second derivatives: older releases of torch lack those of ``grid_sample``. Only then others are called."""
    calls, instead = [], request.param == "point_gather"
    if not instead and not bilinear.gradients_have_derivatives():
        pytest.skip("this torch lacks them")
    monkeypatch.setattr(bilinear, "gradients_have_derivatives", lambda: not instead)
    backward = bilinear.reference.point_gather_backward
    monkeypatch.setattr(bilinear.reference, "point_gather_backward", lambda *a: calls.append(1) or backward(*a))
    yield
    assert bool(calls) == instead


def leaves_of(steps, sigma=None, dtype=torch.float64):
    """Features, positions, sigma, weights and bias of a layer."""
    torch.manual_seed(0)
    shapes = ((1, N, 1, 2), None if sigma is None else (1, N, *sigma), (1, (steps + 1) * C, 1, N), (N,))
    features = torch.randn(B, C, H, W, dtype=dtype, requires_grad=True)
    layer = [torch.nn.Parameter(0.5 * torch.randn(shape, dtype=dtype)) for shape in shapes if shape is not None]
    layer[0].data[0, 0] = torch.tensor([1.3, -1.1])
    return features, *layer


def draws_of(kind, features, count):
    """What the layer draws, and the same as the op takes it: noise, seed, neuron_index, image_offset, share_noise."""
    dtype, images = features.dtype, 1 if kind == "one draw" else B
    if kind == "means":
        return None, (None, None, None, 0, False)
    if kind == "seed":
        drawn = torch.tensor([7]), torch.arange(count) + 3, 2, False
        return drawn, (None, *drawn)
    noise = torch.randn(images, count, 2, dtype=dtype)
    return noise.unsqueeze(2), (noise, None, None, 0, images == 1)


def derivatives(out, leaves):
    """Of the first and the second order."""
    first = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True, allow_unused=True, materialize_grads=True)
    pairs = sum(g.square().sum() for g in first)
    second = torch.autograd.grad(pairs, leaves, allow_unused=True, materialize_grads=True)
    return first, second


def operands_of(mu, sigma, weight):
    """What the op takes, in range; the gradient passes to parameters beyond it."""
    inside = mu + (mu.clamp(-1, 1) - mu).detach()
    shape = (N, 2, 2) if sigma.shape[2] == 2 else (N, sigma.shape[3])
    return inside.view(N, 2), sigma.view(shape), weight[0, :, 0].t()


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("shifts", [None, 1, B])
@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("sigma", SIGMAS.values(), ids=SIGMAS)
def test_gaussian(sigma, kind, shifts, write, second_order, monkeypatch):
    monkeypatch.setattr(small_layers, "FEW", 0 if shifts is None else 2**8)  # both ways to displace
    features, *layer, bias = leaves = leaves_of(0, sigma)
    shift = None if shifts is None else 0.1 * torch.randn(shifts, 2, dtype=features.dtype)
    drawn, noise = draws_of(kind, features, N)
    all_shifts = None if shift is None else shift.expand(B, -1)
    want = _define.references["gaussian_readout"](features, *operands_of(*layer), bias, all_shifts, *noise, True)
    want = want.detach(), derivatives(want, leaves)
    assert layer[0].abs().max() > 1
    out = small_layers.of_parameters({}, features, *layer, bias, shift, lambda: drawn, True, write, False)
    assert (layer[0].abs().max() <= 1) == write
    torch.testing.assert_close((out.detach(), derivatives(out, leaves)), want)


@pytest.mark.parametrize("write", [True, False])
def test_sigma_in_range(write):
    """Where it is kept positive, its values are read so, and the gradient passes beyond."""
    features, mu, sigma, weight, bias = leaves_of(0, (1, 2))
    noise = torch.randn(B, N, 1, 2, dtype=features.dtype)
    inside = (sigma + (sigma.clamp(0) - sigma).detach()).view(N, 2)
    operands = operands_of(mu, sigma, weight)
    call = (operands[0], inside, operands[2], bias, None, noise.squeeze(2), None, None, 0, False, True)
    want = _define.references["gaussian_readout"](features, *call)
    want = want.detach(), torch.autograd.grad(want.sum(), sigma)
    assert (sigma < 0).any()
    out = small_layers.of_parameters({}, features, mu, sigma, weight, bias, None, lambda: noise, True, write, True)
    torch.testing.assert_close((out.detach(), torch.autograd.grad(out.sum(), sigma)), want)
    assert (sigma >= 0).all() == write


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("shifts", [None, 1, B])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_pooled(steps, shifts, channels_last, second_order, monkeypatch):
    monkeypatch.setattr(small_pooled, "LITTLE", 0 if channels_last else 2**13)
    features, grid, weight, bias = leaves = leaves_of(steps)
    shift = None if shifts is None else 0.1 * torch.randn(shifts, 2, dtype=features.dtype)
    all_shifts = None if shift is None else shift.expand(B, -1)
    inside = (grid + (grid.clamp(-1, 1) - grid).detach()).view(N, 2)
    call = (features, inside, weight[0, :, 0].t(), bias, all_shifts, None, False, 2, steps)
    want = _define.references["pooled_readout"](*call)
    want = want.detach(), derivatives(want, leaves)
    for compute in (
        lambda: small_pooled.small(*call),
        lambda: small_pooled.of_parameters({}, features, grid, weight, bias, shift, False, 2, steps, True),
    ):
        out = compute()
        torch.testing.assert_close((out.detach(), derivatives(out, leaves)), want)
    assert grid.abs().max() <= 1


@pytest.mark.parametrize("shifts", [None, B])
def test_levels(shifts, second_order):
    """Of any sizes and numbers of channels, made by others."""
    features, grid, weight, bias = leaves_of(1)
    coarse = torch.randn(B, C, 3, 2, dtype=features.dtype, requires_grad=True)
    leaves = features, coarse, grid, weight, bias
    shift = None if shifts is None else 0.1 * torch.randn(shifts, 2, dtype=features.dtype)
    inside = (grid + (grid.clamp(-1, 1) - grid).detach()).view(N, 2)
    reference, parts = _define.references["pooled_readout"], weight[0, :, 0].t().split(C, 1)
    want = reference(features, inside, parts[0], bias, shift, None, True, 1, 0)
    want = want + reference(coarse, inside, parts[1], None, shift, None, True, 1, 0)
    want = want.detach(), derivatives(want, leaves)
    out = small_pooled.of_levels({}, [features, coarse], grid, weight, bias, shift, True, True)
    torch.testing.assert_close((out.detach(), derivatives(out, leaves)), want)


def test_levels_that_differ_are_refused():
    features, grid, weight, bias = leaves_of(1)
    for other in (features[:1], features.float(), features.to("meta")):
        assert small_pooled.of_levels({}, [features, other], grid, weight, bias, None, True, True) is None


def gaussian(*leaves, **changes):
    features, mu, sigma, weight, bias = leaves
    options = {"shift": None, "noise": None} | changes
    return small_layers.of_parameters(
        {}, features, mu, sigma, weight, bias, options["shift"], lambda: options["noise"], True, True, False
    )


def pooled(*leaves, **changes):
    return small_pooled.of_parameters({}, *leaves, changes.get("shift"), True, 2, 1, True)


LAYERS = {"gaussian": (gaussian, (0, (2, 2))), "pooled": (pooled, (1,))}


@pytest.mark.parametrize(("read", "form"), LAYERS.values(), ids=LAYERS)
def test_all_else_is_refused(read, form):
    """What another path computes, or names the error of. Nothing is drawn and nothing is written."""
    features, *layer = leaves_of(*form, dtype=torch.float32)
    layer[0].data[:] = 2
    *_, weight, bias = layer
    assert read(features.bfloat16(), *(p.bfloat16() for p in layer)) is None
    assert read(features, *layer[:-2], weight.double(), bias) is None
    assert read(features, layer[0].double(), *layer[1:]) is None
    assert read(features, *layer[:-1], bias.double()) is None
    assert read(features, *layer[:-1], bias[:1]) is None
    for place, parameter in enumerate(layer):
        assert read(features, *layer[:place], parameter.to("meta"), *layer[place + 1 :]) is None
    assert read(features, *layer[:-2], weight[:, :1], bias) is None
    assert read(features.expand(2**15, -1, -1, -1, -1).flatten(0, 1), *layer) is None  # not small
    assert read(features[:0], *layer) is None
    assert read(features, *layer, shift=torch.zeros(2, 2)) is None
    assert read(features, *layer, shift=torch.zeros(B, 2).double()) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert read(features, *layer) is None
    found = []
    torch.vmap(lambda x: found.append(read(x, *layer)) or x)(features[None])
    assert found == [None]
    assert (layer[0] == 2).all()
    assert read(features, *layer) is not None
    assert (layer[0] == 1).all()


@pytest.mark.parametrize("by_clamp", [True, False])
def test_positions_at_the_edge_keep_their_gradient(by_clamp, monkeypatch):
    """Those beyond have none. As the reference has it, also where ``clamp`` passes none at its bounds (torch 2.14)."""
    if by_clamp and not bilinear.clamp_passes_at_bounds():
        pytest.skip("this torch's clamp passes no gradient at its bounds")
    monkeypatch.setattr(bilinear, "clamp_passes_at_bounds", lambda: by_clamp)
    features, mu, sigma, weight, bias = leaves_of(0, (1, 2))
    mu.data[0, 1], sigma.data[0, 1] = 1, 0
    noise = torch.full((B, N, 1, 2), 0.5, dtype=features.dtype)
    noise[0, 0], noise[1, 2] = 9, torch.nan
    out = gaussian(features, mu, sigma, weight, bias, noise=noise)
    operands = operands_of(mu, sigma, weight)
    call = (*operands, bias, None, noise.squeeze(2), None, None, 0, False, True)
    want = _define.references["gaussian_readout"](features, *call)
    torch.testing.assert_close(out, want, equal_nan=True)
    kept = torch.arange(B)[:, None] * N + torch.arange(N) != N + 2  # not the response at NaN
    found = torch.autograd.grad(out[kept].sum(), mu)[0]
    torch.testing.assert_close(found, torch.autograd.grad(want[kept].sum(), mu)[0])
    assert (found[0, 1] != 0).any()


@pytest.mark.parametrize(("read", "form"), LAYERS.values(), ids=LAYERS)
def test_parameters_may_change_before_the_backward_pass(read, form):
    """By another pass, or by an optimiser: positions and sigma are not kept. (Weights are, as in any eager model.)"""
    features, *layer = leaves_of(*form)
    want = torch.autograd.grad(read(features, *layer).sum(), layer[0])
    out = read(features, *layer)
    with torch.no_grad():
        for parameter in layer[:-2]:
            parameter += 0.1
    torch.testing.assert_close(torch.autograd.grad(out.sum(), layer[0]), want)


@pytest.mark.parametrize(("read", "form"), LAYERS.values(), ids=LAYERS)
def test_nothing_is_kept_alive(read, form, second_order):
    """The hook holds tensors, and no tensor holds the hook: memory is free without the collector of cycles."""
    features, *layer = leaves_of(*form)
    held = features * 1
    gone = weakref.ref(held)
    gc.disable()
    try:
        out = read(held, *layer)
        torch.autograd.grad(out.sum(), features, create_graph=True)
        del out, held
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("read", "form"), LAYERS.values(), ids=LAYERS)
def test_several_backward_passes(read, form, second_order):
    """With and without a graph in any order, and for some of the leaves only."""
    features, *layer = leaves_of(*form)
    out = read(features, *layer).sin().sum()
    plain = torch.autograd.grad(out, [features, layer[0]], retain_graph=True)
    for wanted in ([layer[-2]], [features, layer[0]], [layer[0]], [features, layer[0]]):
        found = torch.autograd.grad(out, wanted, create_graph=True)
        assert all(g.requires_grad for g in found)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(torch.autograd.grad(out, [features, layer[0]], retain_graph=True), plain)
    (third,) = torch.autograd.grad(found[0].square().sum(), features, create_graph=True)
    assert torch.autograd.grad(third.square().sum(), layer[0])[0].isfinite().all()


def test_positions_that_are_not_finite_where_torch_reads_there(monkeypatch):
    """On ARM, torch reads the first pixel at NaN."""
    monkeypatch.setattr(bilinear, "reads_none_at_nan", lambda: False)
    features, grid, weight, bias = leaves_of(1)
    grid.data[0, 0] = torch.nan
    out = pooled(features, grid, weight, bias)
    assert out[:, 0].isnan().all()
    assert out[:, 1:].isfinite().all()
    (gradient,) = torch.autograd.grad(out[:, 1:].sum(), features)
    assert gradient.isfinite().all()


def test_means_give_sigma_zeros():
    """Also beside a sigma that is not finite."""
    leaves = leaves_of(0, (2, 2))
    leaves[2].data[0, 0] = torch.inf
    out = gaussian(*leaves)
    assert out.isfinite().all()
    assert (torch.autograd.grad(out.sum(), leaves[2])[0] == 0).all()


def test_draws_are_those_of_the_seed():
    features, mu, sigma, weight, bias = leaves_of(0, (2, 2), torch.float32)
    eps = philox_cpu.normals(torch.tensor([5]), B, N, None, 4).unsqueeze(2)
    drawn = gaussian(features, mu, sigma, weight, bias, noise=(torch.tensor([5]), None, 4, False))
    assert drawn.equal(gaussian(features, mu, sigma, weight, bias, noise=eps))
