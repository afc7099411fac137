"""The ops that read features at given positions: for each the tests of ``point_ops.PointOp``, and its own."""

import dataclasses

import cases
import point_ops
import pytest
import torch
from op_checks import (
    AS_LAYERS_KEEP_WEIGHTS,
    WEIGHT_CASES,
    WEIGHT_DTYPES,
    assert_takes_weights_of_any_layout,
    bf16,
    cast,
    f32,
    f64,
    label,
    opcheck,
    weight_layouts,
)

from v1fast import _eager as eager
from v1fast import contracts, ops
from v1fast.reference import point_gather, pooled_readout


class OneLevel(point_ops.PointOp):
    """The op v1fast::pooled_readout and its backward, of the features alone."""

    overload = torch.ops.v1fast.pooled_readout.default
    backward_overload = torch.ops.v1fast.pooled_readout_backward.default
    pooling = {"pool_kernel": 1, "pool_steps": 0}  # noqa: RUF012
    names = ("features", "grid", "weight", "bias", "shift")
    bad = {  # noqa: RUF012
        "weight: want [N, C] = (11, 20), got (11, 19)": ("weight", lambda t: t[:, 1:]),
        "weight: want [N, C] = (11, 20), got (20, 11)": ("weight", lambda t: t.t()),
        "bias: want [N] = (11,), got (10,)": ("bias", lambda t: t[1:]),
    }

    @property
    def native(self):
        return torch._C._dispatch_has_kernel_for_dispatch_key(self.overload.name(), "CPU")

    @property
    def reference(self):
        return tuple(self.pooled(f) for f in (pooled_readout.pooled_readout, pooled_readout.pooled_readout_backward))

    @property
    def op(self):
        return self.pooled(self.overload)

    @property
    def backward(self):
        return self.pooled(self.backward_overload)

    def pooled(self, function):
        """Return ``function`` of the operands that all ops of points have, with the poolings filled in."""

        def call(*arguments, **options):
            if options:
                named = zip(self.names[: len(arguments)], arguments, strict=True)
                options = {**options, **dict(named)}  # the compiler of torch 2.5 knows no union of dicts
                return function(**options, pooled=self.poolings(**options), **self.pooling)
            mask = [arguments[-1]] if isinstance(arguments[-1], list) else []
            *operands, align_corners = arguments[: len(arguments) - len(mask)]
            poolings = self.poolings(*operands[-5:])
            return function(*operands, poolings, align_corners, *self.pooling.values(), *mask)

        return call

    def poolings(self, *operands, **options):
        return None

    def check(self, **arguments):
        contracts.pooled_readout.check(**arguments, pooled=None, **self.pooling)

    def eager(self, *operands, **options):
        return eager.pooled_readout(*operands, **options, **self.pooling)

    @staticmethod
    def output_dtype(operands):
        return torch.promote_types(operands["features"].dtype, operands["weight"].dtype)

    @pytest.mark.parametrize("case", WEIGHT_CASES, ids=label)
    @pytest.mark.parametrize("dtypes", WEIGHT_DTYPES, ids=label)
    def test_weights_of_any_layout(self, case, dtypes):
        operands, options = self.make(case, *dtypes)
        assert_takes_weights_of_any_layout(self.op, operands, options, self.grad_output(operands))

    def check_op(self, dtypes):
        """Return the arguments of the backward pass but for its mask."""
        operands, _ = self.make(cases.PLAIN, *dtypes)
        options = (self.poolings(*operands.values()), True, *self.pooling.values())
        opcheck(self.overload, (*(v.requires_grad_() for v in operands.values()), *options))
        arguments = (self.grad_output(operands).detach(), *(v.detach() for v in operands.values()), *options)
        for mask in ([True] * 5, [False, True, False, True, False]):
            opcheck(self.backward_overload, (*arguments, mask), traced=all(mask))
        return arguments

    @pytest.mark.parametrize("dtypes", [(f32, f32, f32), (bf16, f32, f32)], ids=label)
    def test_opcheck(self, dtypes):
        grad_output, features, grid, weight, *rest = self.check_op(dtypes)
        for name, other in weight_layouts(weight) if dtypes[0] == f32 else ():
            given = (grad_output, features, grid, other, *rest, [True] * 5)
            opcheck(self.backward_overload, given, traced=name == AS_LAYERS_KEEP_WEIGHTS)

    def test_more_channels_than_a_block_of_weights_holds(self):
        """One running sum of so many is less exact than torch's, but right."""
        case = cases.Case("wide", B=2, C=70_000, H=2, W=3, N=3, shift=False)
        operands, options = self.make(case, f32, f32, f32)
        exact = self.eager(**cast(operands, f64), **options)
        torch.testing.assert_close(self.op(**operands, **options).double(), exact, rtol=0, atol=1e-5 * case.C**0.5)


class TwoLevels(OneLevel):
    """The same of features that are twice as large, and their pooling."""

    pooling = {"pool_kernel": 2, "pool_steps": 1}  # noqa: RUF012

    def make(self, case, *dtypes):
        operands, options = super().make(dataclasses.replace(case, H=2 * case.H, W=2 * case.W), *dtypes)
        weight = operands["weight"]
        return operands | {"weight": torch.cat([weight, weight.flip(0)], dim=1)}, options

    def poolings(self, features, grid, weight, bias=None, shift=None, align_corners=True):
        wide = pooled_readout.compute_dtype(features, grid, weight, bias, shift) == f64
        return ops.pooled_readout.pooled_levels(features.detach(), *self.pooling.values(), wide)

    test_rejects_bad_operands = None  # in test_pooled_readout.py: the public function and the op refuse the same
    test_a_nan_outside_the_cell_does_not_reach_it = None  # pooling averages it into the cell
    test_more_channels_than_a_block_of_weights_holds = None  # tested with one level

    def test_refuses_other_poolings(self):
        if not self.native:
            pytest.skip("the reference reads none")
        operands, _ = self.make(cases.PLAIN, f32, f32, f32)
        poolings = self.poolings(**operands)
        for other in (poolings[1:], poolings.double(), poolings.repeat_interleave(2)[::2]):
            with pytest.raises((RuntimeError, ValueError)):
                self.overload(*operands.values(), other, True, *self.pooling.values())

    def test_the_op_itself_refuses_to_pool_to_nothing(self):
        operands, _ = self.make(cases.PLAIN, f32, f32, f32)
        weight = operands["weight"].repeat(1, 4)
        with pytest.raises((RuntimeError, ValueError)):
            self.overload(*(operands | {"weight": weight}).values(), None, True, 2, 7)


class PointGather(point_ops.PointOp):
    """The op v1fast::point_gather and its backward."""

    op, backward = torch.ops.v1fast.point_gather.default, torch.ops.v1fast.point_gather_backward.default
    reference = (point_gather.point_gather, point_gather.point_gather_backward)
    check = staticmethod(contracts.point_gather.check)
    names = ("features", "grid", "shift")
    bad = {}  # noqa: RUF012

    @staticmethod
    def eager(features, *operands, **more):
        return eager.gather_levels([features], *operands, **more)

    @staticmethod
    def output_dtype(operands):
        return operands["features"].dtype
