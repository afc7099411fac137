"""The layer FullGaussian2d: constructor, state, quirks and repairs of neuralpredictors' class, on v1fast's op."""

import copy
import warnings
from functools import partial

import layer_checks
import numpy as np
import pytest
import torch
from assertions import assert_as_accurate
from op_checks import assert_same
from torch import nn

from v1fast import _eager as eager
from v1fast import functional
from v1fast.readouts import ConfigurationError, FullGaussian2d, PointGaussianReadout
from v1fast.readouts._frames import fold_frames
from v1fast.readouts.gaussian import source_frame

SHAPE, N = (5, 7, 9), 12
MATCH_IDS = [3, 1, 3, 8, 1, 0, 0, 8, 3, 1, 2, 2]  # five distinct ids
SOURCE = np.random.default_rng(0).normal(size=(N, 3))
RETINOTOPY = {
    "grid_mean_predictor": {"hidden_layers": 1, "hidden_features": 6, "final_tanh": True},
    "source_grid": SOURCE,
}


def readout(**options):
    """A readout whose positions move, whose features differ and whose bias is not zero."""
    options = {"bias": True, "init_mu_range": 0.8, "init_sigma": 0.3} | options
    return layer_checks.differing(FullGaussian2d(SHAPE, N, **options))


def features(batch=4):
    return torch.randn(batch, *SHAPE)


def eager_forward(layer, x, noise=None, shift=None, dtype=torch.float64):
    """What the layer means, from its parameters, by torch's own ops."""
    sigma = layer.sigma[0] if layer.gauss_type == "full" else layer.sigma[0, :, 0]
    return eager.gaussian_readout(
        x.to(dtype),
        layer.mu[0, :, 0].to(dtype),
        sigma.to(dtype),
        layer.features[0, :, 0].t().to(dtype),
        None if layer.bias is None else layer.bias.to(dtype),
        None if shift is None else shift.to(dtype),
        noise=None if noise is None else noise.to(dtype),
        align_corners=layer.align_corners,
    )


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({}, {"_mu": (1, N, 1, 2), "sigma": (1, N, 2, 2), "_features": (1, 5, 1, N), "bias": (N,)}),
        (
            {"gauss_type": "uncorrelated", "bias": False},
            {"_mu": (1, N, 1, 2), "sigma": (1, N, 1, 2), "_features": (1, 5, 1, N)},
        ),
        (
            {"gauss_type": "isotropic", "bias": False},
            {"_mu": (1, N, 1, 2), "sigma": (1, N, 1, 1), "_features": (1, 5, 1, N)},
        ),
        (
            RETINOTOPY | {"bias": False},
            {
                "sigma": (1, N, 2, 2),
                "_features": (1, 5, 1, N),
                "source_grid": (N, 3),
                "mu_transform.0.weight": (6, 3),
                "mu_transform.0.bias": (6,),
                "mu_transform.2.weight": (2, 6),
                "mu_transform.2.bias": (2,),
            },
        ),
        (
            {"shared_features": {"match_ids": MATCH_IDS}, "bias": False},
            {
                "_mu": (1, N, 1, 2),
                "sigma": (1, N, 2, 2),
                "_features": (1, 5, 1, 5),
                "scales": (1, 1, 1, N),
                "feature_sharing_index": (N,),
            },
        ),
        (
            {"shared_grid": {"match_ids": MATCH_IDS}, "bias": False},
            {"_mu": (1, 5, 1, 2), "sigma": (1, N, 2, 2), "_features": (1, 5, 1, N), "grid_sharing_index": (N,)},
        ),
        (
            {"shared_grid": {"match_ids": MATCH_IDS, "shared_grid": nn.Parameter(torch.zeros(1, 5, 1, 2))}},
            {
                "_mu": (1, 5, 1, 2),
                "sigma": (1, N, 2, 2),
                "_features": (1, 5, 1, N),
                "bias": (N,),
                "grid_sharing_index": (N,),
                "mu_transform.weight": (2, 2),
                "mu_transform.bias": (2,),
            },
        ),
    ],
)
def test_state_dict_keys_and_shapes(options, keys):
    state = FullGaussian2d(SHAPE, N, **{"bias": True} | options).state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == keys


def test_initial_values():
    layer = FullGaussian2d((5, 7, 9), 500, bias=True, init_mu_range=0.4, init_sigma=0.2)
    assert 0.38 < layer._mu.abs().max() <= 0.4
    assert 0.19 < layer.sigma.abs().max() <= 0.2
    assert layer.sigma.min() < -0.15, "the entries of a full sigma are uniform around zero"
    assert (layer._features == 1 / 5).all()
    assert (layer.bias == 0).all()
    assert (readout(gauss_type="isotropic").sigma == 0.3).all()
    assert layer.feature_reg_weight == 1.0


def test_mean_activity_is_copied():
    layer_checks.assert_copies_mean_activity(partial(FullGaussian2d, SHAPE, N, bias=True))


@pytest.mark.parametrize("gauss_type", ["full", "uncorrelated", "isotropic"])
@pytest.mark.parametrize("batch_sample", [True, False])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
def test_forward_in_training_with_torchs_stream(gauss_type, batch_sample, align_corners, shifted):
    """sampler="torch" draws as neuralpredictors does: normals of shape (B, N, 1, 2), or (1, N, 1, 2)."""
    layer = readout(gauss_type=gauss_type, batch_sample=batch_sample, align_corners=align_corners, sampler="torch")
    x, shift = features(), 0.2 * torch.randn(4, 2) if shifted else None
    torch.manual_seed(5)
    got = layer(x, shift=shift)
    torch.manual_seed(5)
    noise = torch.empty(4 if batch_sample else 1, N, 1, 2).normal_().squeeze(2)
    own = eager_forward(layer, x, noise, shift, torch.float32)
    assert_as_accurate(got, own, eager_forward(layer, x, noise, shift))


@pytest.mark.parametrize("options", [{}, RETINOTOPY, {"shared_features": {"match_ids": MATCH_IDS}}, {"bias": False}])
def test_evaluation_reads_the_means(options):
    layer = readout(**options).eval()
    x = features()
    assert_as_accurate(layer(x), eager_forward(layer, x, dtype=torch.float32), eager_forward(layer, x))
    assert layer(x).equal(layer(x))
    assert layer.train()(x, sample=False).equal(layer.eval()(x))
    assert not layer.eval()(x, sample=True).equal(layer(x))


def test_sampled_positions_have_the_learned_gaussian():
    """Over many images the readout of a coordinate map has the mean and covariance of mu + A eps."""
    layer = FullGaussian2d((2, 33, 33), 1, bias=False, init_sigma=0.1)
    axis = torch.linspace(-1, 1, 33)
    coordinates = torch.stack([axis.expand(33, 33), axis[:, None].expand(33, 33)])[None].expand(20000, -1, -1, -1)
    with torch.no_grad():
        layer._features.zero_()
        layer._mu.copy_(torch.tensor([0.1, -0.2]).view(1, 1, 1, 2))
        points = []
        torch.manual_seed(1)
        for channel in range(2):
            layer._features.zero_()[0, channel] = 1
            torch.manual_seed(1)  # the same draws for x and y
            points.append(layer(coordinates)[:, 0])
    points = torch.stack(points)
    root = layer.sigma[0, 0].detach()
    assert (points.mean(1) - layer._mu[0, 0, 0].detach()).abs().max() < 5e-3
    assert (points.cov() - root @ root.t()).abs().max() < 5e-4


def test_every_forward_draws_anew_and_torchs_seed_repeats_it():
    layer, x = readout(), features()
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert not first.equal(second)
    assert layer(x).equal(first)
    assert layer(x).equal(second)


def test_one_draw_for_the_batch():
    layer = readout(batch_sample=False)
    y = layer(features(1).expand(6, -1, -1, -1))
    assert y.equal(y[:1].expand(6, -1))
    per_image = readout()(features(1).expand(6, -1, -1, -1))
    assert not per_image.equal(per_image[:1].expand(6, -1))


FRAMES = 3


def videos(batch=4):
    return torch.randn(batch, SHAPE[0], FRAMES, *SHAPE[1:])


@pytest.mark.parametrize("gauss_type", ["full", "isotropic"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_every_frame_of_a_video_is_an_image(gauss_type, memory_format):
    layer_checks.assert_reads_frames(
        readout(gauss_type=gauss_type).eval(), videos().contiguous(memory_format=memory_format)
    )


@pytest.mark.parametrize("sampler", ["philox", "torch"])
@pytest.mark.parametrize("batch_sample", [True, False])
@pytest.mark.parametrize("frame_sample", [True, False])
@pytest.mark.parametrize("gauss_type", ["full", "uncorrelated", "isotropic"])
def test_clips_and_frames_share_a_draw_or_do_not(sampler, batch_sample, frame_sample, gauss_type):
    """Where all images are the same, results are equal where the draws are, and differ elsewhere."""
    layer = readout(
        gauss_type=gauss_type, batch_sample=batch_sample, frame_sample=frame_sample, sampler=sampler, bias=False
    )
    x = features(1)[:, :, None].expand(4, -1, FRAMES, -1, -1)
    y = layer(x)
    assert y.shape == (4, FRAMES, N)
    draws = 1 if not batch_sample else 4, 1 if not frame_sample else FRAMES
    assert y.equal(y[: draws[0], : draws[1]].expand(4, FRAMES, N) if draws != (4, FRAMES) else y)
    assert len(y.flatten(0, 1)[:, 0].unique()) == draws[0] * draws[1]


@pytest.mark.parametrize("batch_sample", [True, False])
@pytest.mark.parametrize("frame_sample", [True, False])
def test_videos_in_training_with_torchs_stream(batch_sample, frame_sample):
    layer = readout(batch_sample=batch_sample, frame_sample=frame_sample, sampler="torch")
    x, shift = videos(), 0.2 * torch.randn(4, FRAMES, 2)
    draws = 4 if batch_sample else 1, FRAMES if frame_sample else 1
    torch.manual_seed(5)
    got = layer(x, shift=shift)
    torch.manual_seed(5)
    noise = torch.empty(*draws, N, 2).normal_().expand(4, FRAMES, N, 2).reshape(-1, N, 2)
    images, shift = x.transpose(1, 2).flatten(0, 1), shift.flatten(0, 1)
    own, exact = (
        eager_forward(layer, images, noise, shift, t).view(4, FRAMES, N) for t in (torch.float32, torch.double)
    )
    assert_as_accurate(got, own, exact)


@pytest.mark.parametrize("frame_sample", [True, False])
def test_out_idx_of_videos(frame_sample):
    layer, x = readout(frame_sample=frame_sample), videos()
    torch.manual_seed(2)
    whole = layer(x)
    torch.manual_seed(2)
    assert_same(layer(x, out_idx=[4, -1]), whole[..., [4, -1]])


def test_frames_of_channels_last_videos_are_not_copied():
    x = videos()
    last = x.contiguous(memory_format=torch.channels_last_3d)
    for given, copied in ((last, False), (x, True), (x[:1], False)):
        images, _ = fold_frames(given)
        assert images.equal(given.transpose(1, 2).flatten(0, 1))
        assert (images.data_ptr() == given.data_ptr()) != copied
        assert images.is_contiguous(memory_format=torch.channels_last) or len(given) == 1


def test_gradients_of_videos():
    layer, x = readout().double().eval(), videos(2).double().requires_grad_()
    want = torch.autograd.grad(
        eager_forward(layer, x.transpose(1, 2).flatten(0, 1)).square().sum(), [x, layer._mu, layer._features]
    )
    got = torch.autograd.grad(layer(x).square().sum(), [x, layer._mu, layer._features])
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("sampler", ["philox", "torch"])
def test_out_idx_is_a_choice_of_the_whole(sampler):
    layer, x = readout(sampler=sampler), features()

    def call(**options):
        torch.manual_seed(2)
        return layer(x, **options)

    layer_checks.assert_chooses_neurons(call, N)
    layer.eval()
    layer_checks.assert_chooses_neurons(call, N)


@pytest.mark.parametrize("training", [True, False])
def test_derivatives_of_passes_whose_parameters_changed_since(training):
    """Of both passes, to the second order, at the values that each of them had."""
    layer = readout(sampler="torch").double().train(training)
    x = features().double().requires_grad_()
    with torch.no_grad():
        layer._mu[0, 0, 0, 0] = 1.5
        layer._mu[0, 1, 0, 1] = -1.0
    own, found, want = [x, layer._mu, layer.sigma, layer._features, layer.bias], [], []

    def derivatives(out, of):
        first = torch.autograd.grad(out.square().sum(), of, create_graph=True)
        moved = sum(d.square().sum() for d in first[1:3])
        return [*first, *torch.autograd.grad(moved, of[:3], allow_unused=True, materialize_grads=True)]

    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(layer(x))
        torch.manual_seed(seed)
        noise = torch.randn(len(x), N, 2, dtype=torch.float64) if training else None
        mu, sigma = (p.detach().clone().requires_grad_() for p in (layer._mu, layer.sigma))
        placed = mu.detach().clamp(-1, 1) + (mu - mu.detach())
        operands = placed.view(N, 2), sigma.view(N, 2, 2), layer._features[0, :, 0].t(), layer.bias
        out = functional.gaussian_readout(x, *operands, noise=noise)
        want.append(derivatives(out, [x, mu, sigma, layer._features, layer.bias]))
        with torch.no_grad():  # not the weights, whose values a backward pass needs
            layer._mu.add_(0.1)
            layer.sigma.mul_(1.5)
    for out, expected in zip(found, want, strict=True):
        for got, right in zip(derivatives(out, own), expected, strict=True):
            torch.testing.assert_close(got.view(right.shape), right)


def test_weights_that_a_subclass_computes():
    class Positive(FullGaussian2d):
        @property
        def features(self):
            return self._features.exp()

    torch.manual_seed(0)
    layer, x = Positive(SHAPE, N, bias=True).eval(), features()
    want = functional.gaussian_readout(x, layer._mu.view(N, 2), None, layer._features.exp()[0, :, 0].t(), layer.bias)
    torch.testing.assert_close(layer(x), want)


def test_bad_out_idx():
    layer_checks.assert_refuses_out_idx(readout(), features())


def test_a_training_pass_clamps_the_means_in_place():
    layer = readout()
    with torch.no_grad():
        layer._mu[0, 0, 0] = torch.tensor([1.7, -3.0])
    parameter = layer._mu
    layer(features())
    assert layer._mu is parameter
    assert layer._mu[0, 0, 0].tolist() == [1, -1]


def test_shift_comes_after_the_clamp():
    layer = readout(bias=False).eval()
    with torch.no_grad():
        layer._mu.fill_(1.0)
    x = torch.ones(2, *SHAPE)
    inside, beyond = torch.zeros(2, 2), torch.full((2, 2), 1.0)
    assert layer(x, shift=inside).abs().min() > 0
    assert (layer(x, shift=beyond) == 0).all()


def test_unknown_arguments_are_accepted():
    layer = FullGaussian2d(SHAPE, N, bias=True, share_transform=True, another=1).eval()
    x = features()
    assert layer(x, data_key="a", images=x, behavior=None, pupil_center=None).equal(layer(x))


def test_other_maps_are_read_with_a_warning():
    layer = readout().eval()
    with pytest.warns(UserWarning, match=r"\(5, 6, 8\)"):
        assert layer(torch.randn(2, 5, 6, 8)).shape == (2, N)
    with pytest.warns(UserWarning, match="made for"), pytest.raises(ValueError, match="weight: want"):
        layer(torch.randn(2, 4, 7, 9))


def test_retinotopy():
    layer = readout(**RETINOTOPY)
    centred = SOURCE - SOURCE.mean(0)
    assert np.allclose(layer.source_grid, centred / np.abs(centred).max(), atol=1e-7)
    calls = []
    layer.mu_transform.register_forward_hook(lambda *_: calls.append(1))
    layer(features()).sum().backward()
    assert len(calls) == 1, "the predictor runs once for each forward pass"
    assert layer.mu_transform[0].weight.grad.abs().sum() > 0
    assert layer.mu.shape == layer.grid.shape == (1, N, 1, 2)
    assert layer.mu_dispersion.item() > 0
    assert [type(m).__name__ for m in layer.mu_transform] == ["Linear", "ELU", "Linear", "Tanh"]
    linear = readout(grid_mean_predictor={}, source_grid=torch.from_numpy(SOURCE))
    assert [type(m).__name__ for m in linear.mu_transform] == ["Linear"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.mu.dtype == torch.float32
        assert layer.eval()(features()).dtype == torch.float32


def test_other_neurons_are_placed_by_the_frame_of_those_that_were_trained():
    whole = readout(**RETINOTOPY)
    assert torch.allclose(whole.place(SOURCE), whole.mu[0, :, 0], atol=1e-6)
    assert torch.allclose(whole.place(SOURCE[[4]]), whole.mu[0, [4], 0], atol=1e-6)
    some = readout(**RETINOTOPY | {"source_grid": SOURCE + 7}, source_frame=whole.source_frame)
    assert not torch.allclose(some.source_grid, whole.source_grid)
    same = readout(**RETINOTOPY, source_frame=whole.source_frame, shared_transform=whole.mu_transform)
    assert same.mu.equal(whole.mu)
    assert source_frame(SOURCE) == whole.source_frame


def test_a_state_dict_with_another_grid_brings_no_frame():
    one, other = readout(**RETINOTOPY), readout(**RETINOTOPY | {"source_grid": SOURCE * [1, 2, 3]})
    assert {"_extra_state", "source_centre", "source_scale"}.isdisjoint(one.state_dict())
    frame = one.source_frame
    one.load_state_dict(one.state_dict())
    assert one.source_frame == frame
    one.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match=r"source_frame: want centre and scale"):
        one.place(SOURCE)
    one.source_frame = source_frame(SOURCE * [1, 2, 3])
    assert torch.allclose(one.place(SOURCE * [1, 2, 3]), one.mu[0, :, 0], atol=1e-6)


def test_places_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="place: want a readout with grid_mean_predictor"):
        readout().place(SOURCE)
    layer = readout(**RETINOTOPY)
    with pytest.raises(ValueError, match=r"positions: want \[M, D\], got \(3,\)"):
        layer.place(SOURCE[0])
    with pytest.raises(ValueError, match=r"source_frame: want a centre \[D\] = \(2,\), got \(3,\)"):
        layer.place(SOURCE[:, :2])
    with pytest.raises(ValueError, match="positions: want finite positions"):
        layer.place([[np.nan, 0, 0]])


def test_residuals_of_the_predicted_means():
    torch.manual_seed(0)
    plain = FullGaussian2d(SHAPE, N, True, **RETINOTOPY)
    torch.manual_seed(0)
    layer = FullGaussian2d(SHAPE, N, True, **RETINOTOPY, residual_reg_weight=0.5)
    assert set(layer.state_dict()) == {*plain.state_dict(), "mu_residual"}
    assert layer.mu.equal(plain.mu), "they start at 0, and everything else as without them"
    with torch.no_grad():
        layer.mu_residual.copy_(torch.linspace(-0.1, 0.1, 2 * N).view(1, N, 1, 2))
    assert torch.equal(layer.mu, plain.mu + layer.mu_residual)
    assert torch.allclose(layer.place(SOURCE), plain.mu[0, :, 0], atol=1e-6), "other neurons have none"
    squares = layer.mu_residual.square()
    for reduction, offsets in (("sum", squares.sum()), ("mean", squares.mean())):
        want = plain.regularizer(reduction=reduction) + 0.5 * offsets
        assert torch.allclose(layer.regularizer(reduction=reduction), want)
    with pytest.raises(ValueError, match="reduction: want one of sum, mean, got None"):
        layer.regularizer(reduction=None)
    layer(features()).sum().backward()
    assert layer.mu_residual.grad.abs().sum() > 0
    layer.initialize()
    assert layer.mu_residual.abs().sum() == 0
    with pytest.raises(ConfigurationError, match="residual_reg_weight: want it beside grid_mean_predictor"):
        readout(residual_reg_weight=1.0)


ONE_PLACE = np.full((12, 3), 0.1)  # whose rounded mean is another number
PLACES = {
    "all at one place": ONE_PLACE,
    "all at one place, single precision": ONE_PLACE.astype(np.float32),
    "one axis constant": np.stack([np.arange(12.0), np.full(12, 0.1)], 1),
    "several at one place": np.repeat(np.random.default_rng(0).normal(size=(4, 2)), 3, 0),
    "integers": np.zeros((12, 2), dtype=int),
    "tiny": 1e-300 * np.random.default_rng(0).normal(size=(12, 2)),
}


@pytest.mark.parametrize("places", PLACES)
def test_degenerate_places(places):
    source = PLACES[places]
    layer = readout(grid_mean_predictor={"hidden_layers": 1}, source_grid=source).eval()
    constant = (source == source[:1]).all(0)
    grid = layer.source_grid
    assert grid.isfinite().all()
    assert (grid[:, constant] == 0).all()
    assert grid.abs().max() == (0 if constant.all() else 1)
    out = layer(torch.randn(2, *SHAPE))
    (out.sum() + layer.mu_dispersion).backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.mu_transform.parameters())


@pytest.mark.parametrize("options", [{}, RETINOTOPY | {"source_grid": [[3.0, 4.0]]}])
def test_a_single_neuron_is_not_dispersed(options):
    layer = FullGaussian2d(SHAPE, 1, True, **options)
    dispersion = layer.mu_dispersion
    assert dispersion == 0
    dispersion.backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in layer.parameters())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_places_that_are_no_numbers(bad):
    source = np.ones((12, 2))
    source[[4, 7], 1] = bad
    with pytest.raises(ValueError, match=rf"source_grid: want finite positions, got {bad} at \[4, 1\] \(2 such"):
        readout(**RETINOTOPY | {"source_grid": source})
    with pytest.raises(ValueError, match=rf"init_grid: want finite positions, got {bad} at \[0, 4, 0, 1\]"):
        PointGaussianReadout((5, 1, 7, 9), 12, True, init_grid=source.reshape(1, 12, 1, 2))


def test_the_predictor_and_its_places_have_one_dtype():
    network = readout(**RETINOTOPY).double().mu_transform
    assert readout(**RETINOTOPY, shared_transform=network).source_grid.dtype == torch.float64
    assert readout(**RETINOTOPY).source_grid.dtype == torch.float32


def test_shared_transform():
    first = readout(**RETINOTOPY)
    other = readout(**RETINOTOPY, shared_transform=first.mu_transform)
    assert other.mu_transform is first.mu_transform
    assert other.mu.equal(first.mu)
    assert list(other.state_dict()) == list(first.state_dict())
    with pytest.raises(ConfigurationError, match="shared_transform: want it beside grid_mean_predictor"):
        readout(shared_transform=first.mu_transform)


def test_shared_features():
    own = readout(shared_features={"match_ids": MATCH_IDS})
    for i, j in ((0, 2), (1, 4), (5, 6)):
        assert own.features[..., i].equal(own.features[..., j])
    assert own.features[..., 5].equal(own._features[..., 0]), "features stand in the order of the sorted ids"
    before = own._features.detach().clone()
    other = FullGaussian2d(
        SHAPE, N, bias=True, shared_features={"match_ids": MATCH_IDS, "shared_features": own.shared_features}
    )
    assert other._features is own._features
    assert own._features.equal(before), "a readout that joins does not reset what is shared"
    assert other.regularizer() == 0
    with torch.no_grad():
        own.scales[..., 0] = 2
    assert own.features[..., 0].equal(2 * own.features[..., 2])
    assert own.regularizer().item() == pytest.approx(own.features.abs().sum().item())
    other(features()).sum().backward()
    assert own._features.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"shared_features: want \(1, 5, 1, 5\), got \(1, 5, 1, 12\)"):
        readout(shared_features={"match_ids": MATCH_IDS, "shared_features": readout()._features})


def test_shared_grid():
    own = readout(shared_grid={"match_ids": MATCH_IDS})
    assert own.mu[0, 0].equal(own.mu[0, 2])
    before = own._mu.detach().clone()
    other = readout(shared_grid={"match_ids": MATCH_IDS, "shared_grid": own.shared_grid})
    assert own._mu.equal(before)
    assert other.mu.equal(own.mu), "the affine map starts as the identity"
    with torch.no_grad():
        other.mu_transform.bias.fill_(0.1)
    torch.testing.assert_close(other.mu, own.mu + 0.1)
    assert other.eval()(features()).shape == (4, N)


def test_regularizer():
    layer_checks.assert_regularizes(readout)


def test_features_in_another_memory_format():
    """``model.to(memory_format=torch.channels_last)`` for the core's sake changes the strides of 4-d features too."""
    layer, x = readout(gauss_type="isotropic").eval(), features()
    assert layer._features.shape == (1, 5, 1, N)
    want = layer(x)
    layer.to(memory_format=torch.channels_last)
    assert not layer._features.is_contiguous()
    torch.testing.assert_close(layer(x), want)
    layer(x).sum().backward()
    assert layer._features.grad.squeeze().stride() == layer._features.squeeze().stride()


def test_meta_device_and_assign():
    with torch.device("meta"):
        empty = FullGaussian2d(SHAPE, N, bias=True)
    full = readout().eval()
    empty.load_state_dict(full.state_dict(), assign=True)
    x = features()
    assert empty.eval()(x).equal(full(x))


def test_predicted_means_on_meta():
    layer = readout(**RETINOTOPY).to("meta")
    assert layer.mu.shape == (1, N, 1, 2)
    assert layer(features().to("meta")).shape == (len(features()), N)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_module_cast_as_a_whole(dtype):
    layer_checks.assert_casts_as_a_whole(readout(), features(), dtype)


def test_gradients_in_evaluation():
    """sigma gets zeros, not None, as neuralpredictors' does."""
    layer = readout().eval()
    layer(features()).square().sum().backward()
    assert layer.sigma.grad.equal(torch.zeros_like(layer.sigma))
    assert layer._mu.grad.abs().sum() > 0


def test_sample_grid():
    layer = readout()
    assert layer.grid.equal(layer.mu)
    assert layer.sample_grid(3, sample=False).shape == (3, N, 1, 2)
    for sampler in ("philox", "torch"):
        layer.sampler = sampler
        grid = layer.sample_grid(2000)
        assert grid.shape == (2000, N, 1, 2)
        assert grid.abs().max() <= 1
        inside = (layer.mu.abs().amax(-1) < 0.3)[0, :, 0]
        assert inside.any()
        assert (grid.mean(0)[inside] - layer.mu[0][inside]).abs().max() < 0.05


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"init_mu_range": 0}, ValueError, r"init_mu_range: want a value in \(0, 1\], got 0"),
        ({"init_mu_range": 1.5}, ValueError, "init_mu_range"),
        ({"init_sigma": 0}, ValueError, "init_sigma: want a positive value, got 0"),
        ({"gauss_type": "round"}, ValueError, "gauss_type: want one of full, uncorrelated, isotropic, got 'round'"),
        ({"sampler": "numpy"}, ValueError, "sampler"),
        (RETINOTOPY | {"shared_grid": {"match_ids": MATCH_IDS}}, ConfigurationError, "exclude each other"),
        ({"grid_mean_predictor": {}}, ValueError, r"source_grid: want \[N, D\] for grid_mean_predictor, got None"),
        ({"grid_mean_predictor": {}, "source_grid": SOURCE[:-1]}, ValueError, r"with N = 12, got \(11, 3\)"),
        ({"shared_grid": {}}, ConfigurationError, "match_ids"),
        ({"shared_features": {"match_ids": [0, 1]}}, ValueError, r"match_ids: want one id per neuron, \(12,\)"),
        ({"mean_activity": torch.zeros(3)}, ValueError, r"mean_activity: want \[N\] = \(12,\), got \(3,\)"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        FullGaussian2d(SHAPE, N, **{"bias": True} | options)


def test_compiles_and_draws_anew_in_each_call():
    torch.compiler.reset()
    layer, x = readout(), features()
    step = torch.compile(layer, fullgraph=True, backend="aot_eager")
    first, second = step(x), step(x)
    assert not first.equal(second)
    first.sum().backward()
    assert layer._mu.grad.abs().sum() > 0
    layer.eval()
    torch.testing.assert_close(step(x), layer(x))


def test_ensemble_by_vmap():
    layers = [readout() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    x = features()
    base = copy.deepcopy(layers[0]).eval().to("meta")

    def call(p, b):
        return torch.func.functional_call(base, (p, b), (x,))

    got = torch.vmap(call)(parameters, buffers)
    assert got.equal(torch.stack([layer.eval()(x) for layer in layers]))


def test_learns():
    """Adam moves the means of a readout onto those of another from which the targets come."""
    torch.manual_seed(1)
    x = torch.nn.functional.avg_pool2d(torch.randn(600, 8, 23, 27), 5, stride=1)
    truth = FullGaussian2d((8, 19, 23), 6, bias=False, init_mu_range=0.5)
    layer = FullGaussian2d((8, 19, 23), 6, bias=False, init_mu_range=0.1, init_sigma=0.3)
    with torch.no_grad():
        truth._features.copy_(torch.randn_like(truth._features))
        target = truth.eval()(x)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(12):
            for batch in torch.randperm(600).split(50):
                optimiser.zero_grad()
                (layer(x[batch]) - target[batch]).square().mean().backward()
                optimiser.step()
    assert (layer.mu - truth.mu).abs().max() < 0.1
    assert (layer.eval()(x) - target).square().mean() < 0.05 * target.var()


# where a predictor of positions begins


@pytest.mark.parametrize("hidden_layers", [0, 1, 3])
@pytest.mark.parametrize("final_tanh", [False, True])
def test_predicted_means_start_within_a_range(hidden_layers, final_tanh):
    """As a random network maps them, some lie beside the map, all of them in a corner."""
    options = {"hidden_layers": hidden_layers, "final_tanh": final_tanh, "hidden_features": 6}
    for seed in range(5):
        torch.manual_seed(seed)
        layer = FullGaussian2d(SHAPE, N, True, grid_mean_predictor={**options, "init_range": 0.2}, source_grid=SOURCE)
        mu = layer.mu.detach().view(N, 2)
        mu = mu.atanh() if final_tanh else mu
        assert mu.abs().max() == pytest.approx(0.2, rel=1e-5)
        assert mu.mean(0).abs().max() < 1e-6
        torch.manual_seed(seed)
        anywhere = FullGaussian2d(SHAPE, N, True, grid_mean_predictor=options, source_grid=SOURCE)
        assert anywhere.mu.view(N, 2).mean(0).abs().max() > 0.01
        assert torch.equal(anywhere.sigma, layer.sigma)  # no further random numbers were drawn


def test_neurons_at_one_place_start_in_the_middle():
    predictor = {"hidden_layers": 1, "init_range": 0.2}
    for neurons in (0, 1, 3):
        layer = FullGaussian2d(
            SHAPE, neurons, True, grid_mean_predictor=predictor, source_grid=np.full((neurons, 2), 7.0)
        )
        assert layer.mu.shape == (1, neurons, 1, 2)
        assert (layer.mu.abs() < 1e-6).all()


def test_the_network_of_another_readout_is_left_as_it_is():
    first = FullGaussian2d(SHAPE, N, True, **RETINOTOPY)
    before = copy.deepcopy(first.mu_transform.state_dict())
    predictor = {**RETINOTOPY["grid_mean_predictor"], "init_range": 0.1}
    FullGaussian2d(
        SHAPE, N, True, grid_mean_predictor=predictor, source_grid=SOURCE, shared_transform=first.mu_transform
    )
    assert all(torch.equal(value, before[name]) for name, value in first.mu_transform.state_dict().items())


@pytest.mark.parametrize("init_range", [0, -0.1, 1.5, float("nan")])
def test_a_range_beside_the_map_is_refused(init_range):
    with pytest.raises(ValueError, match=r"init_range: want a number in \(0, 1\], got"):
        FullGaussian2d(SHAPE, N, True, grid_mean_predictor={"init_range": init_range}, source_grid=SOURCE)
