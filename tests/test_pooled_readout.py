"""The readouts of several maps: pooled_readout, levels_readout, gather_levels and pool_levels."""

import re

import cases
import every_point_op
import pytest
import torch
from op_checks import (
    DTYPES,
    assert_as_accurate_as_eager,
    bf16,
    cast,
    f16,
    f32,
    f64,
    label,
    layouts,
    run,
)
from pooled_checks import (
    CASE,
    POOLED,
    POOLING,
    assert_compiles_fullgraph,
    assert_matches_eager,
    by_levels,
    levels_of,
    make,
    points,
)
from torch.nn import functional as F

from v1fast import _eager as eager
from v1fast import functional, ops


class TestOneLevel(every_point_op.OneLevel):
    pass


class TestTwoLevels(every_point_op.TwoLevels):
    pass


@pytest.mark.parametrize(
    ("case", "pooling"), POOLED, ids=lambda v: v.why.replace(" ", "-") if hasattr(v, "why") else ""
)
def test_matches_eager(case, pooling):
    assert_matches_eager(case, pooling, f32, f32, f32)


def test_matches_eager_in_float64():
    assert_matches_eager(CASE, POOLING, f64, f64, f64)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("what", ["levels_readout", "gather_levels"])
def test_levels_of_different_channels_and_sizes(what, align_corners):
    operands = {f"level{i}": level for i, level in enumerate(levels_of())} | points()
    if what == "gather_levels":
        operands = {k: v for k, v in operands.items() if k not in ("weight", "bias")}
    options = {"align_corners": align_corners}
    grad_output = torch.randn(3, 11) if what == "levels_readout" else torch.randn(3, 11, 24)
    results = run(by_levels(getattr(functional, what)), operands, options, grad_output)

    def eager_run(dtype):
        return run(by_levels(getattr(eager, what)), cast(operands, dtype), options, grad_output.to(dtype))

    assert_as_accurate_as_eager(results, operands, eager_run)


@pytest.mark.parametrize("weight", [f32, bf16])
@pytest.mark.parametrize("dtypes", [(bf16, bf16, bf16), (f16, f16, f16), (bf16, f16, f32), (f64, bf16, f32)], ids=label)
def test_levels_of_low_precision_are_added_before_they_are_rounded(dtypes, weight):
    operands = {f"level{i}": level for i, level in enumerate(levels_of(dtypes=dtypes))} | points()
    operands["weight"] = operands["weight"].to(weight)
    promoted = torch.promote_types(torch.promote_types(*dtypes[:2]), torch.promote_types(dtypes[2], weight))
    grad_output = torch.randn(3, 11).to(promoted)
    results = run(by_levels(functional.levels_readout), operands, {}, grad_output)
    assert results[0].dtype == promoted
    wide = by_levels(functional.levels_readout)(**operands | {"weight": operands["weight"].float()})
    assert results[0].equal(wide.to(promoted))

    def eager_run(dtype):
        return run(by_levels(eager.levels_readout), cast(operands, dtype), {}, grad_output.to(dtype))

    assert_as_accurate_as_eager(results, operands, eager_run)


@pytest.mark.parametrize("dtypes", DTYPES, ids=label)
def test_poolings_are_not_rounded_to_the_dtype_of_the_features(dtypes):
    assert_matches_eager(CASE, POOLING, *dtypes)


@pytest.mark.parametrize("dtype", [f32, f64, bf16, f16], ids=str)
@pytest.mark.parametrize(("kernel", "steps"), [(1, 2), (2, 2), (3, 1), (2, 0)])
def test_pooled_levels_are_the_poolings(dtype, kernel, steps):
    """One after the other, each with the channels of a pixel side by side, by any number of threads."""
    features = torch.randn(3, 5, 13, 9).to(dtype)
    threads = torch.get_num_threads()
    for wide in (False, True):
        levels = [features.to(f64 if wide else f32)]
        for _ in range(steps):
            levels.append(F.avg_pool2d(levels[-1], kernel))
        want = torch.cat([levels[0].new_empty(0), *(level.permute(0, 2, 3, 1).flatten() for level in levels[1:])])
        for name, view in layouts(features):
            got = ops.pooled_readout.pooled_levels(view, kernel, steps, wide)
            torch.testing.assert_close(got, want, msg=name)
        try:
            torch.set_num_threads(1)
            assert ops.pooled_readout.pooled_levels(view, kernel, steps, wide).equal(got)
        finally:
            torch.set_num_threads(threads)
    for sizes in ((0, 5, 13, 9), (1, 1, 13, 9)):
        assert ops.pooled_readout.pooled_levels(torch.ones(sizes), kernel, steps, False).eq(1).all()
    torch.library.opcheck(torch.ops.v1fast.pooled_levels, (features, kernel, steps, True))


def test_one_level_is_the_op():
    operands, options = cases.make_points(cases.PLAIN, f32, f32, f32)
    grad_output = torch.randn(cases.PLAIN.B, cases.PLAIN.N)
    one = options | {"pool_kernel": 1, "pool_steps": 0, "pooled": None}
    want = run(torch.ops.v1fast.pooled_readout, operands, one, grad_output)
    got = run(functional.pooled_readout, operands, options | {"pool_kernel": 2, "pool_steps": 0}, grad_output)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    alone = {f"level{i}" if i == 0 else k: v for i, (k, v) in enumerate(operands.items())}
    got = run(by_levels(functional.levels_readout), alone, options, grad_output)
    assert got[0].equal(want[0])


def test_weighted_gather_is_the_readout():
    levels, operands = levels_of(), points()
    gathered = functional.gather_levels(levels, operands["grid"], operands["shift"])
    want = torch.einsum("bnk,nk->bn", gathered, operands["weight"]) + operands["bias"]
    torch.testing.assert_close(functional.levels_readout(levels, **operands), want)


def test_maps_of_one_pixel_are_read_everywhere():
    """As torch reads them: anywhere by their corners, fading over one pixel by their edges."""
    features = torch.randn(2, 3, 4, 4)
    grid, weight = torch.tensor([[0.3, -0.7], [-1.0, 1.0]]), torch.randn(2, 6)
    got = functional.pooled_readout(features, grid, weight, pool_kernel=4, pool_steps=1)
    fine = functional.levels_readout([features], grid, weight[:, :3])
    torch.testing.assert_close(got, fine + features.mean((2, 3)) @ weight[:, 3:].t())
    faded = functional.gather_levels([torch.ones(1, 1, 1, 1)], grid, align_corners=False)
    torch.testing.assert_close(faded.flatten(), torch.tensor([0.85 * 0.65, 0.25]))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_poolings_keep_the_memory_format(memory_format):
    features = torch.randn(2, 8, 12, 13).contiguous(memory_format=memory_format)
    for level in functional.pool_levels(features, kernel=2, steps=2):
        assert level.is_contiguous(memory_format=memory_format)


def test_pool_levels():
    features = torch.randn(2, 3, 13, 9)
    levels = functional.pool_levels(features, kernel=3, steps=2, stride=2)
    assert levels[0] is features
    assert [tuple(level.shape[2:]) for level in levels] == [(13, 9), (6, 4), (2, 1)]
    torch.testing.assert_close(levels[1], F.avg_pool2d(features, 3, 2))
    assert [tuple(level.shape[2:]) for level in functional.pool_levels(features, kernel=3, steps=2)[1:]] == [
        (4, 3),
        (1, 1),
    ]


def test_pool_levels_wants_floats():
    with pytest.raises(ValueError, match="features: want one of float64, float32, bfloat16, float16, got int32"):
        functional.pool_levels(torch.zeros(1, 2, 4, 4, dtype=torch.int32), kernel=2, steps=1)


def test_only_what_is_asked_for_gets_a_gradient():
    operands, options = make(CASE, 2, f32, f32, f32)
    for name in operands:
        leaves = {k: v.detach().requires_grad_(k == name) for k, v in operands.items()}
        functional.pooled_readout(**leaves, **options, **POOLING).sum().backward()
        assert [k for k, v in leaves.items() if v.grad is not None] == [name]


def test_no_tensor_of_images_neurons_and_channels_is_kept():
    """What autograd keeps is the operands, and the poolings where they are stored. (The fallback keeps more of what is
    small: less than 2^19 values are read.)
    """
    case = cases.Case("kept", H=12, W=12, N=8000, C=8)
    operands, options = make(case, 2, f32, f32, f32)
    leaves = {k: v.requires_grad_() for k, v in operands.items()}
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        functional.pooled_readout(**leaves, **options, **POOLING)
    poolings = [operands["features"].numel() * (1 / 4 + 1 / 16)] if "cpu" in ops.pooled_readout.STORING else []
    assert sorted(sizes) == sorted([*poolings, *(v.numel() for v in operands.values())])


@pytest.mark.parametrize("case", [cases.Case("pooled small", B=2, C=2, H=4, W=6, N=3)], ids=str)
def test_gradcheck_and_gradgradcheck(case):
    operands, options = make(case, 1)
    leaves = [v.requires_grad_() for v in operands.values()]

    def function(*values):
        return functional.pooled_readout(*values, **options, pool_kernel=2, pool_steps=1)

    assert torch.autograd.gradcheck(function, leaves, eps=1e-7, atol=1e-6)
    assert torch.autograd.gradgradcheck(function, leaves, eps=1e-7, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_fullgraph(dynamic, backend):
    assert_compiles_fullgraph(dynamic, backend)


def test_vmap_over_an_ensemble_and_function_transforms():
    operands, options = make(CASE, 2)
    features = operands.pop("features")
    members = {k: torch.stack([v, 0.9 * v]) for k, v in operands.items()}

    def loss_of(readout):
        return lambda parameters: readout(features, **parameters, **options, **POOLING).square().sum()

    got = torch.vmap(torch.func.grad(loss_of(functional.pooled_readout)))(members)
    # One by one: some releases of torch have no gradient of grid_sample under vmap.
    each = [torch.func.grad(loss_of(eager.pooled_readout))({k: v[i] for k, v in members.items()}) for i in range(2)]
    torch.testing.assert_close(got, {k: torch.stack([gradients[k] for gradients in each]) for k in got})
    out = torch.vmap(lambda p: functional.pooled_readout(features, **p, **options, **POOLING))(members)
    assert out[1].equal(
        functional.pooled_readout(features, **{k: v[1] for k, v in members.items()}, **options, **POOLING)
    )


# Bad input -------------------------------------------------------------------------------------------------------

BAD = {
    "features: want [B, C, H, W], got (3, 20, 12)": {"features": lambda t: t[..., 0]},
    "weight: want [N, C] = (11, 60), got (11, 59)": {"weight": lambda t: t[:, 1:]},
    "weight: want [N, C] = (11, 80), got (11, 60)": {"pool_steps": lambda v: 3},
    "bias: want [N] = (11,), got (10,)": {"bias": lambda t: t[1:]},
    "shift: want [B, 2] = (3, 2), got (2,)": {"shift": lambda t: t[0]},
    "grid: want [N, 2] or [B, N, 2], got (11,)": {"grid": lambda t: t[:, 0]},
    "grid: want device cpu, that of features, got meta": {"grid": lambda t: t.to("meta")},
    "steps: want at least 0, got -1": {"pool_steps": lambda v: -1},
    "kernel: want at least 1, got 0": {"pool_kernel": lambda v: 0},
    "features: want maps that 4 poolings of 2 x 2 leave something of, got (12, 17), of which (1, 2) is left after 3": {
        "pool_steps": lambda v: 4
    },
}


@pytest.mark.parametrize("message", BAD)
def test_rejects_bad_operands(message):
    operands, options = make(CASE, 2, f32, f32, f32)
    arguments = operands | options | POOLING
    for name, change in BAD[message].items():
        arguments[name] = change(arguments.get(name))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        functional.pooled_readout(**arguments)


BAD_LEVELS = {
    "levels: want at least one [B, C, H, W], got none": lambda levels: [],
    "levels[1]: want [B, C, H, W], got (20, 12, 5)": lambda levels: [levels[0], levels[1][0]],
    "levels[2]: want [B, C, H, W] with C, H, W >= 1, got (3, 1, 0, 1)": lambda levels: [
        *levels[:2],
        levels[2][:, :, :0],
    ],
    "levels[1]: want B = 3, that of levels[0], got 2": lambda levels: [levels[0], levels[1][:2]],
    "levels[0]: want one of float64, float32, bfloat16, float16, got int64": lambda levels: [levels[0].long()],
    "levels[1]: want device cpu, that of features, got meta": lambda levels: [levels[0], levels[1].to("meta")],
}


@pytest.mark.parametrize("message", BAD_LEVELS)
def test_rejects_bad_levels(message):
    levels, operands = BAD_LEVELS[message](levels_of()), points()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        functional.levels_readout(levels, **operands)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        functional.gather_levels(levels, operands["grid"])
