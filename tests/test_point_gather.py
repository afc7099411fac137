"""The op v1fast::point_gather and its backward."""

import every_point_op


class TestPointGather(every_point_op.PointGather):
    pass
