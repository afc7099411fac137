"""The trained model of mouse V1 matches its original, and a model that does not is noticed."""

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch

from v1fast.models.pretrained import MOUSE_V1
from v1fast.models.reproduction import EXPECTED, Comparison, MismatchError, check_trained_model, require_match


@pytest.mark.parametrize("error", [2e-5, math.nan])
def test_an_error_beyond_its_bound_raises(error):
    good = Comparison("y", 1e-6, 1.0, 1e-6, 1e-5)
    require_match([good])
    with pytest.raises(MismatchError, match=r"d_x: want relative error <= 1e-05, got"):
        require_match([good, dataclasses.replace(good, quantity="d_x", relative_error=error)])


@pytest.mark.real_data
def test_the_trained_model_matches_its_original(real_data):
    comparisons = check_trained_model(real_data)
    require_match(comparisons)
    names = {c.quantity for c in comparisons}
    with np.load(real_data / EXPECTED) as arrays:
        assert names == set(arrays.files) - {"x", "noise", "sigma_scale", "grad_output"}


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("key", "noticed"),
    [
        ("core.features.layer2.ds_conv.spatial_conv.weight", {"core_mean", "y", "d_x"}),
        ("readout.26872-17-20._features", {"y", "y_sampled"}),
        ("readout.26872-17-20.sigma", {"y_sampled"}),
        ("readout.26872-17-20.mu_transform.2.weight", {"y", "d_mu_transform_0_weight"}),
    ],
)
def test_one_wrong_weight_is_noticed(real_data, tmp_path, key, noticed):
    (tmp_path / MOUSE_V1).parent.mkdir()
    shutil.copy(real_data / EXPECTED, tmp_path / EXPECTED)
    state = torch.load(real_data / MOUSE_V1, map_location="cpu", weights_only=True)
    state[key].view(-1)[5] += 0.01 * state[key].abs().max()
    torch.save(state, tmp_path / MOUSE_V1)
    comparisons = check_trained_model(tmp_path)
    assert noticed <= {c.quantity for c in comparisons if not c.holds}
    with pytest.raises(MismatchError, match="y_sampled"):
        require_match(comparisons)
