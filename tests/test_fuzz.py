"""Calls of any kind end in the reference's result or in an error: see ``fuzz``."""

import pytest
import torch
from fuzz import batch, operands, public, raw

from v1fast import functional
from v1fast.ops import _define

FEW = [("raw", "gaussian_readout_backward"), ("raw", "rdm_backward"), ("raw", "pooled_readout"), ("public", "rdm_out")]
ALL = [("raw", op) for op in raw.LEGAL] + [("public", name) for name in public.FUNCTIONS]


def test_each_op_and_each_public_function_is_called():
    assert raw.LEGAL.keys() == _define.references.keys()
    assert {name for name in public.FUNCTIONS if "." not in name} == set(functional.__all__)


def test_some_calls(tmp_path):
    batch.run(FEW, 40, 0, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name"), ALL)
def test_many_calls(group, name, tmp_path):
    seed = torch.seed() % 2**31  # another one each time: it is in the name of the journal, which a failure shows
    batch.run([(group, name)], 300, seed, tmp_path)


def test_legal_calls_have_a_result():
    """Calls without replaced arguments have results: otherwise the fuzz would see nothing but refusals."""
    for op, legal in raw.LEGAL.items():
        arguments = operands.example(legal)
        raw.check(raw.Call(op, arguments))
        getattr(torch.ops.v1fast, op)(*map(operands.made, arguments))


@pytest.mark.once
def test_a_process_that_dies_leaves_its_call(tmp_path, monkeypatch):
    monkeypatch.setenv("V1FAST_FUZZ_DIES", "1")
    with pytest.raises(batch.Died, match=r"exit (-11|1) in Call\(op='rank_sums'"):
        batch.run([("raw", "rank_sums")], 1, 0, tmp_path)
