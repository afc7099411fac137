"""The op ``v1fast::gaussian_readout`` and its backward."""

from collections.abc import Callable
from typing import Any

from v1fast.contracts import gaussian_readout as contract
from v1fast.ops._define import define_with_backward
from v1fast.reference import gaussian_readout as reference

gaussian_readout, gaussian_readout_backward = define_with_backward(
    "gaussian_readout(Tensor features, Tensor mu, Tensor? sigma, Tensor weight, Tensor? bias, Tensor? shift, "
    "Tensor? noise, Tensor? seed, Tensor? neuron_index, SymInt image_offset, bool share_noise, bool align_corners)"
    " -> Tensor",
    gradients=6,
    check=contract.check,
    check_backward=contract.check_backward,
    reference=reference.gaussian_readout,
    reference_backward=reference.gaussian_readout_backward,
    fake=contract.new_output,
    fake_backward=contract.new_gradients,
)

of_parameters: Callable[..., Any] | None = None
"""Where the fallback runs on the CPU: what reads by the parameters of a layer (``v1fast.fallback.small.Readout``)."""
