"""The ops on torch's own kernels, where no kernel of this package runs: never slower than eager torch, and no larger.

It computes what ``v1fast.reference`` defines, without autograd inside: a few images at a time, and the backward pass
computes again what it needs. See docs/fallback.md.
"""

from collections.abc import Callable
from typing import Any

from v1fast.fallback import cross_rdm, gaussian_readout, philox_normal, point_gather, pooled_readout, rdm

FALLBACK: dict[str, Callable[..., Any]] = {
    "gaussian_readout": gaussian_readout.gaussian_readout,
    "gaussian_readout_backward": gaussian_readout.gaussian_readout_backward,
    "philox_normal": philox_normal.philox_normal,
    "point_gather": point_gather.point_gather,
    "point_gather_backward": point_gather.point_gather_backward,
    "pooled_levels": pooled_readout.pooled_levels,
    "pooled_readout": pooled_readout.pooled_readout,
    "pooled_readout_backward": pooled_readout.pooled_readout_backward,
    "rdm": rdm.rdm,
    "rdm_out": rdm.rdm_out,
    "rdm_backward": rdm.rdm_backward,
    "cross_rdm": cross_rdm.cross_rdm,
}
"""Op name -> function with exactly that op's arguments. Other ops run on their reference, which is as fast."""
