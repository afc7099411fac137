"""The ops ``v1fast::average_ranks`` and ``v1fast::rank_sums``."""

from v1fast.contracts import ranks as contract
from v1fast.ops._define import define
from v1fast.reference import ranks as reference

average_ranks = define(
    "average_ranks(Tensor x) -> Tensor",
    check=contract.check_ranks,
    reference=reference.average_ranks,
    fake=contract.new_ranks,
)
rank_sums = define(
    "rank_sums(Tensor a, Tensor b) -> Tensor",
    check=contract.check_sums,
    reference=reference.rank_sums,
    fake=contract.new_sums,
)
