"""Stacked2dCore against neuralpredictors'."""

import pytest
import torch
from neuralpredictors.layers import cores
from peers import side_by_side

from v1fast import models

pytestmark = side_by_side.QUIET

CORE = {
    "input_channels": 2,
    "hidden_channels": 6,
    "input_kern": 5,
    "hidden_kern": 3,
    "layers": 3,
    "gamma_input": 0.7,
    "stack": None,
}
ALIKE = {
    "default": {},
    "one layer": {"layers": 1},
    "last map": {"stack": -1},
    "some maps": {"stack": [0, 2]},
    "maps from the second on": {"stack": 1},
    "skip connections": {"skip": 2, "layers": 4},
    "depth-separable": {"depth_separable": True, "stack": -1},
    "depth-separable with skips": {"depth_separable": True, "skip": 3, "layers": 4},
    "attention": {"attention_conv": True},
    "group sparsity": {"gamma_hidden": 0.3},
    "even kernels": {"input_kern": 4, "hidden_kern": 4, "stack": -1},
    "unpadded": {"pad_input": False},
    "hidden padding": {"hidden_padding": 1, "hidden_kern": 5, "stack": -1},
    "dilated": {"hidden_dilation": 2},
    "strided": {"stride": 2, "stack": -1},
    "shifted ELU": {"elu_shift": (0.5, 1.0)},
    "linear": {"linear": True},
    "linear at the end": {"final_nonlinearity": False},
    "momentum": {"momentum": 0.9},
    "no batch norm": {"batch_norm": False},
    "LaplaceL1": {"input_regularizer": "LaplaceL1"},
    "LaplaceL2norm, summed": {"input_regularizer": "LaplaceL2norm", "use_avg_reg": False},
    "Laplacian beyond the border": {"laplace_padding": None},
    "GaussianLaplaceL2": {"input_regularizer": "GaussianLaplaceL2", "laplace_padding": None},
}
# What release 0.3.0 calls otherwise: its options, then ours.
RENAMED = {
    "convolutions without bias": ({"bias": False}, {"conv_bias": False}),
    "the released Sensorium models": (
        {"bias": False, "depth_separable": True, "stack": -1},
        {"conv_bias": False, "depth_separable": True, "stack": -1},
    ),
    "scales alone": ({"bias": False, "independent_bn_bias": False}, {"bias": False}),
    "biases alone": (
        {"batch_norm_scale": False, "independent_bn_bias": False},
        {"batch_norm_scale": False, "final_batchnorm_scale": False},
    ),
}


@pytest.mark.parametrize("case", [*ALIKE, *RENAMED])
def test_stacked2d_core(case):
    theirs, mine = RENAMED.get(case) or (ALIKE[case], ALIKE[case])
    ours, peer = side_by_side.twins(
        lambda: models.Stacked2dCore(**CORE | mine), lambda: cores.Stacked2dCore(**CORE | theirs)
    )
    side_by_side.move(ours, peer)
    inputs = torch.randn(side_by_side.DRAWS, 3, 2, 24, 27)
    for training in (True, False):
        ours.train(training), peer.train(training)
        side_by_side.assert_same_results(ours, peer, inputs)
    for name, value in peer.state_dict().items():  # the running statistics have moved along
        torch.testing.assert_close(ours.state_dict()[name], value, msg=name)
