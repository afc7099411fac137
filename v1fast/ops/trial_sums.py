"""The ops ``v1fast::trial_sums`` and ``v1fast::trial_products``."""

from v1fast.contracts import trial_sums as contract
from v1fast.ops._define import define
from v1fast.reference import trial_sums as reference

trial_sums = define(
    "trial_sums(Tensor x, Tensor y, Tensor center, Tensor order, Tensor counts, int which) -> Tensor",
    check=contract.check,
    reference=reference.trial_sums,
    fake=contract.new_output,
)

trial_products = define(
    "trial_products(Tensor x, Tensor y, Tensor center, Tensor order, Tensor counts, Tensor factors, Tensor weights, "
    "int which) -> Tensor",
    check=contract.check_products,
    reference=reference.trial_products,
    fake=contract.new_products,
)
