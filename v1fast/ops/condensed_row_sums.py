"""The op ``v1fast::condensed_row_sums``."""

from v1fast.contracts import condensed_row_sums as contract
from v1fast.ops._define import define
from v1fast.reference import condensed_row_sums as reference

condensed_row_sums = define(
    "condensed_row_sums(Tensor x, SymInt stimuli) -> Tensor",
    check=contract.check,
    reference=reference.condensed_row_sums,
    fake=contract.new_output,
)
