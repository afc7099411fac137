"""Operands of the readouts of several maps, and how pooled_readout is held against the oracle."""

import cases
import torch
from op_checks import assert_as_accurate_as_eager, cast, f32, f64, run

from v1fast import _eager as eager
from v1fast import functional

POOLING = {"pool_kernel": 2, "pool_steps": 2}
CASE = cases.Case("pooled", H=12, W=17)
POOLED = (
    (CASE, POOLING),
    (cases.Case("pooled by three", H=19, W=28, align_corners=False), {"pool_kernel": 3, "pool_steps": 1}),
    (cases.Case("pooled to one row", H=8, W=19), {"pool_kernel": 2, "pool_steps": 3}),
    (cases.Case("pooled to one pixel", H=9, W=9), {"pool_kernel": 3, "pool_steps": 2}),
    (cases.Case("pooled to one pixel with edges", H=4, W=4, align_corners=False), {"pool_kernel": 4, "pool_steps": 1}),
    (cases.Case("pooled at positions per image", H=9, W=13, per_image=True, spread=1.3), POOLING),
    (cases.Case("pooled without options", H=8, W=8, bias=False, shift=False), POOLING),
    (cases.Case("pooled and many neurons", H=9, W=12, N=300, C=5), POOLING),
    (cases.Case("pooled and no neuron", H=8, W=8, N=0), POOLING),
    (cases.Case("pooled and one neuron", H=8, W=8, N=1, B=1, C=1), POOLING),
    (cases.Case("not pooled"), {"pool_kernel": 5, "pool_steps": 0}),
    (cases.Case("pooled in vain", H=3, W=4), {"pool_kernel": 1, "pool_steps": 2}),
)


def make(case, pool_steps, *dtypes):
    operands, options = cases.make_points(case, *dtypes)
    weight = torch.randn(case.N, (pool_steps + 1) * case.C, dtype=f64)
    return operands | {"weight": weight.to(operands["weight"].dtype)}, options


def assert_matches_eager(case, pooling, *dtypes):
    operands, options = make(case, pooling["pool_steps"], *dtypes)
    options = options | pooling
    promoted = torch.promote_types(operands["features"].dtype, operands["weight"].dtype)
    grad_output = torch.randn(case.B, case.N).to(promoted)
    results = run(functional.pooled_readout, operands, options, grad_output)
    assert results[0].dtype == promoted

    def eager_run(dtype):
        return run(eager.pooled_readout, cast(operands, dtype), options, grad_output.to(dtype))

    assert_as_accurate_as_eager(results, operands, eager_run)


def levels_of(channels=(3, 20, 1), sizes=((7, 9), (12, 5), (1, 1)), dtypes=(f32, f32, f32), batch=3):
    """Maps of different channels and sizes."""
    shapes = zip(channels, sizes, dtypes, strict=True)
    return [torch.randn(batch, c, *size).to(dtype) for c, size, dtype in shapes]


def points(neurons=11, channels=24, batch=3):
    names = ("grid", "weight", "bias", "shift")
    shapes = ((neurons, 2), (neurons, channels), (neurons,), (batch, 2))
    return dict(zip(names, (0.5 * torch.randn(shape) for shape in shapes), strict=True))


def by_levels(function):
    """``function`` of the levels as operands of their own, level0, level1, ..."""

    def call(**operands):
        levels = [operands.pop(name) for name in sorted(operands) if name.startswith("level")]
        return function(levels, **operands)

    return call


def assert_compiles_fullgraph(dynamic, backend):
    """Returns the last gradients."""
    torch.compiler.reset()

    @torch.compile(backend=backend, fullgraph=True, dynamic=dynamic)
    def step(operands, options):
        return functional.pooled_readout(**operands, **options, **POOLING).square().sum()

    for batch in (3, 5) if dynamic else (3,):
        operands, options = make(cases.Case("pooled and compiled", B=batch, H=12, W=17), 2, f32, f32, f32)
        leaves = {k: v.requires_grad_() for k, v in operands.items()}
        got = torch.autograd.grad(step(leaves, options), list(leaves.values()))
        loss = functional.pooled_readout(**leaves, **options, **POOLING).square().sum()
        torch.testing.assert_close(got, torch.autograd.grad(loss, list(leaves.values())))
    return got
