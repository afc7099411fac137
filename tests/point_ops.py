"""What holds for the ops that read features at given positions; ``every_point_op.py`` has the ops.

Results are held against an expression of torch's own ops in float64 (v1fast/_eager.py), which shares nothing with the
library: with V1FAST_KERNELS= the same tests hold the reference to the same standard.
"""

import itertools

import cases
import pytest
import torch
from op_checks import DTYPES, assert_as_accurate_as_eager, bf16, cast, f32, f64, label, layouts, opcheck, run

from v1fast.reference._common import compute_dtype

TABLE = [(case, (f32, f32, f32)) for case in cases.POINTS] + [
    (case, dtypes)
    for case, dtypes in itertools.product(
        [c for c in cases.POINTS if c.why in ("plain", "positions per image", "one channel", "no neuron")],
        [d for d in DTYPES if d != (f32, f32, f32)],
    )
]
SMALL = cases.Case("small", B=2, C=2, H=3, W=4, N=3)
SMALLS = (
    SMALL,
    cases.Case("small positions per image", B=2, C=2, H=3, W=3, N=3, per_image=True),
    cases.Case("small pixel edges", B=2, C=2, H=3, W=3, N=3, align_corners=False, spread=1.3),
)
NAN, INF = float("nan"), float("inf")


class PointOp:
    """An op, its backward and their oracle; tests of what both ops promise.

    Subclasses define ``op``, ``backward``, ``reference`` (the module's two functions), ``check``, ``eager`` and
    ``names``, those of the operands that have a gradient.
    """

    @property
    def native(self):
        """Whether a compiled kernel runs the op on the CPU."""
        return torch._C._dispatch_has_kernel_for_dispatch_key(self.op.name(), "CPU")

    def make(self, case, *dtypes):
        operands, options = cases.make_points(case, *dtypes)
        return {name: operands[name] for name in self.names}, options

    def grad_output(self, operands, dtype=None):
        """Random numbers in the shape of the output, and in its dtype."""
        like = self.op(**{k: None if v is None else v.to("meta") for k, v in operands.items()}, align_corners=True)
        return torch.randn(like.shape).to(like.dtype if dtype is None else dtype)

    def eager_run(self, operands, options, grad_output):
        return lambda dtype: run(self.eager, cast(operands, dtype), options, grad_output.to(dtype))

    def assert_matches_eager(self, case, *dtypes):
        operands, options = self.make(case, *dtypes)
        grad_output = self.grad_output(operands)
        results = run(self.op, operands, options, grad_output)
        assert_as_accurate_as_eager(results, operands, self.eager_run(operands, options, grad_output))
        return operands, results[0]

    # Results -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(("case", "dtypes"), TABLE, ids=label)
    def test_matches_eager(self, case, dtypes):
        operands, out = self.assert_matches_eager(case, *dtypes)
        assert out.dtype == self.output_dtype(operands)

    @pytest.mark.parametrize("dtypes", DTYPES, ids=label)
    def test_matches_reference(self, dtypes):
        """The kernel and the reference agree to rounding on the same call, backward too."""
        operands, _ = self.make(cases.PLAIN, *dtypes)
        arguments = [*operands.values(), True]
        grad_output, mask = self.grad_output(operands), [True] * len(self.names)
        got = [self.op(*arguments), *self.backward(grad_output, *arguments, mask)]
        want = [self.reference[0](*arguments), *self.reference[1](grad_output, *arguments, mask)]
        for name, a, b in zip(("out", *self.names), got, want, strict=True):
            assert a.dtype == b.dtype, name
            rounding = torch.finfo(a.dtype).eps + 30 * torch.finfo(compute_dtype(*operands.values())).eps
            assert (a - b).abs().max() <= rounding * b.abs().max(), name

    @pytest.mark.parametrize("layout", range(6))
    @pytest.mark.parametrize("dtypes", [(f32, f32, f32), (bf16, f32, f32)], ids=label)
    def test_layouts_of_features(self, layout, dtypes):
        operands, options = self.make(cases.PLAIN, *dtypes)
        grad_output = self.grad_output(operands)
        want, want_grads = run(self.op, operands, options, grad_output)
        name, features = list(layouts(operands["features"]))[layout]
        assert features.equal(operands["features"]), name
        got, grads = run(self.op, operands | {"features": features}, options, grad_output)
        torch.testing.assert_close(got, want, rtol=0, atol=0, msg=name)
        torch.testing.assert_close(grads, want_grads, rtol=0, atol=0)
        assert grads["features"].stride() == torch.empty_like(features).stride(), name
        assert got.is_contiguous()
        assert all(grads[k].is_contiguous() for k in self.names[1:])

    def test_expanded_operands(self):
        """One image for a whole batch, one weight for all neurons, one gradient for all outputs."""
        operands, options = self.make(cases.PLAIN, f32, f32, f32)
        shape = self.grad_output(operands).shape
        for name in self.names:
            changed = operands | {name: operands[name][:1].expand_as(operands[name])}
            dense = changed | {name: changed[name].contiguous()}
            got = run(self.op, changed, options, torch.ones(()).expand(shape))
            want = run(self.op, dense, options, torch.ones(shape))
            torch.testing.assert_close(got, want, rtol=0, atol=0, msg=name)

    @pytest.mark.parametrize("per_image", [False, True])
    def test_operands_of_any_strides(self, per_image):
        operands, options = self.make(cases.Case("strides", per_image=per_image), f32, f32, f32)
        grad_output = self.grad_output(operands)
        want = run(self.op, operands, options, grad_output)
        for name in self.names[1:]:
            value = operands[name]
            for other in (value.mT.contiguous().mT if value.dim() > 1 else value, *thinned(value)):
                assert other.equal(value)
                got = run(self.op, operands | {name: other}, options, grad_output)
                torch.testing.assert_close(got, want, rtol=0, atol=0, msg=name)
        got = run(self.op, operands, options, grad_output.mT.contiguous().mT)
        torch.testing.assert_close(got, want, rtol=0, atol=0)

    def test_low_precision_positions_are_read_as_they_are(self):
        """A bfloat16 grid (a module cast as a whole) is raised, and its gradient comes back in its dtype."""
        operands, options = self.make(cases.PLAIN, bf16, bf16, bf16)
        raised = {k: v if k in ("features", "weight") else v.float() for k, v in operands.items()}
        grad_output = self.grad_output(operands)
        got, grads = run(self.op, operands, options, grad_output)
        want, want_grads = run(self.op, raised, options, grad_output)
        assert got.equal(want)
        for name in self.names:
            assert grads[name].dtype == bf16
            assert grads[name].equal(want_grads[name].to(bf16)), name

    def test_positions_per_image_are_those_of_each_neuron(self):
        operands, options = self.make(cases.PLAIN, f32, f32, f32)
        grad_output = self.grad_output(operands)
        want, want_grads = run(self.op, operands, options, grad_output)
        spread = operands | {"grid": operands["grid"].expand(cases.PLAIN.B, -1, -1)}
        got, grads = run(self.op, spread, options, grad_output)
        assert got.equal(want)
        assert grads["grid"].shape == spread["grid"].shape
        torch.testing.assert_close(grads["grid"].sum(0), want_grads["grid"])
        torch.testing.assert_close(grads | {"grid": 0}, want_grads | {"grid": 0}, rtol=0, atol=0)

    def test_shift_is_added_to_every_position(self):
        operands, options = self.make(cases.PLAIN)
        moved = operands | {"grid": operands["grid"] + operands["shift"][:, None], "shift": None}
        got, want = self.op(**operands, **options), self.op(**moved, **options)
        torch.testing.assert_close(got, want, rtol=0, atol=0)

    # Conventions -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("align_corners", [True, False])
    @pytest.mark.parametrize("through_shift", [True, False])
    def test_conventions_of_torch_at_special_positions(self, align_corners, through_shift):
        """At exactly +-1, on pixels, outside, at infinity and NaN: value and every gradient as torch's, NaN for NaN."""
        values = (-INF, -1e30, -1.5, -1.25, -1.0, -0.5, 0.0, 0.5, 1.0, 1.25, 3e9, INF, *cases.TORCH_NAN)
        p = torch.tensor(list(itertools.product(values, values)), dtype=f64)
        one = cases.Case("one image", B=1, H=5, W=9, N=len(p))
        operands, _ = self.make(one)
        zero = torch.zeros(1, 2, dtype=f64)
        if through_shift:  # one position for each image
            operands |= {"features": operands["features"].expand(len(p), -1, -1, -1).contiguous()}
            operands |= {name: operands[name][:1] for name in self.names if name in ("weight", "bias")}
            operands |= {"grid": zero, "shift": p}
        else:
            operands |= {"grid": p, "shift": zero}
        options = {"align_corners": align_corners}
        grad_output = self.grad_output(operands)
        got, grads = run(self.op, operands, options, grad_output)
        want, want_grads = self.eager_run(operands, options, grad_output)(f64)
        close = {"equal_nan": True, "rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(got, want, **close)
        # The gradient of an operand that all positions share is a sum, and NaN if one term is.
        for name in set(grads) - {"bias", "grid" if through_shift else "shift"}:
            torch.testing.assert_close(grads[name], want_grads[name], **close, msg=name)

    def test_a_nan_position_gives_nan_and_touches_no_feature(self):
        operands, options = self.make(cases.Case("nan", N=2, shift=False), f32, f32, f32)
        operands["grid"] = torch.tensor([[NAN, 0.0], [0.2, 0.1]])
        out, grads = run(self.op, operands, options, self.grad_output(operands))
        assert out[:, 0].isnan().all()
        assert out[:, 1].isfinite().all()
        assert grads["features"].isfinite().all()
        assert grads["grid"][1].isfinite().all()

    def test_a_nan_outside_the_cell_does_not_reach_it(self):
        """Corners outside the map are not read at all, and no other pixel of the map matters."""
        operands, options = self.make(cases.Case("corner", B=1, C=40, H=4, W=4, N=1), f32, f32, f32)
        features = torch.full((1, 40, 4, 4), NAN)
        features[..., 3, 3] = 1.0
        beyond = {"grid": torch.ones(1, 2), "shift": torch.full((1, 2), 0.2)}  # three corners are outside
        got, grads = run(self.op, operands | beyond | {"features": features}, options, self.grad_output(operands))
        ones = operands | beyond | {"features": torch.ones(1, 40, 4, 4)}
        torch.testing.assert_close(got, self.op(**ones, **options))
        assert all(g is None or g.isfinite().all() for g in grads.values())

    # Determinism -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("images", [1, 9])  # one: its neurons are split
    @pytest.mark.parametrize("dtype", [f32, bf16], ids=str)
    def test_threads_and_runs_give_the_same_bits(self, dtype, images):
        operands, options = self.make(cases.Case("threads", B=images, C=24, H=12, W=15, N=700), dtype, dtype, f32)
        grad_output = self.grad_output(operands)
        threads = torch.get_num_threads()
        results = []
        try:
            for count in (1, 2, 3, 2):
                torch.set_num_threads(count)
                results.append(run(self.op, operands, options, grad_output))
        finally:
            torch.set_num_threads(threads)
        if not self.native:  # the reference's sums are torch's own
            results = results[1::2]
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=0, atol=0)

    # Derivatives -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("per_image", [False, True])
    def test_output_mask_computes_what_is_asked_for(self, per_image):
        operands, _ = self.make(cases.Case("masks", per_image=per_image), f32, bf16, f32)
        arguments = [self.grad_output(operands), *operands.values(), True]
        everything = self.backward(*arguments, [True] * len(self.names))
        for mask in itertools.product([False, True], repeat=len(self.names)):
            gradients = self.backward(*arguments, list(mask))
            for name, wanted, gradient, whole in zip(self.names, mask, gradients, everything, strict=True):
                assert gradient.equal(whole) if wanted else tuple(gradient.shape) == (0,), (name, mask)

    def test_absent_operands_get_no_gradient(self):
        operands, _ = self.make(cases.Case("absent", bias=False, shift=False), f32, f32, f32)
        gradients = self.backward(self.grad_output(operands), *operands.values(), True, [True] * len(self.names))
        for name, gradient in zip(self.names, gradients, strict=True):
            want = (0,) if operands[name] is None else tuple(operands[name].shape)
            assert tuple(gradient.shape) == want, name

    @pytest.mark.parametrize("case", SMALLS, ids=str)
    def test_gradcheck_and_gradgradcheck(self, case):
        operands, options = self.make(case)
        leaves = [v.requires_grad_() for v in operands.values()]

        def function(*values):
            return self.op(*values, **options)

        assert torch.autograd.gradcheck(function, leaves, eps=1e-7, atol=1e-6)
        assert torch.autograd.gradgradcheck(function, leaves, eps=1e-7, atol=1e-5, fast_mode=True)

    @pytest.mark.parametrize("case", SMALLS, ids=str)
    def test_reference_backward_is_the_derivative_of_reference_forward(self, case):
        operands, _ = self.make(case)
        leaves = [v.requires_grad_() for v in operands.values()]
        out = self.reference[0](*leaves, case.align_corners)
        grad_output = torch.randn_like(out)
        want = torch.autograd.grad(out, leaves, grad_output)
        got = self.reference[1](grad_output, *leaves, case.align_corners, [True] * len(leaves))
        for name, a, b in zip(self.names, got, want, strict=True):
            torch.testing.assert_close(a.detach(), b, msg=name)

    def test_third_derivatives_are_right(self):
        operands, _ = self.make(SMALL)
        leaves = {k: v.requires_grad_() for k, v in operands.items()}

        def third(function):
            out = function(*leaves.values(), True).square().sum()
            (first,) = torch.autograd.grad(out, leaves["grid"], create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), leaves["features"], create_graph=True)
            return torch.autograd.grad(second.square().sum(), list(leaves.values()), allow_unused=True)

        for name, a, b in zip(self.names, third(self.op), third(self.reference[0]), strict=True):
            torch.testing.assert_close(a, b, msg=name)

    @pytest.mark.parametrize(
        "case",
        [cases.PLAIN, cases.Case("per image", per_image=True, bias=False, shift=False), cases.Case("none", N=0)],
        ids=str,
    )
    @pytest.mark.parametrize("dtypes", [(f32, f32, f32), (bf16, f32, f32)], ids=label)
    def test_opcheck(self, case, dtypes):
        operands, _ = self.make(case, *dtypes)
        leaves = [None if v is None else v.requires_grad_() for v in operands.values()]
        opcheck(self.op, (*leaves, True))
        grad_output = self.grad_output(operands).detach()
        rest = [None if v is None else v.detach() for v in leaves[1:]]
        for memory_format in (torch.contiguous_format, torch.channels_last):
            features = leaves[0].detach().contiguous(memory_format=memory_format)
            for mask in ([True] * len(leaves), [i % 2 == 1 for i in range(len(leaves))]):
                opcheck(self.backward, (grad_output, features, *rest, True, mask), traced=all(mask))

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_compiles_fullgraph(self, dynamic):
        torch.compiler.reset()

        @torch.compile(backend="aot_eager", fullgraph=True, dynamic=dynamic)
        def compiled(arguments):
            return self.op(**arguments).square().sum()

        for batch in (3, 5, 7) if dynamic else (3,):
            operands, options = self.make(cases.Case("compiled", B=batch), f32, f32, f32)
            leaves = {k: v.requires_grad_() for k, v in operands.items()}
            got = torch.autograd.grad(compiled(leaves | options), list(leaves.values()))
            want = torch.autograd.grad(self.op(**leaves, **options).square().sum(), list(leaves.values()))
            torch.testing.assert_close(got, want)

    # Function transforms -----------------------------------------------------------------------------------------

    def test_vmap_over_an_ensemble_and_its_gradient(self):
        operands, options = self.make(SMALL, f32, f32, f32)
        features = operands.pop("features").requires_grad_()
        members = {k: torch.stack([v, v.flip(0), 2 * v]).requires_grad_() for k, v in operands.items()}

        def model(parameters):
            return self.op(features, **parameters, **options)

        got = torch.vmap(model)(members)
        want = torch.stack([model({k: v[i] for k, v in members.items()}) for i in range(3)])
        assert got.equal(want)
        leaves = [features, *members.values()]
        got_grads = torch.autograd.grad(got.square().sum(), leaves, retain_graph=True)
        torch.testing.assert_close(got_grads, torch.autograd.grad(want.square().sum(), leaves))

    def test_function_transforms_are_right(self):
        operands, options = self.make(SMALL)

        def mine(grid, shift):
            return self.op(**operands | {"grid": grid, "shift": shift}, **options)

        def theirs(grid, shift):
            return self.eager(**operands | {"grid": grid, "shift": shift}, **options)

        point = (operands["grid"], operands["shift"])
        points = torch.stack([point[0], 0.5 * point[0]])
        # Of grid_sample torch has no forward derivative, and some releases no reverse one under vmap: the oracle
        # goes row by row.
        jacobians = torch.func.jacrev(theirs, argnums=(0, 1), chunk_size=1)(*point)
        for transform in (torch.func.jacrev, torch.func.jacfwd):
            torch.testing.assert_close(transform(mine, argnums=(0, 1))(*point), jacobians)

        def gradient(f):
            return torch.func.grad(lambda *p: f(*p).square().sum(), argnums=(0, 1))

        torch.testing.assert_close(gradient(mine)(*point), gradient(theirs)(*point))
        got = torch.func.vmap(lambda grid: gradient(mine)(grid, point[1])[0])(points)
        want = torch.stack([gradient(theirs)(grid, point[1])[0] for grid in points])
        torch.testing.assert_close(got, want)
        tangent = (torch.randn_like(point[0]), torch.randn_like(point[1]))
        _, got = torch.func.jvp(mine, point, tangent)
        want = sum((j * t).flatten(-2).sum(-1) for j, t in zip(jacobians, tangent, strict=True))
        torch.testing.assert_close(got, want)
        hessian = torch.func.hessian(lambda grid: mine(grid, point[1]).square().sum())(point[0])
        autograd = torch.autograd.functional.hessian(lambda grid: mine(grid, point[1]).square().sum(), point[0])
        torch.testing.assert_close(hessian, autograd)

    def test_forward_mode_duals_are_right(self):
        operands, options = self.make(SMALL)
        tangent = torch.randn_like(operands["features"])
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(operands["features"], tangent)
            out = self.op(**operands | {"features": dual}, **options)
            got = torch.autograd.forward_ad.unpack_dual(out).tangent
        linear = {k: None if k == "bias" else v for k, v in operands.items()} | {"features": tangent}
        torch.testing.assert_close(got, self.op(**linear, **options))

    def test_autocast_casts_nothing(self):
        operands, options = self.make(cases.PLAIN, f32, f32, f32)
        want = self.op(**operands, **options)
        with torch.autocast(want.device.type, dtype=bf16):
            assert self.op(**operands, **options).equal(want)

    # Bad input ---------------------------------------------------------------------------------------------------

    def test_rejects_bad_operands(self):
        operands, options = self.make(cases.PLAIN, f32, f32, f32)
        for message, (name, change) in (BAD_POINTS | self.bad).items():
            changed = operands | {name: change(operands[name])}
            with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the whole message is compared
                self.check(**changed, **options)
            assert str(caught.value) == message
            with pytest.raises(ValueError, match="want"):
                self.op(**{k: v.to("meta") for k, v in changed.items()}, **options)

    def test_the_op_itself_refuses_to_read_outside_a_tensor(self):
        if not self.native:
            pytest.skip("the compiled kernels are not loaded")
        operands, options = self.make(cases.PLAIN, f32, f32, f32)
        for name in self.names[1:]:
            with pytest.raises(RuntimeError):
                self.op(**operands | {name: operands[name][..., :-1]}, **options)


def thinned(value):
    """Views of the same values with other values between them, along each axis."""
    for axis in range(value.dim()):
        wide = torch.repeat_interleave(value, 3, axis)
        yield wide[(slice(None),) * axis + (slice(None, None, 3),)]


BAD_POINTS = {
    "features: want [B, C, H, W], got (3, 20, 6)": ("features", lambda t: t[..., 0]),
    "features: want [B, C, H, W] with C, H, W >= 1, got (3, 20, 0, 9)": ("features", lambda t: t[:, :, :0]),
    "features: want one of float64, float32, bfloat16, float16, got int64": ("features", lambda t: t.long()),
    "grid: want [N, 2] or [B, N, 2], got (11,)": ("grid", lambda t: t[:, 0]),
    "grid: want [N, 2] = (11, 2), got (11, 1)": ("grid", lambda t: t[:, :1]),
    "grid: want [B, N, 2] = (3, 11, 2), got (2, 11, 2)": ("grid", lambda t: t.expand(2, 11, 2)),
    "grid: want [B, N, 2] = (3, 11, 2), got (1, 11, 2)": ("grid", lambda t: t[None]),
    "grid: want one of float64, float32, bfloat16, float16, got int32": ("grid", lambda t: t.int()),
    "shift: want [B, 2] = (3, 2), got (2,)": ("shift", lambda t: t[0]),
}
