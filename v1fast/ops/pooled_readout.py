"""The op ``v1fast::pooled_readout`` and its backward."""

from collections.abc import Callable
from typing import Any

from v1fast.contracts import pooled_readout as contract
from v1fast.ops._define import define, define_with_backward
from v1fast.reference import pooled_readout as reference

# For the op below. It has no derivative of its own: the readout's derivative covers the features.
pooled_levels = define(
    "pooled_levels(Tensor features, int pool_kernel, int pool_steps, bool wide) -> Tensor",
    check=contract.check_pooling,
    reference=reference.pooled_levels,
    fake=contract.new_levels,
)

pooled_readout, pooled_readout_backward = define_with_backward(
    "pooled_readout(Tensor features, Tensor grid, Tensor weight, Tensor? bias, Tensor? shift, Tensor? pooled, "
    "bool align_corners, int pool_kernel, int pool_steps) -> Tensor",
    gradients=5,
    check=contract.check,
    check_backward=contract.check_backward,
    reference=reference.pooled_readout,
    reference_backward=reference.pooled_readout_backward,
    fake=contract.new_output,
    fake_backward=contract.new_gradients,
)

STORING = {"cpu", "cuda"}
"""Types of devices where the backward pass reads stored poolings. Elsewhere it pools anew, a few images at a time."""

of_parameters: Callable[..., Any] | None = None
"""Where the fallback runs on the CPU: what reads by the parameters of a layer, see ``fallback.small_pooled``."""

of_levels: Callable[..., Any] | None = None
"""The same for levels that are made by others."""
