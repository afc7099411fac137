"""The block of memory that the CPU kernels keep between calls for the gradient of large features."""

import pytest
import torch
from v1fast.benchmarks import memory

import v1fast
from v1fast import _eager
from v1fast.functional import gaussian_readout

pytestmark = pytest.mark.skipif(v1fast.ops.loaded["native"] != "loaded", reason="only compiled kernels keep a block")

LARGE = (2, 64, 264, 256)  # 33 MiB; blocks are kept from 32 on


def feature_gradient(readout, seed, shape=LARGE):
    generator = torch.Generator().manual_seed(seed)
    features = torch.zeros(shape).to(memory_format=torch.channels_last).requires_grad_()
    mu = 2 * torch.rand(40, 2, generator=generator) - 1
    weight = torch.randn(40, shape[1], generator=generator)
    out = readout(features, mu, None, weight)
    return torch.autograd.grad(out, features, torch.randn(out.shape, generator=generator))[0]


@pytest.fixture(autouse=True)
def nothing_kept():
    v1fast.release_memory()
    yield
    v1fast.release_memory()


def test_what_a_block_held_does_not_come_back():
    for seed, shape in enumerate((LARGE, LARGE, (3, *LARGE[1:]), LARGE, (1, 64, 20, 30))):
        mine, torchs = (
            feature_gradient(readout, seed, shape) for readout in (gaussian_readout, _eager.gaussian_readout)
        )
        assert mine.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(mine, torchs)


def test_a_freed_block_is_taken_again_and_a_living_one_never():
    first = feature_gradient(gaussian_readout, 0)
    place, values = first.data_ptr(), first.clone()
    second = feature_gradient(gaussian_readout, 1)
    assert second.data_ptr() != place
    assert first.equal(values)
    del first
    assert feature_gradient(gaussian_readout, 2).data_ptr() == place
    view = feature_gradient(gaussian_readout, 3)[1, 5]  # keeps all of it alive
    assert view.untyped_storage().data_ptr() == place
    assert feature_gradient(gaussian_readout, 4).data_ptr() != place


def test_memory_is_kept_until_it_is_released():
    before = memory._status("VmRSS")
    feature_gradient(gaussian_readout, 0)
    kept = memory._status("VmRSS")
    v1fast.release_memory()
    released = memory._status("VmRSS")
    assert kept - released > 30 * 2**20
    assert released - before < 20 * 2**20
