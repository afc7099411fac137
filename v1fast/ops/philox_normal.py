"""The op ``v1fast::philox_normal``: the position noise that the readout kernels draw, as a tensor."""

from v1fast.contracts import philox_normal as contract
from v1fast.ops._define import define
from v1fast.reference import philox as reference

philox_normal = define(
    "philox_normal(Tensor seed, SymInt images, SymInt neurons, Tensor? neuron_index, SymInt image_offset) -> Tensor",
    check=contract.check,
    reference=reference.philox_normal,
    fake=contract.new_output,
)
