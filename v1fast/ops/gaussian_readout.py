"""The op ``v1fast::gaussian_readout`` and its backward."""

from collections.abc import Callable
from typing import Any

from v1fast.contracts import gaussian_readout as contract
from v1fast.ops._define import define_with_backward
from v1fast.ops._stored import OfStored
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

of_stored = OfStored(
    "gaussian_readout",
    check=contract.check,
    backward_op=gaussian_readout_backward,
    gradients=6,
    stored={1: False, 2: False, 3: True},
)
"""The op on mu (1, N, 1, 2), sigma (1, N, rows, columns) and weights (1, C, 1, N), which get the gradients."""

of_parameters: Callable[..., Any] | None = None
"""Where the fallback runs on the CPU: what reads by the parameters of a layer, see ``fallback.small_layers``."""
