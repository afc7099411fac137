"""The Triton launchers called without the checks of the public functions, on an emulated GPU."""

import functools
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from raw_calls import REFUSED

pytest.importorskip("triton")

from v1fast import functional, kernels
from v1fast.contracts import _checks
from v1fast.ops import _define, _load

CALLS = {"o": torch.ops.v1fast, "z": torch.zeros, "s": torch.zeros(1, dtype=torch.int64), "torch": torch}
LAUNCHED = {name: call for name, call in REFUSED.items() if call[2:].split("(")[0] in kernels.CUDA}


ampere = pytest.mark.parametrize("on_gpu", [80], indirect=True)  # the emulator lacks sm_90's products of matrices


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("name", LAUNCHED)
def test_raw_calls_are_refused(name):
    with pytest.raises((ValueError, RuntimeError)):
        eval(LAUNCHED[name], CALLS)


def test_what_is_loaded_is_behind_the_check(monkeypatch):
    registered = {}
    library = SimpleNamespace(impl=lambda name, kernel, key: registered.update({name: kernel}))
    monkeypatch.setattr(_define, "library", library)
    monkeypatch.setattr(_define, "_launchers", {name: {} for name in _define.references})
    monkeypatch.setenv("V1FAST_KERNELS", "triton")
    assert _load._load_triton() == "loaded"
    assert registered.keys() == kernels.CUDA.keys()
    for call in LAUNCHED.values():  # without a GPU, a launch would be an error with other words
        with pytest.raises((ValueError, RuntimeError), match=r"want|memory|overflow"):
            eval(call, CALLS | {"o": SimpleNamespace(**registered)})


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("grad", [False, True])
def test_a_legal_call_is_checked_once(monkeypatch, grad):
    seen = []
    monkeypatch.setattr(_checks, "feature_map", lambda *operands: seen.append(operands))
    z = torch.zeros
    functional.gaussian_readout(z(2, 1, 4, 4, requires_grad=grad), z(5, 2), None, z(5, 1))
    assert len(seen) == 1


@ampere
def test_a_profiler_sees_the_op_that_is_otherwise_called_without_the_dispatcher(on_gpu):
    z = torch.zeros
    call = functools.partial(functional.gaussian_readout, z(2, 1, 4, 4), z(5, 2), None, z(5, 1))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    assert "v1fast::gaussian_readout" in {event.name for event in profile.events()}
    with mock.patch.dict(_define._launchers["gaussian_readout"], cpu=lambda *operands: "called"):
        assert call() == "called"


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
