"""Populations of which kernels take a part after another, or several images together, are the sum of their parts."""

import pytest
import torch
from op_checks import assert_same, run

from v1fast import functional, ops

pytestmark = pytest.mark.skipif(ops.loaded["native"] != "loaded", reason="only compiled kernels take them in parts")

SIZE = 3000  # of the parts that are compared with, which a kernel takes at once
BLOCKS = {"B": 11, "C": 5, "H": 9, "W": 14, "N": 17_001}  # blocks of neurons, whose weights all images take together
PARTS = {"B": 3, "C": 264, "H": 5, "W": 6, "N": 17_500}  # as many weights as are copied at once, twice over


def operands_of(shape, way, dtype, channels_last):
    B, C, H, W, N = shape.values()
    torch.manual_seed(0)
    features = torch.randn(B, C, H, W, dtype=dtype)
    features = features.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    levels = 3 if way.startswith("pooled") else 1
    found = {
        "features": features,
        "weight": torch.randn(levels * C, N).t(),
        "bias": torch.randn(N),
        "shift": None if way.endswith("fixed") else 0.1 * torch.randn(B, 2),
    }
    places = 2 * torch.rand(*((B,) if "per image" in way else ()), N, 2) - 1
    if way.startswith("pooled"):
        return found | {"grid": places}
    return found | {"mu": places, "sigma": 0.2 * torch.randn(N, 2, 2)}


def part_of(operands, index):
    """Neurons ``index`` of the operands; of those of all images, as they are."""
    shared = {name: operands[name] for name in ("features", "shift")}
    own = {name: operands[name][index] for name in operands if name not in {"features", "shift", "grid", "noise"}}
    own |= {name: operands[name][..., index, :] for name in ("grid", "noise") if name in operands}
    return shared | own


WAYS = {
    "gaussian": lambda index, **o: functional.gaussian_readout(**o, seed=5, image_offset=1, neuron_index=index),
    "gaussian, noise": lambda index, **o: functional.gaussian_readout(**o),
    "gaussian, fixed": lambda index, **o: functional.gaussian_readout(**o),
    "pooled": lambda index, **o: functional.pooled_readout(**o, pool_kernel=2, pool_steps=2),
    "pooled, fixed": lambda index, **o: functional.pooled_readout(**o, pool_kernel=2, pool_steps=2),
    "pooled, per image": lambda index, **o: functional.pooled_readout(**o, pool_kernel=2, pool_steps=2),
}


@pytest.mark.parametrize(
    ("dtype", "channels_last"), [(torch.float32, True), (torch.float32, False), (torch.bfloat16, True)]
)
@pytest.mark.parametrize("shape", [BLOCKS, PARTS], ids=["blocks", "parts"])
@pytest.mark.parametrize("way", WAYS)
def test_a_population_is_the_sum_of_its_parts(way, shape, dtype, channels_last):
    operands = operands_of(shape, way, dtype, channels_last)
    if way == "gaussian, noise":
        operands["noise"] = torch.randn(shape["B"], shape["N"], 2)
    upstream = torch.randn(shape["B"], shape["N"])
    wanted = [name for name in operands if name != "noise"]
    out, gradients = run(WAYS[way], operands, {"index": None}, upstream, wanted)
    assert gradients["features"].stride() == operands["features"].stride()
    sums = dict.fromkeys(("features", "shift"), 0)
    for first in range(0, shape["N"], SIZE):
        index = torch.arange(first, min(first + SIZE, shape["N"]))
        given = part_of(operands, index) | {"features": operands["features"].float()}
        want_out, want = run(WAYS[way], given, {"index": index}, upstream[:, index], wanted)
        assert_same(out[:, index], want_out.to(out.dtype))
        for name, gradient in want.items():
            if name in sums:
                sums[name] = sums[name] + gradient.double()
            else:
                torch.testing.assert_close(part_of(gradients | {"features": 0, "shift": 0}, index)[name], gradient)
    for name in sums.keys() & gradients.keys():
        gradient, scale = gradients[name], float(sums[name].square().mean().sqrt())
        # One rounding to the dtype, and float32 sums in another order: up to 5e-6 of the scale was seen.
        close = {"rtol": torch.finfo(gradient.dtype).eps, "atol": 1e-5 * scale}
        torch.testing.assert_close(gradient.double(), sums[name], **close)


def test_threads_give_the_same_bits():
    operands = operands_of(PARTS | {"B": 9}, "gaussian", torch.float32, True)
    upstream, threads, results = torch.randn(9, PARTS["N"]), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(WAYS["gaussian"], operands, {"index": None}, upstream))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)
