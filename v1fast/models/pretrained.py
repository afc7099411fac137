"""Released models, in v1fast's layers."""

from pathlib import Path
from typing import cast

from v1fast.models.cores import Stacked2dCore
from v1fast.models.encoder import FiringRateEncoder
from v1fast.readouts import FullGaussian2d

MOUSE_V1 = Path("sensorium_mouse_v1/sensorium_sota_model.pth")
"""Where the checkpoint of :func:`load_mouse_v1` lies in the folder V1FAST_REAL_DATA."""


def load_mouse_v1(path: Path) -> tuple[Stacked2dCore, FullGaussian2d]:
    """The core and the readout of 7776 neurons in the Sensorium checkpoint ``path``, in evaluation mode.

    Raises:
        RuntimeError: a key or a shape is not as wanted.
    """
    encoder = FiringRateEncoder.from_checkpoint(path)
    (readout,) = cast("list[FullGaussian2d]", list(encoder.readout.children()))
    return cast("Stacked2dCore", encoder.core), readout
