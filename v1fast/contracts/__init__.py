"""What each op takes and returns, one module for each: shared by ``v1fast.ops``, the kernels and the public functions.

- ``check`` raises ValueError unless the arguments are legal. It names the operand, what was wanted and what came.
- ``new_output`` returns the output without values: shape, dtype, device and strides are right.
- ``check_backward`` and ``new_gradients`` do the same for the backward op, if there is one.

``v1fast/ops/_define.py`` says when they run.
"""

from v1fast.contracts import (
    condensed_row_sums,
    gaussian_readout,
    permuted_products,
    philox_normal,
    point_gather,
    pooled_readout,
    random_permutations,
    ranks,
    rdm,
    trial_sums,
)

__all__ = [
    "condensed_row_sums",
    "gaussian_readout",
    "permuted_products",
    "philox_normal",
    "point_gather",
    "pooled_readout",
    "random_permutations",
    "ranks",
    "rdm",
    "trial_sums",
]
