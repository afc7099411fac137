"""Layers hand the op their parameters as they store them: one step of autograd's, the same in every bit as several."""

import pytest
import torch
from torch.nn.utils import parametrize

from v1fast import functional, readouts
from v1fast.ops import gaussian_readout as op
from v1fast.ops._define import has_kernel

SHAPE, NEURONS = (3, 5, 6), 7
LAYERS = {
    "full": lambda: readouts.FullGaussian2d(SHAPE, NEURONS, True, init_mu_range=1.0),
    "uncorrelated": lambda: readouts.FullGaussian2d(SHAPE, NEURONS, False, gauss_type="uncorrelated"),
    "isotropic, torch's noise": lambda: readouts.FullGaussian2d(
        SHAPE, NEURONS, True, gauss_type="isotropic", sampler="torch"
    ),
    "one sample for all images": lambda: readouts.FullGaussian2d(SHAPE, NEURONS, True, batch_sample=False),
    "shared features": lambda: readouts.FullGaussian2d(
        SHAPE, NEURONS, True, shared_features={"match_ids": [0, 1, 2, 0, 1, 2, 3]}
    ),
    "Gaussian2d": lambda: readouts.Gaussian2d(SHAPE, NEURONS, True),
}


@pytest.fixture
def several_steps(monkeypatch):
    """Lets each view and copy of a parameter be a step of autograd's."""

    def switch():
        monkeypatch.setattr(functional, "suits_stored", lambda *tensors: False)

    return switch


def made(name):
    torch.manual_seed(1)
    layer = LAYERS[name]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return layer


def run(layer, x, **options):
    """Output, and gradients of the features and of all parameters, of the same draw each time."""
    torch.manual_seed(2)
    x = x.clone().requires_grad_()
    out = layer(x, **options)
    wanted = [x, *layer.parameters()]
    return [out, *torch.autograd.grad(out.sin().sum(), wanted, allow_unused=True)]


def assert_same(got, want):
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a.equal(b) and a.stride() == b.stride())


@pytest.mark.filterwarnings("ignore:Gaussian2d is deprecated")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_the_same_in_every_bit_as_in_several_steps(name, training, several_steps):
    layer, x = made(name).train(training), torch.randn(4, *SHAPE)
    shift = 0.1 * torch.randn(4, 2, requires_grad=True)
    got = [run(layer, x), run(layer, x, shift=shift), run(layer, x.to(memory_format=torch.channels_last))]
    several_steps()
    want = [run(layer, x), run(layer, x, shift=shift), run(layer, x.to(memory_format=torch.channels_last))]
    for one, several in zip(got, want, strict=True):
        assert_same(one, several)


@pytest.mark.skipif(not has_kernel("gaussian_readout", "CPU"), reason="what runs without a kernel takes several steps")
def test_it_is_one_step():
    layer = made("full")
    steps = {step for step, _ in layer(torch.randn(2, *SHAPE)).grad_fn.next_functions if step is not None}
    assert {step.variable for step in steps} == set(layer.parameters())


def stored_operands(requires_grad=True):
    torch.manual_seed(3)
    made = {
        "features": torch.randn(2, 3, 4, 5),
        "mu": torch.rand(1, 4, 1, 2) - 0.5,
        "sigma": 0.3 * torch.randn(1, 4, 2, 2),
        "weight": torch.randn(1, 3, 1, 4),
        "bias": torch.randn(4),
        "shift": 0.1 * torch.randn(2, 2),
    }
    return [tensor.double().requires_grad_(requires_grad) for tensor in made.values()]


NOISE = torch.randn(2, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def of_stored(features, mu, sigma, weight, bias, shift):
    operands = functional.gaussian_operands(
        features,
        mu.detach().view(4, 2),
        sigma.detach().view(4, 2, 2),
        weight.detach().view(3, 4).t(),
        bias,
        shift,
        noise=NOISE,
    )
    return op.of_stored((mu, sigma, weight), *operands)


def step_by_step(features, mu, sigma, weight, bias, shift):
    return functional.gaussian_readout(
        features, mu.view(4, 2), sigma.view(4, 2, 2), weight.view(3, 4).t(), bias, shift, noise=NOISE
    )


def test_first_and_second_derivatives():
    operands = stored_operands()
    got, want = of_stored(*operands), step_by_step(*operands)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    first = [torch.autograd.grad(out.sin().sum(), operands, create_graph=True) for out in (got, want)]
    assert_same(*first)
    second = [torch.autograd.grad(sum(g.sin().sum() for g in grads), operands) for grads in first]
    for a, b in zip(*second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_in_a_batch():
    operands = stored_operands()
    out = of_stored(*operands)
    upstream = torch.randn(3, *out.shape, dtype=out.dtype)
    got = torch.autograd.grad(out, operands, upstream, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(out, operands, one, retain_graph=True) for one in upstream]
    for batched, single in zip(got, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(batched, torch.stack(single), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", range(6))
def test_what_needs_no_gradient_gets_none(frozen):
    operands = stored_operands()
    operands[frozen].requires_grad_(False)
    of_stored(*operands).sum().backward()
    assert [t.grad is None for t in operands] == [i == frozen for i in range(6)]


def test_parameters_may_change_before_the_backward_pass(several_steps):
    layer, x = made("full"), torch.randn(4, *SHAPE)
    want = run(layer, x)[1:]
    torch.manual_seed(2)
    x = x.requires_grad_()
    out = layer(x)
    with torch.no_grad():
        layer._mu.fill_(0.7)
        layer.sigma.zero_()
    assert_same(torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()]), want)


def test_hooks_and_parametrisations_of_parameters(several_steps):
    class Doubled(torch.nn.Module):
        def forward(self, values):
            return 2 * values

    def result():
        layer, seen = made("full"), []
        parametrize.register_parametrization(layer, "sigma", Doubled())
        layer._features.register_hook(lambda gradient: 3 * gradient)
        layer._mu.register_post_accumulate_grad_hook(lambda mu: seen.append(mu.grad.clone()))
        torch.manual_seed(2)
        layer(torch.ones(4, *SHAPE).cumsum(-1).sin()).sum().backward()
        return [*seen, *(parameter.grad for parameter in layer.parameters())]

    got = result()
    several_steps()
    assert_same(got, result())


def test_what_is_saved_passes_through_hooks():
    operands = stored_operands()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True).copy(), torch.from_numpy):
        got = torch.autograd.grad(of_stored(*operands).sin().sum(), operands)
    assert_same(got, torch.autograd.grad(step_by_step(*operands).sin().sum(), operands))


def test_a_wrong_operand_is_named():
    with pytest.raises(ValueError, match=r"shift: want \[B, 2\] = \(4, 2\), got \(3, 2\)"):
        made("full")(torch.randn(4, *SHAPE), shift=torch.zeros(3, 2))


def test_an_attribute_in_place_of_a_parameter_is_read(several_steps):
    def result():
        layer = made("full")
        for name in ("_mu", "sigma", "_features", "bias"):
            layer.__dict__[name] = 0.5 * getattr(layer, name)  # as a rank puts its part of a parameter there
        return run(layer, torch.ones(4, *SHAPE).cumsum(-1).sin())

    got = result()
    several_steps()
    want = result()
    assert_same(got, want)
    assert not want[0].equal(run(made("full"), torch.ones(4, *SHAPE).cumsum(-1).sin())[0])
