"""What holds for the readout layers alike. ``make`` makes a layer with options of its constructor; ``x``: features."""

import copy

import numpy as np
import pytest
import torch
from op_checks import assert_same
from torch.nn import functional as F


def stored_features(layer):
    """The parameter that holds the weights of the channels."""
    return getattr(layer, getattr(type(layer), "stored_features", "features"))


@torch.no_grad()
def differing(layer):
    """The layer with weights and a bias that differ from neuron to neuron."""
    for parameter in (stored_features(layer), layer.bias):
        if parameter is not None:
            parameter.copy_(torch.randn_like(parameter))
    return layer


def assert_regularizes(make):
    """The penalty is the magnitude of the weights, with each reduction; the factor's old name works."""
    layer = make(feature_reg_weight=0.5)
    magnitude = stored_features(layer).detach().abs()
    assert layer.regularizer().item() == pytest.approx(0.5 * magnitude.sum().item(), rel=1e-6)
    assert layer.regularizer(reduction="mean").item() == pytest.approx(0.5 * magnitude.mean().item(), rel=1e-6)
    torch.testing.assert_close(layer.regularizer(reduction=None), 0.5 * magnitude)
    with pytest.warns(DeprecationWarning, match="average"):
        assert layer.regularizer(average=True).item() == pytest.approx(0.5 * magnitude.mean().item(), rel=1e-6)
    with pytest.raises(ValueError, match="reduction"):
        layer.regularizer(reduction="max")
    assert_knows_gamma_readout(make)


def assert_knows_gamma_readout(make):
    with pytest.warns(DeprecationWarning, match="gamma_readout"):
        assert make(gamma_readout=0.25).feature_reg_weight == 0.25
    with pytest.warns(DeprecationWarning, match="gamma_readout"):
        assert make(gamma_readout=0.25, feature_reg_weight=2.0).feature_reg_weight == 2.0


def assert_casts_as_a_whole(layer, x, dtype):
    layer = layer.to(dtype)
    y = layer(x.to(dtype))
    assert y.dtype == dtype
    y.sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in layer.parameters())


def assert_copies_mean_activity(make):
    mean = torch.rand(12, dtype=torch.float64)
    layer = make(mean_activity=mean)
    assert layer.bias.dtype == torch.float32
    assert layer.bias.equal(mean.float())
    with torch.no_grad():
        layer.bias.add_(1)
    assert mean.max() <= 1
    layer.initialize()
    assert layer.bias.equal(mean.float()), "initialize() without an argument uses the constructor's mean activity"


def assert_refuses_out_idx(layer, x):
    """Refuses values of out_idx that choose none of twelve neurons."""
    with pytest.raises(ValueError, match="out_idx: want a mask of 12 neurons"):
        layer(x, out_idx=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="out_idx: want a list of integers"):
        layer(x, out_idx=[0.5])
    with pytest.raises(IndexError):
        layer(x, out_idx=[12])


def shifted(x, shift):
    """Features [B, C, H, W], read at their pixels plus the shift [B, 2], by torch's own ops."""
    if shift is None:
        return x
    theta = torch.eye(2, 3, dtype=x.dtype).expand(len(x), 2, 3).clone()
    theta[:, :, 2] = shift
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=True), align_corners=True)


@torch.no_grad()
def with_random_bias(layer):
    """The layer with a bias that differs from neuron to neuron."""
    if layer.bias is not None:
        layer.bias.copy_(torch.randn_like(layer.bias))
    return layer


def choices(neurons):
    """Ways to choose some of them."""
    return (
        np.array([3, 0, -1]),
        np.arange(neurons) % 3 == 0,
        [1, 2, 7],
        [True] * 4 + [False] * (neurons - 4),
        torch.tensor([5, 5, 1]),
        torch.tensor([2], dtype=torch.int32),
        torch.arange(neurons) > 8,
        [],
    )


def assert_chooses_neurons(call, neurons, exactly=True):
    """``call(out_idx=...)`` gives those columns of ``call()``, to the bit where no matrix product is in between."""
    whole = call()
    for out_idx in choices(neurons):
        chosen = torch.as_tensor(out_idx)
        chosen = chosen if chosen.dtype == torch.bool else chosen.long()
        part, want = call(out_idx=out_idx), whole[..., chosen]
        assert part.shape == want.shape
        if exactly:
            assert_same(part, want)
        else:
            torch.testing.assert_close(part, want, rtol=1e-4, atol=1e-5)


def assert_reads_frames(layer, x):
    """Every frame of [B, C, T, H, W] is read as an image, at a shift of its clip or of its own."""
    batch, frames = x.shape[0], x.shape[2]
    per_frame = torch.randn(batch, frames, 2) / 4
    images = x.transpose(1, 2)
    for shift in (None, per_frame, per_frame[:, 0]):
        each = [None if shift is None else shift if shift.dim() == 2 else shift[:, t] for t in range(frames)]
        want = torch.stack([layer(images[:, t], shift=each[t]) for t in range(frames)], dim=-2)
        got = layer(x, shift=shift)
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert layer(x[:, :, :1]).shape[-2] == 1


def assert_compiles(layer, x):
    """In one graph, with the same gradients."""
    torch.compiler.reset()
    step = torch.compile(layer, fullgraph=True, backend="aot_eager")
    parameters = [p for p in layer.parameters() if p.requires_grad]
    options = {"allow_unused": True, "materialize_grads": True}  # sigma, where the means are read
    got = torch.autograd.grad(step(x).square().sum(), parameters, **options)
    torch.testing.assert_close(got, torch.autograd.grad(layer(x).square().sum(), parameters, **options))


def assert_runs_under_vmap(make, x):
    """Several layers in evaluation run as an ensemble, in one call."""
    layers = [make().eval() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")
    got = torch.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(got, torch.stack([layer(x) for layer in layers]))


def assert_twice_differentiable(layer, x, shift=None):
    """In the features, in evaluation and float64."""
    layer.eval()
    shift = None if shift is None else shift.to(x.dtype)
    assert torch.autograd.gradgradcheck(lambda x: layer(x, shift=shift).square(), (x.requires_grad_(),), fast_mode=True)


def assert_broadcasts_shift(layer, x):
    """One shift for all images, frames or clips is that shift for each, and its gradient is the sum of theirs."""
    batch, frames = x.shape[0], x.shape[2] if x.dim() == 5 else 1
    shapes = [(1, 2)] if x.dim() == 4 else [(1, 2), (1, frames, 2), (batch, 1, 2), (1, 1, 2)]
    for shape in shapes:
        one = (torch.randn(shape) / 4).requires_grad_()
        per_clip = one if x.dim() == 4 or one.dim() == 3 else one.unsqueeze(1)
        each = per_clip.detach().expand((batch, 2) if x.dim() == 4 else (batch, frames, 2)).clone().requires_grad_()
        got, want = layer(x, shift=one), layer(x, shift=each)
        assert got.equal(want)
        got.square().sum().backward()
        want.square().sum().backward()
        assert one.grad.shape == shape
        torch.testing.assert_close(one.grad, each.grad.sum_to_size(per_clip.shape).view(shape), rtol=1e-3, atol=1e-3)
    for shape in ((1, 3), (batch + 1, 2), (2,), (1, 1, 1, 2)):
        with pytest.raises(ValueError, match=r"shift: want \[B, 2\]"):
            layer(x, shift=torch.zeros(shape))
