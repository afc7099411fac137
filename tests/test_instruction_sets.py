"""The kernels compiled for each instruction set that this machine has, each in a process of its own."""

import functools
import itertools
import os
import sys
from pathlib import Path

import cases
import new_processes
import pytest
import torch

from v1fast import functional, ops

pytestmark = pytest.mark.skipif(ops.loaded["native"] != "loaded", reason="the compiled kernels are not loaded")
CASES = [c for c in cases.REGIMES if c.why in ("plain", "many channels", "neurons beyond every block", "one channel")]


@functools.cache
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
    return found | pooled_results() | rdm_results() | rsa_results() | trial_results()


def pooled_results():
    """Of positions that all images share and of others; channels that fill vectors and others."""
    found = {}
    for channels, per_image in itertools.product((3, 21, 64), (False, True)):
        case = cases.Case("pooled", B=9, C=channels, H=12, W=17, N=300, per_image=per_image, shift=False)
        operands, options = cases.make_points(case, *[torch.float32] * 3)
        operands["weight"] = operands["weight"].repeat(1, 3)
        leaves = {k: v.requires_grad_() for k, v in operands.items() if v is not None}
        out = functional.pooled_readout(**leaves, **options, pool_kernel=2, pool_steps=2)
        gathered = functional.gather_levels([leaves["features"]], leaves["grid"], **options)
        torch.manual_seed(1)
        upstream = [torch.randn_like(out) / 3, torch.randn_like(gathered) / 3]  # sums of magnitude 1
        gradients = torch.autograd.grad([out, gathered], list(leaves.values()), upstream)
        found[f"pooled {channels} {per_image}"] = (out.detach(), gathered.detach(), *gradients)
    return found


def rdm_results():
    found = {}
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(2, 333, 300, generator=torch.Generator().manual_seed(1), dtype=dtype)
        found[f"rdm {dtype}"] = tuple(functional.rdm(x, method=m) for m in ("correlation", "cosine", "euclidean"))
        found[f"cross_rdm {dtype}"] = (functional.cross_rdm(x, x[:, :50]), functional.rdm(x, accuracy="high"))
    return found


def rsa_results():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4950, generator=generator)
    orders = ops.random_permutations.random_permutations(torch.tensor([5]), 20, 99)
    a, b = torch.randn(2, 99, 99, generator=generator) / 99
    sums = [ops.condensed_row_sums.condensed_row_sums(each / 99, 100) for each in (x, x.double())]
    return {"row sums": tuple(sums), "relabelled": (ops.permuted_products.permuted_products(a, b, orders).float(),)}


def trial_results():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 60, 1037, generator=generator, dtype=torch.float64)
    center = torch.zeros(2, 1037, dtype=torch.float64)
    groups = torch.randperm(60, generator=generator), torch.tensor([7, 0, 30, 23])
    factors, weights = torch.tensor([[0, 1], [3, 0], [1, 2]]), torch.ones(3, 4, dtype=torch.float64)
    found = {}
    for dtype in (torch.float32, torch.float64):
        operands = x.to(dtype), y.to(dtype), center, *groups
        sums = ops.trial_sums.trial_sums(*operands, 63)
        found[f"trial sums {dtype}"] = sums, ops.trial_sums.trial_products(*operands, factors, weights, 63)
    return found


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set_gives_the_same(isa, tmp_path):
    """The same bits of noise, and results that differ by rounding only."""
    path = tmp_path / "results.pt"
    code = f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
    code += f"import torch, test_instruction_sets as t; torch.save(t.results(), {str(path)!r})"
    new_processes.run([code], os.environ | {"V1FAST_MAX_ISA": isa})
    other, mine = torch.load(path), results()
    assert other["normals"].equal(mine["normals"])
    assert other.keys() == mine.keys()
    for key in set(mine) - {"normals"}:
        for a, b in zip(other[key], mine[key], strict=True):
            assert (a - b).abs().max() <= 30 * torch.finfo(b.dtype).eps * b.abs().max(), key
