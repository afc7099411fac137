"""The op v1fast::point_readout and its backward."""

import cases
import point_ops
import torch

from v1fast import _eager as eager
from v1fast import ops
from v1fast.reference import point_readout as reference


class TestPointReadout(point_ops.PointOp):
    op, backward = torch.ops.v1fast.point_readout.default, torch.ops.v1fast.point_readout_backward.default
    reference = (reference.point_readout, reference.point_readout_backward)
    check = staticmethod(ops.point_readout.check)
    names = ("features", "grid", "weight", "bias", "shift")
    bad = {  # noqa: RUF012
        "weight: want [N, C] = (11, 20), got (11, 19)": ("weight", lambda t: t[:, 1:]),
        "weight: want [N, C] = (11, 20), got (20, 11)": ("weight", lambda t: t.t()),
        "bias: want [N] = (11,), got (10,)": ("bias", lambda t: t[1:]),
    }

    @staticmethod
    def eager(features, *operands, **more):
        return eager.levels_readout([features], *operands, **more)

    @staticmethod
    def output_dtype(operands):
        return torch.promote_types(operands["features"].dtype, operands["weight"].dtype)

    def test_more_channels_than_a_block_of_weights_holds(self):
        """One running sum of so many is less exact than torch's, and right all the same."""
        case = cases.Case("wide", B=2, C=70_000, H=2, W=3, N=3, shift=False)
        operands, options = self.make(case, *[torch.float32] * 3)
        exact = self.eager(**{k: v if v is None else v.double() for k, v in operands.items()}, **options)
        torch.testing.assert_close(self.op(**operands, **options).double(), exact, rtol=0, atol=1e-5 * case.C**0.5)
