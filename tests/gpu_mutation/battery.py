"""Calls of the launchers, each with what its results have to be, by the forms of the kernels that they launch."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from unittest import mock

import cases
import every_point_op
import gaussian_checks as checks
import torch
from assertions import assert_as_accurate
from cases import Case
from op_checks import rescale_error
from v1fast.kernels import _features, _launch, _sums

from v1fast import _eager as eager
from v1fast import functional, kernels
from v1fast.reference._common import compute_dtype

f32, f64, bf16 = torch.float32, torch.float64, torch.bfloat16
Results = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Call:
    """One call of one op; ``check`` raises AssertionError."""

    name: str
    launch: Callable[[], Results]
    check: Callable[[Results], None]

    def __call__(self) -> None:
        self.check(self.launch())


# The readout -----------------------------------------------------------------------------------------------------

DRAWN = Case("drawn", neuron_index=True)
GIVEN = Case("given", sigma="uncorrelated", noise="tensor", C=131, bias=False)
MEANS = Case("means", sigma=None, noise=None, C=64, shift=False, align_corners=False)
SHARED = Case("shared", sigma="isotropic", share_noise=True, C=8, neuron_index=True, align_corners=False)

# For every family: shapes and regimes that ask for no other form of a kernel.
REGIMES = (
    {},
    {"B": 5, "N": 70, "image_offset": 3},
    {"B": 35, "N": 50, "image_offset": 1},  # two splits of the images; d_weight fills a block of the sum of the slabs
    {"B": 210, "N": 9, "H": 2, "W": 3, "image_offset": 2},  # so do the gradients of shift
    {"B": 2, "N": 257, "H": 11, "W": 7},  # several blocks of neurons, the last of one, whatever their size
    {"B": 3, "N": 1000, "H": 25, "W": 30},  # sums for shift have many parts; a small error of a position shows
    {"shift_scale": 1.5, "B": 20},
    {"spread": 1.5, "B": 4},
    {"B": 5, "N": 180, "H": 2, "W": 3},  # many samples on each pixel
)

KINDS = {  # operands that are changed once they are made
    "special": {"H": 5, "W": 257},
    "not finite": {"B": 5, "N": 200, "H": 6, "W": 8},  # pixels of many and of few samples
    "beside borders": {"B": 1, "N": 300, "H": 11, "W": 17, "shift_scale": 0.0},
}


def families() -> dict[str, tuple[Case, tuple[torch.dtype, ...]]]:
    """Name -> operands and dtypes of (features, weight, others)."""
    return {
        "drawn": (DRAWN, (f32, f32, f32)),
        "given": (GIVEN, (f32, f32, f32)),
        "means": (MEANS, (bf16, bf16, f32)),
        "shared": (SHARED, (f64, f64, f64)),
    }


def _special(operands: Results) -> Results:
    """Positions on borders and pixels, outside, infinite, NaN: what a neuron's noise would move stays there."""
    nan, inf = float("nan"), float("inf")
    values = (-inf, -1.5, -1.0039, -1.0, -0.5, 0.0, 0.5, 1.0, 1.0039, 1.25, 3e9, inf, nan)
    at = torch.tensor(list(itertools.product(values, values)), dtype=operands["mu"].dtype)
    many = {"mu": at, "weight": operands["weight"][:1].expand(len(at), -1).contiguous()}
    if operands["sigma"] is not None:
        many["sigma"] = torch.zeros(len(at), *operands["sigma"].shape[1:], dtype=at.dtype)
    if operands["bias"] is not None:
        many["bias"] = torch.zeros(len(at), dtype=at.dtype)
    if operands["shift"] is not None:
        many["shift"] = torch.zeros_like(operands["shift"])
    return operands | many


NOT_FINITE = (0, 33, 69)
"""Neurons whose weights are not finite."""


def _not_finite(operands: Results) -> Results:
    """If a kernel reads a weight in excess and multiplies it by zero, the result is NaN and shows."""
    weight = operands["weight"].clone()
    weight[list(NOT_FINITE)] = float("inf")
    return operands | {"weight": weight}


def _beside_borders(case: Case, operands: Results, options: dict) -> Results:
    """Means moved such that every sample of the one image lies beside a border of its cell, whatever its noise.

    What is off by some 1e-5 of a pixel, in float64 by 1e-9, then reads another cell.
    """
    exact = {k: None if v is None else v.double() for k, v in operands.items()}
    noise = cases.noise_of(case, options)
    noise = None if noise is None else noise.double()
    at = eager.unclamped_positions(exact["mu"], exact["sigma"], noise).reshape(case.N, 2)
    size = torch.tensor([case.W, case.H], dtype=f64)
    scale, offset = ((size - 1) / 2, 0.0) if case.align_corners else (size / 2, 0.5)
    pixel = (at + 1) * scale - offset
    near = 1e-9 if operands["mu"].dtype == f64 else 3e-5
    side = near * (1 - 2 * (torch.arange(case.N) % 2))[:, None]
    border = pixel.round().clamp(torch.ones(2, dtype=f64), size - 2) + side
    return operands | {"mu": (exact["mu"] + (border - pixel) / scale).to(operands["mu"].dtype)}


def _compare(own: Results, exact: Results, loosely: bool) -> Callable[[Results], None]:
    def check(got: Results) -> None:
        assert got.keys() == exact.keys()
        for name, result in got.items():
            assert result.dtype == own[name].dtype
            if loosely:
                # this tests which corner is read and whether there is a gradient, not the last digits
                want = exact[name].to(result.dtype)
                relative = max(1e-4, 2 * torch.finfo(result.dtype).eps)
                torch.testing.assert_close(result, want, equal_nan=True, atol=1e-4, rtol=relative)
            else:
                finite = exact[name].isfinite()
                assert result.isfinite().equal(finite), name
                assert_as_accurate(result[finite], own[name][finite], exact[name][finite], name)

    return check


def _results(operands, found) -> Results:
    """Output and gradients; zeros for operands that have no effect."""
    out, gradients = found
    dtype = out.dtype
    zeros = {k: torch.zeros_like(v, dtype=dtype) for k, v in operands.items() if v is not None}
    return {"out": out} | {k: zero if gradients.get(k) is None else gradients[k] for k, zero in zeros.items()}


def _split(results: Results) -> tuple[Results, Results]:
    return {"out": results["out"]}, {k: v for k, v in results.items() if k != "out"}


def _calls(name: str, case: Case, dtypes, kind: str = "") -> Iterator[Call]:
    """Forward, backward with d_features scattered, and gathered."""
    operands, options = cases.make(case, *dtypes)
    if kind == "special":
        operands = _special(operands)
        case = replace(case, N=operands["mu"].shape[0])
        options = cases.draw(case)[1]
    elif kind == "not finite":
        operands = _not_finite(operands)
    elif kind == "beside borders":
        operands = _beside_borders(case, operands, options)
    promoted = torch.promote_types(operands["features"].dtype, operands["weight"].dtype)
    grad = torch.randn(case.B, case.N).to(promoted)
    arguments = [*operands.values(), *(options.get(k) for k in ("noise", "seed", "neuron_index"))]
    arguments += [case.image_offset, case.share_noise, case.align_corners]

    def oracle(dtype):
        return checks.eager_run(case, operands, options, dtype, grad)

    loosely = kind in ("special", "beside borders")
    yield from _three_calls(name, "gaussian_readout", operands, arguments, grad, oracle, loosely)


def _three_calls(name, op, operands, arguments, grad, oracle, loosely=False) -> Iterator[Call]:
    """``oracle``, called with a dtype, is output and gradients by torch's own ops in it."""
    exact, own = (_results(operands, oracle(dtype)) for dtype in (f64, f32))
    if compute_dtype(*operands.values()) == f64:
        own = {k: rescale_error(v, exact[k]) for k, v in own.items()}
    own = {k: v.to(grad.dtype if k == "out" else operands[k].dtype) for k, v in own.items()}
    checks = [_compare(a, b, loosely) for a, b in zip(_split(own), _split(exact), strict=True)]

    def forward() -> Results:
        return {"out": kernels.CUDA[op](*arguments)}

    def backward(gathered: bool) -> Results:
        mask = [v is not None for v in operands.values()]
        _launch.plans.clear()  # they hold for the other way
        with mock.patch.object(_features, "is_gathered", return_value=gathered):
            gradients = kernels.CUDA[f"{op}_backward"](grad, *arguments, mask)
        return {k: g for k, g, wanted in zip(operands, gradients, mask, strict=True) if wanted}

    yield Call(f"forward {name}", forward, checks[0])
    yield Call(f"scatter {name}", lambda: backward(False), checks[1])
    yield Call(f"gather {name}", lambda: backward(True), checks[1])


def readout_calls(family: str) -> Iterator[Call]:
    """All calls of one family."""
    base, dtypes = families()[family]
    for i, regime in enumerate(REGIMES):
        yield from _calls(f"{family} {i}", replace(base, why=f"{base.why} {i}", **regime), dtypes)
    for kind, regime in KINDS.items():
        yield from _calls(f"{family} {kind}", replace(base, why=f"{base.why} {kind}", **regime), dtypes, kind)


# Points that are given -------------------------------------------------------------------------------------------

POINTS = {  # op as its tests have it, operands
    "points": (every_point_op.TwoLevels(), Case("points")),
    "points per image": (every_point_op.TwoLevels(), Case("points per image", per_image=True, C=64)),
    "gathered points": (every_point_op.PointGather(), Case("gathered points", C=64, align_corners=False)),
}

MORE_REGIMES = (
    {"B": 2, "N": 700, "H": 2, "W": 3},  # many samples on each pixel of the first of two levels too
    {"B": 8, "N": 200, "spread": 1.3},  # many points outside the map: nothing clamps them to its border
)


def points_calls(family: str) -> Iterator[Call]:
    """All calls of one family, in float32."""
    op, base = POINTS[family]
    for i, regime in enumerate((*REGIMES, *MORE_REGIMES)):
        case = replace(base, why=f"{base.why} {i}", **{k: v for k, v in regime.items() if k != "image_offset"})
        operands, options = op.make(case, f32, f32, f32)
        grad = op.grad_output(operands)
        pooled = "weight" in operands
        poolings = [op.poolings(**operands)] if pooled else []
        arguments = [*operands.values(), *poolings, case.align_corners, *(op.pooling.values() if pooled else ())]
        name = "pooled_readout" if pooled else "point_gather"
        yield from _three_calls(f"{family} {i}", name, operands, arguments, grad, op.eager_run(operands, options, grad))


# The normals -----------------------------------------------------------------------------------------------------


def normals_calls() -> Iterator[Call]:
    """Bit for bit those of the CPU kernel."""
    index = torch.tensor([0, 1, 5, 2**31, 2**32 - 1, 2**40 + 3]).repeat(25)
    for i, (seed, images, offset) in enumerate(((0, 6, 0), (-1, 1, 3), (2**63 - 12345, 5, 2**33 + 5), (77, 37, 2**32))):
        arguments = (torch.tensor([seed]), images, len(index))
        want = functional.philox_normal(*arguments, neuron_index=index, image_offset=offset)

        def launch(arguments=arguments, offset=offset) -> Results:
            return {"out": kernels.CUDA["philox_normal"](*arguments, index, offset)}

        def check(got: Results, want=want) -> None:
            assert got["out"].equal(want)

        yield Call(f"normals {i}", launch, check)


# The sums of partial sums ----------------------------------------------------------------------------------------


def _exact_sum(values: torch.Tensor) -> torch.Tensor:
    """Over the first axis, rounded once."""
    columns = values.flatten(1).t().tolist()
    return torch.tensor([math.fsum(column) for column in columns], dtype=f64).reshape(values.shape[1:])


def _with_large_ones(parts: torch.Tensor, step: int) -> torch.Tensor:
    """Every sum of a thread gets a large one, and a later one takes it off: what small ones lose to it is to be kept.

    ``step``: from one part to the next of the same sum of a thread.
    """
    count = len(range(0, parts.shape[0], step))
    if count > 2:
        first, second = step * (count // 3), step * (2 * count // 3)
        parts[first : first + step] += 4096
        parts[second : second + step] -= 4096
    return parts


def _few_digits(got: Results, want: Results, units: float) -> None:
    """Each error is less than so many units in the last place of the largest."""
    assert got.keys() == want.keys()
    for name, result in got.items():
        error = (result.double() - want[name]).abs().max()
        assert error <= units * torch.finfo(result.dtype).eps * want[name].abs().max(), name  # of NaN: false


SUMS = {  # dtype of what is added, of the arithmetic and of the sums
    "sums": (f32, f32, f32),
    "sums to bf16": (f32, f32, bf16),
    "sums of bf16": (bf16, f32, f32),
    "sums in f64": (f64, f64, f64),
}


def sums_calls(family: str) -> Iterator[Call]:
    """By themselves: more numbers of slabs and of sums, which end anywhere in a block, than a whole backward has."""
    dtype_in, dtype, dtype_out = SUMS[family]
    few = [(3, m) for m in (2, 5, 127, 128, 130, 255, 256, 259, 383, 384, 386, 511, 512, 513, 516)]
    many = [(s, 16 + s % 32) for s in (*range(32, 100), 2001, 100_000)]
    for slabs, sums in ((20, 512), (31, 300), *few, *many):
        parts = _with_large_ones(torch.randn(slabs, sums, dtype=f64).to(dtype_in), 64 if slabs >= 32 else 1)
        want = _exact_sum(parts)

        def launch(parts=parts) -> Results:
            return {"out": _sums.sum_first(parts, parts[0].to(dtype_out), dtype)}

        def check(got: Results, want=want) -> None:
            _few_digits(got, {"out": want}, 2.0)

        yield Call(f"{slabs} slabs of {sums}", launch, check)
