"""The op v1fast::point_gather and its backward."""

import point_ops
import torch

from v1fast import _eager as eager
from v1fast import contracts
from v1fast.reference import point_gather as reference


class TestPointGather(point_ops.PointOp):
    op, backward = torch.ops.v1fast.point_gather.default, torch.ops.v1fast.point_gather_backward.default
    reference = (reference.point_gather, reference.point_gather_backward)
    check = staticmethod(contracts.point_gather.check)
    names = ("features", "grid", "shift")
    bad = {}  # noqa: RUF012

    @staticmethod
    def eager(features, *operands, **more):
        return eager.gather_levels([features], *operands, **more)

    @staticmethod
    def output_dtype(operands):
        return operands["features"].dtype
