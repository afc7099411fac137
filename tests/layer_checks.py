"""What holds for the readout layers alike. ``make`` makes a layer with options of its constructor; ``x``: features."""

import copy
import io
import pickle

import pytest
import torch


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


def is_neuron_major(layer):
    """Whether the weights [..., C, 1, N] are stored neuron after neuron."""
    return stored_features(layer).squeeze(-2).mT.is_contiguous()


def assert_stored_neuron_after_neuron(make, x):
    """Also after all that makes a layer of another, and after a step of training."""
    layer = make()
    assert is_neuron_major(layer)
    assert is_neuron_major(copy.deepcopy(layer))
    assert is_neuron_major(pickle.loads(pickle.dumps(layer)))
    buffer = io.BytesIO()
    torch.save({k: v.contiguous() for k, v in layer.state_dict().items()}, buffer)
    for assign in (False, True):
        buffer.seek(0)
        other = make()
        other.load_state_dict(torch.load(buffer), assign=assign)
        assert is_neuron_major(other)
        assert stored_features(other).equal(stored_features(layer))
    layer(x).sum().backward()
    torch.optim.Adam(layer.parameters()).step()
    assert is_neuron_major(layer)
    assert is_neuron_major(layer.double())


def assert_regularizes(make):
    """By the magnitude of the weights, with each reduction; and the factor's old name."""
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
    """What chooses no neurons of twelve."""
    with pytest.raises(ValueError, match="out_idx: want a mask of 12 neurons"):
        layer(x, out_idx=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="out_idx: want a list of integers"):
        layer(x, out_idx=[0.5])
    with pytest.raises(IndexError):
        layer(x, out_idx=[12])
