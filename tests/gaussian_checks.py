"""How v1fast::gaussian_readout is run and held against the oracle, and what holds for it, on whatever device.

Where the number of channels does not matter it is that of ``cases.PLAIN``: a GPU kernel is compiled for each number.
"""

import itertools

import cases
import pytest
import torch
from op_checks import (
    AS_LAYERS_KEEP_WEIGHTS,
    DTYPES,
    assert_as_accurate_as_eager,
    assert_same,
    assert_takes_weights_of_any_layout,
    bf16,
    cast,
    f32,
    f64,
    layouts,
    opcheck,
    run,
    weight_layouts,
)

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


def assert_compiles_with_inductor(dynamic=None):
    """Returns the last gradients."""
    torch.compiler.reset()

    def step(leaves, options):
        return functional.gaussian_readout(**leaves, **options).square().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic)
    for batch in (3, 5) if dynamic else (3,):
        operands, options = cases.make(cases.Case("plain", B=batch), f32, f32, f32)
        leaves = {k: v.requires_grad_() for k, v in operands.items()}
        got = torch.autograd.grad(compiled(leaves, options), list(leaves.values()))
        want = torch.autograd.grad(step(leaves, options), list(leaves.values()))
        torch.testing.assert_close(got, want)
    return got


def check_opcheck(case, dtypes):
    operands, options = cases.make(case, *dtypes)
    rest = [options.get("noise"), options.get("seed"), None, 0, case.share_noise, True]
    leaves = [v.requires_grad_() for v in operands.values()]
    opcheck(torch.ops.v1fast.gaussian_readout, (*leaves, *rest))
    grad_output = torch.randn(case.B, case.N, dtype=torch.promote_types(*dtypes[:2]))
    backward = torch.ops.v1fast.gaussian_readout_backward
    detached = [v.detach() for v in leaves]
    for mask in ([True] * 6, [False, True, False, True, False, False]):
        opcheck(backward, (grad_output, *detached, *rest, mask), traced=all(mask))
    for name, weight in weight_layouts(detached[3]) if dtypes[0] == f32 and case is cases.PLAIN else ():
        given = (grad_output, *detached[:3], weight, *detached[4:], *rest, [True] * 6)
        opcheck(backward, given, traced=name == AS_LAYERS_KEEP_WEIGHTS)


def check_autocast_casts_nothing():
    operands, options = cases.make(cases.PLAIN, f32, f32, f32)
    want = functional.gaussian_readout(**operands, **options)
    with torch.autocast(want.device.type, dtype=bf16):
        assert functional.gaussian_readout(**operands, **options).equal(want)


def check_layouts_of_features(layout, dtypes):
    operands, options = cases.make(cases.PLAIN, *dtypes)
    grad_output = torch.randn(cases.PLAIN.B, cases.PLAIN.N)
    want, want_grads = run(functional.gaussian_readout, operands, options, grad_output)
    name, features = list(layouts(operands["features"]))[layout]
    assert features.equal(operands["features"]), name
    got, grads = run(functional.gaussian_readout, operands | {"features": features}, options, grad_output)
    torch.testing.assert_close(got, want, rtol=0, atol=0, msg=name)
    torch.testing.assert_close(grads, want_grads, rtol=0, atol=0)
    assert grads["features"].stride() == torch.empty_like(features).stride(), name


def check_expanded_operands():
    """One image for a whole batch, one weight for all neurons, one gradient for all outputs."""
    case = cases.PLAIN
    operands, options = cases.make(case, f32, f32, f32)
    for name, axis in (("features", 0), ("weight", 0), ("mu", 0), ("sigma", 0), ("bias", 0), ("shift", 0)):
        value = operands[name]
        operands[name] = value[:1].expand_as(value)
        dense = operands | {name: operands[name].contiguous()}
        got = run(functional.gaussian_readout, operands, options, torch.ones(()).expand(case.B, case.N))
        want = run(functional.gaussian_readout, dense, options, torch.ones(case.B, case.N))
        torch.testing.assert_close(got, want, rtol=0, atol=0, msg=f"{name}, axis {axis}")


def check_weights_of_any_layout(case, dtypes):
    operands, options = cases.make(case, *dtypes)
    grad_output = torch.randn(case.B, case.N)
    assert_takes_weights_of_any_layout(functional.gaussian_readout, operands, options, grad_output)


def check_low_precision_positions_are_read_as_they_are():
    """A bfloat16 mu (a module cast as a whole) is raised, and its gradient comes back in its dtype."""
    operands, options = cases.make(cases.PLAIN, bf16, bf16, bf16)
    raised = {k: v if k in ("features", "weight") else v.float() for k, v in operands.items()}
    grad_output = torch.randn(cases.PLAIN.B, cases.PLAIN.N, dtype=bf16)
    got, grads = run(functional.gaussian_readout, operands, options, grad_output)
    want, want_grads = run(functional.gaussian_readout, raised, options, grad_output)
    assert got.equal(want)
    for name in NAMES:
        assert grads[name].dtype == bf16
        assert grads[name].equal(want_grads[name].to(bf16)), name


def check_a_nan_position_gives_nan_and_touches_no_feature():
    features = torch.randn(1, 20, 5, 9)
    mu = torch.tensor([[float("nan"), 0.0], [0.2, 0.1]]).requires_grad_()
    features.requires_grad_()
    out = functional.gaussian_readout(features, mu, None, torch.ones(2, 20))
    assert out[0, 0].isnan()
    assert out[0, 1].isfinite()
    (d_features,) = torch.autograd.grad(out.sum(), features)
    assert d_features.isfinite().all()
    assert d_features.sum().item() == pytest.approx(20.0)


def check_a_nan_outside_the_cell_does_not_reach_it():
    """Corners outside the map are not read at all, and no other pixel of the map matters."""
    features = torch.full((1, 20, 4, 4), float("nan"))
    features[..., 3, 3] = 1.0
    mu = torch.tensor([[1.0, 1.0]])
    shift = torch.tensor([[0.2, 0.2]])  # beyond the last pixel: three corners are outside
    out = functional.gaussian_readout(features, mu, None, torch.ones(1, 20), torch.zeros(1), shift)
    assert out.item() == pytest.approx(20 * 0.7 * 0.7, rel=1e-5)


def check_clamped_coordinates_get_no_gradient_and_shift_still_does():
    mu = torch.tensor([[1.5, 0.1], [1.0, -1.0]], dtype=f64, requires_grad=True)
    shift = torch.tensor([[-0.1, 0.05]], dtype=f64, requires_grad=True)
    features = torch.randn(1, 3, 7, 7, dtype=f64)
    out = functional.gaussian_readout(features, mu, None, torch.ones(2, 3, dtype=f64), shift=shift)
    d_mu, d_shift = torch.autograd.grad(out.sum(), (mu, shift))
    assert d_mu[0, 0] == 0
    assert (d_mu[0, 1] != 0) & (d_mu[1] != 0).all()  # inclusive at the bounds, as torch.clamp
    assert (d_shift != 0).all()


def check_sigma_gets_zeros_in_evaluation():
    operands, options = cases.make(cases.Case("mean positions", noise=None), f32, f32, f32)
    _, grads = run(functional.gaussian_readout, operands, options, torch.ones(3, 11))
    assert grads["sigma"].equal(torch.zeros(11, 2, 2))


def check_noise_does_not_depend_on_the_split_of_batch_or_neurons():
    case = cases.Case("split", B=7, N=150, image_offset=2)
    operands, options = cases.make(case, f32, f32, f32)
    whole = functional.gaussian_readout(**operands, **options)
    images = []
    for first, last in ((0, 3), (3, 4), (4, 7)):
        part = operands | {k: operands[k][first:last] for k in ("features", "shift")}
        images.append(functional.gaussian_readout(**part, **options | {"image_offset": 2 + first}))
    assert_same(torch.cat(images), whole)
    index = torch.randperm(150)[:37]
    part = operands | {k: operands[k][index] for k in ("mu", "sigma", "weight", "bias")}
    assert_same(functional.gaussian_readout(**part, **options, neuron_index=index), whole[:, index])


def check_int_seeds_and_tensor_seeds_are_the_same():
    operands, options = cases.make(cases.PLAIN, f32, f32, f32)
    a = functional.gaussian_readout(**operands, **options | {"seed": 7})
    b = functional.gaussian_readout(**operands, **options | {"seed": torch.tensor([7])})
    c = functional.gaussian_readout(**operands, **options | {"seed": 7 + 2**32})
    assert a.equal(b)
    assert not a.equal(c)


def check_vmap_over_an_ensemble_and_its_gradient():
    operands, _ = cases.make(cases.Case("ensemble", B=2, H=4, W=5, N=3), f32, f32, f32)
    members = {k: torch.stack([v, v.flip(0), 2 * v]) for k, v in operands.items() if k != "features"}
    members = {k: v.requires_grad_() for k, v in members.items()}
    features = operands["features"].requires_grad_()
    seeds = torch.tensor([[1], [2], [3]])

    def model(parameters, seed):
        return functional.gaussian_readout(features, **parameters, seed=seed)

    got = torch.vmap(model)(members, seeds)
    want = torch.stack([model({k: v[i] for k, v in members.items()}, seeds[i]) for i in range(3)])
    assert got.equal(want)
    leaves = [features, *members.values()]
    got_grads = torch.autograd.grad(got.square().sum(), leaves, retain_graph=True)
    torch.testing.assert_close(got_grads, torch.autograd.grad(want.square().sum(), leaves))
