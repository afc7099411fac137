"""The op ``v1fast::permuted_products``."""

from v1fast.contracts import permuted_products as contract
from v1fast.ops._define import define
from v1fast.reference import permuted_products as reference

permuted_products = define(
    "permuted_products(Tensor a, Tensor b, Tensor permutations) -> Tensor",
    check=contract.check,
    reference=reference.permuted_products,
    fake=contract.new_output,
)
