# ruff: noqa: E501
"""The ops called without the checks of the public functions: the reference's result or an error, never a signal."""

import subprocess
import sys

import pytest
import torch

from v1fast import functional

o = torch.ops.v1fast
z = torch.zeros
SEED = z(1, dtype=torch.int64)

REFUSED = {
    "no channels, fixed positions": "o.gaussian_readout(z(2,0,4,4), z(5,2), None, z(5,0), *[None]*5, 0, False, True)",
    "no channels, gather": "o.point_gather(z(2,0,4,4), z(5,2), None, True)",
    "no channels, pooled": "o.pooled_readout(z(2,0,4,4), z(5,2), z(5,0), None, None, None, True, 2, 1)",
    "no rows": "o.gaussian_readout(z(8,1,0,9), z(200,2) + .5, None, z(200,1), *[None]*5, 0, False, True)",
    "noise and no sigma": "o.gaussian_readout(z(2,1,4,4), z(5,2), None, z(5,1), None, None, z(2,5,2), None, None, 0, False, True)",
    "offset beyond 64 bits": "o.gaussian_readout(z(2,1,4,4), z(5,2), z(5,2), z(5,1), None, None, None, s, None, 2**63 - 1, False, True)",
    "positions of integers": "o.gaussian_readout(z(2,1,4,4), z(5,2).long(), None, z(5,1), *[None]*5, 0, False, True)",
    "a short mask": "o.point_gather_backward(z(2,5,1), z(2,1,4,4), z(5,2), None, True, [True])",
    "a complex gradient": "o.point_gather_backward(z(2,5,1) * 1j, z(2,1,4,4), z(5,2), None, True, [True] * 3)",
    "more sums than memory": "o.point_gather(z(1,1,1,1).expand(2**40,1,1,1), z(2**10,2), None, True)",
    "poolings without end": "o.pooled_readout(z(1,1,4,4), z(0,2), z(0,1), None, None, None, True, 1, 2**40)",
    "as many as there are": "o.pooled_readout(z(1,1,4,4), z(0,2), z(0,1), None, None, None, True, 1, 2**63 - 1)",
    "poolings alone": "o.pooled_levels(z(1,1,4,4), 1, 2**40, False)",
    "pairs beyond 64 bits": "o.rdm(z(1,1,1).expand(1,2**32 + 1,1), None, 'cosine', True, 'float32')",
    "rows of integers": "o.rdm(z(1,3,4).int(), None, 'cosine', False, 'float32')",
    "two sets for an angle": "o.rdm(z(1,3,4), z(1,3,4), 'cosine', False, 'float32')",
    "an accuracy that is none": "o.rdm(z(1,3,4), None, 'cosine', False, 'float8')",
    "a gradient of another dtype": "o.rdm_backward(z(1,3,3).half(), z(1,3,3), z(1,3,4), None, 'cosine', False, 'float32', [True] * 2)",
    "a gradient of another shape": "o.rdm_backward(z(3,3), z(1,3,3), z(1,3,4), None, 'cosine', False, 'float32', [True] * 2)",
    "no mask": "o.rdm_backward(z(1,3,3), z(1,3,3), z(1,3,4), None, 'cosine', False, 'float32', [])",
    "more normals than memory": "o.philox_normal(s, 2**62, 3, None, 0)",
    "as many neurons": "o.philox_normal(s, 3, 2**62, None, 0)",
    "permutations of too many": "o.random_permutations(s, 1, 2**40)",
    "fewer than no permutations": "o.random_permutations(s, -1, 3)",
    "a place that is none": "o.permuted_products(z(3,3), z(3,3), torch.tensor([[0, 1, 3]]).int())",
    "a place before the first": "o.permuted_products(z(3,3), z(3,3), torch.tensor([[0, 1, -1]]).int())",
    "a matrix without axes": "o.permuted_products(z(()), z(3,3), torch.tensor([[0, 1, 2]]).int())",
    "row sums of a vector": "o.condensed_row_sums(z(3), 3)",
    "fewer than no stimuli": "o.condensed_row_sums(z(2, 1), -1)",
    "ranks of half precision": "o.average_ranks(z(2, 3).half())",
    "values of two dtypes": "o.rank_sums(z(3), z(3).double())",
    "another device": "o.point_gather(z(2,1,4,4), z(5,2, device='meta'), None, True)",
}  # fmt: skip
RETURNED = {
    "one operand, no gradient of it": "o.rdm_backward(z(4,1), z(4,1), torch.rand(4,2,2), None, 'cosine', True, 'float32', [False, True])",
    "no gradient at all": "o.rdm_backward(z(4,1), z(4,1), torch.rand(4,2,2), None, 'cosine', True, 'float32', [False, False])",
    "none of two sets": "o.cross_rdm_backward(z(1,2,2), z(1,2,2), torch.rand(1,2,2), torch.rand(1,2,2), 'cosine', 'float32', [False, False])",
    "no normals for many images": "o.philox_normal(s, 2**62, 0, None, 0)",
    "no normals for many neurons": "o.philox_normal(s, 0, 2**60, None, 0)",
    "many permutations of nothing": "o.random_permutations(s, 2**32 - 1, 0)",
    "many rows without ranks": "o.average_ranks(z(1, 0).expand(2**40, 0))",
    "many sums of nothing": "o.condensed_row_sums(z(1, 0).expand(2**40, 0), 0)",
    "a wide map": "o.gaussian_readout(z(1,1,1,1).expand(4,1,1,2**24 + 3), z(200,2) + 1, None, z(200,1), *[None]*5, 0, False, False)",
    "no matrices of many rows": "o.rdm(z(0, 2**20, 1), None, 'cosine', True, 'float32')",
}  # fmt: skip

CHILD = """
import sys, torch, v1fast
o, z, s = torch.ops.v1fast, torch.zeros, torch.zeros(1, dtype=torch.int64)
for line in sys.stdin:
    name, call = line.rstrip("\\n").split("\\t")
    print(name, end=": ", flush=True)
    try:
        eval(call)
        print("returned", flush=True)
    except (ValueError, RuntimeError) as error:
        print("refused", flush=True)
"""


def test_raw_calls_are_survived():
    """In a process of their own, the last line of which names the call that ended it."""
    calls = "".join(f"{name}\t{call}\n" for name, call in (REFUSED | RETURNED).items())
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD], input=calls, capture_output=True, text=True, timeout=300
    )
    want = [f"{name}: refused" for name in REFUSED] + [f"{name}: returned" for name in RETURNED]
    assert found.stdout.splitlines() == want, f"exit {found.returncode}\n{found.stderr[-2000:]}"
    assert found.returncode == 0


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
