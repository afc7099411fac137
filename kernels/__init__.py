"""Triton kernels and their launchers, imported as ``v1fast.kernels``. They register nothing and check nothing.

``v1fast.ops`` registers each launcher for CUDA tensors, behind the check of its op in ``v1fast.contracts``.
"""

from collections.abc import Callable
from typing import Any

from . import gaussian_readout, philox_normal, point_gather, pooled_readout, rdm, rdm_backward

CUDA: dict[str, Callable[..., Any]] = {
    "gaussian_readout": gaussian_readout.gaussian_readout,
    "gaussian_readout_backward": gaussian_readout.gaussian_readout_backward,
    "philox_normal": philox_normal.philox_normal,
    "point_gather": point_gather.point_gather,
    "point_gather_backward": point_gather.point_gather_backward,
    "pooled_readout": pooled_readout.pooled_readout,
    "pooled_readout_backward": pooled_readout.pooled_readout_backward,
    "rdm": rdm.rdm,
    "rdm_out": rdm.rdm_out,
    "cross_rdm": rdm.cross_rdm,
    "rdm_backward": rdm_backward.rdm_backward,
    "cross_rdm_backward": rdm_backward.cross_rdm_backward,
}
"""Op name -> launcher with that op's arguments, which are legal; some also take what was ``seen`` of their form."""
