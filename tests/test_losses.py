"""The losses against torch's own likelihoods."""

import pytest
import torch
from torch import distributions as d

from v1fast import losses
from v1fast.models import MultitaskLN

B, N = 40, 5


def case(name):
    """Loss class, output, target, expected negative log-likelihoods [B, N]."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(B, N, generator=generator, dtype=torch.float64) * 2 + 0.5 for _ in range(2))
    if name == "poisson":
        y = torch.poisson(a, generator)
        return losses.PoissonLoss, a, y, -d.Poisson(a).log_prob(y) - torch.lgamma(y + 1)
    if name == "bernoulli":
        p = a / 3
        y = torch.bernoulli(p, generator=generator)
        return losses.BernoulliLoss, p, y, -d.Bernoulli(p).log_prob(y)
    if name == "gaussian":
        y = torch.randn(B, N, generator=generator, dtype=torch.float64)
        return losses.GaussianLoss, (a, b), y, -d.Normal(a, b.sqrt()).log_prob(y)
    y = torch.rand(B, N, generator=generator, dtype=torch.float64) + 0.01
    return losses.GammaLoss, (a, b), y, -d.Gamma(a, b).log_prob(y)


CASES = ("poisson", "bernoulli", "gaussian", "gamma")


@pytest.mark.parametrize("name", CASES)
def test_likelihoods_and_reductions(name):
    loss, output, target, want = case(name)
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(loss()(output, target), want.mean(), **close)
    torch.testing.assert_close(loss(avg=False)(output, target), want.sum(), **close)
    torch.testing.assert_close(loss(per_neuron=True)(output, target), want.mean(0), **close)
    torch.testing.assert_close(loss(per_neuron=True, avg=False)(output, target), want.sum(0), **close)
    parts = [o.view(4, 10, N) for o in output] if isinstance(output, tuple) else output.view(4, 10, N)
    torch.testing.assert_close(loss(per_neuron=True)(parts, target.view(4, 10, N)), want.mean(0), **close)


def test_poisson_options():
    rate, y = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 3.0]])
    assert losses.PoissonLoss(avg=False)(rate[:, :1], y[:, :1]).item() == pytest.approx(27.631, abs=1e-3)  # 1e-12
    assert losses.PoissonLoss(1e-8, avg=False)(rate[:, :1], y[:, :1]).item() == pytest.approx(18.42, abs=1e-2)
    full = losses.PoissonLoss(full_loss=True, avg=False)(rate[:, 1:], y[:, 1:])
    want = torch.nn.PoissonNLLLoss(log_input=False, full=True, eps=1e-12, reduction="sum")(rate[:, 1:], y[:, 1:])
    torch.testing.assert_close(full, want)


def test_bernoulli_of_logits():
    _, p, y, want = case("bernoulli")
    torch.testing.assert_close(losses.BernoulliLoss(logits=True)(p.logit(), y), want.mean())
    assert losses.BernoulliLoss(logits=True)(torch.tensor([[-400.0]]), torch.ones(1, 1)) == 400


def zig():
    generator = torch.Generator().manual_seed(0)
    theta, k = (torch.rand(B, N, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2))
    q = torch.rand(B, N, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    loc = torch.full((1, N), 0.1, dtype=torch.float64)
    y = torch.rand(B, N, generator=generator, dtype=torch.float64)
    y = torch.where(y < 0.4, 0.0, y)
    y[:, 4] = 0  # all zeros
    gamma = d.Gamma(k, 1 / theta).log_prob((y - loc).clamp_min(1e-3)) + q.log()
    return (theta, k, loc, q), y, -torch.where(y > loc, gamma, (1 - q).log() - loc.log())


def test_zero_inflated_gamma():
    output, y, want = zig()
    torch.testing.assert_close(losses.ZIGLoss()(output, y), want.sum())
    torch.testing.assert_close(losses.ZIGLoss(per_neuron=True)(output, y), want.sum(0))
    torch.testing.assert_close(losses.ZIGLoss()(y, output), want.sum())  # neuralpredictors' order
    assert losses.ZIGLoss(return_logdet=True)(output, y)[1] == 0
    zeros = y <= output[2]
    parts = [(want * part).sum(0) / part.sum(0).clamp_min(1) for part in (zeros, ~zeros)]
    torch.testing.assert_close(losses.ZIGLoss(avg=True, per_neuron=True)(output, y), sum(parts))
    torch.testing.assert_close(losses.ZIGLoss(avg=True)(output, y), sum(parts).mean())


def test_a_trained_loc_stays_below_the_responses():
    (theta, k, _, q), y, _ = zig()
    loc = torch.full((1, N), 5.0, dtype=torch.float64, requires_grad=True)
    loss = losses.ZIGLoss()((theta, k, loc, q), y + 0.01)
    loss.backward()
    assert loss.isfinite()
    assert loc.grad.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_the_output_alone(name):
    loss, output, target, _ = case(name)
    leaves = [o.requires_grad_() for o in (output if isinstance(output, tuple) else (output,))]
    loss()(output, target.requires_grad_()).backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
    assert target.grad is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["PoissonLoss", "BernoulliLoss", "GaussianLoss", "GammaLoss", "ZIGLoss"])
def test_responses_that_are_not_finite_are_refused(name, value):
    responses = torch.full((4, 3), 0.5)
    getattr(losses, name)().check_responses(responses, "a")
    responses[2, 1] = responses[3, 0] = value
    with pytest.raises(ValueError, match=r"responses of session a: want .*, got 2 of 12 others, the first at \(2, 1\)"):
        getattr(losses, name)().check_responses(responses, session="a")


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        ("PoissonLoss", -0.5, "finite values >= 0"),
        ("ZIGLoss", -0.5, "finite values >= 0"),
        ("GammaLoss", 0.0, "finite values > 0"),
        ("BernoulliLoss", 1.5, "values from 0 to 1"),
    ],
)
def test_responses_beyond_the_support_are_refused(name, value, want):
    responses = torch.full((4, 3), 0.5)
    responses[0, 2] = value
    with pytest.raises(
        ValueError, match=rf"responses: want {want}, got 1 of 12 others, the first at \(0, 2\): {value}"
    ):
        getattr(losses, name)().check_responses(responses)


def test_other_responses_are_taken():
    losses.PoissonLoss().check_responses(torch.tensor([[0, 3]]))
    losses.GaussianLoss().check_responses(torch.tensor([[-3.0, 3]]))
    losses.check_responses(torch.zeros(0, 3), support="positive")
    with pytest.raises(ValueError, match="support: want one of real, non-negative, positive, unit, got 'x'"):
        losses.check_responses(torch.zeros(1), support="x")


@pytest.mark.parametrize("loss", [losses.BernoulliLoss(logits=True), losses.BernoulliLoss(), losses.PoissonLoss()])
def test_a_multitask_ln_model_is_fitted_with_them(loss):
    torch.manual_seed(1)
    options = {"cell_class": [0, 1] * 4, "positions": torch.rand(8, 2) - 0.5, "kernel": (3, 3), "history": 2}
    truth, model = (MultitaskLN((1, 6, 7), 8, **options, init_noise=noise) for noise in (0.6, 0.1))
    x = torch.randn(30, 1, 20, 6, 7)
    spikes = torch.bernoulli(truth(x).detach())
    loss.check_responses(spikes)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        loss(model.logits(x) if getattr(loss, "logits", False) else model(x), spikes).backward()
        optimiser.step()
    pair = torch.stack([model.logits(x).detach().flatten(), truth.logits(x).detach().flatten()])
    assert pair.corrcoef()[0, 1] > 0.9
