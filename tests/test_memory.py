"""The block of memory that the CPU kernels keep between calls for the gradient of large features."""

import pytest
import torch
from v1fast.benchmarks import memory

import v1fast
from v1fast import _eager, functional

pytestmark = pytest.mark.skipif(v1fast.ops.loaded["native"] != "loaded", reason="only compiled kernels keep a block")

LARGE = (2, 64, 264, 256)  # 33 MiB; blocks are kept from 32 on


# Ways in which kernels write a gradient: cell by cell where all images share the positions, by image, over poolings.
WAYS = {
    "shared": lambda module, f, p, w: module.gaussian_readout(f, p, None, w),
    "moving": lambda module, f, p, w: module.gaussian_readout(f, p, None, w, None, 0.1 * p[: len(f)]),
    "pooled": lambda module, f, p, w: module.pooled_readout(f, p, w.repeat(1, 2), pool_kernel=2, pool_steps=1),
    "gathered": lambda module, f, p, w: module.gather_levels([f], p).mul(w).sum(-1),
}


def feature_gradient(seed, shape=LARGE, module=functional, way="shared"):
    generator = torch.Generator().manual_seed(seed)
    features = torch.zeros(shape).to(memory_format=torch.channels_last).requires_grad_()
    mu = 2 * torch.rand(40, 2, generator=generator) - 1
    weight = torch.randn(40, shape[1], generator=generator)
    out = WAYS[way](module, features, mu, weight)
    return torch.autograd.grad(out, features, torch.randn(out.shape, generator=generator))[0]


@pytest.fixture(autouse=True)
def nothing_kept():
    v1fast.release_memory()
    yield
    v1fast.release_memory()


@pytest.mark.parametrize("way", WAYS)
def test_what_a_block_held_does_not_come_back(way):
    for seed, shape in enumerate((LARGE, LARGE, (3, *LARGE[1:]), (1, 64, 20, 30))):
        mine, torchs = (feature_gradient(seed, shape, module, way) for module in (functional, _eager))
        assert mine.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(mine, torchs)


def test_a_freed_block_is_taken_again_and_a_living_one_never():
    first = feature_gradient(0)
    place, values = first.data_ptr(), first.clone()
    second = feature_gradient(1)
    assert second.data_ptr() != place
    assert first.equal(values)
    del first
    assert feature_gradient(2).data_ptr() == place
    view = feature_gradient(3)[1, 5]  # keeps the whole block alive
    assert view.untyped_storage().data_ptr() == place
    assert feature_gradient(4).data_ptr() != place


def test_memory_is_kept_until_it_is_released():
    before = memory._status("VmRSS")
    feature_gradient(0)
    kept = memory._status("VmRSS")
    v1fast.release_memory()
    released = memory._status("VmRSS")
    assert kept - released > 30 * 2**20
    assert released - before < 20 * 2**20
