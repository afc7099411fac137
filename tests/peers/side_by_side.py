"""How a layer is held against its peer's."""

import copy

import pytest
import torch
from assertions import assert_as_accurate

# What the peers say about their own defaults.
QUIET = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*deprecated",
        "The averaged value of regularizer",
        "Readout is NOT initialized with mean activity",
        "sigma is sampled from uniform",
    )
]
DRAWS = 5  # errors are compared over several inputs: the error of one small gradient is a matter of chance


def twins(ours, peer, seed=1):
    """Both, made from the same seed. The state must be the same to the bit, and so what is drawn next."""
    torch.manual_seed(seed)
    theirs, their_next = peer(), torch.rand(1)
    torch.manual_seed(seed)
    mine, my_next = ours(), torch.rand(1)
    assert_same_state(mine, theirs)
    assert my_next.equal(their_next), "the same number of random numbers is drawn"
    return mine, theirs


def assert_same_state(ours, peer):
    """Names, order, shapes, dtypes and values."""
    mine, theirs = ours.state_dict(), peer.state_dict()
    assert list(mine) == list(theirs)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in peer.named_parameters()]
    for name, value in theirs.items():
        assert mine[name].shape == value.shape, name
        assert mine[name].dtype == value.dtype, name
        assert mine[name].equal(value), name


def move(ours, peer):
    """Give both the same state, in which nothing is as uniform as at the start; it is exchanged both ways."""
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if not parameter.requires_grad:
                continue  # coordinates of pixels
            spread = 0.5 if name.endswith(("mu", "grid", "features", "bias", "scales")) else 0.1
            parameter.add_(spread * torch.randn(parameter.shape))
        for name, buffer in peer.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand(buffer.shape) + 0.5)
    ours.load_state_dict(peer.state_dict())
    peer.load_state_dict(ours.state_dict())
    assert_same_state(ours, peer)


def in_double(peer):
    """A copy in float64."""
    exact = copy.deepcopy(peer)
    for module in exact.modules():
        if hasattr(module, "_filter_cache"):
            module._filter_cache = None  # neuralpredictors' pyramid would go on with a filter in float32
    return exact.double()


def results(layer, inputs, **options):
    """Output, penalty and all gradients by name, stacked over the inputs."""
    rows = []
    for seed, x in enumerate(inputs):
        layer.zero_grad(set_to_none=True)
        x = x.detach().requires_grad_()
        torch.manual_seed(seed)
        out = layer(x, **options)
        towards = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
        penalty = torch.as_tensor(layer.regularizer(), dtype=x.dtype)
        ((out * towards.to(x.dtype)).sum() + penalty).backward()
        row = {"output": out, "penalty": penalty, "d_input": x.grad}
        rows.append(row | {f"d_{name}": p.grad for name, p in layer.named_parameters() if p.grad is not None})
    return {name: torch.stack([row[name].detach() for row in rows]) for name in rows[0]}


def assert_same_results(ours, peer, inputs, **options):
    """Each result of ours errs at most twice as much as the peer's; what is exact is the peer's in float64."""
    exactly = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    exact = results(in_double(peer), [x.double() for x in inputs], **exactly)
    own = results(peer, inputs, **options)
    got = results(ours, inputs, **options)
    assert got.keys() == own.keys()
    for name in own:
        assert_as_accurate(got[name], own[name], exact[name], name)
