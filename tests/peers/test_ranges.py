"""Training at the bounds of what is kept in a range: the same steps as the peer's."""

import pytest
import torch
from neuralpredictors.layers import readouts as peer_readouts
from openretina.modules.readout.factorized import FactorizedReadout as PeerFactorized
from peers import side_by_side

from v1fast import readouts

pytestmark = side_by_side.QUIET

SHAPE, N, STEPS = (4, 6, 8), 9, 6
LAYERS = {
    "FullGaussian2d": {"init_mu_range": 0.9, "init_sigma": 0.3},
    "Gaussian2d": {"init_mu_range": 0.9, "init_sigma_range": 0.3},
    "Gaussian3d": {"init_mu_range": 0.9, "init_sigma_range": 0.3},
    "PointPooled2d": {"pool_steps": 1, "pool_kern": 2, "init_range": 0.9},
    "PointPyramid2d": {"scale_n": 1, "positive": True, "init_range": 0.9, "downsample": True, "type": "gauss5x5"},
    "FullFactorized2d": {"init_noise": 0.1, "constrain_pos": True, "normalize": False},
}
CONSTRAINTS = [
    {"weights_constraint": w, "mask_constraint": m} for w in ("abs", "norm", "absnorm") for m in (None, "abs")
]


def pair(name):
    sampler = {"sampler": "torch"} if name in ("FullGaussian2d", "Gaussian2d") else {}
    options = {"bias": True} | LAYERS[name]
    return side_by_side.twins(
        lambda: getattr(readouts, name)(SHAPE, N, **options, **sampler),
        lambda: getattr(peer_readouts, name)(SHAPE, N, **options),
    )


def retina(**options):
    arguments = ((4, 3, 6, 8), N, 0.1, 0.1, 0.1, (6, 8))
    options = {"init_scales": ((0.0, 0.1), (0.0, 0.01)), "readout_bias": True} | options
    return side_by_side.twins(
        lambda: readouts.FactorizedReadout(*arguments, **options),
        lambda: PeerFactorized(*arguments, **options),
    )


def train(layer, passes, shape):
    """Steps so large that they reach the bounds; each of the gradient of some passes."""
    torch.manual_seed(0)
    optimizer, reached = torch.optim.Adam(layer.parameters(), lr=0.2), 0
    for _ in range(STEPS):
        optimizer.zero_grad()
        outputs = [layer(torch.randn(3, *shape)) for _ in range(passes)]
        sum(y.square().mean() + y.sum() for y in outputs).backward()
        optimizer.step()
        reached += sum(int((p.abs() > 1).sum() + (p < 0).sum()) for p in layer.parameters())
    assert reached > 0
    layer(torch.randn(3, *shape))
    return layer


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_steps_at_the_bounds(name, passes):
    ours, peer = (train(layer, passes, SHAPE) for layer in pair(name))
    for (key, mine), theirs in zip(ours.state_dict().items(), peer.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("options", CONSTRAINTS, ids=str)
def test_steps_of_constrained_masks(options):
    ours, peer = (train(layer, 1, (4, 3, 6, 8)) for layer in retina(**options))
    for (key, mine), theirs in zip(ours.state_dict().items(), peer.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3, msg=lambda m, key=key: f"{key}: {m}")
