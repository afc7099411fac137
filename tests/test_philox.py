"""The position noise: the generator, its bits, its distribution."""

import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from v1fast import functional, ops
from v1fast.reference import philox

NATIVE = ops.loaded["native"] == "loaded"
PI_DIGITS = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (*PI_DIGITS, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_published_vectors(counter, key, words):
    """The known answers that Salmon et al. publish with their generator (Random123, philox 4x32, 10 rounds)."""
    got = philox.philox4x32_10(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(word) for word in got) == words


def words_by_numpy(seed, neuron, image):
    """Philox4x32-10 in unsigned 64-bit arithmetic, written apart from the library."""
    c = [np.asarray(v, dtype=np.uint64) for v in np.broadcast_arrays(neuron & 0xFFFFFFFF, image // 2, 0, 0)]
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
        c = [(b >> half) ^ c[1] ^ np.uint64(k0), b & mask, (a >> half) ^ c[3] ^ np.uint64(k1), a & mask]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    odd = np.broadcast_to(image % 2 == 1, c[0].shape)
    return np.where(odd, c[2], c[0]), np.where(odd, c[3], c[1])


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1, -1, -(2**63)])
@pytest.mark.parametrize("image_offset", [0, 1, 6])
def test_counter_key_and_box_muller(seed, image_offset):
    """Every draw is as documented, to 2e-6."""
    index = torch.tensor([0, 1, 5, 2**31, 2**32 - 1, 7])
    got = functional.philox_normal(seed, 4, 6, neuron_index=index, image_offset=image_offset)
    image = (image_offset + np.arange(4))[:, None]
    first, second = words_by_numpy(seed % 2**64, index.numpy()[None], image)
    u1, u2 = ((first >> np.uint64(8)) + np.uint64(1)) / 2.0**24, (second >> np.uint64(8)) / 2.0**24
    radius = np.sqrt(-2 * np.log(u1))
    want = np.stack([radius * np.cos(2 * np.pi * u2), radius * np.sin(2 * np.pi * u2)], axis=-1)
    assert np.abs(got.numpy() - want).max() < 2e-6


def test_kernel_and_reference_agree():
    seed = torch.tensor([20260101])
    got = functional.philox_normal(seed, 32, 20000)
    want = philox.philox_normal(seed, 32, 20000, None, 0)
    assert got.dtype == torch.float32
    assert (got - want).abs().max() < 2e-6
    if NATIVE:
        assert not got.equal(want), "the kernel's own polynomials were expected to run"


@pytest.mark.skipif(not NATIVE, reason="the bits are the kernels': the reference rounds otherwise")
def test_bits_are_frozen():
    """Saved results depend on these bits, on every machine and instruction set: they must never change."""
    draws = functional.philox_normal(2**40 + 17, 257, 1031, image_offset=3)
    digest = hashlib.sha256(draws.numpy().astype("<f4").tobytes()).hexdigest()
    assert digest == "472b1b9a3dc9cd666487010ec8a3935ea5b776b48be9c7a9450e1b9fe97261b1"


def test_distribution_is_standard_normal():
    draws = functional.philox_normal(11, 200, 5000).double().numpy()
    for sample in (draws[..., 0], draws[..., 1], draws[0], draws[:, 0]):
        assert stats.kstest(sample.ravel()[:200000], "norm").pvalue > 1e-3
    assert abs(draws.mean()) < 4 / np.sqrt(draws.size)
    assert abs(draws.var() - 1) < 4 * np.sqrt(2 / draws.size)
    assert abs(stats.kurtosis(draws, axis=None)) < 4 * np.sqrt(24 / draws.size)


def test_draws_are_independent_of_each_other():
    """No correlation between x and y, an even image and the odd one of its block, neighbouring neurons, seeds."""
    draws = functional.philox_normal(3, 400, 1000).double().numpy()
    other = functional.philox_normal(4, 400, 1000).double().numpy()
    pairs = {
        "x and y": (draws[..., 0], draws[..., 1]),
        "even and odd image": (draws[0::2], draws[1::2]),
        "neighbouring neurons": (draws[:, 1:], draws[:, :-1]),
        "neighbouring seeds": (draws, other),
    }
    for what, (a, b) in pairs.items():
        assert abs((a * b).mean()) < 4.5 / np.sqrt(a.size), what
        assert abs((a**2 * b**2).mean() - 1) < 5 * np.sqrt(8 / a.size), what


def test_rejects_bad_arguments():
    for arguments, options, message in (
        ((torch.zeros(2, dtype=torch.int64), 1, 1), {}, r"seed: want \[1\] = \(1,\), got \(2,\)"),
        ((torch.zeros(1), 1, 1), {}, "seed: want int64, got float32"),
        ((0, -1, 1), {}, "images: want at least 0, got -1"),
        ((0, 1, -1), {}, "neurons: want at least 0, got -1"),
        ((0, 1, 1), {"image_offset": -1}, "image_offset: want at least 0, got -1"),
        ((0, 1, 2), {"neuron_index": torch.arange(3)}, r"neuron_index: want \[N\] = \(2,\), got \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            functional.philox_normal(*arguments, **options)


def test_opcheck():
    seed = torch.tensor([5])
    torch.library.opcheck(torch.ops.v1fast.philox_normal, (seed, 3, 4, None, 1))
    torch.library.opcheck(torch.ops.v1fast.philox_normal, (seed, 0, 4, torch.arange(4), 0))
