"""Released models, in v1fast's layers."""

from pathlib import Path

import torch

from v1fast import _files
from v1fast.models.cores import Stacked2dCore
from v1fast.readouts import FullGaussian2d

MOUSE_V1 = Path("sensorium_mouse_v1/sensorium_sota_model.pth")
"""Where the checkpoint of :func:`load_mouse_v1` lies in the folder V1FAST_REAL_DATA."""


def load_mouse_v1(path: Path) -> tuple[Stacked2dCore, FullGaussian2d]:
    """The core and the readout of 7776 neurons in the Sensorium checkpoint ``path``, in evaluation mode.

    Raises:
        RuntimeError: a key or a shape is not as wanted.
    """
    with _files.reading(path):
        state = torch.load(path, map_location="cpu", weights_only=True)
    core_state = {key.removeprefix("core."): value for key, value in state.items() if key.startswith("core.")}
    # The readout's keys start with "readout." and the name of the session.
    readout_state = {key.split(".", 2)[2]: value for key, value in state.items() if key.startswith("readout.")}
    core = Stacked2dCore(
        input_channels=1,
        hidden_channels=64,
        input_kern=9,
        hidden_kern=7,
        layers=4,
        stack=-1,
        depth_separable=True,
        pad_input=False,
        conv_bias=False,
        input_regularizer="LaplaceL2norm",
    )
    readout = FullGaussian2d(
        (64, 28, 56),
        outdims=len(readout_state["bias"]),
        bias=True,
        gauss_type="full",
        grid_mean_predictor={"hidden_layers": 1, "hidden_features": 30, "final_tanh": True},
        source_grid=readout_state["source_grid"].numpy(),
    )
    core.load_state_dict(core_state)
    readout.load_state_dict(readout_state)
    return core.eval(), readout.eval()
