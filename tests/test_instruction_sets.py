"""The kernels compiled for each instruction set that this machine has, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import cases
import pytest
import torch

from v1fast import functional, ops

pytestmark = pytest.mark.skipif(ops.loaded["native"] != "loaded", reason="the compiled kernels are not loaded")
CASES = [c for c in cases.REGIMES if c.why in ("plain", "many channels", "neurons beyond every block", "one channel")]


def results():
    """Normals, then outputs and gradients of some cases, in float32 and float64."""
    found = {"normals": functional.philox_normal(123456789, 33, 517)}
    for case in CASES:
        for dtype in (torch.float32, torch.float64):
            operands, options = cases.make(case, dtype, dtype, dtype)
            leaves = {k: v.requires_grad_() for k, v in operands.items()}
            out = functional.gaussian_readout(**leaves, **options)
            torch.manual_seed(1)
            gradients = torch.autograd.grad(out, list(leaves.values()), torch.randn_like(out))
            found[f"{case} {dtype}"] = (out.detach(), *gradients)
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(2, 333, 300, generator=torch.Generator().manual_seed(1), dtype=dtype)
        found[f"rdm {dtype}"] = tuple(functional.rdm(x, method=m) for m in ("correlation", "cosine", "euclidean"))
        found[f"cross_rdm {dtype}"] = (functional.cross_rdm(x, x[:, :50]), functional.rdm(x, accuracy="high"))
    return found


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set_gives_the_same(isa, tmp_path):
    """The same bits of noise, and results that differ by rounding only."""
    path = tmp_path / "results.pt"
    code = f"import torch, test_instruction_sets as t; torch.save(t.results(), {str(path)!r})"
    folders = [str(Path(__file__).parent), *sys.path]
    environment = os.environ | {"V1FAST_MAX_ISA": isa, "PYTHONPATH": os.pathsep.join(folders)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    other, mine = torch.load(path), results()
    assert other["normals"].equal(mine["normals"])
    assert other.keys() == mine.keys()
    for key in mine:
        torch.testing.assert_close(other[key], mine[key], msg=lambda m, key=key: f"{key}: {m}")
