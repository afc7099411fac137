"""The linear-nonlinear model that the cells of a class share."""

from functools import partial

import layer_checks
import numpy as np
import pytest
import torch
from assertions import assert_as_accurate
from torch.nn import functional as F

from v1fast.models import MultitaskLN

SHAPE, N, L, FRAMES = (2, 8, 11), 12, 3, 6
CLASSES = ["on", "off", "on", "on", "off", "sbc"] * 2
ROWS, COLUMNS = torch.arange(N) % 8, torch.arange(N) * 7 % 11
PIXELS = torch.stack([COLUMNS / 10 * 2 - 1, ROWS / 7 * 2 - 1], dim=-1)
OPTIONS = {"cell_class": CLASSES, "positions": PIXELS, "kernel": (3, 5), "history": L}


@torch.no_grad()
def model(**options):
    layer = MultitaskLN(SHAPE, N, **OPTIONS | options)
    for p in (layer.spatial, layer.temporal, layer.gain, layer.offset):
        p.copy_(torch.randn(p.shape))
    return layer


def video(batch=2):
    return torch.randn(batch, SHAPE[0], FRAMES, *SHAPE[1:])


def expected(layer, x):
    """Written out for each cell, at whole pixels: the patch around it, times its class's filters."""
    height, width = layer.spatial.shape[2:]
    padded = F.pad(x, (width // 2, width // 2, height // 2, height // 2))
    kinds = sorted(set(CLASSES))
    columns = []
    for n in range(N):
        k = kinds.index(CLASSES[n])
        patch = padded[:, :, :, ROWS[n] : ROWS[n] + height, COLUMNS[n] : COLUMNS[n] + width]
        trace = torch.einsum("bcthw,chw->bt", patch, layer.spatial[k])
        lags = [layer.temporal[k, lag] * trace[:, L - 1 - lag : FRAMES - lag] for lag in range(L)]
        columns.append(torch.sigmoid(layer.gain[n] * sum(lags) + layer.offset[n]))
    return torch.stack(columns, dim=-1)


def test_state_dict_keys_and_shapes():
    keys = {
        "spatial": (3, 2, 3, 5),
        "temporal": (3, L),
        "gain": (N,),
        "offset": (N,),
        "class_index": (N,),
        "positions": (N, 2),
    }
    assert {k: tuple(v.shape) for k, v in model().state_dict().items()} == keys
    assert "positions" not in dict(model().named_parameters())
    assert "positions" in dict(model(learn_positions=True).named_parameters())
    assert list(model().classes) == ["off", "on", "sbc"]


def test_forward_and_gradients():
    layer, x = model(), video().requires_grad_()
    y = layer(x)
    assert y.shape == (2, FRAMES - L + 1, N)
    towards = torch.randn_like(y)
    leaves = [x, *layer.parameters()]
    got = [y.detach(), *torch.autograd.grad(y, leaves, towards)]
    out = expected(layer, x)
    own = [out.detach(), *torch.autograd.grad(out, leaves, towards)]
    layer, x = layer.double(), x.detach().double().requires_grad_()
    out, leaves = expected(layer, x), [x, *layer.parameters()]
    exact = [out.detach(), *torch.autograd.grad(out, leaves, towards.double())]
    for name, a, b, c in zip(("y", "x", "spatial", "temporal", "gain", "offset"), got, own, exact, strict=True):
        assert_as_accurate(a, b, c, name)


def test_between_pixels_the_response_is_interpolated():
    layer = model(positions=PIXELS * 0.9, learn_positions=True).double()
    x = video().double()
    maps = F.conv2d(x.transpose(1, 2).flatten(0, 1), layer.spatial, padding=(1, 2))
    read = F.grid_sample(maps, layer.positions.expand(len(maps), N, 2)[:, :, None], align_corners=True)[..., 0]
    own = read[:, layer.class_index, torch.arange(N)].view(2, FRAMES, N)
    drive = sum(layer.temporal[layer.class_index, lag] * own[:, L - 1 - lag : FRAMES - lag] for lag in range(L))
    want = torch.sigmoid(layer.gain * drive + layer.offset)
    torch.testing.assert_close(layer(x), want)
    (got_position,) = torch.autograd.grad(layer(x).square().sum(), [layer.positions])
    (position,) = torch.autograd.grad(want.square().sum(), [layer.positions])
    torch.testing.assert_close(got_position, position)
    assert position.abs().sum() > 0


def test_the_past_alone_counts():
    layer, x = model(), video()
    later = x.clone()
    later[:, :, 4:] = 0
    assert layer(later)[:, : 4 - L + 1].equal(layer(x)[:, : 4 - L + 1])
    assert not layer(later)[:, 4 - L + 1 :].isclose(layer(x)[:, 4 - L + 1 :]).all(-1).any()


def test_initial_values():
    layer = MultitaskLN((3, 8, 11), N, **OPTIONS | {"kernel": (7, 9)}, init_noise=0.1)
    assert layer.spatial.std().item() == pytest.approx(0.1, rel=0.1)
    assert (layer.temporal == 1 / L).all()
    assert (layer.gain == 1).all()
    assert (layer(torch.zeros(1, 3, L, 8, 11)) == 0.5).all()
    mean = torch.linspace(0.1, 0.8, N, dtype=torch.float64)
    layer = model(mean_activity=mean)
    layer.initialize()
    with torch.no_grad():
        layer.spatial.zero_()
    torch.testing.assert_close(layer(video())[0, 0], mean.float())


def test_choices_and_the_rest():
    layer, x = model(), video()
    layer_checks.assert_chooses_neurons(partial(layer, x), N, exactly=False)
    layer_checks.assert_refuses_out_idx(layer, x)
    assert layer(x, data_key="a").equal(layer(x))
    torch.testing.assert_close(layer.logits(x).sigmoid(), layer(x))
    layer_checks.assert_compiles(layer, x)
    layer_checks.assert_runs_under_vmap(model, x)
    layer_checks.assert_casts_as_a_whole(layer, x, torch.float64)


def test_it_learns_what_two_classes_see():
    """From spikes of another model, with all of its classes' filters in common."""
    torch.manual_seed(2)
    truth = MultitaskLN(SHAPE, N, **OPTIONS, init_noise=0.5)
    with torch.no_grad():
        truth.temporal.copy_(torch.randn(3, L))
        truth.offset.fill_(-1)
    x = torch.randn(40, SHAPE[0], 20, *SHAPE[1:])
    spikes = torch.bernoulli(truth(x).detach())
    layer = MultitaskLN(SHAPE, N, **OPTIONS, init_noise=0.1)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(layer.logits(x), spikes).backward()
        optimiser.step()
    got, want = layer.logits(x).detach().flatten(), truth.logits(x).detach().flatten()
    assert torch.stack([got, want]).corrcoef()[0, 1] > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell_class": ["on"]}, r"cell_class: want \[N\] = \(12,\), got \(1,\)"),
        ({"positions": np.zeros((3, 2))}, r"positions: want \[N, 2\] = \(12, 2\), got \(3, 2\)"),
        ({"kernel": (3, 4)}, r"kernel: want two odd sizes, got \(3, 4\)"),
        ({"history": 0}, "history: want at least 1, got 0"),
        ({"mean_activity": torch.ones(N)}, r"mean_activity: want \[N\] = \(12,\) in \(0, 1\)"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        model(**options)


def test_bad_video():
    with pytest.raises(
        ValueError, match=r"x: want .* with \(C, H, W\) = \(2, 8, 11\) and T >= 3, got \(1, 2, 2, 8, 11\)"
    ):
        model()(torch.zeros(1, 2, 2, 8, 11))
