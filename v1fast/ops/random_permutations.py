"""The op ``v1fast::random_permutations``."""

from v1fast.contracts import random_permutations as contract
from v1fast.ops._define import define
from v1fast.reference import random_permutations as reference

random_permutations = define(
    "random_permutations(Tensor seed, SymInt count, SymInt size) -> Tensor",
    check=contract.check,
    reference=reference.random_permutations,
    fake=contract.new_output,
)
