"""The ops called without the checks of the public functions: the reference's result or an error, never a signal."""

import new_processes
import pytest
import torch
from raw_calls import REFUSED, RETURNED
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from v1fast import functional, ops
from v1fast.contracts import _checks

o = torch.ops.v1fast
z = torch.zeros
SEED = z(1, dtype=torch.int64)

CHILD = """
import warnings
warnings.simplefilter("ignore")
import torch, v1fast
o, z, s = torch.ops.v1fast, torch.zeros, torch.zeros(1, dtype=torch.int64)
for name, call in {calls}.items():
    print(name, end=": ", flush=True)
    try:
        eval(call)
        print("returned", flush=True)
    except (ValueError, RuntimeError) as error:
        print("refused", flush=True)
"""


def test_raw_calls_are_survived():
    """The calls run in a new process. Its last line names the call that ended it."""
    status, said = new_processes.ended(CHILD.format(calls=REFUSED | RETURNED))
    want = [f"{name}: refused" for name in REFUSED] + [f"{name}: returned" for name in RETURNED]
    assert said.splitlines() == want, f"exit {status}\n{said[-2000:]}"
    assert status == 0


@pytest.mark.parametrize("grad", [False, True])
def test_a_legal_call_is_checked_once(monkeypatch, grad):
    """By its kernel: one in C++ has a check of its own. A form that was checked before is known."""
    seen, width = [], 11 + grad
    monkeypatch.setattr(_checks, "feature_map", lambda *operands: seen.append(operands))
    functional.gaussian_readout(z(2, 1, 4, width, requires_grad=grad), z(5, 2), None, z(5, 1))
    assert len(seen) == (ops.loaded["native"] != "loaded")


def test_what_a_kernel_refuses_is_an_error_of_the_contract_alone():
    """Not one that has come while another was handled."""
    with pytest.raises(ValueError, match=r"^weight: want \[N, C\] = \(5, 1\), got \(5, 2\)$") as raised:
        functional.gaussian_readout(z(2, 1, 4, 4), z(5, 2), None, z(5, 2))
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None or raised.value.__suppress_context__


def test_a_writing_op_bumps_the_version():
    x = torch.rand(1, 5, 7)
    out = z(1, 5, 5)
    for version in range(1, 4):
        o.rdm_out(x, None, "cosine", False, "float32", out)
        assert out._version == version
    with torch.inference_mode():
        o.rdm_out(x, None, "cosine", False, "float32", out)
    assert out._version == 4


def test_autograd_refuses_what_was_overwritten():
    out, weight = torch.full((5, 5), 5.0), torch.ones(5, 5, requires_grad=True)
    y = (weight * out).sum()
    functional.rdm_out(torch.rand(5, 7), out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_a_writing_op_refuses_a_derivative():
    x, out = torch.rand(1, 5, 7), z(1, 5, 5)
    for operands in ((x.clone().requires_grad_(), out), (x, out.clone().requires_grad_())):
        with pytest.raises(RuntimeError, match="want no operand that requires grad"):
            o.rdm_out(operands[0], None, "cosine", False, "float32", operands[1])


@pytest.mark.parametrize("condensed", [False, True])
def test_the_result_may_not_lie_in_an_operand(condensed):
    size = 10 if condensed else 25
    memory = torch.rand(100)
    x = memory[30:65].view(5, 7)
    shape = (10,) if condensed else (5, 5)
    want = functional.rdm(x, condensed=condensed)
    for begin in (30 - size + 1, 30, 40, 64):
        out = memory[begin : begin + size].view(shape)
        before = memory.clone()
        with pytest.raises(ValueError, match="out: want memory of its own, got some of that of x"):
            functional.rdm_out(x, out, condensed=condensed)
        with pytest.raises((ValueError, RuntimeError), match="out: want memory of its own, got some of that of x"):
            o.rdm_out(x[None], None, "correlation", condensed, "float32", out[None])
        with pytest.raises(ValueError, match="out: want memory of its own, got some of that of x"):
            functional.rdm_out(x.numpy(), out.numpy(), condensed=condensed)
        assert torch.equal(memory, before)
    for begin in (30 - size, 65):
        out = memory[begin : begin + size].view(shape)
        functional.rdm_out(x, out, condensed=condensed)
        torch.testing.assert_close(out, want)


def test_the_result_may_not_lie_in_the_second_operand():
    x, y = torch.rand(1, 5, 5), torch.rand(1, 5, 5)
    with pytest.raises((ValueError, RuntimeError), match="out: want memory of its own, got some of that of y"):
        o.rdm_out(x, y, "euclidean", False, "float32", y)


def test_a_result_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"out: want rdm's shape = \(5, 5\), got \(5, 4\)"):
        functional.rdm_out(torch.rand(5, 7), torch.empty(5, 4))


def test_vmap_writes_what_is_batched():
    x, out = torch.rand(3, 5, 7), z(3, 5, 5)
    torch.func.vmap(lambda x, out: functional.rdm_out(x, out, method="cosine"))(x, out)
    torch.testing.assert_close(out, functional.rdm(x, method="cosine"))
    with pytest.raises(ValueError, match="want a batched operand to write into"):
        torch.func.vmap(lambda x: o.rdm_out(x[None], None, "cosine", False, "float32", z(1, 5, 5)))(x)


def test_gradients_that_are_not_wanted_are_empty():
    x, y, grad = torch.rand(1, 3, 4), torch.rand(1, 3, 4).double(), torch.rand(1, 3, 3)
    one = o.rdm_backward(grad, grad, x, None, "cosine", False, "float32", [False, True])
    none = o.rdm_backward(grad.double(), None, x, y, "euclidean", False, "float32", [False, False])
    cross = o.cross_rdm_backward(grad.double(), None, x, y, "euclidean", "float32", [False, False])
    for gradient in (*one, *none, *cross):
        assert gradient.shape == (0,)
        assert gradient.dtype == x.dtype


class SeesFunctions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append((str(func), [a.requires_grad for a in args if isinstance(a, torch.Tensor)]))
        return func(*args, **(kwargs or {}))


class SeesOps(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Marked(torch.Tensor):
    """A tensor of another class."""


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("grad", [False, True])
def test_modes_tracers_and_subclasses_see_the_op(grad):
    """Plain calls do without the dispatcher's kernel of autograd, these do not."""
    name = "v1fast.gaussian_readout.default"
    features, mu, weight = torch.rand(2, 3, 4, 5, requires_grad=grad), torch.rand(6, 2), torch.rand(6, 3)

    def call(x):
        return functional.gaussian_readout(x, mu, None, weight)

    want = call(features)
    for mode in (SeesFunctions(), SeesOps()):
        with mode:
            assert call(features).equal(want)
        assert name in str(mode.seen)
    marked = features.detach().as_subclass(Marked).requires_grad_(grad)
    assert type(call(marked)) is Marked
    traced = torch.jit.trace(call, features.detach(), check_trace=False)
    assert "v1fast::gaussian_readout" in str(traced.graph)
    assert traced(features.detach() + 1).equal(call(features.detach() + 1))


def test_what_is_saved_passes_through_hooks():
    packed = []
    features = torch.rand(2, 3, 4, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
        functional.gaussian_readout(features, torch.rand(6, 2), None, torch.rand(6, 3)).sum().backward()
    assert features.shape in packed
    assert features.grad.shape == features.shape


def test_a_tensor_that_a_transform_left_is_read():
    left = []
    weight = torch.rand(6, 3)
    torch.func.grad(lambda w: left.append(w) or w.sum())(weight)
    features, mu = torch.rand(2, 3, 4, 5, requires_grad=True), torch.rand(6, 2)
    got, want = (functional.gaussian_readout(features, mu, None, w) for w in (left[0], weight))
    assert got.equal(want)
    gradients = [torch.autograd.grad(out.sum(), features)[0] for out in (got, want)]
    assert gradients[0].equal(gradients[1])
