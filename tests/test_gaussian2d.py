"""The layer Gaussian2d: constructor, state and quirks of neuralpredictors' older class, on v1fast's op.

What it shares with FullGaussian2d is tested here for both where test_full_gaussian2d.py does not.
"""

import copy
from functools import partial

import layer_checks
import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from assertions import assert_as_accurate
from op_checks import assert_same

from v1fast import _eager as eager
from v1fast.readouts import FullGaussian2d, Gaussian2d

pytestmark = pytest.mark.filterwarnings("ignore:Gaussian2d is deprecated")

SHAPE, N = (5, 7, 9), 12


def readout(**options):
    """A readout whose positions move, whose features differ and whose bias is not zero."""
    options = {"bias": True, "init_mu_range": 0.8, "init_sigma_range": 0.3} | options
    return layer_checks.differing(Gaussian2d(SHAPE, N, **options))


def features(batch=4):
    return torch.randn(batch, *SHAPE)


def eager_forward(layer, x, noise=None, shift=None):
    """What the layer means, from its parameters, by torch's own ops, in the precision of ``x``."""
    others = (layer.mu[0, :, 0], layer.sigma[0, :, 0], layer.features[0, :, 0].t(), layer.bias, shift)
    mu, sigma, weight, bias, shift = (None if t is None else t.to(x.dtype) for t in others)
    noise = None if noise is None else noise.to(x.dtype)
    return eager.gaussian_readout(x, mu, sigma, weight, bias, shift, noise=noise, align_corners=layer.align_corners)


def gradients(layer, x, forward, loss):
    """Output and the gradients of the features and of all parameters."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    out = forward(x)
    loss(out).backward()
    found = {name: p.grad.clone() for name, p in layer.named_parameters()}
    return {"out": out.detach(), "x": x.grad} | found


def weighted_sum(out):
    return (out * torch.arange(1.0, 1 + out.numel(), dtype=out.dtype).view_as(out).cos()).sum()


@pytest.mark.parametrize("frame_sample", [True, False])
def test_videos(frame_sample):
    """Every frame is an image; all of a clip share their draw, or none does."""
    layer = readout(frame_sample=frame_sample)
    layer_checks.assert_reads_frames(layer.eval(), torch.randn(2, 5, 3, 7, 9))
    y = layer.train()(features(2)[:, :, None].expand(-1, -1, 3, -1, -1))
    assert y.equal(y[:, :1].expand_as(y)) != frame_sample
    assert not y[0].equal(y[1])


def test_it_says_that_it_is_deprecated():
    with pytest.warns(DeprecationWarning, match="use FullGaussian2d") as caught:
        Gaussian2d(SHAPE, N, bias=True)
    assert [w.filename for w in caught] == [__file__]


def test_state_dict_keys_and_shapes():
    keys = {"mu": (1, N, 1, 2), "sigma": (1, N, 1, 2), "features": (1, 5, 1, N), "bias": (N,)}
    assert {k: tuple(v.shape) for k, v in readout().state_dict().items()} == keys
    del keys["bias"]
    assert {k: tuple(v.shape) for k, v in readout(bias=False).state_dict().items()} == keys


def test_initial_values():
    layer = Gaussian2d((5, 7, 9), 500, bias=True, init_mu_range=0.4, init_sigma_range=0.2)
    assert 0.38 < layer.mu.abs().max() <= 0.4
    assert layer.mu.min() < -0.38
    assert 0 <= layer.sigma.min() < 0.01
    assert 0.19 < layer.sigma.max() <= 0.2
    assert (layer.features == 1 / 5).all()
    assert (layer.bias == 0).all()
    assert layer.feature_reg_weight == 1.0
    with torch.no_grad():
        layer.sigma.fill_(7.0)
    layer.initialize(mean_activity=torch.ones(500))
    assert layer.sigma.max() <= 0.2
    assert (layer.bias == 1).all()


def test_fixed_sigma_is_exact_and_uses_up_as_many_random_numbers():
    nexts = []
    for fixed_sigma in (False, True):
        torch.manual_seed(4)
        layer = readout(fixed_sigma=fixed_sigma)
        nexts.append(torch.rand(1))
    assert (layer.sigma == 0.3).all()
    assert nexts[0].equal(nexts[1])


@pytest.mark.parametrize("batch_sample", [True, False])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
def test_training_with_torchs_stream(batch_sample, align_corners, shifted):
    """sampler="torch" draws normals of shape (B, N, 1, 2), or (1, N, 1, 2); output and all gradients.

    Of four draws together: of one, the largest error of two dozen numbers is a throw of the dice.
    """
    found = []
    for _ in range(4):
        layer = readout(batch_sample=batch_sample, align_corners=align_corners, sampler="torch")
        x, shift = features(), 0.2 * torch.randn(4, 2) if shifted else None
        torch.manual_seed(torch.initial_seed() + 1)
        state = torch.get_rng_state()
        noise = torch.empty(4 if batch_sample else 1, N, 1, 2).normal_().squeeze(2)
        torch.set_rng_state(state)
        got = gradients(layer, x, partial(layer, shift=shift), weighted_sum)
        own = gradients(layer, x, partial(eager_forward, layer, noise=noise, shift=shift), weighted_sum)
        double = copy.deepcopy(layer).double()
        forward = partial(eager_forward, double, noise=noise, shift=shift)
        found.append((got, own, gradients(double, x.double(), forward, weighted_sum)))
    for name in found[0][0]:
        assert_as_accurate(*(torch.stack([values[name] for values in kind]) for kind in zip(*found, strict=True)), name)


def test_evaluation_reads_the_means():
    layer, x = readout().eval(), features()
    assert_as_accurate(layer(x), eager_forward(layer, x), eager_forward(layer, x.double()))
    assert layer.train()(x, sample=False).equal(layer.eval()(x))
    assert not layer(x, sample=True).equal(layer(x))
    layer(x).sum().backward()
    assert layer.sigma.grad.equal(torch.zeros_like(layer.sigma)), "zeros, not None, as neuralpredictors' does"


def test_every_forward_draws_anew_and_torchs_seed_repeats_it():
    layer, x = readout(), features()
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert not first.equal(second)
    assert layer(x).equal(first)


@pytest.mark.parametrize("sampler", ["philox", "torch"])
@pytest.mark.parametrize(
    "out_idx", [np.arange(N) % 3 == 0, [3, 0, -1], torch.arange(N) > 8], ids=["mask", "list", "tensor"]
)
def test_out_idx_is_a_choice_of_the_whole(sampler, out_idx):
    layer, x = readout(sampler=sampler), features()
    torch.manual_seed(2)
    whole = layer(x)
    torch.manual_seed(2)
    assert_same(layer(x, out_idx=out_idx), whole[:, torch.as_tensor(out_idx)])


def test_a_training_pass_clamps_mu_and_sigma_in_place():
    layer, x = readout(sampler="torch"), features()
    with torch.no_grad():
        layer.mu[0, 0, 0] = torch.tensor([1.7, -3.0])
        layer.sigma[0, 1, 0] = torch.tensor([-0.4, 5.0])
    mu, sigma = layer.mu, layer.sigma
    out = layer(x)
    assert layer.mu is mu
    assert layer.sigma is sigma
    assert layer.mu[0, 0, 0].tolist() == [1, -1]
    assert layer.sigma[0, 1, 0].tolist() == [0, 5]
    out.sum().backward()
    assert layer.sigma.grad[0, 1, 0, 0] != 0, "the clamp lets gradients through"
    with torch.no_grad():
        layer.mu[0, 0, 0] = torch.tensor([1.7, -3.0])
    assert layer.grid.abs().max() == 1
    assert layer.mu.abs().max() == 3, "to look does not change it"


def test_features_of_another_shape_are_an_error():
    layer = readout()
    with pytest.raises(ValueError, match=r"with \(C, H, W\) = \(5, 7, 9\), got \(2, 5, 7, 8\)"):
        layer(torch.randn(2, 5, 7, 8))


def test_unknown_arguments_are_accepted():
    layer, x = Gaussian2d(SHAPE, N, bias=True, gauss_type="full").eval(), features()
    assert layer(x, data_key="a", images=x, pupil_center=None).equal(layer(x))


def test_mean_activity_is_copied():
    layer_checks.assert_copies_mean_activity(partial(Gaussian2d, SHAPE, N, bias=True))


def test_regularizer():
    layer_checks.assert_regularizes(readout)


def test_meta_device_and_assign():
    with torch.device("meta"):
        empty = Gaussian2d(SHAPE, N, bias=True)
    full, x = readout().eval(), features()
    empty.load_state_dict(full.state_dict(), assign=True)
    assert empty.eval()(x).equal(full(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_mu_range": 0}, r"init_mu_range: want a value in \(0, 1\], got 0"),
        ({"init_mu_range": 1.5}, "init_mu_range"),
        ({"init_sigma_range": 0}, "init_sigma_range: want a positive value, got 0"),
        ({"sampler": "numpy"}, "sampler"),
        ({"mean_activity": torch.zeros(3)}, r"mean_activity: want \[N\] = \(12,\), got \(3,\)"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Gaussian2d(SHAPE, N, **{"bias": True} | options)


def test_it_is_the_uncorrelated_full_gaussian():
    """The same parameters and seed give the same bits, until a sigma is negative."""
    old, x = readout(), features()
    new = FullGaussian2d(SHAPE, N, bias=True, gauss_type="uncorrelated")
    names = {"mu": "_mu", "features": "_features"}
    new.load_state_dict({names.get(k, k): v for k, v in old.state_dict().items()})
    torch.manual_seed(6)
    want = new(x)
    torch.manual_seed(6)
    assert old(x).equal(want)


def test_compiles_and_draws_anew_in_each_call():
    torch.compiler.reset()
    layer, x = readout(), features()
    step = torch.compile(layer, fullgraph=True, backend="aot_eager")
    first, second = step(x), step(x)
    assert not first.equal(second)
    (first + second).sum().backward()
    assert (layer.sigma.grad != 0).any()
    layer.eval()
    torch.testing.assert_close(step(x), layer(x))


# Both layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Gaussian2d, FullGaussian2d])
def test_two_passes_before_one_backward(cls):
    """The clamp of the second pass is no change to what the first one keeps for its backward."""
    layer, batches = cls(SHAPE, N, bias=True, sampler="torch"), [features(), features()]

    def passes():
        torch.manual_seed(7)
        return [layer(x).square().sum() for x in batches]

    torch.autograd.backward(passes())
    together = {k: p.grad.clone() for k, p in layer.named_parameters()}
    layer.zero_grad()
    torch.manual_seed(7)
    for x in batches:
        layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad)


@pytest.mark.parametrize("cls", [Gaussian2d, FullGaussian2d])
def test_recomputation_in_backward(cls):
    """Activation checkpointing runs the pass a second time, with the same draws."""
    layer, x = cls(SHAPE, N, bias=True), features()
    torch.manual_seed(8)
    want = gradients(layer, x, layer, weighted_sum)
    torch.manual_seed(8)
    checkpoint = torch.utils.checkpoint.checkpoint
    got = gradients(layer, x, lambda x: checkpoint(layer, x, use_reentrant=False), weighted_sum)
    torch.testing.assert_close(got, want)
