"""The ops ``torch.ops.v1fast.*``, and which kernels run them.

Importing this package defines every op. Then it loads the kernels of this installation. ``loaded`` holds the result.
"""

from v1fast.ops import (
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
from v1fast.ops._load import load_kernels
from v1fast.ops._load import paths as _paths

loaded: dict[str, str] = load_kernels()
"""Kernel set ("native", "triton", "fallback") -> "loaded", or why it is not."""

paths: dict[str, str] = _paths(loaded)
"""Kind of device ("CPU", "CUDA", "others") -> what runs the ops there, and why nothing faster does."""

__all__ = [
    "condensed_row_sums",
    "gaussian_readout",
    "loaded",
    "paths",
    "permuted_products",
    "philox_normal",
    "point_gather",
    "pooled_readout",
    "random_permutations",
    "ranks",
    "rdm",
    "trial_sums",
]
