"""The op v1fast::gaussian_readout and its backward.

Results are held against an expression of torch's own ops in float64 (v1fast/_eager.py), which shares nothing with the
library: with V1FAST_KERNELS= the same tests hold the reference to the same standard.
"""

import itertools
import re

import cases
import gaussian_checks as checks
import pytest
import torch
from gaussian_checks import NAMES, TABLE, assert_compiles_with_inductor, assert_matches_eager
from op_checks import (
    DTYPES,
    WEIGHT_CASES,
    WEIGHT_DTYPES,
    bf16,
    f32,
    f64,
    label,
    run,
)

from v1fast import _eager as eager
from v1fast import functional, ops
from v1fast.reference import gaussian_readout as reference


@pytest.mark.parametrize(("case", "dtypes"), TABLE, ids=label)
def test_matches_eager(case, dtypes):
    assert_matches_eager(case, *cases.make(case, *dtypes))


@pytest.mark.parametrize("dtypes", DTYPES, ids=label)
def test_matches_reference(dtypes):
    """The kernel and the reference agree to rounding on the same call, through the ops themselves."""
    operands, options = cases.make(cases.PLAIN, *dtypes)
    arguments = [*operands.values(), None, options["seed"], None, 0, False, True]
    compute = reference.compute_dtype(*operands.values())
    got, want = ops.gaussian_readout.gaussian_readout(*arguments), reference.gaussian_readout(*arguments)
    bound = 30 * torch.finfo(compute).eps if got.dtype == compute else torch.finfo(got.dtype).eps
    # seeds: normals of the reference are within 2e-6 of the kernel's, and move a point by as much of half the map
    assert got.dtype == want.dtype
    assert (got - want).abs().max() <= (bound + 2e-5) * want.abs().max()


@pytest.mark.parametrize("layout", range(6))
@pytest.mark.parametrize("dtypes", [(f32, f32, f32), (bf16, f32, f32)], ids=label)
def test_layouts_of_features(layout, dtypes):
    checks.check_layouts_of_features(layout, dtypes)


def test_expanded_operands():
    checks.check_expanded_operands()


@pytest.mark.parametrize("case", WEIGHT_CASES, ids=label)
@pytest.mark.parametrize("dtypes", WEIGHT_DTYPES, ids=label)
def test_weights_of_any_layout(case, dtypes):
    checks.check_weights_of_any_layout(case, dtypes)


def test_low_precision_positions_are_read_as_they_are():
    checks.check_low_precision_positions_are_read_as_they_are()


# Conventions -----------------------------------------------------------------------------------------------------


def point(x, y, features, align_corners, through_shift=False, grad=True):
    """Output and gradients at one point by v1fast and by F.grid_sample."""
    p = torch.tensor([[x, y]], dtype=f64)
    mine = features.clone().requires_grad_(grad)
    weight = torch.ones(1, features.shape[1], dtype=f64)
    mu, shift = (torch.zeros_like(p), p) if through_shift else (p, torch.zeros_like(p))
    mu.requires_grad_(), shift.requires_grad_()
    out = functional.gaussian_readout(mine, mu, None, weight, None, shift, align_corners=align_corners)
    got = torch.autograd.grad(out.sum(), (mine, mu, shift))
    theirs = features.clone().requires_grad_(grad)
    mu2, shift2 = mu.detach().clone().requires_grad_(), shift.detach().clone().requires_grad_()
    out2 = eager.gaussian_readout(theirs, mu2, None, weight, None, shift2, align_corners=align_corners)
    return (out.detach(), *got), (out2.detach(), *torch.autograd.grad(out2.sum(), (theirs, mu2, shift2)))


def clamp_passes_gradients_at_its_bounds():
    """As v1fast does, so that a neuron can leave the edge of the map. torch does not from 2.14 on."""
    bound = torch.ones((), requires_grad=True)
    return bool(torch.autograd.grad(bound.clamp(-1, 1), bound)[0])


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("through_shift", [True, False])
def test_conventions_of_torch_at_special_positions(align_corners, through_shift):
    """At exactly +-1, on pixels, outside, at infinity and NaN: value and every gradient as torch's, NaN for NaN."""
    inf = float("inf")
    values = (-inf, -1e30, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.25, 3e9, inf, *cases.TORCH_NAN)
    features = torch.randn(1, 3, 5, 9, dtype=f64)
    for x, y in itertools.product(values, values):
        got, want = point(x, y, features, align_corners, through_shift)
        clamped = {} if clamp_passes_gradients_at_its_bounds() or through_shift else {x, y} & {-1.0, 1.0}
        for name, a, b in zip(("out", "d_features", "d_mu", "d_shift"), got, want, strict=True):
            if name == "d_mu" and clamped:
                continue
            torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-12, atol=1e-12, msg=f"{name} at {x}, {y}")


def test_a_nan_position_gives_nan_and_touches_no_feature():
    checks.check_a_nan_position_gives_nan_and_touches_no_feature()


def test_a_nan_outside_the_cell_does_not_reach_it():
    checks.check_a_nan_outside_the_cell_does_not_reach_it()


def test_clamped_coordinates_get_no_gradient_and_shift_still_does():
    checks.check_clamped_coordinates_get_no_gradient_and_shift_still_does()


def test_sigma_gets_zeros_in_evaluation():
    checks.check_sigma_gets_zeros_in_evaluation()


# Noise -----------------------------------------------------------------------------------------------------------


def test_seed_equals_explicit_noise():
    case = cases.PLAIN
    operands, options = cases.make(case, f32, f32, f32)
    noise = cases.noise_of(case, options)
    explicit = {**options, "noise": noise}
    explicit.pop("seed")
    grad_output = torch.randn(case.B, case.N)
    got = run(functional.gaussian_readout, operands, options, grad_output)
    want = run(functional.gaussian_readout, operands, explicit, grad_output)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_noise_does_not_depend_on_the_split_of_batch_or_neurons():
    checks.check_noise_does_not_depend_on_the_split_of_batch_or_neurons()


def test_int_seeds_and_tensor_seeds_are_the_same():
    checks.check_int_seeds_and_tensor_seeds_are_the_same()


# Determinism -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 9])  # one: its neurons are split
@pytest.mark.parametrize("dtype", [f32, bf16], ids=str)
def test_threads_and_runs_give_the_same_bits(dtype, images):
    case = cases.Case("threads", B=images, C=24, H=12, W=15, N=700)
    operands, options = cases.make(case, dtype, dtype, f32)
    grad_output = torch.randn(case.B, case.N, dtype=dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(run(functional.gaussian_readout, operands, options, grad_output))
    finally:
        torch.set_num_threads(threads)
    if ops.loaded["native"] != "loaded":  # the reference's sums are torch's own
        results = results[1::2]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


# Derivatives -----------------------------------------------------------------------------------------------------

SMALL = cases.Case("small", B=2, C=2, H=3, W=4, N=3)


@pytest.mark.parametrize("wanted", NAMES)
def test_output_mask_computes_what_is_asked_for(wanted):
    operands, options = cases.make(cases.PLAIN, f32, bf16, f32)
    rest = [None, options["seed"], None, 0, False, True]
    grad_output = torch.randn(3, 11)
    everything = ops.gaussian_readout.gaussian_readout_backward(grad_output, *operands.values(), *rest, [True] * 6)
    mask = [name == wanted for name in NAMES]
    gradients = ops.gaussian_readout.gaussian_readout_backward(grad_output, *operands.values(), *rest, mask)
    for name, gradient, whole in zip(NAMES, gradients, everything, strict=True):
        if name == wanted:
            assert gradient.equal(whole), name
        else:
            assert tuple(gradient.shape) == (0,), name


@pytest.mark.parametrize(
    "case",
    [
        SMALL,
        cases.Case("small uncorrelated", B=2, C=2, H=3, W=4, N=3, sigma="uncorrelated"),
        cases.Case("small isotropic", B=2, C=2, H=3, W=4, N=3, sigma="isotropic", share_noise=True),
        cases.Case("small mean", B=2, C=2, H=3, W=4, N=3, noise=None, align_corners=False),
    ],
    ids=str,
)
def test_gradcheck_and_gradgradcheck(case):
    operands, options = cases.make(case)
    leaves = [v.requires_grad_() for v in operands.values()]

    def function(*values):
        return functional.gaussian_readout(*values, **options)

    # The second derivatives along random directions of all matrices; of the first each entry by itself.
    assert torch.autograd.gradcheck(function, leaves, eps=1e-7, atol=1e-6)
    assert torch.autograd.gradgradcheck(function, leaves, eps=1e-7, atol=1e-5, fast_mode=True)


def test_reference_backward_is_the_derivative_of_reference_forward():
    operands, options = cases.make(SMALL)
    leaves = [v.requires_grad_() for v in operands.values()]
    rest = (None, options["seed"], None, 0, False, True)
    out = reference.gaussian_readout(*leaves, *rest)
    grad_output = torch.randn_like(out)
    want = torch.autograd.grad(out, leaves, grad_output)
    got = reference.gaussian_readout_backward(grad_output, *leaves, *rest, [True] * 6)
    for name, a, b in zip(NAMES, got, want, strict=True):
        torch.testing.assert_close(a.detach(), b, msg=name)


def test_third_derivatives_are_right():
    operands, options = cases.make(SMALL)
    options = {"noise": cases.noise_of(SMALL, options).double()}
    leaves = {k: v.requires_grad_() for k, v in operands.items()}

    def third(function):
        out = function(*leaves.values(), options["noise"], None, None, 0, False, True).square().sum()
        (first,) = torch.autograd.grad(out, leaves["mu"], create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaves["features"], create_graph=True)
        return torch.autograd.grad(second.square().sum(), list(leaves.values()), allow_unused=True)

    got, want = third(ops.gaussian_readout.gaussian_readout), third(reference.gaussian_readout)
    for name, a, b in zip(NAMES, got, want, strict=True):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize("case", [cases.PLAIN, cases.Case("explicit noise", noise="tensor", share_noise=True)], ids=str)
@pytest.mark.parametrize("dtypes", [(f32, f32, f32), (bf16, f32, f32)], ids=label)
def test_opcheck(case, dtypes):
    checks.check_opcheck(case, dtypes)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_fullgraph(dynamic):
    """A seed and the sizes may change from call to call without a new compilation, once they are dynamic."""
    torch.compiler.reset()
    compilations = 0

    def backend(graph, inputs):
        nonlocal compilations
        compilations += 1
        from torch._dynamo.backends.debugging import aot_eager

        return aot_eager(graph, inputs)

    @torch.compile(backend=backend, fullgraph=True, dynamic=dynamic)
    def step(operands, options):
        return functional.gaussian_readout(**operands, **options).square().sum()

    for seed, batch in ((1, 3), (2, 3), (3, 5), (4, 7)):
        case = cases.Case("compiled", B=batch)
        operands, options = cases.make(case, f32, f32, f32)
        options["seed"] = torch.tensor([seed])
        leaves = {k: v.requires_grad_() for k, v in operands.items()}
        got = torch.autograd.grad(step(leaves, options), list(leaves.values()))
        want = torch.autograd.grad(
            functional.gaussian_readout(**leaves, **options).square().sum(), list(leaves.values())
        )
        torch.testing.assert_close(got, want)
    assert compilations == (1 if dynamic else 3)  # static: one for each batch size, none for another seed


def test_compiles_with_inductor():
    assert all(gradient.isfinite().all() for gradient in assert_compiles_with_inductor())


# Function transforms ---------------------------------------------------------------------------------------------


def test_vmap_over_an_ensemble_and_its_gradient():
    checks.check_vmap_over_an_ensemble_and_its_gradient()


def test_function_transforms_are_right():
    operands, options = cases.make(SMALL)
    noise = cases.noise_of(SMALL, options).double()

    def mine(mu, sigma):
        return functional.gaussian_readout(**operands | {"mu": mu, "sigma": sigma}, **options)

    def theirs(mu, sigma):
        return eager.gaussian_readout(**operands | {"mu": mu, "sigma": sigma}, noise=noise)

    point = (operands["mu"], operands["sigma"])
    points = torch.stack([point[0], 0.5 * point[0]])
    tangent = (torch.randn_like(point[0]), torch.randn_like(point[1]))
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if "loaded" in (ops.loaded["native"], ops.loaded["fallback"]) else {}
    # Of grid_sample torch has no forward derivative, and some releases no reverse one under vmap: the oracle goes row
    # by row.
    jacobians = torch.func.jacrev(theirs, argnums=(0, 1), chunk_size=1)(*point)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(mine, argnums=(0, 1))(*point), jacobians, **tolerance)

    def gradient(f):
        return torch.func.grad(lambda *p: f(*p).square().sum(), argnums=(0, 1))

    torch.testing.assert_close(gradient(mine)(*point), gradient(theirs)(*point), **tolerance)
    got = torch.func.vmap(lambda mu: gradient(mine)(mu, point[1])[0])(points)
    want = torch.stack([gradient(theirs)(mu, point[1])[0] for mu in points])
    torch.testing.assert_close(got, want, **tolerance)
    _, got = torch.func.jvp(mine, point, tangent)
    want = sum((j * t).flatten(2).sum(-1) for j, t in zip(jacobians, tangent, strict=True))
    torch.testing.assert_close(got, want, **tolerance)
    hessian = torch.func.hessian(lambda mu: mine(mu, point[1]).square().sum())(point[0])
    autograd = torch.autograd.functional.hessian(lambda mu: mine(mu, point[1]).square().sum(), point[0])
    torch.testing.assert_close(hessian, autograd, **tolerance)


@pytest.mark.parametrize("bound", [-1.0, 1.0])
def test_a_neuron_at_the_edge_has_a_gradient_however_it_is_asked_for(bound):
    """Whatever torch's clamp does there: otherwise a neuron that is moved to the edge stays there."""
    features, weight = torch.randn(1, 3, 5, 9, dtype=f64), torch.ones(1, 3, dtype=f64)
    mu = torch.tensor([[bound, 0.3]], dtype=f64, requires_grad=True)

    def readout(mu):
        return functional.gaussian_readout(features, mu, None, weight).sum()

    (recorded,) = torch.autograd.grad(readout(mu), mu)
    assert (recorded != 0).all()
    torch.testing.assert_close(torch.func.grad(readout)(mu.detach()), recorded)
    torch.testing.assert_close(torch.func.jacfwd(readout)(mu.detach()), recorded)


def test_forward_mode_duals_are_right():
    operands, options = cases.make(cases.Case("small explicit", B=2, C=3, N=3, noise="tensor"))
    tangent = torch.randn_like(operands["weight"])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(operands["weight"], tangent)
        out = functional.gaussian_readout(**operands | {"weight": dual}, **options)
        got = torch.autograd.forward_ad.unpack_dual(out).tangent
    without_bias = operands | {"weight": tangent, "bias": None}
    torch.testing.assert_close(got, functional.gaussian_readout(**without_bias, **options))


def test_autocast_casts_nothing():
    checks.check_autocast_casts_nothing()


# Bad input -------------------------------------------------------------------------------------------------------

BAD = {
    "features: want [B, C, H, W], got (3, 20, 6)": {"features": lambda t: t[..., 0]},
    "features: want [B, C, H, W] with C, H, W >= 1, got (3, 20, 0, 9)": {"features": lambda t: t[:, :, :0]},
    "features: want one of float64, float32, bfloat16, float16, got int64": {"features": lambda t: t.long()},
    "mu: want [N, 2], got (11,)": {"mu": lambda t: t[:, 0]},
    "mu: want [N, 2] = (11, 2), got (11, 1)": {"mu": lambda t: t[:, :1]},
    "weight: want [N, C] = (11, 20), got (11, 19)": {"weight": lambda t: t[:, 1:]},
    "weight: want [N, C] = (11, 20), got (20, 11)": {"weight": lambda t: t.t()},
    "sigma: want [N, 2, 2] (full), [N, 2] (uncorrelated) or [N, 1] (isotropic) with N = 11, got (11,)": {
        "sigma": lambda t: t[:, 0, 0]
    },
    "sigma: want [N, 2, 2] (full), [N, 2] (uncorrelated) or [N, 1] (isotropic) beside noise or seed, got None": {
        "sigma": lambda t: None
    },
    "bias: want [N] = (11,), got (10,)": {"bias": lambda t: t[1:]},
    "shift: want [B, 2] = (3, 2), got (2,)": {"shift": lambda t: t[0]},
    "seed: want [1] = (1,), got ()": {"seed": lambda t: t[0]},
    "seed: want int64, got float32": {"seed": lambda t: t.float()},
    "noise, seed: want at most one of the two, got both": {"noise": lambda t: torch.zeros(3, 11, 2)},
    "neuron_index: want [N] = (11,), got (3,)": {"neuron_index": lambda t: torch.arange(3)},
    "neuron_index: want int64, got int32": {"neuron_index": lambda t: torch.arange(11, dtype=torch.int32)},
    "image_offset: want at least 0, got -1": {"image_offset": lambda t: -1},
    "mu: want device cpu, that of features, got meta": {"mu": lambda t: t.to("meta")},
}


@pytest.mark.parametrize("message", BAD)
def test_rejects_bad_operands(message):
    operands, options = cases.make(cases.PLAIN, f32, f32, f32)
    arguments = operands | options
    for name, change in BAD[message].items():
        arguments[name] = change(arguments.get(name))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        functional.gaussian_readout(**arguments)


def test_rejects_bad_noise():
    operands, _ = cases.make(cases.PLAIN, f32, f32, f32)
    with pytest.raises(ValueError, match=r"noise: want \[1, N, 2\] \(share_noise\) = \(1, 11, 2\), got \(3, 11, 2\)"):
        functional.gaussian_readout(**operands, noise=torch.zeros(3, 11, 2), share_noise=True)
    with pytest.raises(ValueError, match="noise: want a constant"):
        functional.gaussian_readout(**operands, noise=torch.zeros(3, 11, 2, requires_grad=True))


@pytest.mark.skipif(ops.loaded["native"] != "loaded", reason="the compiled kernels are not loaded")
def test_the_op_itself_refuses_to_read_outside_a_tensor():
    operands, options = cases.make(cases.PLAIN, f32, f32, f32)
    rest = (None, options["seed"], None, 0, False, True)
    for name in NAMES[1:]:
        cut = operands | {name: operands[name][..., :-1]}
        with pytest.raises(RuntimeError):
            torch.ops.v1fast.gaussian_readout(*cut.values(), *rest)


@pytest.mark.slow
@pytest.mark.skipif(ops.loaded["native"] != "loaded", reason="the reference would need 30 GB")
def test_more_than_2_to_31_elements():
    """Offsets are counted in int64: the last image starts beyond element 2**31."""
    features = torch.zeros(17, 128, 1024, 1024, dtype=bf16)
    assert features.numel() > 2**31
    features[-1] = torch.randn(128, 1, 1, dtype=bf16)
    features.requires_grad_()
    mu, weight = torch.rand(5, 2) * 1.8 - 0.9, torch.randn(5, 128)
    out = functional.gaussian_readout(features, mu, None, weight)
    assert out[:-1].eq(0).all()
    torch.testing.assert_close(out[-1], weight @ features[-1, :, 0, 0].detach().float())
    (d_features,) = torch.autograd.grad(out.sum(), features)
    assert d_features[-1].float().sum().item() == pytest.approx(weight.sum().item(), rel=1e-2)
