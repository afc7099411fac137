"""The op ``v1fast::point_gather`` and its backward."""

from v1fast.contracts import point_gather as contract
from v1fast.ops._define import define_with_backward
from v1fast.reference import point_gather as reference

point_gather, point_gather_backward = define_with_backward(
    "point_gather(Tensor features, Tensor grid, Tensor? shift, bool align_corners) -> Tensor",
    gradients=3,
    check=contract.check,
    check_backward=contract.check_backward,
    reference=reference.point_gather,
    reference_backward=reference.point_gather_backward,
    fake=contract.new_output,
    fake_backward=contract.new_gradients,
)
