"""The Triton launchers called without the checks of the public functions, on an emulated GPU."""

import pytest
import torch
from raw_calls import REFUSED

pytest.importorskip("triton")

from v1fast import kernels

CALLS = {"o": torch.ops.v1fast, "z": torch.zeros, "s": torch.zeros(1, dtype=torch.int64), "torch": torch}
LAUNCHED = {name: call for name, call in REFUSED.items() if call[2:].split("(")[0] in kernels.CUDA}


ampere = pytest.mark.parametrize("on_gpu", [80], indirect=True)  # the emulator lacks sm_90's products of matrices


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("name", LAUNCHED)
def test_raw_calls_are_refused(name):
    with pytest.raises((ValueError, RuntimeError)):
        eval(LAUNCHED[name], CALLS)


@ampere
def test_a_writing_op_bumps_the_version_and_refuses_overlap(on_gpu):
    x, out = torch.rand(1, 5, 5), torch.zeros(1, 5, 5)
    torch.ops.v1fast.rdm_out(x, None, "cosine", False, "float32", out)
    assert out._version == 1
    with pytest.raises(ValueError, match="out: want memory of its own, got some of that of x"):
        torch.ops.v1fast.rdm_out(x, None, "cosine", False, "float32", x)


@ampere
def test_gradients_that_are_not_wanted_are_empty(on_gpu):
    x, grad = torch.rand(1, 3, 4), torch.rand(1, 3, 3)
    for gradient in torch.ops.v1fast.rdm_backward(grad, grad, x, None, "cosine", False, "float32", [False, True]):
        assert gradient.shape == (0,)
