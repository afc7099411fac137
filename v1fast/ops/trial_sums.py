"""The op ``v1fast::trial_sums``."""

from v1fast.contracts import trial_sums as contract
from v1fast.ops._define import define
from v1fast.reference import trial_sums as reference

trial_sums = define(
    "trial_sums(Tensor x, Tensor y, Tensor center, Tensor order, Tensor counts, int which) -> Tensor",
    check=contract.check,
    reference=reference.trial_sums,
    fake=contract.new_output,
)
