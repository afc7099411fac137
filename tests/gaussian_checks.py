"""How v1fast::gaussian_readout is run and held against the oracle, on whatever device."""

import itertools

import cases
import torch
from op_checks import DTYPES, assert_as_accurate_as_eager, cast, f32, run

from v1fast import _eager as eager
from v1fast import functional

NAMES = ("features", "mu", "sigma", "weight", "bias", "shift")
TABLE = [(case, (f32, f32, f32)) for case in cases.REGIMES] + [
    (case, dtypes)
    for case, dtypes in itertools.product(
        [c for c in cases.REGIMES if c.why in ("plain", "shared seed", "explicit noise", "one channel", "no neuron")],
        [d for d in DTYPES if d != (f32, f32, f32)],
    )
]


def eager_run(case, operands, options, dtype, grad_output):
    noise = cases.noise_of(case, options)
    eager_options = {"noise": None if noise is None else noise.to(dtype), "align_corners": case.align_corners}
    return run(eager.gaussian_readout, cast(operands, dtype), eager_options, grad_output.to(dtype))


def assert_matches_eager(case, operands, options):
    """Output and all gradients, in the operands' dtypes, against float64."""
    promoted = torch.promote_types(operands["features"].dtype, operands["weight"].dtype)
    grad_output = torch.randn(case.B, case.N).to(promoted)
    results = run(functional.gaussian_readout, operands, options, grad_output)
    assert_as_accurate_as_eager(results, operands, lambda dtype: eager_run(case, operands, options, dtype, grad_output))
    assert results[0].dtype == promoted


def assert_compiles_with_inductor():
    """Returns the gradients."""
    torch.compiler.reset()
    operands, options = cases.make(cases.PLAIN, f32, f32, f32)
    leaves = {k: v.requires_grad_() for k, v in operands.items()}

    def step(leaves, options):
        return functional.gaussian_readout(**leaves, **options).square().sum()

    got = torch.autograd.grad(torch.compile(step, fullgraph=True)(leaves, options), list(leaves.values()))
    want = torch.autograd.grad(step(leaves, options), list(leaves.values()))
    torch.testing.assert_close(got, want)
    return got
